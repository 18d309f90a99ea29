//! Memory and addresses apart from each other. Addresses are a part of this process's own, so that
//! mappings which lie one after the other are one piece for copies.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gpuzone_cuda_abi::CuResult;
use gpuzone_sim_device::Attachment;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::Answer;
use crate::driver::report;

/// What memory and mappings are multiples of.
pub(crate) const GRAIN: u64 = 64 << 10;

#[derive(Clone, Copy)]
pub(crate) struct Mapping {
    pub(crate) bytes: u64,
    pub(crate) memory: u64,
    pub(crate) flags: u32,
}

struct Memory {
    bytes: u64,
    maps: usize,
    released: bool,
}

#[derive(Default)]
struct State {
    reserved: BTreeMap<u64, u64>,
    /// By where it lies on the device, which is its handle.
    memory: BTreeMap<u64, Memory>,
    mapped: Arc<BTreeMap<u64, Mapping>>,
}

/// Those of one GPU.
#[derive(Default)]
pub(crate) struct Physical {
    state: Mutex<State>,
}

fn place(at: u64) -> Answer<*mut u8> {
    let at = usize::try_from(at).map_err(|_| CuResult::INVALID_VALUE)?;
    Ok(std::ptr::with_exposed_provenance_mut(at))
}

fn failed(error: &dyn std::fmt::Display) -> CuResult {
    report(&format!("virtual memory: {error}"));
    CuResult::OUT_OF_MEMORY
}

fn size(bytes: u64) -> Answer<usize> {
    usize::try_from(bytes).map_err(|_| CuResult::INVALID_VALUE)
}

impl Physical {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds addresses with nothing behind them.
    pub(crate) fn reserve(&self, bytes: u64) -> Answer<u64> {
        if bytes == 0 || !bytes.is_multiple_of(GRAIN) {
            return Err(CuResult::INVALID_VALUE);
        }
        let null = std::ptr::null_mut();
        // One grain more, so that what is used begins at a multiple of it.
        let length = size(bytes.checked_add(GRAIN).ok_or(CuResult::INVALID_VALUE)?)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping, where the kernel likes, that nobody can touch.
        let found = unsafe { mmap_anonymous(null, length, ProtFlags::empty(), flags) };
        let found = found.map_err(|error| failed(&error))?.expose_provenance() as u64;
        let at = found.next_multiple_of(GRAIN);
        self.state().reserved.insert(at, bytes);
        Ok(at)
    }

    pub(crate) fn free(&self, at: u64, bytes: u64) -> Answer {
        let mut state = self.state();
        let used = state.mapped.range(at..at.saturating_add(bytes)).next().is_some();
        if used || state.reserved.get(&at) != Some(&bytes) {
            return Err(CuResult::INVALID_VALUE);
        }
        state.reserved.remove(&at);
        // The grain beside it stays, which is nothing but addresses.
        // SAFETY: a mapping of `reserve`'s, which is in no table any more.
        let _ = unsafe { munmap(place(at)?.cast(), size(bytes)?) };
        Ok(())
    }

    pub(crate) fn create(&self, on: &Attachment<'_>, bytes: u64) -> Answer<u64> {
        if bytes == 0 || !bytes.is_multiple_of(GRAIN) {
            return Err(CuResult::INVALID_VALUE);
        }
        let range = on.allocate(bytes).map_err(crate::memory::result_of)?;
        let memory = Memory { bytes, maps: 0, released: false };
        self.state().memory.insert(range.address, memory);
        Ok(range.address)
    }

    pub(crate) fn release(&self, on: &Attachment<'_>, handle: u64) -> Answer {
        let mut state = self.state();
        let memory = state.memory.get_mut(&handle).filter(|memory| !memory.released);
        memory.ok_or(CuResult::INVALID_VALUE)?.released = true;
        Self::forget(&mut state, on, handle)
    }

    fn forget(state: &mut State, on: &Attachment<'_>, handle: u64) -> Answer {
        if state.memory.get(&handle).is_some_and(|memory| memory.released && memory.maps == 0) {
            state.memory.remove(&handle);
            on.free(handle).map_err(|error| failed(&error))?;
        }
        Ok(())
    }

    pub(crate) fn map(
        &self,
        on: &Attachment<'_>,
        at: u64,
        bytes: u64,
        offset: u64,
        handle: u64,
    ) -> Answer {
        let mut state = self.state();
        let reserved = state.reserved.range(..=at).next_back();
        let inside =
            reserved.is_some_and(|(base, size)| bytes <= *size && at - base <= size - bytes);
        let before = state.mapped.range(..at.saturating_add(bytes)).next_back();
        let taken = before.is_some_and(|(base, mapping)| base + mapping.bytes > at);
        let State { memory, mapped, .. } = &mut *state;
        let memory = memory.get_mut(&handle).filter(|memory| !memory.released);
        let memory = memory.ok_or(CuResult::INVALID_VALUE)?;
        let fits = offset.checked_add(bytes).is_some_and(|end| end <= memory.bytes);
        let whole = [at, bytes, offset].iter().all(|number| number.is_multiple_of(GRAIN));
        if !inside || taken || !fits || !whole || bytes == 0 {
            return Err(CuResult::INVALID_VALUE);
        }
        // SAFETY: addresses of `reserve`'s, with nothing behind them.
        unsafe { on.map().map_again(place(at)?, handle + offset, bytes) }
            .map_err(|error| failed(&error))?;
        memory.maps += 1;
        let mapping = Mapping { bytes, memory: handle, flags: 0 };
        Arc::make_mut(mapped).insert(at, mapping);
        Ok(())
    }

    /// Where the mappings begin that make up a range.
    fn whole(state: &State, at: u64, bytes: u64) -> Answer<Vec<u64>> {
        let end = at.checked_add(bytes).ok_or(CuResult::INVALID_VALUE)?;
        let (mut next, mut found) = (at, Vec::new());
        while next < end {
            let mapping = state.mapped.get(&next).ok_or(CuResult::INVALID_VALUE)?;
            found.push(next);
            next += mapping.bytes;
        }
        if next == end && bytes > 0 { Ok(found) } else { Err(CuResult::INVALID_VALUE) }
    }

    pub(crate) fn unmap(&self, on: &Attachment<'_>, at: u64, bytes: u64) -> Answer {
        let mut state = self.state();
        for begin in Self::whole(&state, at, bytes)? {
            let Some(mapping) = Arc::make_mut(&mut state.mapped).remove(&begin) else { continue };
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
            let (place, length) = (place(begin)?.cast(), size(mapping.bytes)?);
            // SAFETY: a mapping of `map`'s; its addresses stay reserved.
            let gone = unsafe { mmap_anonymous(place, length, ProtFlags::empty(), flags) };
            gone.map_err(|error| failed(&error))?;
            if let Some(memory) = state.memory.get_mut(&mapping.memory) {
                memory.maps -= 1;
            }
            Self::forget(&mut state, on, mapping.memory)?;
        }
        Ok(())
    }

    pub(crate) fn set_access(&self, at: u64, bytes: u64, flags: u32) -> Answer {
        let mut state = self.state();
        for begin in Self::whole(&state, at, bytes)? {
            if let Some(mapping) = Arc::make_mut(&mut state.mapped).get_mut(&begin) {
                mapping.flags = flags;
            }
        }
        Ok(())
    }

    /// What is mapped now.
    pub(crate) fn mapped(&self) -> Arc<BTreeMap<u64, Mapping>> {
        Arc::clone(&self.state().mapped)
    }

    /// Where `bytes` at `at` lie in this process, if all of them are mapped for writing.
    pub(crate) fn host(&self, at: u64, bytes: u64) -> Option<*mut u8> {
        let mapped = self.mapped();
        let end = at.checked_add(bytes)?;
        let mut next = at;
        loop {
            let (base, mapping) = mapped.range(..=next).next_back()?;
            let ends = base + mapping.bytes;
            if ends <= next || mapping.flags != 3 {
                return None;
            }
            if ends >= end {
                return place(at).ok();
            }
            next = ends;
        }
    }
}
