//! A tenant's process: launches kernels of one length when it is told to.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::{CudaContext, CudaStream, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;
use gpuzone_wire::stats::Monotonic;
use rustix::process::Signal;

const HOLD: &str = include_str!("hold.ptx");
const REDUCE: &str = include_str!("../../../sim/kernels/ptx/reduce.ptx");
const ROLE: &str = "FAIR_TIME_KERNEL_SIZE";
const KIND: &str = "FAIR_TIME_KERNEL_KIND";
const BLOCK: u32 = 256;

/// What a tenant launches.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kernel {
    /// Holds the simulated GPU for so many microseconds, and no host processor.
    Holds(u64),
    /// Computes for about so long; the simulated GPU does that on a host processor.
    Computes(u64),
    /// Sums up so many numbers, which is what the kernel above does.
    Sums(u32),
}

fn now() -> u64 {
    Monotonic::now().nanoseconds()
}

/// What a tenant does for a time.
#[derive(Clone, Copy)]
pub(crate) struct Work {
    pub(crate) time: Duration,
    /// Launches between two waits for the GPU.
    pub(crate) ahead: u32,
    /// After each wait.
    pub(crate) pause: Duration,
}

impl Work {
    pub(crate) fn greedy(time: Duration, ahead: u32) -> Self {
        Self { time, ahead, pause: Duration::ZERO }
    }
}

/// What it saw.
pub(crate) struct Seen {
    /// When it began and when it was done, in nanoseconds of the monotonic clock.
    pub(crate) begin: u64,
    pub(crate) end: u64,
    /// When each wait began and ended.
    pub(crate) waits: Vec<(u64, u64)>,
}

pub(crate) struct Tenant {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    /// How many numbers its kernels sum up, if they do.
    pub(crate) numbers: u32,
}

impl Tenant {
    /// A process of the lease whose slot this is; `shim` holds its `libcuda.so.1`.
    pub(crate) fn start(slot: &Path, shim: &Path, kernel: Kernel) -> Self {
        let (kind, size) = match kernel {
            Kernel::Holds(microseconds) => ("holds", microseconds),
            Kernel::Computes(microseconds) => ("computes", microseconds),
            Kernel::Sums(numbers) => ("sums", numbers.into()),
        };
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .env(ROLE, size.to_string())
            .env(KIND, kind)
            .env("GPUZONE_SLOT", slot)
            .env("LD_LIBRARY_PATH", shim)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a tenant");
        let stdin = child.stdin.take().expect("piped");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut tenant = Self { child, stdin, stdout, numbers: 0 };
        let line = tenant.line();
        let numbers = line.strip_prefix("ready ").expect("a ready tenant");
        tenant.numbers = numbers.parse().expect("a number");
        tenant
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.stdout.read_line(&mut line).expect("readable") > 0, "a tenant ended");
        line.trim().to_owned()
    }

    pub(crate) fn go(&mut self, work: Work) {
        let Work { time, ahead, pause } = work;
        writeln!(self.stdin, "{} {ahead} {}", time.as_nanos(), pause.as_nanos()).expect("heard");
    }

    pub(crate) fn seen(&mut self) -> Seen {
        let line = self.line();
        let mut numbers = line.split(' ').map(|number| number.parse().expect("a number"));
        let mut next = || numbers.next().expect("a number");
        let (begin, end, count) = (next(), next(), next());
        let waits = (0..count).map(|_| (next(), next())).collect();
        Seen { begin, end, waits }
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Is a tenant, if this process was started as one.
pub(crate) fn be_one_if_told() -> bool {
    let Ok(size) = std::env::var(ROLE) else { return false };
    // It ends with the benchmark, whatever it is doing.
    let ended = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    ended.expect("a signal at the benchmark's end");
    let size: u64 = size.parse().expect("a number");
    let context = CudaContext::new(0).expect("a context");
    let stream = context.new_stream().expect("a stream");
    match std::env::var(KIND).expect("a kind").as_str() {
        "holds" => hold(&context, &stream, size * 1_000),
        "computes" => compute(&context, &stream, Size::Microseconds(size)),
        "sums" => compute(&context, &stream, Size::Numbers(size as u32)),
        other => panic!("{other} is no kind of kernel"),
    }
    true
}

fn hold(context: &Arc<CudaContext>, stream: &Arc<CudaStream>, nanoseconds: u64) {
    let module = context.load_module(Ptx::from_src(HOLD)).expect("a module");
    let kernel = module.load_function("hold").expect("a kernel");
    let config = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (1, 1, 1), shared_mem_bytes: 0 };
    serve(stream, 0, &mut || {
        let mut launch = stream.launch_builder(&kernel);
        launch.arg(&nanoseconds);
        // SAFETY: the argument is hold's.
        unsafe { launch.launch(config) }.expect("launched");
    });
}

/// How long a kernel that computes is.
enum Size {
    Microseconds(u64),
    Numbers(u32),
}

fn compute(context: &Arc<CudaContext>, stream: &Arc<CudaStream>, size: Size) {
    let module = context.load_module(Ptx::from_src(REDUCE)).expect("a module");
    let kernel = module.load_function("reduce").expect("a kernel");
    let input = stream.alloc_zeros::<f32>(4 << 20).expect("memory");
    let mut out = stream.alloc_zeros::<f32>(1).expect("memory");
    let mut launch = |n: u32| {
        let (grid_dim, block_dim) = ((1, 1, 1), (BLOCK, 1, 1));
        let config = LaunchConfig { grid_dim, block_dim, shared_mem_bytes: 128 };
        let mut launch = stream.launch_builder(&kernel);
        launch.arg(&mut out).arg(&input).arg(&n);
        // SAFETY: the arguments are reduce's, and the vector is long enough.
        unsafe { launch.launch(config) }.expect("launched");
    };
    let n = match size {
        Size::Numbers(n) => n,
        Size::Microseconds(microseconds) => numbers_for(microseconds, &mut |n| {
            let begin = now();
            launch(n);
            stream.synchronize().expect("idle");
            now() - begin
        }),
    };
    serve(stream, n, &mut || launch(n));
}

/// How many numbers a kernel sums up in so long, when it is `timed` now.
fn numbers_for(microseconds: u64, timed: &mut dyn FnMut(u32) -> u64) -> u32 {
    let best = |timed: &mut dyn FnMut(u32) -> u64, n| (0..9).map(|_| timed(n)).min().expect("9");
    // A long one less a short one: what is left is the kernel's own time.
    let (short, long) = (best(timed, 2_000), best(timed, 202_000));
    let each = (long - short.min(long)) as f64 / 200_000.0;
    (microseconds as f64 * 1e3 / each).clamp(256.0, f64::from(4u32 << 20)) as u32
}

/// Does what it is told until nobody tells it anything any more.
#[expect(clippy::print_stdout, reason = "how it speaks to the benchmark")]
fn serve(stream: &CudaStream, numbers: u32, launch: &mut dyn FnMut()) {
    launch();
    stream.synchronize().expect("idle");
    println!("ready {numbers}");
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let mut numbers = line.split(' ').map(|number| number.parse::<u64>().expect("a number"));
        let mut next = || numbers.next().expect("a number");
        let (time, ahead, pause) = (next(), next(), next());
        let begin = now();
        let mut waits = Vec::new();
        while now() - begin < time {
            let from = now();
            (0..ahead).for_each(|_| launch());
            stream.synchronize().expect("idle");
            waits.push((from, now()));
            if pause > 0 {
                std::thread::sleep(Duration::from_nanos(pause));
            }
        }
        print!("{begin} {} {}", now(), waits.len());
        waits.iter().for_each(|(from, to)| print!(" {from} {to}"));
        println!();
    }
}
