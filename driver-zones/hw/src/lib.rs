//! Discovery of GPUs, and what is done to devices: NVML and sysfs, by path.
//!
//! ```text
//! library's path ──NvmlLibrary::open──▶ inventory (what is there)
//! sysfs' root ───────────────────────┘   mig_layout, links (how it is cut, and joined)
//!                                        gpu_use   (who uses it, and how much)
//!                                        condition (how it is)
//!                                        events    (what happens to it)
//! sysfs' root ──SysfsRoot::functions──▶ PciFunction (what sysfs shows, cards of all vendors)
//!       └───────Devices::bind & co.───▶ the kernel's files, MIG instances: journaled
//! /dev/vfio ────vfio::VfioDevice──────▶ regions, DMA, tokens, resets
//!                      └── turnover ──▶ clear for the next tenant, or condemned
//! ```
//!
//! The same code opens NVIDIA's library and the simulated one; the caller says which of
//! them it means, and a GPU that turns out to be the other is an error.
//!
//! Architecture invariant: no type of NVML's binding leaves this crate; `unsafe` stands in
//! `vfio::sys`, where the kernel is spoken to, and in `mig::sys`, where NVML is, only.
#![deny(unsafe_code)]

pub mod actions;
pub mod alias;
mod condition;
mod error;
mod events;
pub mod fuzz;
mod holders;
mod inventory;
mod library;
pub mod line;
mod mig;
pub mod pci;
mod ready;
mod sysfs;
pub mod turnover;
mod usage;
pub mod vfio;

pub use condition::{Condition, RecoveryAction};
pub use error::{DiscoverError, OpenError, QueryError, UseError};
pub use events::{DeviceEvent, EventsError, GpuEvents};
pub use holders::{Holder, ProcRoot};
pub use inventory::{Discovered, NvLink};
pub use library::NvmlLibrary;
pub use mig::{
    ComputeInstance, GpuInstance, LeftOut, MigDriver, MigError, MigKind, MigLayout, MigListing,
    MigPlace, MigPlacement, MigStep,
};
pub use ready::{NotReady, VfioFunction};
pub use sysfs::SysfsRoot;
pub use usage::{GpuUse, ProcessUse};
