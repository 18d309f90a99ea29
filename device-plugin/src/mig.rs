//! MIG instances: each is a device of its own, of a resource that is called after its profile. Which
//! one of a profile a container gets is the kubelet's word.
//!
//! A lease of one appears in a slot that is called as the instance is, with everything that holds
//! of slots. What differs from a mediated one: its placement says of which profile the instance is
//! to be, and the lease is of the very instance that the container holds.

use gpuzone_api::SlotId;
use gpuzone_api::agent::v1::{Gpu, Partition};
use gpuzone_api::kubelet::v1beta1::Device;
use gpuzone_core::{
    ComputeShare, Exposure, GpuUuid, Grant, InvalidPlacement, MemoryBytes, Placement,
};

use crate::choose::device;
use crate::claim::Claim;
use crate::holders::SlotSet;

/// A MIG instance that is handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// What the kubelet calls it, and where its lease appears.
    pub slot: SlotId,
    /// What the agent calls it.
    pub uuid: GpuUuid,
    /// Its GPU.
    pub gpu: GpuUuid,
    /// That one's product name.
    pub model: String,
    /// Its profile, like `1g.10gb`.
    pub profile: String,
    /// All of its memory.
    pub memory: MemoryBytes,
    /// All that it is of its GPU's compute.
    pub share: ComputeShare,
    /// The NUMA node it is near to.
    pub numa_node: Option<u32>,
    /// Whether it takes a new lease.
    pub healthy: bool,
}

/// Why what a container holds is not what was placed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InstanceError {
    /// More than CUDA shows a program.
    #[error(
        "the container asks for {0} MIG instances, and CUDA shows a program one of them; ask for one in each container"
    )]
    Several(usize),
    /// A device that is not listed, or not any more.
    #[error(
        "the kubelet names {0}, which is no MIG instance of this node; delete the pod and let it be created again, and restart the kubelet if that goes on"
    )]
    Unknown(SlotId),
    /// A placement of something else.
    #[error(
        "the pod's placement names GPU {0}, which has no MIG instances on this node; delete the pod and let it be scheduled again"
    )]
    NotCut(GpuUuid),
    /// Another profile than was placed.
    #[error(
        "the kubelet gave the container a {profile} of {memory} of {model} and its placement is of {placed} of a GPU's memory; delete the pod and let it be scheduled again"
    )]
    Unlike {
        /// What it holds.
        profile: String,
        /// That one's memory.
        memory: MemoryBytes,
        /// Of which kind of GPU.
        model: String,
        /// What was placed.
        placed: MemoryBytes,
    },
    /// No lease can be of this.
    #[error(transparent)]
    Invalid(#[from] InvalidPlacement),
}

/// The MIG instances that the agent hands over. One that cannot be told is left out: nobody could
/// have it.
pub fn instances(gpus: &[Gpu]) -> Vec<Instance> {
    let cut = gpus.iter().filter(|gpu| gpu.exposure == Exposure::Mig.as_str());
    cut.flat_map(|gpu| gpu.partitions.iter().filter_map(|part| read(gpu, part))).collect()
}

fn read(gpu: &Gpu, part: &Partition) -> Option<Instance> {
    let uuid: GpuUuid = part.uuid.parse().ok()?;
    Some(Instance {
        slot: SlotId::of_instance(uuid)?,
        uuid,
        gpu: gpu.uuid.parse().ok()?,
        model: gpu.name.clone(),
        profile: part.profile.clone(),
        memory: MemoryBytes::new(part.memory_bytes)?,
        share: ComputeShare::new(part.share_percent).ok()?,
        numa_node: gpu.numa_node,
        healthy: gpu.out_of_service.is_none() && part.out_of_service.is_none(),
    })
}

/// Those of one profile, as the kubelet lists them.
pub fn devices(instances: &[Instance], profile: &str) -> Vec<Device> {
    let of_profile = instances.iter().filter(|instance| instance.profile == profile);
    let listed = |instance: &Instance| {
        let numa = instance.numa_node.into_iter().collect();
        device(instance.slot.to_string(), instance.healthy, &numa)
    };
    of_profile.map(listed).collect()
}

/// The claim of a container that holds these slots, as one of exactly that instance.
///
/// # Errors
/// When it holds more than one, or one that is unlike what was placed.
pub fn of_instance(
    claim: Claim,
    slots: &SlotSet,
    instances: &[Instance],
) -> Result<Claim, InstanceError> {
    let count = slots.all().len().max(claim.placement.grants().len());
    if count > 1 {
        return Err(InstanceError::Several(count));
    }
    let slot = slots.lead();
    let held = instances.iter().find(|instance| instance.slot == slot);
    let held = held.ok_or(InstanceError::Unknown(slot))?;
    for grant in claim.placement.grants() {
        let placed = instances.iter().find(|i| i.gpu == grant.gpu || i.uuid == grant.gpu);
        let placed = placed.ok_or(InstanceError::NotCut(grant.gpu))?;
        let alike =
            placed.model == held.model && (grant.memory, grant.share) == (held.memory, held.share);
        if !alike {
            let (profile, model) = (held.profile.clone(), held.model.clone());
            let (memory, placed) = (held.memory, grant.memory);
            return Err(InstanceError::Unlike { profile, memory, model, placed });
        }
    }
    let grant = Grant { gpu: held.uuid, memory: held.memory, share: held.share };
    Ok(Claim { placement: Placement::of(vec![grant])?, ..claim })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(number: u8, profile: &str, gib: u64, percent: u32) -> Partition {
        let uuid = GpuUuid::mig_from_bytes([number; 16]).to_string();
        Partition {
            id: uuid.clone(),
            uuid,
            profile: profile.into(),
            memory_bytes: gib << 30,
            share_percent: percent,
            ..Default::default()
        }
    }

    fn gpu(number: u8, partitions: Vec<Partition>) -> Gpu {
        Gpu {
            uuid: GpuUuid::from_bytes([number; 16]).to_string(),
            name: "A".into(),
            exposure: "mig".into(),
            numa_node: Some(number.into()),
            partitions,
            ..Default::default()
        }
    }

    fn node() -> Vec<Gpu> {
        let sick = Partition { out_of_service: Some("q".into()), ..part(12, "1g.10gb", 10, 14) };
        let first = vec![part(11, "1g.10gb", 10, 14), sick, part(13, "2g.20gb", 20, 28)];
        let out = Gpu {
            out_of_service: Some("Xid 79".into()),
            ..gpu(2, vec![part(21, "1g.10gb", 10, 14)])
        };
        let mediated =
            Gpu { exposure: "mediated".into(), ..gpu(3, vec![part(31, "1g.10gb", 10, 14)]) };
        vec![gpu(1, first), out, mediated]
    }

    fn claim(gpu: u8, gib: u64, percent: u32) -> Claim {
        let grant = Grant {
            gpu: GpuUuid::from_bytes([gpu; 16]),
            memory: MemoryBytes::gib(gib),
            share: ComputeShare::new(percent).unwrap(),
        };
        Claim {
            pod: "uid-1".parse().unwrap(),
            container: "app".parse().unwrap(),
            tenant: "acme".parse().unwrap(),
            placement: Placement::of(vec![grant]).unwrap(),
            quotas: Vec::new(),
        }
    }

    fn slots(numbers: &[u8]) -> SlotSet {
        let ids: Vec<String> =
            numbers.iter().map(|n| GpuUuid::mig_from_bytes([*n; 16]).to_string()).collect();
        SlotSet::parse(&ids, |_| true).unwrap()
    }

    #[test]
    fn each_profile_lists_its_own_and_what_is_out_is_unhealthy() {
        let all = instances(&node());
        let health = |profile: &str| -> Vec<String> {
            devices(&all, profile).into_iter().map(|device| device.health).collect()
        };
        assert_eq!(health("1g.10gb"), ["Healthy", "Unhealthy", "Unhealthy"]);
        assert_eq!(health("2g.20gb"), ["Healthy"]);
        assert!(health("7g.80gb").is_empty());
        let listed = devices(&all, "2g.20gb").remove(0);
        assert_eq!(listed.id, GpuUuid::mig_from_bytes([13; 16]).to_string());
        assert_eq!(listed.topology.unwrap().nodes[0].id, 1);
    }

    #[test]
    fn the_lease_is_of_the_instance_that_is_held() {
        let all = instances(&node());
        // Placed on the second GPU; among equals the kubelet chooses.
        let chosen = of_instance(claim(2, 10, 14), &slots(&[11]), &all).unwrap().placement;
        let grant = chosen.grants()[0];
        assert_eq!(grant.gpu, GpuUuid::mig_from_bytes([11; 16]));
        assert_eq!((grant.memory, grant.share.percent()), (MemoryBytes::gib(10), 14));
        let said =
            |claim, held: &[u8]| of_instance(claim, &slots(held), &all).unwrap_err().to_string();
        for (claim, held, part) in [
            (claim(1, 10, 14), &[11, 12][..], "ask for one in each container"),
            (claim(1, 10, 14), &[99], "no MIG instance of this node"),
            (claim(3, 10, 14), &[11], "has no MIG instances"),
            (claim(1, 10, 14), &[13], "a 2g.20gb of 20Gi of A and its placement is of 10Gi"),
            (claim(1, 10, 28), &[11], "a 1g.10gb of 10Gi"),
        ] {
            let said = said(claim, held);
            assert!(said.contains(part), "{said} lacks {part}");
        }
    }
}
