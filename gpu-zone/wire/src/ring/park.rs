use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
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

/// With so many processors, one that looks takes nothing that the other side needs.
const ENOUGH: usize = 4;

impl Default for Spin {
    /// Some microseconds; few where there are few processors, and none where there is one and the other
    /// side needs it. To be woken from a sleep takes 12 µs and more where a halted processor is another
    /// machine's to wake.
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(2, usize::from);
        let microseconds = match processors {
            ..2 => 0,
            2..ENOUGH => 5,
            ENOUGH.. => 50,
        };
        Self { time: Duration::from_micros(microseconds) }
    }
}

/// How long a side that was asleep takes to come, where a halted processor is another machine's to wake.
const COMES_WITHIN: Duration = Duration::from_micros(60);

impl Spin {
    /// How long to look for the answer of a side that had to be woken for the question: who sleeps
    /// before that side has come has to be woken by it in turn, which takes as long once more.
    #[must_use]
    pub fn after_a_wake(self) -> Self {
        if self.time.is_zero() { self } else { Self { time: self.time.max(COMES_WITHIN) } }
    }

    /// As long as most waits for a GPU take, where there are enough processors: CUDA waits in this
    /// way, unless a program wants it to block.
    pub fn for_a_gpu() -> Self {
        let usual = Self::default();
        let enough = std::thread::available_parallelism().is_ok_and(|n| n.get() >= ENOUGH);
        if enough { Self { time: Duration::from_millis(1) } } else { usual }
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

/// What wakes sides that are in different machines: two event counters (`EFD_NONBLOCK`), whose
/// other ends somebody carries to the other machine.
#[derive(Debug)]
pub struct Bells {
    /// Wakes this side.
    pub ours: OwnedFd,
    /// Wakes the other.
    pub theirs: OwnedFd,
}

impl Bells {
    /// Sleeps until this side's bell rings; whether the whole time went by.
    fn sleep(&self, time: Duration) -> bool {
        let mut fds = [PollFd::new(&self.ours, PollFlags::IN)];
        if poll(&mut fds, Some(&timespec(time))) == Ok(0) {
            return true;
        }
        let mut count = [0u8; 8];
        // Empties the counter; nothing depends on its value.
        let _ = rustix::io::read(&self.ours, &mut count);
        false
    }

    fn ring(bell: &OwnedFd) {
        // Full means that it rings already.
        let _ = rustix::io::write(bell, &1u64.to_ne_bytes());
    }

    /// Wakes this side.
    pub(super) fn ring_own(&self) {
        Self::ring(&self.ours);
    }
}

/// Where one side of one ring sleeps.
///
/// It sleeps at the count of its wakes, not at its flag: whoever carries wakes to another machine
/// sleeps there too and misses none, for a count never comes back to what it was.
pub(super) trait Parking {
    /// Whether the side sleeps, or is about to.
    fn is_parked(&self) -> bool;
    fn set_parked(&self, parked: bool);
    /// How often the side was woken.
    fn wakes(&self) -> u32;
    /// Sequentially consistent.
    fn fence();
    /// Sleeps unless it was woken since it had been `seen` times; whether the whole time went by.
    fn sleep(&self, seen: u32, time: Duration) -> bool;
    /// Counts a wake, and wakes whoever sleeps here.
    fn wake(&self);
}

/// Where one side of one ring sleeps in truth.
pub(super) struct Place<'a> {
    pub(super) parked: &'a AtomicU32,
    pub(super) wakes: &'a AtomicU32,
    pub(super) bells: Option<&'a Bells>,
}

impl Parking for Place<'_> {
    #[inline]
    fn is_parked(&self) -> bool {
        self.parked.load(Ordering::Relaxed) != 0
    }

    #[inline]
    fn set_parked(&self, parked: bool) {
        self.parked.store(parked.into(), Ordering::Relaxed);
    }

    #[inline]
    fn wakes(&self) -> u32 {
        self.wakes.load(Ordering::Acquire)
    }

    #[inline]
    fn fence() {
        full_fence();
    }

    #[inline]
    fn sleep(&self, seen: u32, time: Duration) -> bool {
        match self.bells {
            Some(bells) => bells.sleep(time),
            None => sleep_at(self.wakes, seen, time),
        }
    }

    #[inline]
    fn wake(&self) {
        wake_at(self.wakes);
        if let Some(bells) = self.bells {
            Bells::ring(&bells.theirs);
        }
    }
}

/// A sequentially consistent fence. Each record that is written costs one.
#[cfg(target_arch = "x86_64")]
fn full_fence() {
    // A locked instruction orders as `mfence` does what is in ordinary memory, in a third of the time;
    // Linux has it as `smp_mb`. The compiler moves no access across it, as it may touch any memory.
    // SAFETY: it changes nothing: the word at the stack pointer is or-ed with 0.
    unsafe { std::arch::asm!("lock or dword ptr [rsp], 0") };
}

#[cfg(not(target_arch = "x86_64"))]
fn full_fence() {
    std::sync::atomic::fence(Ordering::SeqCst);
}

/// Waits until `ready` says so; `false` when the time was over first.
#[inline]
pub(super) fn wait<P: Parking>(
    place: &P,
    spin: Spin,
    limit: Option<Duration>,
    peer: &dyn Peer,
    mut ready: impl FnMut() -> Result<bool, RingError>,
) -> Result<bool, RingError> {
    if ready()? {
        return Ok(true);
    }
    if limit.is_some_and(|limit| limit.is_zero()) {
        return Ok(false);
    }
    // Mostly the other side is about to answer: the clock is left alone for the first looks.
    let mut began = None;
    while !spin.time.is_zero() {
        if look(&mut ready)? {
            return Ok(true);
        }
        // The other side may have been woken onto this very processor.
        std::thread::yield_now();
        if began.get_or_insert_with(Instant::now).elapsed() >= spin.time {
            break;
        }
    }
    let deadline = limit.map(|limit| began.unwrap_or_else(Instant::now) + limit);
    let mut slept = false;
    loop {
        let seen = place.wakes();
        place.set_parked(true);
        // Our flag must be visible before we look for the last time, as the other side's record
        // must be before it looks at the flag: one of the two sees the other.
        P::fence();
        if ready()? {
            place.set_parked(false);
            return Ok(true);
        }
        if !peer.is_there(slept) {
            place.set_parked(false);
            // What was written before the other side went away still counts.
            return if ready()? { Ok(true) } else { Err(RingError::PeerGone) };
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            place.set_parked(false);
            return ready();
        }
        slept = place.sleep(seen, left.map_or(peer.slice(), |left| left.min(peer.slice())));
    }
}

/// Looks a number of times.
#[inline]
fn look(ready: &mut impl FnMut() -> Result<bool, RingError>) -> Result<bool, RingError> {
    for _ in 0..SPINS {
        // Without a pause a processor has looks under way that turn out too early, and throws away what it
        // did since: that takes longer than the pause.
        std::hint::spin_loop();
        if ready()? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Wakes the other side if it sleeps and has `enough` to go on; whether it did. To be called after
/// publishing a position.
#[inline]
pub(super) fn wake_if_parked<P: Parking>(place: &P, enough: impl FnOnce() -> bool) -> bool {
    P::fence();
    let sleeps = place.is_parked() && enough();
    if sleeps {
        wake(place);
    }
    sleeps
}

/// Wakes the other side, whether it sleeps or is about to, so that it looks again whether its
/// peer is there. To be called after that has changed.
pub(super) fn wake_to_look<P: Parking>(place: &P) {
    // Who is about to sleep has looked at the count and then looks at the peer: either it sees what
    // has changed, or the count moves after it was seen and the kernel lets nobody sleep.
    P::fence();
    wake(place);
}

fn wake(place: &impl Parking) {
    place.set_parked(false);
    place.wake();
}

fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    }
}

/// Sleeps while the count stands at `seen`; whether the whole time went by.
pub(super) fn sleep_at(wakes: &AtomicU32, seen: u32, time: Duration) -> bool {
    // Any other answer (woken, count changed, interrupted) means: look again.
    futex::wait(wakes, futex::Flags::empty(), seen, Some(&timespec(time)))
        == Err(rustix::io::Errno::TIMEDOUT)
}

/// Counts a wake, and wakes all who sleep there.
pub(super) fn wake_at(wakes: &AtomicU32) {
    wakes.fetch_add(1, Ordering::SeqCst);
    // Fails for no reason that a waker could do something about; sleepers look again anyway.
    let _ = futex::wake(wakes, futex::Flags::empty(), i32::MAX.cast_unsigned());
}
