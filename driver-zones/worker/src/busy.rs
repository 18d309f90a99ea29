//! How long a GPU works for a session: by the driver's events, and by the host's clock while
//! work is under way, so that a long kernel shows before it ends.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use gpuzone_cuda_abi::{CUevent, CUstream, CuResult, event_flags};
use gpuzone_wire::spec::StreamId;
use gpuzone_wire::stats::{Monotonic, StatsWriter};

use crate::driver::Driver;

/// The time that the GPUs worked for a lease: billed as one, and known of each GPU.
#[derive(Debug)]
pub struct Worked {
    stats: Arc<StatsWriter>,
    gpus: Box<[AtomicU64]>,
}

impl Worked {
    /// Nothing yet, on so many GPUs.
    pub fn new(stats: Arc<StatsWriter>, gpus: usize) -> Self {
        Self { stats, gpus: (0..gpus).map(|_| AtomicU64::new(0)).collect() }
    }

    fn add(&self, gpu: usize, nanoseconds: u64) {
        self.stats.add_busy(nanoseconds);
        if let Some(worked) = self.gpus.get(gpu) {
            worked.fetch_add(nanoseconds, Ordering::Relaxed);
        }
    }

    /// The time of each GPU since this worker began, in nanoseconds.
    pub(crate) fn of_each(&self) -> Vec<u64> {
        self.gpus.iter().map(|worked| worked.load(Ordering::Relaxed)).collect()
    }
}

/// A session's busy time, seen by its thread and by the main thread's clock.
#[derive(Debug)]
pub struct BusyClock {
    worked: Arc<Worked>,
    /// Of each GPU.
    periods: Mutex<Vec<Period>>,
}

/// Time in which a GPU worked for a session.
#[derive(Clone, Debug, Default)]
struct Period {
    /// How many contexts have work under way.
    working: u32,
    /// Since when one has had some.
    since: Monotonic,
    /// Whether there were two of them at once: their events tell of one each.
    together: bool,
    /// What was added for this period already.
    added: u64,
    /// What was added too much in earlier periods.
    ahead: u64,
    /// What was added over all periods.
    total: u64,
}

impl BusyClock {
    /// A clock at zero, of a session of the lease that `worked` is of.
    pub fn new(worked: Arc<Worked>) -> Self {
        let periods = Mutex::new(vec![Period::default(); worked.gpus.len()]);
        Self { worked, periods }
    }

    fn on<T>(&self, gpu: usize, act: impl FnOnce(&mut Period) -> T) -> Option<T> {
        let mut periods = self.periods.lock().unwrap_or_else(PoisonError::into_inner);
        periods.get_mut(gpu).map(act)
    }

    /// Notes that work of a context begins on a GPU.
    pub fn begin(&self, gpu: usize, now: Monotonic) {
        self.on(gpu, |period| {
            if period.working == 0 {
                (period.since, period.added, period.together) = (now, 0, false);
            }
            period.working += 1;
            period.together |= period.working > 1;
        });
    }

    /// Adds what the host's clock says of the work under way.
    pub fn tick(&self, now: Monotonic) {
        let mut periods = self.periods.lock().unwrap_or_else(PoisonError::into_inner);
        for (gpu, period) in periods.iter_mut().enumerate().filter(|(_, one)| one.working > 0) {
            let more = period.add(now.nanoseconds_since(period.since));
            self.worked.add(gpu, more);
        }
    }

    /// All time that was added so far for each GPU, in nanoseconds.
    pub(crate) fn of_each(&self) -> Vec<u64> {
        let periods = self.periods.lock().unwrap_or_else(PoisonError::into_inner);
        periods.iter().map(|period| period.total).collect()
    }

    /// Ends a context's work. `measured` is what the driver's events say, if they do.
    pub fn end(&self, gpu: usize, now: Monotonic, measured: Option<u64>) {
        let more = self.on(gpu, |period| period.end(now, measured));
        self.worked.add(gpu, more.unwrap_or(0));
    }
}

impl Period {
    /// Brings what was added to `total`; what that is more.
    fn add(&mut self, total: u64) -> u64 {
        let more = total.saturating_sub(self.added);
        let paid = more.min(self.ahead);
        self.ahead -= paid;
        self.added += more;
        self.total += more - paid;
        more - paid
    }

    fn end(&mut self, now: Monotonic, measured: Option<u64>) -> u64 {
        self.working = self.working.saturating_sub(1);
        if self.working > 0 {
            return 0;
        }
        let measured = measured.filter(|_| !self.together);
        let total = measured.unwrap_or_else(|| now.nanoseconds_since(self.since));
        let more = self.add(total);
        // The clock may have run on after the work had ended: counters never go back, so the
        // next period starts that much later.
        self.ahead += self.added.saturating_sub(total);
        more
    }
}

/// A session's clock of one GPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GpuClock<'a> {
    pub(crate) clock: &'a BusyClock,
    pub(crate) gpu: usize,
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
    pub(crate) fn before(&mut self, driver: &Driver, stream: CUstream, on: GpuClock<'_>) {
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
        on.clock.begin(on.gpu, Monotonic::now());
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
    pub(crate) fn settle(&mut self, driver: &Driver, on: GpuClock<'_>) -> Option<Measured> {
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
        on.clock.end(on.gpu, Monotonic::now(), longest);
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
    pub(crate) fn stop(&mut self, on: GpuClock<'_>) -> bool {
        let was_busy = std::mem::take(&mut self.busy);
        if was_busy {
            on.clock.end(on.gpu, Monotonic::now(), None);
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

    struct Counted {
        _dir: tempfile::TempDir,
        file: StatsFile,
        worked: Arc<Worked>,
    }

    fn counted(gpus: usize) -> Counted {
        let dir = tempfile::tempdir().expect("a directory");
        let file = StatsFile::create(&dir.path().join("stats")).expect("created");
        let stats = StatsWriter::open(file.file().try_clone().expect("cloned")).expect("open");
        Counted { _dir: dir, file, worked: Arc::new(Worked::new(Arc::new(stats), gpus)) }
    }

    impl Counted {
        fn billed(&self) -> u64 {
            self.file.snapshot(Monotonic::now()).expect("readable").counters.busy_nanoseconds
        }
    }

    const fn at(nanoseconds: u64) -> Monotonic {
        Monotonic::from_nanoseconds(nanoseconds)
    }

    #[test]
    fn the_clock_never_counts_twice() {
        let counted = counted(1);
        let clock = BusyClock::new(counted.worked.clone());
        clock.tick(at(5));
        assert_eq!(counted.billed(), 0);
        clock.begin(0, at(100));
        clock.tick(at(150));
        assert_eq!(counted.billed(), 50);
        // The events say 30: the surplus of 20 is taken from the next period.
        clock.end(0, at(160), Some(30));
        assert_eq!(counted.billed(), 50);
        clock.begin(0, at(200));
        clock.end(0, at(300), Some(70));
        assert_eq!(counted.billed(), 100);
        clock.begin(0, at(400));
        clock.end(0, at(410), None);
        assert_eq!(counted.billed(), 110);
    }

    #[test]
    fn gpus_that_work_at_once_are_counted_each() {
        let counted = counted(2);
        let (one, other) =
            (BusyClock::new(counted.worked.clone()), BusyClock::new(counted.worked.clone()));
        one.begin(0, at(100));
        one.begin(1, at(150));
        other.begin(1, at(150));
        one.tick(at(170));
        assert_eq!(one.of_each(), [70, 20]);
        one.end(0, at(200), None);
        one.end(1, at(200), None);
        other.end(1, at(160), None);
        assert_eq!((one.of_each(), other.of_each()), (vec![100, 50], vec![0, 10]));
        assert_eq!(counted.worked.of_each(), [100, 60]);
        assert_eq!(counted.billed(), 160);
    }

    #[test]
    fn contexts_that_work_at_once_on_one_gpu_are_counted_once() {
        let counted = counted(1);
        let clock = BusyClock::new(counted.worked.clone());
        clock.begin(0, at(100));
        clock.begin(0, at(150));
        clock.end(0, at(180), Some(80));
        clock.tick(at(190));
        assert_eq!(counted.billed(), 90);
        // Its own events know nothing of the other's work.
        clock.end(0, at(200), Some(50));
        assert_eq!(counted.billed(), 100);
    }
}
