//! gpu-zoned, the node agent: inventory, leases, journal, supervision.
//!
//! ```text
//!  client ──gRPC──▶ service ──▶ leases ──┬─▶ book (one thread) ─▶ journal
//!                                        ├─▶ broker link ──▶ broker ──▶ workers
//!                                        └─▶ usage, audit ──▶ ledger, audit log
//!  driver ──events, looks──▶ health ──────▶ leases (what a GPU may have)
//!  scraper ─HTTP─▶ metrics: counts, and a look at all of these
//! ```
//!
//! Architecture invariant: the agent holds nothing in memory that it needs after a crash. The
//! journal has the leases, the driver zone the workers, the ledger the usage; a new agent
//! compares them ([`leases::Leases::reconcile`]) and goes on.
#![forbid(unsafe_code)]

pub mod audit;
pub mod book;
pub mod broker;
pub mod config;
mod convert;
mod errors;
#[cfg(test)]
mod fixtures;
pub mod gpus;
mod health;
pub mod journal;
pub mod leases;
pub mod metrics;
pub mod passthrough;
pub mod placements;
mod run;
mod service;
pub mod supervise;
pub mod usage;
mod vf_token;

pub use run::{RunError, run};
