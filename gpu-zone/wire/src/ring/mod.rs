//! Two single-producer, single-consumer rings of bytes in memory that both sides map.
//!
//! ```text
//! page 0    readers' positions and parking words of both rings, the word of deferred errors, counts
//!           of wakes, the key of the stamps
//! then      the request ring's bytes, then the reply ring's; each mapped twice in a row, so
//!           that a record which crosses the end is one piece of memory all the same
//!
//!     record:  header (32 bytes, a stamp first) | control, padded to 16 | bulk, padded to 64
//! ```
//!
//! A record is there when its stamp is: the key and its number, written last. So a reader looks at
//! the line of memory that it reads next anyway, and a small record costs one line's way from one
//! processor to the other, as little as two threads need to meet at all. The key is drawn by the
//! worker for each pair of rings: what programs copy lies in the rings, too, and nobody who has a
//! say in a program's data may be able to write what looks like a record there.
//!
//! Who asks and waits writes its next question over the last one, and who answers does so with answers
//! ([`flag::REUSED`]): two lines of memory, which both processors have at hand, go to and fro.
//!
//! A side keeps its own position in private memory. A reader publishes it, not for each small record,
//! and a writer looks at it when the ring seems full, and checks it each time: it never goes back and
//! never passes what was written. Header and control are copied out once, before anything in them is
//! looked at. Bulk bytes are data and nothing else, so they are used where they lie.

mod bytes;
mod ends;
#[cfg(test)]
mod model;
mod park;
pub mod places;
mod reader;
mod record;
mod region;
mod sizes;
mod writer;

#[cfg(test)]
mod tests;

pub use bytes::copy_bytes;
pub use park::{Always, Bells, Peer, Spin};
pub use reader::{Bulk, Reader, Received};
pub use record::{Header, flag};
pub use region::{Carrier, Direction, Region, RegionError, Side};
pub use sizes::{RecordBytes, RecordBytesError, RingBytes, RingBytesError, RingSizes};
pub use writer::{Payload, Writer};

/// Most bytes that the control part of one record may have.
pub const MAX_CONTROL: usize = 128 << 10;
/// Most bulk bytes that one record may carry: larger copies take several.
pub const MAX_BULK: usize = 512 << 10;

/// Why a ring stopped. Once it has, it stays so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// The other side's process is gone.
    #[error("the other end of the ring is gone")]
    PeerGone,
    /// The other side wrote a position that cannot be.
    #[error("the other end wrote an impossible position into the ring")]
    BadPosition,
    /// The other side wrote a record that cannot be.
    #[error("the other end wrote a record with impossible lengths into the ring")]
    BadRecord,
    /// A record of ours is larger than a record may be.
    #[error("a record is too large for the ring")]
    TooLarge,
}
