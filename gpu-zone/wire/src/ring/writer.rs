use std::sync::Arc;

use super::RingError;
use super::bytes::copy_bytes;
use super::ends::Producer;
use super::park::{Peer, Spin};
use super::record::{HEADER, Header, STAMP, bulk_offset};
use super::region::{Direction, Region};

/// A writer that found no room waits until this part of the ring is free.
const REFILL: u64 = 8;

/// Bulk bytes of a record.
#[derive(Clone, Copy, Debug)]
pub struct Payload {
    from: *const u8,
    length: usize,
}

impl Payload {
    /// No bytes.
    pub const NONE: Self = Self { from: std::ptr::null(), length: 0 };

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
    broken: Option<RingError>,
}

impl Writer {
    /// The writing end. There must be one only, made when nothing was written yet.
    pub fn new(region: Arc<Region>, direction: Direction, spin: Spin) -> Self {
        Self { region, direction, spin, at: Producer::default(), broken: None }
    }

    /// From now on, how long it looks for room before it sleeps.
    pub fn set_spin(&mut self, spin: Spin) {
        self.spin = spin;
    }

    /// Writes a record, waiting for room.
    ///
    /// # Errors
    /// When the record is too large, or the other side is gone or wrote nonsense.
    pub fn send(
        &mut self,
        header: Header,
        control: &[u8],
        bulk: Payload,
        peer: &dyn Peer,
    ) -> Result<(), RingError> {
        self.send_with(header, control, bulk.length, peer, |target| {
            if bulk.length > 0 {
                // SAFETY: `target` has room for `bulk.length` bytes in the ring, and the
                // source is readable by the contract of `Payload::at`; they do not overlap,
                // as nobody is given a pointer to the free part of a ring.
                unsafe { copy_bytes(bulk.from, target, bulk.length) };
            }
            Ok::<_, RingError>(())
        })?
    }

    /// Writes a record whose bulk bytes `fill` puts where it is told to. When `fill` fails,
    /// nothing is sent, and its error is the inner result.
    ///
    /// # Errors
    /// As [`Writer::send`].
    pub fn send_with<E>(
        &mut self,
        header: Header,
        control: &[u8],
        bulk: usize,
        peer: &dyn Peer,
        fill: impl FnOnce(*mut u8) -> Result<(), E>,
    ) -> Result<Result<(), E>, RingError> {
        let header = header.sized(control.len(), bulk)?;
        self.make_room(header.total.into(), peer)?;
        let record = self.region.at(self.direction, self.at.tail);
        let (_stamp, fields) = bytemuck::bytes_of(&header).split_at(STAMP);
        // SAFETY: `total` bytes from the tail on are free, lie in a row and are ours alone to
        // write, but for the stamp, at which the reader looks; header, control and bulk fit into
        // them, see `Header::sized`.
        let target = unsafe {
            std::ptr::copy_nonoverlapping(fields.as_ptr(), record.add(STAMP), fields.len());
            std::ptr::copy_nonoverlapping(control.as_ptr(), record.add(HEADER), control.len());
            record.add(bulk_offset(control.len()))
        };
        if let Err(error) = fill(target) {
            return Ok(Err(error));
        }
        self.at.publish(&self.region.ring(self.direction), header.total.into());
        Ok(Ok(()))
    }

    /// Whether a record of this size can be written at once.
    pub fn has_room(&mut self, control: usize, bulk: usize) -> bool {
        let Ok(header) = Header::new(0, 0, 0, 0).sized(control, bulk) else { return false };
        let capacity = self.region.capacity(self.direction);
        self.at.has_room(&self.region.ring(self.direction), capacity, header.total.into())
    }

    /// Bytes ever written: where the next record goes.
    pub(crate) fn position(&self) -> u64 {
        self.at.tail
    }

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
        made.inspect_err(|error| self.broken = Some(*error))
    }
}
