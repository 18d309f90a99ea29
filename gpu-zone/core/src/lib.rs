//! The domain of gpu-zone: the words that every other crate speaks.
//!
//! Architecture invariant: no I/O, no clock, no async, no `unsafe`. Time comes in
//! as [`Timestamp`]s, identifiers come in as UUIDs, and every decision is a plain
//! function of its arguments, so that it can be tested without a node.
//!
//! ```text
//! Request ──Inventory──▶ Demand ──admit(quota, holdings)──▶ Admission
//!    └──────NodeState::place──▶ Placement ──NodeState::reserve(admission)──▶ lease
//! ```
#![forbid(unsafe_code)]

mod cluster_quota;
pub mod devices;
pub mod engine;
mod exposure;
mod health;
mod ids;
mod inventory;
mod judge;
mod lease;
mod mig;
mod node;
mod placement;
mod quota;
mod request;
mod time_terms;
mod units;
mod usage;
mod vgpu;

pub use cluster_quota::{ClusterQuota, ClusterTerms, Counted, Limits, OverClusterQuota, Under};
pub use exposure::{Exposure, InvalidExposure};
pub use health::{
    Cause, GpuHealth, GpuWatch, HealthTerms, Level, Noted, Recovered, Signal, Xid, XidClass,
    XidEntry,
};
pub use ids::{
    GpuUuid, InvalidId, InvalidToken, LeaseId, PciAddress, TenantId, VfToken, ZoneId, ZoneName,
};
pub use inventory::{ComputeCapability, Gpu, GpuBacking, Inventory, InventoryError, Part, Unit};
pub use lease::{IllegalTransition, LeaseEvent, LeaseState};
pub use mig::{InvalidMigProfile, MigInstance, MigProfile, mig_share};
pub use node::{ApplyError, Lease, NodeState, ReserveError, UnknownLease};
pub use placement::{Grant, InvalidPlacement, Placement, PlacementRefusal};
pub use quota::{Admission, Demand, Holdings, QuotaRefusal, TenantQuota, admit};
pub use request::{GpuCount, InvalidGpuCount, Request};
pub use time_terms::{CapBelowShare, InvalidPriority, Priority, TimeTerms};
pub use units::{ComputeShare, InvalidMemory, InvalidShare, MemoryBytes, Timestamp};
pub use usage::{Interval, UsageCounters};
pub use vgpu::{InvalidVgpuType, Vgpu, VgpuType};
