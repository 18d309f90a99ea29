//! Which devices the kubelet should take: a hint, which it may ignore.

use std::collections::{BTreeSet, HashMap};

use gpuzone_api::kubelet::v1beta1::{
    ContainerPreferredAllocationRequest, Device, NumaNode, TopologyInfo,
};

/// Why there is no hint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChooseError {
    /// A number of devices that makes no sense.
    #[error("the kubelet asks for {0} devices; restart it if that goes on")]
    Size(i32),
    /// More than there are.
    #[error("{asked} devices are asked for and {available} are free; wait, or ask for no more")]
    TooFew {
        /// How many are asked for.
        asked: usize,
        /// How many are free.
        available: usize,
    },
}

/// What the kubelet calls a device that it may hand out.
pub const HEALTHY: &str = "Healthy";
/// And one that it may not.
pub const UNHEALTHY: &str = "Unhealthy";

/// A device as the kubelet lists it; near to these NUMA nodes.
pub fn device(id: String, healthy: bool, numa: &BTreeSet<u32>) -> Device {
    let nodes: Vec<NumaNode> = numa.iter().map(|node| NumaNode { id: i64::from(*node) }).collect();
    let topology = (!nodes.is_empty()).then_some(TopologyInfo { nodes });
    let health = if healthy { HEALTHY } else { UNHEALTHY };
    Device { id, health: health.to_owned(), topology }
}

/// Chooses: what must be in it, then as many as possible of one NUMA node, in the order of
/// `rank`. So a choice is the same each time, and the smallest that serves.
///
/// # Errors
/// When the request asks for more than it names.
pub fn choose(
    request: &ContainerPreferredAllocationRequest,
    numa: impl Fn(&str) -> Option<u32>,
    rank: impl Fn(&str) -> u64,
) -> Result<Vec<String>, ChooseError> {
    let ContainerPreferredAllocationRequest {
        available_device_i_ds: available,
        must_include_device_i_ds: must,
        allocation_size,
    } = request;
    let asked =
        usize::try_from(*allocation_size).map_err(|_| ChooseError::Size(*allocation_size))?;
    let mut chosen: Vec<&str> = must.iter().map(String::as_str).take(asked).collect();
    let taken: BTreeSet<&str> = chosen.iter().copied().collect();
    let mut free: Vec<Free<'_>> = available
        .iter()
        .filter(|id| !taken.contains(id.as_str()))
        .map(|id| Free { node: numa(id), place: None, rank: rank(id), id })
        .collect();
    let missing = asked - chosen.len();
    if free.len() < missing {
        return Err(ChooseError::TooFew { asked, available: free.len() + chosen.len() });
    }
    let near: Vec<Option<u32>> = chosen.iter().map(|id| numa(id)).collect();
    let order = node_order(&free, &near, missing);
    for device in &mut free {
        device.place = order.iter().position(|node| *node == device.node);
    }
    let key = |device: &Free<'_>| (device.place, device.rank);
    let before = |a: &Free<'_>, b: &Free<'_>| key(a).cmp(&key(b)).then_with(|| a.id.cmp(b.id));
    // Only those that are wanted need be in order.
    if missing < free.len() {
        free.select_nth_unstable_by(missing, before);
        free.truncate(missing);
    }
    free.sort_unstable_by(before);
    chosen.extend(free.iter().map(|device| device.id));
    Ok(chosen.into_iter().map(str::to_owned).collect())
}

/// Chooses among devices as they are listed: near to their NUMA nodes, in the order of the list.
///
/// # Errors
/// When the request asks for more than it names.
pub fn choose_listed(
    request: &ContainerPreferredAllocationRequest,
    listed: &[Device],
) -> Result<Vec<String>, ChooseError> {
    // There may be hundreds, and each is looked up more than once.
    let by_id: HashMap<&str, (u64, &Device)> =
        (0..).zip(listed).map(|(at, device)| (device.id.as_str(), (at, device))).collect();
    let numa = |id: &str| {
        let nodes = &by_id.get(id)?.1.topology.as_ref()?.nodes;
        nodes.first().and_then(|node| u32::try_from(node.id).ok())
    };
    choose(request, numa, |id| by_id.get(id).map_or(u64::MAX, |(at, _)| *at))
}

/// A device that may be chosen.
struct Free<'a> {
    node: Option<u32>,
    /// Of its node among all, in the order in which they are taken.
    place: Option<usize>,
    rank: u64,
    id: &'a str,
}

/// NUMA nodes: where some of a choice is already, then the fullest that fits, so that others keep
/// room.
fn node_order(free: &[Free<'_>], near: &[Option<u32>], missing: usize) -> Vec<Option<u32>> {
    // Few: a node of a machine each.
    let mut nodes: Vec<(Option<u32>, usize)> = Vec::new();
    for device in free {
        match nodes.iter_mut().find(|(node, _)| *node == device.node) {
            Some((_, count)) => *count += 1,
            None => nodes.push((device.node, 1)),
        }
    }
    nodes.sort_by_key(|(node, count)| {
        let fits = *count >= missing;
        (!near.contains(node), !fits, if fits { *count } else { usize::MAX - count }, *node)
    });
    nodes.into_iter().map(|(node, _)| node).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(
        available: &[&str],
        must: &[&str],
        size: i32,
    ) -> ContainerPreferredAllocationRequest {
        let owned = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect();
        ContainerPreferredAllocationRequest {
            available_device_i_ds: owned(available),
            must_include_device_i_ds: owned(must),
            allocation_size: size,
        }
    }

    fn rank(id: &str) -> u64 {
        id.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or(0)
    }

    #[test]
    fn as_the_kubelet_asks() {
        // As Kubernetes 1.35 sent it.
        let asked = request(&["dev-2", "dev-3", "dev-0", "dev-1"], &[], 2);
        assert_eq!(choose(&asked, |_| None, rank), Ok(vec!["dev-0".into(), "dev-1".into()]));
        let asked = request(&["s-2", "s-10", "s-1"], &["s-10"], 2);
        assert_eq!(choose(&asked, |_| None, rank), Ok(vec!["s-10".into(), "s-1".into()]));
        assert!(choose(&request(&["a"], &[], 2), |_| None, rank).is_err());
        assert_eq!(choose(&request(&["a"], &[], -1), |_| None, rank), Err(ChooseError::Size(-1)));
    }

    #[test]
    fn one_numa_node_where_it_can_be() {
        let numa = |id: &str| Some(u32::from(id.starts_with('b')));
        let ids = ["a1", "a2", "a3", "b1", "b2"];
        let chosen = |must: &[&str], size| choose(&request(&ids, must, size), numa, rank).unwrap();
        assert_eq!(chosen(&[], 2), ["b1", "b2"], "the node that fits most closely");
        assert_eq!(chosen(&[], 3), ["a1", "a2", "a3"]);
        assert_eq!(chosen(&["a2"], 2), ["a2", "a1"], "where some of it is already");
        assert_eq!(chosen(&[], 4), ["a1", "a2", "a3", "b1"]);
    }

    #[test]
    fn what_is_listed_is_chosen_by_its_node_and_its_place() {
        let listed = [("c", 1), ("b", 0), ("a", 1), ("e", 0), ("d", 0)];
        let listed = listed.map(|(id, node)| device(id.to_owned(), true, &[node].into()));
        let chosen =
            |size| choose_listed(&request(&["a", "b", "c", "d", "e", "x"], &[], size), &listed);
        assert_eq!(chosen(2).unwrap(), ["c", "a"]);
        assert_eq!(chosen(3).unwrap(), ["b", "e", "d"]);
        assert_eq!(chosen(6).unwrap().last().unwrap(), "x", "what is not listed comes last");
    }

    proptest! {
        #[test]
        fn a_choice_is_what_was_asked_for(
            ids in prop::collection::btree_set("[a-c][0-9]{1,2}", 0..30),
            must in 0usize..5, size in 0i32..40,
        ) {
            let ids: Vec<String> = ids.into_iter().collect();
            let must: Vec<String> = ids.iter().take(must).cloned().collect();
            let asked = ContainerPreferredAllocationRequest {
                available_device_i_ds: ids.clone(),
                must_include_device_i_ds: must.clone(),
                allocation_size: size,
            };
            let numa = |id: &str| id.bytes().next().map(u32::from);
            match choose(&asked, numa, rank) {
                Ok(chosen) => {
                    let distinct: BTreeSet<&String> = chosen.iter().collect();
                    prop_assert_eq!(distinct.len(), size as usize);
                    prop_assert!(chosen.iter().all(|id| ids.contains(id)));
                    let room = (size as usize).min(must.len());
                    prop_assert!(must.iter().take(room).all(|id| chosen.contains(id)));
                }
                Err(_) => prop_assert!(ids.len() < size as usize),
            }
        }
    }
}
