//! Stream-ordered allocation, and its pools.

use std::ffi::c_void;

use gpuzone_cuda_abi::{CUdevice, CUdeviceptr, CUstream, CuResult, pool_attribute};
use gpuzone_wire::spec::{
    ContextId, DevicePtr, MemoryFreeAsync, PoolAllocate, PoolAttribute, PoolCreate, PoolDestroy,
    PoolId, PoolSetAttribute, PoolTrim,
};

use crate::ffi::{Answer, api, put};
use crate::handles::{Kind, handle, number};
use crate::state::{State, with};

/// `CUmemPoolProps`.
#[repr(C)]
struct Properties {
    allocation: u32,
    handles: u32,
    location: Location,
    attributes: *mut c_void,
    most: usize,
    usage: u16,
    reserved: [u8; 54],
}

/// `CUmemLocation`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Location {
    pub(super) kind: u32,
    pub(super) device: i32,
}

/// `CUmemAccessDesc`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Access {
    pub(super) location: Location,
    pub(super) flags: u32,
}

/// `CU_MEM_ALLOCATION_TYPE_PINNED`.
pub(super) const PINNED: u32 = 1;
/// `CU_MEM_LOCATION_TYPE_DEVICE`.
pub(super) const DEVICE: u32 = 1;
/// `CU_MEM_ACCESS_FLAGS_PROT_READWRITE`.
pub(super) const READ_WRITE: u32 = 3;

/// A GPU's own pool has the GPU's number.
fn own(device: usize) -> PoolId {
    PoolId(u32::try_from(device).unwrap_or(u32::MAX))
}

/// A pool, and the GPU that it is of.
fn pool_of(state: &State, pool: *mut c_void) -> Answer<(PoolId, usize)> {
    let id = number(Kind::Pool, pool).map(PoolId).ok_or(CuResult::INVALID_VALUE)?;
    if id.0 < PoolId::FIRST {
        let device = i32::try_from(id.0).map_err(|_| CuResult::INVALID_VALUE)?;
        return Ok((id, state.device(device)?));
    }
    let device = state.pools.get(&id).ok_or(CuResult::INVALID_VALUE)?;
    Ok((id, *device))
}

/// The context of a stream, and its GPU.
fn device_of(state: &State, context: ContextId) -> Answer<usize> {
    Ok(state.contexts.get(&context).ok_or(CuResult::INVALID_CONTEXT)?.device)
}

fn allocate(
    state: &mut State,
    place: *mut CUdeviceptr,
    bytes: usize,
    pool: Option<PoolId>,
    stream: CUstream,
) -> Answer {
    if place.is_null() || bytes == 0 {
        return Err(CuResult::INVALID_VALUE);
    }
    let (stream, context) = state.stream(stream)?;
    state.not_capturing(stream)?;
    let device = device_of(state, context)?;
    let current = state.current_pools.get(&device).copied();
    let pool = pool.or(current).unwrap_or_else(|| own(device));
    let request = PoolAllocate { pool, bytes: bytes as u64, stream };
    let pointer = state.call(context, &request)?.pointer.0;
    state.ranges.add(pointer, bytes as u64, context, None);
    put(place, pointer)
}

/// How many bytes an attribute has: 4 or 8.
fn is_small(attribute: u32) -> bool {
    attribute <= pool_attribute::REUSE_ALLOW_INTERNAL_DEPENDENCIES
}

api! {
    fn cuDeviceGetDefaultMemPool(pool: *mut *mut c_void, device: CUdevice) {
        with(|state| put(pool, handle(Kind::Pool, own(state.device(device)?).0)))
    }

    fn cuDeviceGetMemPool(pool: *mut *mut c_void, device: CUdevice) {
        with(|state| {
            let device = state.device(device)?;
            let current = state.current_pools.get(&device).copied();
            put(pool, handle(Kind::Pool, current.unwrap_or_else(|| own(device)).0))
        })
    }

    fn cuDeviceSetMemPool(device: CUdevice, pool: *mut c_void) {
        with(|state| {
            let device = state.device(device)?;
            let (pool, of) = pool_of(state, pool)?;
            if of != device {
                return Err(CuResult::INVALID_VALUE);
            }
            state.current_pools.insert(device, pool);
            Ok(())
        })
    }

    fn cuMemPoolCreate(place: *mut *mut c_void, properties: *const c_void) {
        if place.is_null() || properties.is_null() {
            return Err(CuResult::INVALID_VALUE);
        }
        // SAFETY: the driver API's contract: a `CUmemPoolProps`.
        let wanted = unsafe { properties.cast::<Properties>().read_unaligned() };
        if wanted.allocation != PINNED || wanted.location.kind != DEVICE {
            return Err(CuResult::INVALID_VALUE);
        }
        // Nothing is shared with other processes, nor unpacked by the device.
        if wanted.handles != 0 || wanted.usage != 0 {
            return Err(CuResult::NOT_SUPPORTED);
        }
        with(|state| {
            let device = state.device(wanted.location.device)?;
            let pool = PoolId(state.new_number());
            let number = u32::try_from(device).map_err(|_| CuResult::INVALID_DEVICE)?;
            let most = wanted.most as u64;
            state.call(ContextId(0), &PoolCreate { pool, device: number, most })?;
            state.pools.insert(pool, device);
            put(place, handle(Kind::Pool, pool.0))
        })
    }

    fn cuMemPoolDestroy(pool: *mut c_void) {
        with(|state| {
            let (id, _) = pool_of(state, pool)?;
            if state.pools.remove(&id).is_none() {
                // A GPU's own pool stays.
                return Err(CuResult::INVALID_VALUE);
            }
            state.current_pools.retain(|_, current| *current != id);
            state.post_release(ContextId(0), &PoolDestroy { pool: id })
        })
    }

    fn cuMemPoolGetAttribute(pool: *mut c_void, attribute: u32, value: *mut c_void) {
        with(|state| {
            let (pool, _) = pool_of(state, pool)?;
            let found = state.call(ContextId(0), &PoolAttribute { pool, attribute })?.value;
            if is_small(attribute) {
                put(value.cast(), u32::try_from(found).unwrap_or(u32::MAX))
            } else {
                put(value.cast(), found)
            }
        })
    }

    fn cuMemPoolSetAttribute(pool: *mut c_void, attribute: u32, value: *mut c_void) {
        if value.is_null() {
            return Err(CuResult::INVALID_VALUE);
        }
        // SAFETY: the driver API's contract: a number of the attribute's size.
        let value: u64 = unsafe {
            if is_small(attribute) {
                value.cast::<u32>().read_unaligned().into()
            } else {
                value.cast::<u64>().read_unaligned()
            }
        };
        with(|state| {
            let (pool, _) = pool_of(state, pool)?;
            let request = PoolSetAttribute { pool, attribute, value };
            state.call(ContextId(0), &request).map(drop)
        })
    }

    fn cuMemPoolTrimTo(pool: *mut c_void, keep: usize) {
        with(|state| {
            let (pool, _) = pool_of(state, pool)?;
            state.call(ContextId(0), &PoolTrim { pool, keep: keep as u64 }).map(drop)
        })
    }

    fn cuMemPoolGetAccess(flags: *mut u32, pool: *mut c_void, location: *const c_void) {
        if location.is_null() {
            return Err(CuResult::INVALID_VALUE);
        }
        // SAFETY: the driver API's contract: a `CUmemLocation`.
        let location = unsafe { location.cast::<Location>().read_unaligned() };
        with(|state| {
            let (_, of) = pool_of(state, pool)?;
            let own = location.kind == DEVICE && state.device(location.device) == Ok(of);
            put(flags, if own { READ_WRITE } else { 0 })
        })
    }

    fn cuMemPoolSetAccess(pool: *mut c_void, wanted: *const c_void, count: usize) {
        with(|state| {
            let (_, of) = pool_of(state, pool)?;
            for index in 0..count {
                if wanted.is_null() {
                    return Err(CuResult::INVALID_VALUE);
                }
                // SAFETY: the driver API's contract: the list has `count` elements.
                let access = unsafe { wanted.cast::<Access>().add(index).read_unaligned() };
                let own =
                    access.location.kind == DEVICE && state.device(access.location.device) == Ok(of);
                // Peers have no access, and its own GPU cannot lose it.
                if own != (access.flags == READ_WRITE) {
                    return Err(CuResult::NOT_SUPPORTED);
                }
            }
            Ok(())
        })
    }

    fn cuMemAllocAsync | cuMemAllocAsync_ptsz(place: *mut CUdeviceptr, bytes: usize, stream: CUstream) {
        with(|state| allocate(state, place, bytes, None, stream))
    }

    fn cuMemAllocFromPoolAsync | cuMemAllocFromPoolAsync_ptsz(
        place: *mut CUdeviceptr, bytes: usize, pool: *mut c_void, stream: CUstream,
    ) {
        with(|state| {
            let (pool, _) = pool_of(state, pool)?;
            allocate(state, place, bytes, Some(pool), stream)
        })
    }

    fn cuMemFreeAsync | cuMemFreeAsync_ptsz(pointer: CUdeviceptr, stream: CUstream) {
        with(|state| {
            let range = state.ranges.get(pointer).filter(|range| range.module.is_none() && range.mapped.is_none());
            let of = range.ok_or(CuResult::INVALID_VALUE)?.context;
            let (stream, context) = state.stream(stream)?;
            state.not_capturing(stream)?;
            if of != context {
                return Err(CuResult::INVALID_VALUE);
            }
            state.ranges.remove(pointer);
            let request = MemoryFreeAsync { pointer: DevicePtr(pointer), stream };
            state.post_release(context, &request)
        })
    }
}
