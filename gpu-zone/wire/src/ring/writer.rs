use std::collections::VecDeque;
use std::sync::Arc;

use super::RingError;
use super::bytes::{copy_bytes, copy_short};
use super::ends::Producer;
use super::park::{Peer, Spin};
use super::places::RecordPlace;
use super::record::{HEADER, Header, STAMP, bulk_offset};
use super::region::{Direction, Region};

/// A writer that found no room waits until this part of the ring is free.
const REFILL: u64 = 8;

/// Bytes that a ring gets memory for at once in its first lap.
const BACKED_AT_ONCE: u64 = 64 << 10;

/// Bulk bytes of a record.
#[derive(Clone, Copy, Debug)]
pub struct Payload {
    from: *const u8,
    length: usize,
}

impl Payload {
    /// No bytes.
    pub const NONE: Self = Self { from: std::ptr::null(), length: 0 };

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The bytes of a slice.
    pub const fn of(bytes: &[u8]) -> Self {
        Self { from: bytes.as_ptr(), length: bytes.len() }
    }

    /// `length` bytes at `from`.
    ///
    /// # Safety
    /// They must be readable until the record is sent. Another thread may change them
    /// meanwhile: whoever races with a copy gets a mixture, as with the real driver.
    pub const unsafe fn at(from: *const u8, length: usize) -> Self {
        Self { from, length }
    }
}

/// The writing end of a ring.
#[derive(Debug)]
pub struct Writer {
    region: Arc<Region>,
    direction: Direction,
    spin: Spin,
    at: Producer,
    /// Bytes of each record that is begun and not shown to the reader, and of all of them.
    begun: VecDeque<u64>,
    ahead: u64,
    /// Up to where the ring has memory. In its first lap it gets some ahead of the records, for to get
    /// it page by page, when they are written, costs more than to write them.
    backed: u64,
    broken: Option<RingError>,
    woke: bool,
}

impl Writer {
    /// The writing end. There must be one only, made when nothing was written yet.
    pub fn new(region: Arc<Region>, direction: Direction, spin: Spin) -> Self {
        let (at, begun, ahead) = (Producer::default(), VecDeque::new(), 0);
        Self { region, direction, spin, at, begun, ahead, backed: 0, broken: None, woke: false }
    }

    /// Whether the reader had to be woken for the last record that was sent.
    pub fn woke(&self) -> bool {
        self.woke
    }

    /// From now on, how long it looks for room before it sleeps.
    pub fn set_spin(&mut self, spin: Spin) {
        self.spin = spin;
    }

    /// Writes a record, waiting for room.
    ///
    /// # Errors
    /// When the record is too large, or the other side is gone or wrote nonsense; also while another
    /// one is begun, beside which there is no place for it.
    #[inline]
    pub fn send(
        &mut self,
        header: Header,
        control: &[u8],
        bulk: Payload,
        peer: &dyn Peer,
    ) -> Result<(), RingError> {
        if !self.begun.is_empty() {
            return Err(RingError::TooLarge);
        }
        let header = header.sized(control.len(), bulk.length)?;
        self.make_room(header.total.into(), peer)?;
        let target = self.write(header, control);
        if bulk.length > 0 {
            // SAFETY: `target` has room for `bulk.length` bytes in the ring, and the source is
            // readable by the contract of `Payload::at`; they do not overlap, as nobody is given a
            // pointer to the free part of a ring but who fills what was begun.
            unsafe { copy_bytes(bulk.from, target, bulk.length) };
        }
        self.woke = self.at.publish(&self.region.ring(self.direction), header.advance());
        Ok(())
    }

    /// Begins a record whose bulk bytes are written by somebody else, behind those that were begun
    /// before: where its bytes go. Waits for room when it is the first, and when it is not and there
    /// is none it answers `None`: the reader may wait for those before it.
    ///
    /// # Errors
    /// When the record is too large, or the other side is gone or wrote nonsense.
    pub fn begin(
        &mut self,
        header: Header,
        control: &[u8],
        bulk: usize,
        peer: &dyn Peer,
    ) -> Result<Option<*mut u8>, RingError> {
        let header = header.sized(control.len(), bulk)?;
        let bytes = u64::from(header.total);
        if !self.begun.is_empty() && !self.fits(bytes) {
            return Ok(None);
        }
        self.make_room(self.ahead + bytes, peer)?;
        let target = self.write(header, control);
        self.begun.push_back(bytes);
        self.ahead += bytes;
        Ok(Some(target))
    }

    /// Shows the reader the record that was begun first, if one was. Its bytes must be there.
    pub fn finish(&mut self) {
        if let Some(bytes) = self.begun.pop_front() {
            self.ahead -= bytes;
            self.at.publish(&self.region.ring(self.direction), bytes);
        }
    }

    /// Forgets what was begun. Nobody must write to it any more.
    pub fn abandon(&mut self) {
        self.begun.clear();
        self.ahead = 0;
    }

    /// Writes all of a record, for which there is room behind what is begun, but its stamp and its
    /// bulk bytes; where those go.
    #[inline]
    fn write(&self, header: Header, control: &[u8]) -> *mut u8 {
        let record = self.region.at(self.direction, self.at.tail + self.ahead);
        let (_stamp, fields) = bytemuck::bytes_of(&header).split_at(STAMP);
        // SAFETY: `total` bytes from there on are free, lie in a row and are ours alone to
        // write, but for the stamp, at which the reader looks; header, control and bulk fit into
        // them, see `Header::sized`.
        unsafe {
            std::ptr::copy_nonoverlapping(fields.as_ptr(), record.add(STAMP), fields.len());
            copy_short(control.as_ptr(), record.add(HEADER), control.len());
            record.add(bulk_offset(control.len()))
        }
    }

    /// Whether a record of this size can be written at once.
    pub fn has_room(&mut self, control: usize, bulk: usize) -> bool {
        let Ok(header) = Header::new(0, 0, 0, 0).sized(control, bulk) else { return false };
        self.fits(header.total.into())
    }

    fn fits(&mut self, bytes: u64) -> bool {
        let capacity = self.region.capacity(self.direction);
        self.at.has_room(&self.region.ring(self.direction), capacity, self.ahead + bytes)
    }

    /// Where the next record goes.
    pub(crate) fn place(&self) -> RecordPlace {
        RecordPlace { position: self.at.tail, number: self.at.number }
    }

    #[inline]
    fn make_room(&mut self, bytes: u64, peer: &dyn Peer) -> Result<(), RingError> {
        if let Some(broken) = self.broken {
            return Err(broken);
        }
        let capacity = self.region.capacity(self.direction);
        if bytes > capacity {
            return Err(RingError::TooLarge);
        }
        let ring = self.region.ring(self.direction);
        let batch = bytes.max(capacity / REFILL);
        let made = self.at.make_room(&ring, capacity, (bytes, batch), self.spin, peer);
        made.inspect_err(|error| self.broken = Some(*error))?;
        if self.at.tail + bytes > self.backed {
            self.back(self.at.tail + bytes, capacity);
        }
        Ok(())
    }

    fn back(&mut self, upto: u64, capacity: u64) {
        let upto = upto.next_multiple_of(BACKED_AT_ONCE).min(capacity);
        let is_first_lap = self.backed < upto;
        if !is_first_lap || !self.region.populate(self.direction, self.backed, upto) {
            // It has all that it needs, or is of another kind, or the kernel knows no such thing.
            self.backed = u64::MAX;
            return;
        }
        self.backed = upto;
    }
}
