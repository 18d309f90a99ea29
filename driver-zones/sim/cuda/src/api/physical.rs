use gpuzone_cuda_abi::{CuResult, MemoryAccess, MemoryLocation, PhysicalProperties};

use crate::Answer;
use crate::abi::{Array, Out, Word, entry_points};
use crate::driver::{Gpu, driver, gpu};
use crate::physical::GRAIN;

fn wanted(properties: Array<PhysicalProperties>) -> Answer<&'static Gpu> {
    driver()?;
    let wanted = properties.get(0)?;
    if !wanted.is_of_device() {
        return Err(CuResult::NOT_SUPPORTED);
    }
    gpu(wanted.location.id)
}

/// Tries each GPU: handles and addresses say themselves whose they are.
fn first(act: impl Fn(&Gpu) -> Answer) -> Answer {
    let mut answer = Err(CuResult::INVALID_VALUE);
    for gpu in driver()?.gpus() {
        answer = act(gpu);
        if answer.is_ok() {
            break;
        }
    }
    answer
}

fn size(bytes: usize) -> Answer<u64> {
    u64::try_from(bytes).map_err(|_| CuResult::INVALID_VALUE)
}

entry_points! {
    fn cuMemGetAllocationGranularity(
        bytes: Out<usize>, properties: Array<PhysicalProperties>, _option: u32,
    ) {
        wanted(properties)?;
        bytes.put(usize::try_from(GRAIN).map_err(|_| CuResult::UNKNOWN)?)
    }

    /// Addresses are the process's, so any GPU's table will do; the first one has them.
    fn cuMemAddressReserve(
        address: Out<u64>, bytes: usize, alignment: usize, _wish: u64, flags: u64,
    ) {
        address.check()?;
        if flags != 0 || size(alignment)? > GRAIN {
            return Err(CuResult::INVALID_VALUE);
        }
        address.put(gpu(0)?.physical.reserve(size(bytes)?)?)
    }

    fn cuMemAddressFree(address: u64, bytes: usize) {
        gpu(0)?.physical.free(address, size(bytes)?)
    }

    fn cuMemCreate(
        handle: Out<u64>, bytes: usize, properties: Array<PhysicalProperties>, flags: u64,
    ) {
        handle.check()?;
        if flags != 0 {
            return Err(CuResult::INVALID_VALUE);
        }
        let gpu = wanted(properties)?;
        handle.put(gpu.physical.create(&gpu.attachment, size(bytes)?)?)
    }

    fn cuMemRelease(handle: u64) {
        first(|gpu| gpu.physical.release(&gpu.attachment, handle))
    }

    /// On the first GPU only, whose table has the addresses.
    fn cuMemMap(address: u64, bytes: usize, offset: usize, handle: u64, flags: u64) {
        if flags != 0 {
            return Err(CuResult::INVALID_VALUE);
        }
        let (gpu, bytes, offset) = (gpu(0)?, size(bytes)?, size(offset)?);
        gpu.physical.map(&gpu.attachment, address, bytes, offset, handle)
    }

    fn cuMemUnmap(address: u64, bytes: usize) {
        for context in crate::handles::contexts() {
            // What uses it comes to its end first; a fault of it is not this call's.
            let _ = context.wait(context.last());
        }
        let gpu = gpu(0)?;
        gpu.physical.unmap(&gpu.attachment, address, size(bytes)?)
    }

    fn cuMemSetAccess(address: u64, bytes: usize, wanted: Array<MemoryAccess>, count: usize) {
        for index in 0..count {
            let access = wanted.get(index)?;
            if access.location != (MemoryLocation { kind: 1, id: 0 }) || access.flags & !3 != 0 {
                return Err(CuResult::NOT_SUPPORTED);
            }
            gpu(0)?.physical.set_access(address, size(bytes)?, access.flags)?;
        }
        Ok(())
    }

    fn cuMemGetAccess(flags: Out<u64>, location: Array<MemoryLocation>, address: u64) {
        let location = location.get(0)?;
        let mapped = gpu(0)?.physical.mapped();
        let found = mapped.range(..=address).next_back();
        let found = found.filter(|(base, mapping)| address - *base < mapping.bytes);
        let (_, mapping) = found.ok_or(CuResult::INVALID_VALUE)?;
        let own = location == (MemoryLocation { kind: 1, id: 0 });
        flags.put(if own { mapping.flags.into() } else { 0 })
    }

    fn cuMemGetAllocationPropertiesFromHandle(
        properties: Out<PhysicalProperties>, _handle: Word,
    ) {
        driver()?;
        properties.put(PhysicalProperties::of_device(0))
    }
}
