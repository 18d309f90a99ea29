//! A context's device memory.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gpuzone_cuda_abi::CuResult;
use gpuzone_sim_device::{AllocateError, Attachment, DeviceMap};
use gpuzone_sim_ptx::{DeviceMemory, Region};

use crate::Answer;
use crate::abi::HostBytes;
use crate::driver::report;
use crate::host_memory::{self, Reached};
use crate::physical::{Mapping, Physical};

/// What stands in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Allocation {
    /// What was asked for, in bytes; what is charged is rounded up.
    pub(crate) bytes: u64,
    pub(crate) kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The program's, which may free it.
    Program,
    /// A module's variable.
    Global,
    /// A module's variable that kernels cannot write.
    Constant,
    /// What the context itself takes; nobody may touch it.
    Context,
    /// Memory that is mapped, of no context.
    Mapped,
}

type Live = BTreeMap<u64, Allocation>;

/// The live allocations of one context, by address.
pub(crate) struct Memory {
    attachment: &'static Attachment<'static>,
    /// What is mapped, for all contexts of the GPU.
    physical: &'static Physical,
    /// Shared with the launch that runs, which goes on with what was live when it began.
    live: Mutex<Arc<Live>>,
    /// Set, under the lock of `live`, when nothing more is given out.
    closed: AtomicBool,
}

impl Memory {
    pub(crate) fn new(
        attachment: &'static Attachment<'static>,
        physical: &'static Physical,
    ) -> Self {
        Self { attachment, physical, live: Mutex::default(), closed: AtomicBool::new(false) }
    }

    fn live(&self) -> MutexGuard<'_, Arc<Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn allocate(&self, bytes: u64, kind: Kind) -> Answer<u64> {
        let range = self.attachment.allocate(bytes).map_err(result_of)?;
        let mut live = self.live();
        if self.closed.load(Ordering::Acquire) {
            // Another thread destroyed the context since this call looked at it.
            drop(live);
            let _ = self.attachment.free(range.address);
            return Err(CuResult::CONTEXT_IS_DESTROYED);
        }
        Arc::make_mut(&mut live).insert(range.address, Allocation { bytes, kind });
        Ok(range.address)
    }

    /// Frees the allocation that begins at `address`. Only the executor frees, in its turn.
    pub(crate) fn free(&self, address: u64) -> Answer {
        if Arc::make_mut(&mut self.live()).remove(&address).is_some() {
            self.attachment.free(address).map_err(|error| {
                report(&error.to_string());
                CuResult::UNKNOWN
            })?;
        }
        Ok(())
    }

    /// Frees everything; the context ends.
    pub(crate) fn free_all(&self) {
        let live = self.live();
        self.closed.store(true, Ordering::Release);
        let addresses: Vec<u64> = live.keys().copied().collect();
        drop(live);
        for address in addresses {
            let _ = self.free(address);
        }
    }

    /// The allocation that holds `address`, and where it begins.
    pub(crate) fn find(&self, address: u64) -> Option<(u64, Allocation)> {
        find(&self.live(), address).or_else(|| find_mapped(&self.physical.mapped(), address))
    }

    /// Whether a program's allocation begins at `address`.
    pub(crate) fn is_freeable(&self, address: u64) -> bool {
        self.live().get(&address).is_some_and(|allocation| allocation.kind == Kind::Program)
    }

    /// Where `bytes` at `address` lie in this process, if one live allocation holds them all.
    pub(crate) fn host(&self, address: u64, bytes: u64) -> Answer<(*mut u8, usize)> {
        let Some((base, allocation)) = find(&self.live(), address) else {
            let host = self.physical.host(address, bytes).or_else(|| pinned(address, bytes));
            let host = host.ok_or(CuResult::INVALID_VALUE)?;
            let bytes = usize::try_from(bytes).map_err(|_| CuResult::INVALID_VALUE)?;
            return Ok((host, bytes));
        };
        let inside = address - base + bytes.min(1 << 48) <= allocation.bytes;
        if !inside || allocation.kind == Kind::Context {
            return Err(CuResult::INVALID_VALUE);
        }
        let host = self.attachment.map().host(address, bytes).ok_or(CuResult::INVALID_VALUE)?;
        Ok((host, usize::try_from(bytes).map_err(|_| CuResult::INVALID_VALUE)?))
    }

    /// What a launch may touch.
    pub(crate) fn view(&self) -> View<'_> {
        let (live, mapped) = (Arc::clone(&self.live()), self.physical.mapped());
        View { map: self.attachment.map(), live, mapped, reached: Mutex::default() }
    }
}

/// Where `bytes` lie that are pinned memory of the host's, which has one address for all.
fn pinned(address: u64, bytes: u64) -> Option<*mut u8> {
    let (address, len) = (usize::try_from(address).ok()?, usize::try_from(bytes).ok()?);
    let bytes = HostBytes::new(address, len).ok()?;
    host_memory::is_pinned(bytes).then(|| bytes.as_mut_ptr())
}

fn find(live: &Live, address: u64) -> Option<(u64, Allocation)> {
    let (base, allocation) = live.range(..=address).next_back()?;
    (address - base < allocation.bytes).then_some((*base, *allocation))
}

fn find_mapped(mapped: &BTreeMap<u64, Mapping>, address: u64) -> Option<(u64, Allocation)> {
    let (base, mapping) = mapped.range(..=address).next_back()?;
    let allocation = Allocation { bytes: mapping.bytes, kind: Kind::Mapped };
    (address - *base < mapping.bytes).then_some((*base, allocation))
}

pub(crate) fn result_of(error: AllocateError) -> CuResult {
    match error {
        AllocateError::Zero => CuResult::INVALID_VALUE,
        AllocateError::OutOfMemory { .. } => CuResult::OUT_OF_MEMORY,
        AllocateError::TooMany(_) | AllocateError::HostFull { .. } => {
            report(&error.to_string());
            CuResult::OUT_OF_MEMORY
        }
        AllocateError::State(_) => {
            report(&error.to_string());
            CuResult::UNKNOWN
        }
    }
}

/// A context's memory as it was when a launch began.
pub(crate) struct View<'a> {
    map: &'a DeviceMap,
    live: Arc<Live>,
    mapped: Arc<BTreeMap<u64, Mapping>>,
    /// Pinned memory of the host, by its address, that the launch has reached.
    reached: Mutex<BTreeMap<usize, Reached>>,
}

impl View<'_> {
    fn host_region(&self, address: u64) -> Option<Region> {
        let (start, len, reached) = host_memory::reach(usize::try_from(address).ok()?)?;
        let mut all = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(start).or_insert(reached);
        let (base, host) = (start as u64, std::ptr::with_exposed_provenance_mut(start));
        Some(Region { base, len: len as u64, host, writable: true })
    }
}

// SAFETY: the map stays for as long as the process lives, and pinned memory for as long as the view
// that has reached it; what the program does to that meanwhile is from outside. Nothing else touches the bytes of this
// context during a launch: copies and fills are work of the same executor, frees come in their
// turn, and other contexts and processes have other allocations.
unsafe impl DeviceMemory for View<'_> {
    fn region(&self, address: u64) -> Option<Region> {
        let Some((base, allocation)) = find(&self.live, address) else {
            let mapping = self.mapped.range(..=address).next_back();
            let mapping = mapping.filter(|(base, mapping)| address - **base < mapping.bytes);
            let Some((base, mapping)) = mapping else { return self.host_region(address) };
            let inside = mapping.flags != 0;
            let host = std::ptr::with_exposed_provenance_mut(usize::try_from(*base).ok()?);
            let (base, len, writable) = (*base, mapping.bytes, mapping.flags == 3);
            return inside.then_some(Region { base, len, host, writable });
        };
        let writable = match allocation.kind {
            Kind::Program | Kind::Global | Kind::Mapped => true,
            Kind::Constant => false,
            Kind::Context => return None,
        };
        let host = self.map.host(base, allocation.bytes)?;
        Some(Region { base, len: allocation.bytes, host, writable })
    }
}
