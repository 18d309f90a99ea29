//! A scrub's turns on a GPU that running leases use: it gives the GPU pieces of work that are
//! short, each in a turn, so that it is everybody's neighbour and nobody's burden.

use std::cell::Cell;
use std::time::{Duration, Instant};

use super::Failure;
use crate::turns::Turns;

/// How long it waits before it looks at the time.
const LOOK_EVERY: Duration = Duration::from_millis(50);

pub(super) struct Turn<'a> {
    /// `None` where there is no arbiter.
    turns: Option<&'a Turns>,
    device: usize,
    /// How long it waits for turns, all in all; after that it takes its time. Memory that is not
    /// cleared in time costs a GPU, and turns that do not come are not that GPU's fault.
    patience: Duration,
    waited: Cell<Duration>,
}

/// Given back when it is dropped.
struct Taken<'a>(Option<(&'a Turns, usize)>);

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some((turns, device)) = self.0 {
            turns.end(device, None);
        }
    }
}

impl<'a> Turn<'a> {
    pub(super) fn new(turns: Option<&'a Turns>, device: usize, patience: Duration) -> Self {
        Self { turns, device, patience, waited: Cell::default() }
    }

    /// How long it waited so far.
    pub(super) fn waited(&self) -> Duration {
        self.waited.get()
    }

    /// Whether it takes its time without asking.
    pub(super) fn is_out_of_patience(&self) -> bool {
        self.waited.get() >= self.patience
    }

    /// Has a piece of work done in a turn; `work` returns when it is done.
    pub(super) fn with<T>(&self, work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
        let _taken = self.take();
        work()
    }

    fn take(&self) -> Taken<'a> {
        let Some(turns) = self.turns else { return Taken(None) };
        while !self.is_out_of_patience() {
            let began = Instant::now();
            let is_in = turns.begin(self.device, LOOK_EVERY);
            self.waited.set(self.waited.get() + began.elapsed());
            if is_in {
                return Taken(Some((turns, self.device)));
            }
            if self.is_out_of_patience() {
                let waited = self.waited.get().as_secs_f32();
                eprintln!(
                    "waited {waited:.1} s for turns on a GPU that other leases use, and goes on without"
                );
            }
        }
        Taken(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_that_do_not_come_do_not_stop_it() {
        let turns = Turns::new(1);
        turns.pretend_to_be_arbitrated();
        let patience = Duration::from_millis(1);
        let turn = Turn::new(Some(&turns), 0, patience);
        assert_eq!(turn.with(|| Ok(7)).expect("done"), 7);
        assert!(turn.is_out_of_patience() && turn.waited() >= patience);
        assert_eq!(turn.with(|| Ok(8)).expect("done"), 8);
        // It holds no turn then, whatever it did.
        assert!(!turns.begin(0, Duration::from_millis(1)));
    }

    #[test]
    fn without_an_arbiter_nothing_waits() {
        let turns = Turns::new(1);
        for turns in [None, Some(&*turns)] {
            let turn = Turn::new(turns, 0, Duration::from_secs(60));
            assert_eq!(turn.with(|| Ok(7)).expect("done"), 7);
            assert!(!turn.is_out_of_patience());
        }
    }
}
