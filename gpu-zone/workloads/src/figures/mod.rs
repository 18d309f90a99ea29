//! What calls cost: the same program measures the driver itself and the mediated path, so that
//! two of its outputs make ratios.

mod bare;
mod copies;

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cudarc::driver::{CudaFunction, LaunchConfig, PushKernelArg, result};
use cudarc::nvrtc::Ptx;
use serde_json::{Map, Value, json};

use crate::device::{Device, named};
use crate::numbers::{Numbers, checksum};

/// Does nothing, in one thread.
const EMPTY: &str = ".version 7.0\n.target sm_52\n.address_size 64\n\
                     .visible .entry empty()\n{\n ret;\n}\n";
/// Launches that are posted in a row before the clock is looked at.
const BURST: u32 = 16;

/// How much is measured.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) launches: u32,
    pub(crate) calls: u32,
    pub(crate) copy_bytes: usize,
    pub(crate) rounds: u32,
    pub(crate) matmul: Vec<u32>,
    /// Only figures with one of these in their names; all if there is none.
    pub(crate) only: Vec<String>,
}

impl Wanted {
    /// Whether one of these figures is.
    fn wants(&self, figures: &[&str]) -> bool {
        let is_one = |word: &String| figures.iter().any(|figure| figure.contains(word.as_str()));
        self.only.is_empty() || self.only.iter().any(is_one)
    }
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn nanoseconds(time: Duration, each: u32) -> f64 {
    time.as_secs_f64() * 1e9 / f64::from(each.max(1))
}

/// All figures, as a JSON object of numbers.
pub(crate) fn figures(device: &Device, wanted: &Wanted) -> anyhow::Result<String> {
    let mut found = Map::new();
    let mut note = |name: &str, value: f64| {
        found.insert(name.to_owned(), json!(value));
    };
    note("bare_spin_ns", bare::spinning(wanted.calls));
    note("bare_lines_ns", bare::through_windows(wanted.calls));
    note("bare_futex_ns", bare::sleeping(wanted.calls, bare::Where::Anywhere)?);
    if let Some(pair) = bare::two_processors() {
        note("bare_futex_apart_ns", bare::sleeping(wanted.calls, pair)?);
    }
    let module = device.context.load_module(Ptx::from_src(EMPTY)).map_err(named)?;
    let empty = module.load_function("empty").map_err(named)?;
    if wanted.wants(&["post_launch_ns"]) {
        note("post_launch_ns", post(device, &empty, wanted.calls / BURST)?);
    }
    if wanted.wants(&["launches_ns_each"]) {
        note("launches_ns_each", many(device, &empty, wanted.launches)?);
    }
    if wanted.wants(&["call_awake_ns"]) {
        note("call_awake_ns", calls_in_a_row(wanted.calls)?);
    }
    if wanted.wants(&["call_parked_ns"]) {
        note("call_parked_ns", calls_with_pauses(wanted.calls.min(500))?);
    }
    if wanted.wants(&copies::NAMES) {
        note("bare_staged_gb_s", bare::staged(wanted.copy_bytes, wanted.rounds));
        let rates = copies::rates(device, wanted.copy_bytes, wanted.rounds)?;
        copies::NAMES.into_iter().zip(rates).for_each(|(name, rate)| note(name, rate));
    }
    for n in &wanted.matmul {
        let name = format!("matmul_{n}_ms");
        if wanted.wants(&[&name]) {
            note(&name, matmul(device, *n, wanted.rounds)?);
        }
    }
    if wanted.wants(&["workload_ms"]) {
        let (time, sum) = workload(device, wanted.rounds)?;
        note("workload_ms", time);
        note("workload_checksum", sum);
    }
    Ok(Value::Object(found).to_string())
}

fn launch(device: &Device, kernel: &CudaFunction) -> anyhow::Result<()> {
    // SAFETY: the kernel has no parameters and does nothing.
    let launched = unsafe {
        let (function, stream) = (kernel.cu_function(), device.stream.cu_stream());
        result::launch_kernel(function, (1, 1, 1), (1, 1, 1), 0, stream, &mut [])
    };
    launched.map_err(named)
}

fn synchronize(device: &Device) -> anyhow::Result<()> {
    device.stream.synchronize().map_err(named)
}

/// What a launch keeps the program, while there is room for more.
fn post(device: &Device, kernel: &CudaFunction, bursts: u32) -> anyhow::Result<f64> {
    let mut each = Vec::new();
    for _ in 0..bursts.max(1) {
        let began = Instant::now();
        for _ in 0..BURST {
            launch(device, kernel)?;
        }
        each.push(nanoseconds(began.elapsed(), BURST));
        synchronize(device)?;
    }
    Ok(median(each))
}

/// What each of many launches takes until all are done.
fn many(device: &Device, kernel: &CudaFunction, launches: u32) -> anyhow::Result<f64> {
    synchronize(device)?;
    let began = Instant::now();
    for _ in 0..launches {
        launch(device, kernel)?;
    }
    synchronize(device)?;
    Ok(nanoseconds(began.elapsed(), launches))
}

/// A call that is answered.
fn call() -> anyhow::Result<()> {
    let (free, total) = result::mem_get_info().map_err(named)?;
    ensure!(free <= total, "{free} bytes of {total} are free");
    Ok(())
}

/// What a call that is answered takes, many in a row, as [`bare::spinning`] has it: to read the clock
/// for each would be a tenth of it.
fn calls_in_a_row(count: u32) -> anyhow::Result<f64> {
    let mut each = Vec::new();
    for _ in 0..count.div_ceil(bare::BATCH) {
        let began = Instant::now();
        for _ in 0..bare::BATCH {
            call()?;
        }
        each.push(nanoseconds(began.elapsed(), bare::BATCH));
    }
    Ok(median(each))
}

/// The same, with a pause before each in which whoever answers goes to sleep.
fn calls_with_pauses(count: u32) -> anyhow::Result<f64> {
    let mut each = Vec::new();
    for _ in 0..count.max(1) {
        std::thread::sleep(bare::PAUSE);
        let began = Instant::now();
        call()?;
        each.push(nanoseconds(began.elapsed(), 1));
    }
    Ok(median(each))
}

/// A matrix product on the device, without its copies.
fn matmul(device: &Device, n: u32, rounds: u32) -> anyhow::Result<f64> {
    let kernel = device.kernel("matmul_tiled.ptx", "matmul_tiled")?;
    let size = (n as usize).checked_mul(n as usize).context("the matrix is too large")?;
    let mut numbers = Numbers::new(8);
    let (a, b) = (device.upload(&numbers.floats(size))?, device.upload(&numbers.floats(size))?);
    let mut c = device.upload(&vec![0.0_f32; size])?;
    let config = LaunchConfig {
        grid_dim: (n.div_ceil(16), n.div_ceil(16), 1),
        block_dim: (16, 16, 1),
        shared_mem_bytes: 0,
    };
    let mut times = Vec::new();
    for _ in 0..rounds.max(1) {
        synchronize(device)?;
        let began = Instant::now();
        let mut launch = device.stream.launch_builder(&kernel);
        launch.arg(&mut c).arg(&a).arg(&b).arg(&n).arg(&n).arg(&n);
        // SAFETY: the arguments are matmul_tiled's, and each matrix has n rows and n columns.
        unsafe { launch.launch(config) }.map_err(named)?;
        synchronize(device)?;
        times.push(nanoseconds(began.elapsed(), 1) / 1e6);
    }
    Ok(median(times))
}

/// SAXPY, a matrix product and a softmax with their copies, again and again: the milliseconds
/// of a round, and the sum of its results, which is the same each time.
fn workload(device: &Device, rounds: u32) -> anyhow::Result<(f64, f64)> {
    const N: u32 = 192;
    const LONG: u32 = 1 << 18;
    let saxpy = device.kernel("saxpy.ptx", "saxpy")?;
    let matmul = device.kernel("matmul_tiled.ptx", "matmul_tiled")?;
    let softmax = device.kernel("softmax.ptx", "softmax")?;
    let mut numbers = Numbers::new(9);
    let (x, y) = (numbers.floats(LONG as usize), numbers.floats(LONG as usize));
    let a = numbers.floats((N * N) as usize);
    let (mut times, mut sums) = (Vec::new(), Vec::new());
    for _ in 0..rounds.max(1) {
        let began = Instant::now();
        let (x, mut y, a) = (device.upload(&x)?, device.upload(&y)?, device.upload(&a)?);
        let mut product = device.upload(&vec![0.0_f32; (N * N) as usize])?;
        let mut rows = device.upload(&vec![0.0_f32; (N * N) as usize])?;
        let flat = LaunchConfig {
            grid_dim: (LONG.div_ceil(256), 1, 1),
            block_dim: (256, 1, 1),
            shared_mem_bytes: 0,
        };
        let mut launch = device.stream.launch_builder(&saxpy);
        launch.arg(&mut y).arg(&x).arg(&2.5_f32).arg(&LONG);
        // SAFETY: the arguments are saxpy's, and both vectors have so many elements.
        unsafe { launch.launch(flat) }.map_err(named)?;
        let tiles = LaunchConfig { grid_dim: (N / 16, N / 16, 1), block_dim: (16, 16, 1), ..flat };
        let mut launch = device.stream.launch_builder(&matmul);
        launch.arg(&mut product).arg(&a).arg(&a).arg(&N).arg(&N).arg(&N);
        // SAFETY: the arguments are matmul_tiled's, and each matrix has N rows and N columns.
        unsafe { launch.launch(tiles) }.map_err(named)?;
        let lines = LaunchConfig { grid_dim: (N, 1, 1), shared_mem_bytes: 1024, ..flat };
        let mut launch = device.stream.launch_builder(&softmax);
        launch.arg(&mut rows).arg(&product).arg(&N);
        // SAFETY: the arguments are softmax's: a block a row, a float of shared memory a thread.
        unsafe { launch.launch(lines) }.map_err(named)?;
        let (y, rows) = (device.download(&y)?, device.download(&rows)?);
        times.push(nanoseconds(began.elapsed(), 1) / 1e6);
        sums.push(checksum(&y) + checksum(&rows));
    }
    let first = sums.first().copied().unwrap_or(f64::NAN);
    ensure!(sums.iter().all(|sum| *sum == first), "rounds of the same work differ: {sums:?}");
    Ok((median(times), first))
}
