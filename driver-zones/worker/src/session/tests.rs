//! Sessions under a tenant that sends anything at all, with a driver that does nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gpuzone_cuda_abi::{CUcontext, CUdeviceptr, CUfunction, CuResult, DeviceAttribute};
use gpuzone_wire::control::Caps;
use gpuzone_wire::hello::DeviceInfo;
use gpuzone_wire::ring::{Bulk, MAX_BULK, RecordBytes, RingBytes};
use gpuzone_wire::spec::{
    Call, ContextCreate, ContextId, DevicePtr, MemoryFreeAsync, Opcode, Pieces, PoolAllocate,
    PoolCreate, PoolId, StreamId, dispatch,
};
use gpuzone_wire::stats::{StatsFile, StatsWriter};
use proptest::prelude::*;

use super::{Lease, Session};
use crate::busy::{BusyClock, Worked};
use crate::driver::{Device, Driver, LaunchBounds};
use crate::host_room::HostRoom;
use crate::ledger::Ledger;
use crate::nvml::OwnUse;

const LIMIT: u64 = 1 << 20;
const CAPS: Caps = Caps {
    ring_bytes: RingBytes::USUAL,
    record_bytes: RecordBytes::MOST,
    sessions: 4,
    contexts: 3,
    modules: 3,
    functions: 3,
    module_bytes: 64,
    image_bytes: 96,
    unpacked_bytes: 1 << 20,
    streams: 3,
    events: 3,
    allocations: 3,
    pools: 3,
    pinned_bytes: 8192,
    pinned_pieces: 3,
    print_bytes: 4096,
};

unsafe extern "C" fn allocate(place: *mut CUdeviceptr, bytes: usize) -> CuResult {
    static NEXT: AtomicU64 = AtomicU64::new(1 << 40);
    // SAFETY: the worker gives a place for the answer.
    unsafe { *place = NEXT.fetch_add(bytes as u64, Ordering::Relaxed) };
    CuResult::SUCCESS
}

unsafe extern "C" fn no_parameters(
    _: CUfunction,
    _: usize,
    _: *mut usize,
    _: *mut usize,
) -> CuResult {
    CuResult::INVALID_VALUE
}

fn idle() -> Driver {
    Driver { memory_allocate: allocate, function_parameter: no_parameters, ..Driver::idle() }
}

fn lease() -> (tempfile::TempDir, Arc<Lease>) {
    lease_with(idle())
}

fn lease_with(driver: Driver) -> (tempfile::TempDir, Arc<Lease>) {
    let dir = tempfile::tempdir().expect("a directory");
    let file = StatsFile::create(&dir.path().join("stats")).expect("created");
    let clone = file.file().try_clone().expect("cloned");
    let stats = Arc::new(StatsWriter::open(clone).expect("open"));
    let attributes = vec![(DeviceAttribute::WARP_SIZE.0, 32)];
    let name = "idle".to_owned();
    let bounds = LaunchBounds::of(&attributes);
    let info = DeviceInfo { name, uuid: [1; 16], memory: LIMIT, attributes };
    let lease = Lease {
        driver,
        driver_version: 13_000,
        devices: vec![Device { ordinal: 0, info, copies_lazily: false, bounds }],
        turns: crate::turns::Turns::new(1),
        ledger: Ledger::new(vec![LIMIT], stats.clone()),
        worked: Arc::new(Worked::new(stats.clone(), 1)),
        stats,
        own_use: OwnUse::unknown(),
        images: HostRoom::new(CAPS.image_bytes),
        pinned: HostRoom::new(CAPS.pinned_bytes),
        prints: crate::prints::Prints::none(CAPS.print_bytes),
        caps: CAPS,
        poisoned: false.into(),
        windows: false,
    };
    (dir, Arc::new(lease))
}

fn clock(lease: &Lease) -> Arc<BusyClock> {
    Arc::new(BusyClock::new(lease.worked.clone()))
}

struct Nowhere;

impl Pieces for Nowhere {
    fn send(
        &mut self,
        length: usize,
        fill: &mut dyn FnMut(*mut u8) -> Result<(), CuResult>,
    ) -> Result<(), CuResult> {
        assert!(length <= MAX_BULK);
        fill(vec![0u8; length].as_mut_ptr())
    }
}

/// Bytes that now and then are a call: small numbers, and sometimes wild ones.
fn control() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        8 => 0u32..4,
        2 => 16u32..20,
        1 => Just(1u32 << 19),
        1 => any::<u32>(),
    ];
    let words = proptest::collection::vec(word, 0..8);
    (words, 0usize..4).prop_map(|(words, cut)| {
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        // Whole words most of the time.
        bytes.truncate(bytes.len() - if cut == 3 { bytes.len().min(1) } else { 0 });
        bytes
    })
}

unsafe extern "C" fn keeps_memory(_: CUdeviceptr) -> CuResult {
    CuResult::UNKNOWN
}

unsafe extern "C" fn keeps_context(_: CUcontext) -> CuResult {
    CuResult::UNKNOWN
}

/// Takes 512 bytes of a pool, gives them back, and ends the pool.
fn end_a_pool(session: &mut Session) -> Result<(), CuResult> {
    let (context, stream, pool) = (ContextId(1), StreamId::DEFAULT, PoolId(PoolId::FIRST));
    session.create_context(&ContextCreate { context, device: 0, flags: 0 })?;
    session.create_pool(&PoolCreate { pool, device: 0, most: 0 })?;
    let pointer = session.allocate_of_pool(context, &PoolAllocate { pool, bytes: 500, stream })?;
    session.free_behind(context, &MemoryFreeAsync { pointer: DevicePtr(pointer), stream })?;
    session.end_pool(pool)
}

#[test]
fn what_the_driver_does_not_take_back_stays_charged() {
    for (driver, before) in [
        (Driver { memory_free: keeps_memory, ..idle() }, 512),
        (Driver { context_destroy: keeps_context, ..idle() }, 0),
    ] {
        let (_dir, lease) = lease_with(driver);
        let mut session = Session::new(lease.clone(), clock(&lease), Arc::default());
        end_a_pool(&mut session).expect("done");
        assert_eq!(lease.ledger.free_and_total(0).0, LIMIT - before);
        session.allocate(ContextId(1), 1000).expect("there is room");
        drop(session);
        let kept = if before > 0 { before } else { 1000 };
        assert_eq!(lease.ledger.free_and_total(0).0, LIMIT - kept);
        assert!(lease.poisoned.load(Ordering::Relaxed), "a fresh worker comes");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn nothing_that_is_sent_breaks_a_session(
        calls in proptest::collection::vec((any::<u16>(), 0u32..4, control(), any::<bool>()), 1..120),
    ) {
        let (_dir, lease) = lease();
        let mut session = Session::new(lease.clone(), clock(&lease), Arc::default());
        // A context to begin with: without one most calls end early.
        let first = vec![1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let first = (Opcode::ContextCreate as u16, 0, first, false);
        for (opcode, context, control, with_bulk) in std::iter::once(first).chain(calls) {
            let count = u16::try_from(Opcode::ALL.len()).expect("few");
            let opcode = Opcode::of(opcode % count).expect("known");
            let bulk = if with_bulk { Bulk::of(&[0; 24]) } else { Bulk::NONE };
            let context = ContextId(context);
            let mut call = Call { context, bulk, pieces: &mut Nowhere };
            let _ = dispatch(&mut session, opcode, &control, &mut call, &mut Vec::new());
            session.assert_within_caps();
        }
        drop(session);
        prop_assert_eq!(lease.ledger.free_and_total(0), (LIMIT, LIMIT));
    }
}
