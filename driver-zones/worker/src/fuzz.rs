//! Anything at all in a session's ring, and a driver that watches what reaches it. The property
//! tests and the fuzz target (`driver-zones/worker/fuzz`) both enter here.
//!
//! Whatever the bytes: no panic; the driver is only ever given memory that the session has; caps
//! and limit hold after each call; and when the session ends, everything has come back.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::ffi::{c_char, c_void};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::Duration;

use gpuzone_cuda_abi::{
    CUcontext, CUdevice, CUdeviceptr, CUfunction, CUmodule, CUstream, CuResult, DeviceAttribute,
};
use gpuzone_wire::control::Caps;
use gpuzone_wire::hello::DeviceInfo;
use gpuzone_wire::ring::{Direction, MAX_CONTROL, Reader, Region, RingSizes, Spin};
use gpuzone_wire::stats::{StatsFile, StatsWriter};

use crate::driver::{Device, Driver, LaunchBounds};
use crate::host_room::HostRoom;
use crate::ledger::Ledger;
use crate::nvml::OwnUse;
use crate::session::{Lease, LinePlace, Rings, Session, SessionPeer};
use crate::turns::Turns;

/// The lease's memory.
pub const LIMIT: u64 = 64 << 10;
/// Longest input that is looked at.
pub const LONGEST: usize = 256 << 10;
const SIZES: RingSizes = RingSizes { request: 2 << 20, reply: 2 << 20 };

/// Caps that an input of some records reaches.
#[allow(clippy::needless_update, reason = "a cap that comes later need not be named here")]
pub fn caps() -> Caps {
    Caps {
        sessions: 4,
        contexts: 3,
        modules: 3,
        module_bytes: 4096,
        image_bytes: 6144,
        streams: 3,
        events: 3,
        allocations: 3,
        ..Caps::default()
    }
}

/// What the driver has given out.
#[derive(Default)]
struct Arena {
    last: usize,
    current: usize,
    contexts: HashSet<usize>,
    /// By first address: bytes, and whose: a context's, or a module's.
    memory: BTreeMap<u64, (u64, usize)>,
    modules: BTreeMap<usize, usize>,
    /// The first thing that should not have been asked.
    wrong: Option<String>,
}

thread_local! {
    // A session is its thread's, and so is what it asks.
    static ARENA: RefCell<Arena> = RefCell::default();
}

fn arena<T>(act: impl FnOnce(&mut Arena) -> T) -> T {
    ARENA.with(|arena| act(&mut arena.borrow_mut()))
}

impl Arena {
    fn new_number(&mut self) -> usize {
        self.last += 1;
        self.last
    }

    fn expect(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds && self.wrong.is_none() {
            self.wrong = Some(what());
        }
    }

    fn touch(&mut self, call: &str, address: u64, bytes: usize) {
        let held = self.memory.range(..=address).next_back();
        let end = address.checked_add(bytes as u64);
        let within = held.is_some_and(|(base, (size, _))| end.is_some_and(|e| e <= base + size));
        self.expect(within, || format!("{call} of {bytes} bytes at {address:#x}"));
    }

    fn place(&mut self, bytes: u64, owner: usize) -> u64 {
        // Far apart, so that a step too far hits nothing.
        let address = (self.new_number() as u64) << 32;
        self.memory.insert(address, (bytes, owner));
        address
    }
}

/// Defines functions of the driver that watch.
macro_rules! watching {
    ($(fn $name:ident($($argument:ident: $type:ty),*) $body:block)*) => {$(
        unsafe extern "C" fn $name($($argument: $type),*) -> CuResult {
            $body
            CuResult::SUCCESS
        }
    )*};
}

watching! {
    fn context_create(place: *mut CUcontext, _flags: u32, _device: CUdevice) {
        let made = arena(|arena| {
            let made = arena.new_number();
            arena.contexts.insert(made);
            arena.current = made;
            made
        });
        // SAFETY: the worker gives a place for the answer.
        unsafe { *place = std::ptr::without_provenance_mut(made) };
    }

    fn context_destroy(context: CUcontext) {
        arena(|arena| {
            let known = arena.contexts.remove(&context.addr());
            arena.expect(known, || "the end of a context that is none".to_owned());
            let ended: Vec<usize> = arena.modules.iter()
                .filter(|(_, of)| **of == context.addr()).map(|(module, _)| *module).collect();
            arena.memory.retain(|_, (_, owner)| *owner != context.addr() && !ended.contains(owner));
            arena.modules.retain(|_, of| *of != context.addr());
        });
    }

    fn context_set_current(context: CUcontext) {
        arena(|arena| {
            let known = context.is_null() || arena.contexts.contains(&context.addr());
            arena.expect(known, || "a current context that is none".to_owned());
            arena.current = context.addr();
        });
    }

    fn memory_allocate(place: *mut CUdeviceptr, bytes: usize) {
        let address = arena(|arena| arena.place(bytes as u64, arena.current));
        // SAFETY: as above.
        unsafe { *place = address };
    }

    fn memory_free(address: CUdeviceptr) {
        arena(|arena| {
            let known = arena.memory.remove(&address).is_some();
            arena.expect(known, || format!("memory given back that is none: {address:#x}"));
        });
    }

    fn copy_to_device(target: CUdeviceptr, source: *const c_void, bytes: usize, _on: CUstream) {
        // SAFETY: the worker says that so many bytes can be read there.
        let read = unsafe { std::slice::from_raw_parts(source.cast::<u8>(), bytes) };
        std::hint::black_box(read.iter().fold(0u8, |sum, byte| sum ^ byte));
        arena(|arena| arena.touch("a copy to", target, bytes));
    }

    fn copy_to_host(target: *mut c_void, source: CUdeviceptr, bytes: usize, _on: CUstream) {
        // SAFETY: the worker says that so many bytes can be written there.
        unsafe { std::ptr::write_bytes(target.cast::<u8>(), 0x5a, bytes) };
        arena(|arena| arena.touch("a copy from", source, bytes));
    }

    fn copy_on_device(target: CUdeviceptr, source: CUdeviceptr, bytes: usize, _on: CUstream) {
        arena(|arena| {
            arena.touch("a copy to", target, bytes);
            arena.touch("a copy from", source, bytes);
        });
    }

    fn set_8(target: CUdeviceptr, _value: u8, count: usize, _on: CUstream) {
        arena(|arena| arena.touch("a set", target, count));
    }

    fn set_16(target: CUdeviceptr, _value: u16, count: usize, _on: CUstream) {
        arena(|arena| arena.touch("a set", target, count.saturating_mul(2)));
    }

    fn set_32(target: CUdeviceptr, _value: u32, count: usize, _on: CUstream) {
        arena(|arena| arena.touch("a set", target, count.saturating_mul(4)));
    }

    fn module_load(
        place: *mut CUmodule, _image: *const c_void, _count: u32, _options: *mut u32,
        _values: *mut *mut c_void
    ) {
        let made = arena(|arena| {
            let made = arena.new_number();
            arena.modules.insert(made, arena.current);
            made
        });
        // SAFETY: as above.
        unsafe { *place = std::ptr::without_provenance_mut(made) };
    }

    fn module_unload(module: CUmodule) {
        arena(|arena| {
            let known = arena.modules.remove(&module.addr()).is_some();
            arena.expect(known, || "the end of a module that is none".to_owned());
            arena.memory.retain(|_, (_, owner)| *owner != module.addr());
        });
    }

    fn module_global(
        place: *mut CUdeviceptr, bytes: *mut usize, module: CUmodule, _name: *const c_char
    ) {
        let address = arena(|arena| {
            let known = arena.modules.contains_key(&module.addr());
            arena.expect(known, || "a variable of a module that is none".to_owned());
            arena.place(64, module.addr())
        });
        // SAFETY: as above, twice.
        unsafe { (*place, *bytes) = (address, 64) };
    }
}

unsafe extern "C" fn one_parameter(
    _: CUfunction,
    index: usize,
    offset: *mut usize,
    size: *mut usize,
) -> CuResult {
    if index > 0 {
        return CuResult::INVALID_VALUE;
    }
    // SAFETY: as above, twice.
    unsafe { (*offset, *size) = (0, 8) };
    CuResult::SUCCESS
}

fn driver() -> Driver {
    Driver {
        context_create,
        context_destroy,
        context_set_current,
        memory_allocate,
        memory_free,
        copy_to_device,
        copy_to_host,
        copy_on_device,
        set_8,
        set_16,
        set_32,
        module_load,
        module_unload,
        module_global,
        function_parameter: one_parameter,
        ..Driver::idle()
    }
}

/// A lease on a GPU that is not there, with its counters in memory.
///
/// # Errors
/// When the kernel has no memory for them.
pub fn lease() -> std::io::Result<Arc<Lease>> {
    let name = format!("/dev/shm/gz-fuzz-{}-{:?}", std::process::id(), std::thread::current().id());
    let path = std::path::PathBuf::from(name);
    let made = StatsFile::create(&path).and_then(|stats| {
        let file = stats.file().try_clone();
        file.map_err(|_| gpuzone_wire::stats::StatsError::Damaged).and_then(StatsWriter::open)
    });
    std::fs::remove_file(&path)?;
    let stats = Arc::new(made.map_err(std::io::Error::other)?);
    let attributes = vec![(DeviceAttribute::WARP_SIZE.0, 32)];
    let bounds = LaunchBounds::of(&attributes);
    let info = DeviceInfo { name: "watching".to_owned(), uuid: [1; 16], memory: LIMIT, attributes };
    Ok(Arc::new(Lease {
        driver: driver(),
        driver_version: 13_000,
        devices: vec![Device { ordinal: 0, info, copies_lazily: false, bounds }],
        turns: Turns::new(1),
        ledger: Ledger::new(vec![LIMIT], stats.clone()),
        stats,
        own_use: OwnUse::unknown(),
        images: HostRoom::new(caps().image_bytes),
        pinned: HostRoom::new(caps().pinned_bytes),
        windows: false,
        caps: caps(),
        poisoned: false.into(),
    }))
}

/// Puts an input into a request ring: eight bytes that spoil the writer's position, or are 0, and
/// then what stands in the ring. In the file, the position comes first and the ring after a page.
fn fill(rings: &File, input: &[u8]) -> std::io::Result<()> {
    let (spoilt, records) = input.split_first_chunk::<8>().unwrap_or((&[0; 8], &[]));
    let records = records.get(..records.len().min(LONGEST)).unwrap_or(&[]);
    let honest = records.len().next_multiple_of(32) as u64;
    rings.write_all_at(records, 4096)?;
    rings.write_all_at(&(honest ^ u64::from_le_bytes(*spoilt)).to_ne_bytes(), 0)
}

/// Has a session read the input from its ring until there is no more, or it ends; how many calls
/// it took for ones.
///
/// # Panics
/// When the session does what it must not.
pub fn ring(lease: &Arc<Lease>, input: &[u8]) -> usize {
    arena(|arena| *arena = Arena::default());
    let (file, region) = Region::create(SIZES).expect("memory for rings");
    let region = Arc::new(region);
    fill(&File::from(file), input).expect("written");
    let peer = SessionPeer::default();
    let spin = Spin { time: Duration::ZERO };
    let mut answers = Reader::new(region.clone(), Direction::Reply, spin);
    let mut session = Session::new(lease.clone(), Arc::default(), LinePlace::default());
    let (_tenant, socket) = UnixDatagram::pair().expect("a socket");
    socket.set_nonblocking(true).expect("a socket of ours");
    let mut line = Rings::new(region, spin, socket.as_fd());
    let mut calls = 0;
    while let Ok(true) = line.next(&mut session, Some(Duration::ZERO), &peer) {
        calls += 1;
        while let Some(answer) =
            answers.receive(Some(Duration::ZERO), &peer).expect("the worker's own records")
        {
            assert!(answer.header.opcode < u16::MAX && answers.control().len() <= MAX_CONTROL);
        }
        if let Some(wrong) = arena(|arena| arena.wrong.take()) {
            panic!("the driver was asked for {wrong}");
        }
        session.assert_within_caps();
    }
    drop(session);
    assert_eq!(lease.ledger.free_and_total(0), (LIMIT, LIMIT), "memory stays charged");
    let (wrong, left) = arena(|arena| (arena.wrong.take(), arena.contexts.len()));
    assert!(wrong.is_none() && left == 0, "{wrong:?}, {left} contexts left");
    calls
}

#[cfg(test)]
mod tests;
