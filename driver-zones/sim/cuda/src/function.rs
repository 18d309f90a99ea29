//! A kernel of a loaded module, and what may be launched of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use gpuzone_cuda_abi::{CuResult, FunctionAttribute};
use gpuzone_sim_ptx::{Dim3, Kernel};

use crate::Answer;
use crate::module::Module;

/// Shared memory of a block, in bytes: without asking, and at most.
pub(crate) const SHARED_PER_BLOCK: u32 = 48 << 10;
pub(crate) const SHARED_PER_BLOCK_OPT_IN: u32 = 227 << 10;
pub(crate) const SHARED_PER_MULTIPROCESSOR: u32 = 228 << 10;
pub(crate) const SHARED_RESERVED: u32 = 1 << 10;
pub(crate) const THREADS_PER_BLOCK: u32 = 1024;
pub(crate) const THREADS_PER_MULTIPROCESSOR: u32 = 2048;
pub(crate) const BLOCKS_PER_MULTIPROCESSOR: u32 = 32;
pub(crate) const REGISTERS: u32 = 65_536;
pub(crate) const MAX_GRID: Dim3 = Dim3::new(0x7fff_ffff, 0xffff, 0xffff);
pub(crate) const MAX_BLOCK: Dim3 = Dim3::new(1024, 1024, 64);

pub(crate) struct Function {
    module: Arc<Module>,
    name: String,
    max_dynamic_shared: AtomicU32,
    carveout: AtomicI32,
}

impl Function {
    pub(crate) fn new(module: Arc<Module>, name: &str) -> Answer<Self> {
        let static_shared =
            module.code().kernel(name).ok_or(CuResult::NOT_FOUND)?.static_shared_bytes();
        let max_dynamic_shared = AtomicU32::new(SHARED_PER_BLOCK.saturating_sub(static_shared));
        Ok(Self { module, name: name.to_owned(), max_dynamic_shared, carveout: AtomicI32::new(-1) })
    }

    pub(crate) fn module(&self) -> &Arc<Module> {
        &self.module
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn kernel(&self) -> Answer<&Kernel> {
        self.module.code().kernel(&self.name).ok_or(CuResult::INVALID_HANDLE)
    }

    pub(crate) fn attribute(&self, attribute: FunctionAttribute) -> Answer<i32> {
        let kernel = self.kernel()?;
        let (major, minor) = self.module.code().target_compute_capability();
        let target = major * 10 + minor;
        let value = match attribute {
            FunctionAttribute::MAX_THREADS_PER_BLOCK => kernel.max_threads_per_block(),
            FunctionAttribute::SHARED_SIZE_BYTES => kernel.static_shared_bytes(),
            FunctionAttribute::LOCAL_SIZE_BYTES => kernel.local_bytes(),
            FunctionAttribute::NUM_REGS => kernel.registers(),
            FunctionAttribute::PTX_VERSION | FunctionAttribute::BINARY_VERSION => target,
            FunctionAttribute::MAX_DYNAMIC_SHARED_SIZE_BYTES => {
                self.max_dynamic_shared.load(Ordering::Relaxed)
            }
            FunctionAttribute::PREFERRED_SHARED_MEMORY_CARVEOUT => {
                return Ok(self.carveout.load(Ordering::Relaxed));
            }
            FunctionAttribute(0..=15) => 0,
            FunctionAttribute(_) => return Err(CuResult::INVALID_VALUE),
        };
        i32::try_from(value).map_err(|_| CuResult::INVALID_VALUE)
    }

    pub(crate) fn set_attribute(&self, attribute: FunctionAttribute, value: i32) -> Answer {
        match attribute {
            FunctionAttribute::MAX_DYNAMIC_SHARED_SIZE_BYTES => {
                let bytes = u32::try_from(value).map_err(|_| CuResult::INVALID_VALUE)?;
                let all = bytes.saturating_add(self.kernel()?.static_shared_bytes());
                if all > SHARED_PER_BLOCK_OPT_IN {
                    return Err(CuResult::INVALID_VALUE);
                }
                self.max_dynamic_shared.store(bytes, Ordering::Relaxed);
                Ok(())
            }
            FunctionAttribute::PREFERRED_SHARED_MEMORY_CARVEOUT if (-1..=100).contains(&value) => {
                self.carveout.store(value, Ordering::Relaxed);
                Ok(())
            }
            _ => Err(CuResult::INVALID_VALUE),
        }
    }

    /// Refuses what the device or the kernel cannot do, at once.
    pub(crate) fn check_launch(&self, grid: Dim3, block: Dim3, dynamic_shared: u32) -> Answer {
        let kernel = self.kernel()?;
        let within = |extent: Dim3, most: Dim3| {
            (1..=most.x).contains(&extent.x)
                && (1..=most.y).contains(&extent.y)
                && (1..=most.z).contains(&extent.z)
        };
        let threads = block.count().unwrap_or(u64::MAX);
        let dynamic_fits = dynamic_shared <= self.max_dynamic_shared.load(Ordering::Relaxed);
        if !within(grid, MAX_GRID)
            || !within(block, MAX_BLOCK)
            || threads > u64::from(THREADS_PER_BLOCK)
            || !dynamic_fits
        {
            return Err(CuResult::INVALID_VALUE);
        }
        if threads > u64::from(kernel.max_threads_per_block()) {
            return Err(CuResult::LAUNCH_OUT_OF_RESOURCES);
        }
        Ok(())
    }

    /// Refuses a grid whose blocks do not all fit the device at once.
    pub(crate) fn check_together(&self, grid: Dim3, block: Dim3, dynamic_shared: u32) -> Answer {
        let threads = block.count().and_then(|threads| u32::try_from(threads).ok());
        let threads = threads.ok_or(CuResult::INVALID_VALUE)?;
        let each = self.blocks_per_multiprocessor(threads, dynamic_shared.into())?;
        let processors = self.module.context().gpu().config().multiprocessors;
        if grid.count().unwrap_or(u64::MAX) > u64::from(each) * u64::from(processors) {
            return Err(CuResult::COOPERATIVE_LAUNCH_TOO_LARGE);
        }
        Ok(())
    }

    /// Size of the parameter buffer in bytes.
    pub(crate) fn param_bytes(&self) -> Answer<usize> {
        let ends = self.kernel()?.params().iter().map(|param| param.offset + param.size);
        usize::try_from(ends.max().unwrap_or(0)).map_err(|_| CuResult::INVALID_VALUE)
    }

    /// How many blocks of `threads` a multiprocessor holds at a time.
    pub(crate) fn blocks_per_multiprocessor(
        &self,
        threads: u32,
        dynamic_shared: u64,
    ) -> Answer<u32> {
        let kernel = self.kernel()?;
        if threads == 0 {
            return Err(CuResult::INVALID_VALUE);
        }
        if threads > kernel.max_threads_per_block() {
            return Ok(0);
        }
        let warps_of_32 = threads.next_multiple_of(32);
        let shared = u64::from(kernel.static_shared_bytes() + SHARED_RESERVED) + dynamic_shared;
        let by_shared = u64::from(SHARED_PER_MULTIPROCESSOR) / shared;
        let by_registers = REGISTERS / (kernel.registers().max(16) * warps_of_32).max(1);
        let by_threads = THREADS_PER_MULTIPROCESSOR / warps_of_32;
        let by_shared = u32::try_from(by_shared).unwrap_or(u32::MAX);
        Ok(by_threads.min(by_registers).min(by_shared).min(BLOCKS_PER_MULTIPROCESSOR))
    }

    /// Dynamic shared memory that blocks may have so that `blocks` of them run at a time.
    pub(crate) fn dynamic_shared_for(&self, blocks: u32, threads: u32) -> Answer<u32> {
        if blocks == 0 || self.blocks_per_multiprocessor(threads, 0)? < blocks {
            return Err(CuResult::INVALID_VALUE);
        }
        let used = self.kernel()?.static_shared_bytes() + SHARED_RESERVED;
        let each = (SHARED_PER_MULTIPROCESSOR / blocks).saturating_sub(used);
        Ok(each.min(self.max_dynamic_shared.load(Ordering::Relaxed)))
    }
}
