//! Bindings that the API server refuses: whose place stays, for how long, and what is said.
#[cfg(test)]
mod support;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use gpuzone_scheduler_ext::index::{BindOrder, Gate, Index, Look, Settled};
    use gpuzone_scheduler_ext::view::PodName;
    use serde_json::Value;

    use super::support::questions::{T, reason, said};
    use super::support::*;

    fn after(seconds: u64) -> Duration {
        T + Duration::from_secs(seconds)
    }

    fn reserved(index: &mut Index, pod: &Value, on: &str) -> BindOrder {
        index.reserve(&view(pod).uid, &node(on)).unwrap()
    }

    fn settle(index: &mut Index, order: &BindOrder, settled: Settled, seconds: u64) {
        index.settle(&order.uid, order.ticket, settled, after(seconds));
    }

    fn gpus(index: &Index) -> u64 {
        index.usage_of("team").total.gpus
    }

    /// Of two tries the second is refused, and the first may still be carried out.
    #[test]
    fn a_refusal_says_nothing_of_the_try_before_it() {
        let mut index = index(1, 1);
        let a = pod("team", "a", &[("gpu", 1)]);
        index.apply_pod(view(&a));
        let first = reserved(&mut index, &a, "n1");
        settle(&mut index, &first, Settled::Unsure, 0);
        let second = reserved(&mut index, &a, "n1");
        settle(&mut index, &second, Settled::Refused, 1);
        assert_eq!(gpus(&index), 1, "nobody else gets what the first try may still take");
        let late = index.overdue(after(2)).remove(0);
        index.looked(&late.uid, late.ticket, Look::Unbound, after(74));
        assert_eq!(gpus(&index), 1);
        index.looked(&late.uid, late.ticket, Look::Unbound, after(76));
        assert_eq!(gpus(&index), 0);
    }

    /// The pods of a group, all called, with their Bindings on their way.
    fn gone_out(index: &mut Index, pods: &[Value]) -> Vec<BindOrder> {
        pods.iter().for_each(|pod| index.apply_pod(view(pod)));
        let mut orders = Vec::new();
        for pod in pods {
            assert_eq!(reason(index, pod), "");
            orders.push(reserved(index, pod, "n1"));
        }
        for order in &orders {
            assert_eq!(index.gate(&order.uid, order.ticket), Gate::Open);
        }
        orders
    }

    fn members(count: u32) -> Vec<Value> {
        let member = |n: u32| grouped(pod("team", &format!("g{n}"), &[("gpu", 1)]), "g", count);
        (0..count).map(member).collect()
    }

    #[test]
    fn a_groups_pod_that_is_refused_keeps_its_place_for_the_groups_time() {
        let mut index = index(1, 2);
        let pods = members(2);
        let orders = gone_out(&mut index, &pods);
        settle(&mut index, &orders[0], Settled::Written, 0);
        settle(&mut index, &orders[1], Settled::Refused, 0);
        let other = pod("team", "other", &[("gpu", 1)]);
        assert!(reason(&mut index, &other).contains("memory free"), "nobody else gets it");
        assert_eq!(said(&mut index, &pods[1], &["n1"]), [None], "it goes where it was to go");
        let again = reserved(&mut index, &pods[1], "n1");
        assert_eq!(again.placement, orders[1].placement);
        assert!(!again.grouped, "the others have gone out");
        // Refused again: its time does not begin anew.
        settle(&mut index, &again, Settled::Refused, 10);
        index.expire_groups(after(19));
        assert_eq!(gpus(&index), 2);
        index.expire_groups(after(20));
        assert_eq!(gpus(&index), 1);
        assert!(!index.take_favours().is_empty(), "others hear of it");
        assert_eq!(reason(&mut index, &other), "");
    }

    #[test]
    fn a_group_of_which_none_was_bound_keeps_nothing() {
        let mut index = index(1, 2);
        let pods = members(2);
        let orders = gone_out(&mut index, &pods);
        settle(&mut index, &orders[0], Settled::Refused, 0);
        assert_eq!(gpus(&index), 2, "the other one may be bound");
        settle(&mut index, &orders[1], Settled::Refused, 0);
        assert_eq!(gpus(&index), 0);
        let said = reason(&mut index, &pods[0]);
        assert!(said.contains("could not start together"), "{said}");
    }

    /// A request that was lost may be carried out; until that is known, it counts as the others do.
    #[test]
    fn a_lost_binding_of_a_group_is_kept_until_it_is_known_and_then_for_the_groups_time() {
        let mut index = index(1, 2);
        let pods = members(2);
        let orders = gone_out(&mut index, &pods);
        settle(&mut index, &orders[0], Settled::Unsure, 0);
        settle(&mut index, &orders[1], Settled::Written, 0);
        let late = index.overdue(after(1)).remove(0);
        index.looked(&late.uid, late.ticket, Look::Unbound, after(80));
        assert_eq!(gpus(&index), 2);
        index.expire_groups(after(99));
        assert_eq!(gpus(&index), 2);
        index.expire_groups(after(100));
        assert_eq!(gpus(&index), 1);
    }

    /// Where the place that is kept is of no use any more, the pod gets another one, if there is any.
    #[test]
    fn a_place_that_is_kept_gives_way_to_one_that_serves() {
        let mut index = index(2, 2);
        let pods = members(2);
        let orders = gone_out(&mut index, &pods);
        settle(&mut index, &orders[0], Settled::Written, 0);
        settle(&mut index, &orders[1], Settled::Refused, 0);
        // The scheduler does not offer it any more.
        assert_eq!(said(&mut index, &pods[1], &["n2"]), [None]);
        let moved = reserved(&mut index, &pods[1], "n2");
        assert!(!moved.grouped, "the others have gone out");
        settle(&mut index, &moved, Settled::Refused, 1);
        // Nor any other: what it has stays.
        assert!(said(&mut index, &pods[1], &["n3"])[0].is_some());
        assert_eq!(gpus(&index), 2);
        // Its GPU is not well: it is not bound to it.
        let mut sick = status(2, 2, 16);
        sick.gpus.iter_mut().for_each(|gpu| gpu.healthy = false);
        index.apply_gpu_node(&node("n2"), Some(&sick));
        assert!(index.reserve(&view(&pods[1]).uid, &node("n2")).is_err());
        assert_eq!(said(&mut index, &pods[1], &["n1", "n2"])[0], None, "and gets another");
    }

    #[test]
    fn a_group_that_runs_in_part_is_seen() {
        let mut index = index(1, 2);
        let pods = members(2);
        let orders = gone_out(&mut index, &pods);
        settle(&mut index, &orders[0], Settled::Written, 0);
        settle(&mut index, &orders[1], Settled::Refused, 0);
        let why = |index: &Index| {
            let name = PodName { namespace: "team".into(), name: "g1".into() };
            index.explain(&name).unwrap()
        };
        let kept = why(&index);
        assert!(kept.stands.contains("keeps its place on n1"), "{kept:?}");
        assert!(kept.group.as_ref().unwrap().contains("1 of them are bound"), "{kept:?}");
        assert!(kept.changes[0].contains("the API server has to take its Binding"), "{kept:?}");
        assert_eq!(index.groups_in_part(), 1);
        index.expire_groups(after(20));
        assert!(why(&index).group.unwrap().contains("1 of them are bound"));
        assert_eq!(index.groups_in_part(), 1);
        // Somebody else has the place now.
        let other = pod("team", "other", &[("gpu", 1)]);
        index.apply_pod(view(&other));
        reserved(&mut index, &other, "n1");
        let said = reason(&mut index, &pods[1]);
        assert!(said.contains("runs in part"), "{said}");
        index.remove_pod(&view(&pods[1]).uid);
        assert_eq!(index.groups_in_part(), 0, "nobody of it waits");
    }
}
