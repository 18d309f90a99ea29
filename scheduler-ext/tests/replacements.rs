//! A pod of a group that is gone: who gets its place, and how long it stays.
#[cfg(test)]
mod support;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use gpuzone_scheduler_ext::index::{Index, Moment, Settled};
    use serde_json::{Value, json};

    use super::support::questions::{T, bind, bind_group, said, victims};
    use super::support::*;

    fn member(n: u32, size: u32) -> Value {
        grouped(pod("team", &format!("g{n}"), &[("gpu", 1)]), "g", size)
    }

    fn after(seconds: u64) -> Moment {
        T + Duration::from_secs(seconds)
    }

    /// A group of `size` on `n1` that has run for a hundred seconds.
    fn running(index: &mut Index, size: u32) -> Vec<Value> {
        let pods: Vec<Value> = (0..size).map(|n| member(n, size)).collect();
        index.expire_groups(T);
        let bound = bind_group(index, &pods, "n1");
        index.expire_groups(after(100));
        bound
    }

    fn fits(index: &mut Index, pod: &Value) -> bool {
        said(index, pod, &["n1"]) == [None]
    }

    fn gpus(index: &Index) -> u64 {
        index.usage_of("team").total.gpus
    }

    #[test]
    fn who_replaces_a_pod_of_a_group_gets_its_place() {
        let mut index = index(1, 3);
        running(&mut index, 3);
        let before = index.holds(&uid("uid-g1"));
        index.remove_pod(&uid("uid-g1"));
        assert_eq!((index.counts().vacant, gpus(&index)), (1, 3), "its quota is charged");
        let other = pod("team", "other", &[("gpu", 1)]);
        index.apply_pod(view(&other));
        assert!(!fits(&mut index, &other), "nobody else gets it");
        let next = member(7, 3);
        index.apply_pod(view(&next));
        assert_eq!(index.holds(&uid("uid-g7")), before, "from the moment that it is there");
        assert_eq!(index.counts().vacant, 0);
        assert!(!fits(&mut index, &other) && fits(&mut index, &next));
        // It waits for nobody.
        let order = index.reserve(&uid("uid-g7"), &node("n1")).unwrap();
        assert!(!order.grouped);
        index.settle(&order.uid, order.ticket, Settled::Written, after(101));
        assert_eq!(gpus(&index), 3);
    }

    /// Some controllers make it while the other one still ends.
    #[test]
    fn who_was_there_before_gets_it_too_and_is_tried_again() {
        let mut index = index(1, 2);
        running(&mut index, 2);
        let next = member(7, 2);
        index.apply_pod(view(&next));
        assert!(!fits(&mut index, &next), "there is no room yet");
        index.take_favours();
        index.remove_pod(&uid("uid-g0"));
        assert_eq!(index.holds(&uid("uid-g7")).len(), 1);
        assert!(index.take_favours().contains(&node("n1")), "the scheduler looks at it again");
    }

    #[test]
    fn it_stays_for_a_while_and_no_longer_than_the_pod_was_there() {
        for (ran, stays) in [(100, 60), (30, 30), (0, 0)] {
            let mut index = index(1, 2);
            index.expire_groups(T);
            bind_group(&mut index, &[member(0, 2), member(1, 2)], "n1");
            index.expire_groups(after(ran));
            index.remove_pod(&uid("uid-g0"));
            if stays > 0 {
                index.expire_groups(after(ran + stays - 1));
                assert_eq!((index.counts().vacant, gpus(&index)), (1, 2), "{ran}");
                index.take_favours();
            }
            let other = pod("team", "other", &[("gpu", 1)]);
            index.apply_pod(view(&other));
            index.expire_groups(after(ran + stays));
            assert_eq!((index.counts().vacant, gpus(&index)), (0, 1), "{ran}");
            assert!(stays == 0 || !index.take_favours().is_empty(), "others hear of it");
            assert!(fits(&mut index, &other));
        }
    }

    /// Whoever deletes what replaces it, again and again, uses up the time that the first one was there.
    #[test]
    fn nobody_holds_a_place_by_deleting_pods() {
        let mut index = index(1, 2);
        running(&mut index, 2);
        index.remove_pod(&uid("uid-g0"));
        // The place was in use for a hundred seconds, so it is not vacant for longer, in all.
        let (mut now, mut vacant) = (100, 0);
        for n in 10..60 {
            for _ in 0..20 {
                if index.counts().vacant == 0 {
                    break;
                }
                (now, vacant) = (now + 1, vacant + 1);
                index.expire_groups(after(now));
            }
            if index.counts().vacant == 0 {
                break;
            }
            let next = member(n, 2);
            index.apply_pod(view(&next));
            let bound = bind(&mut index, &next, "n1").unwrap();
            index.apply_pod(view(&bound));
            index.remove_pod(&view(&next).uid);
        }
        assert_eq!((index.counts().vacant, vacant), (0, 60));
    }

    #[test]
    fn nothing_stays_where_nobody_waits_for_it() {
        // How a pod of a running group goes, and what is left vacant.
        let gone = |how: &dyn Fn(&mut Index, &[Value])| {
            let mut index = index(1, 4);
            let pods = running(&mut index, 4);
            how(&mut index, &pods);
            index.counts().vacant
        };
        let ends = |index: &mut Index, pod: &Value, phase: &str| {
            let mut over = pod.clone();
            over["status"] = json!({ "phase": phase });
            index.apply_pod(view(&over));
            // And then somebody deletes it.
            index.remove_pod(&view(&over).uid);
        };
        assert_eq!(gone(&|index, pods| ends(index, &pods[0], "Failed")), 1);
        assert_eq!(gone(&|index, pods| ends(index, &pods[0], "Succeeded")), 0, "it is done");
        let marked = |index: &mut Index, pod: &Value, what: &dyn Fn(&mut Value)| {
            let mut pod = pod.clone();
            what(&mut pod);
            index.apply_pod(view(&pod));
        };
        let disrupted = |pod: &mut Value| {
            pod["status"]["conditions"] = json!([{ "type": "DisruptionTarget",
                "status": "True", "reason": "PreemptionByScheduler" }]);
        };
        assert_eq!(
            gone(&|index, pods| {
                marked(index, &pods[0], &disrupted);
                index.remove_pod(&view(&pods[0]).uid);
            }),
            0,
            "somebody else is to have it"
        );
        // More than half of them: no more stay than run.
        let some = |count: usize| {
            move |index: &mut Index, pods: &[Value]| {
                pods[..count].iter().for_each(|pod| index.remove_pod(&view(pod).uid));
            }
        };
        assert_eq!([1, 2, 3, 4].map(|count| gone(&some(count))), [1, 2, 1, 0]);
        // All of it is being deleted.
        let deleted = |pod: &mut Value| {
            pod["metadata"]["deletionTimestamp"] = json!("2026-11-26T10:00:00Z");
        };
        assert_eq!(
            gone(&|index, pods| {
                pods.iter().for_each(|pod| marked(index, pod, &deleted));
                index.remove_pod(&view(&pods[0]).uid);
            }),
            0
        );
        // The group is smaller now.
        assert_eq!(
            gone(&|index, pods| {
                index.remove_pod(&view(&pods[0]).uid);
                apply_pod_group(index, &pod_group("g", json!({ "minMember": 3 })));
                index.expire_groups(after(101));
            }),
            0
        );
        // A list in which it is not, and none of whoever was there.
        let listed = |left: usize| {
            move |index: &mut Index, pods: &[Value]| {
                index.begin_pods();
                pods[..left].iter().for_each(|pod| index.apply_pod(view(pod)));
                index.end_pods(after(101));
                index.begin_pods();
                pods[..left].iter().for_each(|pod| index.apply_pod(view(pod)));
                index.end_pods(after(102));
            }
        };
        assert_eq!([3, 0].map(|left| gone(&listed(left))), [1, 0]);
    }

    /// A pod of no group, and one of a group that was not whole, leave nothing.
    #[test]
    fn only_a_group_that_is_whole_waits_for_a_pod() {
        let mut index = index(1, 3);
        let alone = bind(&mut index, &pod("team", "alone", &[("gpu", 1)]), "n1").unwrap();
        index.apply_pod(view(&alone));
        running(&mut index, 2);
        index.remove_pod(&uid("uid-alone"));
        assert_eq!(index.counts().vacant, 0);
        // One more than start together: it is not missed.
        let spare = bind(&mut index, &member(2, 2), "n1").unwrap();
        index.apply_pod(view(&spare));
        index.expire_groups(after(200));
        index.remove_pod(&uid("uid-g0"));
        assert_eq!(index.counts().vacant, 0);
        index.remove_pod(&uid("uid-g1"));
        assert_eq!(index.counts().vacant, 1);
    }

    #[test]
    fn who_is_more_important_or_lent_it_does_not_wait_for_it() {
        let mut index = index(1, 2);
        running(&mut index, 2);
        index.remove_pod(&uid("uid-g0"));
        let mut urgent = pod("team", "u", &[("gpu", 1)]);
        let equal = urgent.clone();
        urgent["spec"]["priority"] = json!(1);
        assert!(!fits(&mut index.clone(), &equal));
        let mut yields = index.clone();
        assert!(fits(&mut yields, &urgent));
        assert_eq!(yields.counts().vacant, 0);
        // Nobody has to go where a vacant place will do.
        let none = BTreeSet::new();
        assert_eq!(victims(&index, &urgent, "n1", &none), Some(none));
        // A group, too; and what is not enough for it stays.
        let two = |size: u32| -> Vec<Value> {
            let pods = (0..size).map(|n| {
                let pod = pod("team", &format!("h{n}"), &[("gpu", 1)]);
                let mut pod = grouped(pod, "h", size);
                pod["spec"]["priority"] = json!(1);
                pod
            });
            pods.collect()
        };
        for (size, fit) in [(2, false), (1, true)] {
            let mut index = index.clone();
            two(size).iter().for_each(|pod| index.apply_pod(view(pod)));
            assert_eq!(fits(&mut index, &two(size)[0]), fit);
            assert_eq!(index.counts().vacant, usize::from(!fit));
        }
        // Who lent it has it back.
        namespace(&mut index, "other");
        for (name, gpus) in [("team", 1), ("other", 1)] {
            let spec = quota(json!({ "namespaceSelector": { "matchLabels": { "team": name } },
                "cohort": "c", "guaranteed": { "gpus": gpus } }));
            index.apply_quota(name, Some(name), Some(1), &spec);
        }
        let lender = pod("other", "l", &[("gpu", 1)]);
        assert!(fits(&mut index, &lender));
    }

    /// What comes in its place asks for something else: it is planned with the place that is vacant.
    #[test]
    fn another_pod_of_the_group_is_planned_with_the_place() {
        let mut index = index(1, 2);
        running(&mut index, 2);
        index.remove_pod(&uid("uid-g0"));
        let small = pod("team", "small", &[("gpu", 1), ("memory-mib", 4096)]);
        let small = grouped(small, "g", 2);
        index.apply_pod(view(&small));
        assert_eq!(index.counts().vacant, 1);
        assert!(fits(&mut index, &small));
        assert_eq!(index.counts().vacant, 0);
        let rest = pod("team", "rest", &[("gpu", 1), ("memory-mib", 12 * 1024)]);
        assert!(fits(&mut index, &rest), "what it does not need is free");
    }
}
