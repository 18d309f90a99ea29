//! What Allocate answers: pure functions from what a device is to what its container gets.

use std::collections::HashMap;
use std::path::Path;

use gpuzone_api::SLOT_VARIABLE;
use gpuzone_api::kubelet::v1beta1::{CdiDevice, ContainerAllocateResponse, DeviceSpec, Mount};

/// Where a container finds its slot.
pub const SLOT_IN_CONTAINER: &str = "/run/gpu-zone/slot";
/// Where a container finds our `libcuda.so.1`.
pub const LIBRARIES_IN_CONTAINER: &str = "/usr/local/gpu-zone/lib";
/// Where images look for the driver's libraries on their own; kept behind ours.
const USUAL_LIBRARIES: &str = "/usr/local/nvidia/lib:/usr/local/nvidia/lib64";
/// Kind of our CDI devices.
pub const CDI_KIND: &str = "gpuzone.dev/library";
/// The CDI device that is our library.
pub const CDI_CUDA: &str = "cuda";
/// What programs ask the loader for, and what they are linked with.
pub const LIBRARY_NAMES: [&str; 2] = ["libcuda.so.1", "libcuda.so"];

/// How a container gets our library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handover {
    /// The runtime reads the CDI specification that this plugin writes.
    Cdi,
    /// The kubelet passes mounts and variables.
    Mounts,
}

/// A container's environment: where its slot is, and where the loader looks first.
fn variables() -> HashMap<String, String> {
    let libraries = format!("{LIBRARIES_IN_CONTAINER}:{USUAL_LIBRARIES}");
    HashMap::from([
        (SLOT_VARIABLE.to_owned(), SLOT_IN_CONTAINER.to_owned()),
        ("LD_LIBRARY_PATH".to_owned(), libraries),
    ])
}

fn mount(host: &Path, container: String) -> Mount {
    // Read-only: a socket is connected to all the same, and a container fills no disk of the
    // node's.
    Mount { host_path: host.display().to_string(), container_path: container, read_only: true }
}

/// What a container with mediated slots gets: the folder where its lease will appear, and the
/// library that looks there. It is the same whichever pod it is.
pub fn mediated(folder: &Path, library: &Path, handover: Handover) -> ContainerAllocateResponse {
    let slot = mount(folder, SLOT_IN_CONTAINER.to_owned());
    match handover {
        Handover::Cdi => ContainerAllocateResponse {
            envs: variables(),
            mounts: vec![slot],
            cdi_devices: vec![CdiDevice { name: format!("{CDI_KIND}={CDI_CUDA}") }],
            ..Default::default()
        },
        Handover::Mounts => {
            let libraries = LIBRARY_NAMES
                .map(|name| mount(library, format!("{LIBRARIES_IN_CONTAINER}/{name}")));
            ContainerAllocateResponse {
                envs: variables(),
                mounts: std::iter::once(slot).chain(libraries).collect(),
                ..Default::default()
            }
        }
    }
}

/// The CDI specification (version 0.6.0) by which a runtime mounts our library.
pub fn cdi_spec(library: &Path) -> serde_json::Value {
    let host = library.display().to_string();
    let mounts = LIBRARY_NAMES.map(|name| {
        serde_json::json!({
            "hostPath": host,
            "containerPath": format!("{LIBRARIES_IN_CONTAINER}/{name}"),
            "options": ["ro", "nosuid", "nodev", "bind"],
        })
    });
    serde_json::json!({
        "cdiVersion": "0.6.0",
        "kind": CDI_KIND,
        "devices": [{ "name": CDI_CUDA, "containerEdits": { "mounts": mounts } }],
    })
}

/// A PCI function that a VM takes over by VFIO: a whole GPU, or a vGPU's virtual function or
/// mediated device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VfioDevice {
    /// Its IOMMU group, `/dev/vfio/<group>`.
    pub group: u32,
    /// Its name among CDI devices: the PCI address, or the mdev's UUID.
    pub name: String,
}

/// What a container with VFIO devices gets, as Kata expects it: the container node of VFIO, each
/// group's node once, and the CDI device of each. Kata finds the nodes in `/dev/vfio`, plugs the
/// functions into the VM, and needs to know nothing else.
pub fn vfio(kind: &str, devices: &[VfioDevice]) -> ContainerAllocateResponse {
    let mut groups: Vec<u32> = devices.iter().map(|device| device.group).collect();
    groups.sort_unstable();
    groups.dedup();
    let node = |path: String| DeviceSpec {
        container_path: path.clone(),
        host_path: path,
        permissions: "mrw".to_owned(),
    };
    let nodes = groups.into_iter().map(|group| node(format!("/dev/vfio/{group}")));
    let cdi = devices.iter().map(|device| CdiDevice { name: format!("{kind}={}", device.name) });
    ContainerAllocateResponse {
        devices: std::iter::once(node("/dev/vfio/vfio".to_owned())).chain(nodes).collect(),
        cdi_devices: cdi.collect(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_says_nothing_about_a_gpu() {
        let (folder, library) = (Path::new("/s/slot-3/1"), Path::new("/l/libgpuzone_cuda.so"));
        for handover in [Handover::Cdi, Handover::Mounts] {
            let answer = mediated(folder, library, handover);
            assert!(answer.devices.is_empty() && answer.annotations.is_empty());
            assert_eq!(answer.mounts[0].host_path, "/s/slot-3/1");
            assert!(answer.mounts.iter().all(|mount| mount.read_only));
            assert_eq!(answer.envs[SLOT_VARIABLE], SLOT_IN_CONTAINER);
            assert!(!format!("{answer:?}").contains("GPU-"));
        }
        let mounts = mediated(folder, library, Handover::Mounts).mounts;
        let paths: Vec<&str> = mounts[1..].iter().map(|m| m.container_path.as_str()).collect();
        assert_eq!(
            paths,
            ["/usr/local/gpu-zone/lib/libcuda.so.1", "/usr/local/gpu-zone/lib/libcuda.so"]
        );
    }

    #[test]
    fn the_library_by_cdi_is_the_library_by_mounts() {
        let library = Path::new("/l/libgpuzone_cuda.so");
        let answer = mediated(Path::new("/s"), library, Handover::Cdi);
        let spec = cdi_spec(library);
        let device = &spec["devices"][0];
        let named =
            format!("{}={}", spec["kind"].as_str().unwrap(), device["name"].as_str().unwrap());
        assert_eq!(answer.cdi_devices[0].name, named);
        let by_mounts = mediated(Path::new("/s"), library, Handover::Mounts).mounts;
        let by_cdi = device["containerEdits"]["mounts"].as_array().unwrap();
        for (cdi, mount) in by_cdi.iter().zip(&by_mounts[1..]) {
            assert_eq!(cdi["hostPath"], mount.host_path.as_str());
            assert_eq!(cdi["containerPath"], mount.container_path.as_str());
        }
    }

    #[test]
    fn kata_gets_each_group_once_and_each_device() {
        let device = |group, name: &str| VfioDevice { group, name: name.into() };
        let devices =
            [device(12, "0000:3b:00.0"), device(12, "0000:3b:00.1"), device(7, "0000:af:00.0")];
        let answer = vfio("gpuzone.dev/passthrough", &devices);
        let nodes: Vec<&str> = answer.devices.iter().map(|node| node.host_path.as_str()).collect();
        assert_eq!(nodes, ["/dev/vfio/vfio", "/dev/vfio/7", "/dev/vfio/12"]);
        assert!(answer.devices.iter().all(|node| node.host_path == node.container_path));
        assert_eq!(answer.cdi_devices[2].name, "gpuzone.dev/passthrough=0000:af:00.0");
        assert_eq!(answer.cdi_devices.len(), 3);
        assert!(answer.mounts.is_empty() && answer.envs.is_empty());
    }
}
