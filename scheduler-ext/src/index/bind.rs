//! From a choice to a pod on its node: what is set aside while a Binding is on its way.
//!
//! ```text
//!            plan (groups)             all have come
//! Waiting ────────────────▶ Planned ───────────────▶ Posting ──201──▶ Written ──seen──▶ Bound
//!    │  └──────────────reserve──────────────────────▶  │ ▲ ▲                              ▲
//!    │ ◀───────────────refused─────────────────────────┤ │ └─tried again─ Unsure ──seen───┤
//!    │ ◀──────────────────looked: unbound, late enough─┼─┼────────────────┘               │
//!    │                     refused, others of its group│ └─tried again──┐                 │
//!    │                             are bound, or may be└──────────────▶ Kept ──seen───────┤
//!    │ ◀──────────────────its group's time is over──────────────────────┘                 │
//!    └────────────────────────────────seen on a node──────────────────────────────────────┘
//! ```
//!
//! What becomes of the place of a pod that is gone, [`super::vacant`] says: it may be `Kept` for another.
//!
//! What the API server answers, [`super::settle`] takes in.

use std::collections::BTreeMap;

use gpuzone_api::kubernetes::{
    ContainerName, MAX_PLACEMENT_BYTES, NodeName, PlacementError, PodPlacement, PodUid,
};
use gpuzone_core::engine::{Choice, Policy, Reason};
use gpuzone_core::{Grant, InvalidPlacement, Placement};

use super::pods::{Held, Stand, holds_of};
use super::quota::QuotaRefusal;
use super::rooms::place_on;
use super::{Index, Moment, Usage};
use crate::ask::{Ask, AskError};
use crate::view::PodName;

/// One try to bind one pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// What is set aside for a pod.
#[derive(Clone, Debug)]
pub(super) struct Reservation {
    pub(super) ticket: Ticket,
    pub(super) placement: PodPlacement,
    pub(super) held: Held,
    pub(super) state: State,
    /// When the last try was made whose answer was lost: it may be carried out after a later one was
    /// refused.
    pub(super) doubt: Option<Moment>,
    /// Until when it is kept for its group, since it was refused first.
    pub(super) kept: Option<Moment>,
}

/// How far its binding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// A place in its group's plan.
    Planned {
        /// Whether its bind was called, and waits for the others'.
        called: bool,
    },
    /// The Binding is on its way.
    Posting,
    /// No answer came.
    Unsure {
        /// Since when.
        since: Moment,
    },
    /// The API server has it, and the watch has not shown it yet.
    Written {
        /// Since when.
        since: Moment,
    },
    /// The API server refused it, while others of its group are bound or may be, or it is to replace one of
    /// a group that runs.
    Kept,
}

impl Reservation {
    /// Whether a list that began then need not have the pod.
    pub(super) fn may_be_younger_than(&self, began: Moment) -> bool {
        match self.state {
            State::Planned { .. } | State::Kept => false,
            State::Posting | State::Unsure { .. } => true,
            State::Written { since } => since >= began,
        }
    }
}

/// What is to be posted.
#[derive(Clone, Debug, PartialEq)]
pub struct BindOrder {
    /// Which try it is.
    pub ticket: Ticket,
    /// The pod.
    pub pod: PodName,
    /// Which one of that name.
    pub uid: PodUid,
    /// Where to.
    pub node: NodeName,
    /// What it gets there.
    pub placement: PodPlacement,
    /// Whether it is one of a group: then [`Index::gate`] says when it may be posted.
    pub grouped: bool,
}

/// Whether a pod of a group may be bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gate {
    /// All have come.
    Open,
    /// Others are still to come.
    Wait,
    /// They did not come in time, or its place is gone.
    Closed,
}

/// Why a pod is not bound.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ReserveError {
    /// The index has no such pod.
    #[error("the pod is not known here yet; it is tried again")]
    Unknown,
    /// It asks for nothing, so nothing has to be chosen for it.
    #[error("the pod asks for no GPU")]
    NoGpu,
    /// Somebody was faster.
    #[error("the pod is on the node {0} already")]
    Bound(NodeName),
    /// It has a place elsewhere that cannot be taken back yet.
    #[error(
        "the pod may have been bound to the node {0} by a request whose answer was lost; until that is known it goes nowhere else"
    )]
    Elsewhere(NodeName),
    /// Twice at once.
    #[error("the pod is being bound already")]
    InFlight,
    /// The API server has no such node.
    #[error("there is no node {0}")]
    NoNode(NodeName),
    /// What it asks for makes no sense.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The room is gone.
    #[error("the node {node} has no room any more: {reason}; it is tried again")]
    NoRoom {
        /// Which.
        node: NodeName,
        /// Why.
        reason: String,
    },
    /// Its quota.
    #[error(transparent)]
    Quota(#[from] QuotaRefusal),
    /// What was chosen cannot be written.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// The same of one container.
    #[error(transparent)]
    Container(#[from] InvalidPlacement),
    /// Longer than an annotation is read.
    #[error("the placement has {0} bytes, more than are read; split the pod")]
    TooLong(usize),
    /// It has no place in its group's plan.
    #[error("the pods of its group have no place together at the moment; it is tried again")]
    NoPlan,
}

impl Index {
    /// Sets aside what a pod gets on a node.
    ///
    /// # Errors
    /// When it cannot be had; nothing changes then.
    pub fn reserve(&mut self, uid: &PodUid, node: &NodeName) -> Result<BindOrder, ReserveError> {
        if !self.nodes.get(node.as_str()).is_some_and(|node| node.exists) {
            return Err(ReserveError::NoNode(node.clone()));
        }
        let entry = self.pods.get(uid).ok_or(ReserveError::Unknown)?;
        match &entry.stand {
            Stand::Bound(held) => Err(ReserveError::Bound(held.node.clone())),
            Stand::Reserved(reservation) if reservation.held.node != *node => {
                Err(ReserveError::Elsewhere(reservation.held.node.clone()))
            }
            Stand::Reserved(reservation) => match reservation.state {
                State::Posting => Err(ReserveError::InFlight),
                State::Written { .. } => Err(ReserveError::Bound(node.clone())),
                State::Unsure { .. } => self.reserve_again(uid),
                State::Planned { called: true } => Err(ReserveError::InFlight),
                State::Planned { called: false } => self.reserve_planned(uid),
                State::Kept => self.reserve_kept(uid),
            },
            Stand::Waiting => self.reserve_new(uid, node),
            Stand::Vacant(_) => Err(ReserveError::Unknown),
        }
    }

    fn next_ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets)
    }

    fn reserve_new(&mut self, uid: &PodUid, node: &NodeName) -> Result<BindOrder, ReserveError> {
        let entry = self.pods.get(uid).ok_or(ReserveError::Unknown)?;
        let Some(ask) = entry.ask.clone() else { return Err(ReserveError::NoGpu) };
        let ask = (*ask).clone()?.ok_or(ReserveError::NoGpu)?;
        if self.group_needs_plan(entry) {
            return Err(ReserveError::NoPlan);
        }
        let namespace = entry.name.namespace.clone();
        let placement = self.choose(uid, node, &ask)?;
        let charge = self.charge(node, &holds_of(&placement));
        self.gates(&namespace, &BTreeMap::new())?.check(&charge)?;
        let ticket = self.set_aside(uid, placement, State::Posting);
        self.order(uid, ticket)
    }

    /// The same Binding once more: if it was written by now, the API server says so.
    fn reserve_again(&mut self, uid: &PodUid) -> Result<BindOrder, ReserveError> {
        let ticket = self.next_ticket();
        if let Some(reservation) = self.reservation_mut(uid) {
            (reservation.ticket, reservation.state) = (ticket, State::Posting);
        }
        self.order(uid, ticket)
    }

    fn reserve_planned(&mut self, uid: &PodUid) -> Result<BindOrder, ReserveError> {
        self.may_still_have(uid)?;
        let ticket = self.next_ticket();
        if let Some(reservation) = self.reservation_mut(uid) {
            (reservation.ticket, reservation.state) = (ticket, State::Planned { called: true });
        }
        self.open_group_of(uid);
        self.order(uid, ticket)
    }

    /// The others of its group have gone out, so it waits for nobody.
    fn reserve_kept(&mut self, uid: &PodUid) -> Result<BindOrder, ReserveError> {
        let may = self.may_still_have(uid);
        if may == Err(ReserveError::NoPlan) {
            // Another place may serve it.
            self.let_go(uid);
        }
        may?;
        self.reserve_again(uid)
    }

    /// Whether a place that was set aside a while ago may be used.
    fn may_still_have(&self, uid: &PodUid) -> Result<(), ReserveError> {
        let entry = self.pods.get(uid).ok_or(ReserveError::Unknown)?;
        let held = entry.held().ok_or(ReserveError::Unknown)?;
        // The quota may be another by now; what is planned is in its use already.
        let charge = held.charge.clone();
        let freed = BTreeMap::from([(entry.name.namespace.clone(), charge.clone())]);
        self.gates(&entry.name.namespace, &freed)?.check(&charge)?;
        if self.still_fits(uid) { Ok(()) } else { Err(ReserveError::NoPlan) }
    }

    /// Whether all GPUs of a reservation are still there, healthy, and handed over as they are
    /// asked for.
    pub(super) fn still_fits(&self, uid: &PodUid) -> bool {
        let Some(entry) = self.pods.get(uid) else { return false };
        let (Some(held), Some(ask)) = (entry.held(), entry.asks()) else { return false };
        let Some(node) = self.nodes.get(held.node.as_str()) else { return false };
        let asked = |exposure| ask.containers.iter().any(|c| c.handed.exposure() == exposure);
        held.holds.iter().all(|hold| {
            let mut units = node.gpus.iter().filter(|unit| unit.gpu == hold.gpu);
            units.any(|unit| unit.kind.healthy && asked(unit.kind.exposure))
        })
    }

    pub(super) fn reservation_mut(&mut self, uid: &PodUid) -> Option<&mut Reservation> {
        match &mut self.pods.get_mut(uid)?.stand {
            Stand::Reserved(reservation) => Some(reservation),
            Stand::Waiting | Stand::Bound(_) | Stand::Vacant(_) => None,
        }
    }

    fn order(&self, uid: &PodUid, ticket: Ticket) -> Result<BindOrder, ReserveError> {
        let entry = self.pods.get(uid).ok_or(ReserveError::Unknown)?;
        let Stand::Reserved(reservation) = &entry.stand else {
            return Err(ReserveError::Unknown);
        };
        Ok(BindOrder {
            ticket,
            pod: entry.name.clone(),
            uid: uid.clone(),
            node: reservation.held.node.clone(),
            placement: reservation.placement.clone(),
            grouped: matches!(reservation.state, State::Planned { .. }),
        })
    }

    pub(super) fn set_aside(
        &mut self,
        uid: &PodUid,
        placement: PodPlacement,
        state: State,
    ) -> Ticket {
        let ticket = self.next_ticket();
        let Some(entry) = self.pods.get(uid) else { return ticket };
        let namespace = entry.name.namespace.clone();
        let (node, holds) = (placement.node().clone(), holds_of(&placement));
        let held = self.charged(&namespace, node, holds);
        let (doubt, kept) = (None, None);
        let reservation = Box::new(Reservation { ticket, placement, held, state, doubt, kept });
        self.hold(uid, Stand::Reserved(reservation));
        ticket
    }

    /// The GPUs of a node for a pod, as what is written.
    pub(super) fn choose(
        &mut self,
        uid: &PodUid,
        node: &NodeName,
        ask: &Ask,
    ) -> Result<PodPlacement, ReserveError> {
        let (policy, mix) = (self.policy_of(ask), self.mix());
        let demand = ask.demand(&self.models);
        let known = self.nodes.get(node.as_str());
        let known = known.ok_or_else(|| ReserveError::NoNode(node.clone()))?;
        let room = known.room.and_then(|room| self.rooms.get(room)).ok_or(Reason::NoGpu);
        let placed = room.and_then(|room| place_on(policy, &mix, room, &demand));
        let placed = placed.map_err(|reason| ReserveError::NoRoom {
            node: node.clone(),
            reason: reason.to_string(),
        })?;
        let uuids = |at: usize| known.gpus.get(at).map(|unit| unit.gpu);
        write(uid, node, ask, &placed.choice, uuids)
    }

    pub(super) fn policy_of(&self, ask: &Ask) -> Policy {
        ask.terms.policy.unwrap_or(self.settings.policy)
    }

    /// What a pod counts for if it gets `holds` there; for tests and answers.
    pub fn usage_of(&self, namespace: &str) -> Usage {
        self.usage.get(namespace).cloned().unwrap_or_default()
    }
}

/// A choice as it is written, checked as whoever reads it checks it.
fn write(
    uid: &PodUid,
    node: &NodeName,
    ask: &Ask,
    choice: &Choice,
    uuids: impl Fn(usize) -> Option<gpuzone_core::GpuUuid>,
) -> Result<PodPlacement, ReserveError> {
    let mut containers: BTreeMap<ContainerName, Placement> = BTreeMap::new();
    for (ask, given) in ask.containers.iter().zip(choice.containers()) {
        let grants = given.iter().filter_map(|given| {
            let (memory, share) = (given.memory, given.share.as_share()?);
            Some(Grant { gpu: uuids(given.gpu)?, memory, share })
        });
        let grants: Vec<Grant> = grants.collect();
        if u32::try_from(grants.len()) != Ok(ask.gpus.get()) {
            let reason = "its GPUs have changed".to_owned();
            return Err(ReserveError::NoRoom { node: node.clone(), reason });
        }
        containers.insert(ask.container.clone(), Placement::of(grants)?);
    }
    let placement = PodPlacement::new(node.clone(), uid.clone(), containers)?;
    let text = placement.to_string();
    if text.len() > MAX_PLACEMENT_BYTES {
        return Err(ReserveError::TooLong(text.len()));
    }
    match text.parse::<PodPlacement>() {
        Ok(read) if read == placement => Ok(placement),
        Ok(_) => Err(ReserveError::TooLong(text.len())),
        Err(error) => Err(error.into()),
    }
}
