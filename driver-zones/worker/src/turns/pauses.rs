//! How long a lease's programs pause between pieces of work, and so how long it is worth keeping
//! a turn for the next one.
//!
//! A program that waits for each kernel launches the next one a moment later. A turn that is given
//! back in that moment is lost for a round; one that is kept for long leaves the GPU unused. So a
//! turn is kept for about as long as the pauses before were, if those were short beside the work.

/// How many pauses are remembered.
const REMEMBERED: usize = 16;
/// A turn is kept this long before anything is known, in nanoseconds.
const UNKNOWN: u64 = 300_000;
/// And never longer than this.
const LONGEST: u64 = 2_000_000;
/// A pause of this length is short, however short the work is.
const SHORT: u64 = 300_000;
/// Fewer pauses than this say nothing.
const ENOUGH: usize = 4;

#[derive(Debug, Default)]
pub(super) struct Pauses {
    /// The last ones; the oldest is overwritten first.
    last: [u64; REMEMBERED],
    seen: usize,
    /// How long a piece of work took, on average.
    work: u64,
    kept: Option<u64>,
}

impl Pauses {
    /// A piece of work was done without a pause.
    pub(super) fn worked(&mut self, nanoseconds: u64) {
        self.work = self.work / 2 + nanoseconds / 2;
    }

    /// There was nothing to do for so long.
    pub(super) fn saw(&mut self, nanoseconds: u64) {
        if let Some(oldest) = self.last.get_mut(self.seen % REMEMBERED) {
            *oldest = nanoseconds;
        }
        self.seen += 1;
        self.kept = (self.seen >= ENOUGH).then(|| self.judge());
    }

    /// How long a turn is kept with nothing to do, while others wait for it.
    pub(super) fn worth_waiting(&self) -> u64 {
        self.kept.unwrap_or(UNKNOWN)
    }

    fn judge(&self) -> u64 {
        let mut last = self.last;
        let last = last.get_mut(..self.seen.min(REMEMBERED)).unwrap_or_default();
        last.sort_unstable();
        let at = |place: usize| last.get(place).copied().unwrap_or(u64::MAX);
        let (half, most) = (at(last.len() / 2), at(last.len() * 7 / 8));
        // More pause than work: the others make more of that time.
        if half > self.work.max(SHORT) || most > LONGEST {
            return 0;
        }
        most.saturating_mul(2).clamp(SHORT / 3, LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICROSECOND: u64 = 1_000;

    fn after(work: u64, pauses: impl IntoIterator<Item = u64>) -> u64 {
        let mut seen = Pauses::default();
        for pause in pauses {
            seen.worked(work);
            seen.saw(pause);
        }
        seen.worth_waiting()
    }

    #[test]
    fn a_turn_is_kept_as_long_as_pauses_were() {
        let steady = after(300 * MICROSECOND, [80 * MICROSECOND; 40]);
        assert_eq!(steady, 160 * MICROSECOND);
        // One that stumbles now and then does not have everybody wait for it.
        let stumbles = (0..64).map(|n| if n % 16 == 0 { 9_000 } else { 80 } * MICROSECOND);
        assert_eq!(after(300 * MICROSECOND, stumbles), 160 * MICROSECOND);
        // Nothing is known yet.
        assert_eq!(after(300 * MICROSECOND, [80 * MICROSECOND; 3]), UNKNOWN);
    }

    #[test]
    fn it_is_not_kept_for_pauses_that_are_longer_than_the_work() {
        assert_eq!(after(300 * MICROSECOND, [5_000 * MICROSECOND; 40]), 0);
        assert_eq!(after(300 * MICROSECOND, [700 * MICROSECOND; 40]), 0);
        assert!(after(1_000 * MICROSECOND, [700 * MICROSECOND; 40]) > 700 * MICROSECOND);
        // Tiny kernels that are waited for are no reason to lose a turn after each.
        assert!(after(20 * MICROSECOND, [100 * MICROSECOND; 40]) > 100 * MICROSECOND);
        assert_eq!(after(50_000 * MICROSECOND, [40_000 * MICROSECOND; 40]), 0);
    }

    #[test]
    fn it_learns_anew() {
        let quicker = [5_000 * MICROSECOND; 40].into_iter().chain([80 * MICROSECOND; 16]);
        assert_eq!(after(300 * MICROSECOND, quicker), 160 * MICROSECOND);
    }
}
