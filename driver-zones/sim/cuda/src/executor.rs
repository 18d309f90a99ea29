//! A context's work: a queue, and one thread that does it in order.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use gpuzone_cuda_abi::CuResult;

use crate::Answer;
use crate::work::Work;

/// How far a program may run ahead of its work before it has to wait.
const MAX_QUEUED: usize = 1024;

/// A place in a context's work; everything up to it can be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(u64);

impl Ticket {
    pub(crate) fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    pub(crate) fn raw(self) -> u64 {
        self.0
    }
}

#[derive(Default)]
pub(crate) struct Executor {
    state: Mutex<State>,
    submitted: Condvar,
    completed: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Work>,
    submitted: u64,
    completed: u64,
    /// The first ticket that somebody waits for. A GPU wakes nobody for each piece of work on the
    /// way there, and neither does this one.
    awaited: Option<u64>,
    stopping: bool,
}

impl State {
    fn await_ticket(&mut self, ticket: u64) {
        self.awaited = Some(self.awaited.map_or(ticket, |first| first.min(ticket)));
    }

    /// Whether a ticket is still to come, which is waited for from now on if so.
    fn lacks(&mut self, ticket: u64) -> bool {
        let lacks = self.completed < ticket;
        if lacks {
            self.await_ticket(ticket);
        }
        lacks
    }
}

impl Executor {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts `work` behind all that was submitted before, by whatever thread.
    pub(crate) fn submit(&self, work: Work) -> Answer<Ticket> {
        let full = |state: &mut State| {
            let full = state.queue.len() >= MAX_QUEUED && !state.stopping;
            if full {
                state.await_ticket(state.completed + 1);
            }
            full
        };
        let state = self.completed.wait_while(self.state(), full);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        if state.stopping {
            return Err(CuResult::CONTEXT_IS_DESTROYED);
        }
        state.queue.push_back(work);
        state.submitted += 1;
        let ticket = Ticket(state.submitted);
        drop(state);
        self.submitted.notify_one();
        Ok(ticket)
    }

    /// Everything that was submitted so far.
    pub(crate) fn last(&self) -> Ticket {
        Ticket(self.state().submitted)
    }

    pub(crate) fn wait(&self, ticket: Ticket) {
        let waited = self.completed.wait_while(self.state(), |state| state.lacks(ticket.0));
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn is_done(&self, ticket: Ticket) -> bool {
        self.state().completed >= ticket.0
    }

    /// No more work is taken; what is queued is still handed to the thread, which ends then.
    pub(crate) fn stop(&self) {
        self.state().stopping = true;
        self.submitted.notify_all();
        self.completed.notify_all();
    }

    /// The thread: does the work as it comes, until it is stopped. What `perform` returns is
    /// called when the work counts as done, and before anybody can see that: who learns of one
    /// of the two finds the other.
    pub(crate) fn run<T: FnOnce()>(&self, mut perform: impl FnMut(Work) -> Option<T>) {
        loop {
            let idle = |state: &mut State| state.queue.is_empty() && !state.stopping;
            let state = self.submitted.wait_while(self.state(), idle);
            let work = state.unwrap_or_else(PoisonError::into_inner).queue.pop_front();
            let Some(work) = work else { return };
            let tell = perform(work);
            let mut state = self.state();
            state.completed += 1;
            if let Some(tell) = tell {
                tell();
            }
            let completed = state.completed;
            // Whoever waits for a later one says so again.
            let is_awaited = state.awaited.take_if(|first| *first <= completed).is_some();
            drop(state);
            if is_awaited {
                self.completed.notify_all();
            }
        }
    }
}
