//! Reports over the ledger: per tenant and per lease, for a stretch of time.
//!
//! An interval that is half inside the asked time counts in proportion: its usage is taken as
//! spread evenly over it. The parts are cut so that reports over adjoining times add up
//! exactly. A peak is that of the whole lease so far, since the driver zone keeps no other.

mod gather;
mod render;
mod text;

use std::collections::BTreeMap;

use gpuzone_core::{GpuBacking, LeaseId, MemoryBytes, TenantId, Timestamp};

pub use gather::ReportError;
pub(crate) use gather::gather;
pub use render::RenderError;
pub use text::{printable, steers};

/// What a report is about. What is left out does not restrict it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only this tenant.
    pub tenant: Option<TenantId>,
    /// From here.
    pub from: Option<Timestamp>,
    /// To here, exclusive.
    pub to: Option<Timestamp>,
}

/// What a row of a report stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// All leases of a tenant.
    Tenant,
    /// One lease.
    Lease,
}

/// What kind of GPUs a row's usage is of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backing {
    /// No lease, so no GPU.
    #[default]
    None,
    /// Hardware only.
    Physical,
    /// Simulated GPUs only.
    Simulated,
    /// Both.
    Mixed,
}

impl Backing {
    /// The word in reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Physical => "physical",
            Self::Simulated => "simulated",
            Self::Mixed => "mixed",
        }
    }

    /// Whether a simulated GPU is in it.
    pub const fn any_simulated(self) -> bool {
        match self {
            Self::Simulated | Self::Mixed => true,
            Self::None | Self::Physical => false,
        }
    }

    /// The backing of both together.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::None, backing) | (backing, Self::None) => backing,
            (Self::Physical, Self::Physical) => Self::Physical,
            (Self::Simulated, Self::Simulated) => Self::Simulated,
            (Self::Physical | Self::Simulated | Self::Mixed, _) => Self::Mixed,
        }
    }
}

impl From<GpuBacking> for Backing {
    fn from(backing: GpuBacking) -> Self {
        match backing {
            GpuBacking::Physical => Self::Physical,
            GpuBacking::Simulated => Self::Simulated,
        }
    }
}

/// What was held and used. Every part but the peak is a sum, and wide enough never to overflow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Number of leases.
    pub leases: u128,
    /// Time that the leases lasted, added up, in nanoseconds.
    pub lease_nanoseconds: u128,
    /// GPU time set aside: time times share, over all grants, in nanoseconds of a whole GPU.
    pub reserved_gpu_nanoseconds: u128,
    /// Memory set aside times time, over all grants, in byte-seconds.
    pub reserved_byte_seconds: u128,
    /// Used memory times time, in MiB-milliseconds.
    pub used_mib_milliseconds: u128,
    /// The largest amount of memory that one lease used at once.
    pub peak_used: MemoryBytes,
    /// Time in which a GPU worked, in nanoseconds.
    pub busy_nanoseconds: u128,
    /// Kernels launched.
    pub launches: u128,
    /// Bytes copied to a device.
    pub bytes_to_device: u128,
    /// Bytes copied from a device.
    pub bytes_from_device: u128,
    /// Bytes copied within devices.
    pub bytes_on_device: u128,
    /// Allocations refused at a lease's limit.
    pub refused_memory: u128,
    /// Calls refused because they are not supported.
    pub refused_calls: u128,
    /// Requests that got no lease.
    pub refused_leases: u128,
}

impl Usage {
    /// The sum of both; the peak is the larger one.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        let lease_nanoseconds = self.lease_nanoseconds + other.lease_nanoseconds;
        Self {
            leases: self.leases + other.leases,
            lease_nanoseconds,
            reserved_gpu_nanoseconds: self.reserved_gpu_nanoseconds
                + other.reserved_gpu_nanoseconds,
            reserved_byte_seconds: self.reserved_byte_seconds + other.reserved_byte_seconds,
            used_mib_milliseconds: self.used_mib_milliseconds + other.used_mib_milliseconds,
            peak_used: self.peak_used.max(other.peak_used),
            busy_nanoseconds: self.busy_nanoseconds + other.busy_nanoseconds,
            launches: self.launches + other.launches,
            bytes_to_device: self.bytes_to_device + other.bytes_to_device,
            bytes_from_device: self.bytes_from_device + other.bytes_from_device,
            bytes_on_device: self.bytes_on_device + other.bytes_on_device,
            refused_memory: self.refused_memory + other.refused_memory,
            refused_calls: self.refused_calls + other.refused_calls,
            refused_leases: self.refused_leases + other.refused_leases,
        }
    }

    /// Memory that a lease used on average while it lasted, in bytes; no more than the peak,
    /// which rounding of short times could make it seem.
    pub fn mean_used(&self) -> MemoryBytes {
        let byte_nanoseconds = (self.used_mib_milliseconds << 20) * 1_000_000;
        let mean = byte_nanoseconds.checked_div(self.lease_nanoseconds).unwrap_or(0);
        MemoryBytes::saturating(u64::try_from(mean).unwrap_or(u64::MAX)).min(self.peak_used)
    }
}

/// One tenant in a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantRow {
    /// Who.
    pub tenant: TenantId,
    /// On what kind of GPUs.
    pub backing: Backing,
    /// Over all of the tenant's leases.
    pub usage: Usage,
}

/// One lease in a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseRow {
    /// Which.
    pub lease: LeaseId,
    /// Who pays.
    pub tenant: TenantId,
    /// What ran; the tenant's own text.
    pub program: String,
    /// On what kind of GPUs.
    pub backing: Backing,
    /// Indices of the GPUs.
    pub gpus: Vec<u32>,
    /// When it began.
    pub start: Timestamp,
    /// When it ended; `None` while it lasts.
    pub end: Option<Timestamp>,
    /// Why it ended.
    pub end_reason: Option<String>,
    /// What it used in the asked time.
    pub usage: Usage,
    /// Unsupported calls by name, in the asked time.
    pub refused_by_name: BTreeMap<String, u128>,
}

/// What was held and used in a stretch of time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What was asked for.
    pub filter: Filter,
    /// By name.
    pub tenants: Vec<TenantRow>,
    /// By beginning.
    pub leases: Vec<LeaseRow>,
}

impl Report {
    /// Over all tenants.
    pub fn total(&self) -> TotalRow {
        self.tenants.iter().fold(TotalRow::default(), |total, row| TotalRow {
            backing: total.backing.and(row.backing),
            usage: total.usage.plus(&row.usage),
        })
    }
}

/// The sum of a report's rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TotalRow {
    /// On what kind of GPUs.
    pub backing: Backing,
    /// The sum.
    pub usage: Usage,
}
