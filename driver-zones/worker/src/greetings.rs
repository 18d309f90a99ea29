//! How many processes of a tenant a worker greets: as many as come, but one that connects without
//! end does not keep the node busy with its greetings. Who has to wait does so in the socket's
//! queue, where it costs nothing.

use std::time::Duration;

/// Greeted at once, one after the other: more than a lease may have connected.
const BURST: u32 = 256;
/// After those, one in this time.
const EACH: Duration = Duration::from_millis(2);

/// What a lease has left of quick greetings.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Greetings {
    /// When all of [`BURST`] are there again, on a clock of the caller's.
    full_at: Duration,
}

impl Greetings {
    pub(crate) const fn new() -> Self {
        Self { full_at: Duration::ZERO }
    }

    /// How long the next one has to wait at `now`.
    pub(crate) fn wait(&self, now: Duration) -> Duration {
        (self.full_at.max(now) + EACH).saturating_sub(now + EACH * BURST)
    }

    /// One was greeted.
    pub(crate) fn greeted(&mut self, now: Duration) {
        self.full_at = self.full_at.max(now) + EACH;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_crowd_is_greeted_at_once_and_more_one_by_one() {
        let mut greetings = Greetings::new();
        for _ in 0..BURST {
            assert_eq!(greetings.wait(Duration::ZERO), Duration::ZERO);
            greetings.greeted(Duration::ZERO);
        }
        assert_eq!(greetings.wait(Duration::ZERO), EACH);
        assert_eq!(greetings.wait(EACH), Duration::ZERO);
        assert_eq!(greetings.wait(EACH * (BURST + 1)), Duration::ZERO);
    }

    proptest! {
        /// Whoever comes again as soon as it may gets no more than the burst and one each.
        #[test]
        fn no_lease_gets_more_than_its_rate(
            gaps in proptest::collection::vec(0_u64..4_000, 1..2_000),
        ) {
            let (mut greetings, mut now, mut done) = (Greetings::new(), Duration::ZERO, 0_u128);
            for gap in gaps {
                now += Duration::from_micros(gap);
                let wait = greetings.wait(now);
                prop_assert!(wait <= EACH, "it waits for one that it has had");
                now += wait;
                greetings.greeted(now);
                done += 1;
                prop_assert!(done <= u128::from(BURST) + now.as_nanos() / EACH.as_nanos());
            }
        }
    }
}
