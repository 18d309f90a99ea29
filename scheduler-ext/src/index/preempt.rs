//! Whose place a pod may take.
//!
//! The scheduler names nodes and the pods there that it would take away; what it cannot know is
//! which of them hold GPUs. For each node: do those free what is needed? If not, more pods of
//! lower priority go, and those that borrowed what is now asked back; as few as will do, of as
//! few tenants as will do. A node that cannot be freed is not answered.

use std::collections::{BTreeMap, BTreeSet};

use gpuzone_api::kubernetes::PodUid;
use gpuzone_core::engine::{HostRoom, NodeRoom, PodDemand, fit};

use super::nodes::{Node, room_of};
use super::pods::{PodEntry, Stand};
use super::{Index, Usage};
use crate::view::PodView;

/// The pods that go from a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Victims {
    /// Which.
    pub pods: BTreeSet<PodUid>,
}

/// Whether a pod takes no more than is guaranteed to its quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Guaranteed(pub(super) bool);

impl Index {
    /// For a node and the pods that the scheduler would take away there: all that have to go so
    /// that `pod` has its GPUs; `None` when that cannot be.
    pub fn preempt(&self, pod: &PodView, node: &str, named: &BTreeSet<PodUid>) -> Option<Victims> {
        let Ok(Some(ask)) = &pod.ask else { return Some(Victims { pods: named.clone() }) };
        let known = self.nodes.get(node).filter(|node| node.exists && node.reported)?;
        let demand = ask.gpu_demand(&self.models);
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

    fn next_victim(&self, pod: &PodView, node: &Node, gone: &BTreeSet<PodUid>) -> Option<PodUid> {
        if !pod.preempts {
            return None;
        }
        let may = |uid: &PodUid| {
            let lower = self.pods.get(uid).is_some_and(|entry| entry.priority < pod.priority);
            lower || self.borrows_of(pod, uid, gone)
        };
        self.next_of(node, gone, may)
    }

    /// The next pod to go of those that may be taken: of the lowest priority, of a tenant that loses
    /// a pod anyhow, and the one that holds most, so that few have to go.
    pub(super) fn next_of(
        &self,
        node: &Node,
        gone: &BTreeSet<PodUid>,
        may: impl Fn(&PodUid) -> bool,
    ) -> Option<PodUid> {
        let hurt: BTreeSet<&str> = gone.iter().filter_map(|uid| self.namespace_of(uid)).collect();
        let candidates = node.pods.iter().filter(|uid| !gone.contains(*uid)).filter_map(|uid| {
            let entry = self.pods.get(uid)?;
            let Stand::Bound(held) = &entry.stand else { return None };
            let (holds, spared) =
                (held.charge.total, !hurt.contains(entry.name.namespace.as_str()));
            let order = (entry.priority, spared, u64::MAX - holds.memory, uid);
            (holds.gpus > 0 && may(uid)).then_some(order)
        });
        candidates.min().map(|(_, _, _, uid)| uid.clone())
    }

    /// Whether a pod borrows what could be given back to `pod`, when those of `gone` are gone.
    pub(super) fn borrows_of(&self, pod: &PodView, uid: &PodUid, gone: &BTreeSet<PodUid>) -> bool {
        let Some(entry) = self.pods.get(uid) else { return false };
        let namespace = entry.name.namespace.as_str();
        namespace != pod.name.namespace
            && entry.priority <= pod.priority
            && self.borrows_from(namespace, &pod.name.namespace, &self.freed_by(gone))
    }

    pub(super) fn namespace_of(&self, uid: &PodUid) -> Option<&str> {
        self.pods.get(uid).map(|entry| entry.name.namespace.as_str())
    }

    /// What pods give back when they go, by namespace.
    fn freed_by(&self, gone: &BTreeSet<PodUid>) -> BTreeMap<String, Usage> {
        let mut freed: BTreeMap<String, Usage> = BTreeMap::new();
        for entry in gone.iter().filter_map(|uid| self.pods.get(uid)) {
            if let Some(held) = entry.held() {
                freed.entry(entry.name.namespace.clone()).or_default().add(&held.charge);
            }
        }
        freed
    }

    fn serves_without(
        &self,
        pod: &PodView,
        node: &Node,
        demand: &PodDemand,
        gone: &BTreeSet<PodUid>,
    ) -> bool {
        self.served_as(pod, node, demand, gone).is_some()
    }

    /// When those of `gone` are gone: whether the node serves a pod that its quota lets in, and if
    /// so, whether it takes no more than is guaranteed to that.
    pub(super) fn served_as(
        &self,
        pod: &PodView,
        node: &Node,
        demand: &PodDemand,
        gone: &BTreeSet<PodUid>,
    ) -> Option<Guaranteed> {
        let room = self.room_without(node, gone);
        let asked = Usage::of_choice(&room, &fit(&room, demand).ok()?);
        let gates = self.gates(&pod.name.namespace, &self.freed_by(gone)).ok()?;
        gates.check(&asked).ok()?;
        Some(Guaranteed(gates.guarantee(&asked)))
    }

    /// What is free of a node's GPUs when some of its pods are gone.
    fn room_without(&self, node: &Node, gone: &BTreeSet<PodUid>) -> NodeRoom {
        let stay = node.pods.iter().filter(|uid| !gone.contains(*uid));
        let holds = stay.filter_map(|uid| self.pods.get(uid).and_then(PodEntry::held));
        room_of(HostRoom::default(), &node.gpus, holds.flat_map(|held| &held.holds))
    }
}
