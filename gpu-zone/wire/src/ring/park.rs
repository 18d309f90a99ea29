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

/// Waits until `ready` says so; `false` when the deadline came first.
pub(super) fn wait(
    parked: &AtomicU32,
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
        parked.store(1, Ordering::Relaxed);
        // Our flag must be visible before we look for the last time, as the other side's record
        // must be before it looks at the flag: one of the two sees the other.
        fence(Ordering::SeqCst);
        if ready()? {
            parked.store(0, Ordering::Relaxed);
            return Ok(true);
        }
        if !peer.is_there(slept) {
            parked.store(0, Ordering::Relaxed);
            // What was written before the other side went away still counts.
            return if ready()? { Ok(true) } else { Err(RingError::PeerGone) };
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            parked.store(0, Ordering::Relaxed);
            return ready();
        }
        slept = sleep(parked, left.map_or(peer.slice(), |left| left.min(peer.slice())));
    }
}

/// Sleeps while the flag stands; whether the whole time went by.
fn sleep(parked: &AtomicU32, time: Duration) -> bool {
    let timeout = rustix::time::Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    };
    // Any other answer (woken, flag changed, interrupted) means: look again.
    futex::wait(parked, futex::Flags::empty(), 1, Some(&timeout))
        == Err(rustix::io::Errno::TIMEDOUT)
}

/// Wakes the other side if it sleeps. To be called after publishing a position.
pub(super) fn wake_if_parked(parked: &AtomicU32) {
    fence(Ordering::SeqCst);
    if parked.load(Ordering::Relaxed) != 0 {
        wake(parked);
    }
}

pub(super) fn wake(parked: &AtomicU32) {
    parked.store(0, Ordering::Relaxed);
    // Fails for no reason that a waker could do something about; sleepers look again anyway.
    let _ = futex::wake(parked, futex::Flags::empty(), 1);
}
