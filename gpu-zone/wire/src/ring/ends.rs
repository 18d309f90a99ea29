//! How the two ends of a ring keep out of each other's way: positions, and who sleeps. Nothing
//! else of a ring is shared and can be changed by both.
//!
//! It is generic over the words it works on, so that a model of memory and of the kernel's
//! futexes can stand in their place: `ring/model.rs` runs exactly this code in every order.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::RingError;
use super::park::{self, Parking, Peer, Spin};

/// A position that one side writes and the other reads.
pub(super) trait Position {
    fn load(&self, order: Ordering) -> u64;
    fn store(&self, value: u64, order: Ordering);
}

/// What the two sides share of one ring.
pub(super) trait Shared {
    type Position: Position;
    type Parking: Parking;

    /// The first word of a record at a position; the writer's.
    fn stamp(&self, position: u64) -> &Self::Position;
    /// What stands there when the record of this number is there, and nothing that stood there before.
    fn published(&self, number: u64) -> u64;
    /// Bytes ever read; the reader's.
    fn head(&self) -> &Self::Position;
    /// How far is to be read before a writer that sleeps is woken; the writer's.
    fn wanted(&self) -> &Self::Position;
    /// Whether the reader sleeps.
    fn reader(&self) -> &Self::Parking;
    /// Whether the writer sleeps.
    fn writer(&self) -> &Self::Parking;
}

/// The reader's own positions.
#[derive(Debug, Default)]
pub(super) struct Consumer {
    /// Given back.
    pub(super) head: u64,
    /// Read.
    pub(super) next: u64,
    /// Records read.
    pub(super) number: u64,
}

impl Consumer {
    /// Whether the next record is there.
    #[inline]
    pub(super) fn has_next(&self, shared: &impl Shared) -> bool {
        shared.stamp(self.next).load(Ordering::Acquire) == shared.published(self.number)
    }

    /// Takes the next record for read. The one behind it begins so many bytes further on: none, when
    /// that one is written over it.
    #[inline]
    pub(super) fn advance(&mut self, bytes: u64) {
        self.number += 1;
        self.next += bytes;
    }

    /// Waits for something to read; `false` when the time was over first.
    #[inline]
    pub(super) fn wait(
        &self,
        shared: &impl Shared,
        spin: Spin,
        limit: Option<Duration>,
        peer: &dyn Peer,
    ) -> Result<bool, RingError> {
        park::wait(shared.reader(), spin, limit, peer, || Ok(self.has_next(shared)))
    }

    /// Gives what was read back to the writer if it is at least so much: each time costs the writer a
    /// look at another line, and small records fit beside all that it may wait for.
    #[inline]
    pub(super) fn release_if(&mut self, shared: &impl Shared, least: u64) {
        if self.next - self.head >= least {
            self.release(shared, self.next);
        }
    }

    /// Gives what was read up to a position back to the writer.
    #[inline]
    pub(super) fn release(&mut self, shared: &impl Shared, upto: u64) {
        self.head = self.head.max(upto.min(self.next));
        shared.head().store(self.head, Ordering::Release);
        // What the writer wants is written before it says that it sleeps. Nonsense there is its loss.
        let enough = || self.head >= shared.wanted().load(Ordering::Relaxed);
        park::wake_if_parked(shared.writer(), enough);
    }
}

/// The writer's own positions.
#[derive(Debug, Default)]
pub(super) struct Producer {
    /// Written and published.
    pub(super) tail: u64,
    /// Read, as far as that was seen and found possible.
    pub(super) head: u64,
    /// Records written and published.
    pub(super) number: u64,
}

impl Producer {
    /// Waits until `bytes` more fit; if they do not at once, until `batch` bytes do, so that it is
    /// woken once for many small records. That must not be less, and not so much that it does not fit
    /// beside a record that the reader keeps while it deals with it.
    #[inline]
    pub(super) fn make_room(
        &mut self,
        shared: &impl Shared,
        capacity: u64,
        (bytes, batch): (u64, u64),
        spin: Spin,
        peer: &dyn Peer,
    ) -> Result<(), RingError> {
        if self.tail - self.head + bytes <= capacity {
            return Ok(());
        }
        let (tail, head) = (self.tail, &mut self.head);
        shared.wanted().store((tail + batch).saturating_sub(capacity), Ordering::Relaxed);
        let waited = park::wait(shared.writer(), spin, None, peer, || {
            let seen = shared.head().load(Ordering::Acquire);
            if seen < *head || seen > tail {
                return Err(RingError::BadPosition);
            }
            *head = seen;
            Ok(tail - seen + batch <= capacity)
        });
        waited.map(|_| ())
    }

    /// Shows the reader the next record; whether it had to be woken. The one behind it begins so many
    /// bytes further on: none, when that one is written over it.
    #[inline]
    pub(super) fn publish(&mut self, shared: &impl Shared, bytes: u64) -> bool {
        shared.stamp(self.tail).store(shared.published(self.number), Ordering::Release);
        self.number += 1;
        self.tail += bytes;
        park::wake_if_parked(shared.reader(), || true)
    }

    /// Whether `bytes` more fit at once.
    #[inline]
    pub(super) fn has_room(&mut self, shared: &impl Shared, capacity: u64, bytes: u64) -> bool {
        if self.tail - self.head + bytes > capacity {
            let seen = shared.head().load(Ordering::Acquire);
            // Nonsense is not taken note of here: writing finds it.
            if seen >= self.head && seen <= self.tail {
                self.head = seen;
            }
        }
        self.tail - self.head + bytes <= capacity
    }
}
