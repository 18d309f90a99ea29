//! The real program over a stand-in of an API server: the scheduler's requests as they were
//! recorded, binds through lost answers and outages, and replicas that take over.
#[cfg(test)]
mod support;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use gpuzone_testkit::kubernetes::{BindFault, Used};
    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::support::extender::*;
    use super::support::*;

    const OPEN: &[&str] = &["--without-quota", "admit"];

    fn recorded(name: &str) -> Value {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recorded");
        let text = std::fs::read_to_string(folder.join(format!("{name}.request.json"))).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    fn folder() -> tempfile::TempDir {
        tempfile::Builder::new().prefix("gz-ext-").tempdir_in("/tmp").unwrap()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_schedulers_recorded_requests_are_answered() {
        let (api, folder) = (cluster(1, 2).await, folder());
        add_node(&api, "vm", 7, 2);
        add_node(&api, "fake-0", 8, 1);
        let mut more = vec!["--gpu-resource", "example.com/dev", "--without-quota", "admit"];
        more.extend(["--named-nodes", "all"]);
        let extender = Extender::start(&api, folder.path(), "a", &more);
        extender.leads().await;

        let asked = recorded("cache-filter");
        let (code, answer) = extender.ask("/filter", &asked).await;
        assert_eq!(code, 200);
        assert_eq!(answer["NodeNames"], json!(["vm"]));
        assert_eq!((&answer["Nodes"], &answer["Error"]), (&Value::Null, &json!("")));

        let (_, ranks) = extender.ask("/prioritize", &recorded("cache-prioritize")).await;
        assert_eq!(ranks, json!([{ "Host": "fake-0", "Score": 10 }]), "and nothing above 0");

        let asked = recorded("nocache-filter");
        let (_, answer) = extender.ask("/filter", &asked).await;
        assert_eq!(answer["NodeNames"], Value::Null);
        // What serves it comes back as it was.
        assert_eq!(answer["Nodes"]["items"], json!([asked["Nodes"]["items"][0]]));
        assert!(
            answer["FailedAndUnresolvableNodes"]["fake-1"].as_str().unwrap().contains("no GPU")
        );
        let (_, ranks) = extender.ask("/prioritize", &recorded("nocache-prioritize")).await;
        assert_eq!(ranks[0], json!({ "Host": "fake-0", "Score": 10 }));

        for (filter, bind) in [("cache-filter", "cache-bind"), ("nocache-filter", "nocache-bind")] {
            let (pod, args) = (&recorded(filter)["Pod"], recorded(bind));
            api.put("pods", pod.clone());
            let (code, answer) = extender.ask("/bind", &args).await;
            assert_eq!((code, &answer), (200, &json!({ "Error": "" })), "{}", extender.log());
            let key = format!("default/{}", args["PodName"].as_str().unwrap());
            let bound = api.get("pods", &key).unwrap();
            assert_eq!(bound["spec"]["nodeName"], args["Node"]);
            // Other annotations are still there, and the placement is one.
            let annotations = &bound["metadata"]["annotations"];
            assert!(annotations["kubectl.kubernetes.io/last-applied-configuration"].is_string());
            assert!(annotations["gpuzone.dev/placement"].as_str().unwrap().contains("GPU-"));
        }

        for (path, body) in [("/filter", json!({})), ("/bind", json!([])), ("/preempt", json!("x"))]
        {
            assert_eq!(extender.ask(path, &body).await.0, 400, "{path}");
        }
        assert_eq!(extender.ask("/nothing", &json!({})).await.0, 404);
        let metrics = extender.metrics().await;
        assert!(metrics.contains("gpuzone_scheduler_leading 1"), "{metrics}");
        assert!(metrics.contains(r#"requests_total{verb="bind",answered="true"} 2"#), "{metrics}");
    }

    /// The best node, and no word of others; where none serves, why.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_scheduler_is_told_no_more_than_it_needs() {
        let (api, folder) = (cluster(3, 2).await, folder());
        let more = ["--without-quota", "admit", "--policy", "pack"];
        let extender = Extender::start(&api, folder.path(), "a", &more);
        extender.leads().await;
        let held = pod("team", "held", &[("gpu", 1), ("memory-mib", 4096)]);
        api.put("pods", held.clone());
        extender.knows("held").await;
        assert_eq!(extender.bind(&held, "n2").await, "");
        let nodes = ["n1", "n2", "n3", "nowhere"];
        let asks = |mib| pod("team", "a", &[("gpu", 1), ("memory-mib", mib)]);
        let answer = extender.filter(&asks(1024), &nodes).await;
        assert_eq!(answer["NodeNames"], json!(["n2"]));
        assert_eq!(
            (&answer["FailedNodes"], &answer["FailedAndUnresolvableNodes"]),
            (&json!({}), &json!({}))
        );
        let answer = extender.filter(&asks(1 << 20), &nodes).await;
        assert_eq!(answer["NodeNames"], json!([]));
        assert_eq!(answer["FailedAndUnresolvableNodes"].as_object().unwrap().len(), nodes.len());
    }

    /// `ExtenderPreemptionArgs` of `k8s.io/kube-scheduler/extender/v1`: what is not given is null, and
    /// pods are as a 1.35 API server has them.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn victims_are_named_in_both_ways_of_asking() {
        let (api, folder) = (cluster(2, 2).await, folder());
        let more = ["--gpu-resource", "example.com/dev", "--without-quota", "admit"];
        let extender = Extender::start(&api, folder.path(), "a", &more);
        extender.leads().await;
        let like = |name: &str, priority: i32| {
            let mut pod = recorded("cache-filter")["Pod"].clone();
            pod["metadata"]["name"] = json!(name);
            pod["metadata"]["uid"] = json!(format!("uid-{name}"));
            pod["spec"]["priority"] = json!(priority);
            pod
        };
        for (name, node) in [("low", "n1"), ("high", "n2")] {
            api.put("pods", like(name, if name == "low" { 0 } else { 2000 }));
            assert_eq!(extender.bind(&like(name, 0), node).await, "", "{}", extender.log());
        }
        let both = async || extender.metrics().await.contains("pods_bound 2\n");
        until("both are seen", || extender.log(), both).await;
        let victims = |named: Value| json!({ "Pods": named, "NumPDBViolations": 1 });
        let expected = json!({ "NodeNameToMetaVictims":
            { "n1": { "Pods": [{ "UID": "uid-low" }], "NumPDBViolations": 1 } } });
        let low = api.get("pods", "default/low").unwrap();
        for (meta, whole) in [
            // The one that the scheduler named, or none: it does not know who holds the GPU.
            (
                json!({ "n1": victims(json!([{ "UID": "uid-low" }])), "n2": victims(json!([])) }),
                Value::Null,
            ),
            (json!({ "n1": victims(Value::Null), "gone": victims(json!([])) }), Value::Null),
            (Value::Null, json!({ "n1": victims(json!([low])), "n2": victims(json!([])) })),
            (Value::Null, json!({ "n1": victims(Value::Null) })),
        ] {
            let args = json!({ "Pod": like("urgent", 1000), "NodeNameToVictims": whole,
                "NodeNameToMetaVictims": meta });
            let (code, answer) = extender.ask("/preempt", &args).await;
            assert_eq!((code, &answer), (200, &expected), "{args}");
        }
        let mut modest = like("modest", 1000);
        modest["spec"]["preemptionPolicy"] = json!("Never");
        let args = json!({ "Pod": modest, "NodeNameToVictims": null,
            "NodeNameToMetaVictims": { "n1": victims(json!([])) } });
        let (_, answer) = extender.ask("/preempt", &args).await;
        assert_eq!(answer, json!({ "NodeNameToMetaVictims": {} }));

        // A scheduler that has taken the other one away comes back before it is known here that it is gone.
        let urgent = like("urgent", 1000);
        let back = extender.filter(&urgent, &["n1", "n2"]);
        let seen = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            api.delete("pods", "default/low");
        };
        let (answer, ()) = tokio::join!(back, seen);
        assert_eq!(answer["NodeNames"], json!(["n1"]), "{answer}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn lost_answers_are_looked_at_and_never_guessed() {
        let (api, folder) = (cluster(2, 1).await, folder());
        let extender = Extender::start(&api, folder.path(), "a", OPEN);
        extender.leads().await;
        let whole = |name: &str| pod("team", name, &[("gpu", 1)]);

        // Carried out, and answered with an error: it is bound, and that is said.
        api.put("pods", whole("a"));
        api.fault_bindings([BindFault::LoseAnswer]);
        assert_eq!(extender.bind(&whole("a"), "n1").await, "");
        // Not carried out: its place is kept, and the next try takes it.
        api.put("pods", whole("b"));
        api.fault_bindings([BindFault::Refuse]);
        let said = extender.bind(&whole("b"), "n2").await;
        assert!(said.contains("place is kept"), "{said}");
        api.put("pods", whole("c"));
        let answer = extender.filter(&whole("c"), &["n1", "n2"]).await;
        assert_eq!(answer["NodeNames"], json!([]));
        assert_eq!(extender.bind(&whole("b"), "n2").await, "");
        // Twice, and another of that name.
        let said = extender.bind(&whole("b"), "n2").await;
        assert!(said.contains("on the node n2 already"), "{said}");
        let mut other = whole("c");
        other["metadata"]["uid"] = json!("uid-other");
        let said = extender.bind(&other, "n1").await;
        assert!(said.contains("no such pod"), "{said}");
        let said = extender.bind(&whole("c"), "nowhere").await;
        assert!(said.contains("there is no node nowhere"), "{said}");
        // Somebody else bound it meanwhile.
        api.delete("pods", "team/b");
        until(
            "b's place is free",
            || extender.log(),
            async || extender.filter(&whole("c"), &["n2"]).await["NodeNames"] == json!(["n2"]),
        )
        .await;
        assert_eq!(api.bindings().len(), 2);
        held(&api);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nothing_is_answered_until_all_is_read() {
        let (api, folder) = (cluster(1, 1).await, folder());
        api.set_away(true);
        let extender = Extender::start(&api, folder.path(), "a", OPEN);
        until("it says why", || extender.log(), async || extender.ready().await.0 == 503).await;
        let (code, said) = extender.ready().await;
        assert_eq!(code, 503);
        assert!(said.contains("gpunodes") && said.contains("pods"), "{said}");
        let a = pod("team", "a", &[("gpu", 1)]);
        let answer = extender.filter(&a, &["n1"]).await;
        assert!(answer["Error"].as_str().unwrap().contains("not ready"), "{answer}");
        api.set_away(false);
        api.put("pods", a.clone());
        extender.leads().await;
        // Through an outage it answers what it knows, and binds when the API server is back.
        api.set_away(true);
        assert_eq!(extender.filter(&a, &["n1"]).await["NodeNames"], json!(["n1"]));
        assert_ne!(extender.bind(&a, "n1").await, "");
        api.set_away(false);
        until(
            "it is bound",
            || extender.log(),
            async || {
                let said = extender.bind(&a, "n1").await;
                said.is_empty() || said.contains("already")
            },
        )
        .await;
        assert_eq!(api.bindings().len(), 1);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn one_replica_binds_and_another_takes_over() {
        let (api, folder) = (cluster(2, 2).await, folder());
        let follow = |ip| ["--without-quota", "admit", "--service", "ext", "--advertise", ip];
        let mut first = Extender::start(&api, folder.path(), "first", &follow("10.0.0.1"));
        first.leads().await;
        let second = Extender::start(&api, folder.path(), "second", &follow("10.0.0.2"));
        let endpoint = || {
            let slice = api.get("endpointslices", "gpu-zone/ext-leader").unwrap_or_default();
            slice["endpoints"][0]["addresses"][0].clone()
        };
        until("its Service", || first.log(), async || endpoint() == json!("10.0.0.1")).await;
        until("it stands by", || second.log(), async || second.ready().await.1.contains("first"))
            .await;
        let whole = |name: &str| pod("team", name, &[("gpu", 1)]);
        api.put("pods", whole("a"));
        let answer = second.filter(&whole("a"), &["n1", "n2"]).await;
        assert_eq!(answer["NodeNames"], json!(["n1", "n2"]), "both answer");
        let said = second.bind(&whole("a"), "n1").await;
        assert!(said.contains("does not lead, first"), "{said}");
        assert_eq!(first.bind(&whole("a"), "n1").await, "");
        // It ends as it should: the other one binds at once, and knows what was bound.
        first.terminate();
        second.leads().await;
        until("its Service", || second.log(), async || endpoint() == json!("10.0.0.2")).await;
        api.put("pods", whole("b"));
        api.put("pods", whole("c"));
        assert_eq!(second.bind(&whole("b"), "n1").await, "");
        let said = second.bind(&whole("c"), "n1").await;
        assert!(said.contains("no room"), "{said}");
        held(&api);
        // Half of the Lease's ten seconds after it was written the last Binding begins; so when another
        // one leads, it has ended, also of a leader that was killed in the middle of it.
        assert!(api.latest_binding() < Duration::from_secs(5), "{:?}", api.latest_binding());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn quotas_refuse_say_what_is_used_and_wake_who_waits() {
        let (api, folder) = (cluster(1, 4).await, folder());
        let spec = |gpus: u32| {
            json!({ "kind": "GpuQuota", "apiVersion": "gpuzone.dev/v1alpha1",
                "metadata": { "name": "team" },
                "spec": { "namespaceSelector": { "matchLabels": { "team": "team" } },
                    "limits": { "gpus": gpus } } })
        };
        api.put("gpuquotas", spec(1));
        let more = ["--wake-milliseconds", "100", "--service", "ext", "--advertise", "10.0.0.1"];
        let extender = Extender::start(&api, folder.path(), "a", &more);
        extender.leads().await;
        let whole = |name: &str| pod("team", name, &[("gpu", 1)]);
        api.put("pods", whole("a"));
        assert_eq!(extender.bind(&whole("a"), "n1").await, "");
        let used = || api.get("gpuquotas", "team").unwrap()["status"]["used"]["gpus"].clone();
        until("the status", || extender.log(), async || used() == json!(1)).await;
        let of_tenant = &api.get("gpuquotas", "team").unwrap()["status"]["tenants"]["team"];
        assert_eq!(of_tenant["memory"], json!("16Gi"));
        api.put("pods", whole("b"));
        extender.knows("b").await;
        let answer = extender.filter(&whole("b"), &["n1"]).await;
        let said = answer["FailedNodes"]["n1"].as_str().unwrap();
        assert_eq!(said, "GpuQuota 'team': 1 GPUs used, 1 GPUs asked, 1 GPUs granted");
        let (_, why) = extender.ask("/explain/team/b", &Value::Null).await;
        assert!(why["quota"].as_str().unwrap().contains("1 GPUs granted"), "{why}");
        // Touched at the start, if at all; then once for the quota that is raised.
        let before = api.writes("patch", "nodes");
        api.put("gpuquotas", spec(2));
        until("a touch", || extender.log(), async || api.writes("patch", "nodes") > before).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(api.writes("patch", "nodes"), before + 1);
        assert_eq!(extender.bind(&whole("b"), "n1").await, "");
        // Nobody waits: nobody is woken.
        api.put("gpuquotas", spec(3));
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(api.writes("patch", "nodes"), before + 1);
        // What a namespace without a quota gets.
        let answer = extender.filter(&pod("other", "x", &[("gpu", 1)]), &["n1"]).await;
        assert!(answer["FailedNodes"]["n1"].as_str().unwrap().contains("no GpuQuota holds"));

        // With a lost answer, each right of its roles was of use; what they lack was refused all
        // along.
        api.put("pods", whole("c"));
        api.fault_bindings([BindFault::LoseAnswer]);
        assert_eq!(extender.bind(&whole("c"), "n1").await, "");
        let rights = Used::all(&ROLES.concat());
        until("all rights used", || extender.log(), async || api.used() == rights).await;
    }

    /// What wakes pods is tried until it succeeded, and at another node where one is gone.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_wake_that_failed_is_not_forgotten() {
        let (api, folder) = (cluster(2, 1).await, folder());
        let more = ["--without-quota", "admit", "--wake-milliseconds", "100"];
        let extender = Extender::start(&api, folder.path(), "a", &more);
        extender.leads().await;
        let whole = |name: &str| pod("team", name, &[("gpu", 1)]);
        api.put("pods", whole("a"));
        assert_eq!(extender.bind(&whole("a"), "n1").await, "");
        api.put("pods", whole("b"));
        extender.knows("b").await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let touched = |node: &str| {
            let annotation = "gpuzone.dev~1room-changed";
            let path = format!("/metadata/annotations/{annotation}");
            api.get("nodes", node).unwrap().pointer(&path).cloned()
        };
        let before = (touched("n1"), touched("n2"), api.writes("patch", "nodes"));
        api.refuse_patches("nodes", [500, 503, 404]);
        api.delete("pods", "team/a");
        until("another", || extender.log(), async || touched("n2") != before.1).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(touched("n1"), before.0, "n1 is said to be gone");
        assert_eq!(api.writes("patch", "nodes"), before.2 + 1, "and once is enough");
    }

    /// Too much at once, too slow and too large are refused, each with its code, and cost nobody else.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_verbs_have_bounds() {
        let (api, folder) = (cluster(1, 1).await, folder());
        let more = ["--without-quota", "admit", "--largest-request-mib", "1"];
        let extender = Extender::start(&api, folder.path(), "a", &more);
        extender.leads().await;
        let code = async |stream: &mut TcpStream| {
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).await.unwrap();
            String::from_utf8_lossy(&answer[9..]).into_owned()
        };
        let begin = async |length: usize| {
            let mut stream = TcpStream::connect(("127.0.0.1", extender.port)).await.unwrap();
            let head =
                format!("POST /filter HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{{");
            stream.write_all(head.as_bytes()).await.unwrap();
            stream
        };
        // With the brace one byte more than a MiB, of two that are announced.
        let mut large = begin(2 << 20).await;
        large.write_all(&vec![b' '; 1 << 20]).await.unwrap();
        assert_eq!(code(&mut large).await, "413");
        let mut slow = Vec::new();
        for _ in 0..256 {
            slow.push(begin(100).await);
        }
        // All of them have a place by then, and for ten seconds.
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(code(&mut begin(100).await).await, "429");
        assert_eq!(extender.ready().await.0, 200, "probes have a door of their own");
        for stream in &mut slow {
            assert_eq!(code(stream).await, "408");
        }
        let answer = extender.filter(&pod("team", "a", &[("gpu", 1)]), &["n1"]).await;
        assert_eq!(answer["NodeNames"], json!(["n1"]));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_groups_binds_wait_for_each_other() {
        let (api, folder) = (cluster(2, 2).await, folder());
        let more = ["--without-quota", "admit", "--group-seconds", "3"];
        let extender = Extender::start(&api, folder.path(), "a", &more);
        extender.leads().await;
        let members: Vec<Value> =
            (0..3).map(|n| grouped(pod("team", &format!("g{n}"), &[("gpu", 1)]), "g", 3)).collect();
        members.iter().for_each(|pod| api.put("pods", pod.clone()));
        let mut places: Vec<String> = Vec::new();
        for pod in &members {
            until(
                "its place",
                || extender.log(),
                async || {
                    let answer = extender.filter(pod, &["n1", "n2"]).await;
                    let found = answer["NodeNames"][0].as_str().map(str::to_owned);
                    places.extend(found.clone());
                    found.is_some()
                },
            )
            .await;
        }
        let [a, b, c] = [0, 1, 2].map(|n| extender.bind(&members[n], &places[n]));
        // Two of three: none is bound.
        let (first, second) = tokio::join!(a, b);
        assert!(
            first.contains("none of them is bound") && second.contains("none of them is bound")
        );
        assert!(api.bindings().is_empty());
        drop(c);
        // All of them, after their turn has come again.
        for (pod, place) in members.iter().zip(&mut places) {
            until(
                "its place",
                || extender.log(),
                async || {
                    let answer = extender.filter(pod, &["n1", "n2"]).await;
                    let found = answer["NodeNames"][0].as_str().map(str::to_owned);
                    found.map(|found| *place = found).is_some()
                },
            )
            .await;
        }
        let binds = [0, 1, 2].map(|n| extender.bind(&members[n], &places[n]));
        let [a, b, c] = binds;
        assert_eq!(tokio::join!(a, b, c), Default::default());
        assert_eq!(api.bindings().len(), 3);
        held(&api);
    }

    /// Its binds wait for the last of them, and nobody else is refused for that.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_group_of_hundreds_is_bound_and_others_are_answered_meanwhile() {
        const SIZE: u32 = 300;
        let (api, folder) = (cluster(76, 4).await, folder());
        let more = ["--without-quota", "admit", "--group-seconds", "120"];
        let extender = Extender::start(&api, folder.path(), "a", &more);
        extender.leads().await;
        let member = |n| grouped(pod("team", &format!("g{n}"), &[("gpu", 1)]), "g", SIZE);
        let mut members: Vec<Value> = (0..SIZE).map(member).collect();
        members.iter().for_each(|pod| api.put("pods", pod.clone()));
        extender.knows(&format!("g{}", SIZE - 1)).await;
        let nodes: Vec<String> = (1..=76).map(|n| format!("n{n}")).collect();
        let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
        let mut binds = tokio::task::JoinSet::new();
        let last = members.pop().unwrap();
        let bind = async |pod: Value, binds: &mut tokio::task::JoinSet<String>| {
            let answer = extender.filter(&pod, &nodes).await;
            let place = answer["NodeNames"][0].as_str().unwrap_or_else(|| panic!("{answer}"));
            let (door, place) = (extender.door(), place.to_owned());
            binds.spawn(async move { door.bind(&pod, &place).await });
        };
        for pod in members {
            bind(pod, &mut binds).await;
        }
        let other = pod("team", "other", &[("gpu", 1)]);
        assert!(extender.filter(&other, &nodes).await["NodeNames"][0].is_string());
        assert_eq!(api.bindings(), []);
        bind(last, &mut binds).await;
        while let Some(said) = binds.join_next().await {
            assert_eq!(said.unwrap(), "");
        }
        assert_eq!(api.bindings().len(), SIZE as usize);
        held(&api);
    }
}
