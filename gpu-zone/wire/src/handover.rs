//! What a broker hands to a worker when it starts it.

use gpuzone_core::{Grant, LeaseId};
use serde::{Deserialize, Serialize};

use crate::control::{Caps, Driver};
use crate::scrub::SCRUB_ARGUMENT;

/// The inherited file descriptor of the listening slot socket (`SOCK_SEQPACKET`).
pub const LISTENER_FD: i32 = 3;
/// The inherited file descriptor of the lease's stats file, see [`crate::stats`].
pub const STATS_FD: i32 = 4;
/// Exit code of a worker that cannot use its driver; the reason is on its standard error.
pub const EXIT_DRIVER: i32 = 78;
/// Exit code of a worker that wants a fresh one in its place.
pub const EXIT_REPLACE: i32 = 75;

/// What a worker's program is started to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The worker of a lease.
    Worker,
    /// The one that clears what a lease gave back ([`crate::scrub`]).
    Scrub,
}

impl Role {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Worker, Self::Scrub];

    /// Its name among kinds of zones.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Scrub => "scrub",
        }
    }

    /// The program's arguments.
    pub const fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Worker => &[],
            Self::Scrub => &[SCRUB_ARGUMENT],
        }
    }

    /// How many descriptors it inherits, from number 3 on: slot, stats file and turns, or turns.
    pub const fn files(self) -> usize {
        match self {
            Self::Worker => 3,
            Self::Scrub => 1,
        }
    }
}

/// A worker's orders, as JSON on its standard input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerSpec {
    /// Whose worker it is.
    pub lease: LeaseId,
    /// The GPUs and the limits on each; a program's device 0 is the first.
    pub grants: Vec<Grant>,
    /// The libraries to open.
    pub driver: Driver,
    /// Caps on each session.
    pub caps: Caps,
    /// Whether it gets its GPUs' time by turns, at [`crate::turn::TURNS_FD`]; else it takes it.
    #[serde(default)]
    pub arbitrated: bool,
    /// Whether tenants' rings lie in windows, see [`crate::hello::Hello::window`].
    #[serde(default)]
    pub windows: bool,
}
