//! Anything at all in a session's ring, and a driver that watches what reaches it. The property
//! tests and the fuzz target (`driver-zones/worker/fuzz`) both enter here.
//!
//! Whatever the bytes: no panic; the driver is only ever given memory that the session has; caps
//! and limit hold after each call, and the driver has given out no more than is charged; and when
//! the session ends, everything has come back.

mod arena;
mod watching;

#[cfg(test)]
mod calls;
#[cfg(test)]
mod messages;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::Duration;

use gpuzone_cuda_abi::{CuResult, DeviceAttribute};
use gpuzone_wire::codec::{Field, Source};
use gpuzone_wire::control::Caps;
use gpuzone_wire::hello::DeviceInfo;
use gpuzone_wire::ring::{Direction, MAX_CONTROL, Reader, Region, RingSizes, Spin, flag, places};
use gpuzone_wire::stats::{StatsFile, StatsWriter};

use crate::busy::{BusyClock, Worked};
use crate::driver::{Device, LaunchBounds};
use crate::host_room::HostRoom;
use crate::ledger::Ledger;
use crate::nvml::OwnUse;
use crate::prints::Prints;
use crate::session::{Lease, LinePlace, Rings, Session, SessionPeer};
use crate::turns::Turns;
use arena::{Arena, arena};

/// The lease's memory.
pub const LIMIT: u64 = 64 << 10;
/// Longest input that is looked at.
pub const LONGEST: usize = 256 << 10;
const SIZES: RingSizes = RingSizes { request: 2 << 20, reply: 2 << 20 };

/// Caps that an input of some records reaches.
#[allow(clippy::needless_update, reason = "a cap that comes later need not be named here")]
pub fn caps() -> Caps {
    Caps {
        record_bytes: (64 << 10).try_into().unwrap_or_default(),
        sessions: 4,
        contexts: 3,
        modules: 3,
        functions: 3,
        module_bytes: 4096,
        image_bytes: 6144,
        streams: 3,
        events: 3,
        allocations: 3,
        pools: 3,
        pinned_bytes: 3 * 4096,
        pinned_pieces: 2,
        ..Caps::default()
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
        driver: watching::driver(),
        driver_version: 13_000,
        devices: vec![Device { ordinal: 0, info, copies_lazily: false, bounds }],
        turns: Turns::new(1),
        ledger: Ledger::new(vec![LIMIT], stats.clone()),
        worked: Arc::new(Worked::new(stats.clone(), 1)),
        stats,
        own_use: OwnUse::unknown(),
        images: HostRoom::new(caps().image_bytes),
        pinned: HostRoom::new(caps().pinned_bytes),
        prints: Prints::none(caps().print_bytes),
        windows: false,
        caps: caps(),
        poisoned: false.into(),
    }))
}

/// Puts an input into a request ring: eight bytes that say how much of the answers was read, and then
/// what stands in the ring, of which each record is published, the first one that is none, too.
fn fill(rings: &File, input: &[u8]) -> std::io::Result<()> {
    let (answers, records) = input.split_first_chunk::<8>().unwrap_or((&[0; 8], &[]));
    let records = records.get(..records.len().min(LONGEST)).unwrap_or(&[]);
    rings.write_all_at(records, places::CONTROL as u64)?;
    rings.write_all_at(answers, places::REPLY.head as u64)?;
    let mut key = [0; 8];
    rings.read_exact_at(&mut key, places::KEY as u64)?;
    let (key, mut at, mut number) = (u64::from_ne_bytes(key), 0, 0);
    // A record's length is behind its stamp.
    while let Some(length) = records.get(at + 8..).and_then(<[u8]>::first_chunk::<4>) {
        let stamp = key.wrapping_add(number).to_ne_bytes();
        number += 1;
        rings.write_all_at(&stamp, (places::CONTROL + at) as u64)?;
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(0);
        // Behind one that the next is written over, nothing is looked for.
        let is_reused = records
            .get(at + places::FLAGS)
            .is_some_and(|flags| u16::from(*flags) & flag::REUSED != 0);
        if is_reused || length == 0 || length % places::ALIGN > 0 {
            break;
        }
        at = at.saturating_add(length);
    }
    Ok(())
}

/// What became of an input's records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Records that were taken for calls.
    pub calls: usize,
    /// The errors that were answered, with the numbers of their calls.
    pub errors: Vec<(u16, CuResult)>,
}

/// Has a session read the input from its ring until there is no more, or it ends. The driver
/// refuses one request of `refuse_each`, if that is not 0.
///
/// # Panics
/// When the session does what it must not.
pub fn ring(lease: &Arc<Lease>, input: &[u8], refuse_each: usize) -> Outcome {
    arena(|arena| {
        *arena = Arena::default();
        arena.refuse_each = refuse_each;
    });
    let (file, region) = Region::create(SIZES).expect("memory for rings");
    let region = Arc::new(region);
    fill(&File::from(file), input).expect("written");
    let peer = SessionPeer::default();
    let spin = Spin { time: Duration::ZERO };
    let mut answers = Reader::new(region.clone(), Direction::Reply, spin);
    let clock = Arc::new(BusyClock::new(lease.worked.clone()));
    let mut session = Session::new(lease.clone(), clock, LinePlace::default());
    let (_tenant, socket) = UnixDatagram::pair().expect("a socket");
    socket.set_nonblocking(true).expect("a socket of ours");
    let mut line = Rings::new(region, spin, Some(socket.as_fd()));
    let mut outcome = Outcome::default();
    while let Ok(true) = line.next(&mut session, Some(Duration::ZERO), &peer) {
        outcome.calls += 1;
        while let Some(answer) =
            answers.receive(Some(Duration::ZERO), &peer).expect("the worker's own records")
        {
            let (opcode, control) = (answer.header.opcode, answers.control());
            assert!(opcode < u16::MAX && control.len() <= MAX_CONTROL);
            if answer.header.flags & flag::PIECE == 0 {
                let status = u32::get(&mut Source::new(control)).expect("an answer's status");
                let error = CuResult(status).ok().err();
                outcome.errors.extend(error.map(|error| (opcode, error)));
            }
        }
        if let Some(wrong) = arena(|arena| arena.wrong.take()) {
            panic!("the driver was asked for {wrong}");
        }
        session.assert_within_caps();
        let (free, total) = lease.ledger.free_and_total(0);
        let given = arena(|arena| arena.given());
        assert!(given <= total - free, "{given} bytes given out, {} charged", total - free);
    }
    drop(session);
    assert_eq!(lease.ledger.free_and_total(0), (LIMIT, LIMIT), "memory stays charged");
    assert_eq!((lease.images.held(), lease.pinned.held()), (0, 0), "the host's memory stays held");
    arena::run_host_functions();
    let (wrong, left) = arena(|arena| (arena.wrong.take(), arena.left()));
    assert!(wrong.is_none() && left.is_none(), "{wrong:?}, {left:?}");
    outcome
}
