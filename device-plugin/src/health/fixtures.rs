//! What the tests of several modules begin with.

use gpuzone_crds::GpuEntry;

/// A GPU as the GpuNode has it; out for this cause, if there is one.
pub(super) fn gpu(index: u32, cause: Option<&str>, needs_operator: bool) -> GpuEntry {
    GpuEntry {
        uuid: format!("GPU-{index}"),
        index,
        model: "H200".into(),
        memory_bytes: 1,
        compute_capability: "9.0".into(),
        numa_node: None,
        nvlink_peers: Vec::new(),
        mig_capable: false,
        simulated: false,
        exposure: Default::default(),
        partitions: Vec::new(),
        healthy: cause.is_none(),
        reason: cause.map(|cause| format!("because of {cause}")),
        cause: cause.map(str::to_owned),
        needs_operator,
    }
}
