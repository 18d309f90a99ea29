//! Who gets the GPU next: deficit round robin over measured time. No clock and no I/O: what
//! happened goes in with its moment, what is to be done comes out.
//!
//! ```text
//!            want                 grant                  recall
//!   idle ─────────────▶ waiting ─────────▶ holding ──────────────▶ recalled
//!    ▲                     ▲                  │ yields                  │ yields, or overruns
//!    └─────────────────────┴──────────────────┴─────────────────────────┘
//! ```
//!
//! Each round, a member that wants the GPU earns a part of the round by its weight, and a turn
//! is charged what it took. Who overdraws waits until its earnings cover it; who does not want
//! the GPU earns nothing, so nobody hoards. Time in which nobody else waited makes no debts.
//!
//! Who is deep in debt does not get the GPU because the others pause for a moment: it is kept free
//! for them meanwhile, and the debt is worked off as if they used it.
//!
//! Before the round come those that are latency-critical, up to their share, and, once a round,
//! who was in the middle of its turn when it paused for a moment.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use gpuzone_core::{ComputeShare, LeaseId};
use gpuzone_wire::stats::Monotonic;
use gpuzone_wire::turn::{FairTime, Priority};

use super::member::{Member, Stretch};

/// Shorter turns are not worth the change: earnings add up until they are worth this.
pub(super) const SHORTEST: i64 = 1_000_000;

/// What is free of charge in a turn that others wait for, besides a quarter of it: about what it
/// takes to hear of a turn and to give it back, in nanoseconds.
const CHANGE_OF_TURNS: u64 = 100_000;

/// Time of a turn in which the GPU did not work, as far as it is free of charge.
struct Unused {
    /// While nobody else waited.
    alone: u64,
    /// While somebody did.
    contended: u64,
}

/// What is free of charge of a turn that was `held` so long, for the last `waited` of it with
/// somebody waiting, in which the GPU worked for `used`.
fn unused(held: u64, waited: u64, used: u64) -> Unused {
    let unused = held.saturating_sub(used);
    let part = u128::from(unused) * u128::from(waited) / u128::from(held.max(1));
    let part = u64::try_from(part).unwrap_or(unused).min(unused);
    let free = (waited / 4).saturating_add(CHANGE_OF_TURNS).min(waited / 2);
    Unused { alone: unused - part, contended: part.min(free) }
}

/// What a lease gets of a GPU's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    /// Its part while others want the GPU.
    pub(crate) weight: ComputeShare,
    /// Its part at most, if there is such a limit.
    pub(crate) cap: Option<ComputeShare>,
    pub(crate) priority: Priority,
    /// Nobody is ended for keeping it waiting.
    pub(crate) patient: bool,
}

/// What is to be told to a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// The GPU is its own until it is recalled; `brief` as in [`Action::Brief`].
    Grant { lease: LeaseId, contended: bool, brief: bool },
    /// Somebody waits from now on.
    Contended { lease: LeaseId },
    /// From now on it is to have no more work ahead than keeps the GPU busy: somebody may come
    /// who must not wait long.
    Brief { lease: LeaseId },
    /// It is to finish and yield.
    Recall { lease: LeaseId },
    /// It was recalled and does not yield: it is to be ended. Said once.
    Overrun { lease: LeaseId },
}

/// Who has the GPU.
#[derive(Debug)]
struct Turn {
    lease: LeaseId,
    granted: Monotonic,
    /// Until when it is charged or passed over already.
    settled: Monotonic,
    /// Until when it may be kept while others wait.
    until: Monotonic,
    /// Since when others wait, if they do.
    contended: Option<Monotonic>,
    recalled: bool,
    /// Since when somebody who may have it ended waits for its end.
    late: Option<Monotonic>,
    overrun: bool,
    /// Whether it was told to have little ahead.
    brief: bool,
}

impl Turn {
    /// What was not charged yet.
    fn stretch(&self, now: Monotonic) -> Stretch {
        Stretch { from: self.settled, to: now, contended: self.contended.is_some() }
    }
}

/// The turns of one GPU.
#[derive(Debug)]
pub(crate) struct Schedule {
    quantum: i64,
    watchdog: u64,
    members: BTreeMap<LeaseId, Member>,
    /// Those whose worker is gone and whose next one is not there yet.
    away: BTreeMap<LeaseId, Member>,
    /// The round; the first is next.
    round: VecDeque<LeaseId>,
    turn: Option<Turn>,
    /// Since when the GPU is kept free for those who pause, as far as debtors had that time
    /// counted.
    reserved: Option<Monotonic>,
}

pub(super) fn signed(nanoseconds: u64) -> i64 {
    i64::try_from(nanoseconds).unwrap_or(i64::MAX)
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

pub(super) fn after(moment: Monotonic, nanoseconds: u64) -> Monotonic {
    Monotonic::from_nanoseconds(moment.nanoseconds().saturating_add(nanoseconds))
}

impl Schedule {
    /// The turns of a GPU that nobody uses yet.
    pub(crate) fn new(config: FairTime) -> Self {
        Self {
            quantum: signed(nanoseconds(config.quantum())),
            watchdog: nanoseconds(config.watchdog()),
            members: BTreeMap::new(),
            away: BTreeMap::new(),
            round: VecDeque::new(),
            turn: None,
            reserved: None,
        }
    }

    /// A lease comes; it has no turn and wants none yet. One that was there before owes what it
    /// owed then: a worker that is ended for keeping the GPU does not leave with the bill.
    pub(crate) fn join(&mut self, lease: LeaseId, terms: Terms, now: Monotonic) {
        self.leave(lease, now);
        let mut member = Member::new(terms, self.quantum, now);
        if let Some(earlier) = self.away.remove(&lease) {
            member.take_over(earlier);
        }
        self.members.insert(lease, member);
        self.round.push_back(lease);
    }

    /// A lease's worker goes, and its turn with it; another one may come.
    pub(crate) fn leave(&mut self, lease: LeaseId, now: Monotonic) {
        self.round.retain(|other| *other != lease);
        let turn = self.turn.take_if(|turn| turn.lease == lease);
        if let Some(mut member) = self.members.remove(&lease) {
            if let Some(turn) = turn {
                member.charge(turn.stretch(now));
            }
            self.away.insert(lease, member);
        }
    }

    /// A lease is over: what it owed concerns nobody any more.
    pub(crate) fn forget(&mut self, lease: LeaseId, now: Monotonic) {
        self.leave(lease, now);
        self.away.remove(&lease);
    }

    /// A lease has work and no turn.
    pub(crate) fn want(&mut self, lease: LeaseId, now: Monotonic) {
        if let Some(member) = self.members.get_mut(&lease) {
            member.want(now);
        }
    }

    /// A lease gives its turn back. `used` is how long it says that the GPU worked for it. Of the
    /// time in which others waited only a small part may be unused free of charge ([`unused`]): a
    /// turn that is kept is lost to them, worked or not.
    pub(crate) fn yielded(&mut self, lease: LeaseId, used: u64, wants: bool, now: Monotonic) {
        if self.turn.as_ref().is_none_or(|turn| turn.lease != lease) {
            // It had none: said after it was forgotten, and of no consequence.
            return self.want_if(lease, wants, now);
        }
        let Some(turn) = self.turn.take() else { return };
        let held = now.nanoseconds_since(turn.granted);
        let since = turn.contended.map_or(now, |since| since.max(turn.granted));
        let unused = unused(held, now.nanoseconds_since(since), used);
        let Some(member) = self.members.get_mut(&lease) else { return };
        member.charge(turn.stretch(now));
        member.give_back(unused.alone.saturating_add(unused.contended), unused.contended);
        member.pause(u64::try_from(self.quantum).unwrap_or(0), turn.recalled, now);
        self.want_if(lease, wants, now);
    }

    fn want_if(&mut self, lease: LeaseId, wants: bool, now: Monotonic) {
        if wants {
            self.want(lease, now);
        }
    }

    /// What is to be done now.
    pub(crate) fn poll(&mut self, now: Monotonic) -> Vec<Action> {
        let mut actions = Vec::new();
        match self.turn.take() {
            Some(turn) => self.turn = Some(self.watch(turn, now, &mut actions)),
            None => {
                self.work_off_debts(now);
                if let Some(lease) = self.next(now) {
                    self.grant(lease, now, &mut actions);
                } else {
                    self.reserved = self.reserved_until(now).map(|_| now);
                }
            }
        }
        actions
    }

    /// When to poll again if nothing happens before.
    pub(crate) fn wake_at(&self, now: Monotonic) -> Option<Monotonic> {
        let Some(turn) = &self.turn else {
            let waiting = self.members.values().filter(|member| member.wants);
            let opens = waiting.filter_map(|member| member.cap.as_ref()?.open_at(now));
            return opens.chain(self.reserved_until(now)).min();
        };
        if turn.recalled {
            return turn.late.filter(|_| !turn.overrun).map(|late| after(late, self.watchdog));
        }
        let member = self.members.get(&turn.lease)?;
        let capped = member.cap.as_ref().map(|cap| cap.empty_at(turn.granted));
        let over = turn.contended.map(|_| turn.until);
        capped.into_iter().chain(over).min()
    }

    fn grant(&mut self, lease: LeaseId, now: Monotonic, actions: &mut Vec<Action>) {
        let contended = self.others_want(lease);
        let brief = self.must_be_brief(lease);
        if let Some(member) = self.members.get_mut(&lease) {
            member.begin(now);
        }
        self.turn = Some(Turn {
            lease,
            granted: now,
            settled: now,
            until: self.members.get(&lease).map_or(now, |member| after(now, member.slice(now))),
            contended: contended.then_some(now),
            recalled: false,
            late: None,
            overrun: false,
            brief,
        });
        actions.push(Action::Grant { lease, contended, brief });
    }

    /// Looks after the turn under way.
    fn watch(&mut self, mut turn: Turn, now: Monotonic, actions: &mut Vec<Action>) -> Turn {
        let lease = turn.lease;
        if turn.recalled {
            self.watch_for_the_end(&mut turn, now, actions);
            return turn;
        }
        if turn.contended.is_none() && self.others_want(lease) {
            // Free of charge until now.
            if let Some(member) = self.members.get_mut(&lease) {
                member.charge(turn.stretch(now));
            }
            turn.contended = Some(now);
            self.extend(&mut turn, now);
            actions.push(Action::Contended { lease });
        }
        if !turn.brief && self.must_be_brief(lease) {
            turn.brief = true;
            actions.push(Action::Brief { lease });
        }
        if self.is_over(&mut turn, now) {
            turn.recalled = true;
            actions.push(Action::Recall { lease });
            self.watch_for_the_end(&mut turn, now, actions);
        }
        turn
    }

    fn watch_for_the_end(&self, turn: &mut Turn, now: Monotonic, actions: &mut Vec<Action>) {
        // Its time counts from when somebody waits: until then it did no harm.
        let late = self.is_waited_for(turn.lease).then(|| turn.late.unwrap_or(now));
        turn.late = late;
        if !turn.overrun && late.is_some_and(|late| now >= after(late, self.watchdog)) {
            turn.overrun = true;
            actions.push(Action::Overrun { lease: turn.lease });
        }
    }

    fn is_over(&mut self, turn: &mut Turn, now: Monotonic) -> bool {
        let Some(member) = self.members.get(&turn.lease) else { return true };
        if member.cap.as_ref().is_some_and(|cap| now >= cap.empty_at(turn.granted)) {
            return true;
        }
        if turn.contended.is_none() {
            return false;
        }
        let first = self.urgent(now).or_else(|| self.resuming(now));
        if first.is_some_and(|first| first != turn.lease) && !member.is_urgent(turn.granted) {
            return true;
        }
        if now < turn.until {
            return false;
        }
        // Where it would be the next again, it just goes on.
        if let Some(member) = self.members.get_mut(&turn.lease) {
            member.charge(turn.stretch(now));
            member.wants = true;
        }
        turn.settled = now;
        let next = self.next(now);
        if let Some(member) = self.members.get_mut(&turn.lease) {
            member.wants = false;
        }
        self.extend(turn, now);
        next.is_some_and(|next| next != turn.lease)
    }

    fn extend(&self, turn: &mut Turn, now: Monotonic) {
        turn.settled = now;
        let slice = self.members.get(&turn.lease).map_or(0, |member| member.slice(now));
        turn.until = after(now, slice);
    }

    fn others_want(&self, lease: LeaseId) -> bool {
        self.members.iter().any(|(other, member)| *other != lease && member.wants)
    }

    /// Whether somebody waits who may have it ended.
    fn is_waited_for(&self, lease: LeaseId) -> bool {
        let mut others = self.members.iter().filter(|(other, _)| **other != lease);
        others.any(|(_, member)| member.wants && !member.patient)
    }

    /// Whether another one is here that must not wait long, whether it wants anything now or not.
    fn must_be_brief(&self, lease: LeaseId) -> bool {
        self.members.iter().any(|(other, member)| *other != lease && member.urgent.is_some())
    }

    /// A member that goes on with the turn in which it paused.
    fn resuming(&self, now: Monotonic) -> Option<LeaseId> {
        let mut members = self.members.iter();
        members.find(|(_, member)| member.resumes && member.is_ready(now)).map(|(lease, _)| *lease)
    }

    /// A latency-critical member that wants the GPU and has something left to use ahead of the
    /// others; the one with most left.
    fn urgent(&self, now: Monotonic) -> Option<LeaseId> {
        let ready = self.members.iter().filter(|(_, member)| member.is_ready(now));
        let left = |member: &Member| Some(member.urgent.as_ref()?.left(now));
        let urgent = ready.filter(|(_, member)| member.is_urgent(now));
        urgent.max_by_key(|(_, member)| left(member)).map(|(lease, _)| *lease)
    }

    /// Until when the GPU is kept free for those who pause, because all who are ready are deep in
    /// debt.
    fn reserved_until(&self, now: Monotonic) -> Option<Monotonic> {
        let mut ready = self.members.values().filter(|member| member.is_ready(now)).peekable();
        ready.peek()?;
        let reserved = ready.all(Member::is_deep_in_debt);
        let pausing = self.members.values().filter_map(|member| member.pauses_until(now));
        pausing.max().filter(|_| reserved)
    }

    /// The time for which the GPU was kept free counts as if those had used it for whom it was.
    fn work_off_debts(&mut self, now: Monotonic) {
        let Some(since) = self.reserved.take() else { return };
        let owing = |member: &Member| member.is_deep_in_debt() && member.is_ready(now);
        let others = self.members.values().filter(|member| member.uses_until >= since);
        let others = others.filter(|member| !owing(member)).map(|member| member.weight).sum();
        for debtor in self.members.values_mut().filter(|member| owing(member)) {
            debtor.work_off(now.nanoseconds_since(since), others);
        }
    }

    /// Who is next, after as many rounds as that takes.
    fn next(&mut self, now: Monotonic) -> Option<LeaseId> {
        if let Some(first) = self.urgent(now).or_else(|| self.resuming(now)) {
            return Some(first);
        }
        if self.reserved_until(now).is_some() {
            return None;
        }
        let ready: Vec<LeaseId> =
            self.round.iter().filter(|l| self.ready(**l, now)).copied().collect();
        let weights = ready.iter().filter_map(|lease| self.members.get(lease)).map(|m| m.weight);
        let mean = (weights.sum::<i64>() / signed(ready.len() as u64).max(1)).max(1);
        let quantum = self.quantum;
        let earns = |member: &Member| (quantum.saturating_mul(member.weight) / mean).max(1);
        // Rounds in which nobody would have enough for a turn go by at once.
        let lacks = |lease: &LeaseId| {
            let member = self.members.get(lease)?;
            let missing = SHORTEST.saturating_sub(member.deficit).max(0);
            Some((missing.saturating_add(earns(member) - 1)) / earns(member))
        };
        let rounds = ready.iter().filter_map(lacks).min()?;
        let skipped = (rounds - 1).max(0);
        // Not when none is: who just pauses keeps what it has until the round comes to it.
        for member in self.members.values_mut().filter(|_| skipped > 0) {
            member.earn(earns(member), skipped, now);
        }
        // The first may have something left; the others earn when the round comes to them.
        for _ in 0..=self.round.len() {
            let lease = *self.round.front()?;
            let member = self.members.get(&lease)?;
            if member.is_ready(now) && member.deficit >= SHORTEST {
                return Some(lease);
            }
            self.round.rotate_left(1);
            let lease = *self.round.front()?;
            if let Some(member) = self.members.get_mut(&lease) {
                member.earn(earns(member), 1, now);
            }
        }
        None
    }

    fn ready(&self, lease: LeaseId, now: Monotonic) -> bool {
        self.members.get(&lease).is_some_and(|member| member.is_ready(now))
    }
}

#[cfg(test)]
#[path = "simulation.rs"]
mod simulation;

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "schedule_promises.rs"]
mod promises;

#[cfg(test)]
#[path = "schedule_debts.rs"]
mod debts;
