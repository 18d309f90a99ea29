//! What became of Bindings: what the API server answers, what a look at a pod shows, and what that
//! does to the place that was set aside.

use std::time::Duration;

use gpuzone_api::kubernetes::{NodeName, PodUid};

use super::bind::{Reservation, State};
use super::pods::{PodEntry, Stand};
use super::{BindOrder, Index, Moment, Ticket};
use crate::view::{PodName, PodView};

/// A Binding whose answer was lost may still be carried out: the API server gives a request up
/// after a minute.
const LATE: Duration = Duration::from_secs(75);
/// A pod that was bound is seen within moments; whoever is not is looked at.
const UNSEEN: Duration = Duration::from_secs(20);

/// What became of a Binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It is written.
    Written,
    /// It is not, and will not be.
    Refused,
    /// Nobody knows.
    Unsure,
}

/// Why it is not known at once what became of a Binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// The API server refuses it as the state is: the pod may be bound already.
    Conflict,
    /// No answer came, or none that says it: it may still be carried out.
    Lost,
}

/// What became of a pod's Binding, and of the place that was set aside for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Concluded {
    /// The pod is where it was to go, with what it was to get.
    Bound,
    /// Somebody else bound it, there.
    Elsewhere(Option<NodeName>),
    /// There is no such pod any more.
    Gone,
    /// It is not bound, and will not be; its place is free.
    Refused,
    /// It is not bound, and others of its group are or may be: its place is kept for the group's time.
    Kept,
    /// Nobody knows yet; its place is kept.
    Unsure,
}

/// What a look at the API server showed.
#[derive(Clone, Debug, PartialEq)]
pub enum Look {
    /// There is no such pod.
    Gone,
    /// It is there and has no node.
    Unbound,
    /// It is on a node.
    OnNode(Box<PodView>),
}

/// A pod that has to be looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overdue {
    /// Which try.
    pub ticket: Ticket,
    /// The pod.
    pub pod: PodName,
    /// Which one of that name.
    pub uid: PodUid,
}

impl Reservation {
    /// No answer came to its Binding.
    fn lost(&mut self, now: Moment) {
        (self.state, self.doubt) = (State::Unsure { since: now }, Some(now));
    }
}

impl Index {
    /// What became of a Binding that was ordered. One that is not the last of its pod's changes
    /// nothing.
    pub fn settle(
        &mut self,
        uid: &PodUid,
        ticket: Ticket,
        settled: Settled,
        now: Moment,
    ) -> Concluded {
        let last = self.reservation_mut(uid).filter(|reservation| reservation.ticket == ticket);
        match (settled, last) {
            (Settled::Written, last) => {
                if let Some(reservation) = last {
                    reservation.state = State::Written { since: now };
                }
                Concluded::Bound
            }
            (Settled::Unsure, last) => {
                if let Some(reservation) = last {
                    reservation.lost(now);
                }
                Concluded::Unsure
            }
            (Settled::Refused, Some(_)) => self.refused(uid, now),
            (Settled::Refused, None) => Concluded::Refused,
        }
    }

    /// The last try of a pod will not be carried out. An earlier one may, or may have been and was not seen
    /// here yet: that a look says, when it is too late for it.
    fn refused(&mut self, uid: &PodUid, now: Moment) -> Concluded {
        let Some(reservation) = self.reservation_mut(uid) else { return Concluded::Refused };
        if let Some(since) = reservation.doubt {
            reservation.state = State::Unsure { since };
            return Concluded::Unsure;
        }
        self.not_bound(uid, now)
    }

    /// No try of a pod was carried out, or will be.
    fn not_bound(&mut self, uid: &PodUid, now: Moment) -> Concluded {
        if let Some(reservation) = self.reservation_mut(uid) {
            reservation.doubt = None;
        }
        if self.keep_for_group(uid, now) {
            return Concluded::Kept;
        }
        self.let_go(uid);
        Concluded::Refused
    }

    /// Whoever saw to a bind is gone without a word: a Binding that may be on its way is looked at, and a
    /// place whose Binding never began is given back.
    pub fn abandoned(&mut self, uid: &PodUid, ticket: Ticket, now: Moment) {
        let Some(reservation) = self.reservation_mut(uid) else { return };
        if reservation.ticket != ticket {
            return;
        }
        match reservation.state {
            State::Posting => reservation.lost(now),
            State::Planned { called: true } => self.let_go(uid),
            State::Planned { called: false }
            | State::Unsure { .. }
            | State::Written { .. }
            | State::Kept => {}
        }
    }

    /// What becomes of a Binding in doubt, whose pod was looked at since; `None` when that failed.
    pub fn conclude(
        &mut self,
        order: &BindOrder,
        doubt: Doubt,
        look: Option<Look>,
        now: Moment,
    ) -> Concluded {
        let settled = match (look, doubt) {
            (Some(Look::OnNode(view)), _) => {
                let placed = view.placement.as_ref() == Some(&order.placement);
                let ours = placed && view.node.as_ref() == Some(&order.node);
                let node = view.node.clone();
                self.looked(&order.uid, order.ticket, Look::OnNode(view), now);
                return if ours { Concluded::Bound } else { Concluded::Elsewhere(node) };
            }
            (Some(Look::Gone), _) => {
                self.looked(&order.uid, order.ticket, Look::Gone, now);
                return Concluded::Gone;
            }
            (Some(Look::Unbound), Doubt::Conflict) => Settled::Refused,
            (Some(Look::Unbound), Doubt::Lost) | (None, _) => Settled::Unsure,
        };
        self.settle(&order.uid, order.ticket, settled, now)
    }

    /// Whether a Binding without an answer may still be carried out.
    pub fn in_doubt(&self, now: Moment) -> bool {
        self.pods.values().any(|entry| match &entry.stand {
            Stand::Reserved(held) => {
                held.doubt.is_some_and(|since| now.saturating_sub(since) <= LATE)
                    && !matches!(held.state, State::Written { .. })
            }
            Stand::Waiting | Stand::Bound(_) | Stand::Vacant(_) => false,
        })
    }

    /// Takes a reservation back; whoever waits for that room hears of it.
    pub(super) fn let_go(&mut self, uid: &PodUid) {
        let node = self.pods.get(uid).and_then(PodEntry::held).map(|held| held.node.clone());
        self.unhold(uid);
        self.favours.extend(node);
    }

    /// Pods that have to be looked at: whose answer was lost, or who were not seen for long.
    pub fn overdue(&self, now: Moment) -> Vec<Overdue> {
        let late = self.pods.iter().filter_map(|(uid, entry)| {
            let Stand::Reserved(reservation) = &entry.stand else { return None };
            let due = match reservation.state {
                State::Planned { .. } | State::Posting | State::Kept => false,
                State::Unsure { .. } => true,
                State::Written { since } => now.saturating_sub(since) > UNSEEN,
            };
            let (ticket, pod) = (reservation.ticket, entry.name.clone());
            due.then(|| Overdue { ticket, pod, uid: uid.clone() })
        });
        late.collect()
    }

    /// What a look at a pod showed. A lost Binding is given up only when it cannot be carried out
    /// any more.
    pub fn looked(&mut self, uid: &PodUid, ticket: Ticket, look: Look, now: Moment) {
        let Some(reservation) = self.reservation_mut(uid) else { return };
        if reservation.ticket != ticket {
            return;
        }
        let state = reservation.state;
        match look {
            Look::Gone => self.remove_pod(uid),
            Look::OnNode(view) => self.apply_pod(*view),
            Look::Unbound => match state {
                State::Unsure { since } if now.saturating_sub(since) > LATE => {
                    self.not_bound(uid, now);
                }
                State::Unsure { .. }
                | State::Planned { .. }
                | State::Posting
                | State::Written { .. }
                | State::Kept => {}
            },
        }
    }
}
