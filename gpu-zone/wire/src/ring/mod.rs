//! Two single-producer, single-consumer rings of bytes in memory that both sides map.
//!
//! ```text
//! page 0    positions and parking words of both rings, the word of deferred errors, counts of wakes
//! then      the request ring's bytes, then the reply ring's; each mapped twice in a row, so
//!           that a record which crosses the end is one piece of memory all the same
//!
//!     record:  header (32 bytes) | control, padded to 16 | bulk, padded to 32
//! ```
//!
//! A side keeps its own position in private memory and only ever publishes it; the other side's
//! position is checked each time it is read: it never goes back and never leaves more in the
//! ring than the ring holds. Header and control are copied out once, before anything in them is
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
