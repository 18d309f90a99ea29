//! Programs that compute something and check it.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cudarc::driver::{LaunchConfig, PushKernelArg};

use crate::device::{Device, named};
use crate::input;
use crate::numbers::{Numbers, checksum, largest_difference};

const BLOCK: u32 = 256;

fn grid(threads: (u32, u32), block: (u32, u32)) -> LaunchConfig {
    LaunchConfig {
        grid_dim: (threads.0.div_ceil(block.0), threads.1.div_ceil(block.1), 1),
        block_dim: (block.0, block.1, 1),
        shared_mem_bytes: 0,
    }
}

/// The line that a program ends with, or an error when the result is wrong.
fn verdict(what: &str, sum: f64, error: f64, limit: f64, begin: Instant) -> anyhow::Result<String> {
    let milliseconds = begin.elapsed().as_secs_f64() * 1e3;
    // A NaN is no number below the limit.
    ensure!(error <= limit, "{what}: WRONG, off by {error:.3e} where {limit:.1e} is allowed");
    Ok(format!("{what}: ok checksum={sum:.6} max_error={error:.3e} ms={milliseconds:.1}"))
}

pub(crate) fn vector_add(device: &Device, n: u32) -> anyhow::Result<String> {
    let begin = Instant::now();
    let kernel = device.kernel("vector_add.ptx", "vector_add")?;
    let mut numbers = Numbers::new(1);
    let (a, b) = (numbers.floats(n as usize), numbers.floats(n as usize));
    let (a_device, b_device) = (device.upload(&a)?, device.upload(&b)?);
    let mut out = device.upload(&vec![0.0_f32; n as usize])?;
    let mut launch = device.stream.launch_builder(&kernel);
    launch.arg(&mut out).arg(&a_device).arg(&b_device).arg(&n);
    // SAFETY: the arguments are vector_add's, and each vector has n elements.
    unsafe { launch.launch(grid((n, 1), (BLOCK, 1))) }.map_err(named)?;
    let got = device.download(&out)?;
    let wanted = a.iter().zip(&b).map(|(a, b)| f64::from(a + b));
    let error = largest_difference(&got, wanted);
    verdict(&format!("vector-add n={n}"), checksum(&got), error, 0.0, begin)
}

pub(crate) fn saxpy(device: &Device, n: u32) -> anyhow::Result<String> {
    let begin = Instant::now();
    let kernel = device.kernel("saxpy.ptx", "saxpy")?;
    let mut numbers = Numbers::new(2);
    let (x, y) = (numbers.floats(n as usize), numbers.floats(n as usize));
    let alpha = 2.5_f32;
    let (x_device, mut y_device) = (device.upload(&x)?, device.upload(&y)?);
    let mut launch = device.stream.launch_builder(&kernel);
    launch.arg(&mut y_device).arg(&x_device).arg(&alpha).arg(&n);
    // SAFETY: the arguments are saxpy's, and both vectors have n elements.
    unsafe { launch.launch(grid((n, 1), (BLOCK, 1))) }.map_err(named)?;
    let got = device.download(&y_device)?;
    let wanted = x.iter().zip(&y).map(|(x, y)| f64::from(alpha) * f64::from(*x) + f64::from(*y));
    let error = largest_difference(&got, wanted);
    verdict(&format!("saxpy n={n}"), checksum(&got), error, 1e-6, begin)
}

pub(crate) fn matmul(device: &Device, n: u32) -> anyhow::Result<String> {
    let begin = Instant::now();
    let kernel = device.kernel("matmul_tiled.ptx", "matmul_tiled")?;
    let size = (n as usize).checked_mul(n as usize).context("the matrix is too large")?;
    let mut numbers = Numbers::new(3);
    let (a, b) = (numbers.floats(size), numbers.floats(size));
    let (a_device, b_device) = (device.upload(&a)?, device.upload(&b)?);
    let mut c = device.upload(&vec![0.0_f32; size])?;
    let mut launch = device.stream.launch_builder(&kernel);
    launch.arg(&mut c).arg(&a_device).arg(&b_device).arg(&n).arg(&n).arg(&n);
    // SAFETY: the arguments are matmul_tiled's, and each matrix has n rows and n columns.
    unsafe { launch.launch(grid((n, n), (16, 16))) }.map_err(named)?;
    let got = device.download(&c)?;
    let error = largest_difference(&got, product(&a, &b, n as usize));
    // The rounding of n products of at most 1, added up one after the other.
    let limit = f64::from(n) * f64::from(n) * f64::from(f32::EPSILON);
    verdict(&format!("matmul n={n}"), checksum(&got), error, limit, begin)
}

fn product(a: &[f32], b: &[f32], n: usize) -> Vec<f64> {
    let mut c = vec![0.0; n * n];
    for (row, out) in a.chunks_exact(n).zip(c.chunks_exact_mut(n)) {
        for (factor, line) in row.iter().zip(b.chunks_exact(n)) {
            for (sum, value) in out.iter_mut().zip(line) {
                *sum += f64::from(*factor) * f64::from(*value);
            }
        }
    }
    c
}

pub(crate) fn softmax(device: &Device, rows: u32, columns: u32) -> anyhow::Result<String> {
    let begin = Instant::now();
    let kernel = device.kernel("softmax.ptx", "softmax")?;
    let size = (rows as usize).checked_mul(columns as usize).context("the matrix is too large")?;
    let input: Vec<f32> = Numbers::new(4).floats(size).iter().map(|x| x * 8.0).collect();
    let input_device = device.upload(&input)?;
    let mut out = device.upload(&vec![0.0_f32; size])?;
    let mut launch = device.stream.launch_builder(&kernel);
    launch.arg(&mut out).arg(&input_device).arg(&columns);
    let config = LaunchConfig {
        grid_dim: (rows, 1, 1),
        block_dim: (BLOCK, 1, 1),
        shared_mem_bytes: BLOCK * 4,
    };
    // SAFETY: the arguments are softmax's, one block a row and one float of shared memory a
    // thread, as it wants.
    unsafe { launch.launch(config) }.map_err(named)?;
    let got = device.download(&out)?;
    let wanted = input.chunks_exact(columns as usize).flat_map(|row| {
        let exponentials: Vec<f64> = row.iter().map(|x| f64::from(*x).exp()).collect();
        let sum: f64 = exponentials.iter().sum();
        exponentials.into_iter().map(move |x| x / sum)
    });
    let error = largest_difference(&got, wanted);
    verdict(&format!("softmax {rows}x{columns}"), checksum(&got), error, 1e-5, begin)
}

pub(crate) fn reduce(device: &Device, n: u32) -> anyhow::Result<String> {
    let begin = Instant::now();
    let kernel = device.kernel("reduce.ptx", "reduce")?;
    let input = Numbers::new(5).floats(n as usize);
    let input_device = device.upload(&input)?;
    let mut out = device.upload(&[0.0_f32])?;
    let mut launch = device.stream.launch_builder(&kernel);
    launch.arg(&mut out).arg(&input_device).arg(&n);
    // SAFETY: the arguments are reduce's; out is one float of zero, the block whole warps.
    unsafe { launch.launch(grid((n.div_ceil(4), 1), (BLOCK, 1))) }.map_err(named)?;
    let got = device.download(&out)?;
    let error = largest_difference(&got, [checksum(&input)]);
    let limit = f64::from(n) * f64::from(f32::EPSILON);
    verdict(&format!("reduce n={n}"), checksum(&got), error, limit, begin)
}

pub(crate) fn histogram(device: &Device, n: u32) -> anyhow::Result<String> {
    let begin = Instant::now();
    let kernel = device.kernel("histogram.ptx", "histogram")?;
    let data = Numbers::new(6).bytes(n as usize);
    let data_device = device.upload(&data)?;
    let mut counts = device.upload(&[0_u32; 256])?;
    let mut launch = device.stream.launch_builder(&kernel);
    launch.arg(&mut counts).arg(&data_device).arg(&n);
    // SAFETY: the arguments are histogram's: 256 counters of zero and n bytes.
    unsafe { launch.launch(grid((n.div_ceil(8), 1), (BLOCK, 1))) }.map_err(named)?;
    let got = device.download(&counts)?;
    let mut wanted = [0_u32; 256];
    for byte in data {
        wanted[usize::from(byte)] += 1;
    }
    let wrong = got.iter().zip(&wanted).filter(|(got, wanted)| got != wanted).count();
    let sum = got.iter().zip(1_u32..).map(|(count, bin)| f64::from(*count) * f64::from(bin)).sum();
    let wrong = f64::from(u32::try_from(wrong)?);
    verdict(&format!("histogram n={n}"), sum, wrong, 0.0, begin)
}

#[expect(clippy::print_stdout, reason = "a program's output")]
pub(crate) fn spin(device: &Device, rounds: u64) -> anyhow::Result<String> {
    let kernel = device.kernel("faults.ptx", "spin")?;
    let mut launch = device.stream.launch_builder(&kernel);
    let nowhere = 0_u64;
    launch.arg(&nowhere).arg(&rounds);
    let config = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (1, 1, 1), shared_mem_bytes: 0 };
    // SAFETY: the arguments are spin's, which writes nothing where its first is null.
    unsafe { launch.launch(config) }.map_err(named)?;
    println!("spin: launched");
    device.stream.synchronize().map_err(named).context("spin: the kernel did not end")?;
    Ok(format!("spin: ok rounds={rounds}"))
}

#[expect(clippy::print_stdout, reason = "a program's output")]
pub(crate) fn matmul_loop(device: &Device, n: u32, seconds: Option<f64>) -> anyhow::Result<String> {
    let begin = Instant::now();
    let is_over: Box<dyn Fn() -> bool> = match seconds {
        Some(seconds) => {
            let length = Duration::try_from_secs_f64(seconds);
            let length = length.context("--seconds is no length of time")?;
            Box::new(move || begin.elapsed() >= length)
        }
        None => {
            let over = input::ends();
            Box::new(move || over.load(Ordering::Relaxed))
        }
    };
    let mut iterations = 0_u64;
    while iterations == 0 || !is_over() {
        matmul(device, n).with_context(|| format!("iteration {iterations}"))?;
        iterations += 1;
        if iterations == 1 {
            println!("loop: running");
        }
    }
    Ok(format!(
        "loop n={n}: ok iterations={iterations} seconds={:.2}",
        begin.elapsed().as_secs_f64()
    ))
}

/// Each element becomes its neighbours' sum, again and again; all blocks meet after each step.
#[expect(clippy::print_stdout, reason = "a program's output")]
pub(crate) fn together(device: &Device, seconds: f64) -> anyhow::Result<String> {
    const N: u32 = 600;
    const STEPS: u32 = 8;
    let length = Duration::try_from_secs_f64(seconds).context("--seconds is no length of time")?;
    let kernel = device.kernel("cooperative.ptx", "ring_steps")?;
    let start: Vec<u32> = (0..N).collect();
    let step = |ring: Vec<u32>| -> Vec<u32> {
        let n = ring.len();
        (0..n).map(|i| ring[(i + 1) % n].wrapping_add(ring[(i + n - 1) % n])).collect()
    };
    let wanted = (0..STEPS).fold(start.clone(), |ring, _| step(ring));
    let (begin, mut grids) = (Instant::now(), 0_u64);
    while grids == 0 || begin.elapsed() < length {
        let mut ring = device.upload(&start)?;
        let mut launch = device.stream.launch_builder(&kernel);
        launch.arg(&mut ring).arg(&N).arg(&STEPS);
        // SAFETY: the arguments are ring_steps', with a thread for each of n elements.
        unsafe { launch.launch_cooperative(grid((N, 1), (64, 1))) }.map_err(named)?;
        ensure!(device.download(&ring)? == wanted, "together: WRONG in grid {grids}");
        grids += 1;
        if grids == 1 {
            println!("together: running");
        }
    }
    Ok(format!("together: ok grids={grids}"))
}
