//! Streams and events. As a context's work is in order anyway, a stream is a mark in it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use gpuzone_cuda_abi::{CuResult, event_flags};

use crate::Answer;
use crate::context::Context;
use crate::executor::Ticket;

pub(crate) struct Stream {
    context: Arc<Context>,
    pub(crate) flags: u32,
    pub(crate) priority: i32,
    last: AtomicU64,
}

impl Stream {
    pub(crate) fn new(context: Arc<Context>, flags: u32, priority: i32) -> Self {
        Self { context, flags, priority, last: AtomicU64::new(0) }
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// The last work that was submitted to it.
    pub(crate) fn last(&self) -> Ticket {
        Ticket::from_raw(self.last.load(Ordering::Acquire))
    }

    pub(crate) fn submitted(&self, ticket: Ticket) {
        self.last.fetch_max(ticket.raw(), Ordering::AcqRel);
    }
}

pub(crate) struct Event {
    context: Arc<Context>,
    flags: u32,
    state: Mutex<State>,
    reached: Condvar,
}

#[derive(Default)]
struct State {
    /// How often it was recorded, and up to which of these the work came.
    recorded: u64,
    reached: u64,
    at: Option<Instant>,
    /// How many wait for it.
    waiting: u32,
}

impl Event {
    pub(crate) fn new(context: Arc<Context>, flags: u32) -> Self {
        Self { context, flags, state: Mutex::default(), reached: Condvar::new() }
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of a new record, for the work that will reach it.
    pub(crate) fn record(&self) -> u64 {
        let mut state = self.state();
        state.recorded += 1;
        state.recorded
    }

    /// The number of the newest record; 0 when there is none.
    pub(crate) fn newest(&self) -> u64 {
        self.state().recorded
    }

    /// The work came to record `number`.
    pub(crate) fn reach(&self, number: u64) {
        let mut state = self.state();
        if number > state.reached {
            state.reached = number;
            state.at = Some(Instant::now());
        }
        let is_awaited = state.waiting > 0;
        drop(state);
        if is_awaited {
            self.reached.notify_all();
        }
    }

    /// Waits for record `number`, until `give_up` says that nobody is interested any more.
    pub(crate) fn wait_unless(&self, number: u64, give_up: impl Fn() -> bool) {
        const LOOK_EVERY: Duration = Duration::from_millis(10);
        let mut state = self.state();
        state.waiting += 1;
        while state.reached < number && !give_up() {
            let waited = self.reached.wait_timeout(state, LOOK_EVERY);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.waiting -= 1;
    }

    pub(crate) fn is_reached(&self) -> bool {
        let state = self.state();
        state.reached >= state.recorded
    }

    pub(crate) fn wait(&self, number: u64) {
        let mut state = self.state();
        state.waiting += 1;
        let waited = self.reached.wait_while(state, |state| state.reached < number);
        waited.unwrap_or_else(PoisonError::into_inner).waiting -= 1;
    }

    /// Milliseconds from `earlier` to this event.
    pub(crate) fn elapsed_since(&self, earlier: &Self) -> Answer<f32> {
        let start = earlier.time()?;
        let end = self.time()?;
        let milliseconds = |from: Instant, to: Instant| (to - from).as_secs_f32() * 1e3;
        Ok(if end >= start { milliseconds(start, end) } else { -milliseconds(end, start) })
    }

    fn time(&self) -> Answer<Instant> {
        let state = self.state();
        if self.flags & event_flags::DISABLE_TIMING != 0 || state.recorded == 0 {
            return Err(CuResult::INVALID_HANDLE);
        }
        match state.at {
            Some(at) if state.reached >= state.recorded => Ok(at),
            Some(_) | None => Err(CuResult::NOT_READY),
        }
    }
}
