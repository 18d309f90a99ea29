//! `gpu-zone gpus --all`: every function that is a GPU or goes with one, as a tree.

use std::collections::{BTreeMap, BTreeSet};

use gpuzone_api::AgentClient;
use gpuzone_api::agent::v1::{Bar, Device, DriverGpu, ListDevicesReply, ListDevicesRequest};
use gpuzone_api::agent::v1::{MdevType, Sriov, VendorVgpu, VfProfile};
use gpuzone_ledger::printable;
use serde_json::{Value, json};

use crate::arguments::Format;
use crate::commands::{Context, answer, cut};
use crate::error::CliError;
use crate::output;

pub(crate) async fn all(context: &Context, agent: &mut AgentClient) -> Result<(), CliError> {
    let reply = answer(agent.list_devices(ListDevicesRequest {}).await)?;
    match context.format {
        Format::Table | Format::Csv => output::print(&tree(&reply)),
        Format::Json => output::print_json(&json!({
            "devices": reply.devices.iter().map(value).collect::<Vec<Value>>(),
            "gpus": reply.gpus.iter().map(cut::value).collect::<Vec<Value>>(),
            "vfio_interfaces": reply.vfio_interfaces,
        })),
    }
}

fn value(device: &Device) -> Value {
    let profile = |of: &VfProfile| {
        json!({
            "vf": of.vf,
            "exec_quantum_ms": of.exec_quantum_ms,
            "preempt_timeout_us": of.preempt_timeout_us,
            "priority": of.priority,
            "memory_bytes": of.memory_bytes,
        })
    };
    let sriov = |of: &Sriov| {
        json!({
            "total": of.total,
            "enabled": of.enabled,
            "functions": of.functions,
            "profiles": of.profiles.iter().map(profile).collect::<Vec<_>>(),
        })
    };
    let mdev = |of: &MdevType| {
        json!({
            "id": of.id,
            "name": of.name,
            "description": of.description,
            "available": of.available,
        })
    };
    let vgpu = |of: &VendorVgpu| {
        let types = of.creatable.iter().map(|of| json!({ "id": of.id, "name": of.name }));
        json!({ "current": of.current, "creatable": types.collect::<Vec<_>>() })
    };
    let bar =
        |of: &Bar| json!({ "index": of.index, "size_bytes": of.size_bytes, "space": of.space });
    json!({
        "address": device.address,
        "kind": device.kind,
        "name": device.name,
        "vendor_id": format!("{:04x}", device.vendor_id),
        "device_id": format!("{:04x}", device.device_id),
        "class": format!("{:06x}", device.class),
        "numa_node": device.numa_node,
        "driver": device.driver,
        "driver_override": device.driver_override,
        "bars": device.bars.iter().map(bar).collect::<Vec<_>>(),
        "iommu_group": device.iommu_group,
        "group_members": device.group_members,
        "companions": device.companions,
        "reset_methods": device.reset_methods,
        "sriov": device.sriov.as_ref().map(sriov),
        "physical_function": device.physical_function,
        "mdev_types": device.mdev_types.iter().map(mdev).collect::<Vec<_>>(),
        "mdevs": device.mdevs,
        "vgpu": device.vgpu.as_ref().map(vgpu),
        "vfio_device": device.vfio_device,
        "gpu_uuid": device.gpu_uuid,
    })
}

fn tree(reply: &ListDevicesReply) -> String {
    if reply.devices.is_empty() && reply.gpus.is_empty() {
        return "The machine has no PCI function that is a GPU, and none that goes with one.\n"
            .to_owned();
    }
    let by: BTreeMap<&str, &Device> =
        reply.devices.iter().map(|device| (device.address.as_str(), device)).collect();
    let below = below(&reply.devices);
    let roots = reply.devices.iter().filter(|device| !below.contains(device.address.as_str()));
    let kinds: BTreeMap<&str, &str> =
        reply.devices.iter().map(|of| (of.address.as_str(), of.kind.as_str())).collect();
    let mut text = String::new();
    for root in roots {
        let driver_gpu = reply.gpus.iter().find(|gpu| root.gpu_uuid.as_ref() == Some(&gpu.uuid));
        let mut below = details(root, &by);
        below.extend(driver_gpu.into_iter().flat_map(|gpu| cut::branches(gpu, &kinds)));
        text.push_str(&format!("{}\n{}", line(root), branches("", &below)));
    }
    // Simulated ones are at no address of the machine.
    let has =
        |gpu: &&DriverGpu| reply.devices.iter().all(|of| of.gpu_uuid.as_ref() != Some(&gpu.uuid));
    for gpu in reply.gpus.iter().filter(has) {
        let DriverGpu { address, name, backing, uuid, .. } = gpu;
        let root = printable(&format!("{address} gpu {name}: {backing}, {uuid}"));
        text.push_str(&format!("{root}\n{}", branches("", &cut::branches(gpu, &kinds))));
    }
    let interfaces = match reply.vfio_interfaces.as_slice() {
        [] => "VFIO is not to be had: load vfio-pci, and turn the IOMMU on".to_owned(),
        some => format!("VFIO by {}", some.join(" and ")),
    };
    format!("{text}\n{interfaces}.\n")
}

/// What stands below another: virtual functions, and what goes with a function.
fn below(devices: &[Device]) -> BTreeSet<&str> {
    let virtuals = devices.iter().filter(|device| device.physical_function.is_some());
    let virtuals = virtuals.map(|device| device.address.as_str());
    let companions = devices.iter().flat_map(|device| device.companions.iter());
    virtuals.chain(companions.map(String::as_str)).collect()
}

fn line(device: &Device) -> String {
    let driver = device.driver.as_deref().unwrap_or("no driver");
    let group =
        device.iommu_group.map_or_else(|| "no IOMMU".to_owned(), |of| format!("group {of}"));
    let node = device.numa_node.map_or_else(String::new, |node| format!(", node {node}"));
    let uuid = device.gpu_uuid.as_deref().map_or_else(String::new, |uuid| format!(", {uuid}"));
    let Device { address, kind, name, .. } = device;
    printable(&format!("{address} {kind} {name}: {driver}, {group}{node}{uuid}"))
}

/// A line of a tree, and those below it.
pub(super) struct Branch(pub(super) String, pub(super) Vec<Branch>);

pub(super) fn leaf(text: String) -> Branch {
    Branch(printable(&text), Vec::new())
}

fn details(device: &Device, by: &BTreeMap<&str, &Device>) -> Vec<Branch> {
    let mut branches = Vec::new();
    if !device.bars.is_empty() {
        let bars = device.bars.iter().map(|bar| format!("{} {}", bar.index, size(bar.size_bytes)));
        branches.push(leaf(format!("BARs: {}", bars.collect::<Vec<_>>().join(", "))));
    }
    let resets = match device.reset_methods.as_slice() {
        [] => "resets: none".to_owned(),
        some => format!("resets: {}", some.join(", ")),
    };
    branches.push(leaf(resets));
    let others = device.group_members.iter().filter(|member| **member != device.address);
    let others: Vec<&str> = others.map(String::as_str).collect();
    if !others.is_empty() {
        branches.push(leaf(format!("in one IOMMU group with {}", others.join(", "))));
    }
    if let Some(only) = &device.driver_override {
        branches.push(leaf(format!("only for the driver {only}")));
    }
    for companion in device.companions.iter().filter_map(|at| by.get(at.as_str())) {
        branches.push(leaf(line(companion)));
    }
    branches.extend(device.sriov.as_ref().map(|sriov| functions(sriov, by)));
    branches.extend(device.vgpu.as_ref().map(vgpu));
    branches.extend(device.mdev_types.iter().map(mdev));
    branches.extend(device.mdevs.iter().map(|uuid| leaf(format!("mediated device {uuid}"))));
    branches
}

fn functions(sriov: &Sriov, by: &BTreeMap<&str, &Device>) -> Branch {
    let of = sriov.functions.iter().zip(1_u32..).map(|(address, number)| {
        let device = by.get(address.as_str());
        let text = device.map_or_else(|| address.clone(), |device| line(device));
        let mut below = device
            .map_or_else(Vec::new, |device| device.vgpu.as_ref().map(vgpu).into_iter().collect());
        let profile = sriov.profiles.iter().find(|profile| profile.vf == number);
        below.extend(profile.map(limits));
        Branch(printable(&text), below)
    });
    Branch(format!("virtual functions: {} of {}", sriov.enabled, sriov.total), of.collect())
}

fn limits(profile: &VfProfile) -> Branch {
    let parts = [
        profile.exec_quantum_ms.map(|of| format!("turns of {of} ms")),
        profile.preempt_timeout_us.map(|of| format!("stopped after {of} µs")),
        profile.priority.as_ref().map(|of| format!("priority {of}")),
        profile.memory_bytes.map(size),
    ];
    leaf(parts.into_iter().flatten().collect::<Vec<_>>().join(", "))
}

fn vgpu(vgpu: &VendorVgpu) -> Branch {
    let now = vgpu.current.map_or_else(|| "none".to_owned(), |id| format!("type {id}"));
    let types = vgpu.creatable.iter().map(|of| leaf(format!("can be {} {}", of.id, of.name)));
    Branch(format!("vendor's vGPU: {now}"), types.collect())
}

fn mdev(of: &MdevType) -> Branch {
    let name = of.name.as_deref().filter(|name| *name != of.id);
    let name = name.map_or_else(String::new, |name| format!(" ({name})"));
    leaf(format!("mediated devices {}{name}: {} more", of.id, of.available))
}

pub(super) fn branches(indent: &str, all: &[Branch]) -> String {
    let mut text = String::new();
    for (index, Branch(line, below)) in all.iter().enumerate() {
        let last = index + 1 == all.len();
        let (fork, trunk) = if last { ("└─", "  ") } else { ("├─", "│ ") };
        text.push_str(&format!("{indent}{fork} {line}\n"));
        text.push_str(&branches(&format!("{indent}{trunk} "), below));
    }
    text
}

/// In the largest unit that shows it whole: BARs are powers of two.
fn size(bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let fits =
        units.iter().find(|(shift, _)| bytes >= 1 << shift && bytes.is_multiple_of(1 << shift));
    fits.map_or_else(|| format!("{bytes} B"), |(shift, unit)| format!("{} {unit}", bytes >> shift))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpuzone_api::agent::v1::VgpuType;

    #[test]
    fn a_tree_has_each_function_once_and_no_control_characters() {
        let device = |address: &str, kind: &str| Device {
            address: address.into(),
            kind: kind.into(),
            name: "NVIDIA GH100\u{1b}[2J".into(),
            iommu_group: Some(12),
            ..Device::default()
        };
        let card = Device {
            companions: vec!["0000:3b:00.1".into()],
            group_members: vec!["0000:3b:00.0".into(), "0000:3b:00.1".into()],
            bars: vec![Bar { index: 2, size_bytes: 128 << 30, space: "prefetchable".into() }],
            reset_methods: vec!["flr".into(), "bus".into()],
            sriov: Some(Sriov {
                total: 16,
                enabled: 1,
                functions: vec!["0000:3b:00.4".into()],
                profiles: vec![VfProfile {
                    vf: 1,
                    exec_quantum_ms: Some(10),
                    ..VfProfile::default()
                }],
            }),
            mdev_types: vec![MdevType {
                id: "nvidia-35".into(),
                available: 2,
                ..MdevType::default()
            }],
            driver: Some("nvidia".into()),
            ..device("0000:3b:00.0", "gpu")
        };
        let vf = Device {
            physical_function: Some("0000:3b:00.0".into()),
            vgpu: Some(VendorVgpu {
                current: Some(1147),
                creatable: vec![VgpuType { id: 1148, name: "NVIDIA L40S-2B".into() }],
            }),
            ..device("0000:3b:00.4", "gpu")
        };
        let devices = vec![card, device("0000:3b:00.1", "audio"), vf];
        let vfio_interfaces = vec!["group".into()];
        let shown = tree(&ListDevicesReply { devices, vfio_interfaces, gpus: Vec::new() });
        let expected = "\
0000:3b:00.0 gpu NVIDIA GH100\\u{1b}[2J: nvidia, group 12
├─ BARs: 2 128 GiB
├─ resets: flr, bus
├─ in one IOMMU group with 0000:3b:00.1
├─ 0000:3b:00.1 audio NVIDIA GH100\\u{1b}[2J: no driver, group 12
├─ virtual functions: 1 of 16
│  └─ 0000:3b:00.4 gpu NVIDIA GH100\\u{1b}[2J: no driver, group 12
│     ├─ vendor's vGPU: type 1147
│     │  └─ can be 1148 NVIDIA L40S-2B
│     └─ turns of 10 ms
└─ mediated devices nvidia-35: 2 more

VFIO by group.
";
        assert_eq!(shown, expected, "{shown}");
        let nothing = tree(&ListDevicesReply::default());
        assert!(nothing.contains("no PCI function"), "{nothing}");
    }
}
