//! Against a cluster of one's own: `GPU_ZONE_E2E_KUBECONFIG` names the kubeconfig of an administrator,
//! and `GPU_ZONE_E2E_KUBE_SCHEDULER` the program `kube-scheduler` of that version. That program runs
//! here, beside the real extender; the nodes are objects only, so no container starts. It prints how
//! many pods a second get a node without any extender, with one that does nothing, and with ours, which names
//! the best nodes or ranks them (wanted: 0.9 of those without), and removes all that it made. Without those two it says that it was skipped.
//!
//! The same steps run in each test run against a stand-in of an API server, with a stand-in of the
//! scheduler: that shows that the suite works, and nothing of a cluster.
#[cfg(test)]
mod support;

#[cfg(test)]
mod tests {
    use std::panic::AssertUnwindSafe;
    use std::path::Path;
    use std::sync::Arc;

    use futures::FutureExt;
    use gpuzone_testkit::kubernetes::ClusterApi;
    use k8s_openapi::api::core::v1::Pod;
    use kube::api::{ListParams, PostParams};
    use kube::{Api, Client, ResourceExt};
    use serde_json::{Value, json};
    use tokio::task::JoinHandle;

    use super::support::bare::Bare;
    use super::support::extender::*;
    use super::support::scheduler::*;
    use super::support::suite::*;

    /// Who schedules.
    enum Scheduler {
        Real(KubeScheduler),
        /// One that does what a real one is known to do, one pod after the other.
        StandIn,
    }

    /// Whom the scheduler asks.
    enum With<'a> {
        Nobody,
        /// And it places no two pods by one look, as it cannot with an extender either.
        NobodyForEach,
        Bare(&'a Bare),
        Ours(Arc<Extender>),
    }

    /// What is compared.
    #[derive(Clone, Copy)]
    enum Which {
        Without,
        Unbatched,
        Bare,
        /// Which nodes ours names to the scheduler.
        Ours(&'static str),
    }

    const COMPARED: [(&str, Which); 5] = [
        ("without", Which::Without),
        ("unbatched", Which::Unbatched),
        ("bare", Which::Bare),
        ("ours", Which::Ours("best")),
        ("ranked", Which::Ours("ranked")),
    ];

    enum Running {
        Real(#[expect(dead_code, reason = "dropping it ends it")] Scheduling),
        StandIn(JoinHandle<()>),
    }

    impl Drop for Running {
        fn drop(&mut self) {
            if let Self::StandIn(task) = self {
                task.abort();
            }
        }
    }

    impl Scheduler {
        fn start(&self, fleet: &Fleet, folder: &Path, with: &With<'_>) -> Running {
            let Self::Real(program) = self else {
                let (pods, nodes) = (fleet.pods(), fleet.nodes.clone());
                let extender = match with {
                    With::Ours(extender) => Some(Arc::clone(extender)),
                    With::Nobody | With::NobodyForEach | With::Bare(_) => None,
                };
                return Running::StandIn(tokio::spawn(async move {
                    loop {
                        stand_in(&pods, &nodes, extender.as_deref()).await;
                        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                    }
                }));
            };
            let asked = match with {
                With::NobodyForEach => return Running::Real(program.start_unbatched(folder)),
                With::Nobody => None,
                With::Bare(bare) => Some(Asked::plainly(bare.port)),
                With::Ours(extender) => Some(Asked::plainly(extender.port)),
            };
            Running::Real(program.start(folder, asked.as_ref()))
        }
    }

    /// One round over all pods that wait.
    async fn stand_in(pods: &Api<Pod>, nodes: &[String], extender: Option<&Extender>) {
        let Ok(listed) = pods.list(&ListParams::default()).await else { return };
        let waits = |pod: &&Pod| pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_none());
        for pod in listed.items.iter().filter(waits) {
            let Some(extender) = extender else {
                let binding = json!({ "apiVersion": "v1", "kind": "Binding",
                    "metadata": { "name": pod.name_any(), "namespace": NAME },
                    "target": { "apiVersion": "v1", "kind": "Node", "name": nodes[0] } });
                let params = PostParams::default();
                let name = pod.name_any();
                let bound =
                    pods.create_subresource::<Value, Value>("binding", &name, &params, &binding);
                let _ = bound.await;
                continue;
            };
            let pod = serde_json::to_value(pod).unwrap();
            let all: Vec<&str> = nodes.iter().map(String::as_str).collect();
            let fits = extender.filter(&pod, &all).await["NodeNames"].clone();
            let asked = json!({ "Pod": pod, "Nodes": null, "NodeNames": fits });
            let (_, ranks) = extender.ask("/prioritize", &asked).await;
            let ranks = ranks.as_array().cloned().unwrap_or_default();
            let best = ranks.iter().max_by_key(|rank| rank["Score"].as_i64());
            // Where none is above the others, any will do.
            let best = best.map_or(&fits[0], |rank| &rank["Host"]);
            if let Some(node) = best.as_str() {
                extender.bind(&pod, node).await;
            }
        }
    }

    /// Pods a second of each. Which is first changes from round to round, for one's pods may still be going when the
    /// next one's come.
    async fn compare(
        fleet: &Fleet,
        scheduler: &Scheduler,
        (bare, kubeconfig): (&Bare, &Path),
        folder: &Path,
        (pods, round): (u32, u32),
    ) -> [f64; 5] {
        let mut rates = [0.0; 5];
        // The pods are there before the scheduler is, so nobody measures how fast they are created.
        for turn in 0..COMPARED.len() {
            let which = (turn + usize::try_from(round).unwrap()) % COMPARED.len();
            let (name, whom) = COMPARED[which];
            let with = match whom {
                Which::Ours(named) => {
                    let more = ["--lease-namespace", NAME, "--named-nodes", named];
                    let extender = Extender::over(kubeconfig, folder, name, &more);
                    extender.leads().await;
                    With::Ours(Arc::new(extender))
                }
                Which::Bare => With::Bare(bare),
                Which::Unbatched => With::NobodyForEach,
                Which::Without => With::Nobody,
            };
            let limits: &[(&str, u64)] = match with {
                With::Nobody | With::NobodyForEach => &[("gpu", 1)],
                With::Bare(_) | With::Ours(_) => &[("gpu", 1), ("memory-mib", 1024)],
            };
            let names = fleet.create(name, pods, limits).await;
            let begin = || scheduler.start(fleet, folder, &with);
            let (running, a_second) = fleet.bound(&names, begin).await;
            rates[which] = a_second;
            if let With::Ours(extender) = &with {
                fleet.placed_once(&names).await;
                too_large(fleet, extender).await;
                extender.tell_to_end();
                until("it ends", || extender.log(), async || extender.has_ended()).await;
            }
            drop(running);
            fleet.delete_pods().await;
        }
        rates
    }

    /// A pod that no node can have waits, with its reason.
    async fn too_large(fleet: &Fleet, extender: &Extender) {
        let large = fleet.create("large", 1, &[("gpu", 1), ("memory-mib", 1 << 20)]).await;
        let path = format!("/explain/{NAME}/{}", large.first().unwrap());
        let said = async || extender.ask(&path, &Value::Null).await.1.to_string();
        let log = || extender.log();
        until("its reason", log, async || said().await.contains("even when empty")).await;
        let pod = fleet.pods().get(large.first().unwrap()).await.unwrap();
        assert_eq!(pod.spec.unwrap().node_name, None);
    }

    fn median(mut rates: Vec<f64>) -> f64 {
        rates.sort_by(f64::total_cmp);
        let half = rates.len() / 2;
        if rates.len() % 2 == 1 { rates[half] } else { (rates[half - 1] + rates[half]) / 2.0 }
    }

    /// So many nodes, and so many pods, so many times.
    struct Size(u32, u32, u32);

    async fn suite(client: Client, kubeconfig: &Path, scheduler: &Scheduler, size: Size) {
        let folder = tempfile::Builder::new().prefix("gz-e2e-").tempdir_in("/tmp").unwrap();
        let Size(nodes, pods, rounds) = size;
        let mut fleet = Fleet::install(client).await;
        let steps = async {
            fleet.furnish(nodes).await;
            let who = match scheduler {
                Scheduler::Real(_) => "kube-scheduler",
                Scheduler::StandIn => "a stand-in, which says nothing of a cluster",
            };
            let bare = Bare::start(kubeconfig).await;
            let mut all: [Vec<f64>; 5] = Default::default();
            for round in 1..=rounds {
                let asked = (&bare, kubeconfig);
                let rates = compare(&fleet, scheduler, asked, folder.path(), (pods, round)).await;
                let said =
                    COMPARED.iter().zip(rates).map(|((name, _), rate)| format!("{rate:.0} {name}"));
                println!("round {round}, pods/s: {}", said.collect::<Vec<_>>().join(", "));
                all.iter_mut().zip(rates).for_each(|(all, rate)| all.push(rate));
            }
            let [without, unbatched, bare, ours, ranked] = all.map(median);
            println!(
                "{nodes} nodes, {pods} pods, medians of {rounds}, {who}: {without:.0} pods/s without an extender, {unbatched:.0} where it looks at the nodes for each pod, {bare:.0} with an extender that does nothing, {ours:.0} with ours, {ranked:.0} where ours ranks the nodes: {:.2} of those without, {:.2} of those looked for one by one, {:.2} of the one that does nothing; wanted: 0.90 of those without",
                ours / without,
                ours / unbatched,
                ours / bare
            );
        };
        // Whatever fails, nothing is left behind.
        let ended = AssertUnwindSafe(steps).catch_unwind().await;
        fleet.remove().await;
        if let Err(panic) = ended {
            std::panic::resume_unwind(panic);
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_real_scheduler_places_pods_by_the_extender() {
        let Some((kubeconfig, program)) = told() else { return };
        let scheduler = Scheduler::Real(program);
        for size in [Size(100, 1000, 5), Size(1000, 1000, 3)] {
            suite(client(&kubeconfig).await, &kubeconfig, &scheduler, size).await;
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_suite_itself_leaves_nothing_behind() {
        let api = ClusterApi::start().await.unwrap();
        let folder = tempfile::Builder::new().prefix("gz-e2e-").tempdir_in("/tmp").unwrap();
        let kubeconfig = api.kubeconfig(folder.path()).unwrap();
        suite(client(&kubeconfig).await, &kubeconfig, &Scheduler::StandIn, Size(3, 20, 1)).await;
        assert_eq!(api.bindings().len(), 100);
        for kind in
            ["pods", "nodes", "gpunodes", "gpuquotas", "namespaces", "customresourcedefinitions"]
        {
            assert_eq!(api.list(kind), Vec::<Value>::new());
        }
        // Who has gpu-zone already is left alone.
        add_node(&api, "n1", 1, 1);
        let client = client(&kubeconfig).await;
        let refused = AssertUnwindSafe(Fleet::install(client)).catch_unwind().await;
        assert!(refused.is_err());
        assert_eq!((api.list("gpunodes").len(), api.list("namespaces").len()), (1, 0));
        assert_eq!(api.list("customresourcedefinitions"), Vec::<Value>::new());
    }
}
