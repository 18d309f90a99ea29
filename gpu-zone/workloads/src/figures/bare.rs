//! Two threads that pass a number to and fro by nothing but memory: what no call can beat.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicU32, Ordering};
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
