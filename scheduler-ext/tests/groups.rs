//! Groups: pods that start together or not at all, whoever says how many they are; in the index, and
//! with the real program over a stand-in of an API server.
#[cfg(test)]
mod support;

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::time::Duration;

    use gpuzone_api::kubernetes::PodUid;
    use gpuzone_scheduler_ext::index::{BindOrder, Concluded, Gate, Index, Kind, Settled};
    use gpuzone_scheduler_ext::view::PodName;
    use gpuzone_testkit::kubernetes::BindFault;
    use serde_json::{Value, json};

    use super::support::extender::*;
    use super::support::questions::{T, said};
    use super::support::*;

    fn says(index: &mut Index, pod: &Value) -> Result<(), String> {
        said(index, pod, &["n1"]).remove(0).map_or(Ok(()), Err)
    }

    #[test]
    fn a_group_binds_together_or_not_at_all() {
        let mut index = index(2, 2);
        let member = |n: u32| grouped(pod("team", &format!("g{n}"), &[("gpu", 1)]), "g", 3);
        index.apply_pod(view(&member(0)));
        let nodes = ["n1", "n2"];
        assert!(
            said(&mut index, &member(0), &nodes)[0]
                .as_ref()
                .unwrap()
                .contains("1 of 3 pods are there")
        );
        index.take_favours();
        index.apply_pod(view(&member(1)));
        assert!(index.take_favours().is_empty());
        index.apply_pod(view(&member(2)));
        assert_eq!(index.take_favours().len(), 1, "who came before is looked at again");
        index.apply_pod(view(&member(2)));
        assert!(index.take_favours().is_empty(), "once");
        let mut orders = Vec::new();
        for n in 0..3 {
            let fits = said(&mut index, &member(n), &nodes);
            let at = fits.iter().position(Option::is_none).unwrap();
            assert_eq!(fits.iter().filter(|fit| fit.is_none()).count(), 1, "its own place");
            let order = index.reserve(&view(&member(n)).uid, &node(nodes[at])).unwrap();
            assert!(order.grouped);
            orders.push(order);
            let gate = index.gate(&orders[0].uid, orders[0].ticket);
            assert_eq!(gate, if n < 2 { Gate::Wait } else { Gate::Open });
        }
        assert_eq!(index.gate(&orders[1].uid, orders[1].ticket), Gate::Open);
        // Another group finds no room for all of it, and so holds nothing.
        let other = |n: u32| grouped(pod("team", &format!("h{n}"), &[("gpu", 1)]), "h", 2);
        (0..2).for_each(|n| index.apply_pod(view(&other(n))));
        let refused = said(&mut index, &other(0), &nodes)[0].clone().unwrap();
        assert!(
            refused.contains("needs room for 2 pods at once, and 1 of them have it"),
            "{refused}"
        );
        assert_eq!(index.usage_of("team").total.gpus, 3);
    }

    #[test]
    fn a_group_that_does_not_come_together_gives_its_plan_back() {
        let mut index = index(1, 2);
        let member = |n: u32| grouped(pod("team", &format!("g{n}"), &[("gpu", 1)]), "g", 2);
        (0..2).for_each(|n| index.apply_pod(view(&member(n))));
        assert_eq!(says(&mut index, &member(0)), Ok(()));
        let order = index.reserve(&view(&member(0)).uid, &node("n1")).unwrap();
        assert_eq!(index.usage_of("team").total.gpus, 2);
        index.expire_groups(T + Duration::from_secs(19));
        assert_eq!(index.gate(&order.uid, order.ticket), Gate::Wait);
        index.expire_groups(T + Duration::from_secs(21));
        assert_eq!(index.gate(&order.uid, order.ticket), Gate::Closed);
        assert_eq!(index.usage_of("team").total.gpus, 0);
        // Others have their turn meanwhile.
        assert!(says(&mut index, &member(0)).unwrap_err().contains("tried again in a moment"));
        assert_eq!(says(&mut index, &pod("team", "x", &[("gpu", 2)])), Ok(()));
        index.take_favours();
        index.expire_groups(T + Duration::from_secs(40));
        assert!(index.take_favours().is_empty());
        index.expire_groups(T + Duration::from_secs(41));
        assert_eq!(index.take_favours().len(), 1, "and then they are looked at again");
        assert_eq!(
            index.filter(&view(&member(0)), &["n1"], T + Duration::from_secs(41)).unwrap().0,
            [Ok(())]
        );
    }

    /// Its leader was killed when one of three was bound: the next one sets places aside for the others.
    #[test]
    fn the_next_leader_finishes_what_was_bound_in_part() {
        let mut index = index(2, 2);
        let member = |n: u32| grouped(pod("team", &format!("g{n}"), &[("gpu", 1)]), "g", 3);
        let place = json!({ "version": 1, "node": "n1", "pod": "uid-g0", "containers":
            { "app": [{ "gpu": gpu_uuid(1, 0), "memory": "16Gi", "share": 100 }] } });
        let mut bound = member(0);
        bound["spec"]["nodeName"] = json!("n1");
        bound["metadata"]["annotations"]["gpuzone.dev/placement"] = json!(place.to_string());
        index.apply_pod(view(&bound));
        (1..4).for_each(|n| index.apply_pod(view(&member(n))));
        // Of another group nobody runs, and it has no place before it is called.
        let other = |n: u32| grouped(pod("team", &format!("h{n}"), &[("gpu", 1)]), "h", 2);
        (0..2).for_each(|n| index.apply_pod(view(&other(n))));
        index.resume_groups(T);
        assert_eq!(index.usage_of("team").total.gpus, 3, "the fourth of three is not missing");
        let refused = said(&mut index, &other(0), &["n1", "n2"]).remove(0).unwrap();
        assert!(refused.contains("1 of them have it"), "{refused}");
        let two = pod("team", "x", &[("gpu", 2)]);
        assert!(said(&mut index, &two, &["n1", "n2"]).iter().all(Option::is_some));
        // They wait for nobody, and where the scheduler does not offer a node they go elsewhere.
        for n in 1..3 {
            let fits = said(&mut index, &member(n), &["n2"]).remove(0);
            assert_eq!(fits, None);
            let order = index.reserve(&view(&member(n)).uid, &node("n2")).unwrap();
            assert!(!order.grouped);
            let settled = if n == 1 { Settled::Written } else { Settled::Refused };
            let concluded = index.settle(&order.uid, order.ticket, settled, T);
            assert_eq!(concluded, if n == 1 { Concluded::Bound } else { Concluded::Kept });
        }
        index.expire_groups(T + Duration::from_secs(19));
        assert_eq!(index.usage_of("team").total.gpus, 3);
        index.expire_groups(T + Duration::from_secs(21));
        assert_eq!(index.usage_of("team").total.gpus, 2, "its time is over");
    }

    #[test]
    fn a_pod_group_says_how_many_start_together_and_wins_over_annotations() {
        let mut index = index(1, 4);
        let member = |n: u32| labelled(pod("team", &format!("g{n}"), &[("gpu", 1)]), "g");
        let odd = grouped(pod("team", "g0", &[("gpu", 1)]), "g", 1);
        let pods = [odd, member(1), member(2)];
        index.incomplete(Kind::PodGroups);
        index.apply_pod(view(&pods[0]));
        index.apply_pod(view(&pods[1]));
        // Whether there is one is not known: not even who says a size by itself starts.
        assert!(says(&mut index, &pods[0]).unwrap_err().contains("not read from the API server"));
        assert!(index.ready().is_ok(), "nobody else waits for that");
        assert_eq!(says(&mut index, &pod("team", "alone", &[("gpu", 1)])), Ok(()));
        index.complete(Kind::PodGroups);
        assert!(says(&mut index, &pods[1]).unwrap_err().contains("'g' has no size"));
        let name = PodName { namespace: "team".into(), name: "g1".into() };
        let why = index.explain(&name).unwrap();
        assert!(
            why.group.unwrap().contains("has no size") && why.changes[0].contains("a PodGroup")
        );

        apply_pod_group(&mut index, &pod_group("g", json!({ "minMember": 0 })));
        assert!(says(&mut index, &pods[0]).unwrap_err().contains("cannot be read: minMember: 0"));
        assert!(index.take_favours().contains(&node("n1")), "who waits is looked at again");
        apply_pod_group(&mut index, &pod_group("g", json!({ "minMember": 3 })));
        assert!(says(&mut index, &pods[0]).unwrap_err().contains("2 of 3 pods are there"));
        let why = index.explain(&name).unwrap();
        assert_eq!(why.group.unwrap(), "'g' of 3 pods, as its PodGroup says; 2 are there");

        // All are there, two are called, and the group becomes smaller: the two go out.
        index.apply_pod(view(&pods[2]));
        let order = |index: &mut Index, pod: &Value| {
            assert_eq!(says(index, pod), Ok(()));
            index.reserve(&view(pod).uid, &node("n1")).unwrap()
        };
        let called = [order(&mut index, &pods[0]), order(&mut index, &pods[1])];
        assert_eq!(index.gate(&called[0].uid, called[0].ticket), Gate::Wait);
        assert_eq!(index.counts().reserved, 3);
        apply_pod_group(&mut index, &pod_group("g", json!({ "minMember": 2 })));
        for order in &called {
            assert_eq!(index.gate(&order.uid, order.ticket), Gate::Open);
        }
        assert_eq!(index.counts().reserved, 2, "nothing is kept for who is not waited for");
        // The third follows by itself.
        assert_eq!(says(&mut index, &pods[2]), Ok(()));
        assert!(!index.reserve(&view(&pods[2]).uid, &node("n1")).unwrap().grouped);
    }

    #[test]
    fn a_pod_groups_time_is_no_longer_than_the_schedulers() {
        for (seconds, waits) in [(5, 5), (3600, 20)] {
            let mut index = index(1, 2);
            let spec = json!({ "minMember": 2, "scheduleTimeoutSeconds": seconds });
            apply_pod_group(&mut index, &pod_group("g", spec));
            let member = |n: u32| labelled(pod("team", &format!("g{n}"), &[("gpu", 1)]), "g");
            [0, 1].iter().for_each(|n| index.apply_pod(view(&member(*n))));
            assert_eq!(says(&mut index, &member(0)), Ok(()));
            index.expire_groups(T + Duration::from_secs(waits - 1));
            assert_eq!(index.counts().reserved, 2);
            index.expire_groups(T + Duration::from_secs(waits));
            assert_eq!(index.counts().reserved, 0);
            assert!(says(&mut index, &member(0)).unwrap_err().contains("tried again in a moment"));
        }
    }

    /// Two groups that each need most of the cluster: whatever order their pods come in, one of
    /// them runs as a whole, the other holds nothing, and runs when the first is gone. Who says how
    /// many they are, and how long they wait, makes no difference; nor does an API server that refuses
    /// Bindings or loses answers, if the scheduler tries again within its ten seconds.
    #[test]
    fn two_groups_never_hold_half_of_what_each_other_needs() {
        for seed in 1..=seeds(60) {
            let mut dice = Dice::new(seed);
            let mut index = index(2, 2);
            let by_object = [("a", dice.one_in(2)), ("b", dice.one_in(2))];
            for (group, _) in by_object.iter().filter(|(_, by_object)| *by_object) {
                // Long enough for three to come, at a pod in one and a half seconds.
                let seconds = 12 + dice.below(40);
                let spec = json!({ "minMember": 3, "scheduleTimeoutSeconds": seconds });
                apply_pod_group(&mut index, &pod_group(group, spec));
            }
            let member = |group: &str, n: u32| {
                let pod = pod("team", &format!("{group}{n}"), &[("gpu", 1)]);
                match by_object.contains(&(group, true)) {
                    // What the annotation says otherwise, does not count.
                    true if n == 0 => grouped(pod, group, 1),
                    true => labelled(pod, group),
                    false => grouped(pod, group, 3),
                }
            };
            let mut all: Vec<Value> = Vec::new();
            for n in 0..3 {
                all.push(member("a", n));
                all.push(member("b", n));
            }
            all.iter().for_each(|pod| index.apply_pod(view(pod)));
            let mut now = Duration::from_secs(1);
            let mut called: Vec<BindOrder> = Vec::new();
            let mut running: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
            let mut again: Vec<(Duration, usize)> = Vec::new();
            let mut failed: BTreeSet<PodUid> = BTreeSet::new();
            for _ in 0..400 {
                now += Duration::from_millis(dice.below(3000));
                index.expire_groups(now);
                let due = again.iter().position(|(due, _)| *due <= now);
                let at = match due {
                    Some(due) => again.swap_remove(due).1,
                    None => usize::try_from(dice.below(all.len() as u64)).unwrap(),
                };
                let filtered = index.filter(&view(&all[at]), &["n1", "n2"], now).unwrap();
                let on = ["n1", "n2"].into_iter().zip(&filtered.0).find(|(_, fit)| fit.is_ok());
                if let Some((on, _)) = on
                    && let Ok(order) = index.reserve(&view(&all[at]).uid, &node(on))
                {
                    assert!(order.grouped || failed.contains(&order.uid));
                    called.push(order);
                }
                called.retain(|order| {
                    let gate = match order.grouped {
                        true => index.gate(&order.uid, order.ticket),
                        false => Gate::Open,
                    };
                    if gate != Gate::Open {
                        return gate == Gate::Wait;
                    }
                    let fails = failed.insert(order.uid.clone()) && dice.one_in(2);
                    let settled = match (fails, dice.below(3)) {
                        (false, _) => Settled::Written,
                        (true, 0) => Settled::Refused,
                        (true, _) => Settled::Unsure,
                    };
                    let concluded = index.settle(&order.uid, order.ticket, settled, now);
                    let carried_out = settled == Settled::Unsure && dice.one_in(2);
                    if carried_out || concluded == Concluded::Bound {
                        index.settle(&order.uid, order.ticket, Settled::Written, now);
                        let group = order.pod.name[..1].to_owned();
                        running.entry(group).or_default().insert(order.pod.name.clone());
                    } else if concluded != Concluded::Refused {
                        let of = |pod: &Value| view(pod).uid == order.uid;
                        let due = now + Duration::from_millis(dice.below(10_000));
                        again.push((due, all.iter().position(of).unwrap()));
                    }
                    false
                });
                if running.values().any(|pods| pods.len() == 3) {
                    break;
                }
            }
            let (group, pods) = running.pop_first().expect("one of them runs");
            assert_eq!(
                (pods.len(), running.len()),
                (3, 0),
                "seed {seed}: all of {group}, none of the other"
            );
            // It goes, and the other one's turn comes.
            for pod in
                all.iter().filter(|pod| pods.contains(pod["metadata"]["name"].as_str().unwrap()))
            {
                index.remove_pod(&view(pod).uid);
            }
            all.retain(|pod| !pods.contains(pod["metadata"]["name"].as_str().unwrap()));
            now += Duration::from_secs(60);
            index.expire_groups(now);
            let filtered = index.filter(&view(&all[0]), &["n1", "n2"], now).unwrap();
            assert!(filtered.0.iter().any(Result::is_ok), "seed {seed}: {filtered:?}");
        }
    }

    /// Of a group's Bindings one is forbidden, or has no answer, while the other is carried out.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_groups_binding_that_fails_is_tried_again_and_keeps_its_place() {
        let folder = tempfile::Builder::new().prefix("gz-ext-").tempdir_in("/tmp").unwrap();
        let api = cluster(1, 4).await;
        let more = ["--without-quota", "admit"];
        let extender = Extender::start(&api, folder.path(), "a", &more);
        extender.leads().await;
        let members = async |group: &str| {
            let member =
                |n: u32| grouped(pod("team", &format!("{group}{n}"), &[("gpu", 1)]), group, 2);
            let pods = [0, 1].map(member);
            pods.iter().for_each(|pod| api.put("pods", pod.clone()));
            for pod in &pods {
                let fits =
                    async || extender.filter(pod, &["n1"]).await["NodeNames"] == json!(["n1"]);
                until("its place", || extender.log(), fits).await;
            }
            pods
        };
        // No answer, twice: it is tried again while the scheduler waits.
        let pods = members("g").await;
        api.fault_bindings([BindFault::None, BindFault::Refuse, BindFault::Refuse]);
        let binds = tokio::join!(extender.bind(&pods[0], "n1"), extender.bind(&pods[1], "n1"));
        assert_eq!(binds, Default::default(), "{}", extender.log());

        let pods = members("h").await;
        api.fault_bindings([BindFault::None, BindFault::Forbid]);
        let (one, two) = tokio::join!(extender.bind(&pods[0], "n1"), extender.bind(&pods[1], "n1"));
        let (refused, said) = if one.is_empty() { (&pods[1], two) } else { (&pods[0], one) };
        assert!(said.contains("denied the request; its place is kept"), "{said}");
        assert!(extender.metrics().await.contains("groups_in_part 1\n"));
        let other = pod("team", "other", &[("gpu", 1)]);
        let answer = extender.filter(&other, &["n1"]).await;
        assert_eq!(answer["NodeNames"], json!([]), "nobody else has it");
        assert_eq!(extender.filter(refused, &["n1"]).await["NodeNames"], json!(["n1"]));
        assert_eq!(extender.bind(refused, "n1").await, "");
        assert!(extender.metrics().await.contains("groups_in_part 0\n"));
        assert_eq!(api.bindings().len(), 4);
        held(&api);
    }

    /// A cluster that has no PodGroups is one that has them a moment later, and none again.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn pod_groups_are_followed_where_there_are_any() {
        let folder = tempfile::Builder::new().prefix("gz-ext-").tempdir_in("/tmp").unwrap();
        let api = cluster(2, 2).await;
        api.withhold("podgroups", true);
        let more = ["--without-quota", "admit", "--pod-group-look-seconds", "1"];
        let extender = Extender::start(&api, folder.path(), "a", &more);
        extender.leads().await;
        let member = |n: u32| labelled(pod("team", &format!("g{n}"), &[("gpu", 1)]), "g");
        let pods = [0, 1, 2].map(member);
        pods.iter().for_each(|pod| api.put("pods", pod.clone()));
        let nodes = ["n1", "n2"];
        let says = async |pod: &Value, part: &str| {
            until(
                part,
                || extender.log(),
                async || extender.filter(pod, &nodes).await.to_string().contains(part),
            )
            .await;
        };
        says(&pods[0], "'g' has no size").await;
        let alone = grouped(pod("team", "alone", &[("gpu", 1)]), "other", 1);
        api.put("pods", alone.clone());
        says(&alone, "\"NodeNames\":[\"n").await;
        api.delete("pods", "team/alone");

        api.withhold("podgroups", false);
        api.put("podgroups", pod_group("g", json!({ "minMember": 4 })));
        says(&pods[0], "3 of 4 pods are there").await;
        api.put("podgroups", pod_group("g", json!({ "minMember": 3 })));
        let mut places = Vec::new();
        for pod in &pods {
            says(pod, "\"NodeNames\":[\"n").await;
            let answer = extender.filter(pod, &nodes).await;
            places.push(answer["NodeNames"][0].as_str().unwrap().to_owned());
        }
        let [a, b, c] = [0, 1, 2].map(|n| extender.bind(&pods[n], &places[n]));
        assert_eq!(tokio::join!(a, b, c), Default::default(), "{}", extender.log());
        assert_eq!(api.bindings().len(), 3);
        held(&api);

        // Coscheduling is removed.
        let late = labelled(pod("team", "late", &[("gpu", 1)]), "h");
        api.put("pods", late.clone());
        api.put("podgroups", pod_group("h", json!({ "minMember": 9 })));
        says(&late, "1 of 9 pods are there").await;
        api.withhold("podgroups", true);
        says(&late, "'h' has no size").await;
        assert_eq!(extender.ready().await, (200, "leading".to_owned()));
    }
}
