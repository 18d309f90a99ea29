//! Sessions under a tenant that sends anything at all, with a driver that does nothing.

use std::cell::Cell;
use std::collections::VecDeque;
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gpuzone_cuda_abi::{
    CUcontext, CUdeviceptr, CUevent, CUfunction, CUstream, CuResult, DeviceAttribute,
};
use gpuzone_wire::control::Caps;
use gpuzone_wire::hello::DeviceInfo;
use gpuzone_wire::ring::{Bulk, MAX_BULK, RecordBytes, RingBytes};
use gpuzone_wire::spec::{
    Call, ContextCreate, ContextId, CopyToHost, DevicePtr, MemoryFreeAsync, Opcode, Pieces,
    PoolAllocate, PoolCreate, PoolId, StreamId, dispatch,
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

#[derive(Default)]
struct Nowhere(VecDeque<Vec<u8>>);

impl Pieces for Nowhere {
    fn begin(&mut self, length: usize) -> Result<Option<*mut u8>, CuResult> {
        assert!(length <= MAX_BULK);
        self.0.push_back(vec![0u8; length]);
        Ok(self.0.back_mut().map(|piece| piece.as_mut_ptr()))
    }

    fn finish(&mut self) {
        assert!(self.0.pop_front().is_some(), "something was begun");
    }

    fn abandon(&mut self) {
        self.0.clear();
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

thread_local! {
    /// Copies to the host that this thread's driver was told of and that are not waited for, and how
    /// many more ends of such it marks.
    static UNDER_WAY: Cell<usize> = const { Cell::new(0) };
    static MARKS_LEFT: Cell<usize> = const { Cell::new(0) };
}

unsafe extern "C" fn copy_later(_: *mut c_void, _: CUdeviceptr, _: usize, _: CUstream) -> CuResult {
    UNDER_WAY.set(UNDER_WAY.get() + 1);
    CuResult::SUCCESS
}

unsafe extern "C" fn mark_some(_: CUevent, _: CUstream) -> CuResult {
    match MARKS_LEFT.get() {
        0 => CuResult::OUT_OF_MEMORY,
        left => {
            MARKS_LEFT.set(left - 1);
            CuResult::SUCCESS
        }
    }
}

unsafe extern "C" fn wait_for_one(_: CUevent) -> CuResult {
    UNDER_WAY.set(UNDER_WAY.get() - 1);
    CuResult::SUCCESS
}

unsafe extern "C" fn wait_for_all(_: CUstream) -> CuResult {
    UNDER_WAY.set(0);
    CuResult::SUCCESS
}

/// Where pieces go that are looked at, and of which so many have room at once.
struct Watched {
    room: usize,
    begun: VecDeque<Vec<u8>>,
    most: usize,
    sent: usize,
    abandoned: usize,
}

impl Pieces for Watched {
    fn begin(&mut self, length: usize) -> Result<Option<*mut u8>, CuResult> {
        if self.begun.len() == self.room {
            return Ok(None);
        }
        self.begun.push_back(vec![0; length]);
        self.most = self.most.max(self.begun.len());
        Ok(self.begun.back_mut().map(|piece| piece.as_mut_ptr()))
    }

    fn finish(&mut self) {
        assert!(UNDER_WAY.get() < self.begun.len(), "its bytes are not there yet");
        self.sent += self.begun.pop_front().expect("something was begun").len();
    }

    fn abandon(&mut self) {
        assert_eq!(UNDER_WAY.get(), 0, "the driver still writes to them");
        self.abandoned += self.begun.len();
        self.begun.clear();
    }
}

/// Copies so many pieces and a half to the host; what came of it.
fn copy_pieces(pieces: u64, room: usize, marks: usize) -> (Result<(), CuResult>, Watched) {
    let (_dir, lease) = lease_with(Driver {
        copy_to_host: copy_later,
        event_record: mark_some,
        event_synchronize: wait_for_one,
        stream_synchronize: wait_for_all,
        ..idle()
    });
    let lease = Arc::new(Lease {
        ledger: Ledger::new(vec![1 << 30], lease.stats.clone()),
        ..Arc::into_inner(lease).expect("nobody else has it")
    });
    let mut session = Session::new(lease.clone(), clock(&lease), Arc::default());
    let (context, stream) = (ContextId(1), StreamId::DEFAULT);
    session.create_context(&ContextCreate { context, device: 0, flags: 0 }).expect("made");
    let bytes = (pieces * 2 + 1) * MAX_BULK as u64 / 2;
    let source = DevicePtr(session.allocate(context, bytes).expect("there is room"));
    UNDER_WAY.set(0);
    MARKS_LEFT.set(marks);
    let mut watched = Watched { room, begun: VecDeque::new(), most: 0, sent: 0, abandoned: 0 };
    let mut call = Call { context, bulk: Bulk::NONE, pieces: &mut watched };
    let copied = session.copy_out(&mut call, &CopyToHost { source, bytes, stream });
    (copied, watched)
}

#[test]
fn pieces_of_a_copy_overlap_and_each_is_sent_when_it_is_there() {
    for (pieces, room, most) in [(0, 9, 1), (9, 9, 4), (9, 2, 2), (3, 1, 1)] {
        let (copied, watched) = copy_pieces(pieces, room, usize::MAX);
        let whole = usize::try_from(pieces * 2 + 1).expect("few") * MAX_BULK / 2;
        assert_eq!((copied, watched.sent, watched.most), (Ok(()), whole, most));
        assert_eq!((UNDER_WAY.get(), watched.begun.len(), watched.abandoned), (0, 0, 0));
    }
}

#[test]
fn a_copy_that_fails_halfway_is_waited_for_before_its_pieces_are_given_up() {
    for marks in 0..9 {
        let (copied, watched) = copy_pieces(9, 9, marks);
        assert_eq!(copied, Err(CuResult::OUT_OF_MEMORY));
        // The one whose end could not be marked was begun, too.
        assert!(watched.begun.is_empty() && watched.abandoned > 0, "{marks}");
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
            let mut call = Call { context, bulk, pieces: &mut Nowhere::default() };
            let _ = dispatch(&mut session, opcode, &control, &mut call, &mut Vec::new());
            session.assert_within_caps();
        }
        drop(session);
        prop_assert_eq!(lease.ledger.free_and_total(0), (LIMIT, LIMIT));
    }
}
