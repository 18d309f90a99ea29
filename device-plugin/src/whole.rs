//! Whole GPUs by passthrough: each is a device of its own, and which one a container gets is the
//! kubelet's word.
//!
//! A placement says how many and of what kind; among GPUs that are alike the kubelet chooses. So
//! the lease is of what the container holds, and what was placed only has to be as large.

mod door;
mod keeper;

use std::collections::{BTreeMap, BTreeSet};

use gpuzone_api::agent::v1::Gpu;
use gpuzone_api::kubelet::v1beta1::Device;
use gpuzone_core::{
    ComputeShare, Exposure, GpuUuid, Grant, InvalidPlacement, MemoryBytes, PciAddress, Placement,
};

use crate::answer::{VfioDevice, VfioInterface};
use crate::choose::device;
use crate::claim::Claim;
pub(crate) use door::WholeDoor;
pub(crate) use keeper::WholeKeeper;

/// A GPU that is handed over whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WholeGpu {
    /// What the kubelet calls it.
    pub address: PciAddress,
    /// What the agent calls it.
    pub gpu: GpuUuid,
    /// Product name.
    pub model: String,
    /// All of its memory.
    pub memory: MemoryBytes,
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
        "the kubelet names {0}, which is no GPU that this node hands over whole; restart the kubelet if that goes on"
    )]
    Unknown(String),
    /// A GPU that is handed over otherwise.
    #[error(
        "the pod's placement names GPU {0}, which this node does not hand over whole; delete the pod and let it be scheduled again"
    )]
    NotWhole(GpuUuid),
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

fn read(gpu: &Gpu, interface: VfioInterface) -> Option<WholeGpu> {
    let address: PciAddress = gpu.pci_address.parse().ok()?;
    let trouble = gpu.out_of_service.as_ref().or(gpu.not_ready.as_ref());
    let ready = match (trouble, &gpu.vfio) {
        (Some(trouble), _) => Err(trouble.clone()),
        (None, None) => Err("the agent does not say what a VM is to open".to_owned()),
        (None, Some(vfio)) => VfioDevice::new(address.to_string(), vfio, interface),
    };
    Some(WholeGpu {
        address,
        gpu: gpu.uuid.parse().ok()?,
        model: gpu.name.clone(),
        memory: MemoryBytes::new(gpu.memory_bytes)?,
        numa_node: gpu.numa_node,
        ready,
    })
}

/// As the kubelet lists them.
pub fn devices(gpus: &[WholeGpu]) -> Vec<Device> {
    let listed = |gpu: &WholeGpu| {
        device(gpu.address.to_string(), gpu.ready.is_ok(), &gpu.numa_node.into_iter().collect())
    };
    gpus.iter().map(listed).collect()
}

/// The claim of a container that holds `devices`, as one of exactly those.
///
/// # Errors
/// When a device or a placed GPU is none that is handed over whole, or the two are not alike.
pub fn of_devices(
    claim: Claim,
    devices: &BTreeSet<PciAddress>,
    gpus: &[WholeGpu],
) -> Result<Claim, WholeError> {
    let held = devices.iter().map(|address| {
        let found = gpus.iter().find(|gpu| gpu.address == *address);
        found.ok_or_else(|| WholeError::Unknown(address.to_string()))
    });
    let held: Vec<&WholeGpu> = held.collect::<Result<_, _>>()?;
    let placed = claim.placement.grants().iter().map(|grant| {
        let found = gpus.iter().find(|gpu| gpu.gpu == grant.gpu);
        found.ok_or(WholeError::NotWhole(grant.gpu))
    });
    let placed: Vec<&WholeGpu> = placed.collect::<Result<_, _>>()?;
    if kinds(&held) != kinds(&placed) {
        return Err(WholeError::Unlike { held: shown(&held), placed: shown(&placed) });
    }
    let grant =
        |gpu: &&WholeGpu| Grant { gpu: gpu.gpu, memory: gpu.memory, share: ComputeShare::WHOLE };
    let placement = Placement::of(held.iter().map(grant).collect())?;
    Ok(Claim { placement, ..claim })
}

/// How many there are of each kind.
fn kinds<'a>(gpus: &[&'a WholeGpu]) -> BTreeMap<(&'a str, MemoryBytes), usize> {
    let mut kinds = BTreeMap::new();
    for gpu in gpus {
        *kinds.entry((gpu.model.as_str(), gpu.memory)).or_default() += 1;
    }
    kinds
}

fn shown(gpus: &[&WholeGpu]) -> String {
    let kinds = kinds(gpus).into_iter();
    let kinds: Vec<String> =
        kinds.map(|((model, memory), count)| format!("{count} x {model} ({memory})")).collect();
    kinds.join(" and ")
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
        let agent = [mediated, sick, bound, gpu(4, 80)];
        let listed = devices(&whole_gpus(&agent, VfioInterface::Group));
        let health: Vec<_> = listed.iter().map(|d| (d.id.as_str(), d.health.as_str())).collect();
        let (sick, bound) = (("0000:02:00.0", "Unhealthy"), ("0000:03:00.0", "Unhealthy"));
        assert_eq!(health, [sick, bound, ("0000:04:00.0", "Healthy")]);
        assert_eq!(listed[0].topology.as_ref().unwrap().nodes[0].id, 1);
        // One interface is never taken for the other.
        let listed = whole_gpus(&[gpu(4, 80)], VfioInterface::Iommufd);
        assert!(listed[0].ready.as_ref().is_err_and(|why| why.contains("--vfio group")));
    }

    #[test]
    fn among_equals_the_kubelet_chooses() {
        let gpus = whole_gpus(&[gpu(1, 80), gpu(2, 80), gpu(3, 40)], VfioInterface::Group);
        let address =
            |number: u8| -> PciAddress { format!("0000:{number:02x}:00.0").parse().unwrap() };
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
