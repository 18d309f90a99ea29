//! One process per lease: owns the CUDA contexts and holds the lease's limits.
//!
//! ```text
//! main thread: accepts at the slot's socket, sees tenants go, ends the process when it must
//!     └── session (a thread per tenant process): ring ─▶ spec's dispatch ─▶ driver
//!             all sessions charge one ledger: the lease's limits
//! ```
//!
//! Architecture invariant: nothing that a tenant sends decides anything unchecked, and a session
//! never reaches another session's objects: its tables are its own thread's.

pub mod account;
pub mod busy;
mod code;
pub mod driver;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod greetings;
pub mod harden;
pub mod host_room;
pub mod ledger;
mod log;
pub mod nvml;
mod pace;
pub mod prints;
mod roster;
pub mod scrub;
pub mod server;
pub mod session;
mod shared;
mod spare;
pub mod turns;
