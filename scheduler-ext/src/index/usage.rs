use gpuzone_core::engine::{Choice, ModelClass, ModelSet, NodeRoom};
use gpuzone_core::{Exposure, MemoryBytes};

/// Amounts of what pods hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Bytes of GPU memory.
    pub memory: u64,
    /// GPUs; one that is held in part counts as one.
    pub gpus: u64,
    /// Per cent of a GPU's time.
    pub share: u64,
    /// Pods.
    pub pods: u64,
}

impl Amount {
    fn combined(self, other: Self, with: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            memory: with(self.memory, other.memory),
            gpus: with(self.gpus, other.gpus),
            share: with(self.share, other.share),
            pods: with(self.pods, other.pods),
        }
    }

    /// The sum.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        self.combined(other, u64::saturating_add)
    }

    /// The difference, nothing where `other` is larger.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        self.combined(other, u64::saturating_sub)
    }

    /// Its memory as a quantity.
    pub fn memory_bytes(&self) -> MemoryBytes {
        MemoryBytes::saturating(self.memory)
    }
}

/// A GPU, as far as quotas tell it from others.
pub(super) type Sort = (ModelClass, Exposure);

/// What pods hold, in all, of each model of GPUs, and of each way in which they are handed over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// In all.
    pub total: Amount,
    /// Of one sort each, in their order; GPUs that no node reports are of none.
    sorts: Vec<(Sort, Amount)>,
}

impl Usage {
    /// Of one pod.
    pub fn of_pod() -> Self {
        Self { total: Amount { pods: 1, ..Amount::default() }, sorts: Vec::new() }
    }

    /// Of a pod that gets `choice` of `room`.
    pub fn of_choice(room: &NodeRoom, choice: &Choice) -> Self {
        let mut usage = Self::of_pod();
        for given in choice.containers().iter().flatten() {
            let kind = room.gpus().get(given.gpu).map(gpuzone_core::engine::GpuRoom::kind);
            let sort = kind.map(|kind| (kind.model, kind.exposure));
            usage.add_gpu(sort, given.memory, u64::from(given.share.get() / 10));
        }
        usage
    }

    /// Adds what is held of one GPU.
    pub(super) fn add_gpu(&mut self, sort: Option<Sort>, memory: MemoryBytes, share: u64) {
        let amount = Amount { memory: memory.get(), gpus: 1, share, pods: 0 };
        self.total = self.total.plus(amount);
        if let Some(sort) = sort {
            self.change(sort, |own| own.plus(amount));
        }
    }

    fn change(&mut self, sort: Sort, with: impl FnOnce(Amount) -> Amount) {
        match self.sorts.binary_search_by_key(&sort, |(sort, _)| *sort) {
            Ok(at) => {
                if let Some((_, own)) = self.sorts.get_mut(at) {
                    *own = with(*own);
                }
            }
            Err(at) => self.sorts.insert(at, (sort, with(Amount::default()))),
        }
    }

    /// Adds another.
    pub fn add(&mut self, other: &Self) {
        self.total = self.total.plus(other.total);
        for (sort, amount) in &other.sorts {
            self.change(*sort, |own| own.plus(*amount));
        }
    }

    /// Takes away what was added.
    pub fn remove(&mut self, other: &Self) {
        self.total = self.total.minus(other.total);
        for (sort, amount) in &other.sorts {
            self.change(*sort, |own| own.minus(*amount));
        }
        self.sorts.retain(|(_, amount)| *amount != Amount::default());
    }

    /// Of these models.
    pub fn of(&self, models: ModelSet) -> Amount {
        self.sum(|(own, _)| models.contains(own))
    }

    /// Of GPUs that are handed over in one way.
    pub fn exposed(&self, exposure: Exposure) -> Amount {
        self.sum(|(_, own)| own == exposure)
    }

    fn sum(&self, of: impl Fn(Sort) -> bool) -> Amount {
        let own = self.sorts.iter().filter(|(sort, _)| of(*sort));
        own.fold(Amount::default(), |sum, (_, amount)| sum.plus(*amount))
    }
}
