use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Exposure, GpuUuid, MemoryBytes, PciAddress};

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
}

impl Inventory {
    /// The inventory of these GPUs.
    ///
    /// # Errors
    /// When two have the same UUID, or one has no memory.
    pub fn new(mut gpus: Vec<Gpu>) -> Result<Self, InventoryError> {
        let mut seen = BTreeSet::new();
        for gpu in &gpus {
            if !seen.insert(gpu.uuid) {
                return Err(InventoryError::DuplicateUuid(gpu.uuid));
            }
            if gpu.memory.is_zero() {
                return Err(InventoryError::NoMemory(gpu.uuid));
            }
        }
        gpus.sort_by_key(|gpu| gpu.index);
        Ok(Self { gpus, exposures: BTreeMap::new() })
    }

    /// The same with GPUs handed over as `exposures` say; those that it does not name, mediated.
    #[must_use]
    pub fn exposing(self, exposures: BTreeMap<GpuUuid, Exposure>) -> Self {
        Self { exposures, ..self }
    }

    /// How a GPU is handed over; mediated when nobody said otherwise.
    pub fn exposure(&self, gpu: GpuUuid) -> Exposure {
        self.exposures.get(&gpu).copied().unwrap_or_default()
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
