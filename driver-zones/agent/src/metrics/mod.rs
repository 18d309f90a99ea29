//! What the agent tells Prometheus.
//!
//! ```text
//!  what happens ──▶ Counts ─────────────┐
//!  book, NVML, broker ──▶ Seen ──▶ page ┴▶ text ──▶ server ──▶ whoever scrapes
//! ```
//!
//! Label sets are bounded: GPUs, states, kinds and classes are what they are, and of tenants only
//! those that the configuration names and the first [`tenants::MOST`] others have series of their
//! own.
//!
//! Architecture invariant: the listener only reads. Nothing that it is sent is looked at beyond
//! the request line, and no more than a few connections are served at once.

mod classic;
mod counts;
mod listen;
mod page;
mod reason;
mod server;
mod source;
mod tenants;

pub use counts::{Counts, ScrubResult};
pub use listen::{BindError, InvalidListen, Listen};
pub(crate) use server::serve;
pub(crate) use source::Source;
pub(crate) use tenants::Used;
