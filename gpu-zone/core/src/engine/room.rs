use crate::{ComputeShare, Exposure, MemoryBytes};

use super::{Choice, Given, HostDemand, ModelClass};

/// A part of one GPU's time in thousandths: 0 to 1000. A [`ComputeShare`] is whole per cents;
/// traces of clusters count in thousandths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShareMilli(u16);

impl ShareMilli {
    /// None of it.
    pub const NONE: Self = Self(0);
    /// A whole GPU's time.
    pub const WHOLE: Self = Self(1000);

    /// `milli` thousandths, at most 1000.
    pub const fn new(milli: u16) -> Option<Self> {
        if milli <= 1000 { Some(Self(milli)) } else { None }
    }

    /// The thousandths, 0 to 1000.
    pub const fn get(self) -> u16 {
        self.0
    }

    /// The difference, unless `other` is larger.
    pub const fn checked_sub(self, other: Self) -> Option<Self> {
        match self.0.checked_sub(other.0) {
            Some(milli) => Some(Self(milli)),
            None => None,
        }
    }

    /// The sum, at most a whole.
    #[must_use]
    pub fn saturating_add(self, other: Self) -> Self {
        Self((self.0 + other.0).min(1000))
    }

    /// As whole per cents, rounded down; `None` below 1 %.
    pub fn as_share(self) -> Option<ComputeShare> {
        ComputeShare::new(u32::from(self.0 / 10)).ok()
    }
}

impl From<ComputeShare> for ShareMilli {
    fn from(share: ComputeShare) -> Self {
        // At most 100 %, so it is in range.
        Self(u16::try_from(share.percent() * 10).unwrap_or(1000).min(1000))
    }
}

/// What of a GPU does not change while leases come and go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GpuKind {
    /// All of its memory.
    pub memory: MemoryBytes,
    /// Its product.
    pub model: ModelClass,
    /// How it is handed over.
    pub exposure: Exposure,
    /// Whether it serves new leases.
    pub healthy: bool,
    /// The NUMA node it is near to, where the machine says.
    pub numa: Option<u16>,
    /// GPUs of a node with one number reach each other over NVLink.
    pub nvlink: Option<u16>,
}

/// A GPU and what is free of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GpuRoom {
    // What differs most between GPUs is compared first.
    free_memory: MemoryBytes,
    free_share: ShareMilli,
    /// Follows from the others, and is asked for far more often than they change.
    free_milli: u16,
    kind: GpuKind,
}

impl GpuRoom {
    /// A GPU that nobody uses.
    pub fn empty(kind: GpuKind) -> Self {
        Self::with_free(kind, kind.memory, ShareMilli::WHOLE)
    }

    /// A GPU of which this much is free; no more memory than it has.
    pub fn with_free(kind: GpuKind, memory: MemoryBytes, share: ShareMilli) -> Self {
        let free_memory = memory.min(kind.memory);
        let free_milli = scarcer(free_memory, kind.memory, share);
        Self { free_memory, free_share: share, free_milli, kind }
    }

    /// What it is.
    pub const fn kind(&self) -> &GpuKind {
        &self.kind
    }

    /// Memory that is free.
    pub const fn free_memory(&self) -> MemoryBytes {
        self.free_memory
    }

    /// Time that is free.
    pub const fn free_share(&self) -> ShareMilli {
        self.free_share
    }

    /// Whether nobody uses any of it.
    pub fn is_whole(&self) -> bool {
        self.free_memory == self.kind.memory && self.free_share == ShareMilli::WHOLE
    }

    /// Thousandths of it that can still be given: of memory and time, what is scarcer.
    pub const fn free_milli(&self) -> u16 {
        self.free_milli
    }

    /// Whether `memory` and `share` are free.
    pub fn has(&self, memory: MemoryBytes, share: ShareMilli) -> bool {
        memory <= self.free_memory && share <= self.free_share
    }

    /// The same with less free; `None` when that much is not.
    #[must_use]
    pub fn less(self, memory: MemoryBytes, share: ShareMilli) -> Option<Self> {
        let memory = self.free_memory.checked_sub(memory)?;
        Some(Self::with_free(self.kind, memory, self.free_share.checked_sub(share)?))
    }

    fn more(self, memory: MemoryBytes, share: ShareMilli) -> Self {
        let free = self.free_memory.get().saturating_add(memory.get());
        let memory = MemoryBytes::saturating(free);
        Self::with_free(self.kind, memory, self.free_share.saturating_add(share))
    }
}

/// Thousandths that are free: of memory and time, what is scarcer.
fn scarcer(free: MemoryBytes, total: MemoryBytes, share: ShareMilli) -> u16 {
    if free == total {
        return share.get();
    }
    let (free, total) = (free.get(), total.get().max(1));
    let memory = match free.checked_mul(1000) {
        Some(thousand) => thousand / total,
        // 16 PiB and above: never seen, and slower.
        None => u64::try_from(u128::from(free) * 1000 / u128::from(total)).unwrap_or(1000),
    };
    u16::try_from(memory).unwrap_or(1000).min(share.get())
}

/// What is free of a node beside its GPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct HostRoom {
    /// Thousandths of processors.
    pub cpu_milli: u64,
    /// Memory.
    pub memory: MemoryBytes,
}

impl HostRoom {
    pub(super) fn less(self, taken: HostDemand) -> Option<Self> {
        Some(Self {
            cpu_milli: self.cpu_milli.checked_sub(taken.cpu_milli)?,
            memory: self.memory.checked_sub(taken.memory)?,
        })
    }
}

/// A node and what is free of it. No more than 64 GPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct NodeRoom {
    host: HostRoom,
    gpus: Vec<GpuRoom>,
}

/// More GPUs than a node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a node has at most 64 GPUs, not {0}")]
pub struct TooManyGpus(pub usize);

/// What was chosen is not free any more. Nothing was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what was chosen on the node is not free any more; choose again")]
pub struct Taken;

impl NodeRoom {
    /// The most GPUs of one node.
    pub const MOST_GPUS: usize = 64;

    /// A node with this room.
    ///
    /// # Errors
    /// When there are more than [`NodeRoom::MOST_GPUS`].
    pub fn new(host: HostRoom, gpus: Vec<GpuRoom>) -> Result<Self, TooManyGpus> {
        if gpus.len() > Self::MOST_GPUS {
            Err(TooManyGpus(gpus.len()))
        } else {
            Ok(Self { host, gpus })
        }
    }

    /// What is free beside the GPUs.
    pub const fn host(&self) -> HostRoom {
        self.host
    }

    /// The GPUs, in the order in which a [`Given::gpu`] counts them.
    pub fn gpus(&self) -> &[GpuRoom] {
        &self.gpus
    }

    /// Takes what was chosen.
    ///
    /// # Errors
    /// When it is not free. Nothing changes then.
    pub fn take(&mut self, choice: &Choice) -> Result<(), Taken> {
        let mut after = self.clone();
        after.host = after.host.less(choice.host()).ok_or(Taken)?;
        for given in choice.containers().iter().flatten() {
            let gpu = after.gpus.get_mut(given.gpu).ok_or(Taken)?;
            *gpu = gpu.less(given.memory, given.share).ok_or(Taken)?;
        }
        *self = after;
        Ok(())
    }

    /// Gives back what was taken. More than there is of a GPU is never free.
    pub fn give_back(&mut self, choice: &Choice) {
        let wanted = choice.host();
        self.host.cpu_milli = self.host.cpu_milli.saturating_add(wanted.cpu_milli);
        let memory = self.host.memory.get().saturating_add(wanted.memory.get());
        self.host.memory = MemoryBytes::saturating(memory);
        for Given { gpu, memory, share } in choice.containers().iter().flatten() {
            if let Some(gpu) = self.gpus.get_mut(*gpu) {
                *gpu = gpu.more(*memory, *share);
            }
        }
    }
}
