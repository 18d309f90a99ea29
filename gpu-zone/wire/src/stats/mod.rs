//! What a worker counts: a file that the worker maps and adds to, and that its broker reads.
//!
//! The file outlives the worker: a worker that is started in another's place goes on counting
//! where that one stopped. A broker never maps the file: a worker that a tenant took over could
//! cut it short under the mapping. It reads the file instead, and takes what it reads for
//! numbers and nothing more.

mod layout;
mod reader;
mod writer;

pub use reader::{Snapshot, StatsFile};
pub use writer::{Copied, StatsWriter};

use rustix::time::{ClockId, clock_gettime};

/// Why a stats file is not usable.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    /// It could not be made, read or written.
    #[error("cannot {action} the lease's stats file: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// It is no stats file, or was cut short.
    #[error(
        "the lease's stats file is damaged or not a stats file; remove it, its counters are lost"
    )]
    Damaged,
    /// Another version wrote it.
    #[error(
        "the lease's stats file has version {found} and this program reads version {expected}; end the lease and start it again"
    )]
    Version {
        /// The file's.
        found: u64,
        /// This program's.
        expected: u64,
    },
}

impl StatsError {
    pub(crate) fn io(action: &'static str) -> impl Fn(std::io::Error) -> Self {
        move |source| Self::Io { action, source }
    }
}

/// A moment of `CLOCK_MONOTONIC`, in nanoseconds: all processes of a machine agree on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Monotonic(u64);

impl Monotonic {
    /// This moment.
    pub fn now() -> Self {
        let now = clock_gettime(ClockId::Monotonic);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        Self(seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0))
    }

    /// The moment this many nanoseconds after the clock's start.
    pub const fn from_nanoseconds(nanoseconds: u64) -> Self {
        Self(nanoseconds)
    }

    /// Nanoseconds since the clock's start.
    pub const fn nanoseconds(self) -> u64 {
        self.0
    }

    /// Nanoseconds from `earlier` to this moment, 0 when it is later.
    pub const fn nanoseconds_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}
