//! What is guaranteed comes back: which pods are evicted for it, and that they are.
#[cfg(test)]
mod support;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use gpuzone_api::kubernetes::{Access, PodUid, SCHEDULER_EXT_RECLAIM_ACCESS};
    use gpuzone_scheduler_ext::index::{Index, Moment, Reclaim};
    use serde_json::{Value, json};

    use super::support::extender::{Extender, ROLES, cluster, until};
    use super::support::questions::{self, T};
    use super::support::*;

    const PATIENCE: Moment = Duration::from_secs(10);

    /// Two quotas of a cohort, each with two GPUs of its own.
    fn specs() -> [(&'static str, Value); 2] {
        ["team", "other"].map(|name| {
            let spec = json!({
                "namespaceSelector": { "matchLabels": { "team": name } },
                "cohort": "c", "guaranteed": { "gpus": 2 },
            });
            (name, spec)
        })
    }

    fn whole(namespace: &str, name: &str) -> Value {
        pod(namespace, name, &[("gpu", 1)])
    }

    fn bind(index: &mut Index, pod: Value, on: &str) {
        let bound = questions::bind(index, &pod, on).unwrap();
        index.apply_pod(view(&bound));
    }

    fn lent() -> Index {
        let mut index = index(2, 2);
        namespace(&mut index, "other");
        for (name, spec) in specs() {
            index.apply_quota(name, Some(name), Some(1), &quota(spec));
        }
        for (name, on) in [("a", "n1"), ("b", "n1"), ("c", "n2"), ("d", "n2")] {
            bind(&mut index, whole("team", name), on);
        }
        index
    }

    fn uids(victims: &[(gpuzone_scheduler_ext::view::PodName, PodUid)]) -> BTreeSet<PodUid> {
        victims.iter().map(|(_, uid)| uid.clone()).collect()
    }

    /// The only node that room is made on.
    fn on(reclaim: &Reclaim) -> &str {
        assert_eq!(reclaim.nodes.len(), 1, "{reclaim:?}");
        reclaim.nodes.first().unwrap()
    }

    #[test]
    fn no_more_than_was_lent_and_only_where_the_pod_may_go() {
        let mut index = lent();
        let back = whole("other", "x");
        index.apply_pod(view(&back));
        assert_eq!(index.reclaim(T, PATIENCE), None, "nobody looked for a place for it");
        index.filter(&view(&back), &["n2"], T).unwrap();
        assert_eq!(index.reclaim(T, PATIENCE), None, "it has not waited");
        let later = T + PATIENCE;
        let reclaim = index.reclaim(later, PATIENCE).unwrap();
        assert_eq!((on(&reclaim), reclaim.victims.len()), ("n2", 1));
        let first = uids(&reclaim.victims);
        // A budget keeps that one: the other one of the node.
        let kept: Vec<PodUid> = first.iter().cloned().collect();
        index.evicting(&kept, false, later);
        let second = uids(&index.reclaim(later, PATIENCE).unwrap().victims);
        assert!(first.is_disjoint(&second));
        // Granted: nobody else goes for it.
        let going: Vec<PodUid> = second.iter().cloned().collect();
        index.evicting(&going, true, later);
        assert_eq!(index.reclaim(later, PATIENCE), None);
        index.remove_pod(&going[0]);
        bind(&mut index, back, "n2");
        // What is left of what was lent goes for the next; and then nothing is borrowed any more.
        let next = whole("other", "y");
        index.apply_pod(view(&next));
        index.filter(&view(&next), &["n1", "n2"], later).unwrap();
        let even_later = later + PATIENCE;
        let reclaim = index.reclaim(even_later, PATIENCE).unwrap();
        index.remove_pod(uids(&reclaim.victims).first().unwrap());
        bind(&mut index, next, on(&reclaim));
        let third = whole("other", "z");
        index.apply_pod(view(&third));
        index.filter(&view(&third), &["n1", "n2"], even_later).unwrap();
        assert_eq!(index.reclaim(even_later + PATIENCE, PATIENCE), None, "beyond its guarantee");
    }

    #[test]
    fn a_pod_that_borrows_itself_or_is_less_important_takes_nothing_back() {
        let mut index = lent();
        let large = pod("other", "x", &[("gpu", 2)]);
        let mut humble = whole("other", "y");
        humble["spec"]["priority"] = json!(-1);
        for pod in [&large, &humble] {
            index.apply_pod(view(pod));
            index.filter(&view(pod), &["n1", "n2"], T).unwrap();
        }
        let reclaim = index.reclaim(T + PATIENCE, PATIENCE).unwrap();
        assert_eq!((reclaim.pod.name.as_str(), reclaim.victims.len()), ("x", 2));
        index.remove_pod(&uid("uid-x"));
        assert_eq!(index.reclaim(T + PATIENCE, PATIENCE), None);
    }

    fn group(name: &str, size: u32) -> Vec<Value> {
        let member = |n| grouped(whole("other", &format!("{name}{n}")), name, size);
        (0..size).map(member).collect()
    }

    /// Room for all of a group is made at once, on all of its nodes, and what becomes free while others
    /// still end is nobody else's.
    #[test]
    fn a_group_has_room_made_for_all_of_it() {
        let mut index = lent();
        let pods = group("g", 2);
        pods.iter().for_each(|pod| index.apply_pod(view(pod)));
        index.filter(&view(&pods[0]), &["n1", "n2"], T).unwrap();
        assert_eq!(index.reclaim(T, PATIENCE), None, "it has not waited");
        let later = T + PATIENCE;
        let reclaim = index.reclaim(later, PATIENCE).unwrap();
        let gone: Vec<PodUid> = uids(&reclaim.victims).into_iter().collect();
        assert_eq!(gone.len(), 2);
        index.evicting(&gone, true, later);
        assert_eq!(index.reclaim(later, PATIENCE), None, "no more than that");
        // One has ended; who borrowed comes back at once, as another pod, and finds nothing.
        index.remove_pod(&gone[0]);
        let back = whole("team", "back");
        index.apply_pod(view(&back));
        let filtered = |index: &mut Index, pod: &Value| {
            let answer = index.filter(&view(pod), &["n1", "n2"], later).unwrap();
            answer.0.iter().any(Result::is_ok)
        };
        assert!(!filtered(&mut index, &back), "it is kept for the group");
        assert!(!filtered(&mut index, &pods[0]), "there is no room for both yet");
        assert_eq!(index.counts().vacant, 1, "and what there is stays");
        index.remove_pod(&gone[1]);
        assert!(!filtered(&mut index, &back));
        assert!(filtered(&mut index, &pods[0]) && filtered(&mut index, &pods[1]));
        assert_eq!((index.counts().vacant, index.counts().reserved), (0, 2));
    }

    /// A group that does not need it any more leaves it to others, and so does one that does not come.
    #[test]
    fn what_was_taken_back_for_a_group_is_not_kept_for_ever() {
        for waits in [true, false] {
            let mut index = lent();
            let pods = group("g", 2);
            pods.iter().for_each(|pod| index.apply_pod(view(pod)));
            index.filter(&view(&pods[0]), &["n1", "n2"], T).unwrap();
            let later = T + PATIENCE;
            let reclaim = index.reclaim(later, PATIENCE).unwrap();
            let gone: Vec<PodUid> = uids(&reclaim.victims).into_iter().collect();
            index.evicting(&gone, true, later);
            index.remove_pod(&gone[0]);
            assert_eq!(index.counts().vacant, 1);
            if !waits {
                pods.iter().for_each(|pod| index.remove_pod(&view(pod).uid));
            }
            index.expire_groups(later + Duration::from_secs(59));
            assert_eq!(index.counts().vacant, usize::from(waits));
            index.expire_groups(later + Duration::from_secs(61));
            assert_eq!(index.counts().vacant, 0);
        }
    }

    /// None goes for a part of a group: not where the others would take more than is guaranteed to them,
    /// and not where who borrows cannot be evicted.
    #[test]
    fn nobody_goes_for_a_part_of_a_group() {
        let mut index = lent();
        let large = group("large", 3);
        large.iter().for_each(|pod| index.apply_pod(view(pod)));
        index.filter(&view(&large[0]), &["n1", "n2"], T).unwrap();
        let later = T + PATIENCE;
        assert_eq!(index.reclaim(later, PATIENCE), None, "two are guaranteed to it");
        let pods = group("g", 2);
        pods.iter().for_each(|pod| index.apply_pod(view(pod)));
        // One node, of whose pods one is kept by a budget.
        index.filter(&view(&pods[0]), &["n1"], later).unwrap();
        index.evicting(&[uid("uid-a")], false, later + PATIENCE);
        assert_eq!(index.reclaim(later + PATIENCE, PATIENCE), None);
        index.filter(&view(&pods[0]), &["n1", "n2"], later).unwrap();
        let again = later + PATIENCE + Duration::from_secs(5);
        let reclaim = index.reclaim(again, PATIENCE).unwrap();
        assert_eq!(reclaim.victims.len(), 2);
        assert!(!uids(&reclaim.victims).contains(&uid("uid-a")));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_leader_evicts_who_borrows_and_a_budget_holds() {
        let api = cluster(1, 2).await;
        let roles: Vec<&[Access]> =
            ROLES.into_iter().chain([SCHEDULER_EXT_RECLAIM_ACCESS]).collect();
        api.allow_only(&roles);
        for (name, mut spec) in specs() {
            spec["guaranteed"] = json!({ "gpus": 1 });
            api.put(
                "gpuquotas",
                json!({ "kind": "GpuQuota", "apiVersion": "gpuzone.dev/v1alpha1",
                    "metadata": { "name": name, "generation": 1 }, "spec": spec }),
            );
        }
        let folder = tempfile::Builder::new().prefix("gz-ext-").tempdir_in("/tmp").unwrap();
        let extender = Extender::start(&api, folder.path(), "a", &["--reclaim-seconds", "1"]);
        extender.leads().await;
        let log = || extender.log();
        for name in ["a", "b"] {
            let pod = whole("team", name);
            api.put("pods", pod.clone());
            until("bound", log, async || extender.bind(&pod, "n1").await.is_empty()).await;
            api.protect(&format!("team/{name}"), true);
        }
        let back = whole("other", "back");
        api.put("pods", back.clone());
        let asked = async || extender.filter(&back, &["n1"]).await["NodeNames"] == json!(["n1"]);
        // Both are kept by a budget: nobody goes.
        until("both were asked about", log, async || {
            asked().await;
            extender.log().matches("cannot be evicted now").count() >= 2
        })
        .await;
        assert_eq!(api.writes("evict", "pods"), 0);
        drop(extender);
        // Of another replica, with one budget less.
        api.protect("team/b", false);
        let extender = Extender::start(&api, folder.path(), "b", &["--reclaim-seconds", "1"]);
        extender.leads().await;
        let log = || extender.log();
        until("room is made", log, async || {
            extender.filter(&back, &["n1"]).await["NodeNames"] == json!(["n1"])
        })
        .await;
        until("it is bound", log, async || extender.bind(&back, "n1").await.is_empty()).await;
        assert_eq!(api.writes("evict", "pods"), 1);
        assert!(api.get("pods", "team/a").is_some() && api.get("pods", "team/b").is_none());
    }
}
