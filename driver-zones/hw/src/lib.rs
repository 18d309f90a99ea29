//! Discovery of GPUs: NVML and sysfs, by path.
//!
//! ```text
//! library's path ──NvmlLibrary::open──▶ inventory (what is there)
//! sysfs' root ───────────────────────┘   gpu_use   (who uses it, and how much)
//!                                        condition (how it is)
//!                                        events    (what happens to it)
//! ```
//!
//! The same code opens NVIDIA's library and the simulated one; the caller says which of
//! them it means, and a GPU that turns out to be the other is an error.
//!
//! Architecture invariant: no type of NVML's binding leaves this crate.
#![forbid(unsafe_code)]

mod condition;
mod error;
mod events;
mod inventory;
mod library;
mod mig;
mod sysfs;
mod usage;
mod vfio;

pub use condition::{Condition, RecoveryAction};
pub use error::{DiscoverError, OpenError, QueryError, UseError};
pub use events::{DeviceEvent, EventsError, GpuEvents};
pub use inventory::Discovered;
pub use library::NvmlLibrary;
pub use mig::{LeftOut, MigListing};
pub use sysfs::SysfsRoot;
pub use usage::{GpuUse, ProcessUse};
pub use vfio::{NotReady, VfioFunction};
