//! Copies and fills.

use gpuzone_cuda_abi::{CuResult, stream_handle};

use super::lane::Lane;
use crate::Answer;
use crate::abi::{HostBytes, Word, entry_points};
use crate::host_memory;
use crate::work::{Pattern, Source, Width, Work};

/// Up to this size the program's pageable memory is copied aside, so that it need not wait.
const STAGE_UP_TO: usize = 64 << 10;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Synchronous,
    Asynchronous,
}

fn size(bytes: usize) -> Answer<u64> {
    u64::try_from(bytes).map_err(|_| CuResult::INVALID_VALUE)
}

pub(super) fn to_device(lane: &Lane, to: u64, from: Word, len: usize, mode: Mode) -> Answer {
    if len == 0 {
        return Ok(());
    }
    let from = HostBytes::new(from, len)?;
    lane.context.memory().host(to, size(len)?)?;
    if mode == Mode::Asynchronous && host_memory::is_pinned(from) {
        return lane.submit(Work::ToDevice { to, from: Source::Direct(from) }).map(drop);
    }
    if mode == Mode::Asynchronous && len <= STAGE_UP_TO {
        return lane.submit(Work::ToDevice { to, from: Source::Staged(from.to_vec()) }).map(drop);
    }
    lane.run(Work::ToDevice { to, from: Source::Direct(from) })
}

pub(super) fn to_host(lane: &Lane, to: Word, from: u64, len: usize, mode: Mode) -> Answer {
    if len == 0 {
        return Ok(());
    }
    let to = HostBytes::new(to, len)?;
    lane.context.memory().host(from, size(len)?)?;
    let work = Work::ToHost { to, from };
    if mode == Mode::Asynchronous && host_memory::is_pinned(to) {
        return lane.submit(work).map(drop);
    }
    lane.run(work)
}

pub(super) fn on_device(lane: &Lane, to: u64, from: u64, len: usize, mode: Mode) -> Answer {
    if len == 0 {
        return Ok(());
    }
    let bytes = size(len)?;
    lane.context.memory().host(from, bytes)?;
    lane.context.memory().host(to, bytes)?;
    let work = Work::OnDevice { to, from, bytes };
    match mode {
        Mode::Synchronous => lane.run(work),
        Mode::Asynchronous => lane.submit(work).map(drop),
    }
}

/// `cuMemcpy`: which of the two is on the device is seen from the addresses.
pub(super) fn either(lane: &Lane, to: u64, from: u64, len: usize, mode: Mode) -> Answer {
    let memory = lane.context.memory();
    let host = |address: u64| Word::try_from(address).map_err(|_| CuResult::INVALID_VALUE);
    match (memory.find(to).is_some(), memory.find(from).is_some()) {
        (true, true) => on_device(lane, to, from, len, mode),
        (true, false) => to_device(lane, to, host(from)?, len, mode),
        (false, true) => to_host(lane, host(to)?, from, len, mode),
        (false, false) if len == 0 => Ok(()),
        (false, false) => {
            lane.context.wait(lane.last())?;
            let from = HostBytes::new(host(from)?, len)?;
            HostBytes::new(host(to)?, len)?.write(&from.to_vec());
            Ok(())
        }
    }
}

pub(super) fn fill(
    lane: &Lane,
    at: u64,
    value: u32,
    width: Width,
    count: usize,
    mode: Mode,
) -> Answer {
    let bytes = size(count)?.checked_mul(width.bytes()).ok_or(CuResult::INVALID_VALUE)?;
    if !at.is_multiple_of(width.bytes()) {
        return Err(CuResult::INVALID_VALUE);
    }
    if bytes == 0 {
        return Ok(());
    }
    lane.context.memory().host(at, bytes)?;
    let work = Work::Fill { at, bytes, pattern: Pattern { value, width } };
    match mode {
        Mode::Synchronous => lane.run(work),
        Mode::Asynchronous => lane.submit(work).map(drop),
    }
}

pub(super) fn default_lane() -> Answer<Lane> {
    Lane::of(stream_handle::DEFAULT)
}

entry_points! {
    fn cuMemcpyHtoD_v2(to: u64, from: Word, len: usize) {
        to_device(&default_lane()?, to, from, len, Mode::Synchronous)
    }
    fn cuMemcpyHtoDAsync_v2(to: u64, from: Word, len: usize, stream: Word) {
        to_device(&Lane::of(stream)?, to, from, len, Mode::Asynchronous)
    }
    fn cuMemcpyDtoH_v2(to: Word, from: u64, len: usize) {
        to_host(&default_lane()?, to, from, len, Mode::Synchronous)
    }
    fn cuMemcpyDtoHAsync_v2(to: Word, from: u64, len: usize, stream: Word) {
        to_host(&Lane::of(stream)?, to, from, len, Mode::Asynchronous)
    }
    fn cuMemcpyDtoD_v2(to: u64, from: u64, len: usize) {
        on_device(&default_lane()?, to, from, len, Mode::Synchronous)
    }
    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, len: usize, stream: Word) {
        on_device(&Lane::of(stream)?, to, from, len, Mode::Asynchronous)
    }
    fn cuMemcpy(to: u64, from: u64, len: usize) {
        either(&default_lane()?, to, from, len, Mode::Synchronous)
    }
    fn cuMemcpyAsync(to: u64, from: u64, len: usize, stream: Word) {
        either(&Lane::of(stream)?, to, from, len, Mode::Asynchronous)
    }

    fn cuMemsetD8_v2(at: u64, value: u8, count: usize) {
        fill(&default_lane()?, at, value.into(), Width::One, count, Mode::Synchronous)
    }
    fn cuMemsetD16_v2(at: u64, value: u16, count: usize) {
        fill(&default_lane()?, at, value.into(), Width::Two, count, Mode::Synchronous)
    }
    fn cuMemsetD32_v2(at: u64, value: u32, count: usize) {
        fill(&default_lane()?, at, value, Width::Four, count, Mode::Synchronous)
    }
    fn cuMemsetD8Async(at: u64, value: u8, count: usize, stream: Word) {
        fill(&Lane::of(stream)?, at, value.into(), Width::One, count, Mode::Asynchronous)
    }
    fn cuMemsetD16Async(at: u64, value: u16, count: usize, stream: Word) {
        fill(&Lane::of(stream)?, at, value.into(), Width::Two, count, Mode::Asynchronous)
    }
    fn cuMemsetD32Async(at: u64, value: u32, count: usize, stream: Word) {
        fill(&Lane::of(stream)?, at, value, Width::Four, count, Mode::Asynchronous)
    }
}
