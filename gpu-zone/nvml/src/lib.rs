//! The tenant's libnvidia-ml.so.1: what NVML has to say of a lease.
//!
//! ```text
//! program ─▶ api::* ─▶ State (the lease as it was a moment ago) ─▶ the slot's worker, one look
//! ```
//!
//! A lease is shown as if it were the node: its GPUs, its memory, its own processes. What would
//! change the device is not permitted. What is the card's and not the lease's (temperature,
//! power, clocks, errors) is not supported: it would tell what others do.
//!
//! Architecture invariant: nothing that a limit or another tenant's safety depends on is here.

mod api;
mod state;
mod stubs;
