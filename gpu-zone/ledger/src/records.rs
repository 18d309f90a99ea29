use gpuzone_core::{GpuBacking, Grant, LeaseId, TenantId, Timestamp, ZoneId};

/// A lease, as it is written down when it begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseRecord {
    /// Its identifier.
    pub id: LeaseId,
    /// Who pays.
    pub tenant: TenantId,
    /// The workload zone that uses it.
    pub zone: ZoneId,
    /// What runs; the tenant's own text, shown and never interpreted.
    pub program: String,
    /// What it holds.
    pub grants: Vec<GrantRecord>,
    /// From when on.
    pub start: Timestamp,
}

/// What a lease holds of one GPU, with what a report shows of the GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantRecord {
    /// Which GPU, how much memory, what share.
    pub grant: Grant,
    /// The GPU's index at that time.
    pub gpu_index: u32,
    /// Its product name.
    pub gpu_name: String,
    /// Hardware or simulator.
    pub backing: GpuBacking,
}
