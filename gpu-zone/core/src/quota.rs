use serde::{Deserialize, Serialize};

use crate::{MemoryBytes, OverClusterQuota, Placement, Priority, TenantId, TimeTerms};

/// What a tenant may hold at once. A limit that is left out is no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantQuota {
    /// Memory over all leases and GPUs.
    pub memory: Option<MemoryBytes>,
    /// Per cent of a GPU's time over all leases and GPUs; 250 is two and a half GPUs.
    pub share: Option<u32>,
    /// GPUs over all leases; a GPU held in part counts as one.
    pub gpus: Option<u32>,
    /// Leases.
    pub leases: Option<u32>,
    /// Whether leases may be latency-critical, and so go before all others on their GPUs.
    #[serde(default)]
    pub latency_critical: bool,
}

/// What a tenant holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holdings {
    /// Memory over all leases and GPUs.
    pub memory: MemoryBytes,
    /// Per cent of a GPU's time over all leases and GPUs.
    pub share: u32,
    /// GPUs over all leases; a GPU held in part counts as one.
    pub gpus: u32,
    /// Leases.
    pub leases: u32,
}

impl Holdings {
    /// These and what `placement` adds; saturates, which no quota admits.
    pub fn with(self, placement: &Placement) -> Self {
        let gpus = u32::try_from(placement.grants().len()).unwrap_or(u32::MAX);
        let memory = self.memory.get().saturating_add(placement.memory().get());
        Self {
            memory: MemoryBytes::saturating(memory),
            share: self.share.saturating_add(placement.share_percent()),
            gpus: self.gpus.saturating_add(gpus),
            leases: self.leases.saturating_add(1),
        }
    }
}

/// What a request comes to once its GPUs are known; the argument of [`admit`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Who asks.
    pub tenant: TenantId,
    /// What would be held.
    pub placement: Placement,
    /// How its time would be given.
    pub time: TimeTerms,
}

/// The proof that [`admit`] said yes. [`crate::NodeState::reserve`] takes nothing else.
#[derive(Debug, PartialEq, Eq)]
pub struct Admission {
    demand: Demand,
}

impl Admission {
    /// What was admitted.
    pub fn demand(&self) -> &Demand {
        &self.demand
    }

    pub(crate) fn into_demand(self) -> Demand {
        self.demand
    }
}

/// Why a tenant may not have what it asks for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuotaRefusal {
    /// Nobody granted the tenant anything.
    #[error(
        "tenant '{0}' has no quota on this node; an operator adds [tenants.{0}] or [tenants.default] to the agent's configuration"
    )]
    NoQuota(TenantId),
    /// It would go before all others, which its quota does not say that it may.
    #[error(
        "tenant '{0}' may not have latency-critical leases on this node; ask for batch, or an operator writes latency_critical = true under [tenants.{0}] or [tenants.default] in the agent's configuration"
    )]
    NotUrgent(TenantId),
    /// More of something than a quota of the cluster grants.
    #[error(transparent)]
    Cluster(Box<OverClusterQuota>),
    /// More of something than the quota grants.
    #[error(
        "quota of tenant '{tenant}': {what} {held} held + {asked} asked is more than the {limit} granted; ask for less, end a lease, or an operator grants more in [tenants.{tenant}] or [tenants.default] of the agent's configuration"
    )]
    Exceeded {
        /// Who asked.
        tenant: TenantId,
        /// Which limit: memory, share, GPUs or leases.
        what: &'static str,
        /// Held before.
        held: String,
        /// Asked for now.
        asked: String,
        /// The limit.
        limit: String,
    },
}

/// Answers "may this tenant have this?". The only place that does.
///
/// # Errors
/// When the tenant has no quota, the quota would be exceeded, or it allows no latency-critical
/// leases; the refusal names the limit, what is held and what was asked.
pub fn admit(
    quota: Option<&TenantQuota>,
    held: Holdings,
    demand: Demand,
) -> Result<Admission, QuotaRefusal> {
    let Some(quota) = quota else {
        return Err(QuotaRefusal::NoQuota(demand.tenant));
    };
    match demand.time.priority {
        Priority::LatencyCritical if !quota.latency_critical => {
            return Err(QuotaRefusal::NotUrgent(demand.tenant));
        }
        Priority::LatencyCritical | Priority::Batch => {}
    }
    let asked = Holdings::default().with(&demand.placement);
    let after = held.with(&demand.placement);
    let exceeded = |what, held: String, asked: String, limit: String| QuotaRefusal::Exceeded {
        tenant: demand.tenant.clone(),
        what,
        held,
        asked,
        limit,
    };
    if let Some(limit) = quota.memory.filter(|limit| after.memory > *limit) {
        let (held, asked) = (held.memory.to_string(), asked.memory.to_string());
        return Err(exceeded("memory", held, asked, limit.to_string()));
    }
    let counts = [
        ("share (%)", held.share, asked.share, after.share, quota.share),
        ("GPUs", held.gpus, asked.gpus, after.gpus, quota.gpus),
        ("leases", held.leases, asked.leases, after.leases, quota.leases),
    ];
    for (what, held, asked, after, limit) in counts {
        if let Some(limit) = limit.filter(|limit| after > *limit) {
            return Err(exceeded(what, held.to_string(), asked.to_string(), limit.to_string()));
        }
    }
    Ok(Admission { demand })
}
