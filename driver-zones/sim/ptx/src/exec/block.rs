//! A block: its warps take turns on one host thread, and meet at barriers.

use std::cell::RefCell;
use std::time::Instant;

use super::collective::announce;
use super::cooperative::MEETING;
use super::host::Host;
use super::memory::Memory;
use super::registers::{FULL, LANES, Lanes32};
use super::step::run;
use super::warp::Warp;
use super::{Fault, Launch, PrintBuffer};
use crate::ir::{Kernel, Preset32, Preset64, Special};
use crate::{DeviceMemory, Dim3};

/// Barriers of a block.
const BARRIERS: usize = 16;
/// Instructions that a warp executes before the next one's turn, and between
/// looks at the caller's wish to cancel.
const TURN: u32 = 8192;

/// Whether to go on, after so many instructions.
pub(crate) type Check<'c> = &'c mut dyn FnMut(u32) -> Result<(), Fault>;

/// A barrier's state: how many threads came, and how many must.
#[derive(Clone, Copy, Default)]
pub(crate) struct Arrivals {
    pub(crate) arrived: u32,
    /// Number that the program gave; without one, all threads of the block.
    pub(crate) expected: Option<u32>,
    /// Threads whose predicate held, at a barrier with a vote.
    pub(crate) votes: u32,
}

/// What the lanes of a block share while they run.
pub(crate) struct Surroundings<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) memory: Memory<'a>,
    pub(crate) barriers: [Arrivals; BARRIERS],
    pub(crate) prints: &'a PrintBuffer,
    /// The block's place in its grid, and its extent.
    pub(crate) block: Dim3,
    pub(crate) extent: Dim3,
    pub(crate) started: Instant,
    pub(crate) clock_hz: u64,
    /// Whether the host has fused multiply-add and wide vectors.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "x86-64 only"))]
    pub(crate) wide_vectors: bool,
}

/// The most bytes of warps that a host thread keeps for its next launch.
const SPARED: usize = 4 << 20;

thread_local! {
    /// The warps of the thread's last launch: to get memory for them anew takes as long as a small
    /// kernel.
    static SPARE: RefCell<Vec<Warp>> = const { RefCell::new(Vec::new()) };
}

/// Executes blocks, one after the other, in the same memory.
pub(crate) struct BlockRunner<'a> {
    around: Surroundings<'a>,
    launch: &'a Launch<'a>,
    warps: Vec<Warp>,
    threads: u32,
    multiprocessor: u32,
    multiprocessors: u32,
}

impl Drop for BlockRunner<'_> {
    fn drop(&mut self) {
        if self.warps.iter().map(Warp::bytes).sum::<usize>() <= SPARED {
            // A thread that is ending keeps nothing.
            let _ = SPARE.try_with(|spare| spare.replace(std::mem::take(&mut self.warps)));
        }
    }
}

impl<'a> BlockRunner<'a> {
    pub(crate) fn new(
        kernel: &'a Kernel,
        launch: &'a Launch<'a>,
        memory: &'a dyn DeviceMemory,
        started: Instant,
        (multiprocessor, multiprocessors): (u32, u32),
    ) -> Self {
        let Dim3 { x, y, z } = launch.block;
        let threads = x * y * z;
        let local_bytes = kernel.local_bytes as usize;
        let mut warps = SPARE.take();
        warps.resize_with(threads.div_ceil(32) as usize, Warp::default);
        warps.iter_mut().for_each(|warp| warp.fit(&kernel.code, local_bytes * LANES));
        let shared = dynamic_offset(kernel) + launch.dynamic_shared_bytes;
        #[cfg(target_arch = "x86_64")]
        let wide_vectors = super::step::wide_vectors();
        #[cfg(not(target_arch = "x86_64"))]
        let wide_vectors = false;
        Self {
            around: Surroundings {
                kernel,
                memory: Memory {
                    host: Host::new(memory),
                    shared: vec![0; shared.next_multiple_of(4) as usize],
                    params: launch.params,
                    local_bytes,
                },
                barriers: [Arrivals::default(); BARRIERS],
                prints: launch.prints,
                block: Dim3::new(0, 0, 0),
                extent: launch.block,
                started,
                clock_hz: launch.clock_hz,
                wide_vectors,
            },
            launch,
            warps,
            threads,
            multiprocessor,
            multiprocessors,
        }
    }

    /// Executes one block. `check` is called between turns with the number of
    /// instructions that were executed.
    pub(crate) fn run(&mut self, block: Dim3, check: Check<'_>) -> Result<(), Fault> {
        self.start(block);
        while !self.round(TURN, check)? {}
        Ok(())
    }

    /// Puts all threads of a block before their first instruction.
    pub(crate) fn start(&mut self, block: Dim3) {
        self.around.block = block;
        self.around.memory.shared.fill(0);
        self.around.barriers = [Arrivals::default(); BARRIERS];
        for index in 0..self.warps.len() {
            self.start_warp(index, block);
        }
    }

    /// Gives each warp a turn of so many instructions; whether all have ended.
    pub(crate) fn round(&mut self, turn: u32, check: Check<'_>) -> Result<bool, Fault> {
        let mut progress = false;
        let mut ended = true;
        for index in 0..self.warps.len() {
            if self.warps[index].live == 0 {
                continue;
            }
            ended = false;
            let executed = run(&mut self.warps[index], &mut self.around, turn)?;
            progress |= executed > 0;
            check(executed)?;
            progress |= self.release_barriers();
        }
        if ended || progress { Ok(ended) } else { Err(Fault::BarrierDeadlock) }
    }

    /// Lets go who waits at barriers that everybody has reached.
    fn release_barriers(&mut self) -> bool {
        let mut released = false;
        for id in 0..BARRIERS {
            let arrivals @ Arrivals { arrived, expected, .. } = self.around.barriers[id];
            if arrived == 0 {
                continue;
            }
            let all = || self.warps.iter().map(|warp| warp.live.count_ones()).sum();
            if arrived < expected.unwrap_or_else(all) {
                continue;
            }
            self.around.barriers[id] = Arrivals::default();
            let id = u8::try_from(id).unwrap_or(u8::MAX);
            for warp in &mut self.warps {
                announce(warp, &self.around.kernel.code, id, arrivals);
                warp.release(id);
            }
            released = true;
        }
        released
    }

    fn start_warp(&mut self, index: usize, block: Dim3) {
        let first = u32::try_from(index * LANES).unwrap_or(u32::MAX);
        let present = (self.threads - first).min(32);
        let lanes = FULL >> (32 - present);
        let special = SpecialValues { runner: self, first, block }.values();
        let code = &self.around.kernel.code;
        let dynamic = dynamic_offset(self.around.kernel);
        let warp = &mut self.warps[index];
        warp.start(lanes, code.entry);
        warp.first = first;
        for (slot, preset) in &code.presets32 {
            *warp.registers.row32(*slot) = match *preset {
                Preset32::Bits(bits) => [bits; LANES],
                Preset32::DynamicShared(addend) => [dynamic.wrapping_add(addend); LANES],
                Preset32::Special(which) => special(which),
            };
        }
        for (slot, preset) in &code.presets64 {
            let value = match *preset {
                Preset64::Bits(bits) => bits,
                Preset64::DynamicShared(addend) => u64::from(dynamic).wrapping_add(addend),
                Preset64::Global { index, offset } => {
                    let address = self.launch.globals.get(index as usize).copied().unwrap_or(0);
                    address.wrapping_add_signed(offset)
                }
                Preset64::GridId => 1,
            };
            *warp.registers.row64(*slot) = [value; LANES];
        }
    }
}

/// Where dynamic shared memory starts: after the static one, aligned for vectors.
pub(crate) fn dynamic_offset(kernel: &Kernel) -> u32 {
    kernel.static_shared.next_multiple_of(16)
}

/// Bytes that shared memory is given out in, since the eighth generation.
const SHARED_UNIT: u32 = 128;

/// What special registers hold in one warp.
struct SpecialValues<'r, 'a> {
    runner: &'r BlockRunner<'a>,
    /// Number in the block of the warp's first thread.
    first: u32,
    block: Dim3,
}

impl SpecialValues<'_, '_> {
    fn values(self) -> impl Fn(Special) -> Lanes32 + use<> {
        let Self { runner, first, block } = self;
        let (size, grid) = (runner.launch.block, runner.launch.grid);
        let (threads, dynamic) = (runner.threads, runner.launch.dynamic_shared_bytes);
        let total = dynamic_offset(runner.around.kernel) + dynamic;
        let total = total.next_multiple_of(SHARED_UNIT);
        let processor = (runner.multiprocessor, runner.multiprocessors);
        let meeting = if runner.launch.cooperative { MEETING } else { 0 };
        let lanes = std::array::from_fn::<u32, LANES, _>(|lane| u32::try_from(lane).unwrap_or(0));
        move |special| match special {
            Special::ThreadX => lanes.map(|lane| (first + lane) % size.x),
            Special::ThreadY => lanes.map(|lane| (first + lane) / size.x % size.y),
            Special::ThreadZ => lanes.map(|lane| (first + lane) / size.x / size.y),
            Special::BlockSizeX => [size.x; LANES],
            Special::BlockSizeY => [size.y; LANES],
            Special::BlockSizeZ => [size.z; LANES],
            Special::BlockX => [block.x; LANES],
            Special::BlockY => [block.y; LANES],
            Special::BlockZ => [block.z; LANES],
            Special::GridSizeX => [grid.x; LANES],
            Special::GridSizeY => [grid.y; LANES],
            Special::GridSizeZ => [grid.z; LANES],
            Special::Lane => lanes,
            Special::Warp => [first / 32; LANES],
            Special::WarpCount => [threads.div_ceil(32); LANES],
            Special::Multiprocessor => [processor.0; LANES],
            Special::MultiprocessorCount => [processor.1; LANES],
            Special::LaneMaskEq => lanes.map(|lane| 1 << lane),
            Special::LaneMaskLt => lanes.map(|lane| (1 << lane) - 1),
            Special::LaneMaskLe => lanes.map(|lane| FULL >> (31 - lane)),
            Special::LaneMaskGt => lanes.map(|lane| !(FULL >> (31 - lane))),
            Special::LaneMaskGe => lanes.map(|lane| FULL << lane),
            Special::DynamicSharedSize => [dynamic; LANES],
            Special::TotalSharedSize => [total; LANES],
            Special::MeetingHigh => [u32::try_from(meeting >> 32).unwrap_or(0); LANES],
            #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
            Special::MeetingLow => [meeting as u32; LANES],
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::UnsafeCell;
    use std::sync::atomic::AtomicBool;
    use std::time::Instant;

    use super::BlockRunner;
    use crate::{DeviceMemory, Dim3, Launch, Module, PrintBuffer, Region};

    struct Floats(Box<[UnsafeCell<[f32; 4]>]>);

    // SAFETY: the machine touches the cells with atomic operations only, and the
    // test looks at them afterwards.
    unsafe impl Sync for Floats {}

    // SAFETY: the cells live as long as `self`, which the launch borrows. `Box` of
    // these is aligned to 4 bytes only; the base has the same remainder.
    unsafe impl DeviceMemory for Floats {
        fn region(&self, address: u64) -> Option<Region> {
            let host: *mut u8 = UnsafeCell::raw_get(self.0.as_ptr()).cast();
            let (base, len) = (4096 + (host.addr() as u64 & 15), 16 * self.0.len() as u64);
            let inside = (base..base + len).contains(&address);
            inside.then_some(Region { base, len, host, writable: true })
        }
    }

    /// Softmax of 128 numbers in place.
    fn softmax(wide_vectors: bool) -> Vec<u32> {
        let module = Module::parse(include_str!("../../../kernels/ptx/softmax.ptx"));
        let module = module.expect("nvcc's PTX");
        let kernel = module.kernel("softmax").expect("it is there");
        let number = |index: u16| (f32::from(index) * 7.77).sin() * 30.0;
        let cells =
            (0..32).map(|cell| UnsafeCell::new([0, 1, 2, 3].map(|part| number(cell * 4 + part))));
        let memory = Floats(cells.collect());
        let base = 4096 + (memory.0.as_ptr().addr() as u64 & 15);
        let params = [base.to_le_bytes(), base.to_le_bytes(), 128_u64.to_le_bytes()].concat();
        let launch = Launch {
            grid: Dim3::new(1, 1, 1),
            block: Dim3::new(64, 1, 1),
            dynamic_shared_bytes: 256,
            cooperative: false,
            params: &params,
            globals: &[],
            prints: &PrintBuffer::new(0),
            cancel: &AtomicBool::new(false),
            threads: 1,
            clock_hz: 1,
        };
        let mut runner = BlockRunner::new(kernel, &launch, &memory, Instant::now(), (0, 1));
        runner.around.wide_vectors &= wide_vectors;
        runner.run(Dim3::new(0, 0, 0), &mut |_| Ok(())).expect("no fault");
        drop(runner);
        let cells = memory.0.into_iter().flat_map(UnsafeCell::into_inner);
        cells.map(f32::to_bits).collect()
    }

    #[test]
    fn results_do_not_depend_on_the_host() {
        let narrow = softmax(false);
        assert_eq!(narrow, softmax(true));
        let sum: f32 = narrow.iter().map(|bits| f32::from_bits(*bits)).sum();
        assert!((sum - 1.0).abs() < 1e-5, "{sum}");
    }
}
