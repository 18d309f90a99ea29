//! The lease's turns on its GPUs: who has work waits here until the arbiter lets the lease in.
//!
//! ```text
//!  session thread: begin ─▶ submit … ─▶ the work is done: end ─┐
//!                    ▲ waits while there is no turn            ▼
//!  turns' thread:  Grant ─ opens ── Recall ─ closes ── nothing under way: Yield
//! ```
//!
//! Each context counts as one piece of work under way, from its first launch until all that it
//! was given is done. The turn stays until the arbiter wants it back, so a lease that is alone
//! asks nobody. Without an arbiter (it died, its next is not there yet) everybody goes ahead.

mod pauses;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gpuzone_wire::stats::Monotonic;
use gpuzone_wire::turn::{FromArbiter, FromWorker, MESSAGE};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with, recv, send};

use pauses::Pauses;

/// Work that may be ahead of a GPU, in nanoseconds.
const AHEAD: u64 = 2_000_000;
/// The same, where somebody may come who must not wait long: pieces that are longer than this are
/// given one by one.
const AHEAD_BRIEF: u64 = 500_000;

/// Pieces of work that may be ahead, however short they were so far: the next ones may be long.
const MOST: u32 = 32;
/// The same while nobody waits: of very short ones so many have to be there that the GPU has something to do
/// until a thread that slept comes back with more.
const MOST_ALONE: u32 = 128;

/// How often a turn that others wait for is looked at while it is used, in nanoseconds.
const LOOK_EVERY: u64 = 300_000;

/// How things stand with a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pressure {
    /// Nobody waits for it.
    Alone,
    /// Somebody waits for it.
    Contended,
    /// No more work may be given to it.
    Recalled,
}

/// How much work may be ahead of a GPU: so much time, but at least and at most so many pieces. With two,
/// the next one is there when one is done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    pub(crate) time: u64,
    pub(crate) least: u32,
    pub(crate) most: u32,
}

/// The turns of a worker's GPUs, in the order of the lease's grants.
#[derive(Debug)]
pub struct Turns {
    gpus: Vec<Gpu>,
    line: Mutex<Option<Arc<OwnedFd>>>,
}

#[derive(Debug, Default)]
struct Gpu {
    /// [`Pressure`], to be looked at before each launch.
    pressure: AtomicU8,
    state: Mutex<State>,
    granted: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Whether there is an arbiter.
    arbitrated: bool,
    held: bool,
    recalled: bool,
    contended: bool,
    /// Whether the arbiter was told that there is work.
    asked: bool,
    /// Who waits for a turn.
    waiting: u32,
    /// Contexts with work under way.
    working: u32,
    /// Since when there is some.
    since: Monotonic,
    /// How many contexts had work since then.
    shared: u32,
    /// How long the GPU worked in this turn.
    used: u64,
    /// Since when there is nothing to do.
    idle: Monotonic,
    /// Whether there may come somebody who must not wait long.
    brief: bool,
    /// When the last work was done, until more comes.
    done: Option<Monotonic>,
    /// How long the lease's programs pause between pieces of work.
    pauses: Pauses,
}

impl State {
    fn may_begin(&self) -> bool {
        !self.arbitrated || (self.held && !self.recalled)
    }

    /// Until when it may be kept with nothing to do, if somebody waits for it and it has nothing.
    fn kept_until(&self) -> Option<u64> {
        let idle = self.held && self.contended && self.working == 0 && self.waiting == 0;
        idle.then(|| self.idle.nanoseconds().saturating_add(self.pauses.worth_waiting()))
    }

    fn pressure(&self) -> Pressure {
        match (self.arbitrated && (self.recalled || !self.held), self.contended) {
            (true, _) => Pressure::Recalled,
            (false, true) => Pressure::Contended,
            (false, false) => Pressure::Alone,
        }
    }
}

impl Gpu {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, state: &State) {
        self.pressure.store(state.pressure() as u8, Ordering::Release);
    }
}

impl Turns {
    /// For a worker that takes its time, until [`Turns::listen`].
    pub fn new(gpus: usize) -> Arc<Self> {
        let gpus = (0..gpus).map(|_| Gpu::default()).collect();
        Arc::new(Self { gpus, line: Mutex::default() })
    }

    /// Takes the turns from who connects to `listener` from now on. The broker connected before
    /// it gave the worker its orders.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn listen(self: &Arc<Self>, listener: OwnedFd) -> std::io::Result<()> {
        let turns = Arc::clone(self);
        turns.accept(&listener);
        let body = move || loop {
            turns.attend(&listener);
        };
        std::thread::Builder::new().name("turns".to_owned()).spawn(body).map(drop)
    }

    /// How things stand with a GPU.
    pub fn pressure(&self, device: usize) -> Pressure {
        let Some(gpu) = self.gpus.get(device) else { return Pressure::Alone };
        match gpu.pressure.load(Ordering::Acquire) {
            0 => Pressure::Alone,
            1 => Pressure::Contended,
            _ => Pressure::Recalled,
        }
    }

    /// The most that any GPU of the lease is wanted.
    pub fn most_pressure(&self) -> Pressure {
        let all = (0..self.gpus.len()).map(|device| self.pressure(device));
        all.max_by_key(|pressure| *pressure as u8).unwrap_or(Pressure::Alone)
    }

    /// How much work a context may have ahead of a GPU.
    pub(crate) fn room(&self, device: usize) -> Room {
        let alone = Room { time: AHEAD, least: 2, most: MOST_ALONE };
        let Some(gpu) = self.gpus.get(device) else { return alone };
        let state = gpu.state();
        let time = if state.brief { AHEAD_BRIEF } else { AHEAD };
        let waited_for = Room { least: 1, most: MOST, ..alone };
        let room = if state.brief || state.contended { waited_for } else { alone };
        Room { time: time / u64::from(state.working.max(1)), ..room }
    }

    /// A context is about to give work to a GPU; waits for a turn at most `patience` long.
    /// Whether it may: then [`Turns::end`] is to follow.
    #[must_use]
    pub(crate) fn begin(&self, device: usize, patience: Duration) -> bool {
        let Some(gpu) = self.gpus.get(device) else { return true };
        let mut state = gpu.state();
        if let Some(done) = state.done.take() {
            state.pauses.saw(Monotonic::now().nanoseconds_since(done));
        }
        if !state.may_begin() {
            if !state.asked && !state.held {
                state.asked = true;
                self.say(FromWorker::Want { device: number(device) });
            }
            state.waiting += 1;
            let closed = |state: &mut State| !state.may_begin();
            let waited = gpu.granted.wait_timeout_while(state, patience, closed);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            state.waiting -= 1;
            if !state.may_begin() {
                return false;
            }
        }
        if state.working == 0 {
            state.since = Monotonic::now();
            state.shared = 0;
        }
        state.working += 1;
        state.shared += 1;
        true
    }

    /// All that a context gave to a GPU is done. `measured` is what the driver's events say of
    /// it, if they do.
    pub(crate) fn end(&self, device: usize, measured: Option<u64>) {
        let Some(gpu) = self.gpus.get(device) else { return };
        let mut state = gpu.state();
        state.working = state.working.saturating_sub(1);
        if state.working > 0 {
            return;
        }
        let now = Monotonic::now();
        let passed = now.nanoseconds_since(state.since);
        let alone = measured.filter(|_| state.shared == 1);
        let worked = alone.unwrap_or(passed).min(passed);
        state.used = state.used.saturating_add(worked);
        state.pauses.worked(worked);
        (state.idle, state.done) = (now, Some(now));
        let is_over = state.kept_until().is_some_and(|until| until <= now.nanoseconds());
        if state.recalled || is_over {
            self.give_back(device, gpu, &mut state);
        }
    }

    /// For tests: as if there was an arbiter that never answers.
    #[cfg(test)]
    pub(crate) fn pretend_to_be_arbitrated(&self) {
        self.gpus.iter().for_each(|gpu| gpu.state().arbitrated = true);
    }

    fn give_back(&self, device: usize, gpu: &Gpu, state: &mut State) {
        let (wants, used) = (state.waiting > 0, std::mem::take(&mut state.used));
        (state.held, state.recalled, state.contended) = (false, false, false);
        state.asked = wants;
        gpu.publish(state);
        self.say(FromWorker::Yield { device: number(device), wants, used });
    }

    fn say(&self, message: FromWorker) {
        let line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = &*line {
            // When the arbiter is gone, its end of the line says so.
            let _ = send(&**line, &message.encode(), SendFlags::NOSIGNAL);
        }
    }

    /// One round of the turns' thread.
    fn attend(&self, listener: &OwnedFd) {
        let line = self.line.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut fds = vec![PollFd::new(listener, PollFlags::IN)];
        fds.extend(line.iter().map(|line| PollFd::new(&**line, PollFlags::IN)));
        let timeout = self.look_again_in().map(|nanoseconds| Timespec {
            tv_sec: 0,
            tv_nsec: i64::try_from(nanoseconds).unwrap_or(0),
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            // Nothing that waits would ever be let in.
            Err(_) => return self.lost(),
        }
        let events: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if let (Some(true), Some(line)) = (events.get(1), line) {
            self.hear(&line);
        }
        if events.first() == Some(&true) {
            self.accept(listener);
        }
        self.give_back_idle();
    }

    /// In how many nanoseconds a turn may have to be given back because nothing is done with it.
    fn look_again_in(&self) -> Option<u64> {
        let now = Monotonic::now().nanoseconds();
        let each = self.gpus.iter().filter_map(|gpu| {
            let state = gpu.state();
            let watched = state.held && state.contended;
            let until = state.kept_until();
            // Were it left unused from now on, it would be kept at least that long.
            let used = LOOK_EVERY.max(state.pauses.worth_waiting());
            watched.then(|| until.map_or(used, |until| until.saturating_sub(now)))
        });
        each.min()
    }

    fn give_back_idle(&self) {
        for (device, gpu) in self.gpus.iter().enumerate() {
            let mut state = gpu.state();
            let now = Monotonic::now().nanoseconds();
            if state.kept_until().is_some_and(|until| until <= now) {
                self.give_back(device, gpu, &mut state);
            }
        }
    }

    fn accept(&self, listener: &OwnedFd) {
        let mut fds = [PollFd::new(listener, PollFlags::IN)];
        if !matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1..)) {
            return;
        }
        let Ok(line) = accept_with(listener, SocketFlags::CLOEXEC) else { return };
        *self.line.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(line));
        // Whatever an earlier arbiter said does not count any more.
        for (device, gpu) in self.gpus.iter().enumerate() {
            let mut state = gpu.state();
            state.arbitrated = true;
            (state.held, state.recalled, state.contended) = (false, false, false);
            state.brief = false;
            state.asked = state.waiting > 0 || state.working > 0;
            if state.asked {
                self.say(FromWorker::Want { device: number(device) });
            }
            gpu.publish(&state);
        }
    }

    fn hear(&self, line: &OwnedFd) {
        let mut packet = [0u8; MESSAGE + 1];
        loop {
            let heard = recv(line.as_fd(), &mut packet, RecvFlags::DONTWAIT);
            let message = match heard {
                Ok((0, _)) => return self.lost(),
                Ok((length, _)) => packet.get(..length).and_then(FromArbiter::decode),
                Err(Errno::AGAIN | Errno::INTR) => return,
                Err(_) => return self.lost(),
            };
            let Some(message) = message else { return self.lost() };
            let (FromArbiter::Grant { device, .. }
            | FromArbiter::Contended { device }
            | FromArbiter::Brief { device }
            | FromArbiter::Recall { device }) = message;
            let device = usize::try_from(device).unwrap_or(usize::MAX);
            let Some(gpu) = self.gpus.get(device) else { return self.lost() };
            let mut state = gpu.state();
            match message {
                FromArbiter::Grant { device: _, contended, brief } => {
                    (state.held, state.recalled, state.asked) = (true, false, false);
                    (state.contended, state.brief) = (contended, brief);
                    (state.used, state.idle) = (0, Monotonic::now());
                    gpu.publish(&state);
                    gpu.granted.notify_all();
                }
                FromArbiter::Contended { device: _ } => {
                    state.contended = true;
                    gpu.publish(&state);
                }
                FromArbiter::Brief { device: _ } => state.brief = true,
                FromArbiter::Recall { device: _ } if state.held => {
                    state.recalled = true;
                    if state.working == 0 {
                        self.give_back(device, gpu, &mut state);
                    }
                    gpu.publish(&state);
                }
                // It crossed the turn that was given back.
                FromArbiter::Recall { device: _ } => {}
            }
        }
    }

    /// There is no arbiter any more: whoever waits goes ahead until the next one connects.
    fn lost(&self) {
        *self.line.lock().unwrap_or_else(PoisonError::into_inner) = None;
        for gpu in &self.gpus {
            let mut state = gpu.state();
            (state.arbitrated, state.held, state.recalled) = (false, false, false);
            (state.contended, state.asked, state.brief) = (false, false, false);
            gpu.publish(&state);
            gpu.granted.notify_all();
        }
    }
}

fn number(device: usize) -> u32 {
    u32::try_from(device).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
