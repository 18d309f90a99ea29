use gpuzone_core::MemoryBytes;
use gpuzone_core::engine::{Choice, ModelClass, NodeRoom};

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

/// What pods hold, in all and of each model of GPUs. All GPUs that there are so far are handed
/// over in one way, so what is held in that way is all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// In all.
    pub total: Amount,
    /// Of one model each, in their order; GPUs that no node reports are of none.
    models: Vec<(ModelClass, Amount)>,
}

impl Usage {
    /// Of one pod.
    pub fn of_pod() -> Self {
        Self { total: Amount { pods: 1, ..Amount::default() }, models: Vec::new() }
    }

    /// Of a pod that gets `choice` of `room`.
    pub fn of_choice(room: &NodeRoom, choice: &Choice) -> Self {
        let mut usage = Self::of_pod();
        for given in choice.containers().iter().flatten() {
            let model = room.gpus().get(given.gpu).map(|gpu| gpu.kind().model);
            usage.add_gpu(model, given.memory, u64::from(given.share.get() / 10));
        }
        usage
    }

    /// Adds what is held of one GPU.
    pub fn add_gpu(&mut self, model: Option<ModelClass>, memory: MemoryBytes, share: u64) {
        let amount = Amount { memory: memory.get(), gpus: 1, share, pods: 0 };
        self.total = self.total.plus(amount);
        if let Some(model) = model {
            self.change(model, |own| own.plus(amount));
        }
    }

    fn change(&mut self, model: ModelClass, with: impl FnOnce(Amount) -> Amount) {
        match self.models.binary_search_by_key(&model, |(model, _)| *model) {
            Ok(at) => {
                if let Some((_, own)) = self.models.get_mut(at) {
                    *own = with(*own);
                }
            }
            Err(at) => self.models.insert(at, (model, with(Amount::default()))),
        }
    }

    /// Adds another.
    pub fn add(&mut self, other: &Self) {
        self.total = self.total.plus(other.total);
        for (model, amount) in &other.models {
            self.change(*model, |own| own.plus(*amount));
        }
    }

    /// Takes away what was added.
    pub fn remove(&mut self, other: &Self) {
        self.total = self.total.minus(other.total);
        for (model, amount) in &other.models {
            self.change(*model, |own| own.minus(*amount));
        }
        self.models.retain(|(_, amount)| *amount != Amount::default());
    }

    /// Of one model.
    pub fn of(&self, model: ModelClass) -> Amount {
        let found = self.models.iter().find(|(own, _)| *own == model);
        found.map(|(_, amount)| *amount).unwrap_or_default()
    }
}
