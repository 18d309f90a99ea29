//! Copies and fills of rows.

use std::ffi::c_void;

use gpuzone_cuda_abi::rows::{Place, Rows, WORDS_2D, WORDS_3D};
use gpuzone_cuda_abi::{CUdeviceptr, CUstream, CuResult};
use gpuzone_wire::ring::{Payload, RingError};
use gpuzone_wire::spec::{CopyRowsOnDevice, CopyRowsToDevice, CopyRowsToHost, DevicePtr};

use super::copy::{DEFAULT, Plane, check, either, set, wait_for};
use crate::ffi::{Answer, api};
use crate::graphs::Work;
use crate::state::{State, with};

/// One slice of a copy.
struct Slice {
    target: u64,
    target_pitch: u64,
    source: u64,
    source_pitch: u64,
    width: u64,
    rows: u64,
}

impl Slice {
    fn span(&self, pitch: u64) -> u64 {
        // The ends of all rows were seen to be addresses.
        pitch.wrapping_mul(self.rows - 1).wrapping_add(self.width)
    }

    /// Rows that go in one record, which holds `most` bytes.
    fn at_once(&self, most: usize) -> u64 {
        (most as u64 / self.width).min(self.rows)
    }
}

fn host(address: u64) -> Answer<*mut u8> {
    let address = usize::try_from(address).ok().filter(|address| *address != 0);
    address.map(std::ptr::with_exposed_provenance_mut).ok_or(CuResult::INVALID_VALUE)
}

fn small(n: u64) -> Answer<usize> {
    usize::try_from(n).map_err(|_| CuResult::INVALID_VALUE)
}

fn to_device(state: &mut State, slice: &Slice, stream: CUstream) -> Answer {
    check(state, slice.target, slice.span(slice.target_pitch))?;
    let (stream, context) = state.stream(stream)?;
    let (width, pitch) = (small(slice.width)?, small(slice.source_pitch)?);
    let source = host(slice.source)?;
    let (mut done, mut bytes) = (0, Vec::new());
    while done < slice.rows {
        let rows = slice.at_once(state.piece).min(slice.rows - done);
        bytes.clear();
        for row in done..done + rows {
            // SAFETY: the driver API's contract: the source has such rows.
            let row = unsafe {
                std::slice::from_raw_parts(source.wrapping_add(small(row)? * pitch), width)
            };
            bytes.extend_from_slice(row);
        }
        let target = DevicePtr(slice.target.wrapping_add(done.wrapping_mul(slice.target_pitch)));
        let (pitch, width) = (slice.target_pitch, slice.width);
        let request = CopyRowsToDevice { target, pitch, width, rows, stream };
        state.client.post(context, &request, Payload::of(&bytes))?;
        done += rows;
    }
    Ok(())
}

fn to_host(state: &mut State, slice: &Slice, stream: CUstream) -> Answer {
    check(state, slice.source, slice.span(slice.source_pitch))?;
    let (stream, context) = state.stream(stream)?;
    let (width, pitch) = (small(slice.width)?, small(slice.target_pitch)?);
    let target = host(slice.target)?;
    let (source, rows) = (DevicePtr(slice.source), slice.rows);
    let request =
        CopyRowsToHost { source, pitch: slice.source_pitch, width: slice.width, rows, stream };
    let (mut done, rows) = (0, small(rows)?);
    let copied = state.client.call_for_pieces(context, &request, Payload::NONE, |piece| {
        // The worker is not trusted to send what was asked for and no more.
        let whole = piece.len() / width;
        if piece.len() % width != 0 || whole > rows - done {
            return Err(RingError::BadRecord);
        }
        for row in 0..whole {
            // SAFETY: the driver API's contract: the target has such rows, of which `done` were
            // written; the piece lies in the ring until the next one is received.
            unsafe {
                let place = target.wrapping_add((done + row) * pitch);
                std::ptr::copy_nonoverlapping(piece.as_ptr().add(row * width), place, width);
            }
        }
        done += whole;
        Ok(())
    });
    state.write_prints();
    copied?;
    if done == rows { Ok(()) } else { Err(CuResult::DEVICE_UNAVAILABLE) }
}

fn on_device(state: &mut State, slice: &Slice, stream: CUstream) -> Answer {
    check(state, slice.target, slice.span(slice.target_pitch))?;
    check(state, slice.source, slice.span(slice.source_pitch))?;
    let (stream, context) = state.stream(stream)?;
    let request = CopyRowsOnDevice {
        target: DevicePtr(slice.target),
        target_pitch: slice.target_pitch,
        source: DevicePtr(slice.source),
        source_pitch: slice.source_pitch,
        width: slice.width,
        rows: slice.rows,
        stream,
    };
    state.post(context, &request)
}

pub(super) fn copy(rows: Answer<Rows>, stream: CUstream, wait: bool) -> Answer {
    let rows = rows?;
    if rows.is_empty() {
        return Ok(());
    }
    let is_device = |place, address| {
        let found = with(|state| Ok(state.ranges.around(address).is_some()))?;
        match (place, found) {
            (Place::Host, true) | (Place::Device, false) => Err(CuResult::INVALID_VALUE),
            _ => Ok(found),
        }
    };
    let to = is_device(rows.target.place, rows.target.address)?;
    let from = is_device(rows.source.place, rows.source.address)?;
    let (is_captured, most) = with(|state| {
        let (stream, _) = state.stream(stream)?;
        Ok((state.captures(stream, || Work::Rows(rows))?, state.piece as u64))
    })?;
    if is_captured {
        return Ok(());
    }
    let (width, height) = (rows.width, rows.height);
    if (!to && !from) || (to != from && width > most) {
        // Within the host, or rows that are longer than a record.
        let width = small(width)?;
        return rows
            .rows()
            .try_for_each(|(source, target)| either(target, source, width, stream, wait));
    }
    with(|state| {
        for (source, target) in rows.slices() {
            let (target_pitch, source_pitch) = (rows.target.pitch, rows.source.pitch);
            let slice = Slice { target, target_pitch, source, source_pitch, width, rows: height };
            match (to, from) {
                (true, true) => on_device(state, &slice, stream)?,
                (true, false) => to_device(state, &slice, stream)?,
                (false, _) => to_host(state, &slice, stream)?,
            }
        }
        Ok(())
    })?;
    if wait && to && !from { wait_for(stream) } else { Ok(()) }
}

fn words<const N: usize>(from: *const c_void) -> Answer<[u64; N]> {
    if from.is_null() {
        return Err(CuResult::INVALID_VALUE);
    }
    // SAFETY: the driver API's contract: a structure of this size.
    Ok(unsafe { from.cast::<[u64; N]>().read_unaligned() })
}

fn of_2d(from: *const c_void) -> Answer<Rows> {
    Rows::of_2d(&words::<WORDS_2D>(from)?)
}

fn of_3d(from: *const c_void) -> Answer<Rows> {
    Rows::of_3d(&words::<WORDS_3D>(from)?)
}

api! {
    fn cuMemcpy2D_v2 | cuMemcpy2D_v2_ptds(copied: *const c_void) {
        copy(of_2d(copied), DEFAULT, true)
    }

    fn cuMemcpy2DUnaligned_v2 | cuMemcpy2DUnaligned_v2_ptds(copied: *const c_void) {
        copy(of_2d(copied), DEFAULT, true)
    }

    fn cuMemcpy2DAsync_v2 | cuMemcpy2DAsync_v2_ptsz(copied: *const c_void, stream: CUstream) {
        copy(of_2d(copied), stream, false)
    }

    fn cuMemcpy3D_v2 | cuMemcpy3D_v2_ptds(copied: *const c_void) {
        copy(of_3d(copied), DEFAULT, true)
    }

    fn cuMemcpy3DAsync_v2 | cuMemcpy3DAsync_v2_ptsz(copied: *const c_void, stream: CUstream) {
        copy(of_3d(copied), stream, false)
    }

    fn cuMemsetD2D8_v2 | cuMemsetD2D8_v2_ptds(target: CUdeviceptr, pitch: usize, value: u8, count: usize, rows: usize) {
        set(&Plane { target, pitch, count, rows }, value.into(), 1, DEFAULT)
    }

    fn cuMemsetD2D16_v2 | cuMemsetD2D16_v2_ptds(target: CUdeviceptr, pitch: usize, value: u16, count: usize, rows: usize) {
        set(&Plane { target, pitch, count, rows }, value.into(), 2, DEFAULT)
    }

    fn cuMemsetD2D32_v2 | cuMemsetD2D32_v2_ptds(target: CUdeviceptr, pitch: usize, value: u32, count: usize, rows: usize) {
        set(&Plane { target, pitch, count, rows }, value, 4, DEFAULT)
    }

    fn cuMemsetD2D8Async | cuMemsetD2D8Async_ptsz(
        target: CUdeviceptr, pitch: usize, value: u8, count: usize, rows: usize, stream: CUstream,
    ) {
        set(&Plane { target, pitch, count, rows }, value.into(), 1, stream)
    }

    fn cuMemsetD2D16Async | cuMemsetD2D16Async_ptsz(
        target: CUdeviceptr, pitch: usize, value: u16, count: usize, rows: usize,
        stream: CUstream,
    ) {
        set(&Plane { target, pitch, count, rows }, value.into(), 2, stream)
    }

    fn cuMemsetD2D32Async | cuMemsetD2D32Async_ptsz(
        target: CUdeviceptr, pitch: usize, value: u32, count: usize, rows: usize,
        stream: CUstream,
    ) {
        set(&Plane { target, pitch, count, rows }, value, 4, stream)
    }
}
