//! gpu-zone's device plugin: slots for pods, and the leases that appear in them.
//!
//! ```text
//!  kubelet ──Allocate────────────▶ door ──▶ slots (folders): a path, and nothing about a GPU
//!     │    ──PreStartContainer───▶ door ──▶ keeper ─┬─▶ podresources: who holds the slot?
//!     │                                             ├─▶ API server: that pod's placement
//!     │                                             └─▶ agent: the lease, in the slot's folder
//!     └─kubelet.sock made anew──▶ registrar: register again
//!  agent ────WatchGpus──────────▶ health ─┬─▶ door: the list of slots
//!                                         └─▶ API server: GpuNode, the node's events and condition
//! ```
//!
//! Architecture invariant: nothing is decided here from memory. Which pod holds a slot is the
//! kubelet's word, what that pod gets is the API server's, which leases there are is the agent's,
//! and whose folder a folder is stands on disk. A plugin that starts anew knows all it needs.
//!
//! The modules of decisions ([`claim`], [`keep`], [`answer`], [`choose`], [`handed`], [`registrar`]) do no
//! I/O; those around them ask and act.
#![forbid(unsafe_code)]

pub mod answer;
mod cdi;
pub mod choose;
pub mod claim;
pub mod config;
mod door;
pub mod handed;
mod health;
pub mod holders;
pub mod keep;
mod keeper;
mod kubelet;
mod links;
pub mod mig;
mod offers;
mod publish;
pub mod registrar;
mod run;
pub mod slots;
pub mod whole;

pub use cdi::CdiError;
pub use run::{RunError, run};
