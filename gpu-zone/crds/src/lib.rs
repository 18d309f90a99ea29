//! gpu-zone's objects in Kubernetes.
//!
//! A crate of its own because of what it stands on: whoever only speaks to the agent need not
//! build a Kubernetes client.
#![forbid(unsafe_code)]

mod gpu_node;
mod gpu_quota;
mod yaml;

pub use gpu_node::{
    GpuEntry, GpuNode, GpuNodeSpec, GpuNodeStatus, MOST_GPUS, MOST_PROFILES, PartitionEntry,
    inventory_version,
};
pub use gpu_quota::{
    Amounts, Defaults, ExposureLimit, GpuQuota, GpuQuotaSpec, GpuQuotaStatus, InvalidQuota,
    ModelLimit, PodDefaults,
};
pub use yaml::{Manifest, YamlError, manifests};
