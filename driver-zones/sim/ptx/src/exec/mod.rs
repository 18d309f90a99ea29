//! Launching a kernel: the grid's blocks over host threads.

mod atomics;
mod block;
mod calls;
mod collective;
mod compute;
mod compute_rare;
mod convert;
mod cooperative;
mod double;
mod fault;
mod half;
mod host;
mod memory;
mod print;
mod registers;
mod rounding;
mod scalar_float;
mod scalar_int;
mod step;
mod warp;
pub(crate) mod windows;

pub use fault::Fault;
pub use print::PrintBuffer;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use crate::{DeviceMemory, Dim3, Kernel, Module};
use block::{BlockRunner, dynamic_offset};
use cooperative::Meeting;

/// The most shared memory that a block may have, static and dynamic.
const MAX_SHARED: u32 = 256 << 10;
/// The most memory that a block's registers and local memory may take here, and that all blocks
/// of a cooperative launch may.
const MAX_BLOCK_BYTES: usize = 256 << 20;
const MAX_TOGETHER_BYTES: usize = 1 << 30;

/// Warp instructions of a launch from which on other threads run blocks of it, too: what takes as long as
/// a thread to start, or some times that.
const WORTH_A_THREAD: u64 = 8192;

/// What to run, and on what.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Extent of the grid, in blocks.
    pub grid: Dim3,
    /// Extent of a block, in threads.
    pub block: Dim3,
    /// Bytes of shared memory beyond the kernel's static ones.
    pub dynamic_shared_bytes: u32,
    /// All blocks run at once, and may wait for each other (`grid.sync()`).
    pub cooperative: bool,
    /// The parameter buffer, laid out as [`Kernel::params`] says.
    pub params: &'a [u8],
    /// Device address of each of [`Module::globals`].
    pub globals: &'a [u64],
    /// Set by the caller to end the launch early with [`Fault::Cancelled`].
    pub cancel: &'a AtomicBool,
    /// Takes what the kernel prints.
    pub prints: &'a PrintBuffer,
    /// Host threads to use; 0 counts as 1.
    pub threads: usize,
    /// Rate at which `%clock` and `%clock64` advance, in Hz.
    pub clock_hz: u64,
}

/// What a finished launch did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaunchReport {
    /// Instructions executed, counted once per warp.
    pub warp_instructions: u64,
}

/// Executes a kernel to its end.
///
/// # Errors
///
/// The first [`Fault`] of any thread. Writes that came before it stay.
pub fn execute(
    module: &Module,
    kernel: &Kernel,
    launch: &Launch<'_>,
    memory: &dyn DeviceMemory,
) -> Result<LaunchReport, Fault> {
    execute_within(module, kernel, launch, memory, u64::MAX)
}

/// Executes a kernel, ending it with [`Fault::LaunchTimeout`] soon after it has
/// executed `budget` warp instructions.
///
/// # Errors
///
/// As [`execute`].
pub fn execute_within(
    module: &Module,
    kernel: &Kernel,
    launch: &Launch<'_>,
    memory: &dyn DeviceMemory,
    budget: u64,
) -> Result<LaunchReport, Fault> {
    let blocks = validate(module, kernel, launch)?;
    let meeting = Meeting::beside(memory);
    let grid = GridRun {
        kernel,
        launch,
        memory: if launch.cooperative { &meeting } else { memory },
        budget,
        blocks,
        next: AtomicU64::new(0),
        executed: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        fault: Mutex::new(None),
        started: Instant::now(),
    };
    let wanted = u64::try_from(launch.threads.clamp(1, 1024)).unwrap_or(1);
    let workers = u32::try_from(wanted.min(blocks)).unwrap_or(1);
    grid.run(workers);
    match grid.fault.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        Some(fault) => Err(fault),
        None => Ok(LaunchReport { warp_instructions: grid.executed.into_inner() }),
    }
}

/// Checks that the launch fits the kernel; returns the number of blocks.
fn validate(module: &Module, kernel: &Kernel, launch: &Launch<'_>) -> Result<u64, Fault> {
    let invalid = |reason| Err(Fault::InvalidLaunch(reason));
    let Some(blocks @ 1..) = launch.grid.count() else {
        return invalid("the grid has no blocks, or more than fit 64 bits");
    };
    let threads = match launch.block.count() {
        Some(threads) if (1..=u64::from(kernel.max_threads)).contains(&threads) => threads,
        _ => return invalid("the block has no threads, or more than the kernel allows"),
    };
    if launch.params.len() < kernel.param_bytes as usize {
        return invalid("the parameter buffer is shorter than the kernel's parameters");
    }
    if launch.globals.len() < module.globals.len() {
        return invalid("the addresses of the module's variables are missing");
    }
    let shared = dynamic_offset(kernel).checked_add(launch.dynamic_shared_bytes);
    if shared.is_none_or(|shared| shared > MAX_SHARED) {
        return invalid("the block needs more shared memory than there is");
    }
    let code = &kernel.code;
    let lane = code.slots32 * 4 + code.slots64 * 8 + kernel.local_bytes as usize;
    let lanes = usize::try_from(threads.next_multiple_of(32)).unwrap_or(usize::MAX);
    let block = lane.checked_mul(lanes).filter(|bytes| *bytes <= MAX_BLOCK_BYTES);
    let Some(block) = block else {
        return invalid("the block needs more registers and local memory than there are");
    };
    let block = block + shared.unwrap_or(0) as usize;
    let together = usize::try_from(blocks).ok().and_then(|blocks| blocks.checked_mul(block));
    if launch.cooperative && together.is_none_or(|bytes| bytes > MAX_TOGETHER_BYTES) {
        return invalid("the blocks need more memory at once than there is");
    }
    Ok(blocks)
}

/// A launch in progress, shared by its host threads.
struct GridRun<'a> {
    kernel: &'a Kernel,
    launch: &'a Launch<'a>,
    memory: &'a dyn DeviceMemory,
    budget: u64,
    blocks: u64,
    /// Number of the next block that nobody has taken.
    next: AtomicU64,
    executed: AtomicU64,
    stop: AtomicBool,
    fault: Mutex<Option<Fault>>,
    started: Instant,
}

impl GridRun<'_> {
    /// Executes all blocks on so many host threads, of which the calling one is the first.
    fn run(&self, workers: u32) {
        let cooperative = self.launch.cooperative;
        std::thread::scope(|scope| {
            let call_others = || {
                for worker in 1..workers {
                    let work = move || match cooperative {
                        true => self.work_together(worker, workers),
                        false => self.work(worker, workers, || {}),
                    };
                    // A host that has no thread to give has the blocks run by the others.
                    if std::thread::Builder::new().spawn_scoped(scope, work).is_err() {
                        if cooperative {
                            let reason = "the host has no thread for blocks at once";
                            self.fail(Fault::InvalidLaunch(reason));
                        }
                        break;
                    }
                }
            };
            if cooperative {
                call_others();
                self.work_together(0, workers);
            } else {
                self.work(0, workers, call_others);
            }
        });
    }

    /// Executes blocks until there are none left. They are taken in order, so a
    /// block may wait for earlier ones.
    ///
    /// Calls for help once that is worth it: most launches are done before another thread has come.
    fn work(&self, worker: u32, workers: u32, call_others: impl FnOnce()) {
        let mut runner = BlockRunner::new(
            self.kernel,
            self.launch,
            self.memory,
            self.started,
            (worker, workers),
        );
        let mut call_others = Some(call_others);
        let mut check = |executed| {
            let total = self.check(executed)?;
            if total >= WORTH_A_THREAD
                && self.next.load(Ordering::Relaxed) < self.blocks
                && let Some(call) = call_others.take()
            {
                call();
            }
            Ok(())
        };
        while !self.stop.load(Ordering::Relaxed) {
            let block = self.next.fetch_add(1, Ordering::Relaxed);
            if block >= self.blocks {
                return;
            }
            if let Err(fault) = runner.run(self.position(block), &mut check) {
                return self.fail(fault);
            }
        }
    }

    fn fail(&self, fault: Fault) {
        // Before the others are told to stop, so that theirs come second.
        let first = self.fault.lock();
        first.unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(fault);
        self.stop.store(true, Ordering::Release);
    }

    fn position(&self, block: u64) -> Dim3 {
        let (x, y) = (u64::from(self.launch.grid.x), u64::from(self.launch.grid.y));
        // Each is below the grid's extent, which is 32 bits.
        let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        Dim3 { x: narrow(block % x), y: narrow(block / x % y), z: narrow(block / x / y) }
    }

    /// Between turns of warps: whether to go on, and what all have executed.
    fn check(&self, executed: u32) -> Result<u64, Fault> {
        let executed = u64::from(executed);
        let total = self.executed.fetch_add(executed, Ordering::Relaxed) + executed;
        // After another thread's fault, this one's comes second and is dropped.
        if self.launch.cancel.load(Ordering::Relaxed) || self.stop.load(Ordering::Acquire) {
            return Err(Fault::Cancelled);
        }
        if total >= self.budget {
            return Err(Fault::LaunchTimeout);
        }
        Ok(total)
    }
}
