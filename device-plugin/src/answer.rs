//! What Allocate answers: pure functions from what a device is to what its container gets.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use gpuzone_api::SLOT_VARIABLE;
use gpuzone_api::agent::v1::VfioFunction;
use gpuzone_api::kubelet::v1beta1::{CdiDevice, ContainerAllocateResponse, DeviceSpec, Mount};

/// Where a container finds its slot.
pub const SLOT_IN_CONTAINER: &str = "/run/gpu-zone/slot";
/// Where a container finds our libraries.
pub const LIBRARIES_IN_CONTAINER: &str = "/usr/local/gpu-zone/lib";
/// Where images look for the driver's libraries on their own; kept behind ours.
const USUAL_LIBRARIES: &str = "/usr/local/nvidia/lib:/usr/local/nvidia/lib64";
/// Kind of our CDI devices.
pub const CDI_KIND: &str = "gpuzone.dev/library";
/// The CDI device that is our libraries.
pub const CDI_CUDA: &str = "cuda";
/// What programs ask the loader for, and what they are linked with.
const CUDA_NAMES: [&str; 2] = ["libcuda.so.1", "libcuda.so"];
const NVML_NAMES: [&str; 2] = ["libnvidia-ml.so.1", "libnvidia-ml.so"];

/// Our libraries, as the node sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Libraries {
    /// What containers get as their `libcuda.so.1`.
    pub cuda: PathBuf,
    /// What they get as their `libnvidia-ml.so.1`.
    pub nvml: PathBuf,
}

impl Libraries {
    /// Each with the path that a container finds it at.
    fn places(&self) -> impl Iterator<Item = (&Path, String)> {
        [(&self.cuda, CUDA_NAMES), (&self.nvml, NVML_NAMES)].into_iter().flat_map(
            |(file, names)| {
                names.map(|name| (file.as_path(), format!("{LIBRARIES_IN_CONTAINER}/{name}")))
            },
        )
    }
}

/// How a container gets our libraries.
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
/// libraries that look there. It is the same whichever pod it is.
pub fn mediated(
    folder: &Path,
    libraries: &Libraries,
    handover: Handover,
) -> ContainerAllocateResponse {
    let slot = mount(folder, SLOT_IN_CONTAINER.to_owned());
    match handover {
        Handover::Cdi => ContainerAllocateResponse {
            envs: variables(),
            mounts: vec![slot],
            cdi_devices: vec![CdiDevice { name: format!("{CDI_KIND}={CDI_CUDA}") }],
            ..Default::default()
        },
        Handover::Mounts => {
            let libraries = libraries.places().map(|(file, place)| mount(file, place));
            ContainerAllocateResponse {
                envs: variables(),
                mounts: std::iter::once(slot).chain(libraries).collect(),
                ..Default::default()
            }
        }
    }
}

/// The CDI specification (version 0.6.0) by which a runtime mounts our libraries.
pub fn cdi_spec(libraries: &Libraries) -> serde_json::Value {
    let mount = |(file, place): (&Path, String)| {
        serde_json::json!({
            "hostPath": file.display().to_string(),
            "containerPath": place,
            "options": ["ro", "nosuid", "nodev", "bind"],
        })
    };
    let mounts: Vec<_> = libraries.places().map(mount).collect();
    serde_json::json!({
        "cdiVersion": "0.6.0",
        "kind": CDI_KIND,
        "devices": [{ "name": CDI_CUDA, "containerEdits": { "mounts": mounts } }],
    })
}

/// By which of the kernel's interfaces VMs of this node open functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum VfioInterface {
    /// `/dev/vfio/vfio` and `/dev/vfio/<group>`.
    Group,
    /// `/dev/iommu` and `/dev/vfio/devices/vfioN`.
    Iommufd,
}

impl VfioInterface {
    /// The node that all functions have in common.
    const fn container_node(self) -> &'static str {
        match self {
            Self::Group => "/dev/vfio/vfio",
            Self::Iommufd => "/dev/iommu",
        }
    }
}

/// A PCI function that a VM takes over by VFIO.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VfioDevice {
    /// Its name among CDI devices: the PCI address, or the vGPU's name.
    pub name: String,
    /// Its own device node.
    pub node: String,
}

impl VfioDevice {
    /// The function `name`, which the agent says is `vfio`, for VMs that open it by `interface`.
    ///
    /// # Errors
    /// When the kernel has no node for that interface. The other is never taken in its place: who
    /// has set one up means that one.
    pub fn new(
        name: String,
        vfio: &VfioFunction,
        interface: VfioInterface,
    ) -> Result<Self, String> {
        let node = match interface {
            VfioInterface::Group => format!("/dev/vfio/{}", vfio.group),
            VfioInterface::Iommufd if vfio.device.is_empty() => {
                return Err("the kernel has no VFIO device for it, as --vfio iommufd needs; use a kernel with CONFIG_VFIO_DEVICE_CDEV, or --vfio group".to_owned());
            }
            VfioInterface::Iommufd => format!("/dev/vfio/devices/{}", vfio.device),
        };
        Ok(Self { name, node })
    }
}

/// What a container with VFIO devices gets, as Kata expects it: the node that all have in common,
/// each function's node once, and the CDI device of each where a specification is written, of the
/// kind that is called as the resource is. Kata finds the nodes below `/dev/vfio`, plugs the functions into the VM, and needs to know nothing
/// else.
pub fn vfio(
    kind: &str,
    interface: VfioInterface,
    handover: Handover,
    devices: &[VfioDevice],
) -> ContainerAllocateResponse {
    if devices.is_empty() {
        return ContainerAllocateResponse::default();
    }
    let nodes: BTreeSet<&str> = devices.iter().map(|device| device.node.as_str()).collect();
    let node = |path: &str| DeviceSpec {
        container_path: path.to_owned(),
        host_path: path.to_owned(),
        permissions: "mrw".to_owned(),
    };
    let cdi = |device: &VfioDevice| CdiDevice { name: format!("{kind}={}", device.name) };
    let cdi_devices = match handover {
        Handover::Cdi => devices.iter().map(cdi).collect(),
        Handover::Mounts => Vec::new(),
    };
    let all = std::iter::once(interface.container_node()).chain(nodes);
    ContainerAllocateResponse {
        devices: all.map(node).collect(),
        cdi_devices,
        ..Default::default()
    }
}

/// The CDI specification (version 0.6.0) of the devices of one resource. One without devices is none.
pub fn cdi_vfio_spec(
    kind: &str,
    interface: VfioInterface,
    devices: &[VfioDevice],
) -> serde_json::Value {
    let device = |device: &VfioDevice| {
        let nodes = [interface.container_node(), &device.node];
        let nodes = nodes.map(|path| serde_json::json!({ "path": path, "permissions": "mrw" }));
        serde_json::json!({ "name": device.name, "containerEdits": { "deviceNodes": nodes } })
    };
    serde_json::json!({
        "cdiVersion": "0.6.0",
        "kind": kind,
        "devices": devices.iter().map(device).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn libraries() -> Libraries {
        Libraries { cuda: "/l/cuda.so".into(), nvml: "/l/nvml.so".into() }
    }

    #[test]
    fn a_slot_says_nothing_about_a_gpu() {
        let (folder, library) = (Path::new("/s/slot-3/1"), &libraries());
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
            ["libcuda.so.1", "libcuda.so", "libnvidia-ml.so.1", "libnvidia-ml.so"]
                .map(|name| format!("/usr/local/gpu-zone/lib/{name}"))
        );
        let files: Vec<&str> = mounts[1..].iter().map(|m| m.host_path.as_str()).collect();
        assert_eq!(files, ["/l/cuda.so", "/l/cuda.so", "/l/nvml.so", "/l/nvml.so"]);
    }

    #[test]
    fn the_library_by_cdi_is_the_library_by_mounts() {
        let library = &libraries();
        let answer = mediated(Path::new("/s"), library, Handover::Cdi);
        let spec = cdi_spec(library);
        let device = &spec["devices"][0];
        let named =
            format!("{}={}", spec["kind"].as_str().unwrap(), device["name"].as_str().unwrap());
        assert_eq!(answer.cdi_devices[0].name, named);
        let by_mounts = mediated(Path::new("/s"), library, Handover::Mounts).mounts;
        let by_cdi = device["containerEdits"]["mounts"].as_array().unwrap();
        assert_eq!(by_cdi.len(), 4);
        for (cdi, mount) in by_cdi.iter().zip(&by_mounts[1..]) {
            assert_eq!(cdi["hostPath"], mount.host_path.as_str());
            assert_eq!(cdi["containerPath"], mount.container_path.as_str());
        }
    }

    #[test]
    fn kata_gets_each_node_once_and_each_device() {
        const WHOLE: &str = "nvidia.com/whole";
        const VGPU: &str = "gpuzone.dev/vgpu-nvidia-592";
        let device = |group, device: &str, name: &str| {
            (VfioFunction { group, device: device.into() }, name.to_owned())
        };
        let functions = [
            device(12, "vfio0", "0000:3b:00.0"),
            device(12, "vfio1", "0000:3b:00.1"),
            device(7, "vfio2", "0000:af:00.0"),
        ];
        let made = |interface| {
            let made =
                functions.iter().map(|(vfio, name)| VfioDevice::new(name.clone(), vfio, interface));
            made.collect::<Result<Vec<_>, _>>().unwrap()
        };
        let nodes = |answer: &ContainerAllocateResponse| -> Vec<String> {
            assert!(answer.devices.iter().all(|node| node.host_path == node.container_path));
            answer.devices.iter().map(|node| node.host_path.clone()).collect()
        };
        let group = made(VfioInterface::Group);
        let answer = vfio(WHOLE, VfioInterface::Group, Handover::Cdi, &group);
        assert_eq!(nodes(&answer), ["/dev/vfio/vfio", "/dev/vfio/12", "/dev/vfio/7"]);
        assert_eq!(answer.cdi_devices[2].name, "nvidia.com/whole=0000:af:00.0");
        assert!(answer.mounts.is_empty() && answer.envs.is_empty());
        let spec = cdi_vfio_spec(VGPU, VfioInterface::Group, &group);
        assert_eq!(spec["kind"], VGPU);
        assert_eq!(spec["devices"][2]["name"], "0000:af:00.0");
        assert_eq!(spec["devices"][2]["containerEdits"]["deviceNodes"][1]["path"], "/dev/vfio/7");
        let answer = vfio(
            VGPU,
            VfioInterface::Iommufd,
            Handover::Mounts,
            &made(VfioInterface::Iommufd)[..1],
        );
        assert_eq!(nodes(&answer), ["/dev/iommu", "/dev/vfio/devices/vfio0"]);
        // Nothing names a device that no specification has.
        assert!(answer.cdi_devices.is_empty());
        assert_eq!(vfio(WHOLE, VfioInterface::Group, Handover::Cdi, &[]), Default::default());
    }
}
