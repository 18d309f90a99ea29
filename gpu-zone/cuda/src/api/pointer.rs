use std::ffi::c_void;

use gpuzone_cuda_abi::{CUdeviceptr, CuResult, INVALID_DEVICE, PointerAttribute, memory_type};

use crate::ffi::{Answer, api, put};
use crate::handles::{Kind, handle};
use crate::host::Host;
use crate::state::{State, with};
use crate::tables::Range;

/// What `cuPointerGetAttributes` says of an attribute that an address does not have.
fn nothing(place: *mut c_void, wanted: u32) -> Answer {
    use PointerAttribute as P;
    match PointerAttribute(wanted) {
        P::CONTEXT | P::HOST_POINTER => put(place.cast::<*mut c_void>(), std::ptr::null_mut()),
        P::DEVICE_POINTER | P::RANGE_START_ADDR | P::BUFFER_ID | P::RANGE_SIZE => {
            put(place.cast::<u64>(), 0)
        }
        P::MEMORY_TYPE
        | P::IS_MANAGED
        | P::MAPPED
        | P::SYNC_MEMOPS
        | P::IS_LEGACY_CUDA_IPC_CAPABLE
        | P::IS_GPU_DIRECT_RDMA_CAPABLE
        | P::ALLOWED_HANDLE_TYPES => put(place.cast::<u32>(), 0),
        P::DEVICE_ORDINAL => put(place.cast::<i32>(), INVALID_DEVICE),
        _ => Err(CuResult::NOT_SUPPORTED),
    }
}

/// Writes one attribute of device memory.
fn attribute(
    state: &State,
    place: *mut c_void,
    wanted: u32,
    pointer: u64,
    range: &Range,
) -> Answer {
    use PointerAttribute as P;
    let device = state.contexts.get(&range.context).map_or(0, |context| context.device);
    match PointerAttribute(wanted) {
        P::CONTEXT => put(place.cast(), handle(Kind::Context, range.context.0)),
        P::MEMORY_TYPE => put(place.cast(), memory_type::DEVICE),
        P::DEVICE_POINTER => put(place.cast(), pointer),
        P::HOST_POINTER => Err(CuResult::INVALID_VALUE),
        P::IS_MANAGED => put(place.cast::<u32>(), 0),
        P::MAPPED => put(place.cast::<u32>(), 1),
        P::BUFFER_ID => put(place.cast(), range.number),
        P::DEVICE_ORDINAL => put(place.cast(), i32::try_from(device).unwrap_or(0)),
        P::RANGE_START_ADDR => put(place.cast(), range.base),
        P::RANGE_SIZE => put(place.cast(), range.bytes),
        P::SYNC_MEMOPS
        | P::IS_LEGACY_CUDA_IPC_CAPABLE
        | P::IS_GPU_DIRECT_RDMA_CAPABLE
        | P::ALLOWED_HANDLE_TYPES => put(place.cast::<u32>(), 0),
        _ => Err(CuResult::NOT_SUPPORTED),
    }
}

fn host_at(state: &State, pointer: u64) -> Option<Host> {
    state.hosts.around(usize::try_from(pointer).ok()?)
}

/// Writes one attribute of host memory that the driver API knows.
fn host_attribute(state: &State, place: *mut c_void, wanted: u32, at: u64, host: &Host) -> Answer {
    use PointerAttribute as P;
    let device = state.contexts.get(&host.context).map_or(0, |context| context.device);
    match PointerAttribute(wanted) {
        P::CONTEXT => put(place.cast(), handle(Kind::Context, host.context.0)),
        P::MEMORY_TYPE => put(place.cast(), memory_type::HOST),
        P::HOST_POINTER => put(place.cast(), at),
        P::DEVICE_POINTER if host.device != 0 => {
            put(place.cast(), host.device + (at - host.start as u64))
        }
        P::MAPPED => put(place.cast::<u32>(), 1),
        P::IS_MANAGED => put(place.cast::<u32>(), 0),
        P::DEVICE_ORDINAL => put(place.cast(), i32::try_from(device).unwrap_or(0)),
        P::RANGE_START_ADDR | P::BUFFER_ID => put(place.cast(), host.start),
        P::RANGE_SIZE => put(place.cast(), host.bytes),
        P::SYNC_MEMOPS | P::IS_LEGACY_CUDA_IPC_CAPABLE => put(place.cast::<u32>(), 0),
        _ => Err(CuResult::INVALID_VALUE),
    }
}

api! {
    fn cuPointerGetAttribute(place: *mut c_void, wanted: u32, pointer: CUdeviceptr) {
        with(|state| {
            if let Some(range) = state.ranges.around(pointer) {
                return attribute(state, place, wanted, pointer, &range);
            }
            let host = host_at(state, pointer).ok_or(CuResult::INVALID_VALUE)?;
            host_attribute(state, place, wanted, pointer, &host)
        })
    }

    fn cuPointerGetAttributes(
        count: u32, wanted: *const u32, places: *const *mut c_void, pointer: CUdeviceptr,
    ) {
        if wanted.is_null() || places.is_null() {
            return Err(CuResult::INVALID_VALUE);
        }
        with(|state| {
            let range = state.ranges.around(pointer);
            let host = host_at(state, pointer);
            for index in 0..count as usize {
                // SAFETY: the driver API's contract: both lists have `count` elements.
                let (wanted, place) = unsafe {
                    (wanted.add(index).read_unaligned(), places.add(index).read_unaligned())
                };
                let told = match (&range, &host) {
                    (Some(range), _) => attribute(state, place, wanted, pointer, range),
                    (None, Some(host)) => host_attribute(state, place, wanted, pointer, host),
                    (None, None) => Err(CuResult::INVALID_VALUE),
                };
                // What an address does not have is no error here.
                told.or_else(|_| nothing(place, wanted))?;
            }
            Ok(())
        })
    }
}
