//! Allocation, on the device and pinned on the host.

use gpuzone_cuda_abi::{CuResult, mem_host_flags};

use crate::Answer;
use crate::abi::{HostBytes, Out, Word, entry_points};
use crate::driver::{current, driver};
use crate::host_memory;
use crate::memory::Kind;
use crate::work::Work;

/// Rows of `cuMemAllocPitch` begin at multiples of this many bytes.
const PITCH: usize = 512;
const REGISTER_FLAGS: u32 = 0x0f;

fn allocate(out: Out<u64>, bytes: usize) -> Answer {
    out.check()?;
    let context = current()?;
    let bytes = u64::try_from(bytes).map_err(|_| CuResult::OUT_OF_MEMORY)?;
    let address = context.memory().allocate(bytes, Kind::Program)?;
    // What a pool had here went with its context.
    crate::pool::freed(address);
    out.put(address)
}

fn allocate_host(out: Out<Word>, bytes: usize, flags: u32) -> Answer {
    out.check()?;
    let context = current()?;
    out.put(host_memory::allocate(bytes, flags, context.handle)?)
}

entry_points! {
    fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) {
        let context = current()?;
        let found = context.gpu().attachment.gpu().memory_use();
        let found = found.map_err(|error| {
            crate::driver::report(&error.to_string());
            CuResult::UNKNOWN
        })?;
        let size = |bytes: u64| usize::try_from(bytes).map_err(|_| CuResult::UNKNOWN);
        free.put(size(found.total.get() - found.used.get())?)?;
        total.put(size(found.total.get())?)
    }

    fn cuMemAlloc_v2(address: Out<u64>, bytes: usize) { allocate(address, bytes) }

    fn cuMemAllocPitch_v2(
        address: Out<u64>,
        pitch: Out<usize>,
        width: usize,
        height: usize,
        element: u32,
    ) {
        pitch.check()?;
        if !matches!(element, 4 | 8 | 16) || width == 0 || height == 0 {
            return Err(CuResult::INVALID_VALUE);
        }
        let row = width.checked_next_multiple_of(PITCH).ok_or(CuResult::INVALID_VALUE)?;
        allocate(address, row.checked_mul(height).ok_or(CuResult::OUT_OF_MEMORY)?)?;
        pitch.put(row)
    }

    fn cuMemFree_v2(address: u64) {
        let context = current()?;
        if address == 0 {
            return Ok(());
        }
        if !context.memory().is_freeable(address) {
            return Err(CuResult::INVALID_VALUE);
        }
        crate::pool::freed(address);
        context.run(Work::Free { address })
    }

    fn cuMemGetAddressRange_v2(base: Out<u64>, bytes: Out<usize>, address: u64) {
        let found = current()?.memory().find(address);
        let (start, allocation) = found.ok_or(CuResult::NOT_FOUND)?;
        base.put_if_wanted(start);
        bytes.put_if_wanted(usize::try_from(allocation.bytes).map_err(|_| CuResult::UNKNOWN)?);
        Ok(())
    }

    fn cuMemAllocHost_v2(address: Out<Word>, bytes: usize) { allocate_host(address, bytes, 0) }

    fn cuMemHostAlloc(address: Out<Word>, bytes: usize, flags: u32) {
        let known = mem_host_flags::PORTABLE
            | mem_host_flags::DEVICE_MAP
            | mem_host_flags::WRITE_COMBINED;
        if flags & !known != 0 {
            return Err(CuResult::INVALID_VALUE);
        }
        allocate_host(address, bytes, flags)
    }

    fn cuMemFreeHost(address: Word) {
        driver()?;
        for context in crate::handles::contexts() {
            // A copy that is under way still needs it; a fault of it is not this call's.
            let _ = context.wait(context.last());
        }
        host_memory::free(address)
    }

    fn cuMemHostGetFlags(flags: Out<u32>, address: Word) {
        current()?;
        flags.put(host_memory::find(address).ok_or(CuResult::INVALID_VALUE)?.flags)
    }

    /// The same address for all.
    fn cuMemHostGetDevicePointer_v2(address: Out<u64>, host: Word, flags: u32) {
        address.check()?;
        current()?;
        if flags != 0 {
            return Err(CuResult::INVALID_VALUE);
        }
        host_memory::find(host).ok_or(CuResult::INVALID_VALUE)?;
        address.put(u64::try_from(host).map_err(|_| CuResult::UNKNOWN)?)
    }

    fn cuMemHostRegister_v2(address: Word, bytes: usize, flags: u32) {
        let context = current()?;
        if flags & !REGISTER_FLAGS != 0 {
            return Err(CuResult::INVALID_VALUE);
        }
        host_memory::register(HostBytes::new(address, bytes)?, flags, context.handle)
    }

    fn cuMemHostUnregister(address: Word) {
        current()?;
        host_memory::unregister(address)
    }
}
