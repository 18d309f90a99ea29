use std::ffi::c_void;

use gpuzone_cuda_abi::{CUdeviceptr, CUstream, CuResult};
use gpuzone_wire::ring::{Payload, RingError, copy_bytes};
use gpuzone_wire::spec::{
    ContextId, CopyOnDevice, CopySharedToDevice, CopySharedToHost, CopyToDevice, CopyToHost,
    DevicePtr, MemorySet, StreamId, StreamSynchronize,
};

use crate::ffi::{Answer, api};
use crate::graphs::{FillWork, Work};
use crate::state::{State, with};

pub(super) fn check(state: &State, pointer: u64, bytes: u64) -> Answer {
    let known = state.ranges.cover(pointer, bytes) || state.hosts.cover_device(pointer, bytes);
    if known { Ok(()) } else { Err(CuResult::INVALID_VALUE) }
}

/// Copies to the device in pieces; waits for the last one when told to.
pub(super) fn to_device(
    target: u64,
    source: *const c_void,
    bytes: usize,
    stream: CUstream,
    wait: bool,
) -> Answer {
    with(|state| {
        let (stream, context) = state.stream(stream)?;
        if bytes == 0 {
            return Ok(());
        }
        if source.is_null() {
            return Err(CuResult::INVALID_VALUE);
        }
        check(state, target, bytes as u64)?;
        let from = source.expose_provenance() as u64;
        if state.captures(stream, || Work::Copy { target, source: from, bytes })? {
            return Ok(());
        }
        if let Some((memory, offset)) = state.hosts.shared(source.addr(), bytes) {
            let (target, bytes) = (DevicePtr(target), bytes as u64);
            let request = CopySharedToDevice { target, memory, offset, bytes, stream };
            state.post(context, &request)?;
            return if wait { idle(state, context, stream) } else { Ok(()) };
        }
        let mut done = 0;
        while done < bytes {
            let piece = (bytes - done).min(state.piece);
            let wait = wait && done + piece == bytes;
            let target = DevicePtr(target + done as u64);
            let request = CopyToDevice { target, stream, wait };
            // SAFETY: the driver API's contract: `bytes` bytes can be read at the source.
            let payload = unsafe { Payload::at(source.cast::<u8>().add(done), piece) };
            if wait {
                let copied = state.client.call(context, &request, payload);
                state.write_prints();
                copied?;
            } else {
                state.client.post(context, &request, payload)?;
            }
            done += piece;
        }
        Ok(())
    })
}

/// Waits for a stream's work.
pub(super) fn wait_for(stream: CUstream) -> Answer {
    with(|state| {
        let (stream, context) = state.stream(stream)?;
        idle(state, context, stream)
    })
}

fn idle(state: &mut State, context: ContextId, stream: StreamId) -> Answer {
    state.wait(context, &StreamSynchronize { stream })
}

/// Copies to the host. To memory that is shared with the worker it does not wait unless it is told
/// to; of other memory the driver does not know, so that the bytes are there when this returns,
/// which CUDA allows for memory that is not page-locked.
pub(super) fn to_host(
    target: *mut c_void,
    source: u64,
    bytes: usize,
    stream: CUstream,
    wait: bool,
) -> Answer {
    with(|state| {
        let (stream, context) = state.stream(stream)?;
        if bytes == 0 {
            return Ok(());
        }
        if target.is_null() {
            return Err(CuResult::INVALID_VALUE);
        }
        check(state, source, bytes as u64)?;
        let to = target.expose_provenance() as u64;
        if state.captures(stream, || Work::Copy { target: to, source, bytes })? {
            return Ok(());
        }
        if let Some((memory, offset)) = state.hosts.shared(target.addr(), bytes) {
            let (source, bytes) = (DevicePtr(source), bytes as u64);
            let request = CopySharedToHost { memory, offset, source, bytes, stream };
            state.post(context, &request)?;
            return if wait { idle(state, context, stream) } else { Ok(()) };
        }
        let request = CopyToHost { source: DevicePtr(source), bytes: bytes as u64, stream };
        let mut done = 0;
        let copied = state.client.call_for_pieces(context, &request, Payload::NONE, |piece| {
            // The worker is not trusted to send what was asked for and no more.
            if piece.len() > bytes - done {
                return Err(RingError::BadRecord);
            }
            // SAFETY: the driver API's contract: there is room for `bytes` bytes at the
            // target, of which `done` are used; the piece lies in the ring until the next one
            // is received.
            unsafe {
                let place = target.cast::<u8>().add(done);
                copy_bytes(piece.as_ptr(), place, piece.len());
            }
            done += piece.len();
            Ok(())
        });
        state.write_prints();
        copied?;
        if done == bytes { Ok(()) } else { Err(CuResult::DEVICE_UNAVAILABLE) }
    })
}

pub(super) fn on_device(target: u64, source: u64, bytes: usize, stream: CUstream) -> Answer {
    with(|state| {
        let (stream, context) = state.stream(stream)?;
        if bytes == 0 {
            return Ok(());
        }
        let length = bytes;
        let bytes = bytes as u64;
        check(state, target, bytes)?;
        check(state, source, bytes)?;
        if state.captures(stream, || Work::Copy { target, source, bytes: length })? {
            return Ok(());
        }
        let (target, source) = (DevicePtr(target), DevicePtr(source));
        state.post(context, &CopyOnDevice { target, source, bytes, stream })
    })
}

/// `cuMemcpy`: which of the ends are on a device is seen from the addresses.
pub(super) fn either(
    target: u64,
    source: u64,
    bytes: usize,
    stream: CUstream,
    wait: bool,
) -> Answer {
    let host = |address: u64| {
        let address = usize::try_from(address).map_err(|_| CuResult::INVALID_VALUE)?;
        Ok::<_, CuResult>(std::ptr::with_exposed_provenance_mut::<c_void>(address))
    };
    let on_device = |address| with(|state| Ok(state.ranges.around(address).is_some()));
    match (on_device(target)?, on_device(source)?) {
        (true, true) => self::on_device(target, source, bytes, stream),
        (true, false) => to_device(target, host(source)?, bytes, stream, wait),
        (false, true) => to_host(host(target)?, source, bytes, stream, wait),
        (false, false) => {
            let (target, source) = (host(target)?, host(source)?);
            wait_for(stream)?;
            if bytes > 0 && (target.is_null() || source.is_null()) {
                return Err(CuResult::INVALID_VALUE);
            }
            // SAFETY: the driver API's contract: both have `bytes` bytes.
            unsafe { std::ptr::copy(source.cast::<u8>(), target.cast::<u8>(), bytes) };
            Ok(())
        }
    }
}

/// Rows of memory that are set.
pub(super) struct Plane {
    pub(super) target: u64,
    pub(super) pitch: usize,
    pub(super) count: usize,
    pub(super) rows: usize,
}

impl Plane {
    fn row(target: u64, count: usize) -> Self {
        Self { target, pitch: 0, count, rows: 1 }
    }
}

pub(super) fn set(plane: &Plane, value: u32, width: u32, stream: CUstream) -> Answer {
    let invalid = CuResult::INVALID_VALUE;
    with(|state| {
        let (stream, context) = state.stream(stream)?;
        let (count, rows, pitch) = (plane.count as u64, plane.rows as u64, plane.pitch as u64);
        let row = count.checked_mul(width.into()).ok_or(invalid)?;
        if !plane.target.is_multiple_of(width.into()) || (rows > 1 && pitch < row) {
            return Err(invalid);
        }
        if row == 0 || rows == 0 {
            return Ok(());
        }
        let bytes = (rows - 1).checked_mul(pitch).and_then(|before| before.checked_add(row));
        check(state, plane.target, bytes.ok_or(invalid)?)?;
        let fill = || {
            let Plane { target, pitch, count, rows } = *plane;
            Work::Fill(FillWork { target, pitch, value, width, count, rows })
        };
        if state.captures(stream, fill)? {
            return Ok(());
        }
        let target = DevicePtr(plane.target);
        state.post(context, &MemorySet { target, value, width, count, pitch, rows, stream })
    })
}

pub(super) const DEFAULT: CUstream = std::ptr::null_mut();

api! {
    fn cuMemcpyHtoD_v2 | cuMemcpyHtoD_v2_ptds(target: CUdeviceptr, source: *const c_void, bytes: usize) {
        to_device(target, source, bytes, DEFAULT, true)
    }

    fn cuMemcpyHtoDAsync_v2 | cuMemcpyHtoDAsync_v2_ptsz(
        target: CUdeviceptr, source: *const c_void, bytes: usize, stream: CUstream,
    ) {
        to_device(target, source, bytes, stream, false)
    }

    fn cuMemcpyDtoH_v2 | cuMemcpyDtoH_v2_ptds(target: *mut c_void, source: CUdeviceptr, bytes: usize) {
        to_host(target, source, bytes, DEFAULT, true)
    }

    fn cuMemcpyDtoHAsync_v2 | cuMemcpyDtoHAsync_v2_ptsz(
        target: *mut c_void, source: CUdeviceptr, bytes: usize, stream: CUstream,
    ) {
        to_host(target, source, bytes, stream, false)
    }

    fn cuMemcpyDtoD_v2 | cuMemcpyDtoD_v2_ptds(target: CUdeviceptr, source: CUdeviceptr, bytes: usize) {
        on_device(target, source, bytes, DEFAULT)
    }

    fn cuMemcpyDtoDAsync_v2 | cuMemcpyDtoDAsync_v2_ptsz(
        target: CUdeviceptr, source: CUdeviceptr, bytes: usize, stream: CUstream,
    ) {
        on_device(target, source, bytes, stream)
    }

    fn cuMemcpy | cuMemcpy_ptds(target: CUdeviceptr, source: CUdeviceptr, bytes: usize) {
        either(target, source, bytes, DEFAULT, true)
    }

    fn cuMemcpyAsync | cuMemcpyAsync_ptsz(target: CUdeviceptr, source: CUdeviceptr, bytes: usize, stream: CUstream) {
        either(target, source, bytes, stream, false)
    }

    fn cuMemsetD8_v2 | cuMemsetD8_v2_ptds(target: CUdeviceptr, value: u8, count: usize) {
        set(&Plane::row(target, count), value.into(), 1, DEFAULT)
    }

    fn cuMemsetD16_v2 | cuMemsetD16_v2_ptds(target: CUdeviceptr, value: u16, count: usize) {
        set(&Plane::row(target, count), value.into(), 2, DEFAULT)
    }

    fn cuMemsetD32_v2 | cuMemsetD32_v2_ptds(target: CUdeviceptr, value: u32, count: usize) {
        set(&Plane::row(target, count), value, 4, DEFAULT)
    }

    fn cuMemsetD8Async | cuMemsetD8Async_ptsz(target: CUdeviceptr, value: u8, count: usize, stream: CUstream) {
        set(&Plane::row(target, count), value.into(), 1, stream)
    }

    fn cuMemsetD16Async | cuMemsetD16Async_ptsz(target: CUdeviceptr, value: u16, count: usize, stream: CUstream) {
        set(&Plane::row(target, count), value.into(), 2, stream)
    }

    fn cuMemsetD32Async | cuMemsetD32Async_ptsz(target: CUdeviceptr, value: u32, count: usize, stream: CUstream) {
        set(&Plane::row(target, count), value, 4, stream)
    }
}
