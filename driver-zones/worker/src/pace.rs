//! How far a context's work runs ahead of the GPU: far enough to keep it busy, and not so far
//! that a turn cannot be given back soon.

use std::collections::VecDeque;

use gpuzone_cuda_abi::{CUevent, CUstream, CuResult, event_flags};
use gpuzone_wire::stats::Monotonic;

use crate::driver::Driver;
use crate::turns::Room;

/// What a piece of work is thought to take before one was seen.
const UNKNOWN: u64 = 1_000_000;

/// The work that a context was given and that is not known to be done.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Events between pieces of work, and how many pieces are in front of each.
    marks: VecDeque<(CUevent, u32)>,
    spare: Vec<CUevent>,
    /// Pieces behind the last mark, all on this stream.
    unmarked: (u32, CUstream),
    /// Whether all marks are of that stream.
    one_stream: bool,
    ahead: u32,
    /// How many of them there may be, as last looked at.
    ahead_at_most: u32,
    /// Pieces since the GPU was idle.
    since_idle: u32,
    /// How long a piece takes, in nanoseconds.
    average: u64,
    /// When a piece of the work under way was last seen to be done.
    seen: Option<Monotonic>,
}

// SAFETY: events and streams are the driver's handles, which it takes from any thread.
unsafe impl Send for Pace {}

impl Default for Pace {
    fn default() -> Self {
        Self {
            marks: VecDeque::new(),
            spare: Vec::new(),
            unmarked: (0, std::ptr::null_mut()),
            one_stream: true,
            ahead: 0,
            ahead_at_most: 2,
            since_idle: 0,
            average: UNKNOWN,
            seen: None,
        }
    }
}

impl Pace {
    /// How many pieces may be ahead.
    fn window(&self, room: Room) -> u32 {
        let pieces = room.time.div_ceil(self.average.max(1));
        u32::try_from(pieces).unwrap_or(room.most).clamp(room.least, room.most)
    }

    /// To be called before more work is given to the current context; waits until there is room.
    pub(crate) fn before(&mut self, driver: &Driver, room: Room) {
        let window = self.window(room);
        if self.ahead < window {
            return;
        }
        self.mark(driver);
        self.ahead_at_most = window;
        self.look(driver);
        // Half of it: one wait for many short pieces.
        while self.ahead > window / 2 {
            let Some((event, pieces)) = self.marks.pop_front() else {
                self.ahead = 0;
                break;
            };
            // SAFETY: an event of the current context. Whether the work failed shows later.
            let _ = unsafe { (driver.event_synchronize)(event) };
            self.spare.push(event);
            self.ahead = self.ahead.saturating_sub(pieces);
            let now = Monotonic::now();
            if let Some(seen) = self.seen.replace(now) {
                self.learn(now.nanoseconds_since(seen), pieces);
            }
        }
    }

    /// Forgets what is done by now, as the newest mark that has happened says: that costs less than to
    /// wait for an older one.
    fn look(&mut self, driver: &Driver) {
        // SAFETY: an event of the current context.
        let is_done = |event: CUevent| unsafe { (driver.event_query)(event) }.is_success();
        // Of several streams' marks a newer one says nothing of the others.
        let newest = match self.one_stream {
            true => self.marks.iter().rposition(|(event, _)| is_done(*event)),
            false => None,
        };
        let Some(newest) = newest else { return };
        let mut pieces = 0;
        for (event, of_it) in self.marks.drain(..=newest) {
            self.spare.push(event);
            pieces += of_it;
        }
        self.ahead = self.ahead.saturating_sub(pieces);
        let now = Monotonic::now();
        if let Some(seen) = self.seen.replace(now) {
            self.learn(now.nanoseconds_since(seen), pieces);
        }
    }

    /// To be called after a piece of work was given to a stream of the current context.
    pub(crate) fn after(&mut self, driver: &Driver, stream: CUstream) {
        if self.unmarked.1 != stream {
            self.mark(driver);
            self.unmarked.1 = stream;
            self.one_stream = self.marks.is_empty();
        }
        if self.ahead == 0 && self.since_idle == 0 {
            self.seen = Some(Monotonic::now());
        }
        self.unmarked.0 += 1;
        self.ahead += 1;
        self.since_idle = self.since_idle.saturating_add(1);
        if self.unmarked.0 >= (self.ahead_at_most / 4).max(1) {
            self.mark(driver);
        }
    }

    /// All work is done; the driver's events say how long it took.
    pub(crate) fn idle(&mut self, measured: Option<u64>) {
        if let Some(measured) = measured {
            self.learn(measured, self.since_idle);
        }
        self.spare.extend(self.marks.drain(..).map(|(event, _)| event));
        (self.unmarked.0, self.one_stream) = (0, true);
        (self.ahead, self.since_idle, self.seen) = (0, 0, None);
    }

    /// A stream is being destroyed.
    pub(crate) fn forget(&mut self, driver: &Driver, stream: CUstream) {
        if self.unmarked.1 == stream {
            self.mark(driver);
            self.unmarked = (0, std::ptr::null_mut());
        }
    }

    fn learn(&mut self, time: u64, pieces: u32) {
        if pieces > 0 {
            self.average = self.average / 2 + time / u64::from(pieces) / 2;
        }
    }

    fn mark(&mut self, driver: &Driver) {
        let (pieces, stream) = self.unmarked;
        if pieces == 0 {
            return;
        }
        let Some(event) = self.spare.pop().or_else(|| event(driver)) else { return };
        // SAFETY: an event and a stream of the current context.
        if unsafe { (driver.event_record)(event, stream) } == CuResult::SUCCESS {
            self.marks.push_back((event, pieces));
            self.unmarked.0 = 0;
        } else {
            self.spare.push(event);
        }
    }
}

fn event(driver: &Driver) -> Option<CUevent> {
    let mut event = std::ptr::null_mut();
    // SAFETY: a place for the answer; made in the current context, and destroyed with it.
    let made = unsafe { (driver.event_create)(&raw mut event, event_flags::DISABLE_TIMING) };
    made.is_success().then_some(event)
}
