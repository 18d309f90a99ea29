//! Device memory and launches for tests.
#![allow(dead_code, reason = "each test file uses its part")]

use std::cell::UnsafeCell;
use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;
use std::sync::atomic::AtomicBool;

use gpuzone_sim_ptx::{
    DeviceMemory, Dim3, Fault, Launch, LaunchReport, Module, PrintBuffer, Region, execute_within,
};

/// Where the first allocation of a test lies.
pub(crate) const FIRST_ADDRESS: u64 = 0x7000_0000_0000;
/// Addresses between two allocations that belong to nobody.
const GAP: u64 = 1 << 20;

struct Allocation {
    base: u64,
    len: usize,
    bytes: Box<[UnsafeCell<u128>]>,
    writable: bool,
}

/// Allocations in host memory, far apart from each other.
#[derive(Default)]
pub(crate) struct TestMemory {
    allocations: Vec<Allocation>,
}

// SAFETY: the cells are touched by the machine's atomic operations while a launch
// runs, and through `&mut self` otherwise.
unsafe impl Sync for TestMemory {}

// SAFETY: allocations live as long as `self`, which a launch borrows.
unsafe impl DeviceMemory for TestMemory {
    fn region(&self, address: u64) -> Option<Region> {
        let found = self.allocations.iter().find(|allocation| {
            address >= allocation.base && address - allocation.base < allocation.len as u64
        })?;
        Some(Region {
            base: found.base,
            len: found.len as u64,
            host: UnsafeCell::raw_get(found.bytes.as_ptr()).cast(),
            writable: found.writable,
        })
    }
}

impl TestMemory {
    /// Allocates a copy of `bytes`; returns its device address.
    pub(crate) fn add(&mut self, bytes: &[u8]) -> u64 {
        let last = self.allocations.last();
        let base = last.map_or(FIRST_ADDRESS, |last| {
            (last.base + last.len as u64 + GAP).next_multiple_of(256)
        });
        let cells = (0..bytes.len().div_ceil(16)).map(|_| UnsafeCell::new(0));
        let allocation =
            Allocation { base, len: bytes.len(), bytes: cells.collect(), writable: true };
        self.allocations.push(allocation);
        self.bytes_mut(base).copy_from_slice(bytes);
        base
    }

    pub(crate) fn add_words(&mut self, words: &[u32]) -> u64 {
        self.add(&words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>())
    }

    pub(crate) fn add_floats(&mut self, floats: &[f32]) -> u64 {
        self.add(&floats.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>())
    }

    pub(crate) fn protect(&mut self, base: u64) {
        for allocation in &mut self.allocations {
            allocation.writable &= allocation.base != base;
        }
    }

    pub(crate) fn bytes_mut(&mut self, base: u64) -> &mut [u8] {
        let found = self.allocations.iter_mut().find(|allocation| allocation.base == base);
        let found = found.expect("an allocation of this test");
        // SAFETY: the cells are `len` initialised bytes, borrowed mutably with `self`.
        unsafe { std::slice::from_raw_parts_mut(found.bytes.as_mut_ptr().cast(), found.len) }
    }

    pub(crate) fn words(&mut self, base: u64) -> Vec<u32> {
        let words = self.bytes_mut(base).as_chunks::<4>().0;
        words.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect()
    }

    pub(crate) fn floats(&mut self, base: u64) -> Vec<f32> {
        self.words(base).into_iter().map(f32::from_bits).collect()
    }
}

/// An argument of a kernel.
pub(crate) enum Arg {
    U32(u32),
    U64(u64),
    F32(f32),
    Bytes(Vec<u8>),
}

/// How to launch in a test; the defaults suit most.
pub(crate) struct Run<'a> {
    pub(crate) grid: (u32, u32),
    pub(crate) block: (u32, u32),
    /// What grid and block are in the third dimension.
    pub(crate) depth: (u32, u32),
    pub(crate) shared: u32,
    pub(crate) cooperative: bool,
    pub(crate) threads: usize,
    pub(crate) budget: u64,
    pub(crate) cancel: &'a AtomicBool,
    pub(crate) globals: &'a [u64],
    pub(crate) prints: &'a PrintBuffer,
}

/// Where the output of kernels goes that nobody looks at.
static PRINTS: LazyLock<PrintBuffer> = LazyLock::new(|| PrintBuffer::new(1 << 16));

pub(crate) static NEVER: AtomicBool = AtomicBool::new(false);

impl Default for Run<'_> {
    fn default() -> Self {
        Self {
            grid: (1, 1),
            block: (32, 1),
            depth: (1, 1),
            shared: 0,
            cooperative: false,
            threads: 2,
            budget: u64::MAX,
            cancel: &NEVER,
            globals: &[],
            prints: &PRINTS,
        }
    }
}

impl Run<'_> {
    pub(crate) fn go(
        &self,
        source: &str,
        kernel: &str,
        args: &[Arg],
        memory: &TestMemory,
    ) -> Result<LaunchReport, Fault> {
        let module = Module::parse(source).expect("valid PTX");
        let kernel = module.kernel(kernel).expect("a kernel of the module");
        let mut params = Vec::new();
        for (param, arg) in kernel.params().iter().zip(args) {
            params.resize(param.offset as usize, 0);
            match arg {
                Arg::U32(value) => params.extend(value.to_le_bytes()),
                Arg::U64(value) => params.extend(value.to_le_bytes()),
                Arg::F32(value) => params.extend(value.to_le_bytes()),
                Arg::Bytes(bytes) => params.extend(bytes),
            }
        }
        let launch = Launch {
            grid: Dim3::new(self.grid.0, self.grid.1, self.depth.0),
            block: Dim3::new(self.block.0, self.block.1, self.depth.1),
            dynamic_shared_bytes: self.shared,
            cooperative: self.cooperative,
            params: &params,
            globals: self.globals,
            prints: self.prints,
            cancel: self.cancel,
            threads: self.threads,
            clock_hz: 1_000_000_000,
        };
        execute_within(&module, kernel, &launch, memory, self.budget)
    }
}

/// A file of our kernels, loaded as a driver does: its variables are in memory.
pub(crate) struct Loaded {
    pub(crate) memory: TestMemory,
    pub(crate) globals: Vec<u64>,
    pub(crate) module: Module,
    source: String,
}

impl Loaded {
    pub(crate) fn new(file: &str) -> Self {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../kernels/ptx");
        let source = std::fs::read_to_string(format!("{folder}/{file}.ptx")).expect("a text");
        let module = Module::parse(&source).expect("nvcc's PTX");
        let mut memory = TestMemory::default();
        let mut globals = Vec::new();
        for global in module.globals() {
            globals.push(memory.add(&vec![0; usize::try_from(global.size).expect("small")]));
        }
        for (index, base) in globals.iter().enumerate() {
            if let Some(value) = module.initial_value(index, &globals) {
                memory.bytes_mut(*base)[..value.len()].copy_from_slice(&value);
            }
        }
        Self { memory, globals, module, source }
    }

    /// Launches a kernel; the launch's own variables are those of the file.
    pub(crate) fn run(&self, kernel: &str, run: &Run<'_>, args: &[Arg]) -> Result<(), Fault> {
        let run = Run { globals: &self.globals, ..*run };
        run.go(&self.source, kernel, args, &self.memory).map(|_| ())
    }
}

/// A launch of blocks of threads in a row.
pub(crate) fn row(blocks: u32, threads: u32) -> Run<'static> {
    Run { grid: (blocks, 1), block: (threads, 1), ..Run::default() }
}

/// The values that bytes are, of any size.
pub(crate) fn values<const N: usize, T>(bytes: &[u8], from: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|bytes| from(*bytes)).collect()
}

/// A kernel of one `.u64` parameter `out`, whose address is in `%rd0`, whose lane
/// is in `%r0`, and that stores `%r1` of each thread at `out[tid]` at its end.
pub(crate) fn program(body: &str) -> String {
    format!(
        ".version 8.0\n.target sm_75\n.address_size 64\n.visible .entry k(.param .u64 out)\n{{\n\
         .reg .pred %p<10>; .reg .b16 %rs<10>; .reg .b32 %r<40>; .reg .f32 %f<40>;\n\
         .reg .b64 %rd<20>; .reg .f64 %fd<10>;\n\
         ld.param.u64 %rd0, [out]; mov.u32 %r0, %tid.x;\n\
         {body}\n\
         mul.wide.u32 %rd19, %r0, 4; add.s64 %rd19, %rd0, %rd19; st.global.u32 [%rd19], %r1;\n\
         ret;\n}}\n"
    )
}

/// Runs `program(body)` with one block of `threads`; returns `out`.
pub(crate) fn results(body: &str, threads: u32) -> Vec<u32> {
    let mut memory = TestMemory::default();
    let out = memory.add_words(&vec![0; threads as usize]);
    let run = Run { block: (threads, 1), budget: 10_000_000, ..Run::default() };
    run.go(&program(body), "k", &[Arg::U64(out)], &memory).expect("no fault");
    memory.words(out)
}

/// Names the seed of another run, to see again what it saw.
const SEED: &str = "GPUZONE_TEST_SEED";

/// This run's seed.
static RUN: LazyLock<u64> = LazyLock::new(|| match std::env::var(SEED) {
    Ok(text) => text.parse().expect("a seed is a number"),
    Err(_) => RandomState::new().hash_one(SEED),
});

/// Numbers that look random, others in every run.
pub(crate) struct Numbers(u64);

impl Numbers {
    /// Those of a number in this run. A test that fails says how to see them again.
    pub(crate) fn new(number: u64) -> Self {
        eprintln!("{SEED}={} has these numbers again", *RUN);
        Self::of(*RUN, number)
    }

    fn of(run: u64, number: u64) -> Self {
        // Neighbours must not begin alike: splitmix64's last steps.
        let mixed = run.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self(mixed ^ mixed >> 31)
    }

    pub(crate) fn word(&mut self) -> u32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u32::try_from(self.0 >> 32).expect("a half")
    }

    pub(crate) fn below(&mut self, limit: u32) -> u32 {
        self.word() % limit
    }

    pub(crate) fn words(&mut self, count: usize) -> Vec<u32> {
        (0..count).map(|_| self.word()).collect()
    }

    pub(crate) fn wide(&mut self) -> u64 {
        u64::from(self.word()) << 32 | u64::from(self.word())
    }

    /// Between -1 and 1.
    pub(crate) fn float(&mut self) -> f32 {
        let word = i16::from_le_bytes([self.word().to_le_bytes()[2], self.word().to_le_bytes()[3]]);
        f32::from(word) / 32768.0
    }

    pub(crate) fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.float()).collect()
    }
}
