//! The index: what it answers to objects and questions, without a cluster.
#[cfg(test)]
mod support;

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::time::Duration;

    use gpuzone_core::Exposure;
    use gpuzone_crds::{GpuNodeStatus, PartitionEntry};
    use gpuzone_scheduler_ext::index::{
        Index, Look, ReserveError, Settings, Settled, WithoutQuota,
    };
    use serde_json::{Value, json};

    use super::support::questions::*;
    use super::support::*;

    #[test]
    fn nothing_is_answered_before_all_is_known() {
        let mut index = Index::new(settings());
        let error = index.filter(&view(&pod("team", "a", &[("gpu", 1)])), &["n1"], T).unwrap_err();
        assert!(error.to_string().contains("gpunodes, nodes, namespaces, gpuquotas, pods"));
        complete(&mut index);
        assert_eq!(index.ready(), Ok(()));
    }

    #[test]
    fn reasons_name_the_need_and_are_equal_across_nodes() {
        let mut index = index(2, 2);
        let nodes = ["n1", "n2", "other"];
        let large = pod("team", "a", &[("gpu", 1), ("memory-mib", 24 * 1024)]);
        let reasons = said(&mut index, &large, &nodes);
        assert_eq!(
            reasons[0].as_deref(),
            Some("needs 1 GPU with 24Gi: too few GPUs with that much memory, even when empty")
        );
        assert_eq!(reasons[0], reasons[1]);
        assert_eq!(reasons[2].as_deref(), Some("needs 1 GPU with 24Gi: no GPU"));
        let plain = pod("team", "b", &[]);
        assert_eq!(said(&mut index, &plain, &nodes), [None, None, None]);
        let wrong = pod("team", "c", &[("gpu", 1), ("share", 101)]);
        assert!(reason(&mut index, &wrong).contains("share '101'"));
        let mut model = pod("team", "d", &[("gpu", 1)]);
        model["metadata"]["annotations"] = json!({ "gpuzone.dev/model": "A100" });
        assert!(reason(&mut index, &model).contains("of A100: too few GPUs of a model"));
    }

    #[test]
    fn what_is_reserved_seen_or_gone_is_counted_once() {
        let mut index = index(1, 1);
        let half = |name: &str| pod("team", name, &[("gpu", 1), ("memory-mib", 8192)]);
        let a = bind(&mut index, &half("a"), "n1").unwrap();
        let b = bind(&mut index, &half("b"), "n1").unwrap();
        assert!(reason(&mut index, &half("c")).contains("too few GPUs with that much memory free"));
        assert!(matches!(bind(&mut index, &half("c"), "n1"), Err(ReserveError::NoRoom { .. })));
        index.apply_pod(view(&a));
        index.apply_pod(view(&b));
        assert_eq!(index.usage_of("team").total.memory, 16 * GIB);
        // Older word of it changes nothing.
        index.apply_pod(view(&half("a")));
        assert_eq!(index.usage_of("team").total.memory, 16 * GIB);
        index.remove_pod(&view(&a).uid);
        index.remove_pod(&view(&a).uid);
        assert_eq!(index.usage_of("team").total.memory, 8 * GIB);
        let mut over = b.clone();
        over["status"]["phase"] = json!("Succeeded");
        index.apply_pod(view(&over));
        assert_eq!(index.usage_of("team").total, Default::default());
        assert_eq!(reason(&mut index, &pod("team", "d", &[("gpu", 1)])), "");
    }

    #[test]
    fn a_lost_answer_keeps_its_place_until_it_cannot_be_carried_out() {
        let mut index = index(2, 1);
        assert!(index.take_favours().is_empty(), "nobody waits");
        let a = pod("team", "a", &[("gpu", 1)]);
        index.apply_pod(view(&a));
        let order = index.reserve(&view(&a).uid, &node("n1")).unwrap();
        index.settle(&order.uid, order.ticket, Settled::Unsure, T);
        assert_eq!(said(&mut index, &a, &["n1", "n2"])[0], None);
        assert!(said(&mut index, &a, &["n1", "n2"])[1].is_some(), "nowhere else");
        assert!(matches!(index.reserve(&order.uid, &node("n2")), Err(ReserveError::Elsewhere(_))));
        let late = index.overdue(T).remove(0);
        index.looked(&late.uid, late.ticket, Look::Unbound, T + Duration::from_secs(60));
        assert_eq!(index.usage_of("team").total.gpus, 1);
        // Tried again: the same placement.
        let again = index.reserve(&order.uid, &node("n1")).unwrap();
        assert_eq!(again.placement, order.placement);
        assert!(matches!(index.reserve(&order.uid, &node("n1")), Err(ReserveError::InFlight)));
        // The first answer comes late and means nothing any more.
        index.settle(&order.uid, order.ticket, Settled::Refused, T);
        assert_eq!(index.usage_of("team").total.gpus, 1);
        index.settle(&again.uid, again.ticket, Settled::Unsure, T);
        let late = index.overdue(T).remove(0);
        index.looked(&late.uid, late.ticket, Look::Unbound, T + Duration::from_secs(76));
        assert_eq!(index.usage_of("team").total.gpus, 0);
        assert_eq!(index.take_favours(), BTreeSet::from([node("n1")]));
        assert!(index.take_favours().is_empty(), "told once");
    }

    #[test]
    fn a_list_forgets_what_is_gone_and_not_what_it_cannot_know() {
        let mut index = index(1, 3);
        let old = bind(&mut index, &pod("team", "old", &[("gpu", 1)]), "n1").unwrap();
        index.apply_pod(view(&old));
        let began = T + Duration::from_secs(1);
        index.begin_pods();
        // Bound while the list was read.
        let new = pod("team", "new", &[("gpu", 1)]);
        index.apply_pod(view(&new));
        let order = index.reserve(&view(&new).uid, &node("n1")).unwrap();
        index.settle(&order.uid, order.ticket, Settled::Written, began);
        index.end_pods(began);
        assert_eq!(index.usage_of("team").total.gpus, 1, "old is gone, new is not");
        index.begin_pods();
        index.end_pods(began + Duration::from_secs(1));
        assert_eq!(index.usage_of("team").total.gpus, 0);
    }

    #[test]
    fn a_copied_placement_gives_nothing_and_a_pod_past_the_extender_holds_nothing() {
        let mut index = index(1, 1);
        let a = bind(&mut index, &pod("team", "a", &[("gpu", 1)]), "n1").unwrap();
        index.apply_pod(view(&a));
        let mut copied = pod("team", "b", &[("gpu", 1)]);
        copied["metadata"]["annotations"] = a["metadata"]["annotations"].clone();
        copied["spec"]["nodeName"] = json!("n1");
        index.apply_pod(view(&copied));
        index.remove_pod(&view(&a).uid);
        assert_eq!(index.usage_of("team").total, Default::default());
    }

    #[test]
    fn health_and_inventory_come_and_go_under_what_pods_hold() {
        let mut index = index(1, 2);
        let a = bind(&mut index, &pod("team", "a", &[("gpu", 1)]), "n1").unwrap();
        index.apply_pod(view(&a));
        let two = pod("team", "b", &[("gpu", 1), ("memory-mib", 1024)]);
        let mut sick = status(1, 2, 16);
        sick.gpus.iter_mut().for_each(|gpu| gpu.healthy = false);
        index.apply_gpu_node(&node("n1"), Some(&sick));
        assert!(reason(&mut index, &two).contains("too few healthy GPUs"));
        index.remove_gpu_node(&node("n1"));
        assert!(reason(&mut index, &two).contains("no GPU"));
        index.apply_pod(view(&two));
        index.apply_gpu_node(&node("n1"), Some(&status(1, 2, 16)));
        assert_eq!(index.take_favours(), BTreeSet::from([node("n1")]));
        assert_eq!(reason(&mut index, &two), "");
        assert!(reason(&mut index, &pod("team", "c", &[("gpu", 2)])).contains("memory free"));
        index.remove_node("n1");
        assert!(matches!(bind(&mut index, &two, "n1"), Err(ReserveError::NoNode(_))));
    }

    #[test]
    fn what_is_handed_over_whole_is_nothing_for_slots() {
        let mut index = index(1, 2);
        let mut whole = status(1, 2, 16);
        whole.gpus[0].exposure = Exposure::Passthrough;
        index.apply_gpu_node(&node("n1"), Some(&whole));
        let bound = bind(&mut index, &pod("team", "a", &[("gpu", 1)]), "n1").unwrap();
        let placement = bound["metadata"]["annotations"]["gpuzone.dev/placement"].to_string();
        assert!(placement.contains(&whole.gpus[1].uuid), "{placement}");
        assert!(!placement.contains(&whole.gpus[0].uuid), "{placement}");
        index.apply_pod(view(&bound));
        let next = pod("team", "b", &[("gpu", 1)]);
        assert_ne!(reason(&mut index, &next), "");
        // Once it is mediated again, pods that wait are looked at.
        index.apply_pod(view(&next));
        index.take_favours();
        index.apply_gpu_node(&node("n1"), Some(&status(1, 2, 16)));
        assert_eq!(index.take_favours(), BTreeSet::from([node("n1")]));
        assert_eq!(reason(&mut index, &next), "");
    }

    fn cut(profiles: &[(&str, u32, u64, u32)]) -> GpuNodeStatus {
        let mut status = status(1, 3, 16);
        status.gpus[0].exposure = Exposure::Mig;
        let parts = profiles.iter().map(|(profile, count, gib, percent)| PartitionEntry {
            profile: (*profile).to_owned(),
            count: *count,
            healthy: *count,
            memory_bytes: gib * GIB,
            share_percent: Some(*percent),
        });
        status.gpus[0].partitions = parts.collect();
        status.gpus[1].exposure = Exposure::Passthrough;
        status
    }

    /// Instances that cannot be on one GPU together are an error of whoever reports them.
    #[test]
    fn instances_that_no_gpu_can_have_are_not_given() {
        let small = pod("team", "a", &[("mig-1g.2gb", 1)]);
        for (profiles, fits) in [
            (vec![("1g.2gb", 7, 2, 14)], true),
            (vec![("1g.2gb", 1, 2, 14), ("3g.6gb", 2, 6, 42)], true),
            (vec![("1g.2gb", 2, 2, 14), ("3g.6gb", 2, 6, 42)], false),
            (vec![("1g.2gb", 1, 2, 14), ("3g.8gb", 2, 8, 42)], false),
            (vec![("1g.2gb", 1, 2, 14), ("7g.14gb", 1, 14, 100)], false),
            (vec![("1g.2gb", 256, 2, 14)], false),
        ] {
            let mut index = index(1, 1);
            index.apply_gpu_node(&node("n1"), Some(&cut(&profiles)));
            assert_eq!(reason(&mut index, &small).is_empty(), fits, "{profiles:?}");
        }
    }

    #[test]
    fn vgpus_are_asked_for_by_their_type() {
        let mut index = index(2, 1);
        let mut status = cut(&[("nvidia-592", 2, 4, 25)]);
        status.gpus[0].exposure = Exposure::Vgpu;
        index.apply_gpu_node(&node("n1"), Some(&status));
        let small = |name: &str| pod("team", name, &[("vgpu-nvidia-592", 1)]);
        let other = pod("team", "o", &[("vgpu-nvidia-593", 1)]);
        let refused = reason(&mut index, &other);
        assert!(refused.starts_with("needs a vGPU nvidia-593: too few GPUs"), "{refused}");
        for name in ["a", "b"] {
            let bound = bind(&mut index, &small(name), "n1").unwrap();
            let placement = bound["metadata"]["annotations"]["gpuzone.dev/placement"].to_string();
            assert!(placement.contains(&gpu_uuid(1, 0)), "{placement}");
            assert!(placement.contains(r#"\"memory\":\"4Gi\",\"share\":25"#), "{placement}");
            index.apply_pod(view(&bound));
        }
        assert_ne!(reason(&mut index, &small("c")), "");
        // One that is given back is free.
        index.remove_pod(&uid("uid-a"));
        assert_eq!(reason(&mut index, &small("c")), "");
        // And a quota limits them by themselves.
        let limits = json!([{ "exposure": "vgpu", "limits": { "gpus": 1 } }]);
        let spec = quota(json!({ "namespaceSelector": {}, "exposures": limits }));
        index.apply_quota("q", Some("q"), Some(1), &spec);
        let refused = reason(&mut index, &small("c"));
        let says = "GpuQuota 'q' for vgpu: 1 GPUs used, 1 GPUs asked, 1 GPUs granted";
        assert_eq!(refused, says);
        assert!(bind(&mut index, &small("c"), "n1").unwrap_err().to_string().contains("for vgpu"));
        index.remove_pod(&uid("uid-b"));
        assert_eq!(reason(&mut index, &small("c")), "");
    }

    #[test]
    fn instances_and_whole_gpus_are_asked_for_by_their_names() {
        let mut index = index(2, 1);
        let status = cut(&[("1g.2gb", 2, 2, 14), ("3g.6gb", 1, 6, 42)]);
        index.apply_gpu_node(&node("n1"), Some(&status));
        let small = |name: &str| pod("team", name, &[("mig-1g.2gb", 1)]);
        let exposures = json!([{ "exposure": "mig", "limits": { "memory": "64Gi", "gpus": 2 } }]);
        let spec = json!({ "namespaceSelector": {}, "exposures": exposures,
            "models": [{ "model": "Simulated H100", "limits": { "share": 200 } }] });
        index.apply_quota("q", Some("q"), Some(1), &quota(spec));
        let said_of = |index: &mut Index, pod: &Value| said(index, pod, &["n1", "n2"]);
        let [here, there] = said_of(&mut index, &small("a")).try_into().unwrap();
        assert_eq!(here, None);
        assert!(there.unwrap().starts_with("needs a MIG instance 1g.2gb: too few GPUs"));
        let a = bind(&mut index, &small("a"), "n1").unwrap();
        let placement = a["metadata"]["annotations"]["gpuzone.dev/placement"].to_string();
        assert!(placement.contains(&gpu_uuid(1, 0)), "{placement}");
        assert!(placement.contains(r#"\"memory\":\"2Gi\",\"share\":14"#), "{placement}");
        index.apply_pod(view(&a));
        let b = bind(&mut index, &pod("team", "b", &[("mig-3g.6gb", 1)]), "n1").unwrap();
        index.apply_pod(view(&b));
        // Two instances are what the quota lets be held, although a third is free.
        let refused = reason(&mut index, &small("c"));
        assert!(refused.contains("'q' for mig: 2 GPUs used"), "{refused}");
        index.remove_quota("q");
        let c = bind(&mut index, &small("c"), "n1").unwrap();
        index.apply_pod(view(&c));
        assert!(reason(&mut index, &small("d")).contains("memory free"));
        // One whole GPU, and one in parts, beside them; nothing takes what is handed over otherwise.
        let whole = pod("team", "w", &[("passthrough", 1)]);
        let bound = bind(&mut index, &whole, "n1").unwrap();
        assert!(bound["metadata"]["annotations"].to_string().contains(&gpu_uuid(1, 1)));
        index.apply_pod(view(&bound));
        let second = reason(&mut index, &pod("team", "x", &[("passthrough", 1)]));
        assert!(second.starts_with("needs 1 GPU by passthrough: "), "{second}");
        let part = pod("team", "p", &[("gpu", 1), ("memory-mib", 16384)]);
        bind(&mut index, &part, "n1").unwrap();
        // An instance that is given back is free, whichever the kubelet had chosen.
        index.remove_pod(&uid("uid-a"));
        assert_eq!(reason(&mut index, &small("e")), "");
    }

    /// The kubelet gives a container any that is alike, so the one that is out may be another's, and the
    /// scheduler counts only those that are well.
    #[test]
    fn of_whole_gpus_that_are_alike_those_that_are_well_are_counted_as_held() {
        let mut index = index(1, 1);
        let status = |well: [bool; 2]| {
            let mut said = status(1, 2, 16);
            for (gpu, well) in said.gpus.iter_mut().zip(well) {
                (gpu.exposure, gpu.healthy) = (Exposure::Passthrough, well);
            }
            said
        };
        index.apply_gpu_node(&node("n1"), Some(&status([true, true])));
        let whole = |name: &str| pod("team", name, &[("passthrough", 1)]);
        let bound = bind(&mut index, &whole("a"), "n1").unwrap();
        assert!(bound["metadata"]["annotations"].to_string().contains(&gpu_uuid(1, 0)));
        index.apply_pod(view(&bound));
        assert_eq!(reason(&mut index, &whole("b")), "");
        index.apply_gpu_node(&node("n1"), Some(&status([false, true])));
        assert!(reason(&mut index, &whole("b")).starts_with("needs 1 GPU by passthrough: "));
        index.remove_pod(&uid("uid-a"));
        assert_eq!(reason(&mut index, &whole("b")), "");
    }

    #[test]
    fn all_quotas_hold_and_deleting_one_widens_none() {
        let settings = Settings { without_quota: WithoutQuota::Refuse, ..settings() };
        let mut index = index_with(settings, 1, 4);
        let whole = |name: &str| pod("team", name, &[("gpu", 1)]);
        assert!(
            reason(&mut index, &whole("a")).contains("no GpuQuota holds for the namespace 'team'")
        );
        let gpus =
            |gpus: u32| quota(json!({ "namespaceSelector": {}, "limits": { "gpus": gpus } }));
        let memory = quota(json!({
            "namespaceSelector": { "matchLabels": { "team": "team" } },
            "limits": { "memory": "32Gi" }, "perPod": { "gpus": 2 },
            "models": [{ "model": "Simulated H100", "limits": { "share": 250 } }],
        }));
        index.apply_quota("wide", Some("1"), Some(1), &gpus(3));
        index.apply_quota("narrow", Some("2"), Some(1), &memory);
        for name in ["a", "b"] {
            let bound = bind(&mut index, &whole(name), "n1").unwrap();
            index.apply_pod(view(&bound));
        }
        let said = reason(&mut index, &whole("c"));
        assert_eq!(
            said,
            "GpuQuota 'narrow': 32Gi of GPU memory used, 16Gi of GPU memory asked, 32Gi of GPU memory granted"
        );
        assert!(matches!(bind(&mut index, &whole("c"), "n1"), Err(ReserveError::Quota(_))));
        // The other one goes: this one still holds.
        index.remove_quota("wide");
        assert_eq!(reason(&mut index, &whole("c")), said);
        // This one goes: the other one holds.
        index.apply_quota("wide", Some("1"), Some(2), &gpus(2));
        index.remove_quota("narrow");
        assert!(reason(&mut index, &whole("c")).contains("GpuQuota 'wide': 2 GPUs used"));
        index.apply_quota("narrow", Some("3"), Some(1), &memory);
        index.remove_quota("wide");
        let share = pod("team", "d", &[("gpu", 1), ("memory-mib", 0), ("share", 60)]);
        assert!(reason(&mut index, &share).contains("narrow"), "{}", reason(&mut index, &share));
        // A share that nobody asked for counts, too: of one GPU of 16 GiB, 10 are 62 per cent.
        let part = |gib: u64| pod("team", "e", &[("gpu", 1), ("memory-mib", gib * 1024)]);
        let time = quota(json!({ "namespaceSelector": {}, "limits": { "share": 262 } }));
        index.apply_quota("time", Some("5"), Some(1), &time);
        index.remove_quota("narrow");
        assert_eq!(reason(&mut index, &part(10)), "");
        assert!(
            reason(&mut index, &part(12)).contains("200% of GPU time used, 75% of GPU time asked")
        );
        index.remove_quota("time");
        assert!(reason(&mut index, &whole("c")).contains("no GpuQuota holds"), "nothing opens");
        // One that cannot be read lets nothing through, and says so.
        let broken = quota(json!({ "namespaceSelector": {}, "limits": { "memory": "99999999T" } }));
        index.apply_quota("broken", Some("4"), Some(1), &broken);
        assert!(reason(&mut index, &whole("c")).contains("'broken' cannot be read"));
        let reports = index.quota_reports();
        assert!(reports[0].status.problem.is_some());
        assert_eq!(reports[0].status.used.gpus, Some(2));
    }

    #[test]
    fn a_cohort_lends_and_has_it_back() {
        let mut index = index(1, 4);
        namespace(&mut index, "other");
        for (name, gpus) in [("team", 2), ("other", 2)] {
            let spec = quota(json!({
                "namespaceSelector": { "matchLabels": { "team": name } },
                "limits": { "gpus": 3 }, "cohort": "c", "guaranteed": { "gpus": gpus },
            }));
            index.apply_quota(name, Some(name), Some(1), &spec);
        }
        for name in ["a", "b", "c"] {
            let mut bound = bind(&mut index, &pod("team", name, &[("gpu", 1)]), "n1").unwrap();
            bound["spec"]["priority"] = json!(if name == "c" { 0 } else { 5 });
            index.apply_pod(view(&bound));
        }
        assert!(reason(&mut index, &pod("team", "d", &[("gpu", 1)])).contains("3 GPUs granted"));
        let bound = bind(&mut index, &pod("other", "e", &[("gpu", 1)]), "n1").unwrap();
        index.apply_pod(view(&bound));
        // Within what is guaranteed, and there is no room: who borrowed goes.
        let mut back = pod("other", "f", &[("gpu", 1)]);
        back["spec"]["priority"] = json!(0);
        assert!(reason(&mut index, &back).contains("memory free"));
        let victims = victims(&index, &back, "n1", &BTreeSet::new()).unwrap();
        assert_eq!(victims, BTreeSet::from([uid("uid-c")]));
        let borrowed = index.quota_reports().remove(1).status.borrowed.unwrap();
        assert_eq!(borrowed.gpus, Some(1));
    }

    /// What was borrowed is not lent once more because the borrower's quota is gone: not by who saw it
    /// go, and not by who begins later.
    #[test]
    fn what_a_deleted_quota_borrowed_is_not_lent_again() {
        let strict = Settings { without_quota: WithoutQuota::Refuse, ..settings() };
        let spec = |name: &str, gpus: u32| {
            quota(json!({ "namespaceSelector": { "matchLabels": { "team": name } },
                "cohort": "c", "guaranteed": { "gpus": gpus } }))
        };
        let with_quotas = |names: &[&str]| {
            let mut index = index_with(strict.clone(), 1, 8);
            namespace(&mut index, "other");
            namespace(&mut index, "third");
            for name in names {
                let gpus = if *name == "team" { 1 } else { 2 };
                index.apply_quota(name, Some(name), Some(1), &spec(name, gpus));
            }
            index
        };
        let mut index = with_quotas(&["team", "other", "third"]);
        // Three GPUs, of which two are lent by the others: five are guaranteed in all.
        let mut held = Vec::new();
        for name in ["a", "b", "c"] {
            held.push(bind(&mut index, &pod("team", name, &[("gpu", 1)]), "n1").unwrap());
            index.apply_pod(view(held.last().unwrap()));
        }
        let wide = |name: &str, gpus: u64| pod("other", name, &[("gpu", gpus)]);
        assert_eq!(reason(&mut index, &wide("d", 2)), "");
        assert!(reason(&mut index, &wide("e", 3)).contains("3 GPUs used, 3 GPUs asked, 5"));
        let labels = BTreeMap::from([("team".to_owned(), "nobody".to_owned())]);
        let mut moved = index.clone();
        moved.apply_namespace("team", &labels);
        let mut changed = index.clone();
        let out = quota(json!({ "namespaceSelector": { "matchLabels": { "team": "team" } } }));
        changed.apply_quota("team", Some("team"), Some(2), &out);
        index.remove_quota("team");
        let mut later = with_quotas(&["other", "third"]);
        held.iter().for_each(|pod| later.apply_pod(view(pod)));
        for mut index in [index, moved, changed, later] {
            // What is guaranteed stays, and nothing is lent beyond it while the three are held.
            assert_eq!(reason(&mut index, &wide("d", 2)), "");
            let refused = reason(&mut index, &wide("e", 3));
            assert!(refused.contains("3 GPUs used, 3 GPUs asked"), "{refused}");
            held.iter().for_each(|pod| index.remove_pod(&view(pod).uid));
            assert_eq!(reason(&mut index, &wide("e", 3)), "");
        }
    }
}
