//! How large rings are.

use serde::{Deserialize, Serialize};

use super::MAX_BULK;
use super::record::MAX_RECORD;

/// How many bytes each ring holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingSizes {
    /// From the tenant to the worker.
    pub request: u32,
    /// From the worker to the tenant.
    pub reply: u32,
}

impl Default for RingSizes {
    fn default() -> Self {
        RingBytes::USUAL.into()
    }
}

/// How many bytes each ring between a worker and a program holds: what a program has in flight, and
/// twice what a record has at most. Memory of the node for each program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct RingBytes(u32);

/// Why rings cannot have a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a ring has a power of two of bytes, from 2097152 (2 MiB) to 67108864 (64 MiB), and not {0}"
)]
pub struct RingBytesError(u32);

impl TryFrom<u32> for RingBytes {
    type Error = RingBytesError;

    fn try_from(bytes: u32) -> Result<Self, RingBytesError> {
        let sizes = RingSizes { request: bytes, reply: bytes };
        let fits = sizes.are_possible() && bytes <= 64 << 20;
        if fits { Ok(Self(bytes)) } else { Err(RingBytesError(bytes)) }
    }
}

impl From<RingBytes> for u32 {
    fn from(RingBytes(bytes): RingBytes) -> Self {
        bytes
    }
}

impl RingBytes {
    /// 4 MiB.
    pub const USUAL: Self = Self(4 << 20);
}

impl Default for RingBytes {
    fn default() -> Self {
        Self::USUAL
    }
}

/// How many bulk bytes one record of a program's holds at most; what is longer goes in several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct RecordBytes(u32);

/// Why records cannot have a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a record has a multiple of 4096 bytes, from 65536 (64 KiB) to 524288 (512 KiB), and not {0}"
)]
pub struct RecordBytesError(u32);

impl TryFrom<u32> for RecordBytes {
    type Error = RecordBytesError;

    fn try_from(bytes: u32) -> Result<Self, RecordBytesError> {
        let most = u32::try_from(MAX_BULK).unwrap_or(u32::MAX);
        let fits = (64 << 10..=most).contains(&bytes) && bytes.is_multiple_of(4096);
        if fits { Ok(Self(bytes)) } else { Err(RecordBytesError(bytes)) }
    }
}

impl From<RecordBytes> for u32 {
    fn from(RecordBytes(bytes): RecordBytes) -> Self {
        bytes
    }
}

impl RecordBytes {
    /// 512 KiB, the most there can be.
    pub const MOST: Self = Self(512 << 10);

    /// The number.
    pub const fn get(self) -> usize {
        self.0 as usize
    }
}

impl Default for RecordBytes {
    fn default() -> Self {
        Self::MOST
    }
}

const _: () = assert!(RecordBytes::MOST.get() == MAX_BULK);

impl From<RingBytes> for RingSizes {
    fn from(RingBytes(bytes): RingBytes) -> Self {
        Self { request: bytes, reply: bytes }
    }
}

impl RingSizes {
    /// Whether rings of these sizes can be mapped twice in a row and hold the largest record.
    pub(super) fn are_possible(self) -> bool {
        let possible = |bytes: u32| {
            bytes.is_power_of_two() && bytes <= 1 << 30 && bytes as usize >= 2 * MAX_RECORD
        };
        possible(self.request) && possible(self.reply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_do_not_work_are_refused_where_they_are_read() {
        let rings = |bytes: u32| serde_json::from_value::<RingBytes>(bytes.into()).is_ok();
        assert_eq!(
            [1 << 20, 2 << 20, 3 << 20, 64 << 20, 128 << 20].map(rings),
            [false, true, false, true, false]
        );
        let records = |bytes: u32| serde_json::from_value::<RecordBytes>(bytes.into()).is_ok();
        let tried = [4096, 64 << 10, (64 << 10) + 1, 68 << 10, 512 << 10, 516 << 10];
        assert_eq!(tried.map(records), [false, true, false, true, true, false]);
    }
}
