//! Whose place a pod may take.
//!
//! The scheduler names nodes and the pods there that it would take away; what it cannot know is
//! which of them hold GPUs. For each node: do those free what is needed? If not, more pods of
//! lower priority go, and those that borrowed what is now asked back; as few as will do, of as
//! few tenants as will do. A node that cannot be freed is not answered.

use std::collections::{BTreeMap, BTreeSet};

use gpuzone_api::kubernetes::PodUid;
use gpuzone_core::engine::{GpuRoom, HostRoom, NodeRoom, PodDemand, ShareMilli, fit};
use gpuzone_core::{GpuUuid, MemoryBytes};

use super::nodes::Node;
use super::pods::{PodEntry, Stand};
use super::{Index, Usage};
use crate::view::PodView;

/// The pods that go from a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Victims {
    /// Which.
    pub pods: BTreeSet<PodUid>,
}

impl Index {
    /// For a node and the pods that the scheduler would take away there: all that have to go so
    /// that `pod` has its GPUs; `None` when that cannot be.
    pub fn preempt(&self, pod: &PodView, node: &str, named: &BTreeSet<PodUid>) -> Option<Victims> {
        let Ok(Some(ask)) = &pod.ask else { return Some(Victims { pods: named.clone() }) };
        let known = self.nodes.get(node).filter(|node| node.exists && node.reported)?;
        let demand = ask.demand(&self.models);
        let serves = |gone: &BTreeSet<PodUid>| self.serves_without(pod, known, &demand, gone);
        let mut gone = named.clone();
        let mut chosen = Vec::new();
        while !serves(&gone) {
            let next = self.next_victim(pod, known, &gone)?;
            gone.insert(next.clone());
            chosen.push(next);
        }
        // The last chosen may have freed what earlier ones did not have to.
        for uid in chosen {
            gone.remove(&uid);
            if !serves(&gone) {
                gone.insert(uid);
            }
        }
        Some(Victims { pods: gone })
    }

    /// The next pod to go: of the lowest priority, of a tenant that loses a pod anyhow, and the
    /// one that holds most, so that few have to go.
    fn next_victim(&self, pod: &PodView, node: &Node, gone: &BTreeSet<PodUid>) -> Option<PodUid> {
        if !pod.preempts {
            return None;
        }
        let hurt: BTreeSet<&str> = gone.iter().filter_map(|uid| self.namespace_of(uid)).collect();
        let candidates = node.pods.iter().filter(|uid| !gone.contains(*uid)).filter_map(|uid| {
            let entry = self.pods.get(uid)?;
            let Stand::Bound(held) = &entry.stand else { return None };
            let namespace = entry.name.namespace.as_str();
            let lower = entry.priority < pod.priority;
            let lent = || {
                namespace != pod.name.namespace
                    && entry.priority <= pod.priority
                    && self.borrows_from(namespace, &pod.name.namespace)
            };
            let holds = held.charge.total;
            let order = (entry.priority, !hurt.contains(namespace), u64::MAX - holds.memory, uid);
            (holds.gpus > 0 && (lower || lent())).then_some(order)
        });
        candidates.min().map(|(_, _, _, uid)| uid.clone())
    }

    fn namespace_of(&self, uid: &PodUid) -> Option<&str> {
        self.pods.get(uid).map(|entry| entry.name.namespace.as_str())
    }

    fn serves_without(
        &self,
        pod: &PodView,
        node: &Node,
        demand: &PodDemand,
        gone: &BTreeSet<PodUid>,
    ) -> bool {
        let room = self.room_without(node, gone);
        let Ok(choice) = fit(&room, demand) else { return false };
        let mut freed: BTreeMap<String, Usage> = BTreeMap::new();
        for entry in gone.iter().filter_map(|uid| self.pods.get(uid)) {
            if let Some(held) = entry.held() {
                freed.entry(entry.name.namespace.clone()).or_default().add(&held.charge);
            }
        }
        let asked = Usage::of_choice(&room, &choice);
        let gates = self.gates(&pod.name.namespace, &freed);
        gates.is_ok_and(|gates| gates.check(&asked).is_ok())
    }

    /// What is free of a node when some of its pods are gone.
    fn room_without(&self, node: &Node, gone: &BTreeSet<PodUid>) -> NodeRoom {
        let stay = node.pods.iter().filter(|uid| !gone.contains(*uid));
        let holds = stay.filter_map(|uid| self.pods.get(uid).and_then(PodEntry::held));
        let mut held: BTreeMap<GpuUuid, (u64, u64)> = BTreeMap::new();
        for hold in holds.flat_map(|held| &held.holds) {
            let (memory, share) = held.entry(hold.gpu).or_default();
            *memory = memory.saturating_add(hold.memory.get());
            *share += u64::from(hold.share.percent());
        }
        let rooms = node.gpus.iter().map(|(uuid, kind)| {
            let (memory, share) = held.get(uuid).copied().unwrap_or_default();
            let memory = kind.memory.get().saturating_sub(memory);
            let share = 1000_u64.saturating_sub(share.saturating_mul(10));
            let share = u16::try_from(share).ok().and_then(ShareMilli::new).unwrap_or_default();
            GpuRoom::with_free(*kind, MemoryBytes::saturating(memory), share)
        });
        NodeRoom::new(HostRoom::default(), rooms.collect()).unwrap_or_default()
    }
}
