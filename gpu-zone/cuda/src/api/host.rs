use std::ffi::c_void;

use gpuzone_cuda_abi::{CUdeviceptr, CuResult, mem_host_flags};
use gpuzone_wire::spec::{HostAllocate, HostFree, HostId};

use crate::ffi::{Answer, api, put};
use crate::host::{Host, map, unmap};
use crate::state::with;

/// Flags of `cuMemHostRegister`: portable, mapped, of a device's registers, read only.
const REGISTER_FLAGS: u32 = 0x0f;
/// Of a device's registers.
const IO_MEMORY: u32 = 0x04;

fn allocate(place: *mut *mut c_void, bytes: usize, flags: u32) -> Answer {
    let known =
        mem_host_flags::PORTABLE | mem_host_flags::DEVICE_MAP | mem_host_flags::WRITE_COMBINED;
    if place.is_null() || bytes == 0 || flags & !known != 0 {
        return Err(CuResult::INVALID_VALUE);
    }
    with(|state| {
        let context = state.context()?;
        let memory = HostId(state.new_number());
        let wanted = bytes as u64;
        let device = state.call(context, &HostAllocate { memory, bytes: wanted })?.pointer.0;
        let file = state.client.take_file()?;
        let start = match map(&file, bytes, device) {
            Ok(start) => start,
            Err(error) => {
                state.call(context, &HostFree { memory })?;
                return Err(error);
            }
        };
        state.hosts.add(Host { start, bytes, flags, context, device, shared: Some(memory) })?;
        put(place, std::ptr::with_exposed_provenance_mut(start))
    })
}

fn register(memory: *mut c_void, bytes: usize, flags: u32) -> Answer {
    if memory.is_null() || bytes == 0 || flags & !REGISTER_FLAGS != 0 {
        return Err(CuResult::INVALID_VALUE);
    }
    if flags & IO_MEMORY != 0 {
        return Err(CuResult::NOT_SUPPORTED);
    }
    with(|state| {
        let context = state.context()?;
        let start = memory.addr();
        // The program's own memory is not the worker's: kernels do not reach it.
        let (device, shared) = (0, None);
        state.hosts.add(Host { start, bytes, flags, context, device, shared })
    })
}

api! {
    fn cuMemAllocHost(place: *mut *mut c_void, bytes: usize) {
        allocate(place, bytes, 0)
    }

    fn cuMemAllocHost_v2(place: *mut *mut c_void, bytes: usize) {
        allocate(place, bytes, 0)
    }

    fn cuMemHostAlloc(place: *mut *mut c_void, bytes: usize, flags: u32) {
        allocate(place, bytes, flags)
    }

    fn cuMemFreeHost(memory: *mut c_void) {
        with(|state| {
            let host = state.hosts.take(memory.addr(), true).ok_or(CuResult::INVALID_VALUE)?;
            let id = host.shared.ok_or(CuResult::INVALID_VALUE)?;
            // Answered when no copy uses it any more.
            let freed = state.call(host.context, &HostFree { memory: id });
            unmap(&host);
            freed.map(drop)
        })
    }

    fn cuMemHostGetFlags(flags: *mut u32, memory: *mut c_void) {
        with(|state| {
            let host = state.hosts.around(memory.addr());
            put(flags, host.ok_or(CuResult::INVALID_VALUE)?.flags)
        })
    }

    fn cuMemHostRegister(memory: *mut c_void, bytes: usize, flags: u32) {
        register(memory, bytes, flags)
    }

    fn cuMemHostRegister_v2(memory: *mut c_void, bytes: usize, flags: u32) {
        register(memory, bytes, flags)
    }

    fn cuMemHostUnregister(memory: *mut c_void) {
        with(|state| {
            state.context()?;
            let host = state.hosts.take(memory.addr(), false);
            host.map(drop).ok_or(CuResult::HOST_MEMORY_NOT_REGISTERED)
        })
    }

    fn cuMemHostGetDevicePointer_v2(place: *mut CUdeviceptr, memory: *mut c_void, flags: u32) {
        if place.is_null() || flags != 0 {
            return Err(CuResult::INVALID_VALUE);
        }
        with(|state| {
            state.context()?;
            let host = state.hosts.around(memory.addr()).ok_or(CuResult::INVALID_VALUE)?;
            if host.device == 0 {
                return Err(CuResult::NOT_SUPPORTED);
            }
            put(place, host.device + (memory.addr() - host.start) as u64)
        })
    }
}
