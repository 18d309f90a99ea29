use serde::{Deserialize, Serialize};

/// A moment, in nanoseconds since 1970-01-01T00:00:00Z.
///
/// The core never asks for the time; whoever calls it says what time it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The moment `nanoseconds` after the epoch; good until the year 2262, where it saturates.
    pub const fn from_nanoseconds(nanoseconds: u64) -> Self {
        const MAX: u64 = i64::MAX as u64;
        Self(if nanoseconds > MAX { MAX } else { nanoseconds })
    }

    /// Nanoseconds since the epoch; always fits a signed 64-bit number.
    pub const fn nanoseconds(self) -> u64 {
        self.0
    }

    /// Nanoseconds from `earlier` to this moment; 0 when the clock went backwards.
    pub const fn nanoseconds_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}
