//! Copies and fills of rows.

use gpuzone_cuda_abi::CuResult;
use gpuzone_cuda_abi::rows::{End, Place, Rows, WORDS_2D, WORDS_3D};

use super::copy::{Mode, default_lane, either, fill, on_device, to_device, to_host};
use super::lane::Lane;
use crate::Answer;
use crate::abi::{Array, Word, entry_points};
use crate::work::Width;

fn copy(lane: &Lane, rows: Answer<Rows>, mode: Mode) -> Answer {
    let rows = rows?;
    if rows.is_empty() {
        return Ok(());
    }
    let memory = lane.context.memory();
    let is_device = |end: End| {
        let found = memory.find(end.address).is_some();
        match (end.place, found) {
            (Place::Host, true) | (Place::Device, false) => Err(CuResult::INVALID_VALUE),
            _ => Ok(found),
        }
    };
    let host = |address: u64| Word::try_from(address).map_err(|_| CuResult::INVALID_VALUE);
    let width = usize::try_from(rows.width).map_err(|_| CuResult::INVALID_VALUE)?;
    let (to, from) = (is_device(rows.target)?, is_device(rows.source)?);
    rows.rows().try_for_each(|(source, target)| match (to, from) {
        (true, true) => on_device(lane, target, source, width, mode),
        (true, false) => to_device(lane, target, host(source)?, width, mode),
        (false, true) => to_host(lane, host(target)?, source, width, mode),
        (false, false) => either(lane, target, source, width, mode),
    })
}

fn words<const N: usize>(from: Array<[u64; N]>) -> Answer<[u64; N]> {
    from.get(0)
}

struct Plane {
    at: u64,
    pitch: usize,
    columns: usize,
    rows: usize,
}

fn fill_rows(lane: &Lane, plane: &Plane, value: u32, width: Width, mode: Mode) -> Answer {
    let pitch = u64::try_from(plane.pitch).map_err(|_| CuResult::INVALID_VALUE)?;
    for row in 0..plane.rows as u64 {
        let at = row.checked_mul(pitch).and_then(|offset| plane.at.checked_add(offset));
        let at = at.ok_or(CuResult::INVALID_VALUE)?;
        fill(lane, at, value, width, plane.columns, mode)?;
    }
    Ok(())
}

entry_points! {
    fn cuMemcpy2D_v2(copied: Array<[u64; WORDS_2D]>) {
        copy(&default_lane()?, Rows::of_2d(&words(copied)?), Mode::Synchronous)
    }
    fn cuMemcpy2DUnaligned_v2(copied: Array<[u64; WORDS_2D]>) {
        copy(&default_lane()?, Rows::of_2d(&words(copied)?), Mode::Synchronous)
    }
    fn cuMemcpy2DAsync_v2(copied: Array<[u64; WORDS_2D]>, stream: Word) {
        copy(&Lane::of(stream)?, Rows::of_2d(&words(copied)?), Mode::Asynchronous)
    }
    fn cuMemcpy3D_v2(copied: Array<[u64; WORDS_3D]>) {
        copy(&default_lane()?, Rows::of_3d(&words(copied)?), Mode::Synchronous)
    }
    fn cuMemcpy3DAsync_v2(copied: Array<[u64; WORDS_3D]>, stream: Word) {
        copy(&Lane::of(stream)?, Rows::of_3d(&words(copied)?), Mode::Asynchronous)
    }

    fn cuMemsetD2D8_v2(at: u64, pitch: usize, value: u8, columns: usize, rows: usize) {
        let plane = Plane { at, pitch, columns, rows };
        fill_rows(&default_lane()?, &plane, value.into(), Width::One, Mode::Synchronous)
    }
    fn cuMemsetD2D16_v2(at: u64, pitch: usize, value: u16, columns: usize, rows: usize) {
        let plane = Plane { at, pitch, columns, rows };
        fill_rows(&default_lane()?, &plane, value.into(), Width::Two, Mode::Synchronous)
    }
    fn cuMemsetD2D32_v2(at: u64, pitch: usize, value: u32, columns: usize, rows: usize) {
        let plane = Plane { at, pitch, columns, rows };
        fill_rows(&default_lane()?, &plane, value, Width::Four, Mode::Synchronous)
    }
    fn cuMemsetD2D8Async(
        at: u64, pitch: usize, value: u8, columns: usize, rows: usize, stream: Word,
    ) {
        let plane = Plane { at, pitch, columns, rows };
        fill_rows(&Lane::of(stream)?, &plane, value.into(), Width::One, Mode::Asynchronous)
    }
    fn cuMemsetD2D16Async(
        at: u64, pitch: usize, value: u16, columns: usize, rows: usize, stream: Word,
    ) {
        let plane = Plane { at, pitch, columns, rows };
        fill_rows(&Lane::of(stream)?, &plane, value.into(), Width::Two, Mode::Asynchronous)
    }
    fn cuMemsetD2D32Async(
        at: u64, pitch: usize, value: u32, columns: usize, rows: usize, stream: Word,
    ) {
        let plane = Plane { at, pitch, columns, rows };
        fill_rows(&Lane::of(stream)?, &plane, value, Width::Four, Mode::Asynchronous)
    }
}
