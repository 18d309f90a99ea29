//! Traces of clusters, replayed through the very engine that the scheduler extender places with.
//!
//! A trace is two tables in the format of openb (see `docs/placement.md`): nodes, and pods in the
//! order in which they arrive. Replaying asks the [`gpuzone_core::engine`] for each pod, as
//! kube-scheduler would: filter, prioritize with ranks of 0 to 10, and a coin among the best.
#![forbid(unsafe_code)]

mod cluster;
mod plot;
mod run;
mod trace;

pub use cluster::{Host, Plain};
pub use plot::svg;
pub use run::{Figures, Outcome, Setting, TenantFigures, Ties, replay};
pub use trace::{Trace, TraceError, TracePod};
