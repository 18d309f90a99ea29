//! A lease on one GPU: what it may use, and what it used.

use gpuzone_wire::stats::Monotonic;
use gpuzone_wire::turn::Priority;

use super::bucket::Bucket;
use super::schedule::{SHORTEST, Terms, after, signed};

/// How many rounds' earnings a member has at most.
const ROUNDS: i64 = 2;
/// Who owes more quanta than this does not get the GPU because others pause for a moment.
const DEEP: i64 = 25;
/// How long a member may pause until its time is anybody's, those deep in debt included.
const PAUSE: u64 = 8_000_000;

#[derive(Debug)]
pub(super) struct Member {
    pub(super) weight: i64,
    pub(super) wants: bool,
    /// Nobody is ended for keeping it waiting.
    pub(super) patient: bool,
    /// Nanoseconds that it may use; negative when it used more than it had.
    pub(super) deficit: i64,
    /// What it may use ahead of the round, for one that is latency-critical.
    pub(super) urgent: Option<Bucket>,
    pub(super) cap: Option<Bucket>,
    /// Until when it keeps what it had left when it gave its turn back.
    kept: Monotonic,
    /// Its turn ended in a pause of its own and it came back before long: it goes on.
    pub(super) resumes: bool,
    /// It went on once already since it earned something.
    resumed: bool,
    /// Below this it is deep in debt.
    deep: i64,
    /// Until when it counts as one that uses the GPU and only pauses.
    pub(super) uses_until: Monotonic,
}

/// A stretch of a turn that is to be charged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stretch {
    pub(super) from: Monotonic,
    pub(super) to: Monotonic,
    /// Whether others waited.
    pub(super) contended: bool,
}

impl Member {
    pub(super) fn new(terms: Terms, quantum: i64, now: Monotonic) -> Self {
        let urgent = match terms.priority {
            Priority::Batch => None,
            Priority::LatencyCritical => Some(Bucket::full(terms.weight, quantum, now)),
        };
        Self {
            weight: terms.weight.percent().into(),
            wants: false,
            patient: terms.patient,
            deficit: 0,
            urgent,
            cap: terms.cap.map(|cap| Bucket::full(cap, quantum, now)),
            kept: now,
            resumes: false,
            resumed: false,
            deep: quantum.saturating_mul(-DEEP),
            uses_until: now,
        }
    }

    /// It is the same lease with its next worker: what it owes stays owed, and a cap is no wider
    /// for it.
    pub(super) fn take_over(&mut self, earlier: Self) {
        self.deficit = earlier.deficit.min(0);
        self.urgent = self.urgent.take().map(|fresh| earlier.urgent.unwrap_or(fresh));
        self.cap = self.cap.take().map(|fresh| earlier.cap.unwrap_or(fresh));
    }

    /// It has work. One that comes back from a short pause in its turn goes on with it, once
    /// between two earnings: a program that stumbles keeps its share, and one that comes and
    /// goes on purpose does not break everybody else's turns.
    pub(super) fn want(&mut self, now: Monotonic) {
        self.resumes |= !self.resumed && now < self.kept && self.deficit >= SHORTEST;
        self.wants = true;
    }

    /// Its turn begins.
    pub(super) fn begin(&mut self, now: Monotonic) {
        for bucket in [&mut self.urgent, &mut self.cap].into_iter().flatten() {
            bucket.begin(now);
        }
        self.resumed |= self.resumes;
        (self.wants, self.resumes) = (false, false);
    }

    /// It gave its turn back. What it had left is kept for `kept` nanoseconds.
    pub(super) fn pause(&mut self, kept: u64, recalled: bool, now: Monotonic) {
        self.wants = false;
        self.kept = after(now, kept);
        self.uses_until = after(now, PAUSE);
        // Whose turn was called back did not pause, and has its place in the round.
        self.resumed |= recalled;
    }

    /// It owes so much that nobody's moment of rest is its chance: what it would start then, it
    /// may keep for as long as it did before.
    pub(super) fn is_deep_in_debt(&self) -> bool {
        self.deficit < self.deep
    }

    /// Until when it has a claim to a GPU that is free because it pauses, if it has.
    pub(super) fn pauses_until(&self, now: Monotonic) -> Option<Monotonic> {
        let pauses = !self.is_ready(now) && !self.is_deep_in_debt() && now < self.uses_until;
        pauses.then_some(self.uses_until)
    }

    /// Works off a debt with time in which the GPU was kept free of it.
    pub(super) fn work_off(&mut self, time: u64, others: i64) {
        let earned = i128::from(time) * i128::from(self.weight) / i128::from(others.max(1));
        let earned = i64::try_from(earned).unwrap_or(i64::MAX);
        self.deficit = self.deficit.saturating_add(earned).min(0);
    }

    pub(super) fn is_ready(&self, now: Monotonic) -> bool {
        self.wants && self.cap.as_ref().is_none_or(|cap| cap.is_open(now))
    }

    pub(super) fn is_urgent(&self, now: Monotonic) -> bool {
        self.urgent.as_ref().is_some_and(|bucket| bucket.is_open(now))
    }

    /// How long a turn of it is that begins or goes on now.
    pub(super) fn slice(&self, now: Monotonic) -> u64 {
        let urgent = self.urgent.as_ref().map_or(0, |bucket| bucket.left(now));
        u64::try_from(self.deficit.max(urgent).max(SHORTEST / 2)).unwrap_or(0)
    }

    /// Some rounds go by in which it earns `each`. Nobody saves up for later, but what is owed is
    /// worked off while others have the GPU.
    pub(super) fn earn(&mut self, each: i64, rounds: i64, now: Monotonic) {
        let earned = each.saturating_mul(rounds);
        if self.is_ready(now) {
            let most = each.saturating_mul(ROUNDS).max(SHORTEST);
            let more = self.deficit.saturating_add(earned);
            self.deficit = more.min(most.max(self.deficit));
            self.resumed = false;
        } else if self.deficit <= 0 || now >= self.kept {
            self.deficit = self.deficit.min(0).saturating_add(earned).min(0);
        }
    }

    /// Charges a stretch of its turn. Where nobody waited, the time counts towards what is owed,
    /// and uses up what was earned: it had that time, and owes nobody for more.
    pub(super) fn charge(&mut self, stretch: Stretch) {
        let passed = stretch.to.nanoseconds_since(stretch.from);
        for bucket in [&mut self.urgent, &mut self.cap].into_iter().flatten() {
            bucket.pay(passed, stretch.to);
        }
        let time = signed(passed);
        self.deficit = match (stretch.contended, self.deficit) {
            (true, deficit) => deficit.saturating_sub(time),
            (false, deficit @ ..0) => deficit.saturating_add(time).min(0),
            (false, deficit) => deficit.saturating_sub(time).max(0),
        };
    }

    /// What was charged and not used: of all, and of the time in which others waited.
    pub(super) fn give_back(&mut self, unused: u64, contended: u64) {
        self.deficit = self.deficit.saturating_add(signed(contended));
        for bucket in [&mut self.urgent, &mut self.cap].into_iter().flatten() {
            bucket.give_back(unused);
        }
    }
}
