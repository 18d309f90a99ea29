use std::ffi::c_void;

use gpuzone_cuda_abi::{CUdeviceptr, CUstream, CuResult};
use gpuzone_wire::ring::{MAX_BULK, Payload, RingError};
use gpuzone_wire::spec::{
    ContextId, CopyOnDevice, CopyToDevice, CopyToHost, DevicePtr, MemorySet, StreamId,
};

use crate::ffi::{Answer, api};
use crate::state::{State, with};

fn check(state: &State, pointer: u64, bytes: u64) -> Answer {
    if state.ranges.cover(pointer, bytes) { Ok(()) } else { Err(CuResult::INVALID_VALUE) }
}

/// Copies to the device in pieces; waits for the last one when told to.
fn to_device(
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
        let mut done = 0;
        while done < bytes {
            let piece = (bytes - done).min(MAX_BULK);
            let wait = wait && done + piece == bytes;
            let target = DevicePtr(target + done as u64);
            let request = CopyToDevice { target, stream, wait };
            // SAFETY: the driver API's contract: `bytes` bytes can be read at the source.
            let payload = unsafe { Payload::at(source.cast::<u8>().add(done), piece) };
            if wait {
                state.client.call(context, &request, payload)?;
            } else {
                state.client.post(context, &request, payload)?;
            }
            done += piece;
        }
        Ok(())
    })
}

/// Copies to the host. The program's memory is not known to the driver, so that the bytes are
/// there when this returns, which CUDA allows for memory that is not page-locked.
fn to_host(target: *mut c_void, source: u64, bytes: usize, stream: CUstream) -> Answer {
    with(|state| {
        let (stream, context) = state.stream(stream)?;
        if bytes == 0 {
            return Ok(());
        }
        if target.is_null() {
            return Err(CuResult::INVALID_VALUE);
        }
        check(state, source, bytes as u64)?;
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
                std::ptr::copy_nonoverlapping(piece.as_ptr(), place, piece.len());
            }
            done += piece.len();
            Ok(())
        });
        copied?;
        if done == bytes { Ok(()) } else { Err(CuResult::DEVICE_UNAVAILABLE) }
    })
}

fn on_device(target: u64, source: u64, bytes: usize, stream: CUstream) -> Answer {
    with(|state| {
        let (stream, context) = state.stream(stream)?;
        if bytes == 0 {
            return Ok(());
        }
        let bytes = bytes as u64;
        check(state, target, bytes)?;
        check(state, source, bytes)?;
        let (target, source) = (DevicePtr(target), DevicePtr(source));
        state.post(context, &CopyOnDevice { target, source, bytes, stream })
    })
}

fn set(target: u64, value: u32, width: u32, count: usize, stream: CUstream) -> Answer {
    with(|state| {
        let (stream, context): (StreamId, ContextId) = state.stream(stream)?;
        let count = count as u64;
        let bytes = count.checked_mul(width.into()).ok_or(CuResult::INVALID_VALUE)?;
        if !target.is_multiple_of(width.into()) {
            return Err(CuResult::INVALID_VALUE);
        }
        if bytes == 0 {
            return Ok(());
        }
        check(state, target, bytes)?;
        state.post(context, &MemorySet { target: DevicePtr(target), value, width, count, stream })
    })
}

const DEFAULT: CUstream = std::ptr::null_mut();

api! {
    fn cuMemcpyHtoD_v2(target: CUdeviceptr, source: *const c_void, bytes: usize) {
        to_device(target, source, bytes, DEFAULT, true)
    }

    fn cuMemcpyHtoDAsync_v2(
        target: CUdeviceptr, source: *const c_void, bytes: usize, stream: CUstream,
    ) {
        to_device(target, source, bytes, stream, false)
    }

    fn cuMemcpyDtoH_v2(target: *mut c_void, source: CUdeviceptr, bytes: usize) {
        to_host(target, source, bytes, DEFAULT)
    }

    fn cuMemcpyDtoHAsync_v2(
        target: *mut c_void, source: CUdeviceptr, bytes: usize, stream: CUstream,
    ) {
        to_host(target, source, bytes, stream)
    }

    fn cuMemcpyDtoD_v2(target: CUdeviceptr, source: CUdeviceptr, bytes: usize) {
        on_device(target, source, bytes, DEFAULT)
    }

    fn cuMemcpyDtoDAsync_v2(
        target: CUdeviceptr, source: CUdeviceptr, bytes: usize, stream: CUstream,
    ) {
        on_device(target, source, bytes, stream)
    }

    fn cuMemsetD8_v2(target: CUdeviceptr, value: u8, count: usize) {
        set(target, value.into(), 1, count, DEFAULT)
    }

    fn cuMemsetD16_v2(target: CUdeviceptr, value: u16, count: usize) {
        set(target, value.into(), 2, count, DEFAULT)
    }

    fn cuMemsetD32_v2(target: CUdeviceptr, value: u32, count: usize) {
        set(target, value, 4, count, DEFAULT)
    }

    fn cuMemsetD8Async(target: CUdeviceptr, value: u8, count: usize, stream: CUstream) {
        set(target, value.into(), 1, count, stream)
    }

    fn cuMemsetD16Async(target: CUdeviceptr, value: u16, count: usize, stream: CUstream) {
        set(target, value.into(), 2, count, stream)
    }

    fn cuMemsetD32Async(target: CUdeviceptr, value: u32, count: usize, stream: CUstream) {
        set(target, value, 4, count, stream)
    }
}
