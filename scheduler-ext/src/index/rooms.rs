//! What is free of nodes, each room once however many nodes have it, and what rooms are to pods.
//!
//! Pods come in few kinds, and nodes with few rooms: many are alike, and between two pods one
//! changes. So what the engine says of a room is worked out once for a kind of pod, and kept as
//! long as some node has that room; scores, as long as the mix is the same, too.

use std::borrow::Cow;
use std::sync::Arc;

use foldhash::HashMap;
use gpuzone_core::engine::{
    HostDemand, Mix, NodeRoom, Placed, PodDemand, Policy, Reason, Score, fit, place,
};

use super::Usage;

/// A room that some node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RoomId(u32);

/// A kind of pods: what they ask for, and how. Good until the next one is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KindId(usize);

/// What a pod of a kind comes to on a room that serves it; a place in [`Rooms::charge`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChargeId(u32);

#[derive(Clone, Debug)]
struct Entry {
    room: Arc<NodeRoom>,
    /// How many nodes have it.
    nodes: u32,
}

/// What is known of one room for a kind.
#[derive(Clone, Copy, Debug, Default)]
enum Fits {
    #[default]
    Unknown,
    Lacks(Reason),
    Comes(ChargeId),
}

#[derive(Clone, Copy, Debug, Default)]
enum Scored {
    #[default]
    Unknown,
    Known(Option<Score>),
}

#[derive(Clone, Debug)]
struct Kind {
    policy: Policy,
    demand: PodDemand,
    /// When it was asked for last.
    used: u64,
    /// For each room.
    fits: Vec<Fits>,
    scores: Vec<Scored>,
    /// The distinct amounts that a pod of it comes to.
    charges: Vec<Usage>,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Rooms {
    ids: HashMap<Arc<NodeRoom>, RoomId>,
    rooms: Vec<Option<Entry>>,
    free: Vec<RoomId>,
    kinds: Vec<Kind>,
    asked: u64,
}

impl Rooms {
    /// Kinds of pods that something is kept for; the one that nobody asked for longest gives way.
    const MOST_KINDS: usize = 64;

    /// A node has `room` now instead of `before`. One without GPUs has none.
    pub(super) fn replace(&mut self, before: Option<RoomId>, room: NodeRoom) -> Option<RoomId> {
        let now = (!room.gpus().is_empty()).then(|| self.enter(room));
        // Afterwards, so that one that stays the same keeps what is known of it.
        if let Some(before) = before {
            self.leave(before);
        }
        now
    }

    fn enter(&mut self, room: NodeRoom) -> RoomId {
        if let Some(id) = self.ids.get(&room) {
            if let Some(Some(entry)) = self.rooms.get_mut(id.0 as usize) {
                entry.nodes += 1;
            }
            return *id;
        }
        let room = Arc::new(room);
        let entry = Some(Entry { room: Arc::clone(&room), nodes: 1 });
        let id = match self.free.pop() {
            Some(id) => {
                if let Some(place) = self.rooms.get_mut(id.0 as usize) {
                    *place = entry;
                }
                id
            }
            None => {
                self.rooms.push(entry);
                // Fewer nodes than that are in any cluster.
                RoomId(u32::try_from(self.rooms.len() - 1).unwrap_or(u32::MAX))
            }
        };
        self.ids.insert(room, id);
        id
    }

    fn leave(&mut self, id: RoomId) {
        let at = id.0 as usize;
        let Some(place) = self.rooms.get_mut(at) else { return };
        let Some(entry) = place else { return };
        entry.nodes -= 1;
        if entry.nodes > 0 {
            return;
        }
        self.ids.remove(&entry.room);
        *place = None;
        self.free.push(id);
        for kind in &mut self.kinds {
            if let Some(fits) = kind.fits.get_mut(at) {
                *fits = Fits::Unknown;
            }
            if let Some(score) = kind.scores.get_mut(at) {
                *score = Scored::Unknown;
            }
        }
    }

    /// A room.
    pub(super) fn get(&self, id: RoomId) -> Option<&Arc<NodeRoom>> {
        self.rooms.get(id.0 as usize)?.as_ref().map(|entry| &entry.room)
    }

    /// The kind of pods that ask for this.
    pub(super) fn kind(&mut self, policy: Policy, demand: &PodDemand) -> KindId {
        self.asked += 1;
        let same = |kind: &Kind| kind.policy == policy && kind.demand == *demand;
        if let Some(at) = self.kinds.iter().position(same) {
            if let Some(kind) = self.kinds.get_mut(at) {
                kind.used = self.asked;
            }
            return KindId(at);
        }
        if self.kinds.len() >= Self::MOST_KINDS {
            let oldest = self.kinds.iter().enumerate().min_by_key(|(_, kind)| kind.used);
            if let Some((at, _)) = oldest {
                self.kinds.swap_remove(at);
            }
        }
        self.kinds.push(Kind {
            policy,
            demand: demand.clone(),
            used: self.asked,
            fits: Vec::new(),
            scores: Vec::new(),
            charges: Vec::new(),
        });
        KindId(self.kinds.len() - 1)
    }

    /// Whether a room serves pods of a kind, and what one comes to there.
    pub(super) fn fits(&mut self, kind: KindId, room: Option<RoomId>) -> Result<ChargeId, Reason> {
        let (Some(kind), Some(id)) = (self.kinds.get_mut(kind.0), room) else {
            return Err(Reason::NoGpu);
        };
        let at = id.0 as usize;
        if let Some(known) = kind.fits.get(at) {
            match known {
                Fits::Unknown => {}
                Fits::Lacks(reason) => return Err(*reason),
                Fits::Comes(charge) => return Ok(*charge),
            }
        }
        let Some(Some(entry)) = self.rooms.get(at) else { return Err(Reason::NoGpu) };
        let answer = fit(&entry.room, &kind.demand);
        let answer = answer.map(|choice| kind.learn(Usage::of_choice(&entry.room, &choice)));
        let place = grown(&mut kind.fits, at, self.rooms.len());
        match (place, answer) {
            (Some(place), Ok(charge)) => *place = Fits::Comes(charge),
            (Some(place), Err(reason)) => *place = Fits::Lacks(reason),
            (None, _) => {}
        }
        answer
    }

    /// What a pod of a kind comes to.
    pub(super) fn charge(&self, kind: KindId, charge: ChargeId) -> Option<&Usage> {
        self.kinds.get(kind.0)?.charges.get(charge.0 as usize)
    }

    /// How good a room is for pods of a kind; `None` when it does not serve them.
    pub(super) fn score(&mut self, kind: KindId, mix: &Mix, room: Option<RoomId>) -> Option<Score> {
        let (kind, at) = (self.kinds.get_mut(kind.0)?, room?.0 as usize);
        if let Some(Scored::Known(score)) = kind.scores.get(at) {
            return *score;
        }
        let entry = self.rooms.get(at)?.as_ref()?;
        let placed = place_on(kind.policy, mix, &entry.room, &kind.demand);
        let score = placed.ok().map(|placed| placed.score);
        if let Some(place) = grown(&mut kind.scores, at, self.rooms.len()) {
            *place = Scored::Known(score);
        }
        score
    }

    /// By another mix, another score.
    pub(super) fn forget_scores(&mut self) {
        self.kinds.iter_mut().for_each(|kind| kind.scores.clear());
    }
}

impl ChargeId {
    /// Its place among those of its kind.
    pub(super) const fn place(self) -> usize {
        self.0 as usize
    }
}

impl Kind {
    fn learn(&mut self, usage: Usage) -> ChargeId {
        let known = self.charges.iter().position(|known| *known == usage);
        let at = known.unwrap_or_else(|| {
            self.charges.push(usage);
            self.charges.len() - 1
        });
        ChargeId(u32::try_from(at).unwrap_or(u32::MAX))
    }
}

/// The engine's choice. kube-scheduler has looked whether the host has enough, and knows better: where
/// less is left by what is known here, the pod takes all of it.
pub(super) fn place_on(
    policy: Policy,
    mix: &Mix,
    room: &NodeRoom,
    demand: &PodDemand,
) -> Result<Placed, Reason> {
    let (asked, free) = (demand.host, room.host());
    let host = HostDemand {
        cpu_milli: asked.cpu_milli.min(free.cpu_milli),
        memory: asked.memory.min(free.memory),
    };
    let demand = match host == asked {
        true => Cow::Borrowed(demand),
        false => Cow::Owned(PodDemand { host, containers: demand.containers.clone() }),
    };
    place(policy, mix, room, &demand)
}

/// The place `at` of a list that has one for each of `rooms`.
fn grown<T: Default + Clone>(list: &mut Vec<T>, at: usize, rooms: usize) -> Option<&mut T> {
    if list.len() < rooms {
        list.resize(rooms, T::default());
    }
    list.get_mut(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpuzone_core::engine::{
        Amount, Demand, GpuKind, GpuRoom, HostRoom, MemoryAsk, ModelTable, ShareMilli, WorkloadMix,
    };
    use gpuzone_core::{Exposure, GpuCount, MemoryBytes};
    use proptest::prelude::*;

    fn room(kinds: [GpuKind; 2], free: &[(bool, u64)]) -> NodeRoom {
        let gpu = |(model, gib): &(bool, u64)| {
            let kind = if *model { kinds[0] } else { kinds[1] };
            GpuRoom::with_free(kind, MemoryBytes::gib(*gib), ShareMilli::WHOLE)
        };
        NodeRoom::new(HostRoom::default(), free.iter().map(gpu).collect()).unwrap()
    }

    fn demand(gib: u64) -> PodDemand {
        let memory = MemoryAsk::Bytes(MemoryBytes::gib(gib));
        let demand = Demand::new(GpuCount::ONE, Amount::Part { memory, share: None });
        PodDemand { containers: vec![demand], ..PodDemand::default() }
    }

    proptest! {
        #[test]
        fn what_is_kept_is_what_the_engine_says(
            steps in proptest::collection::vec(
                (0usize..4, proptest::collection::vec((any::<bool>(), 0u64..6), 0..4), 1u64..40, any::<bool>()),
                1..60,
            ),
        ) {
            let mut models = ModelTable::default();
            let kinds = ["a", "b"].map(|name| GpuKind {
                memory: MemoryBytes::gib(8),
                model: models.class_of(name).unwrap(),
                exposure: Exposure::Mediated,
                healthy: true,
                numa: None,
                nvlink: None,
            });
            let mut nodes: Vec<(NodeRoom, Option<RoomId>)> = vec![Default::default(); 4];
            let (mut rooms, mut arrivals, mut mix) = (Rooms::default(), WorkloadMix::default(), Mix::default());
            for (node, free, gib, renew) in steps {
                let (before, now) = (nodes[node].1, room(kinds, &free));
                nodes[node] = (now.clone(), rooms.replace(before, now));
                let pod = demand(gib);
                arrivals.observe(&pod);
                if renew {
                    mix = arrivals.renew(nodes.iter().map(|(room, _)| room));
                    rooms.forget_scores();
                }
                let kind = rooms.kind(Policy::Fragmentation, &pod);
                for (room, id) in &nodes {
                    let fits = rooms.fits(kind, *id);
                    let fits = fits.map(|charge| rooms.charge(kind, charge).unwrap().clone());
                    prop_assert_eq!(fits, fit(room, &pod).map(|choice| Usage::of_choice(room, &choice)));
                    let placed = place(Policy::Fragmentation, &mix, room, &pod).ok();
                    prop_assert_eq!(rooms.score(kind, &mix, *id), placed.map(|placed| placed.score));
                }
            }
        }
    }
}
