use gpuzone_cuda_abi::{CUdeviceptr, CuResult};
use gpuzone_wire::spec::{DevicePtr, MemoryAllocate, MemoryFree, MemoryInfo};

use crate::ffi::{Answer, api, put, put_if_wanted};
use crate::state::{State, with};

/// What rows of memory are aligned to, in bytes.
const PITCH: usize = 512;

fn allocate(state: &mut State, bytes: usize) -> Answer<u64> {
    if bytes == 0 {
        return Err(CuResult::INVALID_VALUE);
    }
    let context = state.context()?;
    let reply = state.call(context, &MemoryAllocate { bytes: bytes as u64 })?;
    let pointer = reply.pointer.0;
    state.ranges.add(pointer, bytes as u64, context, None);
    Ok(pointer)
}

api! {
    fn cuMemAlloc_v2(place: *mut CUdeviceptr, bytes: usize) {
        if place.is_null() {
            return Err(CuResult::INVALID_VALUE);
        }
        with(|state| put(place, allocate(state, bytes)?))
    }

    fn cuMemAllocPitch_v2(
        place: *mut CUdeviceptr, pitch: *mut usize, width: usize, height: usize, element: u32,
    ) {
        if place.is_null() || pitch.is_null() || !matches!(element, 4 | 8 | 16) {
            return Err(CuResult::INVALID_VALUE);
        }
        let row = width.checked_next_multiple_of(PITCH).ok_or(CuResult::INVALID_VALUE)?;
        let bytes = row.checked_mul(height).ok_or(CuResult::INVALID_VALUE)?;
        with(|state| {
            put(place, allocate(state, bytes)?)?;
            put(pitch, row)
        })
    }

    fn cuMemFree_v2(pointer: CUdeviceptr) {
        if pointer == 0 {
            return Ok(());
        }
        with(|state| {
            let range = state.ranges.get(pointer).filter(|range| range.module.is_none() && range.mapped.is_none());
            let context = range.ok_or(CuResult::INVALID_VALUE)?.context;
            state.ranges.remove(pointer);
            let freed = state.post_release(context, &MemoryFree { pointer: DevicePtr(pointer) });
            state.write_prints();
            freed
        })
    }

    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) {
        with(|state| {
            let context = state.context()?;
            let info = state.call(context, &MemoryInfo {})?;
            let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
            put_if_wanted(free, size(info.free));
            put_if_wanted(total, size(info.total));
            Ok(())
        })
    }

    fn cuMemGetAddressRange_v2(base: *mut CUdeviceptr, size: *mut usize, pointer: CUdeviceptr) {
        with(|state| {
            state.context()?;
            let range = state.ranges.around(pointer).ok_or(CuResult::NOT_FOUND)?;
            put_if_wanted(base, range.base);
            put_if_wanted(size, usize::try_from(range.bytes).unwrap_or(usize::MAX));
            Ok(())
        })
    }
}
