//! Quotas: what may be held, by whom.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use gpuzone_core::engine::ModelSet;
use gpuzone_core::{ClusterQuota, Exposure, Limits, MemoryBytes};
use gpuzone_crds::{Amounts, Defaults, GpuQuotaSpec, InvalidQuota};
use kube::core::{Selector, SelectorExt};

use super::{Amount, Index, Usage};
use crate::ask::all_of;

/// What a namespace may have that no quota holds for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WithoutQuota {
    /// Nothing: who is not granted anything has nothing, and a quota that is deleted by mistake
    /// opens no door.
    Refuse,
    /// Whatever there is.
    Admit,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Memory,
    Gpus,
    Share,
    Pods,
}

impl What {
    pub(super) const ALL: [Self; 4] = [Self::Memory, Self::Gpus, Self::Share, Self::Pods];

    /// The limit on it, if there is one.
    pub(super) fn limit(self, limits: &Limits) -> Option<u64> {
        match self {
            Self::Memory => limits.memory.map(MemoryBytes::get),
            Self::Gpus => limits.gpus.map(u64::from),
            Self::Share => limits.share.map(u64::from),
            Self::Pods => limits.groups.map(u64::from),
        }
    }

    pub(super) fn of(self, amount: &Amount) -> u64 {
        match self {
            Self::Memory => amount.memory,
            Self::Gpus => amount.gpus,
            Self::Share => amount.share,
            Self::Pods => amount.pods,
        }
    }

    fn show(self, number: u64) -> String {
        match self {
            Self::Memory => format!("{} of GPU memory", MemoryBytes::saturating(number)),
            Self::Gpus => format!("{number} GPUs"),
            Self::Share => format!("{number}% of GPU time"),
            Self::Pods => format!("{number} pods with GPUs"),
        }
    }
}

/// A quota that can be read.
#[derive(Clone, Debug, Default)]
struct Terms {
    own: ClusterQuota,
    cohort: Option<String>,
    guaranteed: Limits,
    defaults: Defaults,
}

/// A quota.
#[derive(Clone, Debug)]
pub(super) struct Quota {
    /// `None`: it cannot be read, and so it is everybody's.
    selector: Option<Selector>,
    /// Why not, if it cannot be read.
    terms: Result<Terms, String>,
    uid: Option<String>,
    pub(super) generation: Option<i64>,
    /// The namespaces that it holds for.
    pub(super) namespaces: BTreeSet<String>,
}

impl Quota {
    fn read(name: &str, spec: &GpuQuotaSpec, uid: Option<&str>, generation: Option<i64>) -> Self {
        let selector = Selector::try_from(spec.namespace_selector.clone());
        let (selector, unreadable) = match selector {
            Ok(selector) => (Some(selector), None),
            Err(error) => (None, Some(format!("namespaceSelector: {error}"))),
        };
        let read = || Terms::read(name, spec).map_err(|error| error.to_string());
        let terms = unreadable.map_or_else(read, Err);
        let uid = uid.map(str::to_owned);
        Self { selector, terms, uid, generation, namespaces: BTreeSet::new() }
    }

    pub(super) fn choose(&mut self, namespace: &str, labels: &BTreeMap<String, String>) {
        if self.selector.as_ref().is_none_or(|selector| selector.matches(labels)) {
            self.namespaces.insert(namespace.to_owned());
        } else {
            self.namespaces.remove(namespace);
        }
    }

    pub(super) fn forget(&mut self, namespace: &str) {
        self.namespaces.remove(namespace);
    }

    pub(super) fn problem(&self) -> Option<&str> {
        self.terms.as_ref().err().map(String::as_str)
    }

    /// What its pods may hold together; `None` when it cannot be read.
    pub(super) fn limits(&self) -> Option<&Limits> {
        self.terms.as_ref().ok().map(|terms| &terms.own.limits)
    }

    pub(super) fn cohort(&self) -> Option<(&str, &Limits)> {
        let terms = self.terms.as_ref().ok()?;
        Some((terms.cohort.as_deref()?, &terms.guaranteed))
    }
}

impl Terms {
    fn read(name: &str, spec: &GpuQuotaSpec) -> Result<Self, InvalidQuota> {
        let guaranteed = spec.guaranteed.as_ref().map(Amounts::limits).transpose()?;
        Ok(Self {
            own: spec.quota(name)?,
            cohort: spec.cohort.clone(),
            guaranteed: guaranteed.unwrap_or_default(),
            defaults: spec.pod_defaults()?,
        })
    }
}

/// Why a quota lets a pod have nothing. Equal for all nodes where it can be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuotaRefusal {
    /// The API server has the namespace and the index not yet.
    #[error("the namespace '{0}' is not known here yet; it is tried again")]
    NoNamespace(String),
    /// Its label names no tenant.
    #[error("the namespace '{namespace}' is labelled with a tenant that cannot be: {reason}")]
    Tenant {
        /// Which.
        namespace: String,
        /// Why.
        reason: String,
    },
    /// Nobody granted it anything.
    #[error(
        "no GpuQuota holds for the namespace '{namespace}' (tenant '{tenant}'); an administrator creates one whose namespaceSelector matches its labels"
    )]
    None {
        /// Which.
        namespace: String,
        /// Whose.
        tenant: String,
    },
    /// It cannot be read, so it lets nothing through.
    #[error("GpuQuota '{quota}' cannot be read and lets nothing through: {reason}")]
    Unreadable {
        /// Which.
        quota: String,
        /// Why.
        reason: String,
    },
    /// More than it grants.
    #[error("{0}")]
    Exceeded(Box<Exceeded>),
}

/// Which limit, what is used of it, and what was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exceeded {
    quota: String,
    of: String,
    used: String,
    asked: String,
    limit: String,
}

impl Exceeded {
    pub(super) fn quota(&self) -> &str {
        &self.quota
    }
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { quota, of, used, asked, limit } = self;
        write!(f, "GpuQuota '{quota}'{of}: {used} used, {asked} asked, {limit} granted")
    }
}

#[derive(Clone, Debug)]
enum Of {
    All,
    Pod,
    Exposure(Exposure),
    Model(ModelSet, String),
}

#[derive(Clone, Debug)]
struct Gate {
    quota: String,
    of: Of,
    what: What,
    used: u64,
    limit: u64,
}

#[derive(Clone, Debug)]
pub(super) struct CohortGate {
    pub(super) quota: String,
    pub(super) cohort: String,
    pub(super) what: What,
    pub(super) used: u64,
    pub(super) guaranteed: u64,
    pub(super) pool_used: u64,
    pub(super) pool: u64,
}

/// All that has to hold for one more pod of a namespace.
#[derive(Clone, Debug, Default)]
pub(super) struct Gates {
    gates: Vec<Gate>,
    cohorts: Vec<CohortGate>,
}

impl Gates {
    /// Whether a pod that comes to `asked` may have that.
    pub(super) fn check(&self, asked: &Usage) -> Result<(), QuotaRefusal> {
        for gate in &self.gates {
            let amount = match &gate.of {
                Of::All | Of::Pod => asked.total,
                Of::Exposure(exposure) => asked.exposed(*exposure),
                Of::Model(models, _) => asked.of(*models),
            };
            let more = gate.what.of(&amount);
            if more > 0 && gate.used.saturating_add(more) > gate.limit {
                return Err(gate.refusal(more));
            }
        }
        for gate in &self.cohorts {
            let more = gate.what.of(&asked.total);
            let own = gate.used.saturating_add(more) <= gate.guaranteed;
            let lent = gate.pool_used.saturating_add(more) <= gate.pool;
            if more > 0 && !own && !lent {
                return Err(gate.refusal(more));
            }
        }
        Ok(())
    }

    /// Whether a pod that comes to `asked` takes no more than is guaranteed to its quotas, of
    /// everything that their cohorts lend.
    pub(super) fn guarantee(&self, asked: &Usage) -> bool {
        !self.cohorts.is_empty()
            && self.cohorts.iter().all(|gate| {
                let more = gate.what.of(&asked.total);
                gate.used.saturating_add(more) <= gate.guaranteed
            })
    }

    /// The same where others come to `asked` before.
    pub(super) fn beside(mut self, asked: &Usage) -> Self {
        for gate in &mut self.gates {
            let more = match &gate.of {
                Of::Pod => continue,
                Of::All => asked.total,
                Of::Exposure(exposure) => asked.exposed(*exposure),
                Of::Model(models, _) => asked.of(*models),
            };
            gate.used = gate.used.saturating_add(gate.what.of(&more));
        }
        for gate in &mut self.cohorts {
            let more = gate.what.of(&asked.total);
            gate.used = gate.used.saturating_add(more);
            gate.pool_used = gate.pool_used.saturating_add(more);
        }
        self
    }

    /// Whether GPU time is limited.
    pub(super) fn limit_time(&self) -> bool {
        self.gates.iter().any(|gate| gate.what == What::Share)
            || self.cohorts.iter().any(|gate| gate.what == What::Share)
    }

    /// Whether nothing has to hold.
    pub(super) fn is_empty(&self) -> bool {
        self.gates.is_empty() && self.cohorts.is_empty()
    }

    /// Whether what it comes to depends on the node's GPUs: of limits on models and ways of handing
    /// over it does.
    pub(super) fn depend_on_gpu(&self) -> bool {
        self.gates.iter().any(|gate| match gate.of {
            Of::Model(..) | Of::Exposure(_) => true,
            Of::All | Of::Pod => false,
        })
    }
}

impl Gate {
    fn refusal(&self, more: u64) -> QuotaRefusal {
        let of = match &self.of {
            Of::All => String::new(),
            Of::Pod => " for one pod".to_owned(),
            Of::Exposure(exposure) => format!(" for {exposure}"),
            Of::Model(_, model) => format!(" for '{model}'"),
        };
        QuotaRefusal::Exceeded(Box::new(Exceeded {
            quota: self.quota.clone(),
            of,
            used: self.what.show(self.used),
            asked: self.what.show(more),
            limit: self.what.show(self.limit),
        }))
    }
}

impl CohortGate {
    fn refusal(&self, more: u64) -> QuotaRefusal {
        let guaranteed = self.what.show(self.guaranteed);
        QuotaRefusal::Exceeded(Box::new(Exceeded {
            quota: self.quota.clone(),
            of: format!(
                " is guaranteed {guaranteed}, and its cohort '{}' has nothing left to lend",
                self.cohort
            ),
            used: self.what.show(self.pool_used),
            asked: self.what.show(more),
            limit: self.what.show(self.pool),
        }))
    }
}

impl Index {
    /// A quota, as it is. `uid` tells it from another that had its name.
    pub fn apply_quota(
        &mut self,
        name: &str,
        uid: Option<&str>,
        generation: Option<i64>,
        spec: &GpuQuotaSpec,
    ) {
        let known = self.quotas.get(name);
        // Its status changes often, and that is our own word.
        if known.is_some_and(|known| known.generation == generation && known.uid.as_deref() == uid)
        {
            return;
        }
        self.note_left_of(name);
        let mut quota = Quota::read(name, spec, uid, generation);
        for (name, namespace) in &self.namespaces {
            quota.choose(name, &namespace.labels);
        }
        self.quotas.insert(name.to_owned(), quota);
        self.favour = true;
    }

    /// What a container of a namespace gets of each GPU where it does not say: the least that its
    /// quotas say.
    pub fn defaults_of(&self, namespace: &str) -> Defaults {
        let of = self.quotas.values().filter(|quota| quota.namespaces.contains(namespace));
        let of = of.filter_map(|quota| quota.terms.as_ref().ok()).map(|terms| terms.defaults);
        of.fold(Defaults::default(), Defaults::least)
    }

    /// A quota that is gone. Those that hold for the same namespaces go on.
    pub fn remove_quota(&mut self, name: &str) {
        self.note_left_of(name);
        self.favour |= self.quotas.remove(name).is_some();
    }

    /// Only these quotas are there.
    pub fn keep_quotas(&mut self, names: &BTreeSet<String>) {
        let gone = self.quotas.keys().filter(|name| !names.contains(*name)).cloned();
        for name in gone.collect::<Vec<_>>() {
            self.remove_quota(&name);
        }
    }

    /// What the namespaces of a quota use, less what would be freed.
    pub(super) fn used(&self, quota: &Quota, freed: &BTreeMap<String, Usage>) -> Usage {
        let mut used = Usage::default();
        for name in &quota.namespaces {
            if let Some(usage) = self.usage.get(name) {
                used.add(usage);
            }
            if let Some(freed) = freed.get(name) {
                used.remove(freed);
            }
        }
        used
    }

    /// All that has to hold for one more pod of a namespace, if `freed` is given back before.
    pub(super) fn gates(
        &self,
        namespace: &str,
        freed: &BTreeMap<String, Usage>,
    ) -> Result<Gates, QuotaRefusal> {
        let name = || namespace.to_owned();
        let known =
            self.namespaces.get(namespace).ok_or_else(|| QuotaRefusal::NoNamespace(name()))?;
        let tenant = known.tenant.as_ref().map_err(|error| QuotaRefusal::Tenant {
            namespace: name(),
            reason: error.to_string(),
        })?;
        let mut gates = Gates::default();
        let mut any = false;
        for (name, quota) in &self.quotas {
            if quota.namespaces.contains(namespace) {
                any = true;
                self.gates_of(name, quota, freed, &mut gates)?;
            }
        }
        match (any, self.settings.without_quota) {
            (true, _) | (false, WithoutQuota::Admit) => Ok(gates),
            (false, WithoutQuota::Refuse) => {
                Err(QuotaRefusal::None { namespace: name(), tenant: tenant.to_string() })
            }
        }
    }

    fn gates_of(
        &self,
        name: &str,
        quota: &Quota,
        freed: &BTreeMap<String, Usage>,
        into: &mut Gates,
    ) -> Result<(), QuotaRefusal> {
        let terms = quota.terms.as_ref().map_err(|reason| QuotaRefusal::Unreadable {
            quota: name.to_owned(),
            reason: reason.clone(),
        })?;
        let used = self.used(quota, freed);
        let mut push = |of: Of, limits: &Limits, used: &Amount| {
            for what in What::ALL {
                if let Some(limit) = what.limit(limits) {
                    let (quota, used) = (name.to_owned(), what.of(used));
                    into.gates.push(Gate { quota, of: of.clone(), what, used, limit });
                }
            }
        };
        push(Of::Pod, &terms.own.per_group, &Amount::default());
        push(Of::All, &terms.own.limits, &used.total);
        for (exposure, limits) in &terms.own.exposures {
            push(Of::Exposure(*exposure), limits, &used.exposed(*exposure));
        }
        for (model, limits) in &terms.own.models {
            let of = all_of(&self.models, model);
            push(Of::Model(of, model.clone()), limits, &used.of(of));
        }
        if let Some(cohort) = &terms.cohort {
            into.cohorts.extend(self.cohort_gates(name, cohort, &terms.guaranteed, &used, freed));
        }
        Ok(())
    }
}
