use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{ComputeShare, Exposure, GpuUuid, MemoryBytes};

/// What a lease holds of one GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Which GPU, or which MIG instance of one.
    pub gpu: GpuUuid,
    /// Its memory: the limit, and what is billed.
    pub memory: MemoryBytes,
    /// Its time: the guaranteed minimum.
    pub share: ComputeShare,
}

/// Which GPUs a request gets, in the order in which the program sees them. Never empty,
/// and no GPU twice: [`crate::NodeState::place`] makes one, or [`Placement::of`] checks what
/// somebody else chose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Placement {
    grants: Vec<Grant>,
}

/// Why a list of grants is no placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPlacement {
    /// No grant.
    #[error("a placement names at least one GPU")]
    Empty,
    /// More GPUs than a node has.
    #[error("a placement names at most {} GPUs", Placement::MOST)]
    TooMany,
    /// A GPU stands there twice.
    #[error("a placement names {0} twice")]
    Twice(GpuUuid),
    /// A grant of no memory.
    #[error("a placement gives memory of each GPU that it names, and of {0} it gives none")]
    NoMemory(GpuUuid),
    /// A MIG instance is not alone.
    #[error(
        "a placement of the MIG instance {0} names nothing else: CUDA shows a program one instance and no GPU beside it; ask for one in each container"
    )]
    BesideMig(GpuUuid),
}

impl Placement {
    /// The most GPUs that one placement has, as of [`crate::GpuCount`].
    pub const MOST: usize = 64;

    /// The placement of these grants, which somebody else chose.
    ///
    /// # Errors
    /// When there is none or too many, a GPU is there twice, one gives no memory, or a MIG instance
    /// is not alone.
    pub fn of(grants: Vec<Grant>) -> Result<Self, InvalidPlacement> {
        if grants.is_empty() {
            return Err(InvalidPlacement::Empty);
        }
        if grants.len() > Self::MOST {
            return Err(InvalidPlacement::TooMany);
        }
        let mut seen = BTreeSet::new();
        for grant in &grants {
            if !seen.insert(grant.gpu) {
                return Err(InvalidPlacement::Twice(grant.gpu));
            }
            if grant.memory.is_zero() {
                return Err(InvalidPlacement::NoMemory(grant.gpu));
            }
        }
        let instance = grants.iter().find(|grant| grant.gpu.is_mig());
        match instance {
            Some(instance) if grants.len() > 1 => Err(InvalidPlacement::BesideMig(instance.gpu)),
            Some(_) | None => Ok(Self { grants }),
        }
    }

    /// Whether it is of a MIG instance: then it is of nothing else.
    pub fn is_mig(&self) -> bool {
        self.grants.iter().any(|grant| grant.gpu.is_mig())
    }

    pub(crate) fn new(grants: Vec<Grant>) -> Self {
        Self { grants }
    }

    /// What is held of each GPU.
    pub fn grants(&self) -> &[Grant] {
        &self.grants
    }

    /// Memory over all GPUs.
    pub fn memory(&self) -> MemoryBytes {
        let sum = |sum: u64, grant: &Grant| sum.saturating_add(grant.memory.get());
        MemoryBytes::saturating(self.grants.iter().fold(0, sum))
    }

    /// Per cent of a GPU's time, over all GPUs.
    pub fn share_percent(&self) -> u32 {
        self.grants.iter().map(|grant| grant.share.percent()).sum()
    }
}

/// Why no GPUs of a node serve a request. Each says what would have to change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlacementRefusal {
    /// The node has no GPU at all.
    #[error("this node has no GPU; `gpu-zone doctor` says what is missing")]
    NoGpu,
    /// All are handed over in another way.
    #[error(
        "none of this node's {gpus} GPU(s) is handed over as {asked}; `gpu-zone gpus` lists how each is, and [[gpu]] in the agent's configuration says it"
    )]
    NotExposed {
        /// How it would have to be.
        asked: Exposure,
        /// How many there are.
        gpus: usize,
    },
    /// A request for zero bytes.
    #[error(
        "the request asks for 0 bytes of GPU memory; ask for more, or leave memory out for a whole GPU"
    )]
    NoMemory,
    /// No GPU bears the product name.
    #[error("no GPU of this node is a '{model}'; it has: {present}")]
    NoSuchModel {
        /// What was asked for.
        model: String,
        /// The names that are there.
        present: String,
    },
    /// More GPUs than there are.
    #[error("needs {asked} GPUs: this node has {present} that match")]
    TooFewGpus {
        /// How many were asked for.
        asked: u32,
        /// How many could ever serve.
        present: usize,
    },
    /// Larger than any GPU, however empty.
    #[error("needs {asked} on one GPU: the largest of {gpus} has {largest}")]
    LargerThanAnyGpu {
        /// Memory on each GPU.
        asked: MemoryBytes,
        /// The largest GPU's memory.
        largest: MemoryBytes,
        /// How many GPUs were looked at.
        gpus: usize,
    },
    /// Enough GPUs are there, but not enough that may be used.
    #[error(
        "needs {asked} GPU(s): {unhealthy} of the {gpus} that match are suspended or in quarantine. `gpu-zone gpus` says why and what to do"
    )]
    Unhealthy {
        /// How many were asked for.
        asked: u32,
        /// How many match.
        gpus: usize,
        /// How many of those serve nobody new.
        unhealthy: usize,
    },
    /// Would fit an empty node, not this one now.
    #[error(
        "needs {asked} and {share} of the time on {count} GPU(s): only {fitting} of {gpus} can give that now; the best has {free} and {free_share}% free. Wait for a lease to end, or ask for less"
    )]
    NoRoom {
        /// Memory on each GPU, as a sentence shows it.
        asked: String,
        /// Share of each GPU, as a sentence shows it.
        share: String,
        /// How many GPUs were asked for.
        count: u32,
        /// How many have room.
        fitting: usize,
        /// How many were looked at.
        gpus: usize,
        /// Free memory of the emptiest.
        free: MemoryBytes,
        /// Free time of the emptiest, in per cent.
        free_share: u32,
    },
}
