//! Whole GPUs by passthrough, and vGPUs: each is a device of its own, and which one a container gets
//! is the kubelet's word.
//!
//! A placement says how many and of what kind; among devices that are alike the kubelet chooses. So
//! the lease is of what the container holds, and what was placed only has to be as large.

mod door;
mod keeper;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use gpuzone_api::agent::v1::{Gpu, Partition, VfioFunction};
use gpuzone_api::kubelet::v1beta1::Device;
use gpuzone_core::{
    ComputeShare, Exposure, GpuUuid, Grant, InvalidPlacement, MemoryBytes, PciAddress, Placement,
};

use crate::answer::{VfioDevice, VfioInterface};
use crate::choose::device;
use crate::claim::Claim;
pub(crate) use door::WholeDoor;
pub(crate) use keeper::WholeKeeper;

/// What the kubelet calls a device: a whole GPU's address; or a vGPU's name and what a VM opens, for
/// a vGPU that is made anew may be opened elsewhere, and a container that was told of the old place
/// must not find somebody else's there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeviceId {
    /// A function.
    Function(PciAddress),
    /// A vGPU.
    Vgpu {
        /// What the agent calls it.
        uuid: GpuUuid,
        /// The last part of its node's path; empty where it has none.
        node: String,
    },
}

/// A text that is no device's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{}' is no device that is handed over whole; those are called like PCI addresses, or VGPU-…", .0.chars().filter(|c| !c.is_control()).take(80).collect::<String>())]
pub struct InvalidDevice(String);

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Function(address) => address.fmt(f),
            Self::Vgpu { uuid, node } => f.pad(&format!("{uuid}.{node}")),
        }
    }
}

impl FromStr for DeviceId {
    type Err = InvalidDevice;

    fn from_str(text: &str) -> Result<Self, InvalidDevice> {
        let read = match text.split_once('.').filter(|(name, _)| name.starts_with("VGPU-")) {
            None => text.parse().ok().map(Self::Function),
            Some((name, node)) => {
                let plain = node.len() <= 16 && node.bytes().all(|b| b.is_ascii_alphanumeric());
                let uuid = name.parse().ok().filter(|_| plain);
                uuid.map(|uuid| Self::Vgpu { uuid, node: node.to_owned() })
            }
        };
        // One name, one device: hexadecimal numbers may be written in capitals, too.
        let read = read.filter(|id| id.to_string() == text);
        read.ok_or_else(|| InvalidDevice(text.to_owned()))
    }
}

/// A GPU that is handed over whole, or a vGPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WholeGpu {
    /// What the kubelet calls it.
    pub id: DeviceId,
    /// What the agent calls it.
    pub gpu: GpuUuid,
    /// The GPU that it is, or is a part of: what a placement names.
    pub of: GpuUuid,
    /// Its type, where it is a vGPU.
    pub profile: Option<String>,
    /// Product name of the GPU.
    pub model: String,
    /// All of its memory.
    pub memory: MemoryBytes,
    /// All that it is of the GPU's compute.
    pub share: ComputeShare,
    /// The NUMA node it is near to.
    pub numa_node: Option<u32>,
    /// What a VM opens, or why there is nothing to open now.
    pub ready: Result<VfioDevice, String>,
}

/// Why what a container holds is not what was placed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WholeError {
    /// A device that is not listed, or not any more.
    #[error(
        "the kubelet names {0}, which is no GPU or vGPU that this node hands over; delete the pod and let it be created again, and restart the kubelet if that goes on"
    )]
    Unknown(String),
    /// A GPU that is handed over otherwise.
    #[error(
        "the pod's placement names GPU {0}, which this node does not hand over whole, or as vGPUs; delete the pod and let it be scheduled again"
    )]
    NotWhole(GpuUuid),
    /// No vGPU is as large as what was placed.
    #[error(
        "the pod's placement is of {memory} and {share} of GPU {gpu}, and no vGPU of that is so; delete the pod and let it be scheduled again"
    )]
    NoSuchVgpu {
        /// Of which GPU.
        gpu: GpuUuid,
        /// How much memory.
        memory: MemoryBytes,
        /// How much of its compute.
        share: ComputeShare,
    },
    /// Others than were placed.
    #[error(
        "the kubelet gave the container {held} and its placement is of {placed}; delete the pod and let it be scheduled again"
    )]
    Unlike {
        /// What it holds.
        held: String,
        /// What was placed.
        placed: String,
    },
    /// No lease can be of this.
    #[error(transparent)]
    Invalid(#[from] InvalidPlacement),
}

/// The GPUs that the agent hands over whole, for VMs that open functions by `interface`. One that
/// cannot be told is left out: nobody could have it.
pub fn whole_gpus(gpus: &[Gpu], interface: VfioInterface) -> Vec<WholeGpu> {
    let whole = gpus.iter().filter(|gpu| gpu.exposure == Exposure::Passthrough.as_str());
    whole.filter_map(|gpu| read(gpu, interface)).collect()
}

/// What a VM opens of the device `name`, by `interface`.
fn opened(
    name: String,
    trouble: Option<&String>,
    vfio: Option<&VfioFunction>,
    interface: VfioInterface,
) -> Result<VfioDevice, String> {
    match (trouble, vfio) {
        (Some(trouble), _) => Err(trouble.clone()),
        (None, None) => Err("the agent does not say what a VM is to open".to_owned()),
        (None, Some(vfio)) => VfioDevice::new(name, vfio, interface),
    }
}

fn read(gpu: &Gpu, interface: VfioInterface) -> Option<WholeGpu> {
    let address: PciAddress = gpu.pci_address.parse().ok()?;
    let trouble = gpu.out_of_service.as_ref().or(gpu.not_ready.as_ref());
    let trouble = trouble.or(gpu.kept_from_pods.as_ref());
    let uuid = gpu.uuid.parse().ok()?;
    Some(WholeGpu {
        id: DeviceId::Function(address),
        gpu: uuid,
        of: uuid,
        profile: None,
        model: gpu.name.clone(),
        memory: MemoryBytes::new(gpu.memory_bytes)?,
        share: ComputeShare::WHOLE,
        numa_node: gpu.numa_node,
        ready: opened(address.to_string(), trouble, gpu.vfio.as_ref(), interface),
    })
}

/// The vGPUs that the agent hands over, for VMs that open them by `interface`. One that cannot be
/// told is left out: nobody could have it.
pub fn vgpus(gpus: &[Gpu], interface: VfioInterface) -> Vec<WholeGpu> {
    let cut = gpus.iter().filter(|gpu| gpu.exposure == Exposure::Vgpu.as_str());
    let parts = cut.flat_map(|gpu| gpu.partitions.iter().map(move |part| (gpu, part)));
    parts.filter_map(|(gpu, part)| read_vgpu(gpu, part, interface)).collect()
}

fn read_vgpu(gpu: &Gpu, part: &Partition, interface: VfioInterface) -> Option<WholeGpu> {
    let uuid: GpuUuid = part.uuid.parse().ok()?;
    let vfio = part.vfio.as_ref();
    // What is out of service may be somebody's still, who has it under this name.
    let node = vfio.and_then(|vfio| VfioDevice::new(uuid.to_string(), vfio, interface).ok());
    let node = node.and_then(|device| Some(device.node.rsplit_once('/')?.1.to_owned()));
    let id = DeviceId::Vgpu { uuid, node: node.unwrap_or_default() };
    let trouble = gpu.out_of_service.as_ref().or(part.out_of_service.as_ref());
    let trouble = trouble.or(part.not_ready.as_ref());
    Some(WholeGpu {
        gpu: uuid,
        of: gpu.uuid.parse().ok()?,
        profile: Some(part.profile.clone()),
        model: gpu.name.clone(),
        memory: MemoryBytes::new(part.memory_bytes)?,
        share: ComputeShare::new(part.share_percent).ok()?,
        numa_node: gpu.numa_node,
        ready: opened(id.to_string(), trouble, vfio, interface),
        id,
    })
}

/// Those of one type (or whole GPUs, which have none), as the kubelet lists them.
pub fn devices(gpus: &[WholeGpu], profile: Option<&str>) -> Vec<Device> {
    let listed = |gpu: &WholeGpu| {
        device(gpu.id.to_string(), gpu.ready.is_ok(), &gpu.numa_node.into_iter().collect())
    };
    gpus.iter().filter(|gpu| gpu.profile.as_deref() == profile).map(listed).collect()
}

/// The claim of a container that holds `devices`, as one of exactly those.
///
/// # Errors
/// When a device or a placed GPU is none that is handed over whole, or the two are not alike.
pub fn of_devices(
    claim: Claim,
    devices: &BTreeSet<DeviceId>,
    gpus: &[WholeGpu],
) -> Result<Claim, WholeError> {
    let held = devices.iter().map(|id| {
        let found = gpus.iter().find(|gpu| gpu.id == *id);
        found.ok_or_else(|| WholeError::Unknown(id.to_string()))
    });
    let held: Vec<&WholeGpu> = held.collect::<Result<_, _>>()?;
    let placed = claim.placement.grants().iter().map(|grant| {
        let of = |gpu: &&WholeGpu| gpu.of == grant.gpu || gpu.gpu == grant.gpu;
        let like = |gpu: &&WholeGpu| {
            gpu.profile.is_none() || (gpu.memory, gpu.share) == (grant.memory, grant.share)
        };
        let mut named = gpus.iter().filter(of).peekable();
        let Grant { gpu, memory, share } = *grant;
        match named.peek() {
            None => Err(WholeError::NotWhole(gpu)),
            Some(_) => named.find(like).ok_or(WholeError::NoSuchVgpu { gpu, memory, share }),
        }
    });
    let placed: Vec<&WholeGpu> = placed.collect::<Result<_, _>>()?;
    if kinds(&held) != kinds(&placed) {
        return Err(WholeError::Unlike { held: shown(&held), placed: shown(&placed) });
    }
    let grant = |gpu: &&WholeGpu| Grant { gpu: gpu.gpu, memory: gpu.memory, share: gpu.share };
    let placement = Placement::of(held.iter().map(grant).collect())?;
    Ok(Claim { placement, ..claim })
}

/// How many there are of each kind.
fn kinds<'a>(gpus: &[&'a WholeGpu]) -> BTreeMap<(Option<&'a str>, &'a str, MemoryBytes), usize> {
    let mut kinds = BTreeMap::new();
    for gpu in gpus {
        let kind = (gpu.profile.as_deref(), gpu.model.as_str(), gpu.memory);
        *kinds.entry(kind).or_default() += 1;
    }
    kinds
}

fn shown(gpus: &[&WholeGpu]) -> String {
    let kinds = kinds(gpus).into_iter();
    let one = |((profile, model, memory), count): ((Option<&str>, &str, MemoryBytes), usize)| {
        let profile = profile.map(|profile| format!("{profile} of ")).unwrap_or_default();
        format!("{count} x {profile}{model} ({memory})")
    };
    kinds.map(one).collect::<Vec<_>>().join(" and ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpuzone_api::agent::v1::VfioFunction;

    fn gpu(number: u8, gib: u64) -> Gpu {
        Gpu {
            uuid: GpuUuid::from_bytes([number; 16]).to_string(),
            name: "A".into(),
            pci_address: format!("0000:{number:02x}:00.0"),
            memory_bytes: gib << 30,
            exposure: "passthrough".into(),
            numa_node: Some(1),
            vfio: Some(VfioFunction { group: number.into(), device: String::new() }),
            ..Default::default()
        }
    }

    fn claim(numbers: &[u8]) -> Claim {
        let grant = |number: &u8| Grant {
            gpu: GpuUuid::from_bytes([*number; 16]),
            memory: MemoryBytes::gib(80),
            share: ComputeShare::WHOLE,
        };
        Claim {
            pod: "uid-1".parse().unwrap(),
            container: "app".parse().unwrap(),
            tenant: "acme".parse().unwrap(),
            placement: Placement::of(numbers.iter().map(grant).collect()).unwrap(),
            quotas: Vec::new(),
        }
    }

    #[test]
    fn what_cannot_be_opened_is_unhealthy_and_what_is_mediated_is_not_listed() {
        let mediated = Gpu { exposure: "mediated".into(), ..gpu(1, 80) };
        let sick = Gpu { out_of_service: Some("q".into()), ..gpu(2, 80) };
        let bound = Gpu { vfio: None, not_ready: Some("bound to nvidia".into()), ..gpu(3, 80) };
        let token = Gpu { kept_from_pods: Some("it opens with a token".into()), ..gpu(5, 80) };
        let agent = [mediated, sick, bound, gpu(4, 80), token];
        let listed = devices(&whole_gpus(&agent, VfioInterface::Group), None);
        let health: Vec<_> = listed.iter().map(|d| (d.id.as_str(), d.health.as_str())).collect();
        let (sick, bound) = (("0000:02:00.0", "Unhealthy"), ("0000:03:00.0", "Unhealthy"));
        let token = ("0000:05:00.0", "Unhealthy");
        assert_eq!(health, [sick, bound, ("0000:04:00.0", "Healthy"), token]);
        assert_eq!(listed[0].topology.as_ref().unwrap().nodes[0].id, 1);
        // One interface is never taken for the other.
        let listed = whole_gpus(&[gpu(4, 80)], VfioInterface::Iommufd);
        assert!(listed[0].ready.as_ref().is_err_and(|why| why.contains("--vfio group")));
    }

    #[test]
    fn a_vgpu_is_one_of_its_type_and_called_after_what_is_opened() {
        let part = |of: u8, number: u32, group: Option<u32>| {
            let uuid = GpuUuid::from_bytes([of; 16]).vgpu(number).to_string();
            let vfio = group.map(|group| VfioFunction { group, device: String::new() });
            let not_ready = group.is_none().then(|| "it is not made".to_owned());
            let (profile, memory_bytes, share_percent) = ("nvidia-592".into(), 4 << 30, 25);
            Partition {
                uuid,
                profile,
                memory_bytes,
                share_percent,
                vfio,
                not_ready,
                ..Default::default()
            }
        };
        let cut = |of: u8, partitions| Gpu { exposure: "vgpu".into(), partitions, ..gpu(of, 16) };
        let other = Partition { profile: "nvidia-593".into(), ..part(2, 0, Some(50)) };
        let node = [cut(1, vec![part(1, 0, Some(41)), part(1, 1, None)]), cut(2, vec![other])];
        let all = vgpus(&node, VfioInterface::Group);
        let listed = devices(&all, Some("nvidia-592"));
        let health: Vec<_> = listed.iter().map(|device| device.health.as_str()).collect();
        assert_eq!(health, ["Healthy", "Unhealthy"]);
        assert!(listed[0].id.starts_with("VGPU-") && listed[0].id.ends_with(".41"));
        assert!(devices(&all, None).is_empty() && listed[0].id.len() <= 63);
        let (first, gone): (DeviceId, DeviceId) =
            (listed[0].id.parse().unwrap(), listed[0].id.replace(".41", ".42").parse().unwrap());
        let placed = |of: u8, gib| {
            let share = ComputeShare::new(25).unwrap();
            let (gpu, memory) = (GpuUuid::from_bytes([of; 16]), MemoryBytes::gib(gib));
            let placement = Placement::of(vec![Grant { gpu, memory, share }]).unwrap();
            Claim { placement, ..claim(&[1]) }
        };
        let given = |claim, id: &DeviceId| of_devices(claim, &BTreeSet::from([id.clone()]), &all);
        let grant = given(placed(1, 4), &first).unwrap().placement.grants()[0];
        assert_eq!((grant.gpu, grant.share.percent()), (GpuUuid::from_bytes([1; 16]).vgpu(0), 25));
        // What was told before it was made anew is nobody's.
        assert!(matches!(given(placed(1, 4), &gone), Err(WholeError::Unknown(_))));
        let unlike = given(placed(2, 4), &first).unwrap_err().to_string();
        assert!(unlike.contains("nvidia-592 of A") && unlike.contains("nvidia-593"), "{unlike}");
        let large = given(placed(1, 8), &first);
        assert!(matches!(large, Err(WholeError::NoSuchVgpu { .. })), "{large:?}");
        for text in ["", "VGPU-1.4", "vgpu", "GPU-00000000-0000-0000-0000-000000000000.4"] {
            assert!(text.parse::<DeviceId>().is_err(), "{text}");
        }
    }

    #[test]
    fn among_equals_the_kubelet_chooses() {
        let gpus = whole_gpus(&[gpu(1, 80), gpu(2, 80), gpu(3, 40)], VfioInterface::Group);
        let address =
            |number: u8| -> DeviceId { format!("0000:{number:02x}:00.0").parse().unwrap() };
        let given = |placed: &[u8], held: &[u8]| {
            let held = held.iter().map(|number| address(*number)).collect();
            of_devices(claim(placed), &held, &gpus)
        };
        let chosen = given(&[1], &[2]).unwrap().placement;
        assert_eq!(chosen.grants()[0].gpu, GpuUuid::from_bytes([2; 16]));
        let smaller = given(&[1], &[3]).unwrap_err().to_string();
        assert!(smaller.contains("1 x A (40Gi) and its placement is of 1 x A (80Gi)"), "{smaller}");
        assert!(given(&[3], &[1]).is_err());
        assert!(matches!(given(&[1], &[1, 2]), Err(WholeError::Unlike { .. })));
        assert!(matches!(given(&[9], &[1]), Err(WholeError::NotWhole(_))));
        assert!(matches!(given(&[1], &[9]), Err(WholeError::Unknown(_))));
    }
}
