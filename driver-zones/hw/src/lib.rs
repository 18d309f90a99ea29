//! Discovery of GPUs: NVML and sysfs, by path.
//!
//! ```text
//! library's path ──NvmlLibrary::open──▶ inventory (what is there)
//! sysfs' root ───────────────────────┘   gpu_use  (who uses it, and how much)
//! ```
//!
//! The same code opens NVIDIA's library and the simulated one; the caller says which of
//! them it means, and a GPU that turns out to be the other is an error.
//!
//! Architecture invariant: no type of NVML's binding leaves this crate.
#![forbid(unsafe_code)]

mod error;
mod inventory;
mod library;
mod sysfs;
mod usage;
mod vfio;

pub use error::{DiscoverError, OpenError, QueryError, UseError};
pub use library::NvmlLibrary;
pub use sysfs::SysfsRoot;
pub use usage::{GpuUse, ProcessUse};
pub use vfio::{NotReady, VfioFunction};
