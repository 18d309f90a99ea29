//! Host memory that the driver gave out or was told of: copies from and to it are asynchronous, and
//! kernels reach it at the address that it has in this process.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use gpuzone_cuda_abi::CuResult;

use crate::Answer;
use crate::abi::{HostBytes, Word};

const PAGE: usize = 4096;

/// Launches that have reached a piece of memory, and are not over.
#[derive(Default)]
struct Launches {
    count: Mutex<usize>,
    none: Condvar,
}

impl Launches {
    fn count(&self) -> MutexGuard<'_, usize> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A launch that has reached it: the memory stays for as long as this does.
pub(crate) struct Reached(Arc<Launches>);

impl Drop for Reached {
    fn drop(&mut self) {
        *self.0.count() -= 1;
        self.0.none.notify_all();
    }
}

/// A piece of pinned memory.
#[derive(Clone)]
pub(crate) struct Pinned {
    pub(crate) address: Word,
    pub(crate) len: usize,
    pub(crate) flags: u32,
    /// The context it was made in.
    pub(crate) context: Word,
    origin: Origin,
    launches: Arc<Launches>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    Allocated,
    Registered,
}

static PINNED: Mutex<BTreeMap<Word, Pinned>> = Mutex::new(BTreeMap::new());

fn table() -> MutexGuard<'static, BTreeMap<Word, Pinned>> {
    PINNED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn layout(len: usize) -> Answer<Layout> {
    Layout::from_size_align(len, PAGE).map_err(|_| CuResult::OUT_OF_MEMORY)
}

/// Allocates `len` bytes.
pub(crate) fn allocate(len: usize, flags: u32, context: Word) -> Answer<Word> {
    if len == 0 {
        return Err(CuResult::INVALID_VALUE);
    }
    // SAFETY: the layout has a size above zero.
    let address = unsafe { alloc_zeroed(layout(len)?) }.expose_provenance();
    if address == 0 {
        return Err(CuResult::OUT_OF_MEMORY);
    }
    let origin = Origin::Allocated;
    let launches = Arc::default();
    table().insert(address, Pinned { address, len, flags, context, origin, launches });
    Ok(address)
}

/// Frees what [`allocate`] gave.
pub(crate) fn free(address: Word) -> Answer {
    let pinned = take(address, Origin::Allocated, CuResult::INVALID_VALUE)?;
    let memory = std::ptr::with_exposed_provenance_mut(pinned.address);
    // SAFETY: `allocate` gave this address with this layout, and it has just been taken out of
    // the table, so nobody frees it again.
    unsafe { dealloc(memory, layout(pinned.len)?) };
    Ok(())
}

/// Remembers memory of the program's as pinned.
pub(crate) fn register(bytes: HostBytes, flags: u32, context: Word) -> Answer {
    let HostBytes { address, len } = bytes;
    if len == 0 {
        return Err(CuResult::INVALID_VALUE);
    }
    let mut table = table();
    let before = table.range(..address + len).next_back();
    if before.is_some_and(|(start, pinned)| start + pinned.len > address) {
        return Err(CuResult::HOST_MEMORY_ALREADY_REGISTERED);
    }
    let origin = Origin::Registered;
    let launches = Arc::default();
    table.insert(address, Pinned { address, len, flags, context, origin, launches });
    Ok(())
}

/// Forgets it.
pub(crate) fn unregister(address: Word) -> Answer {
    take(address, Origin::Registered, CuResult::HOST_MEMORY_NOT_REGISTERED).map(drop)
}

fn take(address: Word, origin: Origin, otherwise: CuResult) -> Answer<Pinned> {
    let mut table = table();
    table.get(&address).filter(|pinned| pinned.origin == origin).ok_or(otherwise)?;
    let pinned = table.remove(&address).ok_or(otherwise)?;
    drop(table);
    // No launch finds it any more; those that have found it come to their ends first.
    let over = pinned.launches.none.wait_while(pinned.launches.count(), |count| *count > 0);
    drop(over.unwrap_or_else(PoisonError::into_inner));
    Ok(pinned)
}

/// Has a launch reach the memory that holds `address`: where it begins, its length, and what
/// keeps it.
pub(crate) fn reach(address: Word) -> Option<(Word, usize, Reached)> {
    let table = table();
    let (start, pinned) = table.range(..=address).next_back()?;
    if address - start >= pinned.len {
        return None;
    }
    *pinned.launches.count() += 1;
    Some((*start, pinned.len, Reached(Arc::clone(&pinned.launches))))
}

/// The pinned memory that holds `address`.
pub(crate) fn find(address: Word) -> Option<Pinned> {
    let table = table();
    let (start, pinned) = table.range(..=address).next_back()?;
    (address - start < pinned.len).then(|| pinned.clone())
}

/// Whether all of `bytes` is pinned.
pub(crate) fn is_pinned(bytes: HostBytes) -> bool {
    find(bytes.address).is_some_and(|p| bytes.len <= p.len - (bytes.address - p.address))
}
