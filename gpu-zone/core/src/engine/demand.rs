use crate::{ComputeShare, Exposure, GpuCount, MemoryBytes};

use super::{GpuRoom, ModelSet, ShareMilli};

/// Memory of each GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MemoryAsk {
    /// So many bytes; never none.
    Bytes(MemoryBytes),
    /// So many per cent of what the GPU has, rounded down.
    Percent(ComputeShare),
}

/// How much of each GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Amount {
    /// All of it, to itself.
    Whole,
    /// A part that others leave.
    Part {
        /// Its memory.
        memory: MemoryAsk,
        /// Its time; `None` is the same part of the time as of the memory, in whole per cents
        /// rounded down but at least 1 %, as the node grants it.
        share: Option<ShareMilli>,
    },
}

impl Amount {
    /// What it comes to on a GPU.
    pub fn on(&self, gpu: &GpuRoom) -> (MemoryBytes, ShareMilli) {
        let total = gpu.kind().memory;
        let (memory, share) = match self {
            // A vGPU is all of the part that it is: one that somebody has, has no memory left.
            Self::Whole if gpu.kind().exposure == Exposure::Vgpu => {
                return (total, gpu.free_share());
            }
            Self::Whole => return (total, ShareMilli::WHOLE),
            Self::Part { memory, share } => (memory, share),
        };
        let memory = match memory {
            MemoryAsk::Bytes(bytes) => *bytes,
            MemoryAsk::Percent(part) => {
                let bytes = u128::from(total.get()) * u128::from(part.percent()) / 100;
                MemoryBytes::saturating(u64::try_from(bytes).unwrap_or(u64::MAX))
            }
        };
        (memory, share.unwrap_or_else(|| proportional(memory, total)))
    }
}

fn proportional(part: MemoryBytes, whole: MemoryBytes) -> ShareMilli {
    let percent = u128::from(part.get()) * 100 / u128::from(whole.get().max(1));
    let percent = u32::try_from(percent).unwrap_or(100).clamp(1, 100);
    ComputeShare::new(percent).map_or(ShareMilli::WHOLE, ShareMilli::from)
}

/// How near to each other several GPUs of one container must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topology {
    /// Anywhere on the node.
    #[default]
    Any,
    /// All near to one NUMA node.
    SameNuma,
    /// All joined by NVLink.
    NvLink,
}

/// What one container asks of GPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Demand {
    /// How many distinct ones.
    pub gpus: GpuCount,
    /// How much of each.
    pub amount: Amount,
    /// Which models will do.
    pub models: ModelSet,
    /// How near to each other.
    pub topology: Topology,
    /// How they are handed over.
    pub exposure: Exposure,
}

impl Demand {
    /// `gpus` times `amount`, of any model, anywhere.
    pub fn new(gpus: GpuCount, amount: Amount) -> Self {
        let (topology, exposure) = (Topology::default(), Exposure::default());
        Self { gpus, amount, models: ModelSet::ANY, topology, exposure }
    }

    /// Whether a GPU could ever serve this, however empty.
    pub fn suits(&self, gpu: &GpuRoom) -> bool {
        let kind = gpu.kind();
        self.models.contains(kind.model) && self.exposure == kind.exposure
    }
}

/// What a pod asks of its host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostDemand {
    /// Thousandths of processors.
    pub cpu_milli: u64,
    /// Memory.
    pub memory: MemoryBytes,
}

/// What a pod asks for: its containers' demands are served together, on one node. Whoever makes
/// one decides what containers that do not run at once come to.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodDemand {
    /// Of the host.
    pub host: HostDemand,
    /// Of GPUs, for each container that asks for some. None is a pod without GPUs.
    pub containers: Vec<Demand>,
}
