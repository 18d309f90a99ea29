//! How long a GPU works for a session: by the driver's events, and by the host's clock while
//! work is under way, so that a long kernel shows before it ends.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use gpuzone_cuda_abi::{CUevent, CUstream, CuResult, event_flags};
use gpuzone_wire::spec::StreamId;
use gpuzone_wire::stats::{Monotonic, StatsWriter};

use crate::driver::Driver;

/// A session's busy time, seen by its thread and by the main thread's clock.
#[derive(Debug, Default)]
pub struct BusyClock {
    state: Mutex<Period>,
}

#[derive(Debug, Default)]
struct Period {
    /// Since when the GPU has been working.
    since: Option<Monotonic>,
    /// What was added for this period already.
    added: u64,
    /// What was added too much in earlier periods.
    ahead: u64,
    /// What was added over all periods.
    total: u64,
}

impl BusyClock {
    /// Notes that work begins.
    pub fn begin(&self, now: Monotonic) {
        let mut period = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        period.since = Some(now);
        period.added = 0;
    }

    /// Adds what the host's clock says of the work under way; whether there is some.
    pub fn tick(&self, now: Monotonic, stats: &StatsWriter) -> bool {
        let mut period = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(since) = period.since else { return false };
        period.add(now.nanoseconds_since(since), stats);
        true
    }

    /// All time that was added so far, in nanoseconds.
    pub fn total(&self) -> u64 {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).total
    }

    /// Ends the work. `measured` is what the driver's events say, if they do.
    pub fn end(&self, now: Monotonic, measured: Option<u64>, stats: &StatsWriter) {
        let mut period = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(since) = period.since.take() else { return };
        let total = measured.unwrap_or_else(|| now.nanoseconds_since(since));
        period.add(total, stats);
        // The clock may have run on after the work had ended: counters never go back, so the
        // next period starts that much later.
        period.ahead += period.added.saturating_sub(total);
    }
}

impl Period {
    fn add(&mut self, total: u64, stats: &StatsWriter) {
        let more = total.saturating_sub(self.added);
        let paid = more.min(self.ahead);
        self.ahead -= paid;
        self.added += more;
        self.total += more - paid;
        stats.add_busy(more - paid);
    }
}

/// Events around the work of one context.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    start: Option<CUevent>,
    ends: HashMap<StreamId, End, foldhash::fast::RandomState>,
    /// Whether some stream's end is not marked yet.
    unmarked: bool,
    busy: bool,
}

/// The end of a stream's work.
#[derive(Debug)]
struct End {
    event: CUevent,
    stream: CUstream,
    /// Work came after the event was recorded.
    unmarked: bool,
    /// The event was recorded and is not known to have happened.
    pending: bool,
}

impl Meter {
    /// Whether work was given that is not known to be done.
    pub(crate) fn is_busy(&self) -> bool {
        self.busy
    }

    /// To be called before work is given to a stream of the current context.
    pub(crate) fn before(&mut self, driver: &Driver, stream: CUstream, clock: &BusyClock) {
        if self.busy {
            return;
        }
        if self.start.is_none() {
            self.start = event(driver);
        }
        if let Some(start) = self.start {
            // SAFETY: an event and a stream of the current context.
            let _ = unsafe { (driver.event_record)(start, stream) };
        }
        self.busy = true;
        clock.begin(Monotonic::now());
    }

    /// To be called after work was given. Where it ends is marked later, once for many pieces.
    pub(crate) fn after(&mut self, driver: &Driver, id: StreamId, stream: CUstream) {
        if let Some(end) = self.ends.get_mut(&id) {
            (end.stream, end.unmarked) = (stream, true);
        } else if let Some(event) = event(driver) {
            self.ends.insert(id, End { event, stream, unmarked: true, pending: false });
        }
        self.unmarked = true;
    }

    /// Whether [`Meter::mark`] has something to do.
    pub(crate) fn is_unmarked(&self) -> bool {
        self.unmarked
    }

    /// Marks where the work that was given ends, in the current context. To be called when no
    /// more is at hand: what is marked later than that looks longer than it was.
    pub(crate) fn mark(&mut self, driver: &Driver) {
        if !std::mem::take(&mut self.unmarked) {
            return;
        }
        for end in self.ends.values_mut().filter(|end| end.unmarked) {
            // SAFETY: an event and a stream of the current context; a stream that is destroyed
            // is forgotten first.
            end.pending = unsafe { (driver.event_record)(end.event, end.stream) }.is_success();
            end.unmarked = false;
        }
    }

    /// Looks whether the work is done, in the current context, and adds its time if so.
    /// The time is said once, when there was work and it is done.
    pub(crate) fn settle(
        &mut self,
        driver: &Driver,
        clock: &BusyClock,
        stats: &StatsWriter,
    ) -> Option<Measured> {
        if !self.busy {
            return None;
        }
        self.mark(driver);
        let pending = || self.ends.values().filter(|end| end.pending);
        for end in pending() {
            // SAFETY: an event of the current context.
            if unsafe { (driver.event_query)(end.event) } == CuResult::NOT_READY {
                return None;
            }
        }
        let longest = pending()
            .filter_map(|end| {
                let mut milliseconds = 0f32;
                let (place, start) = (&raw mut milliseconds, self.start?);
                // SAFETY: events of the current context, and a place for the answer.
                let asked = unsafe { (driver.event_elapsed)(place, start, end.event) };
                let nanoseconds = (f64::from(milliseconds) * 1e6).clamp(0.0, 1e18);
                // Within 0 and 1e18.
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                asked.is_success().then_some(nanoseconds as u64)
            })
            .max();
        self.ends.values_mut().for_each(|end| end.pending = false);
        self.busy = false;
        clock.end(Monotonic::now(), longest, stats);
        Some(Measured(longest))
    }

    /// Waits until all work is done, in the current context.
    pub(crate) fn wait(&mut self, driver: &Driver) {
        self.mark(driver);
        for end in self.ends.values().filter(|end| self.busy && end.pending) {
            // SAFETY: an event of the current context. Whether the work failed shows later.
            let _ = unsafe { (driver.event_synchronize)(end.event) };
        }
    }

    /// Forgets a stream that is being destroyed, once its work is done.
    pub(crate) fn forget(&mut self, driver: &Driver, id: StreamId) {
        if let Some(end) = self.ends.remove(&id) {
            // SAFETY: an event of the current context; destroying one that is pending is
            // allowed, the driver does it when it has happened.
            let _ = unsafe { (driver.event_destroy)(end.event) };
        }
    }

    /// Ends the measuring: the context is going. Whether it had work under way.
    pub(crate) fn stop(&mut self, clock: &BusyClock, stats: &StatsWriter) -> bool {
        let was_busy = std::mem::take(&mut self.busy);
        if was_busy {
            clock.end(Monotonic::now(), None, stats);
        }
        was_busy
    }
}

/// What the driver's events say of work that is done, if they do, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Measured(pub(crate) Option<u64>);

fn event(driver: &Driver) -> Option<CUevent> {
    let mut event = std::ptr::null_mut();
    // SAFETY: a place for the answer; made in the current context.
    let made = unsafe { (driver.event_create)(&raw mut event, event_flags::DEFAULT) };
    made.is_success().then_some(event)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpuzone_wire::stats::StatsFile;

    #[test]
    fn the_clock_never_counts_twice() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = StatsFile::create(&dir.path().join("stats")).expect("created");
        let stats = StatsWriter::open(file.file().try_clone().expect("cloned")).expect("open");
        let busy = || file.snapshot(Monotonic::now()).expect("readable").counters.busy_nanoseconds;
        let at = Monotonic::from_nanoseconds;
        let clock = BusyClock::default();
        assert!(!clock.tick(at(5), &stats));
        clock.begin(at(100));
        assert!(clock.tick(at(150), &stats));
        assert_eq!(busy(), 50);
        // The events say 30: the surplus of 20 is taken from the next period.
        clock.end(at(160), Some(30), &stats);
        assert_eq!(busy(), 50);
        clock.begin(at(200));
        clock.end(at(300), Some(70), &stats);
        assert_eq!(busy(), 100);
        clock.begin(at(400));
        clock.end(at(410), None, &stats);
        assert_eq!(busy(), 110);
    }
}
