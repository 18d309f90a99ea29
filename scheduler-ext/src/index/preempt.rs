//! Whose place a pod may take.
//!
//! The scheduler names nodes and the pods there that it would take away; what it cannot know is
//! which of them hold GPUs. For each node: do those free what is needed? If not, more pods of
//! lower priority go, and those that borrowed what is now asked back; as few as will do, of as
//! few tenants as will do, and of groups only where nobody else will do, for a group that loses a pod
//! has the others for nothing. A node that cannot be freed is not answered.
//!
//! For a pod of a group nobody goes unless all of its group would have room then ([`super::together`]).

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use gpuzone_api::kubernetes::PodUid;
use gpuzone_core::engine::{NodeRoom, Placed, PodDemand, Policy, Score};
use gpuzone_core::{GpuUuid, Grant};

use super::gang::GroupKey;
use super::nodes::{Node, room_of};
use super::pods::{PodEntry, Stand};
use super::rooms::place_on;
use super::together::{Imagined, Somewhere};
use super::{Index, Usage};
use crate::view::PodView;

/// The pods that go from a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Victims {
    /// Which.
    pub pods: BTreeSet<PodUid>,
}

/// Who needs room: a pod, or the pods of a group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Needy<'a> {
    pub(super) namespace: &'a str,
    /// Of a group the lowest of its pods'.
    pub(super) priority: i32,
}

/// What a pod gets on a node.
#[derive(Clone, Debug)]
pub(super) struct Served {
    /// Whether it takes no more than is guaranteed to its quota.
    pub(super) guaranteed: bool,
    pub(super) asked: Usage,
    pub(super) holds: Vec<Grant>,
    pub(super) score: Score,
}

/// What it costs others when pods go: less is better.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Disturbance {
    /// The highest priority of those that are chosen.
    priority: Option<i32>,
    /// Groups that lose a pod and are not whole any more.
    groups: usize,
    /// Tenants that lose a pod.
    tenants: usize,
    /// Pods that are chosen, and those that such groups have for nothing then.
    pods: usize,
}

impl PodView {
    pub(super) fn needy(&self) -> Needy<'_> {
        Needy { namespace: &self.name.namespace, priority: self.priority }
    }
}

impl Index {
    /// For nodes, each with the pods that the scheduler would take away there: all that have to go so
    /// that `pod` has its GPUs. Nodes where that cannot be are left out, and all of them where the rest of
    /// its group would find no room whoever goes.
    pub fn preempt(
        &self,
        pod: &PodView,
        nodes: &BTreeMap<String, BTreeSet<PodUid>>,
    ) -> BTreeMap<String, Victims> {
        let helps = self.helps_its_group(pod, nodes);
        let of = nodes
            .iter()
            .filter(|_| helps)
            .filter_map(|(node, named)| Some((node.clone(), self.preempt_on(pod, node, named)?)));
        of.collect()
    }

    fn preempt_on(&self, pod: &PodView, node: &str, named: &BTreeSet<PodUid>) -> Option<Victims> {
        let Ok(Some(ask)) = &pod.ask else { return Some(Victims { pods: named.clone() }) };
        let known = self.nodes.get(node).filter(|node| node.exists && node.reported)?;
        let (needy, demand) = (pod.needy(), ask.gpu_demand(&self.models));
        let how = (self.policy_of(ask), &demand);
        let on = Somewhere { name: node, node: known };
        // Places that nobody holds make way by themselves.
        let mut empty = self.making_way(needy, &[node]);
        empty.extend(self.kept_for(pod));
        let key = self.group_of(pod);
        let serves = |gone: &BTreeSet<PodUid>| {
            let gone = gone.union(&empty);
            let free = gone.filter(|uid| self.claims.is_free_for(uid, key.as_ref()));
            let gone = free.cloned().collect();
            self.served(needy, on, how, &gone, &Imagined::default()).is_some()
        };
        let mut gone = named.clone();
        gone.extend(self.fewest(known, named, serves, self.may_preempt(pod))?);
        Some(Victims { pods: gone })
    }

    pub(super) fn group_of(&self, pod: &PodView) -> Option<GroupKey> {
        self.pods.get(&pod.uid).and_then(PodEntry::group)
    }

    /// Whether a pod may take the place of another when those of a set are gone.
    pub(super) fn may_preempt(&self, pod: &PodView) -> impl Fn(&PodUid, &BTreeSet<PodUid>) -> bool {
        let key = self.group_of(pod);
        move |uid, gone| {
            let of = self.pods.get(uid).and_then(PodEntry::group);
            // One of its own group would be missing then.
            if (key.is_some() && of == key) || !self.claims.is_free_for(uid, key.as_ref()) {
                return false;
            }
            let lower = self.pods.get(uid).is_some_and(|entry| entry.priority < pod.priority);
            pod.preempts && (lower || self.borrows_of(pod.needy(), uid, gone))
        }
    }

    /// Of the pods of a node that may be taken, those that have to go beside `gone`: of priorities as low
    /// as will do, then of the fewest groups, then of the fewest tenants, then the fewest.
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

    pub(super) fn disturbance(&self, gone: &BTreeSet<PodUid>, chosen: &[PodUid]) -> Disturbance {
        let priority = |uid| self.pods.get(uid).map(|entry| entry.priority);
        let all = || gone.iter().chain(chosen).filter(|uid| self.is_bound(uid));
        let hurt: BTreeSet<&str> = all().filter_map(|uid| self.namespace_of(uid)).collect();
        let lost = self.lost_by_groups(all());
        let in_vain = lost.iter().filter_map(|(key, lost)| self.in_vain(key, *lost));
        let in_vain: Vec<usize> = in_vain.collect();
        Disturbance {
            priority: chosen.iter().filter_map(priority).max(),
            groups: in_vain.len(),
            tenants: hurt.len(),
            pods: chosen.len() + in_vain.iter().sum::<usize>(),
        }
    }

    /// How many pods groups lose.
    fn lost_by_groups<'a>(
        &self,
        gone: impl Iterator<Item = &'a PodUid>,
    ) -> BTreeMap<GroupKey, usize> {
        let mut lost = BTreeMap::new();
        for key in gone.filter_map(|uid| self.pods.get(uid).and_then(PodEntry::group)) {
            *lost.entry(key).or_default() += 1;
        }
        lost
    }

    /// How many pods a group has for nothing when it has lost so many; `None` when it is whole without them.
    fn in_vain(&self, key: &GroupKey, lost: usize) -> Option<usize> {
        let group = self.groups.get(key)?;
        let left = self.bound_of(group).saturating_sub(lost);
        // One pod alone is no group, whatever it calls itself.
        let size = self.gang_of(key).map_or(usize::MAX, |gang| gang.size);
        (lost > 0 && size > 1 && left < size).then_some(left)
    }

    /// Whether its group would not be whole any more, and still is.
    fn breaks_a_group(&self, uid: &PodUid, lost: &BTreeMap<GroupKey, usize>) -> bool {
        let Some(key) = self.pods.get(uid).and_then(PodEntry::group) else { return false };
        let before = lost.get(&key).copied().unwrap_or_default();
        self.in_vain(&key, before).is_none() && self.in_vain(&key, before + 1).is_some()
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

    /// The next pod to go of those that may be taken: of the lowest priority, of no group or one that is
    /// not whole any more anyhow, of a tenant that loses a pod anyhow, and the one that holds most, so that
    /// few have to go.
    fn next_of(
        &self,
        node: &Node,
        gone: &BTreeSet<PodUid>,
        may: impl Fn(&PodUid) -> bool,
    ) -> Option<PodUid> {
        let bound = || gone.iter().filter(|uid| self.is_bound(uid));
        let hurt: BTreeSet<&str> = bound().filter_map(|uid| self.namespace_of(uid)).collect();
        let lost = self.lost_by_groups(bound());
        let candidates = node.pods.iter().filter(|uid| !gone.contains(*uid)).filter_map(|uid| {
            let entry = self.pods.get(uid)?;
            let Stand::Bound(held) = &entry.stand else { return None };
            let (holds, spared) =
                (held.charge.total, !hurt.contains(entry.name.namespace.as_str()));
            let breaks = self.breaks_a_group(uid, &lost);
            let order = (entry.priority, breaks, spared, u64::MAX - holds.memory, uid);
            (holds.gpus > 0 && may(uid)).then_some(order)
        });
        candidates.min().map(|(_, _, _, _, uid)| uid.clone())
    }

    /// Whether a pod borrows what could be given back to `needy`, when those of `gone` are gone.
    pub(super) fn borrows_of(
        &self,
        needy: Needy<'_>,
        uid: &PodUid,
        gone: &BTreeSet<PodUid>,
    ) -> bool {
        let Some(entry) = self.pods.get(uid) else { return false };
        let namespace = entry.name.namespace.as_str();
        namespace != needy.namespace
            && entry.priority <= needy.priority
            && self.borrows_from(namespace, needy.namespace, &self.freed_by(gone))
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

    /// What a pod that its quota lets in gets of a node when those of `gone` are gone, and others have what
    /// is `imagined`.
    pub(super) fn served(
        &self,
        needy: Needy<'_>,
        on: Somewhere<'_>,
        (policy, demand): (Policy, &PodDemand),
        gone: &BTreeSet<PodUid>,
        imagined: &Imagined,
    ) -> Option<Served> {
        let room = self.room_without(on, gone, imagined);
        let Placed { choice, score, .. } = place_on(policy, &self.mix, &room, demand).ok()?;
        let asked = Usage::of_choice(&room, &choice);
        let gates = self.gates(needy.namespace, &self.freed_by(gone)).ok()?;
        let gates = gates.beside(&imagined.asked);
        gates.check(&asked).ok()?;
        let grant = |given: &gpuzone_core::engine::Given| {
            let gpu = on.node.gpus.get(given.gpu)?.gpu;
            Some(Grant { gpu, memory: given.memory, share: given.share.as_share()? })
        };
        let holds = choice.containers().iter().flatten().map(grant).collect::<Option<_>>()?;
        Some(Served { guaranteed: gates.guarantee(&asked), asked, holds, score })
    }

    /// What is free of a node's GPUs when some of its pods are gone, and others have come.
    fn room_without(
        &self,
        on: Somewhere<'_>,
        gone: &BTreeSet<PodUid>,
        imagined: &Imagined,
    ) -> Cow<'_, NodeRoom> {
        let as_it_is = imagined.on(on.name).next().is_none() && on.node.pods.is_disjoint(gone);
        let known = on.node.room.and_then(|room| self.rooms.get(room));
        if let Some(room) = known.filter(|_| as_it_is) {
            return Cow::Borrowed(room);
        }
        let stay = on.node.pods.iter().filter(|uid| !gone.contains(*uid));
        let holds = stay.filter_map(|uid| self.pods.get(uid).and_then(PodEntry::held));
        let holds = holds.flat_map(|held| &held.holds).chain(imagined.on(on.name));
        // Whether the host has enough is the scheduler's to say; here it is only preferred by.
        let host = known.map(|room| room.host());
        Cow::Owned(room_of(host.unwrap_or_default(), &on.node.gpus, holds))
    }
}
