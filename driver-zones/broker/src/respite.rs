//! How soon a worker that asks for a fresh one gets it: at once, but a program that spoils its
//! contexts again and again does not keep the node busy with starting workers.

use std::time::Duration;

/// Workers that are replaced at once, one after the other.
const BURST: u32 = 8;
/// After those, one in this time.
const EACH: Duration = Duration::from_secs(1);

/// What a lease has left of quick replacements.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Respite {
    /// When all of [`BURST`] are there again, on a clock of the caller's.
    full_at: Duration,
}

impl Respite {
    pub(crate) const fn new() -> Self {
        Self { full_at: Duration::ZERO }
    }

    /// A worker asks to be replaced at `now`; how long to wait before that is done.
    pub(crate) fn ask(&mut self, now: Duration) -> Duration {
        self.full_at = self.full_at.max(now) + EACH;
        self.full_at.saturating_sub(now + EACH * BURST)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_few_are_replaced_at_once_and_more_one_by_one() {
        let mut respite = Respite::new();
        for _ in 0..BURST {
            assert_eq!(respite.ask(Duration::ZERO), Duration::ZERO);
        }
        assert_eq!(respite.ask(Duration::ZERO), EACH);
        let later = EACH * (BURST + 1);
        assert_eq!(respite.ask(later), Duration::ZERO);
    }

    proptest! {
        /// Whoever asks again as soon as it may gets no more than the burst and one each.
        #[test]
        fn no_lease_gets_more_than_its_rate(
            gaps in proptest::collection::vec(0_u64..3_000, 1..200),
        ) {
            let (mut respite, mut now, mut workers) = (Respite::new(), Duration::ZERO, 0_u64);
            for gap in gaps {
                now += Duration::from_millis(gap);
                let pause = respite.ask(now);
                prop_assert!(pause <= EACH, "it asks once for each that it got");
                now += pause;
                workers += 1;
                prop_assert!(workers <= u64::from(BURST) + now.as_secs() / EACH.as_secs());
            }
        }
    }
}
