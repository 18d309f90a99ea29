//! vGPUs, and which ways of using a GPU exclude each other.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "this file is a test crate"
)]

use std::collections::BTreeSet;

use gpuzone_core::devices::PartMode;
use gpuzone_core::{
    ComputeCapability, ComputeShare, Demand, Exposure, Gpu, GpuBacking, GpuUuid, Grant, Holdings,
    Inventory, LeaseEvent, LeaseId, MemoryBytes, NodeState, PciAddress, Placement, ReserveError,
    TenantQuota, TimeTerms, Vgpu, ZoneId, admit,
};

fn gpu(index: u8, gib: u64) -> Gpu {
    Gpu {
        uuid: GpuUuid::from_bytes([index; 16]),
        index: u32::from(index),
        name: "A16".into(),
        pci: PciAddress::new(0, index, 0, 0).unwrap(),
        memory: MemoryBytes::gib(gib),
        compute_capability: ComputeCapability { major: 8, minor: 6 },
        numa_node: Some(0),
        nvlink_peers: BTreeSet::new(),
        mig_capable: false,
        backing: GpuBacking::Physical,
    }
}

/// A GPU that is cut into vGPUs, two of a type.
fn cut_into_vgpus() -> NodeState {
    let whole = gpu(0, 16).uuid;
    let gpus = Inventory::new(vec![gpu(1, 24), gpu(0, 16)]).unwrap();
    let gpus = gpus.exposing([(whole, Exposure::Vgpu)].into());
    let vgpu = |number| Vgpu {
        uuid: whole.vgpu(number),
        gpu: whole,
        mode: PartMode::Mdev,
        kind: "nvidia-592".parse().unwrap(),
        memory: MemoryBytes::gib(4),
        share: ComputeShare::new(50).unwrap(),
    };
    NodeState::new(gpus.with_vgpus(vec![vgpu(0), vgpu(1)]).unwrap())
}

fn demand(gpu: GpuUuid, gib: u64, percent: u32) -> Demand {
    let share = ComputeShare::new(percent).unwrap();
    let grant = Grant { gpu, memory: MemoryBytes::gib(gib), share };
    let placement = Placement::of(vec![grant]).unwrap();
    Demand { tenant: "acme".parse().unwrap(), placement, time: TimeTerms::default() }
}

fn reserve_as(
    node: &mut NodeState,
    number: u128,
    exposure: Exposure,
    demand: Demand,
) -> Result<(), ReserveError> {
    let admission = admit(Some(&TenantQuota::default()), Holdings::default(), demand).unwrap();
    let id = LeaseId::from_uuid(uuid::Uuid::from_u128(number));
    let zone = ZoneId::from_uuid(uuid::Uuid::from_u128(number));
    node.reserve_as(id, zone, exposure, admission).map(drop)
}

#[test]
fn a_vgpu_is_one_leases_and_its_gpu_nobodys() {
    let mut node = cut_into_vgpus();
    let whole = gpu(0, 16).uuid;
    assert_eq!(node.free_memory(whole), Some(MemoryBytes::gib(8)));
    for (gpu, gib, percent, part) in [
        (whole, 16, 100, "is cut into vGPUs"),
        (gpu(1, 24).uuid, 24, 100, "is handed over as mediated"),
        (whole.vgpu(2), 4, 50, "is not on this node"),
        (whole.vgpu(0), 2, 50, "handed over whole: 4Gi and 50%"),
    ] {
        let said = reserve_as(&mut node, 1, Exposure::Vgpu, demand(gpu, gib, percent));
        let said = said.unwrap_err().to_string();
        assert!(said.contains(part), "{said} lacks {part}");
    }
    reserve_as(&mut node, 1, Exposure::Vgpu, demand(whole.vgpu(0), 4, 50)).unwrap();
    let twice = reserve_as(&mut node, 2, Exposure::Vgpu, demand(whole.vgpu(0), 4, 50));
    assert!(matches!(twice, Err(ReserveError::Taken { .. })), "{twice:?}");
    reserve_as(&mut node, 3, Exposure::Vgpu, demand(whole.vgpu(1), 4, 50)).unwrap();
    assert_eq!(node.free_memory(whole), Some(MemoryBytes::ZERO));
    // What ends is free again.
    let id = LeaseId::from_uuid(uuid::Uuid::from_u128(1));
    for event in [LeaseEvent::Drain, LeaseEvent::Drained, LeaseEvent::Scrubbed] {
        node.apply(id, event).unwrap();
    }
    reserve_as(&mut node, 4, Exposure::Vgpu, demand(whole.vgpu(0), 4, 50)).unwrap();
}

/// The configuration may change while leases go on: what is held excludes what the hardware cannot
/// be beside it, whatever the configuration says by then.
#[test]
fn a_lease_of_before_excludes_other_ways_of_its_gpu() {
    let whole = gpu(0, 16).uuid;
    let old = |exposure, gib, percent| {
        let gpus = Inventory::new(vec![gpu(0, 16)]).unwrap();
        let mut before = NodeState::new(gpus.exposing([(whole, exposure)].into()));
        reserve_as(&mut before, 9, exposure, demand(whole, gib, percent)).unwrap();
        before.leases().next().unwrap().clone()
    };
    for (exposure, gib, percent, mode) in
        [(Exposure::Mediated, 1, 5, "mediated"), (Exposure::Passthrough, 16, 100, "whole")]
    {
        let mut node = cut_into_vgpus();
        node.restore(old(exposure, gib, percent), exposure).unwrap();
        let vgpu = reserve_as(&mut node, 1, Exposure::Vgpu, demand(whole.vgpu(0), 4, 50));
        let said = vgpu.unwrap_err().to_string();
        assert!(said.contains(&format!("is in use as {mode} by a lease of before")), "{said}");
        // As soon as that is over, it is to be had.
        let id = LeaseId::from_uuid(uuid::Uuid::from_u128(9));
        for event in [LeaseEvent::Drain, LeaseEvent::Drained, LeaseEvent::Scrubbed] {
            node.apply(id, event).unwrap();
        }
        reserve_as(&mut node, 1, Exposure::Vgpu, demand(whole.vgpu(0), 4, 50)).unwrap();
    }
    // And the other way round: a vGPU that somebody has keeps the whole GPU from everybody.
    let mut cut = cut_into_vgpus();
    reserve_as(&mut cut, 1, Exposure::Vgpu, demand(whole.vgpu(0), 4, 50)).unwrap();
    let refused = cut.restore(old(Exposure::Passthrough, 16, 100), Exposure::Passthrough);
    assert!(matches!(refused, Err(ReserveError::Excluded { .. })), "{refused:?}");
    assert_eq!(cut.leases().count(), 1);
}

#[test]
fn vgpus_that_cannot_be_are_refused() {
    let whole = gpu(0, 16).uuid;
    let vgpu = |number: u32, gpu: GpuUuid, gib| Vgpu {
        uuid: whole.vgpu(number),
        gpu,
        mode: PartMode::Vf,
        kind: "x".parse().unwrap(),
        memory: MemoryBytes::gib(gib),
        share: ComputeShare::new(25).unwrap(),
    };
    let other = gpu(1, 24).uuid;
    for (vgpus, part) in [
        (vec![vgpu(0, other, 4)], "no GPU of this node that is handed over as vGPUs"),
        (vec![vgpu(0, whole, 4), vgpu(0, whole, 4)], "two GPUs have the UUID VGPU-"),
        (vec![vgpu(0, whole, 0)], "reports no memory"),
        ((0..5).map(|n| vgpu(n, whole, 4)).collect(), "more memory than it has together"),
    ] {
        let gpus = Inventory::new(vec![gpu(1, 24), gpu(0, 16)]).unwrap();
        let gpus = gpus.exposing([(whole, Exposure::Vgpu)].into());
        let said = gpus.with_vgpus(vgpus).unwrap_err().to_string();
        assert!(said.contains(part), "{said} lacks {part}");
    }
}
