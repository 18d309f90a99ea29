//! What the worker says on standard error. The broker makes that a file, and what is said is
//! mostly about what a tenant did, as often as it likes: so not all of it is.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines that may be said at once.
const BURST: u32 = 100;
/// How long it takes until one more may be: a worker that lives for months says a few megabytes.
const EACH: Duration = Duration::from_secs(10);

/// How much may be said.
#[derive(Debug, PartialEq, Eq)]
struct Budget {
    lines: u32,
    /// When the time for the next line began.
    since: Option<Duration>,
    unsaid: u64,
}

impl Budget {
    const fn full() -> Self {
        Self { lines: BURST, since: None, unsaid: 0 }
    }

    /// Whether a line may be said at `now`, and how many were not since the last one.
    fn spend(&mut self, now: Duration) -> Option<u64> {
        let since = *self.since.get_or_insert(now);
        let more = now.saturating_sub(since).as_secs() / EACH.as_secs();
        if more > 0 {
            let more = u32::try_from(more).unwrap_or(u32::MAX);
            self.lines = self.lines.saturating_add(more).min(BURST);
            self.since = Some(since.saturating_add(EACH.saturating_mul(more)));
        }
        match self.lines.checked_sub(1) {
            Some(left) => {
                self.lines = left;
                Some(std::mem::take(&mut self.unsaid))
            }
            None => {
                self.unsaid = self.unsaid.saturating_add(1);
                None
            }
        }
    }
}

/// Says a line, unless a lot was said lately.
pub(crate) fn say(line: &str) {
    static BUDGET: Mutex<(Option<Instant>, Budget)> = Mutex::new((None, Budget::full()));
    let spent = {
        let mut budget = BUDGET.lock().unwrap_or_else(PoisonError::into_inner);
        let began = *budget.0.get_or_insert_with(Instant::now);
        budget.1.spend(began.elapsed())
    };
    match spent {
        Some(0) => eprintln!("{line}"),
        Some(unsaid) => eprintln!("{line} ({unsaid} lines like this were left out before)"),
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_left_out_is_counted() {
        let mut budget = Budget::full();
        for _ in 0..BURST {
            assert_eq!(budget.spend(Duration::ZERO), Some(0));
        }
        for _ in 0..7 {
            assert_eq!(budget.spend(EACH / 2), None);
        }
        assert_eq!(budget.spend(EACH), Some(7));
        assert_eq!(budget.spend(EACH), None);
        assert_eq!(budget.spend(EACH * 3), Some(1));
    }

    proptest! {
        #[test]
        fn no_more_is_said_than_the_time_allows(
            steps in proptest::collection::vec(0_u64..30_000, 1..2000),
        ) {
            let (mut budget, mut now, mut said) = (Budget::full(), Duration::ZERO, 0);
            let mut heard = 0;
            for step in &steps {
                now += Duration::from_millis(*step);
                if let Some(unsaid) = budget.spend(now) {
                    said += 1;
                    heard += 1 + unsaid;
                }
            }
            prop_assert!(said <= u64::from(BURST) + now.as_secs() / EACH.as_secs());
            prop_assert_eq!(heard + budget.unsaid, steps.len() as u64);
        }
    }
}
