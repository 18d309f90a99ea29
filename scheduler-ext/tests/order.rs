//! The index: which nodes, places and victims it likes better.
#[cfg(test)]
mod support;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use gpuzone_core::MemoryBytes;
    use gpuzone_core::engine::{HostRoom, Policy};
    use gpuzone_scheduler_ext::index::{Index, Named, Settings};
    use serde_json::{Value, json};

    use super::support::questions::*;
    use super::support::*;

    /// What each node lacks, the nearest first, and those that lack the same together.
    #[test]
    fn explain_has_a_figure_for_each_node() {
        let mut index = index(5, 2);
        for (at, gib) in [("n1", 14), ("n2", 12), ("n3", 14), ("n4", 14), ("n5", 14)] {
            for gpu in 0..2 {
                let limits = [("gpu", 1), ("memory-mib", gib * 1024), ("share", 10)];
                let pod = pod("team", &format!("{at}-{gpu}"), &limits);
                let bound = bind(&mut index, &pod, at).unwrap();
                index.apply_pod(view(&bound));
            }
        }
        let waits = pod("team", "waits", &[("gpu", 1), ("memory-mib", 8 * 1024), ("share", 10)]);
        index.apply_pod(view(&waits));
        let why = index.explain(&view(&waits).name).unwrap();
        assert_eq!(why.nodes.values().copied().collect::<Vec<_>>(), [5]);
        let told = why.lacking.iter().map(|l| (l.nodes.join(","), l.number, l.says.as_str()));
        let near = "needs 8Gi on one GPU: the best of 2 has 4Gi free";
        let far = "needs 8Gi on one GPU: the best of 2 has 2Gi free";
        assert_eq!(
            told.collect::<Vec<_>>(),
            [("n2".to_owned(), 1, near), ("n1,n3,n4".to_owned(), 4, far)]
        );
        let nearest =
            format!("the nearest is n2: {near}; with 4Gi of memory it would get past that");
        assert!(why.changes.contains(&nearest), "{:?}", why.changes);
        // And so it does.
        let less = pod("team", "less", &[("gpu", 1), ("memory-mib", 4 * 1024), ("share", 10)]);
        assert_eq!(said(&mut index, &less, &["n2"]), [None]);
    }

    /// Among those named, the ranks choose what they choose among all.
    #[test]
    fn what_is_named_to_the_scheduler_has_the_best_in_it() {
        let mut index = index(120, 2);
        let nodes: Vec<String> = (1..=120).map(|n| format!("n{n}")).collect();
        let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
        // Fifteen nodes with ever less left, and the others are equal.
        for n in 1..=15 {
            let pod = pod("team", &format!("p{n}"), &[("gpu", 1), ("memory-mib", n * 512)]);
            let bound = bind(&mut index, &pod, &format!("n{n}")).unwrap();
            index.apply_pod(view(&bound));
        }
        let mut asks = pod("team", "new", &[("gpu", 1), ("memory-mib", 1024)]);
        let mut top = |asks: &Value, named| -> (usize, Vec<&str>) {
            let asks = view(asks);
            let places = index.named(&asks, &nodes, named);
            assert!(places.is_sorted());
            let named: Vec<&str> = places.iter().map(|at| nodes[*at]).collect();
            let ranks = index.prioritize(&asks, &named).unwrap();
            let best = named.iter().zip(ranks).filter(|(_, rank)| *rank == 10);
            (named.len(), best.map(|(name, _)| *name).collect())
        };
        let (all, best) = top(&asks, Named::All);
        assert_eq!((all, best.len()), (120, 1));
        assert_eq!(top(&asks, Named::Ranked), (100, best.clone()));
        assert_eq!(top(&asks, Named::Best), (1, best.clone()));
        // What a pod itself prefers has a say.
        let term = json!({ "weight": 1, "preference": { "matchFields": [] } });
        let kind = json!({ "preferredDuringSchedulingIgnoredDuringExecution": [term] });
        let spread = |when: &str| json!([{ "maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": when }]);
        for (field, said, named) in [
            ("affinity", json!({ "nodeAffinity": kind }), 100),
            ("affinity", json!({ "nodeAffinity": {} }), 1),
            ("topologySpreadConstraints", spread("ScheduleAnyway"), 100),
            ("topologySpreadConstraints", spread("DoNotSchedule"), 1),
        ] {
            asks["spec"][field] = said;
            assert_eq!(top(&asks, Named::Best), (named, best.clone()), "{asks}");
            asks["spec"].as_object_mut().unwrap().remove(field);
        }
        let asks = view(&asks);
        // Where all are equal, it is the scheduler's own plugins that choose among a hundred of them.
        let equal = &nodes[20..];
        assert_eq!(index.named(&asks, equal, Named::Best), (0..100).collect::<Vec<_>>());
        assert_eq!(index.named(&view(&pod("team", "web", &[])), &nodes, Named::Best).len(), 120);
    }

    /// Pods' processors decide which GPUs will be of use; who has none of them is no burden there.
    #[test]
    fn nodes_are_preferred_by_what_is_left_of_their_hosts() {
        let fragmentation = Settings { policy: Policy::Fragmentation, ..settings() };
        let mut index = index_with(fragmentation, 2, 2);
        let host = |cpu: u64| HostRoom { cpu_milli: cpu * 1000, memory: MemoryBytes::gib(64) };
        ["n1", "n2", "n3"].iter().for_each(|name| index.apply_node(&node(name), host(16)));
        let asking = |mut pod: Value, cpu: u32| {
            pod["spec"]["containers"][0]["resources"]["requests"] =
                json!({ "cpu": cpu.to_string(), "memory": "1Gi" });
            pod
        };
        let gpu = asking(pod("team", "g", &[("gpu", 1)]), 4);
        index.apply_pod(view(&gpu));
        let nodes = ["n1", "n2"];
        let ranks = |index: &mut Index, pod: &Value| index.prioritize(&view(pod), &nodes).unwrap();
        assert_eq!(ranks(&mut index, &gpu), [10, 10]);
        // After one more pod there, n1 has no processors for its other GPU.
        let mut other = asking(pod("team", "web", &[]), 11);
        other["spec"]["nodeName"] = json!("n1");
        index.apply_pod(view(&other));
        assert_eq!(ranks(&mut index, &gpu), [9, 10]);
        // Who asks for no GPU takes nothing of them where there is none; then not the last of n1's.
        let plain = asking(pod("team", "p", &[]), 2);
        assert_eq!(index.prioritize(&view(&plain), &["n1", "n2", "n3"]).unwrap(), [8, 9, 10]);
        // It grows, and moves nowhere; nothing is left, and whether that matters is not said here.
        other["spec"]["containers"][0]["resources"]["requests"]["cpu"] = json!("16");
        index.apply_pod(view(&other));
        assert_eq!(reason(&mut index, &gpu), "");
        assert!(index.reserve(&view(&gpu).uid, &node("n1")).is_ok());
        index.remove_pod(&view(&gpu).uid);
        index.apply_pod(view(&gpu));
        // A list without it, and n1 is as good again.
        index.begin_pods();
        index.apply_pod(view(&gpu));
        index.end_pods(T);
        assert_eq!(ranks(&mut index, &gpu), [10, 10]);
        // What a pod with GPUs takes of the host counts as well, from its reservation on.
        let large = asking(pod("team", "l", &[("gpu", 1), ("memory-mib", 1)]), 11);
        let bound = bind(&mut index, &large, "n2").unwrap();
        assert_eq!(ranks(&mut index, &plain), [10, 9]);
        index.apply_pod(view(&bound));
        assert_eq!(ranks(&mut index, &plain), [10, 9]);
        index.remove_pod(&view(&bound).uid);
        assert_eq!(ranks(&mut index, &plain), [10, 10]);
    }

    /// What is likely to come is known to an extender that starts anew, from pods that were there before.
    #[test]
    fn what_was_learned_is_learned_anew_from_bound_pods() {
        let fragmentation = Settings { policy: Policy::Fragmentation, ..settings() };
        let ranks = |index: &mut Index| {
            let small = pod("team", "s", &[("gpu", 1), ("memory-mib", 2048)]);
            index.prioritize(&view(&small), &["n1", "n2"]).unwrap()
        };
        // n1 has 10 GiB of its GPU left, n2 12. Where pods of 10 GiB are usual, the next of 2 takes of n2.
        let running = |index: &mut Index, size: u64, of: std::ops::Range<u64>| {
            for n in of {
                let mib = [("gpu", 1), ("memory-mib", size), ("share", 1)];
                let mut old = pod("team", &format!("{n:04}-{size}"), &mib);
                let created = format!("2026-01-01T{:02}:{:02}:00Z", 23 - n / 60, 59 - n % 60);
                old["metadata"]["creationTimestamp"] = json!(created);
                old["spec"]["nodeName"] = json!("elsewhere");
                index.apply_pod(view(&old));
            }
        };
        let begin = |sizes: &dyn Fn(&mut Index)| {
            let mut index = Index::new(fragmentation.clone());
            index.begin_pods();
            sizes(&mut index);
            for n in 1..=2 {
                let name = node(&format!("n{n}"));
                index.apply_node(&name, HostRoom::default());
                index.apply_gpu_node(&name, Some(&status(n, 1, 16)));
                let held = pod("team", &format!("h{n}"), &[("gpu", 1)]);
                let gib = if n == 1 { 6 } else { 4 };
                let placement = json!({ "version": 1, "node": name, "pod": format!("uid-h{n}"),
                    "containers": { "app": [{ "gpu": gpu_uuid(n, 0), "memory": format!("{gib}Gi"),
                        "share": 1 }] } });
                let mut held = held;
                held["spec"]["nodeName"] = json!(name);
                held["metadata"]["annotations"] =
                    json!({ "gpuzone.dev/placement": placement.to_string() });
                index.apply_pod(view(&held));
            }
            namespace(&mut index, "team");
            index.end_pods(T);
            complete(&mut index);
            index
        };
        let mut tens = begin(&|index| running(index, 10 * 1024, 0..200));
        assert_eq!(ranks(&mut tens), [9, 10]);
        let mut twelves = begin(&|index| running(index, 12 * 1024, 0..200));
        assert_eq!(ranks(&mut twelves), [10, 9]);
    }

    #[test]
    fn preemption_takes_as_few_as_will_do_and_of_one_tenant() {
        let mut index = index(1, 2);
        namespace(&mut index, "other");
        let small = |ns: &str, name: &str| pod(ns, name, &[("gpu", 1), ("memory-mib", 8192)]);
        for (ns, name, priority) in
            [("team", "a", 1), ("other", "b", 1), ("team", "c", 1), ("other", "d", 9)]
        {
            let mut bound = bind(&mut index, &small(ns, name), "n1").unwrap();
            bound["spec"]["priority"] = json!(priority);
            index.apply_pod(view(&bound));
        }
        let mut urgent = pod("team", "u", &[("gpu", 1), ("memory-mib", 8192)]);
        urgent["spec"]["priority"] = json!(5);
        // What the scheduler named frees enough: nobody else goes.
        let named = BTreeSet::from([uid("uid-b")]);
        assert_eq!(victims(&index, &urgent, "n1", &named).unwrap(), named);
        assert_eq!(victims(&index, &urgent, "n1", &BTreeSet::new()).unwrap().len(), 1);
        let mut whole = pod("team", "w", &[("gpu", 1)]);
        whole["spec"]["priority"] = json!(5);
        let two = victims(&index, &whole, "n1", &BTreeSet::new()).unwrap();
        assert_eq!(two.len(), 2);
        assert!(!two.contains(&uid("uid-d")), "of a higher priority");
        let of = |uid: &str| if uid.ends_with(['a', 'c']) { "team" } else { "other" };
        let tenants: BTreeSet<&str> = two.iter().map(|uid| of(uid.as_str())).collect();
        assert_eq!(tenants.len(), 2, "d keeps the other GPU: {:?}", two);
        whole["spec"]["priority"] = json!(0);
        assert_eq!(victims(&index, &whole, "n1", &BTreeSet::new()), None);
        whole["spec"]["priority"] = json!(5);
        whole["spec"]["preemptionPolicy"] = json!("Never");
        assert_eq!(victims(&index, &whole, "n1", &BTreeSet::new()), None);
    }

    /// Whichever pods come first by their UIDs: the GPU goes of which the fewest tenants lose a pod, and
    /// priority before that.
    #[test]
    fn preemption_disturbs_as_few_tenants_as_will_do() {
        let mut index = index(1, 2);
        let mut whole = pod("team", "w", &[("gpu", 1)]);
        whole["spec"]["priority"] = json!(5);
        for (n, (ns, name)) in [("x", "a"), ("y", "b"), ("z", "c"), ("z", "d")].iter().enumerate() {
            namespace(&mut index, ns);
            let half = pod(ns, name, &[("gpu", 1), ("memory-mib", 8192)]);
            let mut bound = bind(&mut index, &half, "n1").unwrap();
            bound["spec"]["priority"] = json!(1);
            index.apply_pod(view(&bound));
            let gpu = index.holds(&uid(&format!("uid-{name}")))[0].gpu.to_string();
            assert_eq!(gpu, gpu_uuid(1, u8::from(n > 1)), "two on each");
        }
        let victims = |index: &Index, pod: &Value| {
            let none = BTreeSet::new();
            let pods = super::support::questions::victims(index, pod, "n1", &none).unwrap();
            pods.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(victims(&index, &whole), ["uid-c", "uid-d"], "z alone");
        let mut two = whole.clone();
        two["spec"]["containers"][0]["resources"]["limits"]["gpuzone.dev/gpu"] = json!("2");
        assert_eq!(victims(&index, &two).len(), 4);
        // One of z's is more important than x and y are.
        let mut important = pod("z", "d", &[("gpu", 1), ("memory-mib", 8192)]);
        let placement = index.holds(&uid("uid-d"));
        let written = json!({ "version": 1, "node": "n1", "pod": "uid-d", "containers": { "app":
            [{ "gpu": placement[0].gpu, "memory": "8Gi", "share": 50 }] } });
        important["metadata"]["annotations"] =
            json!({ "gpuzone.dev/placement": written.to_string() });
        important["spec"]["nodeName"] = json!("n1");
        important["spec"]["priority"] = json!(4);
        index.apply_pod(view(&important));
        assert_eq!(victims(&index, &whole), ["uid-a", "uid-b"]);
    }

    /// A group that loses a pod has the others for nothing: it loses one where nobody else will do, the
    /// smallest group then, and where it is not whole any more anyhow, before another one does.
    #[test]
    fn preemption_takes_of_groups_last_and_of_one_that_is_not_whole_first() {
        let mut index = index(2, 4);
        let half = |name: &str| pod("team", name, &[("gpu", 1), ("memory-mib", 8192)]);
        let running = |index: &mut Index, pods: &[Value], on: &str| {
            for bound in bind_group(index, pods, on) {
                index.apply_pod(view(&bound));
            }
        };
        let of = |group: &str, size: u32| -> Vec<Value> {
            let member = |n| grouped(half(&format!("{group}{n}")), group, size);
            (0..size).map(member).collect()
        };
        running(&mut index, &of("large", 4), "n1");
        running(&mut index, &of("mid", 3), "n1");
        running(&mut index, &[half("single")], "n1");
        let urgent = |gpus: u64| {
            let mut pod = pod("team", "u", &[("gpu", gpus), ("memory-mib", 8192)]);
            pod["spec"]["priority"] = json!(5);
            pod
        };
        let none = BTreeSet::new();
        let taken = |index: &Index, gpus: u64| -> Vec<String> {
            let pods = victims(index, &urgent(gpus), "n1", &none).unwrap();
            pods.iter().map(|uid| uid.as_str()["uid-".len()..].to_owned()).collect()
        };
        assert_eq!(taken(&index, 1), ["single"], "of no group");
        index.remove_pod(&uid("uid-single"));
        running(&mut index, &of("one", 1), "n1");
        assert_eq!(taken(&index, 1), ["one0"], "who is alone is no group");
        index.remove_pod(&uid("uid-one0"));
        running(&mut index, &[half("again")], "n1");
        // Two GPUs need another pod, of one of the groups: two of the smaller one are for nothing then,
        // and not three.
        let two = taken(&index, 2);
        assert!(two.iter().all(|name| name == "again" || name.starts_with("mid")), "{two:?}");
        // Whose group has lost one already goes before others.
        let lost = BTreeSet::from([uid("uid-large0")]);
        let mut whole = urgent(2);
        whole["spec"]["containers"][0]["resources"]["limits"]["gpuzone.dev/gpu"] = json!("3");
        let pods = victims(&index, &whole, "n1", &lost).unwrap();
        assert!(pods.iter().all(|uid| !uid.as_str().starts_with("uid-mid")), "{pods:?}");
    }

    /// For one pod of a group nobody goes when the others find no room whoever goes.
    #[test]
    fn nobody_goes_for_a_part_of_a_group() {
        let mut index = index(2, 2);
        for (name, on, priority) in [("a", "n1", 1), ("b", "n1", 1), ("c", "n2", 1), ("d", "n2", 9)]
        {
            let mut bound = bind(&mut index, &pod("team", name, &[("gpu", 1)]), on).unwrap();
            bound["spec"]["priority"] = json!(priority);
            index.apply_pod(view(&bound));
        }
        let group = |name: &str, size: u32| -> Vec<Value> {
            let member = |n| {
                let pod = pod("team", &format!("{name}{n}"), &[("gpu", 1)]);
                let mut pod = grouped(pod, name, size);
                pod["spec"]["priority"] = json!(5);
                pod
            };
            (0..size).map(member).collect()
        };
        let none = BTreeSet::new();
        for (size, helps) in [(3, true), (4, false)] {
            let pods = group(&format!("g{size}-"), size);
            pods.iter().for_each(|pod| index.apply_pod(view(pod)));
            let taken = victims(&index, &pods[0], "n1", &none);
            assert_eq!(taken.map(|pods| pods.len()), helps.then_some(1), "of {size}");
            // And one that may take nobody's place takes none.
            let mut humble = pods[0].clone();
            humble["spec"]["preemptionPolicy"] = json!("Never");
            assert_eq!(victims(&index, &humble, "n1", &none), None);
        }
    }

    #[test]
    fn better_placements_rank_higher_and_a_workload_may_choose() {
        let mut index = index(2, 2);
        let a = bind(&mut index, &pod("team", "a", &[("gpu", 1)]), "n1").unwrap();
        index.apply_pod(view(&a));
        let mut next = pod("team", "b", &[("gpu", 1), ("memory-mib", 1024)]);
        let ranks = index.prioritize(&view(&next), &["n1", "n2", "none"]).unwrap();
        assert!(ranks[0] == 10 && ranks[1] < 10 && ranks[2] == 0, "{ranks:?}");
        next["metadata"]["annotations"] = json!({ "gpuzone.dev/policy": "spread" });
        let ranks = index.prioritize(&view(&next), &["n1", "n2"]).unwrap();
        assert!(ranks[1] == 10 && ranks[0] < 10, "{ranks:?}");
    }

    #[test]
    fn topology_is_held() {
        let mut index = index(1, 8);
        let mut wide = pod("team", "a", &[("gpu", 4), ("memory-mib", 1024)]);
        wide["metadata"]["annotations"] = json!({ "gpuzone.dev/topology": "same-numa" });
        let bound = bind(&mut index, &wide, "n1").unwrap();
        index.apply_pod(view(&bound));
        let gpus = index.holds(&uid("uid-a"));
        let first: BTreeSet<u8> = gpus.iter().map(|grant| grant.gpu.as_bytes()[1] / 4).collect();
        assert_eq!(first.len(), 1, "one NUMA node");
        let mut pair = pod("team", "b", &[("gpu", 3)]);
        pair["metadata"]["annotations"] = json!({ "gpuzone.dev/topology": "nvlink" });
        assert!(reason(&mut index, &pair).contains("near to each other"));
    }
}
