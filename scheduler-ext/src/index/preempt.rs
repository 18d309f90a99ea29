//! Whose place a pod may take.
//!
//! The scheduler names nodes and the pods there that it would take away; what it cannot know is
//! which of them hold GPUs. For each node: do those free what is needed? If not, more pods of
//! lower priority go, and those that borrowed what is now asked back; as few as will do, of as
//! few tenants as will do. A node that cannot be freed is not answered.

use std::collections::{BTreeMap, BTreeSet};

use gpuzone_api::kubernetes::PodUid;
use gpuzone_core::GpuUuid;
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
        let may = |uid: &PodUid, gone: &BTreeSet<PodUid>| {
            let lower = self.pods.get(uid).is_some_and(|entry| entry.priority < pod.priority);
            pod.preempts && (lower || self.borrows_of(pod, uid, gone))
        };
        let mut gone = named.clone();
        gone.extend(self.fewest(known, named, serves, may)?);
        Some(Victims { pods: gone })
    }

    /// Of the pods of a node that may be taken, those that have to go beside `gone`: of priorities as low
    /// as will do, then of the fewest tenants, then the fewest.
    ///
    /// Which of a node's pods free a GPU together depends on the GPU. So each is tried as the one that is
    /// freed first, and none, which is by the pods alone.
    pub(super) fn fewest(
        &self,
        node: &Node,
        gone: &BTreeSet<PodUid>,
        serves: impl Fn(&BTreeSet<PodUid>) -> bool,
        may: impl Fn(&PodUid, &BTreeSet<PodUid>) -> bool,
    ) -> Option<Vec<PodUid>> {
        let by_pods = self.victims_from(node, gone, None, &serves, &may)?;
        let gpus: BTreeSet<GpuUuid> = node.gpus.iter().map(|unit| unit.gpu).collect();
        let by_gpu = gpus
            .into_iter()
            .filter_map(|first| self.victims_from(node, gone, Some(first), &serves, &may));
        std::iter::once(by_pods).chain(by_gpu).min_by_key(|chosen| self.disturbance(gone, chosen))
    }

    /// The highest priority, how many tenants lose a pod, and how many pods go.
    fn disturbance(
        &self,
        gone: &BTreeSet<PodUid>,
        chosen: &[PodUid],
    ) -> (Option<i32>, usize, usize) {
        let priority = |uid| self.pods.get(uid).map(|entry| entry.priority);
        let all = gone.iter().chain(chosen);
        let hurt: BTreeSet<&str> = all.filter_map(|uid| self.namespace_of(uid)).collect();
        (chosen.iter().filter_map(priority).max(), hurt.len(), chosen.len())
    }

    /// Pods of GPU `first` before others, then of another one: that of which the fewest tenants lose a pod.
    fn victims_from(
        &self,
        node: &Node,
        before: &BTreeSet<PodUid>,
        first: Option<GpuUuid>,
        serves: &impl Fn(&BTreeSet<PodUid>) -> bool,
        may: &impl Fn(&PodUid, &BTreeSet<PodUid>) -> bool,
    ) -> Option<Vec<PodUid>> {
        let (mut gone, mut chosen) = (before.clone(), Vec::new());
        let mut gpu = first;
        while !serves(&gone) {
            let on = |uid: &PodUid| gpu.is_none_or(|gpu| self.holds_of_gpu(uid, gpu));
            match self.next_of(node, &gone, |uid| on(uid) && may(uid, &gone)) {
                Some(next) => {
                    gone.insert(next.clone());
                    chosen.push(next);
                }
                None => {
                    // Nothing more of this one; without any, of none.
                    gpu?;
                    gpu = self.next_gpu(node, &gone, may);
                }
            }
        }
        // The last chosen may have freed what earlier ones did not have to.
        chosen.retain(|uid| {
            gone.remove(uid);
            let needed = !serves(&gone);
            if needed {
                gone.insert(uid.clone());
            }
            needed
        });
        Some(chosen)
    }

    fn holds_of_gpu(&self, uid: &PodUid, gpu: GpuUuid) -> bool {
        let held = self.pods.get(uid).and_then(PodEntry::held);
        held.is_some_and(|held| held.holds.iter().any(|hold| hold.gpu == gpu))
    }

    /// The GPU whose pods that may be taken disturb least; `None` when none has any.
    fn next_gpu(
        &self,
        node: &Node,
        gone: &BTreeSet<PodUid>,
        may: &impl Fn(&PodUid, &BTreeSet<PodUid>) -> bool,
    ) -> Option<GpuUuid> {
        let of = node.gpus.iter().filter_map(|unit| {
            let on = |uid: &&PodUid| !gone.contains(*uid) && self.holds_of_gpu(uid, unit.gpu);
            let pods =
                node.pods.iter().filter(on).filter(|uid| self.is_bound(uid) && may(uid, gone));
            let pods: Vec<PodUid> = pods.cloned().collect();
            (!pods.is_empty()).then(|| (self.disturbance(gone, &pods), unit.gpu))
        });
        of.min().map(|(_, gpu)| gpu)
    }

    fn is_bound(&self, uid: &PodUid) -> bool {
        self.pods.get(uid).is_some_and(|entry| matches!(entry.stand, Stand::Bound(_)))
    }

    /// The next pod to go of those that may be taken: of the lowest priority, of a tenant that loses
    /// a pod anyhow, and the one that holds most, so that few have to go.
    fn next_of(
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
