//! A program that measures what it gets done.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use anyhow::ensure;
use cudarc::driver::{LaunchConfig, PushKernelArg};

use crate::device::{Device, named};
use crate::input;
use crate::numbers::Numbers;

/// Elements of each vector: a kernel of well under a millisecond, even a simulated one.
const N: u32 = 2048;
/// Launches before the result is looked at: the GPU is kept busy meanwhile.
const BATCH: u32 = 16;

/// Launches, checks, counts; a line for each piece of time, with the moment of its end by the
/// wall clock, in microseconds.
#[expect(clippy::print_stdout, reason = "a program's output")]
pub(crate) fn meter(device: &Device, every: u32) -> anyhow::Result<String> {
    let every = Duration::from_millis(every.into());
    let kernel = device.kernel("vector_add.ptx", "vector_add")?;
    let mut numbers = Numbers::new(7);
    let (a, b) = (numbers.floats(N as usize), numbers.floats(N as usize));
    // One addition after the other, as the launches do it.
    let sum = |a: f32, b: f32| (0..BATCH).fold(a, |sum, _| sum + b);
    let wanted: Vec<f32> = a.iter().zip(&b).map(|(a, b)| sum(*a, *b)).collect();
    let (mut sums, b) = (device.upload(&a)?, device.upload(&b)?);
    let mut next = device.upload(&a)?;
    let over = input::ends();
    let (mut all, mut done, mut window) = (0_u64, 0_u64, 0_u64);
    let begin = Instant::now();
    let mut since = begin;
    while !over.load(Ordering::Relaxed) {
        device.stream.memcpy_htod(&a, &mut sums).map_err(named)?;
        for _ in 0..BATCH {
            let mut launch = device.stream.launch_builder(&kernel);
            launch.arg(&mut next).arg(&sums).arg(&b).arg(&N);
            let config = LaunchConfig::for_num_elems(N);
            // SAFETY: the arguments are vector_add's, and each vector has N elements.
            unsafe { launch.launch(config) }.map_err(named)?;
            std::mem::swap(&mut sums, &mut next);
        }
        ensure!(device.download(&sums)? == wanted, "meter: WRONG after {all} launches");
        all += u64::from(BATCH);
        done += u64::from(BATCH);
        let passed = since.elapsed();
        if passed >= every {
            let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_micros();
            let passed = passed.as_micros();
            println!("meter: window={window} launches={done} microseconds={passed} at={at}");
            (done, window, since) = (0, window + 1, Instant::now());
        }
    }
    Ok(format!("meter: ok iterations={all} seconds={:.2}", begin.elapsed().as_secs_f64()))
}
