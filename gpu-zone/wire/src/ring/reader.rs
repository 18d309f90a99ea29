use std::sync::Arc;
use std::time::Duration;

use bytemuck::Zeroable;

use super::RingError;
use super::bytes::copy_short;
use super::ends::Consumer;
use super::park::{Peer, Spin};
use super::places::RecordPlace;
use super::record::{HEADER, Header};
use super::region::{Direction, Region};

/// When this part of the ring was read it is released. A writer waits for a part that fits beside it.
const BATCH: u64 = 32;

/// The bulk bytes of a received record, where they lie in the ring. The other side can change
/// them at any time: they are for copying, never for deciding.
#[derive(Clone, Copy, Debug)]
pub struct Bulk {
    at: *const u8,
    length: usize,
}

impl Bulk {
    /// No bytes.
    pub const NONE: Self = Self { at: std::ptr::null(), length: 0 };

    /// The bytes of a slice, for whoever tests what is done with them.
    pub const fn of(bytes: &'static [u8]) -> Self {
        Self { at: bytes.as_ptr(), length: bytes.len() }
    }

    /// The first byte's address; valid until [`Reader::release`].
    pub const fn as_ptr(&self) -> *const u8 {
        self.at
    }

    /// How many bytes.
    pub const fn len(&self) -> usize {
        self.length
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Copies the bytes to the end of `target`.
    ///
    /// # Safety
    /// The record must not have been released.
    #[inline]
    pub unsafe fn append_to(&self, target: &mut Vec<u8>) {
        if self.length == 0 {
            return;
        }
        target.reserve(self.length);
        // SAFETY: the bytes are mapped as long as the record is not released, which the caller
        // promises; the room was reserved above, and is set before the length says so.
        unsafe {
            let end = target.as_mut_ptr().add(target.len());
            copy_short(self.at, end, self.length);
            target.set_len(target.len() + self.length);
        }
    }
}

/// A record that was read; its control part is [`Reader::control`].
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// The header: a copy of ours.
    pub header: Header,
    /// The bulk bytes: still in the ring.
    pub bulk: Bulk,
}

/// The reading end of a ring.
#[derive(Debug)]
pub struct Reader {
    region: Arc<Region>,
    direction: Direction,
    spin: Spin,
    at: Consumer,
    holds: bool,
    control: Vec<u8>,
    broken: Option<RingError>,
}

impl Reader {
    /// The reading end. There must be one only, made when nothing was read yet.
    pub fn new(region: Arc<Region>, direction: Direction, spin: Spin) -> Self {
        let control = Vec::with_capacity(4096);
        Self {
            region,
            direction,
            spin,
            at: Consumer::default(),
            holds: false,
            control,
            broken: None,
        }
    }

    /// The next record; `None` when none came within `timeout`. Those before it are released, unless
    /// one is held; small ones, several at once.
    ///
    /// # Errors
    /// When the other side is gone or wrote nonsense; for ever from then on.
    #[inline]
    pub fn receive(
        &mut self,
        timeout: Option<Duration>,
        peer: &dyn Peer,
    ) -> Result<Option<Received>, RingError> {
        self.receive_looking(self.spin, timeout, peer)
    }

    /// As [`Reader::receive`], looking for so long before it sleeps.
    ///
    /// # Errors
    /// As [`Reader::receive`].
    #[inline]
    pub fn receive_looking(
        &mut self,
        spin: Spin,
        timeout: Option<Duration>,
        peer: &dyn Peer,
    ) -> Result<Option<Received>, RingError> {
        if let Some(broken) = self.broken {
            return Err(broken);
        }
        let ring = self.region.ring(self.direction);
        if !self.holds {
            let least = self.region.capacity(self.direction) / BATCH;
            self.at.release_if(&ring, least);
        }
        let received = match self.at.wait(&ring, spin, timeout, peer) {
            Ok(true) => self.take().map(Some),
            Ok(false) => Ok(None),
            Err(error) => Err(error),
        };
        received.inspect_err(|error| self.broken = Some(*error))
    }

    /// Whether another record stands behind the one that was received last.
    pub fn has_more(&self) -> bool {
        self.at.has_next(&self.region.ring(self.direction))
    }

    /// Where the next record is expected.
    pub(crate) fn place(&self) -> RecordPlace {
        RecordPlace { position: self.at.next, number: self.at.number }
    }

    /// The control part of the record that was received last: a copy of ours.
    pub fn control(&self) -> &[u8] {
        &self.control
    }

    #[inline]
    fn take(&mut self) -> Result<Received, RingError> {
        let record = self.region.at(self.direction, self.at.next);
        let mut header = Header::zeroed();
        let into = bytemuck::bytes_of_mut(&mut header);
        // SAFETY: a header's bytes lie in a row from any position on. This is the one copy: nothing
        // below looks at the shared bytes again.
        unsafe { std::ptr::copy_nonoverlapping(record, into.as_mut_ptr(), HEADER) };
        // What is not released yet has to be left alone by an honest writer.
        let kept = self.at.next - self.at.head;
        let bulk_at = header.checked(self.region.capacity(self.direction) - kept)?;
        self.control.clear();
        let control = Bulk { at: record.wrapping_add(HEADER), length: header.control as usize };
        // SAFETY: the checked lengths lie within the record, which lies within the ring, and
        // it was not released.
        unsafe { control.append_to(&mut self.control) };
        self.at.advance(header.advance());
        let bulk = Bulk { at: record.wrapping_add(bulk_at), length: header.bulk as usize };
        Ok(Received { header, bulk })
    }

    /// Gives all received records' bytes back to the writer.
    pub fn release(&mut self) {
        self.holds = false;
        self.release_upto(self.at.next);
    }

    /// The record that was received last, and what comes behind it, stay until they are released; where
    /// in the ring it ends.
    pub fn hold(&mut self) -> u64 {
        self.holds = true;
        self.at.next
    }

    /// Gives records' bytes up to a place that [`Reader::hold`] told back to the writer; more are held.
    pub fn release_upto(&mut self, place: u64) {
        if place > self.at.head {
            self.at.release(&self.region.ring(self.direction), place);
        }
    }
}
