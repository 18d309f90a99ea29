//! Two replicas under load while the API server goes away, Bindings fail or lose their answers,
//! pods are deleted, and leaders are killed or end: nothing is held twice, and nothing is lost.
#[cfg(test)]
mod support;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use gpuzone_testkit::kubernetes::{BindFault, ClusterApi};
    use serde_json::{Value, json};

    use super::support::extender::*;
    use super::support::*;

    const OPEN: &[&str] = &["--without-quota", "admit"];
    const NODES: [&str; 4] = ["n1", "n2", "n3", "n4"];

    fn waiting(api: &ClusterApi) -> Vec<Value> {
        api.list("pods").into_iter().filter(|pod| pod["spec"]["nodeName"].is_null()).collect()
    }

    /// One round of the scheduler over all pods that wait, at whoever answers.
    async fn round(api: &ClusterApi, replicas: &[Extender]) {
        for (n, pod) in waiting(api).into_iter().enumerate() {
            let answer = replicas[n % replicas.len()].filter(&pod, &NODES).await;
            let Some(node) =
                answer["NodeNames"][n % 2].as_str().or(answer["NodeNames"][0].as_str())
            else {
                continue;
            };
            for replica in replicas {
                if replica.bind(&pod, node).await.is_empty() {
                    break;
                }
            }
            held(api);
        }
    }

    fn create(api: &ClusterApi, n: usize) {
        let gib = [2, 4, 8, 16][n % 4];
        api.put("pods", pod("team", &format!("p{n}"), &[("gpu", 1), ("memory-mib", gib * 1024)]));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_double_booking_and_no_lost_reservation() {
        let api = cluster(4, 2).await;
        let folder = tempfile::Builder::new().prefix("gz-ext-").tempdir_in("/tmp").unwrap();
        let start = |name: &str| Extender::start(&api, folder.path(), name, OPEN);
        let mut replicas = vec![start("a"), start("b")];
        replicas[0].leads_or_stands().await;
        replicas[1].leads_or_stands().await;
        let faults = [BindFault::LoseAnswer, BindFault::None, BindFault::Refuse, BindFault::None];
        let mut made = 0;
        for turn in 0..6 {
            for _ in 0..8 {
                create(&api, made);
                made += 1;
            }
            api.fault_bindings(faults);
            round(&api, &replicas).await;
            match turn {
                0 | 3 => {
                    // The API server is away in the middle of it.
                    api.set_away(true);
                    round(&api, &replicas).await;
                    tokio::time::sleep(Duration::from_millis(300)).await;
                    api.set_away(false);
                }
                1 => {
                    replicas[0].terminate();
                    replicas[0] = start("c");
                }
                4 => {
                    replicas[1].kill();
                    replicas[1] = start("d");
                }
                _ => {
                    let some: Vec<Value> = api.list("pods").into_iter().step_by(3).collect();
                    for pod in some {
                        api.delete(
                            "pods",
                            &format!("team/{}", pod["metadata"]["name"].as_str().unwrap()),
                        );
                    }
                }
            }
            round(&api, &replicas).await;
        }
        // Everything is well again: a pod that fits is bound, and no place is kept for nobody.
        api.list("pods").iter().filter(|pod| pod["spec"]["nodeName"].is_null()).for_each(|pod| {
            api.delete("pods", &format!("team/{}", pod["metadata"]["name"].as_str().unwrap()));
        });
        let first = api.list("pods").remove(0);
        api.delete("pods", &format!("team/{}", first["metadata"]["name"].as_str().unwrap()));
        api.put("pods", pod("team", "last", &[("gpu", 1), ("memory-mib", 1024)]));
        let log = || replicas.iter().map(Extender::log).collect::<String>();
        until("the last one is bound", log, async || {
            round(&api, &replicas).await;
            waiting(&api).is_empty()
        })
        .await;
        let bound = json!(api.list("pods").len()).to_string();
        until("the leader has seen all", log, async || {
            for replica in &replicas {
                let metrics = replica.metrics().await;
                if metrics.contains("pods_reserved 0\n")
                    && metrics.contains(&format!("pods_bound {bound}\n"))
                    && metrics.contains("scheduler_leading 1\n")
                {
                    return true;
                }
            }
            false
        })
        .await;
        held(&api);
    }
}
