use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::RingError;
use super::park::{self, Peer, Spin};
use super::record::{Header, bulk_offset};
use super::region::{Direction, Region};

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
    tail: u64,
    head: u64,
    broken: Option<RingError>,
}

impl Writer {
    /// The writing end. There must be one only, made when nothing was written yet.
    pub fn new(region: Arc<Region>, direction: Direction, spin: Spin) -> Self {
        Self { region, direction, spin, tail: 0, head: 0, broken: None }
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
                unsafe { std::ptr::copy_nonoverlapping(bulk.from, target, bulk.length) };
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
        let record = self.region.at(self.direction, self.tail);
        let bytes = bytemuck::bytes_of(&header);
        // SAFETY: `total` bytes from the tail on are free, lie in a row and are ours alone to
        // write; header, control and bulk fit into them, see `Header::sized`.
        let target = unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), record, bytes.len());
            std::ptr::copy_nonoverlapping(control.as_ptr(), record.add(bytes.len()), control.len());
            record.add(bulk_offset(control.len()))
        };
        if let Err(error) = fill(target) {
            return Ok(Err(error));
        }
        self.tail += u64::from(header.total);
        let channel = self.region.channel(self.direction);
        channel.tail.0.store(self.tail, Ordering::Release);
        self.region.reader_place(self.direction).wake_if_parked();
        Ok(Ok(()))
    }

    /// Whether a record of this size can be written at once.
    pub fn has_room(&mut self, control: usize, bulk: usize) -> bool {
        let Ok(header) = Header::new(0, 0, 0, 0).sized(control, bulk) else { return false };
        let (tail, total) = (self.tail, u64::from(header.total));
        let seen = self.region.channel(self.direction).head.0.load(Ordering::Acquire);
        // Nonsense is not taken note of here: writing finds it.
        let held = tail.checked_sub(seen).filter(|_| seen >= self.head);
        held.is_some_and(|held| held + total <= self.region.capacity(self.direction))
    }

    fn make_room(&mut self, bytes: u64, peer: &dyn Peer) -> Result<(), RingError> {
        if let Some(broken) = self.broken {
            return Err(broken);
        }
        let capacity = self.region.capacity(self.direction);
        if bytes > capacity {
            return Err(RingError::TooLarge);
        }
        if self.tail - self.head + bytes <= capacity {
            return Ok(());
        }
        let channel = self.region.channel(self.direction);
        let (tail, head) = (self.tail, &mut self.head);
        let waited =
            park::wait(&self.region.writer_place(self.direction), self.spin, None, peer, || {
                let seen = channel.head.0.load(Ordering::Acquire);
                if seen < *head || seen > tail {
                    return Err(RingError::BadPosition);
                }
                *head = seen;
                Ok(tail - seen + bytes <= capacity)
            });
        match waited {
            Ok(_) => Ok(()),
            Err(error) => {
                self.broken = Some(error);
                Err(error)
            }
        }
    }
}
