//! What the tests of several modules begin with.
#![allow(clippy::unwrap_used, reason = "only tests use it")]

use gpuzone_core::{ComputeCapability, Gpu, GpuBacking, GpuUuid, MemoryBytes};

/// A simulated GPU of 16 GiB, whose UUID is `number` over and over.
pub(crate) fn gpu(number: u8) -> Gpu {
    Gpu {
        uuid: GpuUuid::from_bytes([number; 16]),
        index: 0,
        name: "gpu-zone Simulated GPU".into(),
        pci: format!("0000:{number:02x}:00.0").parse().unwrap(),
        memory: MemoryBytes::gib(16),
        compute_capability: ComputeCapability { major: 9, minor: 0 },
        numa_node: None,
        nvlink_peers: Default::default(),
        mig_capable: false,
        backing: GpuBacking::Simulated,
    }
}
