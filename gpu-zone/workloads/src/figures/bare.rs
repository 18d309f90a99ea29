//! Two threads that pass a number to and fro by nothing but memory: what no call can beat.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::thread::{CpuSet, futex, sched_getaffinity, sched_setaffinity};

use super::{median, nanoseconds};

/// Times that are looked at together.
pub(super) const BATCH: u32 = 200;
/// Who waits for so long has gone to sleep.
pub(super) const PAUSE: Duration = Duration::from_micros(300);

fn partner(ball: &AtomicU32, times: u32, wait: impl Fn(u32), pass: impl Fn(u32)) {
    for _ in 0..times {
        wait(1);
        pass(0);
    }
    debug_assert_eq!(ball.load(Ordering::Relaxed), 0);
}

/// Nanoseconds to and fro, both awake.
pub(super) fn spinning(times: u32) -> f64 {
    let ball = AtomicU32::new(0);
    let wait = |value| {
        while ball.load(Ordering::Acquire) != value {
            spin_loop();
        }
    };
    let pass = |value| ball.store(value, Ordering::Release);
    let batches = times.div_ceil(BATCH);
    std::thread::scope(|scope| {
        scope.spawn(|| partner(&ball, batches * BATCH, wait, pass));
        let batch = |_| {
            let began = Instant::now();
            for _ in 0..BATCH {
                pass(1);
                wait(0);
            }
            nanoseconds(began.elapsed(), BATCH)
        };
        median((0..batches).map(batch).collect())
    })
}

/// Nanoseconds to and fro, both awake, each time by a line of memory that both last touched many
/// times ago: as records of rings of the usual size have to, for data of any size lie there, too.
pub(super) fn through_windows(times: u32) -> f64 {
    /// Of each window, 4 MiB in all.
    const LINES: u64 = 1 << 16;
    #[repr(align(64))]
    struct Line(AtomicU64);
    fn at(window: &[Line], number: u64) -> &AtomicU64 {
        &window[usize::try_from(number % LINES).unwrap_or(0)].0
    }
    let window = || -> Vec<Line> { (0..LINES).map(|_| Line(AtomicU64::new(0))).collect() };
    let (there, back) = (window(), window());
    let pass = |window: &[Line], number: u64| at(window, number).store(number, Ordering::Release);
    let wait = |window: &[Line], number: u64| {
        while at(window, number).load(Ordering::Acquire) != number {
            spin_loop();
        }
    };
    let batches = times.div_ceil(BATCH);
    let upto = u64::from(batches * BATCH);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 1..=upto {
                wait(&there, number);
                pass(&back, number);
            }
        });
        let batch = |batch: u32| {
            let began = Instant::now();
            for number in 1..=u64::from(BATCH) {
                let number = u64::from(batch * BATCH) + number;
                pass(&there, number);
                wait(&back, number);
            }
            nanoseconds(began.elapsed(), BATCH)
        };
        median((0..batches).map(batch).collect())
    })
}

/// Where the two threads run.
#[derive(Clone, Copy, Debug)]
pub(super) enum Where {
    /// Where the kernel has them: on one processor, mostly, where each runs as the other falls asleep.
    Anywhere,
    /// Each on a processor of its own, as a program and its worker are that both have something to do.
    Apart([usize; 2]),
}

impl Where {
    /// Binds the calling thread, which is the first or the second.
    fn bind(self, which: usize) {
        if let Self::Apart(processors) = self {
            let mut only = CpuSet::new();
            only.set(processors[which]);
            // One that is not bound makes the figure that of [`Where::Anywhere`], and no worse.
            let _ = sched_setaffinity(None, &only);
        }
    }
}

/// Two processors that this program may use, if it may use two.
pub(super) fn two_processors() -> Option<Where> {
    let all = sched_getaffinity(None).ok()?;
    let mut usable = (0..CpuSet::MAX_CPU).filter(|processor| all.is_set(*processor));
    Some(Where::Apart([usable.next()?, usable.next()?]))
}

/// Nanoseconds to and fro, the partner asleep each time, and so is who waits for it.
pub(super) fn sleeping(times: u32, place: Where) -> anyhow::Result<f64> {
    let ball = AtomicU32::new(0);
    let wait = |value: u32| {
        while ball.load(Ordering::Acquire) != value {
            // Whatever it answers, the loop looks again.
            let _ = futex::wait(&ball, futex::Flags::empty(), 1 - value, None);
        }
    };
    let pass = |value| {
        ball.store(value, Ordering::Release);
        // Nobody may sleep yet.
        let _ = futex::wake(&ball, futex::Flags::empty(), 1);
    };
    let times = times.min(500);
    let before = sched_getaffinity(None).context("no processors are known")?;
    std::thread::scope(|scope| {
        let body = || {
            place.bind(1);
            partner(&ball, times, wait, pass);
        };
        let started = std::thread::Builder::new().spawn_scoped(scope, body);
        started.context("no second thread")?;
        place.bind(0);
        let one = |_| {
            // The partner has gone to sleep by then.
            std::thread::sleep(PAUSE);
            let began = Instant::now();
            pass(1);
            wait(0);
            nanoseconds(began.elapsed(), 1)
        };
        let found = median((0..times).map(one).collect());
        sched_setaffinity(None, &before).context("bound to a processor for ever")?;
        Ok(found)
    })
}

/// Gigabytes a second that two threads pass on through a window, one copying in and one copying out, by
/// plain copies: to set beside what copies by way of the rings reach.
pub(super) fn staged(bytes: usize, rounds: u32) -> f64 {
    /// As the library does it: pieces of a record, in a ring of the usual size.
    const PIECE: usize = 512 << 10;
    const PLACES: usize = 8;
    let (source, mut target) = (vec![0x17_u8; bytes], vec![0_u8; bytes]);
    let window: Vec<Mutex<Vec<u8>>> = (0..PLACES).map(|_| vec![0; PIECE].into()).collect();
    let place =
        |piece: usize| window[piece % PLACES].lock().unwrap_or_else(PoisonError::into_inner);
    let mut rates = Vec::new();
    for _ in 0..=rounds.max(1) {
        let (written, read) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let began = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for (number, piece) in source.chunks(PIECE).enumerate() {
                    while number - read.load(Ordering::Acquire) >= PLACES {
                        spin_loop();
                    }
                    place(number)[..piece.len()].copy_from_slice(piece);
                    written.store(number + 1, Ordering::Release);
                }
            });
            for (number, piece) in target.chunks_mut(PIECE).enumerate() {
                while written.load(Ordering::Acquire) <= number {
                    spin_loop();
                }
                piece.copy_from_slice(&place(number)[..piece.len()]);
                read.store(number + 1, Ordering::Release);
            }
        });
        let bytes = f64::from(u32::try_from(bytes).unwrap_or(u32::MAX));
        rates.push(bytes / began.elapsed().as_secs_f64() / 1e9);
    }
    assert!(source == target, "every byte went through");
    // The first one touched what was never touched before.
    median(rates.split_off(1))
}
