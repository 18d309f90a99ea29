use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{ComputeShare, Exposure, GpuUuid, MemoryBytes, MigInstance, PciAddress, Vgpu};

/// Whether a GPU is hardware or this project's simulator. Shown in every listing and report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GpuBacking {
    /// A real device behind its vendor's driver.
    Physical,
    /// The simulated GPU: real PTX, executed on the CPU.
    Simulated,
}

impl fmt::Display for GpuBacking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Physical => "physical",
            Self::Simulated => "simulated",
        })
    }
}

/// CUDA's compute capability, like 9.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ComputeCapability {
    /// Before the dot.
    pub major: u32,
    /// Behind the dot.
    pub minor: u32,
}

impl fmt::Display for ComputeCapability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}.{}", self.major, self.minor))
    }
}

/// One GPU of a node, as discovery saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// The driver's identifier; stable across restarts.
    pub uuid: GpuUuid,
    /// NVML's index; may change when the node restarts.
    pub index: u32,
    /// Product name, as users ask for it in a request's `model`.
    pub name: String,
    /// Where it sits.
    pub pci: PciAddress,
    /// All of its memory.
    pub memory: MemoryBytes,
    /// What code it runs.
    pub compute_capability: ComputeCapability,
    /// The NUMA node it is near to, where the machine says.
    pub numa_node: Option<u32>,
    /// GPUs that NVLink joins it with.
    pub nvlink_peers: BTreeSet<GpuUuid>,
    /// Whether it can be cut into MIG instances.
    pub mig_capable: bool,
    /// Hardware or simulator.
    pub backing: GpuBacking,
}

/// The GPUs of one node, in the order of their index.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    gpus: Vec<Gpu>,
    /// Of the GPUs that are not handed over mediated.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    exposures: BTreeMap<GpuUuid, Exposure>,
    /// Of the GPUs whose exposure is [`Exposure::Mig`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    instances: Vec<MigInstance>,
    /// Of the GPUs whose exposure is [`Exposure::Vgpu`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    vgpus: Vec<Vgpu>,
}

/// A part of a GPU that one lease holds, all of it: a MIG instance, or a vGPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// What it is called.
    pub uuid: GpuUuid,
    /// All of its memory.
    pub memory: MemoryBytes,
    /// All that it is of its GPU's compute.
    pub share: ComputeShare,
}

impl From<&MigInstance> for Part {
    fn from(of: &MigInstance) -> Self {
        Self { uuid: of.uuid, memory: of.memory, share: of.share }
    }
}

impl From<&Vgpu> for Part {
    fn from(of: &Vgpu) -> Self {
        Self { uuid: of.uuid, memory: of.memory, share: of.share }
    }
}

/// What one lease can hold: a GPU or a share of it, or a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unit<'a> {
    /// The GPU, or that which the part is of.
    pub gpu: &'a Gpu,
    /// The part, if it is one.
    pub part: Option<Part>,
}

impl Unit<'_> {
    /// All of its memory.
    pub fn memory(&self) -> MemoryBytes {
        self.part.map_or(self.gpu.memory, |part| part.memory)
    }

    /// All that it is of its GPU's compute.
    pub fn share(&self) -> ComputeShare {
        self.part.map_or(ComputeShare::WHOLE, |part| part.share)
    }
}

/// Why a list of GPUs is no inventory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InventoryError {
    /// Two GPUs bear one UUID.
    #[error("two GPUs have the UUID {0}; the driver's listing cannot be trusted")]
    DuplicateUuid(GpuUuid),
    /// A GPU reports no memory.
    #[error("GPU {0} reports no memory; it may have fallen off the bus")]
    NoMemory(GpuUuid),
    /// Something that is no GPU among GPUs.
    #[error("{0} stands where a GPU's UUID should; the driver's listing cannot be trusted")]
    NotAGpu(GpuUuid),
    /// A GPU in MIG mode that is to be handed over otherwise.
    #[error(
        "GPU {gpu} is in MIG mode and [[gpu]] hands it over as {exposure}; turn MIG mode off (nvidia-smi -mig 0), or write exposure = \"mig\""
    )]
    InMigMode {
        /// Which.
        gpu: GpuUuid,
        /// How it is to be handed over.
        exposure: Exposure,
    },
    /// An instance of a GPU that has none.
    #[error("the MIG instance {instance} is of {gpu}, which is no GPU in MIG mode of this node")]
    Orphan {
        /// Which instance.
        instance: GpuUuid,
        /// Of what.
        gpu: GpuUuid,
    },
    /// More than there is.
    #[error(
        "the MIG instances of GPU {0} have more memory or compute than it has; the driver's listing cannot be trusted"
    )]
    Overfull(GpuUuid),
    /// Two GPUs at one address.
    #[error("two GPUs are at {0}; the driver's listing, or an address in [[gpu]], is wrong")]
    DuplicateAddress(PciAddress),
    /// vGPUs of a GPU that is handed over otherwise.
    #[error(
        "the vGPU {vgpu} is of {gpu}, which is no GPU of this node that is handed over as vGPUs"
    )]
    OrphanVgpu {
        /// Which.
        vgpu: GpuUuid,
        /// Of what.
        gpu: GpuUuid,
    },
    /// More vGPUs than fit.
    #[error(
        "[[gpu]] {0}: its vGPUs have more memory than it has together, or are more than {most}; write a smaller count or memory in [gpu.vgpu]",
        most = Inventory::MOST_PARTS
    )]
    TooManyVgpus(GpuUuid),
}

/// What the parts of one GPU are together.
#[derive(Clone, Copy, Default)]
struct Together {
    bytes: u64,
    percent: u32,
    count: usize,
}

/// What the parts of each GPU are together, each with the GPU that it is of, if `belongs` says so.
fn together(
    parts: impl Iterator<Item = (GpuUuid, Part)>,
    belongs: impl Fn(GpuUuid, GpuUuid) -> Result<(), InventoryError>,
) -> Result<BTreeMap<GpuUuid, Together>, InventoryError> {
    let mut seen = BTreeSet::new();
    let mut sums: BTreeMap<GpuUuid, Together> = BTreeMap::new();
    for (gpu, Part { uuid, memory, share }) in parts {
        belongs(uuid, gpu)?;
        if !seen.insert(uuid) {
            return Err(InventoryError::DuplicateUuid(uuid));
        }
        if memory.is_zero() {
            return Err(InventoryError::NoMemory(uuid));
        }
        let sum = sums.entry(gpu).or_default();
        sum.bytes = sum.bytes.saturating_add(memory.get());
        sum.percent += share.percent();
        sum.count += 1;
    }
    Ok(sums)
}

impl Inventory {
    /// The most parts of one GPU.
    pub const MOST_PARTS: usize = 64;

    /// The inventory of these GPUs.
    ///
    /// # Errors
    /// When two have the same UUID or address, one has no memory, or one is no GPU.
    pub fn new(mut gpus: Vec<Gpu>) -> Result<Self, InventoryError> {
        let (mut seen, mut places) = (BTreeSet::new(), BTreeSet::new());
        for gpu in &gpus {
            if !seen.insert(gpu.uuid) {
                return Err(InventoryError::DuplicateUuid(gpu.uuid));
            }
            if gpu.memory.is_zero() {
                return Err(InventoryError::NoMemory(gpu.uuid));
            }
            if gpu.uuid.is_part() {
                return Err(InventoryError::NotAGpu(gpu.uuid));
            }
            if !places.insert(gpu.pci) {
                return Err(InventoryError::DuplicateAddress(gpu.pci));
            }
        }
        gpus.sort_by_key(|gpu| gpu.index);
        Ok(Self { gpus, ..Self::default() })
    }

    /// The same with GPUs handed over as `exposures` say; those that it does not name, mediated.
    #[must_use]
    pub fn exposing(self, exposures: BTreeMap<GpuUuid, Exposure>) -> Self {
        Self { exposures, ..self }
    }

    /// The same with the GPUs `in_mig_mode` handed over as these MIG instances of theirs, and in no
    /// other way.
    ///
    /// # Errors
    /// When such a GPU is to be handed over otherwise, or the instances are not parts of such GPUs.
    pub fn partitioned(
        mut self,
        in_mig_mode: &BTreeSet<GpuUuid>,
        mut instances: Vec<MigInstance>,
    ) -> Result<Self, InventoryError> {
        for gpu in in_mig_mode {
            if let Some(exposure) = self.exposures.insert(*gpu, Exposure::Mig)
                && exposure != Exposure::Mig
            {
                return Err(InventoryError::InMigMode { gpu: *gpu, exposure });
            }
        }
        instances.sort_by_key(|instance| (instance.gpu, instance.uuid));
        let parts = instances.iter().map(|instance| (instance.gpu, Part::from(instance)));
        let together = together(parts, |instance, gpu| {
            let known = in_mig_mode.contains(&gpu) && self.gpu(gpu).is_some();
            let orphan = InventoryError::Orphan { instance, gpu };
            if instance.is_mig() && known { Ok(()) } else { Err(orphan) }
        })?;
        for gpu in &self.gpus {
            let Together { bytes, percent, .. } =
                together.get(&gpu.uuid).copied().unwrap_or_default();
            if bytes > gpu.memory.get() || percent > 100 {
                return Err(InventoryError::Overfull(gpu.uuid));
            }
        }
        Ok(Self { instances, ..self })
    }

    /// The same with these vGPUs of GPUs that are handed over as such.
    ///
    /// # Errors
    /// When one is of another GPU, two have one name, or a GPU would have more than it can.
    pub fn with_vgpus(self, mut vgpus: Vec<Vgpu>) -> Result<Self, InventoryError> {
        vgpus.sort_by_key(|vgpu| (vgpu.gpu, vgpu.uuid));
        let parts = vgpus.iter().map(|vgpu| (vgpu.gpu, Part::from(vgpu)));
        let together = together(parts, |vgpu, gpu| {
            let known = self.gpu(gpu).is_some() && self.exposure(gpu) == Exposure::Vgpu;
            let orphan = InventoryError::OrphanVgpu { vgpu, gpu };
            if vgpu.is_vgpu() && known { Ok(()) } else { Err(orphan) }
        })?;
        for gpu in &self.gpus {
            let Together { bytes, count, .. } =
                together.get(&gpu.uuid).copied().unwrap_or_default();
            if bytes > gpu.memory.get() || count > Self::MOST_PARTS {
                return Err(InventoryError::TooManyVgpus(gpu.uuid));
            }
        }
        Ok(Self { vgpus, ..self })
    }

    /// How a GPU is handed over; mediated when nobody said otherwise. A part of one is handed over
    /// as such.
    pub fn exposure(&self, gpu: GpuUuid) -> Exposure {
        match (gpu.is_mig(), gpu.is_vgpu()) {
            (true, _) => Exposure::Mig,
            (false, true) => Exposure::Vgpu,
            (false, false) => self.exposures.get(&gpu).copied().unwrap_or_default(),
        }
    }

    /// The vGPUs of one GPU.
    pub fn vgpus(&self, gpu: GpuUuid) -> impl Iterator<Item = &Vgpu> {
        self.vgpus.iter().filter(move |vgpu| vgpu.gpu == gpu)
    }

    /// The parts that a GPU is handed over as; none where it is not cut.
    pub(crate) fn parts_of(&self, gpu: GpuUuid) -> impl Iterator<Item = Part> {
        let instances = self.instances(gpu).map(Part::from);
        instances.chain(self.vgpus(gpu).map(Part::from))
    }

    /// The MIG instances of one GPU.
    pub fn instances(&self, gpu: GpuUuid) -> impl Iterator<Item = &MigInstance> {
        self.instances.iter().filter(move |instance| instance.gpu == gpu)
    }

    /// What a GPU is handed over as: itself, or its parts.
    pub fn parts(&self, gpu: GpuUuid) -> Vec<GpuUuid> {
        match self.exposure(gpu) {
            Exposure::Mig | Exposure::Vgpu if !gpu.is_part() => {
                self.parts_of(gpu).map(|part| part.uuid).collect()
            }
            Exposure::Mediated | Exposure::Passthrough | Exposure::Mig | Exposure::Vgpu => {
                vec![gpu]
            }
        }
    }

    /// What is called so: a GPU, or a part of one.
    pub fn unit(&self, uuid: GpuUuid) -> Option<Unit<'_>> {
        let instances = self.instances.iter().map(|instance| (instance.gpu, Part::from(instance)));
        let vgpus = self.vgpus.iter().map(|vgpu| (vgpu.gpu, Part::from(vgpu)));
        let part = instances.chain(vgpus).find(|(_, part)| part.uuid == uuid);
        let gpu = self.gpu(part.map_or(uuid, |(gpu, _)| gpu))?;
        Some(Unit { gpu, part: part.map(|(_, part)| part) })
    }

    /// All that a lease can hold, or hold a share of: GPUs, and parts of them.
    pub fn units(&self) -> impl Iterator<Item = GpuUuid> {
        let gpus = self.gpus.iter().map(|gpu| gpu.uuid);
        let instances = self.instances.iter().map(|instance| instance.uuid);
        gpus.chain(instances).chain(self.vgpus.iter().map(|vgpu| vgpu.uuid))
    }

    /// All GPUs, by index.
    pub fn gpus(&self) -> &[Gpu] {
        &self.gpus
    }

    /// The GPU with this UUID.
    pub fn gpu(&self, uuid: GpuUuid) -> Option<&Gpu> {
        self.gpus.iter().find(|gpu| gpu.uuid == uuid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mig_share;

    fn gpu(number: u8) -> Gpu {
        Gpu {
            uuid: GpuUuid::from_bytes([number; 16]),
            index: number.into(),
            name: "A".into(),
            pci: PciAddress::new(0, number, 0, 0).unwrap(),
            memory: MemoryBytes::gib(80),
            compute_capability: ComputeCapability { major: 9, minor: 0 },
            numa_node: None,
            nvlink_peers: BTreeSet::new(),
            mig_capable: true,
            backing: GpuBacking::Physical,
        }
    }

    fn instance(number: u8, of: u8, gib: u64) -> MigInstance {
        MigInstance {
            uuid: GpuUuid::mig_from_bytes([number; 16]),
            gpu: gpu(of).uuid,
            profile: "1g.10gb".parse().unwrap(),
            memory: MemoryBytes::gib(gib),
            share: mig_share(1),
        }
    }

    fn made(instances: Vec<MigInstance>) -> Result<Inventory, InventoryError> {
        let gpus = Inventory::new(vec![gpu(1), gpu(2)]).unwrap();
        gpus.partitioned(&BTreeSet::from([gpu(1).uuid]), instances)
    }

    #[test]
    fn a_gpu_in_mig_mode_is_its_instances_and_nothing_else() {
        let inventory = made(vec![instance(7, 1, 10), instance(8, 1, 10)]).unwrap();
        assert_eq!(inventory.exposure(gpu(1).uuid), Exposure::Mig);
        assert_eq!(inventory.exposure(gpu(2).uuid), Exposure::Mediated);
        assert_eq!(inventory.instances(gpu(1).uuid).count(), 2);
        let unit = inventory.unit(GpuUuid::mig_from_bytes([7; 16])).unwrap();
        assert_eq!((unit.gpu.uuid, unit.memory()), (gpu(1).uuid, MemoryBytes::gib(10)));
        assert!(inventory.unit(GpuUuid::mig_from_bytes([9; 16])).is_none());
        assert_eq!(inventory.units().count(), 4);
        let json = serde_json::to_string(&inventory).unwrap();
        assert_eq!(serde_json::from_str::<Inventory>(&json).unwrap(), inventory);
    }

    #[test]
    fn a_listing_that_cannot_be_is_refused() {
        let full = (10..19).map(|n| instance(n, 1, 10)).collect();
        let no_mig = MigInstance { uuid: gpu(3).uuid, ..instance(7, 1, 10) };
        for (instances, part) in [
            (vec![instance(7, 1, 10), instance(7, 1, 10)], "have the UUID MIG-07"),
            (vec![instance(7, 2, 10)], "no GPU in MIG mode"),
            (vec![instance(7, 9, 10)], "no GPU in MIG mode"),
            (vec![no_mig], "no GPU in MIG mode"),
            (vec![instance(7, 1, 0)], "reports no memory"),
            (full, "more memory or compute than it has"),
        ] {
            let said = made(instances).unwrap_err().to_string();
            assert!(said.contains(part), "{said} lacks {part}");
        }
        let whole = BTreeMap::from([(gpu(1).uuid, Exposure::Passthrough)]);
        let gpus = Inventory::new(vec![gpu(1)]).unwrap().exposing(whole);
        let both = gpus.partitioned(&BTreeSet::from([gpu(1).uuid]), Vec::new()).unwrap_err();
        assert!(both.to_string().contains("turn MIG mode off"), "{both}");
        let mig = Gpu { uuid: GpuUuid::mig_from_bytes([1; 16]), ..gpu(1) };
        assert!(matches!(Inventory::new(vec![mig]), Err(InventoryError::NotAGpu(_))));
    }
}
