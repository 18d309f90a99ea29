use bytemuck::{Pod, Zeroable};

use super::{MAX_BULK, MAX_CONTROL, RingError};

/// Records begin at multiples of this.
pub(super) const ALIGN: usize = 64;
const CONTROL_ALIGN: usize = 16;

/// Bits of [`Header::flags`].
pub mod flag {
    /// The sender waits for an answer.
    pub const WANTS_REPLY: u16 = 1;
    /// A piece of an answer: more records follow.
    pub const PIECE: u16 = 2;
    /// The next record is written over this one, in the lines of memory that both processors have
    /// at hand. Who sends it promises to write none before this one was read, as who waits for an
    /// answer can, and who answers. A record with bulk bytes is never one.
    pub const REUSED: u16 = 4;
}

/// What stands in front of each record.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Header {
    /// What says that the record is there; written apart from the rest, at last.
    pub(super) stamp: u64,
    /// Bytes of the whole record.
    pub(super) total: u32,
    /// Bytes of the control part.
    pub(super) control: u32,
    /// Bytes of bulk data.
    pub(super) bulk: u32,
    /// Which call, see [`crate::spec`].
    pub opcode: u16,
    /// See [`flag`].
    pub flags: u16,
    /// The context that the call is made in, 0 for none.
    pub context: u32,
    /// Counts the requests; an answer bears its request's.
    pub sequence: u32,
}

pub(super) const HEADER: usize = size_of::<Header>();
/// Bytes of the stamp in front of a header.
pub(super) const STAMP: usize = size_of::<u64>();
const _: () = assert!(std::mem::offset_of!(Header, stamp) == 0 && HEADER <= ALIGN);

impl Header {
    /// A header; its lengths are filled in when it is sent.
    pub fn new(opcode: u16, flags: u16, context: u32, sequence: u32) -> Self {
        Self { opcode, flags, context, sequence, ..Self::zeroed() }
    }

    /// The header with the lengths of these parts.
    #[inline]
    pub(super) fn sized(mut self, control: usize, bulk: usize) -> Result<Self, RingError> {
        if control > MAX_CONTROL || bulk > MAX_BULK {
            return Err(RingError::TooLarge);
        }
        let length = |bytes: usize| u32::try_from(bytes).map_err(|_| RingError::TooLarge);
        self.control = length(control)?;
        self.bulk = length(bulk)?;
        self.total = length((bulk_offset(control) + bulk).next_multiple_of(ALIGN))?;
        Ok(self)
    }

    /// How much further the next record begins.
    pub(super) fn advance(&self) -> u64 {
        if self.flags & flag::REUSED == 0 { self.total.into() } else { 0 }
    }

    /// Where the bulk bytes begin, when the lengths agree and `available` bytes hold the record.
    #[inline]
    pub(super) fn checked(&self, available: u64) -> Result<usize, RingError> {
        let size = |bytes: u32| usize::try_from(bytes).map_err(|_| RingError::BadRecord);
        let (control, bulk) = (size(self.control)?, size(self.bulk)?);
        let honest = self.sized(control, bulk).map_err(|_| RingError::BadRecord)?;
        let bad_reuse = self.flags & flag::REUSED != 0 && bulk > 0;
        if honest.total != self.total || u64::from(self.total) > available || bad_reuse {
            return Err(RingError::BadRecord);
        }
        Ok(bulk_offset(control))
    }
}

/// Bytes from a record's beginning to its bulk data.
pub(super) const fn bulk_offset(control: usize) -> usize {
    HEADER + control.next_multiple_of(CONTROL_ALIGN)
}

/// The largest record there can be.
pub(super) const MAX_RECORD: usize = (bulk_offset(MAX_CONTROL) + MAX_BULK).next_multiple_of(ALIGN);
