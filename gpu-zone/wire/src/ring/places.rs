//! Where the control page has what, in bytes from its beginning. For programs that write into it
//! without this crate's ends, as a hostile tenant's does.

use std::mem::offset_of;

use super::record::Header;
use super::region::{Channel, Control};

/// Bytes in front of the request ring's.
pub const CONTROL: usize = super::region::CONTROL_BYTES;
/// Bytes of a record's header; its stamp is the first eight.
pub const HEADER: usize = size_of::<Header>();
/// What a record's place and length are multiples of.
pub const ALIGN: usize = super::record::ALIGN;
/// What a stamp is more than its record's number, 64 bits.
pub const KEY: usize = offset_of!(Control, key);
/// Where a header has its flags.
pub const FLAGS: usize = offset_of!(Header, flags);
/// Of the request ring.
pub const REQUEST: Places = Places::of(offset_of!(Control, request));
/// Of the reply ring.
pub const REPLY: Places = Places::of(offset_of!(Control, reply));
/// The word of deferred errors, 32 bits.
pub const DEFERRED: usize = offset_of!(Control, deferred);
/// Where the worker's side sleeps, 32 bits.
pub const WORKER_WAKES: usize = offset_of!(Control, worker_wakes);
/// Where the tenant's side sleeps, 32 bits.
pub const TENANT_WAKES: usize = offset_of!(Control, tenant_wakes);

/// Where a record of a ring is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordPlace {
    /// Bytes from the ring's beginning, as if it had no end.
    pub position: u64,
    /// Which record it is, from 0 on.
    pub number: u64,
}

/// Where a ring's words are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// Bytes ever read, 64 bits.
    pub head: usize,
    /// How far is to be read before a writer that sleeps is woken, 64 bits.
    pub wanted: usize,
    /// 1 while the reader sleeps, 32 bits.
    pub reader_parked: usize,
    /// 1 while the writer sleeps, 32 bits.
    pub writer_parked: usize,
}

impl Places {
    const fn of(channel: usize) -> Self {
        Self {
            head: channel + offset_of!(Channel, head),
            wanted: channel + offset_of!(Channel, wanted),
            reader_parked: channel + offset_of!(Channel, reader_parked),
            writer_parked: channel + offset_of!(Channel, writer_parked),
        }
    }
}
