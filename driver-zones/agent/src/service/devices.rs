//! The node's PCI functions, in messages.

use std::sync::Arc;

use gpuzone_api::AgentError;
use gpuzone_api::agent::v1 as proto;
use gpuzone_core::devices::ResetMethod;
use gpuzone_hw::pci::{Bar, BarSpace, MdevType, PciFunction, Sriov, VendorVgpu, VfProfile};
use gpuzone_hw::vfio::{DevRoot, Interface};

use super::cut;
use crate::errors::internal;
use crate::gpus::Gpus;

/// What sysfs shows now.
pub(super) async fn listed(gpus: Arc<Gpus>) -> Result<proto::ListDevicesReply, AgentError> {
    let look = move || {
        let cards = gpus.cards().map_err(|error| internal(error.to_string()))?;
        let devices = cards.iter().map(|function| device(function, &gpus)).collect();
        let offered = [Interface::Group, Interface::Iommufd].into_iter();
        let offered = offered.filter(|interface| interface.is_offered(&DevRoot::default()));
        let vfio_interfaces = offered.map(|interface| interface.to_string()).collect();
        let gpus = cut::of_driver(&gpus);
        Ok(proto::ListDevicesReply { devices, vfio_interfaces, gpus })
    };
    // A driver that is busy keeps its own thread waiting.
    let looked = tokio::task::spawn_blocking(look).await;
    looked.map_err(|error| internal(error.to_string()))?
}

fn texts<T: ToString>(of: &[T]) -> Vec<String> {
    of.iter().map(T::to_string).collect()
}

fn device(function: &PciFunction, gpus: &Gpus) -> proto::Device {
    let known = gpus.inventory().gpus().iter().find(|gpu| gpu.pci == function.address);
    let known = known.filter(|gpu| gpu.backing == gpuzone_core::GpuBacking::Physical);
    let members = function.group.as_ref().map(|group| texts(&group.members));
    proto::Device {
        address: function.address.to_string(),
        kind: function.kind.as_str().to_owned(),
        name: function.name(),
        vendor_id: function.vendor.into(),
        device_id: function.device.into(),
        class: function.class,
        numa_node: function.numa_node,
        driver: function.driver.clone(),
        driver_override: function.driver_override.clone(),
        bars: function.bars.iter().map(bar).collect(),
        iommu_group: function.group.as_ref().map(|group| group.number),
        group_members: members.unwrap_or_default(),
        companions: texts(&function.companions),
        reset_methods: texts::<ResetMethod>(&function.reset_methods),
        sriov: function.sriov.as_ref().map(sriov),
        physical_function: function.physical.map(|address| address.to_string()),
        mdev_types: function.mdev_types.iter().map(mdev_type).collect(),
        mdevs: texts(&function.mdevs),
        vgpu: function.vgpu.as_ref().map(vgpu),
        vfio_device: function.vfio_device.clone(),
        gpu_uuid: known.map(|gpu| gpu.uuid.to_string()),
    }
}

fn bar(bar: &Bar) -> proto::Bar {
    let space = match bar.space {
        BarSpace::Io => "io",
        BarSpace::Memory { prefetchable: false, .. } => "memory",
        BarSpace::Memory { prefetchable: true, .. } => "prefetchable",
    };
    proto::Bar { index: bar.index.into(), size_bytes: bar.size, space: space.to_owned() }
}

fn sriov(sriov: &Sriov) -> proto::Sriov {
    let profile = |profile: &VfProfile| proto::VfProfile {
        vf: profile.vf,
        exec_quantum_ms: profile.exec_quantum_ms,
        preempt_timeout_us: profile.preempt_timeout_us,
        priority: profile.priority.clone(),
        memory_bytes: profile.memory.map(gpuzone_core::MemoryBytes::get),
    };
    proto::Sriov {
        total: sriov.total,
        enabled: sriov.enabled,
        functions: texts(&sriov.functions),
        profiles: sriov.profiles.iter().map(profile).collect(),
    }
}

fn mdev_type(of: &MdevType) -> proto::MdevType {
    let MdevType { id, name, description, available } = of.clone();
    proto::MdevType { id, name, description, available }
}

fn vgpu(vgpu: &VendorVgpu) -> proto::VendorVgpu {
    let creatable = vgpu.creatable.iter().cloned();
    let creatable = creatable.map(|of| proto::VgpuType { id: of.id, name: of.name }).collect();
    proto::VendorVgpu { current: vgpu.current, creatable }
}
