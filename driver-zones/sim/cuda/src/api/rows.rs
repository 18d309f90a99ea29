//! Copies and fills of rows.

use gpuzone_cuda_abi::CuResult;
use gpuzone_cuda_abi::rows::{Place, Rows, WORDS_2D, WORDS_3D};

use super::copy::{Mode, default_lane, either, fill};
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
    for (end, what) in [(rows.source, "source"), (rows.target, "target")] {
        let on_device = memory.find(end.address).is_some();
        let fits = match end.place {
            Place::Host => !on_device,
            Place::Device => on_device,
            Place::Either => true,
        };
        if !fits {
            crate::driver::report(&format!("the {what} of a copy of rows is not where it says"));
            return Err(CuResult::INVALID_VALUE);
        }
    }
    let width = usize::try_from(rows.width).map_err(|_| CuResult::INVALID_VALUE)?;
    rows.rows().try_for_each(|(source, target)| either(lane, target, source, width, mode))
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
