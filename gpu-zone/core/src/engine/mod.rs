//! The placement engine: which GPUs of a node a pod gets, and which node serves the cluster best.
//!
//! ```text
//! PodDemand ──fit(node)──▶ Choice (GPUs, memory, share) or Reason
//!     │         └─place(policy, node)──▶ Placed { choice, score } ──rank_scores──▶ 0..=10
//!     └─observe──▶ WorkloadMix ──mix──▶ Mix (what is likely to be asked for next)
//! ```
//!
//! Everything is a plain function of its arguments. Amounts are exact: memory in bytes, time in
//! thousandths of a GPU; a pod is on a GPU only when both have room.

mod board;
mod demand;
mod fit;
mod gaps;
mod lack;
mod mix;
mod model;
mod outlook;
mod policy;
mod rank;
mod room;

pub use board::{Board, Verdict};
pub use demand::{Amount, Demand, HostDemand, MemoryAsk, PodDemand, Topology};
pub use fit::{Choice, Given, Reason, fit};
pub use lack::{Lack, lack};
pub use mix::{Mix, MixClass, WorkloadMix};
pub use model::{ModelClass, ModelSet, ModelTable, TooManyModels};
pub use policy::{InvalidPolicy, Placed, Policy, Score, place};
pub use rank::{BEST_RANK, rank_scores};
pub use room::{GpuKind, GpuRoom, HostRoom, NodeRoom, ShareMilli, Taken, TooManyGpus};
