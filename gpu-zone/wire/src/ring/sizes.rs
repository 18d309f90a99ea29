//! How large rings are.

use serde::{Deserialize, Serialize};

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
