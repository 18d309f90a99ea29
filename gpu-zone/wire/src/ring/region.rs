use std::ffi::c_void;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use super::ends::{Position, Shared};
use super::park::{Bells, Place, wake_to_look};
use super::sizes::RingSizes;

pub(super) const CONTROL_BYTES: usize = 4096;
const SEALS: SealFlags = SealFlags::from_bits_retain(
    SealFlags::SHRINK.bits() | SealFlags::GROW.bits() | SealFlags::SEAL.bits(),
);

/// Why a region cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// The kernel refused.
    #[error("cannot {action} the shared memory of the rings: {source}")]
    Kernel {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// The other side handed over something else.
    #[error("the shared memory that was handed over is not sealed or has the wrong size")]
    Unfit,
}

fn kernel(action: &'static str) -> impl Fn(rustix::io::Errno) -> RegionError {
    move |error| RegionError::Kernel { action, source: error.into() }
}

/// Keeps what two sides write apart, so that their caches do not fight over it.
#[repr(C, align(128))]
pub(super) struct Line<T>(pub(super) T);

#[repr(C)]
pub(super) struct Channel {
    /// Bytes ever read; the reader's.
    pub(super) head: Line<AtomicU64>,
    /// How far is to be read before a writer that sleeps is woken; the writer's.
    pub(super) wanted: Line<AtomicU64>,
    /// 1 while the reader sleeps.
    pub(super) reader_parked: Line<AtomicU32>,
    /// 1 while the writer sleeps.
    pub(super) writer_parked: Line<AtomicU32>,
}

/// One of the two rings: its positions, and where its ends sleep.
pub(super) struct Ring<'a> {
    region: &'a Region,
    direction: Direction,
    channel: &'a Channel,
    reader: Place<'a>,
    writer: Place<'a>,
}

impl Position for AtomicU64 {
    #[inline]
    fn load(&self, order: Ordering) -> u64 {
        Self::load(self, order)
    }

    #[inline]
    fn store(&self, value: u64, order: Ordering) {
        Self::store(self, value, order);
    }
}

impl<'a> Shared for Ring<'a> {
    type Position = AtomicU64;
    type Parking = Place<'a>;

    #[inline]
    fn stamp(&self, position: u64) -> &AtomicU64 {
        let place = self.region.at(self.direction, position).cast::<AtomicU64>();
        // SAFETY: within the ring, which lives as long as the region; records' positions are
        // multiples of more than the word's alignment, and any bits are valid.
        unsafe { &*place }
    }

    #[inline]
    fn published(&self, number: u64) -> u64 {
        self.region.key.wrapping_add(number)
    }

    #[inline]
    fn head(&self) -> &AtomicU64 {
        &self.channel.head.0
    }

    #[inline]
    fn wanted(&self) -> &AtomicU64 {
        &self.channel.wanted.0
    }

    #[inline]
    fn reader(&self) -> &Place<'a> {
        &self.reader
    }

    #[inline]
    fn writer(&self) -> &Place<'a> {
        &self.writer
    }
}

#[repr(C)]
pub(super) struct Control {
    pub(super) request: Channel,
    pub(super) reply: Channel,
    pub(super) deferred: Line<AtomicU32>,
    /// How often the worker's side was woken; where it sleeps.
    pub(super) worker_wakes: Line<AtomicU32>,
    /// The same of the tenant's side.
    pub(super) tenant_wakes: Line<AtomicU32>,
    /// What the worker drew for the stamps of these rings; read once by each side.
    pub(super) key: Line<AtomicU64>,
}
const _: () = assert!(size_of::<Control>() <= CONTROL_BYTES);

/// Which end of the rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The tenant's process.
    Tenant,
    /// Its worker.
    Worker,
}

/// Which ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the tenant to the worker.
    Request,
    /// From the worker to the tenant.
    Reply,
}

impl Direction {
    /// Who reads it.
    pub(super) const fn reader(self) -> Side {
        match self {
            Self::Request => Side::Worker,
            Self::Reply => Side::Tenant,
        }
    }

    /// Who writes it.
    pub(super) const fn writer(self) -> Side {
        match self {
            Self::Request => Side::Tenant,
            Self::Reply => Side::Worker,
        }
    }
}

/// The mapped memory of both rings.
#[derive(Debug)]
pub struct Region {
    base: NonNull<u8>,
    length: usize,
    sizes: RingSizes,
    key: u64,
    /// Where the other side sleeps in another kernel.
    bells: Option<Bells>,
}

// SAFETY: the mapping lives as long as the region; positions are atomics, and the bytes of a
// ring are touched only through its one reader and its one writer.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// A new region and the sealed file that the other side maps.
    ///
    /// # Errors
    /// When the kernel refuses, or the sizes are not powers of two that hold a record.
    pub fn create(sizes: RingSizes) -> Result<(OwnedFd, Self), RegionError> {
        if !sizes.are_possible() {
            return Err(RegionError::Unfit);
        }
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create(c"gpu-zone-rings", flags).map_err(kernel("make"))?;
        // A power of two, as a PCI region's: so it can be shown to another machine as it is. What the
        // rings do not take is never touched, so it takes no memory.
        let bytes = file_bytes(sizes).next_power_of_two();
        rustix::fs::ftruncate(&file, bytes).map_err(kernel("size"))?;
        rustix::fs::fcntl_add_seals(&file, SEALS).map_err(kernel("seal"))?;
        let mut region = Self::map(&file, sizes)?;
        region.draw_key();
        Ok((file, region))
    }

    /// The region in a file that the other side handed over.
    ///
    /// # Errors
    /// When the file is not sealed against shrinking (reading it could then kill this process),
    /// is too small, or cannot be mapped.
    pub fn open(file: impl AsFd, sizes: RingSizes) -> Result<Self, RegionError> {
        let file = file.as_fd();
        let seals = rustix::fs::fcntl_get_seals(file).map_err(|_| RegionError::Unfit)?;
        let size = rustix::fs::fstat(file).map_err(kernel("look at"))?.st_size;
        let sized = u64::try_from(size).is_ok_and(|size| size >= file_bytes(sizes));
        if !sizes.are_possible() || !seals.contains(SEALS) || !sized {
            return Err(RegionError::Unfit);
        }
        Self::map(file, sizes)
    }

    /// An end of rings in a window: memory that this machine shares with another, where the other
    /// end is. Only for a file that the machine's own first process handed over: unlike
    /// [`Region::open`], nothing is known of it but its size. The worker's side comes first.
    ///
    /// # Errors
    /// When it is too small, or cannot be mapped.
    pub fn window(
        file: impl AsFd,
        sizes: RingSizes,
        bells: Bells,
        side: Side,
    ) -> Result<Self, RegionError> {
        let file = file.as_fd();
        let size = rustix::fs::fstat(file).map_err(kernel("look at"))?.st_size;
        if !sizes.are_possible() || !u64::try_from(size).is_ok_and(|size| size >= file_bytes(sizes))
        {
            return Err(RegionError::Unfit);
        }
        let mut region = Self::map(file, sizes)?;
        region.bells = Some(bells);
        if side == Side::Worker {
            region.draw_key();
        }
        Ok(region)
    }

    /// Whoever made the memory says by which stamps records are known; it cannot be guessed.
    fn draw_key(&mut self) {
        self.key = RandomState::new().build_hasher().finish();
        self.control().key.0.store(self.key, Ordering::Release);
    }

    fn map(file: impl AsFd, sizes: RingSizes) -> Result<Self, RegionError> {
        let (request, reply) = (sizes.request as usize, sizes.reply as usize);
        let length = CONTROL_BYTES + 2 * request + 2 * reply;
        // SAFETY: a new reservation at an address of the kernel's choice.
        let base = unsafe {
            mmap_anonymous(std::ptr::null_mut(), length, ProtFlags::empty(), MapFlags::PRIVATE)
        };
        let base = NonNull::new(base.map_err(kernel("reserve addresses for"))?.cast::<u8>());
        // The kernel never maps anything at 0 that was not asked for.
        let base = base.ok_or(RegionError::Unfit)?;
        let mut region = Self { base, length, sizes, key: 0, bells: None };
        let data = CONTROL_BYTES;
        let parts = [
            (0, CONTROL_BYTES, 0),
            (data, request, data),
            (data + request, request, data),
            (data + 2 * request, reply, data + request),
            (data + 2 * request + reply, reply, data + request),
        ];
        for (at, length, offset) in parts {
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            let flags = MapFlags::SHARED | MapFlags::FIXED;
            // SAFETY: the part lies within the reservation made above, which nothing else uses.
            let mapped = unsafe {
                let address = region.base.as_ptr().add(at).cast::<c_void>();
                mmap(address, length, protection, flags, &file, offset as u64)
            };
            mapped.map_err(kernel("map"))?;
        }
        region.key = region.control().key.0.load(Ordering::Acquire);
        Ok(region)
    }

    /// Keeps the region out of processes that this one forks: two writers in one ring would
    /// spoil it.
    pub fn keep_from_children(&self) {
        let advice = rustix::mm::Advice::LinuxDontFork;
        // SAFETY: the region's own mapping; the advice does not change what this process sees.
        let kept = unsafe { rustix::mm::madvise(self.base.as_ptr().cast(), self.length, advice) };
        debug_assert!(kept.is_ok());
    }

    fn control(&self) -> &Control {
        // SAFETY: the mapping begins with a page for this structure; it is aligned to a page,
        // consists of atomics only (any bits are valid), and lives as long as `self`.
        unsafe { self.base.cast::<Control>().as_ref() }
    }

    #[inline]
    pub(super) fn ring(&self, direction: Direction) -> Ring<'_> {
        let channel = match direction {
            Direction::Request => &self.control().request,
            Direction::Reply => &self.control().reply,
        };
        let place = |parked, side| Place {
            parked,
            wakes: wakes(self.control(), side),
            bells: self.bells.as_ref(),
        };
        let reader = place(&channel.reader_parked.0, direction.reader());
        let writer = place(&channel.writer_parked.0, direction.writer());
        Ring { region: self, direction, channel, reader, writer }
    }

    /// The word in which the worker leaves the first error of a call that nobody waits for.
    pub fn deferred(&self) -> &AtomicU32 {
        &self.control().deferred.0
    }

    pub(super) fn capacity(&self, direction: Direction) -> u64 {
        match direction {
            Direction::Request => self.sizes.request.into(),
            Direction::Reply => self.sizes.reply.into(),
        }
    }

    /// The memory of all records, in both directions, as it is mapped: where and how many bytes.
    pub fn records(&self) -> (*mut u8, usize) {
        // SAFETY: the control page lies within the mapping, and the records behind it.
        let at = unsafe { self.base.as_ptr().add(CONTROL_BYTES) };
        (at, self.length - CONTROL_BYTES)
    }

    /// The memory at a position: as many bytes as the ring holds lie behind it in a row.
    #[inline]
    pub(super) fn at(&self, direction: Direction, position: u64) -> *mut u8 {
        let request = self.sizes.request as usize;
        let start = match direction {
            Direction::Request => CONTROL_BYTES,
            Direction::Reply => CONTROL_BYTES + 2 * request,
        };
        let offset = position & (self.capacity(direction) - 1);
        // The offset is below 2^30.
        #[allow(clippy::cast_possible_truncation)]
        let offset = offset as usize;
        // SAFETY: `start + offset` lies within the mapping, see `map`.
        unsafe { self.base.as_ptr().add(start + offset) }
    }

    /// Has the kernel give memory to the bytes of a ring between two positions of its first lap, whole
    /// pages of it; whether it did.
    pub(super) fn populate(&self, direction: Direction, from: u64, upto: u64) -> bool {
        let Ok(bytes) = usize::try_from(upto - from) else { return false };
        let (at, advice) = (self.at(direction, from), rustix::mm::Advice::LinuxPopulateWrite);
        // SAFETY: within the region's own mapping; nothing that is there changes.
        unsafe { rustix::mm::madvise(at.cast(), bytes, advice) }.is_ok()
    }

    /// Wakes whoever of this side or the other sleeps at one of the rings, so that it looks
    /// again whether the other side is there.
    pub fn wake_all(&self) {
        for direction in [Direction::Request, Direction::Reply] {
            let ring = self.ring(direction);
            wake_to_look(&ring.reader);
            wake_to_look(&ring.writer);
        }
        if let Some(bells) = &self.bells {
            bells.ring_own();
        }
    }
}

impl Side {
    /// The other end.
    const fn other(self) -> Self {
        match self {
            Self::Tenant => Self::Worker,
            Self::Worker => Self::Tenant,
        }
    }
}

const fn wakes(control: &Control, side: Side) -> &AtomicU32 {
    match side {
        Side::Tenant => &control.tenant_wakes.0,
        Side::Worker => &control.worker_wakes.0,
    }
}

/// The first page of a tenant's rings, for whoever carries wakes to the side that is in another
/// machine, and back. It knows nothing of what is in the rings.
#[derive(Debug)]
pub struct Carrier {
    base: NonNull<Control>,
    away: Side,
}

// SAFETY: the mapping lives as long as the carrier and consists of atomics only.
unsafe impl Send for Carrier {}
// SAFETY: as above.
unsafe impl Sync for Carrier {}

impl Carrier {
    /// Of the rings in `file`, whose side `away` is in another machine.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open(file: impl AsFd, away: Side) -> Result<Self, RegionError> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            mmap(std::ptr::null_mut(), CONTROL_BYTES, protection, MapFlags::SHARED, file, 0)
        };
        let base = NonNull::new(base.map_err(kernel("map"))?.cast()).ok_or(RegionError::Unfit)?;
        Ok(Self { base, away })
    }

    fn control(&self) -> &Control {
        // SAFETY: as in `Region::control`.
        unsafe { self.base.as_ref() }
    }

    /// Waits until the side that is here has woken the other since it had done so `seen` times, or
    /// for `limit`; how often it has now.
    pub(super) fn wait(&self, seen: u32, limit: std::time::Duration) -> u32 {
        let wakes = wakes(self.control(), self.away);
        super::park::sleep_at(wakes, seen, limit);
        wakes.load(Ordering::Acquire)
    }

    /// Has `pass` say each time that the side that is here has woken the other, until `over` or until
    /// `pass` says that nobody hears it. Whether it is over is looked at after each wake and at least
    /// each `look`; `gone`, which may cost a call of the system's, each `look`: the other machine can
    /// write to the count, too, and so have it that somebody woke all the time.
    pub fn carry(
        &self,
        look: std::time::Duration,
        over: impl Fn() -> bool,
        gone: impl Fn() -> bool,
        mut pass: impl FnMut() -> bool,
    ) {
        let (mut seen, mut looked) = (0, std::time::Instant::now());
        loop {
            let now = self.wait(seen, look);
            if over() {
                return;
            }
            if now == seen || looked.elapsed() >= look {
                if gone() {
                    return;
                }
                looked = std::time::Instant::now();
            }
            if now != seen && !pass() {
                return;
            }
            seen = now;
        }
    }

    /// Wakes the side that is here, which the other did in its machine.
    pub fn wake_here(&self) {
        super::park::wake_at(wakes(self.control(), self.away.other()));
    }

    /// Has [`Carrier::carry`] look at once, as if the side that is here had woken the other.
    pub fn interrupt(&self) {
        super::park::wake_at(wakes(self.control(), self.away));
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        // SAFETY: the mapping that `open` made, to which nothing refers any more.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), CONTROL_BYTES) };
        debug_assert!(unmapped.is_ok());
    }
}

fn file_bytes(sizes: RingSizes) -> u64 {
    CONTROL_BYTES as u64 + u64::from(sizes.request) + u64::from(sizes.reply)
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the reservation that `map` made, with all that was mapped into it; readers
        // and writers hold the region in an `Arc`, so none is left.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.length) };
        debug_assert!(unmapped.is_ok());
    }
}
