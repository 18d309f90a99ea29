use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::time::{Duration, Instant};

use rustix::thread::futex;

use super::RingError;

/// Looks between two offers to let another thread run: about a microsecond.
const SPINS: u32 = 64;

/// How long a waiting side looks again and again before it sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spin {
    /// Time to spin.
    pub time: Duration,
}

impl Default for Spin {
    /// A few microseconds, or none where there is one processor and the other side needs it.
    fn default() -> Self {
        let alone =
            std::thread::available_parallelism().is_ok_and(|processors| processors.get() < 2);
        Self { time: Duration::from_micros(if alone { 0 } else { 5 }) }
    }
}

/// Whether the other side is still there.
pub trait Peer {
    /// Asked before each sleep and after it; `slept` says that a whole [`Peer::slice`] went by
    /// without a sign, so a costly look is worth it.
    fn is_there(&self, slept: bool) -> bool;

    /// The longest sleep between two looks.
    fn slice(&self) -> Duration;
}

/// A peer that is always there: for both ends in one process.
#[derive(Clone, Copy, Debug)]
pub struct Always;

impl Peer for Always {
    fn is_there(&self, _slept: bool) -> bool {
        true
    }

    fn slice(&self) -> Duration {
        Duration::from_secs(1)
    }
}

/// A word that says whether one side sleeps, and on which it does.
pub(super) trait Parking {
    fn load(&self) -> u32;
    fn store(&self, value: u32);
    /// Sequentially consistent.
    fn fence();
    /// Sleeps while the word is 1; whether the whole time went by.
    fn sleep(&self, time: Duration) -> bool;
    /// Wakes whoever sleeps on it.
    fn wake_sleeper(&self);
}

impl Parking for AtomicU32 {
    fn load(&self) -> u32 {
        Self::load(self, Ordering::Relaxed)
    }

    fn store(&self, value: u32) {
        Self::store(self, value, Ordering::Relaxed);
    }

    fn fence() {
        fence(Ordering::SeqCst);
    }

    fn sleep(&self, time: Duration) -> bool {
        let timeout = rustix::time::Timespec {
            tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: time.subsec_nanos().into(),
        };
        // Any other answer (woken, flag changed, interrupted) means: look again.
        futex::wait(self, futex::Flags::empty(), 1, Some(&timeout))
            == Err(rustix::io::Errno::TIMEDOUT)
    }

    fn wake_sleeper(&self) {
        // Fails for no reason that a waker could do something about; sleepers look again anyway.
        let _ = futex::wake(self, futex::Flags::empty(), 1);
    }
}

/// Waits until `ready` says so; `false` when the deadline came first.
pub(super) fn wait<P: Parking>(
    parked: &P,
    spin: Spin,
    deadline: Option<Instant>,
    peer: &dyn Peer,
    mut ready: impl FnMut() -> Result<bool, RingError>,
) -> Result<bool, RingError> {
    if ready()? {
        return Ok(true);
    }
    if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
        return Ok(false);
    }
    let began = Instant::now();
    while began.elapsed() < spin.time {
        for _ in 0..SPINS {
            std::hint::spin_loop();
            if ready()? {
                return Ok(true);
            }
        }
        // The other side may have been woken onto this very processor.
        std::thread::yield_now();
    }
    let mut slept = false;
    loop {
        parked.store(1);
        // Our flag must be visible before we look for the last time, as the other side's record
        // must be before it looks at the flag: one of the two sees the other.
        P::fence();
        if ready()? {
            parked.store(0);
            return Ok(true);
        }
        if !peer.is_there(slept) {
            parked.store(0);
            // What was written before the other side went away still counts.
            return if ready()? { Ok(true) } else { Err(RingError::PeerGone) };
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            parked.store(0);
            return ready();
        }
        slept = parked.sleep(left.map_or(peer.slice(), |left| left.min(peer.slice())));
    }
}

/// Wakes the other side if it sleeps. To be called after publishing a position.
pub(super) fn wake_if_parked<P: Parking>(parked: &P) {
    P::fence();
    if parked.load() != 0 {
        wake(parked);
    }
}

/// Wakes the other side, whether it sleeps or is about to, so that it looks again whether its
/// peer is there. To be called after that has changed.
pub(super) fn wake_to_look<P: Parking>(parked: &P) {
    // Who is about to sleep has set the flag and then looks at the peer: either it sees what has
    // changed, or the flag is cleared after it was set and the kernel lets nobody sleep.
    P::fence();
    wake(parked);
}

fn wake(parked: &impl Parking) {
    parked.store(0);
    parked.wake_sleeper();
}
