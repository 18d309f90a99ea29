//! How the driver's GPUs are joined and cut, in messages.

use gpuzone_api::agent::v1 as proto;
use gpuzone_core::Gpu;
use gpuzone_hw::{GpuInstance, MigKind, MigLayout, MigPlacement, NvmlLibrary};

use crate::gpus::Gpus;

/// What the driver says now. While its library is opened anew, nothing.
pub(super) fn of_driver(gpus: &Gpus) -> Vec<proto::DriverGpu> {
    let Some(library) = gpus.library() else { return Vec::new() };
    let known = gpus.of_driver().filter_map(|uuid| gpus.inventory().gpu(uuid));
    known.map(|gpu| one(&library, gpu)).collect()
}

fn one(library: &NvmlLibrary, gpu: &Gpu) -> proto::DriverGpu {
    let links = library.links(gpu.uuid).unwrap_or_default().into_iter();
    let link = |link: gpuzone_hw::NvLink| proto::NvLink {
        number: link.number,
        remote: link.remote.map(|remote| remote.to_string()),
    };
    let (mig, mig_unknown) = match library.mig_layout(gpu.uuid) {
        Ok(found) => (found.as_ref().map(layout), String::new()),
        Err(error) => (None, error.to_string()),
    };
    proto::DriverGpu {
        uuid: gpu.uuid.to_string(),
        address: gpu.pci.to_string(),
        name: gpu.name.clone(),
        backing: gpu.backing.to_string(),
        links: links.map(link).collect(),
        mig,
        mig_unknown,
    }
}

fn layout(of: &MigLayout) -> proto::MigLayout {
    let kinds = of.kinds.iter().map(kind).collect();
    let instances = of.instances.iter().map(|instance| self::instance(instance, of)).collect();
    proto::MigLayout { enabled: of.enabled, kinds, instances }
}

fn kind(of: &MigKind) -> proto::MigKind {
    proto::MigKind {
        id: of.id,
        name: of.name.clone(),
        slices: of.slices,
        memory_bytes: of.memory.get(),
        most: of.most,
        placements: of.placements.iter().copied().map(placement).collect(),
    }
}

const fn placement(of: MigPlacement) -> proto::MigPlacement {
    proto::MigPlacement { start: of.start, size: of.size }
}

fn instance(of: &GpuInstance, layout: &MigLayout) -> proto::GpuInstance {
    let compute = |of: &gpuzone_hw::ComputeInstance| proto::ComputeInstance {
        number: of.number,
        slices: of.slices,
        uuid: of.uuid.map(|uuid| uuid.to_string()),
    };
    proto::GpuInstance {
        number: of.number,
        kind: of.kind,
        profile: layout.kind(of.kind).map(|kind| kind.name.clone()).unwrap_or_default(),
        placement: Some(placement(of.placement)),
        slices: of.slices,
        computes: of.computes.iter().map(compute).collect(),
        users: of.users.clone(),
    }
}
