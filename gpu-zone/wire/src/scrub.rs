//! What the agent orders of the broker, and the broker of a scrub worker, when memory has to be
//! cleared; and what comes back.

use std::path::PathBuf;

use gpuzone_core::{GpuUuid, LeaseId, MemoryBytes};
use serde::{Deserialize, Serialize};

use crate::control::Driver;

/// The only argument of a worker that scrubs instead of serving a lease. Its orders come as one
/// line on standard input; when that closes, nobody waits for it any more and it ends.
pub const SCRUB_ARGUMENT: &str = "--scrub";

/// The inherited file descriptor of a scrub worker's listening socket for turns, if
/// [`ScrubSpec::arbitrated`].
pub const SCRUB_TURNS_FD: i32 = 3;

/// Clear what is free on these GPUs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubOrder {
    /// The lease that ended, or a fresh identifier when no lease did.
    pub lease: LeaseId,
    /// Where.
    pub gpus: Vec<ScrubGpu>,
    /// How many bytes of each GPU are read back and compared: all, if it has no more free.
    pub sample: MemoryBytes,
    /// How long it may take, in milliseconds.
    pub limit_ms: u64,
}

/// What is to be cleared on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubGpu {
    /// Which.
    pub gpu: GpuUuid,
    /// Its memory as the inventory has it.
    pub memory: MemoryBytes,
    /// What the lease gave back, which has to be free.
    pub at_least: MemoryBytes,
    /// What no other lease may ask for, so that it may be held for a moment.
    pub at_most: MemoryBytes,
}

/// A scrub worker's orders.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubSpec {
    /// What to do.
    pub order: ScrubOrder,
    /// The libraries to open.
    pub cuda_library: PathBuf,
    /// As above.
    pub nvml_library: PathBuf,
    /// Whether it takes turns with the leases that run on its GPUs.
    #[serde(default)]
    pub arbitrated: bool,
}

impl ScrubSpec {
    /// The orders of a worker over this driver, which takes turns.
    pub fn new(order: ScrubOrder, driver: &Driver) -> Self {
        let Driver { cuda_library, nvml_library, environment: _ } = driver.clone();
        Self { order, cuda_library, nvml_library, arbitrated: true }
    }
}

/// What was done on a GPU; a scrub worker writes a JSON array of these to its standard output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubReport {
    /// Which.
    pub gpu: GpuUuid,
    /// Bytes that were overwritten.
    pub overwritten: MemoryBytes,
    /// Bytes of those that were read back and compared.
    pub compared: MemoryBytes,
    /// Free bytes that were left alone, because other leases may ask for them at any moment.
    pub left: MemoryBytes,
    /// How it was done.
    pub method: String,
    /// How long it took.
    pub nanoseconds: u64,
    /// Why it is not proven that the memory is clear; `None` when it is.
    pub failure: Option<String>,
}
