//! What leases held and used, in a SQLite database: written by the agent, read by reports. And
//! what was granted, refused and done to GPUs, in an audit log beside it ([`AuditLog`]).
//!
//! ```text
//! begin_lease ─▶ record(now, counters so far) ─▶ … ─▶ end_lease(now)
//!                └ one transaction: the interval since the last record, and the counters
//! ```
//!
//! Invariant: the intervals of a lease join without gap or overlap from its start to the last
//! record, and their usage sums up to the largest counters that were recorded. So a record that
//! is lost or repeated (a crash on either side) loses or doubles nothing.
#![forbid(unsafe_code)]

mod audit;
mod records;
mod report;
mod schema;
mod store;

pub use audit::{
    AuditAppendError, AuditEntry, AuditEvent, AuditHash, AuditKind, AuditLog, AuditOpenError,
    Damage, DamageKind, Expected, ExportError, ExportFilter, Exporter, Head, InvalidHead, Opened,
    Verified, verify, verify_while,
};
pub use records::{GrantRecord, LeaseRecord};
pub use report::{
    Backing, By, Filter, LeaseRow, RenderError, Report, ReportError, TenantRow, TotalRow, Usage,
    printable, steers,
};
pub use schema::OpenError;
pub use store::{Ledger, WriteError};
