//! Time that is earned at a rate: a part of each second.

use gpuzone_core::ComputeShare;
use gpuzone_wire::stats::Monotonic;

/// How many quanta it holds at most.
const QUANTA: i64 = 2;
/// Less than this is not worth a turn: it would be over before the worker hears of it.
const WORTH: i64 = 500_000;

/// Earned time, in nanoseconds, up to a bound; below zero when more was used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    percent: i64,
    most: i64,
    level: i64,
    at: Monotonic,
}

fn signed(nanoseconds: u64) -> i64 {
    i64::try_from(nanoseconds).unwrap_or(i64::MAX)
}

impl Bucket {
    pub(super) fn full(rate: ComputeShare, quantum: i64, now: Monotonic) -> Self {
        let most = quantum.saturating_mul(QUANTA);
        Self { percent: rate.percent().into(), most, level: most, at: now }
    }

    /// What may be used now.
    pub(super) fn left(&self, now: Monotonic) -> i64 {
        self.level.saturating_add(self.earned(now)).min(self.most)
    }

    /// Takes out what was used.
    pub(super) fn pay(&mut self, used: u64, now: Monotonic) {
        // What was earned meanwhile counts, however long that was: it is bounded after.
        let level = self.level.saturating_add(self.earned(now)).saturating_sub(signed(used));
        (self.level, self.at) = (level.min(self.most), now);
    }

    /// A turn begins: what was earned before it is bounded now.
    pub(super) fn begin(&mut self, now: Monotonic) {
        self.pay(0, now);
    }

    fn earned(&self, now: Monotonic) -> i64 {
        signed(now.nanoseconds_since(self.at)).saturating_mul(self.percent) / 100
    }

    /// Puts back what was taken out and not used.
    pub(super) fn give_back(&mut self, unused: u64) {
        self.level = self.level.saturating_add(signed(unused)).min(self.most);
    }

    fn worth(&self) -> i64 {
        WORTH.min(self.most / 2).max(1)
    }

    /// Whether there is enough for a turn.
    pub(super) fn is_open(&self, now: Monotonic) -> bool {
        self.left(now) >= self.worth()
    }

    /// When there is enough for a turn again; `None` when there is now.
    pub(super) fn open_at(&self, now: Monotonic) -> Option<Monotonic> {
        let missing = self.worth() - self.left(now);
        let wait = missing.saturating_mul(100) / self.percent + 1;
        let wait = u64::try_from(wait).unwrap_or(0);
        (missing > 0).then(|| Monotonic::from_nanoseconds(now.nanoseconds().saturating_add(wait)))
    }

    /// When it is empty, if it is used without a pause from `since` on. Never, at a rate of 100.
    pub(super) fn empty_at(&self, since: Monotonic) -> Monotonic {
        let drain = 100 - self.percent;
        let lasts = match drain {
            0 => i64::MAX,
            _ => self.left(since).max(0).saturating_mul(100) / drain,
        };
        let lasts = u64::try_from(lasts).unwrap_or(0);
        Monotonic::from_nanoseconds(since.nanoseconds().saturating_add(lasts))
    }
}
