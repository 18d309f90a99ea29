//! Quotas of a whole cluster, as far as one node can hold its leases to them.
//!
//! Whoever places leases here says which quotas hold for each, and which leases belong together
//! (the containers of a pod). A node sees its own part of what such a quota counts, so what is
//! more than the quota grants here is more than it grants anywhere.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{Admission, Exposure, Inventory, MemoryBytes, Placement, QuotaRefusal};

/// Limits on what is held; what is left out has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Memory over all GPUs.
    pub memory: Option<MemoryBytes>,
    /// GPUs; one that is held in part counts as one.
    pub gpus: Option<u32>,
    /// Per cent of a GPU's time over all GPUs.
    pub share: Option<u32>,
    /// Groups of leases that belong together: pods.
    pub groups: Option<u32>,
}

/// A quota of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterQuota {
    /// What it is called.
    pub name: String,
    /// What may be held under it, together.
    pub limits: Limits,
    /// What one group may hold.
    pub per_group: Limits,
    /// What may be held of GPUs of one product name, together.
    pub models: Vec<(String, Limits)>,
    /// What may be held of GPUs that are handed over in one way, together.
    pub exposures: Vec<(Exposure, Limits)>,
}

/// What quotas of the cluster a lease was made under, for those that count it later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Under {
    /// Which leases it belongs together with.
    pub group: String,
    /// The quotas' names.
    pub quotas: BTreeSet<String>,
}

/// What a lease is placed under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterTerms {
    /// Which leases it belongs together with.
    pub group: String,
    /// The quotas that hold for it.
    pub quotas: Vec<ClusterQuota>,
}

impl ClusterTerms {
    /// What later leases count it under.
    pub fn under(&self) -> Under {
        let quotas = self.quotas.iter().map(|quota| quota.name.clone()).collect();
        Under { group: self.group.clone(), quotas }
    }
}

/// A lease, as quotas count it.
#[derive(Clone, Copy, Debug)]
pub struct Counted<'a> {
    /// What it holds.
    pub placement: &'a Placement,
    /// How its GPUs are handed over.
    pub exposure: Exposure,
    /// What it was made under.
    pub under: &'a Under,
}

/// Which limit of a quota of the cluster would be broken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "quota '{quota}' of the cluster{of}: {what} {held} held on this node + {asked} asked is more than the {limit} granted; ask for less, end a pod that it counts, or an administrator grants more in the GpuQuota '{quota}'"
)]
pub struct OverClusterQuota {
    quota: String,
    of: String,
    what: String,
    held: String,
    asked: String,
    limit: String,
}

/// What is held, added up.
#[derive(Clone, Debug, Default)]
struct Sum<'a> {
    memory: u64,
    gpus: u64,
    share: u64,
    groups: BTreeSet<&'a str>,
}

impl<'a> Sum<'a> {
    /// Of those GPUs of leases that `counts` lets through.
    fn of(
        leases: impl Iterator<Item = Counted<'a>>,
        counts: impl Fn(&Counted<'a>, crate::GpuUuid) -> bool,
    ) -> Self {
        let mut sum = Self::default();
        for lease in leases {
            for grant in lease.placement.grants().iter().filter(|grant| counts(&lease, grant.gpu)) {
                sum.memory = sum.memory.saturating_add(grant.memory.get());
                sum.gpus = sum.gpus.saturating_add(1);
                sum.share = sum.share.saturating_add(grant.share.percent().into());
                sum.groups.insert(&lease.under.group);
            }
        }
        sum
    }

    /// The first limit that these and `more` break together; one of which `more` has nothing is
    /// none of its business.
    fn broken(&self, more: &Self, limits: &Limits) -> Option<[String; 4]> {
        let memory = |bytes: u64| MemoryBytes::saturating(bytes).to_string();
        if let Some(limit) = limits.memory
            && more.memory > 0
            && self.memory.saturating_add(more.memory) > limit.get()
        {
            let (held, asked) = (memory(self.memory), memory(more.memory));
            return Some(["memory".into(), held, asked, limit.to_string()]);
        }
        let new = more.groups.iter().filter(|group| !self.groups.contains(*group)).count();
        let counts = [
            ("GPUs", self.gpus, more.gpus, limits.gpus),
            ("share (%)", self.share, more.share, limits.share),
            ("pods", self.groups.len() as u64, new as u64, limits.groups),
        ];
        counts.into_iter().find_map(|(what, held, asked, limit)| {
            let limit = u64::from(limit?);
            let broken = asked > 0 && held.saturating_add(asked) > limit;
            broken
                .then(|| [what.to_owned(), held.to_string(), asked.to_string(), limit.to_string()])
        })
    }
}

impl Admission {
    /// The same, if the quotas of the cluster let it be, too: `held` are the node's leases.
    ///
    /// # Errors
    /// When one does not; the refusal names it, the limit, what is held here and what was asked.
    pub fn within(
        self,
        terms: &ClusterTerms,
        exposure: Exposure,
        held: &[Counted<'_>],
        inventory: &Inventory,
    ) -> Result<Self, QuotaRefusal> {
        let asked =
            Counted { placement: &self.demand().placement, exposure, under: &terms.under() };
        for quota in &terms.quotas {
            quota.check(asked, held, inventory)?;
        }
        Ok(self)
    }
}

impl ClusterQuota {
    fn check(
        &self,
        asked: Counted<'_>,
        held: &[Counted<'_>],
        inventory: &Inventory,
    ) -> Result<(), QuotaRefusal> {
        let held: Vec<Counted<'_>> =
            held.iter().filter(|lease| lease.under.quotas.contains(&self.name)).copied().collect();
        let check =
            |of: String, limits: &Limits, counts: &dyn Fn(&Counted<'_>, crate::GpuUuid) -> bool| {
                let before = Sum::of(held.iter().copied(), counts);
                let more = Sum::of(std::iter::once(asked), counts);
                let Some([what, held, asked, limit]) = before.broken(&more, limits) else {
                    return Ok(());
                };
                let quota = self.name.clone();
                let over = OverClusterQuota { quota, of, what, held, asked, limit };
                Err(QuotaRefusal::Cluster(Box::new(over)))
            };
        check(String::new(), &self.limits, &|_, _| true)?;
        let group = &asked.under.group;
        check(" for one pod".into(), &self.per_group, &|lease, _| lease.under.group == *group)?;
        for (model, limits) in &self.models {
            let of = |gpu| inventory.unit(gpu).is_some_and(|unit| unit.gpu.name == *model);
            check(format!(" for '{model}'"), limits, &|_, gpu| of(gpu))?;
        }
        for (exposure, limits) in &self.exposures {
            check(format!(" for {exposure}"), limits, &|lease, _| lease.exposure == *exposure)?;
        }
        Ok(())
    }
}
