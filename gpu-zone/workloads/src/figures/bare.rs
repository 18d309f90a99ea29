//! Two threads that pass a number to and fro by nothing but memory: what no call can beat.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::thread::futex;

use super::{median, nanoseconds};

/// Times that are looked at together.
const BATCH: u32 = 200;

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

/// Nanoseconds to and fro, the partner asleep each time, and so is who waits for it.
pub(super) fn sleeping(times: u32) -> anyhow::Result<f64> {
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
    std::thread::scope(|scope| {
        let partner = std::thread::Builder::new()
            .spawn_scoped(scope, || partner(&ball, times, wait, pass))
            .context("no second thread")?;
        let one = |_| {
            // The partner has gone to sleep by then.
            std::thread::sleep(Duration::from_micros(300));
            let began = Instant::now();
            pass(1);
            wait(0);
            nanoseconds(began.elapsed(), 1)
        };
        let found = median((0..times).map(one).collect());
        drop(partner);
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
