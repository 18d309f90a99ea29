//! What the driver has given out.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::ffi::c_void;

use gpuzone_cuda_abi::image::FAT_BINARY_WRAPPER;

use super::LIMIT;

/// What a handle stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Context,
    Stream,
    Event,
    Module,
    Function,
    Linker,
}

struct Memory {
    bytes: u64,
    released: bool,
}

struct Mapping {
    bytes: u64,
    memory: u64,
    flags: u32,
}

/// A function that is the tenant's to run, with what it takes.
pub(super) type HostFunction = (unsafe extern "C" fn(*mut c_void), *mut c_void);

/// All of a thread's.
#[derive(Default)]
pub(super) struct Arena {
    last: usize,
    places: u64,
    pub(super) current: usize,
    /// Every so many requests one is refused; 0: none.
    pub(super) refuse_each: usize,
    requests: usize,
    /// By handle: what it is, and in what it is; a context is in nothing.
    handles: HashMap<usize, (Kind, usize)>,
    /// By first address: bytes, and whose: a context's, or a module's.
    memory: BTreeMap<u64, (u64, usize)>,
    /// Host memory that the driver knows, by address: bytes and context.
    hosts: BTreeMap<usize, (usize, usize)>,
    reserved: BTreeMap<u64, u64>,
    physical: HashMap<u64, Memory>,
    mapped: BTreeMap<u64, Mapping>,
    pub(super) waiting: Vec<HostFunction>,
    /// The first thing that should not have been asked.
    pub(super) wrong: Option<String>,
}

thread_local! {
    // A session is its thread's, and so is what it asks.
    static ARENA: RefCell<Arena> = RefCell::default();
}

pub(super) fn arena<T>(act: impl FnOnce(&mut Arena) -> T) -> T {
    ARENA.with(|arena| act(&mut arena.borrow_mut()))
}

/// Runs what waited for a tenant that is gone.
pub(super) fn run_host_functions() {
    for (function, data) in arena(|arena| std::mem::take(&mut arena.waiting)) {
        // SAFETY: each for the only time.
        unsafe { function(data) };
    }
}

impl Arena {
    /// Whether the driver has no room for this one.
    pub(super) fn refuses(&mut self) -> bool {
        self.requests += 1;
        self.refuse_each > 0 && self.requests.is_multiple_of(self.refuse_each)
    }

    pub(super) fn expect(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds && self.wrong.is_none() {
            self.wrong = Some(what());
        }
    }

    /// A driver goes wherever a wrapper points.
    pub(super) fn expect_image(&mut self, begin: [u8; 4]) {
        let leads_away = u32::from_le_bytes(begin) == FAT_BINARY_WRAPPER;
        self.expect(!leads_away, || "an image by an address of the tenant's".to_owned());
    }

    fn is_a(&self, handle: usize, kind: Kind) -> bool {
        self.handles.get(&handle).is_some_and(|(of, _)| *of == kind)
    }

    pub(super) fn make(&mut self, kind: Kind, within: usize) -> usize {
        // The first ones are CUDA's own streams.
        self.last = self.last.max(16) + 1;
        self.handles.insert(self.last, (kind, within));
        self.last
    }

    pub(super) fn expect_a(&mut self, kind: Kind, handle: usize) {
        let known = self.is_a(handle, kind);
        self.expect(known, || format!("a {kind:?} that is none: {handle}"));
    }

    /// One that is in the current context.
    pub(super) fn expect_here(&mut self, kind: Kind, handle: usize) {
        let here = self.handles.get(&handle) == Some(&(kind, self.current));
        self.expect(here, || format!("a {kind:?} that is none of the context's: {handle}"));
    }

    pub(super) fn expect_context(&mut self) {
        let known = self.is_a(self.current, Kind::Context);
        self.expect(known, || "something without a context".to_owned());
    }

    pub(super) fn expect_stream(&mut self, stream: usize) {
        self.expect_context();
        if stream > 2 {
            self.expect_here(Kind::Stream, stream);
        }
    }

    /// A handle's end, and that of all that is in it.
    pub(super) fn end(&mut self, kind: Kind, handle: usize) {
        self.expect_a(kind, handle);
        self.handles.remove(&handle);
        loop {
            let before = self.handles.len();
            let there: Vec<usize> = self.handles.keys().copied().collect();
            self.handles.retain(|_, (_, within)| *within == 0 || there.contains(within));
            if self.handles.len() == before {
                break;
            }
        }
        self.memory.retain(|_, (_, owner)| self.handles.contains_key(owner));
        let registered = self.hosts.values().all(|(_, context)| *context != handle);
        self.expect(registered, || "the end of a context that knows host memory".to_owned());
        if self.current == handle {
            self.current = 0;
        }
    }

    /// Addresses far apart, so that a step too far hits nothing.
    fn addresses(&mut self) -> u64 {
        self.places += 1;
        self.places << 32
    }

    pub(super) fn place(&mut self, bytes: u64, owner: usize) -> u64 {
        let address = self.addresses();
        self.memory.insert(address, (bytes, owner));
        address
    }

    pub(super) fn free(&mut self, address: u64) {
        let held = self.memory.remove(&address);
        let known = held.is_some_and(|(_, owner)| owner == self.current);
        self.expect(known, || format!("memory given back that is none: {address:#x}"));
    }

    /// Whether bytes are mapped for reading and writing, one mapping after the other.
    fn is_mapped(&self, address: u64, end: u64) -> bool {
        let mut at = address;
        while let Some((base, mapping)) = self.mapped.range(..=at).next_back() {
            let upto = base + mapping.bytes;
            if mapping.flags != 3 || upto <= at {
                return false;
            }
            if upto >= end {
                return true;
            }
            at = upto;
        }
        false
    }

    pub(super) fn touch(&mut self, call: &str, address: u64, bytes: u64) {
        let held = self.memory.range(..=address).next_back();
        let within = address.checked_add(bytes).is_some_and(|end| {
            held.is_some_and(|(base, (size, _))| end <= base + size)
                || self.is_mapped(address, end)
                || self.is_shared(address, end)
        });
        self.expect(within, || format!("{call} of {bytes} bytes at {address:#x}"));
    }

    pub(super) fn touch_rows(&mut self, call: &str, at: u64, pitch: u64, width: u64, rows: u64) {
        let before = rows.checked_sub(1).and_then(|rows| rows.checked_mul(pitch));
        let bytes = before.and_then(|before| before.checked_add(width));
        self.expect(rows < 2 || pitch >= width, || format!("{call} of rows that overlap"));
        self.touch(call, at, bytes.unwrap_or(u64::MAX));
    }

    pub(super) fn register(&mut self, address: usize, bytes: usize) {
        self.expect_context();
        let is_new = self.hosts.insert(address, (bytes, self.current)).is_none();
        self.expect(is_new && bytes > 0, || "host memory that it knows".to_owned());
    }

    pub(super) fn device_pointer(&mut self, address: usize) -> u64 {
        let known = self.hosts.contains_key(&address);
        self.expect(known, || "where host memory lies that it does not know".to_owned());
        address as u64
    }

    /// Whether kernels find so much of host memory there.
    fn is_shared(&self, address: u64, end: u64) -> bool {
        let at = usize::try_from(address).unwrap_or(usize::MAX);
        let host = self.hosts.range(..=at).next_back();
        host.is_some_and(|(base, (bytes, _))| end <= (*base + *bytes) as u64)
    }

    pub(super) fn unregister(&mut self, address: usize) {
        let known = self.hosts.remove(&address).is_some_and(|(_, at)| at == self.current);
        self.expect(known, || "host memory that it does not know".to_owned());
    }

    pub(super) fn reserve(&mut self, bytes: u64) -> u64 {
        let address = self.addresses();
        self.reserved.insert(address, bytes);
        address
    }

    pub(super) fn free_addresses(&mut self, address: u64, bytes: u64) {
        let known = self.reserved.remove(&address) == Some(bytes);
        let mapped = self.mapped.range(address..address.saturating_add(bytes)).next().is_some();
        self.expect(known && !mapped, || format!("addresses in use or none: {address:#x}"));
    }

    pub(super) fn make_memory(&mut self, bytes: u64) -> u64 {
        let handle = self.addresses();
        self.physical.insert(handle, Memory { bytes, released: false });
        handle
    }

    pub(super) fn release_memory(&mut self, handle: u64) {
        let known = self.physical.get_mut(&handle).filter(|memory| !memory.released);
        let known = known.map(|memory| memory.released = true).is_some();
        self.expect(known, || "the release of memory that is none".to_owned());
        self.forget();
    }

    /// Memory goes when it is released and nothing of it is mapped.
    fn forget(&mut self) {
        let mapped = &self.mapped;
        let is_mapped = |handle: u64| mapped.values().any(|mapping| mapping.memory == handle);
        self.physical.retain(|handle, memory| !memory.released || is_mapped(*handle));
    }

    pub(super) fn map(&mut self, address: u64, bytes: u64, offset: u64, memory: u64) {
        let end = address.saturating_add(bytes);
        let reserved = self.reserved.range(..=address).next_back();
        let within = reserved.is_some_and(|(base, size)| end <= base.saturating_add(*size));
        let last = self.mapped.range(..end).next_back();
        let is_free = last.is_none_or(|(base, mapping)| base + mapping.bytes <= address);
        let held = self.physical.get(&memory).filter(|memory| !memory.released);
        let fits = held.is_some_and(|m| offset.checked_add(bytes).is_some_and(|e| e <= m.bytes));
        let holds = within && is_free && fits && bytes > 0;
        self.expect(holds, || format!("a mapping of {bytes} bytes at {address:#x}"));
        if holds {
            self.mapped.insert(address, Mapping { bytes, memory, flags: 0 });
        }
    }

    /// The first addresses of the mappings that make up all of a range.
    fn whole(&mut self, address: u64, bytes: u64) -> Vec<u64> {
        let end = address.saturating_add(bytes);
        let (mut at, mut found) = (address, Vec::new());
        while let Some(mapping) = self.mapped.get(&at).filter(|_| at < end) {
            found.push(at);
            at += mapping.bytes;
        }
        self.expect(at == end && bytes > 0, || format!("no mappings from {address:#x}: {bytes}"));
        found
    }

    pub(super) fn unmap(&mut self, address: u64, bytes: u64) {
        for at in self.whole(address, bytes) {
            self.mapped.remove(&at);
        }
        self.forget();
    }

    pub(super) fn allow(&mut self, address: u64, bytes: u64, flags: u32) {
        for at in self.whole(address, bytes) {
            if let Some(mapping) = self.mapped.get_mut(&at) {
                mapping.flags = flags;
            }
        }
    }

    /// Bytes of device memory that are given out, but for modules' own.
    pub(super) fn given(&self) -> u64 {
        let is_asked = |owner: usize| self.is_a(owner, Kind::Context);
        let memory = self.memory.values().filter(|(_, owner)| is_asked(*owner));
        let memory: u64 = memory.map(|(bytes, _)| bytes).sum();
        memory + self.physical.values().map(|memory| memory.bytes).sum::<u64>()
    }

    /// What has not come back.
    pub(super) fn left(&self) -> Option<String> {
        let handles = self.handles.len() + self.hosts.len() + self.waiting.len();
        let memory = self.memory.len() + self.physical.len();
        let addresses = self.reserved.len() + self.mapped.len();
        let left = handles + memory + addresses > 0;
        left.then(|| {
            format!("{handles} handles, {memory} of memory, {addresses} of addresses left")
        })
    }

    /// Never more than the lease has is asked for.
    pub(super) fn expect_room(&mut self, bytes: u64) {
        let given = self.given();
        let fits = given.checked_add(bytes).is_some_and(|all| bytes > 0 && all <= LIMIT);
        self.expect(fits, || format!("{bytes} bytes more than the {given} that it has given"));
    }
}
