//! Memory and addresses apart from each other.

use std::ffi::c_void;

use gpuzone_cuda_abi::{CUdeviceptr, CuResult, MemoryAccess, MemoryLocation, PhysicalProperties};
use gpuzone_wire::spec::{
    AddressFree, AddressReserve, ContextId, DevicePtr, PhysicalAccess, PhysicalCreate,
    PhysicalGranularity, PhysicalId, PhysicalMap, PhysicalRelease, PhysicalUnmap,
};

use crate::ffi::{Answer, api, put};
use crate::state::{State, with};
use crate::tables::Physical;

/// What marks the number of such memory, which is no pointer.
const MARK: u64 = 0x6770_0b00_0000_0000;

fn properties(from: *const PhysicalProperties) -> Answer<PhysicalProperties> {
    if from.is_null() {
        return Err(CuResult::INVALID_VALUE);
    }
    // SAFETY: the driver API's contract: a structure of this size.
    let wanted = unsafe { from.read_unaligned() };
    // Nothing is handed to other processes, and nothing but a device's memory is had.
    if wanted.is_of_device() { Ok(wanted) } else { Err(CuResult::NOT_SUPPORTED) }
}

fn device_of(state: &State, wanted: &PhysicalProperties) -> Answer<(usize, u32)> {
    let device = state.device(wanted.location.id)?;
    Ok((device, u32::try_from(device).map_err(|_| CuResult::INVALID_DEVICE)?))
}

fn memory_of(state: &State, handle: u64) -> Answer<PhysicalId> {
    let id = handle.checked_sub(MARK).and_then(|id| u32::try_from(id).ok()).map(PhysicalId);
    id.filter(|id| state.physical.contains_key(id)).ok_or(CuResult::INVALID_VALUE)
}

fn no_flags(flags: u64) -> Answer {
    if flags == 0 { Ok(()) } else { Err(CuResult::INVALID_VALUE) }
}

api! {
    fn cuMemGetAllocationGranularity(
        bytes: *mut usize, wanted: *const PhysicalProperties, option: u32,
    ) {
        let wanted = properties(wanted)?;
        if option > 1 {
            return Err(CuResult::INVALID_VALUE);
        }
        with(|state| {
            let (_, device) = device_of(state, &wanted)?;
            let request = PhysicalGranularity { device, recommended: option == 1 };
            let found = state.call(ContextId(0), &request)?.bytes;
            put(bytes, usize::try_from(found).unwrap_or(usize::MAX))
        })
    }

    fn cuMemAddressReserve(
        place: *mut CUdeviceptr, bytes: usize, alignment: usize, _wish: CUdeviceptr, flags: u64,
    ) {
        no_flags(flags)?;
        if place.is_null() || bytes == 0 {
            return Err(CuResult::INVALID_VALUE);
        }
        with(|state| {
            let request = AddressReserve { bytes: bytes as u64, alignment: alignment as u64 };
            put(place, state.call(ContextId(0), &request)?.pointer.0)
        })
    }

    fn cuMemAddressFree(pointer: CUdeviceptr, bytes: usize) {
        with(|state| {
            let request = AddressFree { pointer: DevicePtr(pointer), bytes: bytes as u64 };
            state.call(ContextId(0), &request).map(drop)
        })
    }

    fn cuMemCreate(
        handle: *mut u64, bytes: usize, wanted: *const PhysicalProperties, flags: u64,
    ) {
        no_flags(flags)?;
        let wanted = properties(wanted)?;
        if handle.is_null() || bytes == 0 {
            return Err(CuResult::INVALID_VALUE);
        }
        with(|state| {
            let (index, device) = device_of(state, &wanted)?;
            let context = state.context_on(index)?;
            let memory = PhysicalId(state.new_number());
            let bytes = bytes as u64;
            state.call(context, &PhysicalCreate { memory, device, bytes })?;
            let device = wanted.location.id;
            state.physical.insert(memory, Physical { device, holders: 1 });
            put(handle, MARK + u64::from(memory.0))
        })
    }

    fn cuMemRelease(handle: u64) {
        with(|state| {
            let memory = memory_of(state, handle)?;
            let held = state.physical.get_mut(&memory).ok_or(CuResult::INVALID_VALUE)?;
            held.holders -= 1;
            if held.holders > 0 {
                return Ok(());
            }
            state.physical.remove(&memory);
            state.call(ContextId(0), &PhysicalRelease { memory }).map(drop)
        })
    }

    fn cuMemMap(pointer: CUdeviceptr, bytes: usize, offset: usize, handle: u64, flags: u64) {
        no_flags(flags)?;
        with(|state| {
            let memory = memory_of(state, handle)?;
            let (at, bytes, offset) = (DevicePtr(pointer), bytes as u64, offset as u64);
            let request = PhysicalMap { pointer: at, bytes, memory, offset };
            state.call(ContextId(0), &request)?;
            state.ranges.add_mapped(pointer, bytes, memory);
            Ok(())
        })
    }

    fn cuMemUnmap(pointer: CUdeviceptr, bytes: usize) {
        with(|state| {
            let (at, bytes) = (DevicePtr(pointer), bytes as u64);
            state.call(ContextId(0), &PhysicalUnmap { pointer: at, bytes })?;
            let end = pointer.saturating_add(bytes);
            state.ranges.retain(|range| {
                range.mapped.is_none() || range.base < pointer || range.base >= end
            });
            Ok(())
        })
    }

    fn cuMemSetAccess(
        pointer: CUdeviceptr, bytes: usize, wanted: *const MemoryAccess, count: usize,
    ) {
        if wanted.is_null() || count == 0 {
            return Err(CuResult::INVALID_VALUE);
        }
        with(|state| {
            let of = state.ranges.around(pointer).and_then(|range| range.mapped);
            let of = of.and_then(|(memory, _)| state.physical.get(&memory)).map(|held| held.device);
            for index in 0..count {
                // SAFETY: the driver API's contract: the list has `count` elements.
                let access = unsafe { wanted.add(index).read_unaligned() };
                let location = access.location;
                let own = location.kind == 1 && of.is_none_or(|device| device == location.id);
                if !own || access.flags & !3 != 0 {
                    return Err(CuResult::NOT_SUPPORTED);
                }
                let (at, bytes, flags) = (DevicePtr(pointer), bytes as u64, access.flags);
                state.call(ContextId(0), &PhysicalAccess { pointer: at, bytes, flags })?;
                state.ranges.set_access(pointer, bytes, flags);
            }
            Ok(())
        })
    }

    fn cuMemGetAccess(flags: *mut u64, location: *const MemoryLocation, pointer: CUdeviceptr) {
        if location.is_null() {
            return Err(CuResult::INVALID_VALUE);
        }
        // SAFETY: the driver API's contract: a structure of this size.
        let location = unsafe { location.read_unaligned() };
        with(|state| {
            let range = state.ranges.around(pointer).and_then(|range| range.mapped);
            let (memory, access) = range.ok_or(CuResult::INVALID_VALUE)?;
            let device = state.physical.get(&memory).map(|held| held.device);
            let own = location.kind == 1 && device.is_none_or(|device| device == location.id);
            put(flags, if own { access.into() } else { 0 })
        })
    }

    fn cuMemGetAllocationPropertiesFromHandle(place: *mut PhysicalProperties, handle: u64) {
        with(|state| {
            let memory = memory_of(state, handle)?;
            let held = state.physical.get(&memory).ok_or(CuResult::INVALID_VALUE)?;
            put(place, PhysicalProperties::of_device(held.device))
        })
    }

    fn cuMemRetainAllocationHandle(handle: *mut u64, pointer: *mut c_void) {
        with(|state| {
            let range = state.ranges.around(pointer.addr() as u64).and_then(|range| range.mapped);
            let (memory, _) = range.ok_or(CuResult::INVALID_VALUE)?;
            let held = state.physical.get_mut(&memory).ok_or(CuResult::INVALID_VALUE)?;
            held.holders += 1;
            put(handle, MARK + u64::from(memory.0))
        })
    }
}
