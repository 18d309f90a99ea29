//! A program that measures what it gets done.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::ensure;
use cudarc::driver::{CudaFunction, CudaSlice, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;

use crate::device::{Device, named};
use crate::numbers::Numbers;

/// Elements of each vector: a kernel of well under a millisecond, even a simulated one.
const N: u32 = 2048;
/// Launches before the result is looked at: the GPU is kept busy meanwhile.
const BATCH: u32 = 16;

/// Keeps the GPU for so many nanoseconds, and a simulated one without a processor of the host's: so
/// do a real GPU's kernels.
const HOLD: &str = ".version 8.0\n.target sm_70\n.address_size 64\n\
    .visible .entry hold(.param .u64 nanoseconds)\n{\n\
    .reg .pred %p<2>;\n.reg .b32 %r<2>;\n.reg .b64 %rd<5>;\n\
    ld.param.u64 %rd1, [nanoseconds];\n\
    mov.u64 %rd2, %globaltimer;\nadd.s64 %rd3, %rd2, %rd1;\n\
    $again:\nmov.u64 %rd4, %globaltimer;\nsetp.ge.u64 %p1, %rd4, %rd3;\n@%p1 bra $done;\n\
    sub.s64 %rd4, %rd3, %rd4;\ncvt.u32.u64 %r1, %rd4;\nnanosleep.u32 %r1;\nbra.uni $again;\n\
    $done:\nret;\n}\n";

/// The kernel that is launched.
enum Work {
    Add(CudaFunction),
    Hold(CudaFunction, u64),
}

impl Work {
    fn launch(
        &self,
        device: &Device,
        next: &mut CudaSlice<f32>,
        sums: &CudaSlice<f32>,
        b: &CudaSlice<f32>,
    ) -> anyhow::Result<()> {
        let launched = match self {
            Self::Add(kernel) => {
                let mut launch = device.stream.launch_builder(kernel);
                launch.arg(next).arg(sums).arg(b).arg(&N);
                // SAFETY: the arguments are vector_add's, and each vector has N elements.
                unsafe { launch.launch(LaunchConfig::for_num_elems(N)) }
            }
            Self::Hold(kernel, nanoseconds) => {
                let mut launch = device.stream.launch_builder(kernel);
                launch.arg(nanoseconds);
                // SAFETY: the argument is hold's; it touches no memory.
                unsafe { launch.launch(LaunchConfig::for_num_elems(1)) }
            }
        };
        launched.map(drop).map_err(named)
    }

    /// What is in the vector after a batch.
    fn wanted(&self, a: &[f32], b: &[f32]) -> Vec<f32> {
        // One addition after the other, as the launches do it.
        let sum = |a: f32, b: f32| (0..BATCH).fold(a, |sum, _| sum + b);
        match self {
            Self::Add(_) => a.iter().zip(b).map(|(a, b)| sum(*a, *b)).collect(),
            Self::Hold(..) => a.to_vec(),
        }
    }
}

/// Launches, checks, counts; a line for each piece of time, with the moment of its end by the
/// wall clock, in microseconds. With `hold`, the kernels do nothing for so many microseconds.
#[expect(clippy::print_stdout, reason = "a program's output")]
pub(crate) fn meter(device: &Device, every: u32, hold: Option<u32>) -> anyhow::Result<String> {
    let every = Duration::from_millis(every.into());
    let work = match hold {
        None => Work::Add(device.kernel("vector_add.ptx", "vector_add")?),
        Some(microseconds) => {
            let module = device.context.load_module(Ptx::from_src(HOLD)).map_err(named)?;
            let kernel = module.load_function("hold").map_err(named)?;
            Work::Hold(kernel, u64::from(microseconds) * 1_000)
        }
    };
    let mut numbers = Numbers::new(7);
    let (a, b) = (numbers.floats(N as usize), numbers.floats(N as usize));
    let wanted = work.wanted(&a, &b);
    let (mut sums, b) = (device.upload(&a)?, device.upload(&b)?);
    let mut next = device.upload(&a)?;
    let over = input_ends();
    let (mut all, mut done, mut window) = (0_u64, 0_u64, 0_u64);
    let begin = Instant::now();
    let mut since = begin;
    while !over.load(Ordering::Relaxed) {
        device.stream.memcpy_htod(&a, &mut sums).map_err(named)?;
        for _ in 0..BATCH {
            work.launch(device, &mut next, &sums, &b)?;
            if matches!(work, Work::Add(_)) {
                std::mem::swap(&mut sums, &mut next);
            }
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

/// Set when the standard input ends.
fn input_ends() -> Arc<AtomicBool> {
    let over = Arc::new(AtomicBool::new(false));
    let told = over.clone();
    std::thread::spawn(move || {
        let mut byte = [0; 64];
        while matches!(std::io::stdin().read(&mut byte), Ok(1..)) {}
        told.store(true, Ordering::Relaxed);
    });
    over
}
