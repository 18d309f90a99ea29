//! What people are told of quotas: what is used of each, and what they grant.

use std::collections::BTreeMap;

use gpuzone_core::Limits;
use gpuzone_crds::{Amounts, GpuQuotaStatus};
use serde::Serialize;

use super::pods::Stand;
use super::quota::What;
use super::{Amount, Index};

/// No more tenants stand in a quota's status.
const MOST_TENANTS: usize = 64;

/// A quota's use, and what it grants.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct QuotaReport {
    /// Which.
    #[serde(skip)]
    pub name: String,
    /// As its status has it.
    #[serde(flatten)]
    pub status: GpuQuotaStatus,
    /// What its pods may hold together; what is left out has no limit.
    pub limits: Amounts,
    /// With whom it lends and borrows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cohort: Option<String>,
    /// What it can always have back from its cohort.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guaranteed: Option<Amounts>,
}

/// How many pods are where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Without a node.
    pub waiting: usize,
    /// On their way.
    pub reserved: usize,
    /// Seen on their node.
    pub bound: usize,
    /// Gone, and their place stays for who replaces them.
    pub vacant: usize,
}

fn limits(limits: &Limits) -> Amounts {
    let memory = limits.memory.map(|bytes| bytes.to_string());
    Amounts { memory, gpus: limits.gpus, share: limits.share, pods: limits.groups }
}

fn amounts(amount: &Amount) -> Amounts {
    let narrow = |number: u64| Some(u32::try_from(number).unwrap_or(u32::MAX));
    Amounts {
        memory: Some(amount.memory_bytes().to_string()),
        gpus: narrow(amount.gpus),
        share: narrow(amount.share),
        pods: narrow(amount.pods),
    }
}

impl Index {
    /// What is used of each quota.
    pub fn quota_reports(&self) -> Vec<QuotaReport> {
        let report = |(name, quota): (&String, &super::Quota)| {
            let used = self.used(quota, &BTreeMap::new()).total;
            let borrowed = quota.cohort().map(|(_, guaranteed)| {
                let over = |what: What, used: u64| {
                    used.saturating_sub(what.limit(guaranteed).unwrap_or(used))
                };
                amounts(&Amount {
                    memory: over(What::Memory, used.memory),
                    gpus: over(What::Gpus, used.gpus),
                    share: over(What::Share, used.share),
                    pods: over(What::Pods, used.pods),
                })
            });
            let status = GpuQuotaStatus {
                used: amounts(&used),
                borrowed,
                tenants: self.tenants_of(quota),
                observed_generation: quota.generation,
                problem: quota.problem().map(|problem| problem.chars().take(500).collect()),
            };
            QuotaReport {
                name: name.clone(),
                status,
                limits: quota.limits().map(limits).unwrap_or_default(),
                cohort: quota.cohort().map(|(cohort, _)| cohort.to_owned()),
                guaranteed: quota.cohort().map(|(_, guaranteed)| limits(guaranteed)),
            }
        };
        self.quotas.iter().map(report).collect()
    }

    fn tenants_of(&self, quota: &super::Quota) -> BTreeMap<String, Amounts> {
        let mut tenants: BTreeMap<String, Amount> = BTreeMap::new();
        for namespace in &quota.namespaces {
            let tenant = self.namespaces.get(namespace).and_then(|n| n.tenant.as_ref().ok());
            if let (Some(tenant), Some(usage)) = (tenant, self.usage.get(namespace)) {
                let own = tenants.entry(tenant.to_string()).or_default();
                *own = own.plus(usage.total);
            }
        }
        let mut largest: Vec<(String, Amount)> = tenants.into_iter().collect();
        largest.sort_by_key(|(_, amount)| std::cmp::Reverse(amount.memory));
        largest.truncate(MOST_TENANTS);
        largest.into_iter().map(|(tenant, amount)| (tenant, amounts(&amount))).collect()
    }

    /// How many pods are where.
    pub fn counts(&self) -> Waiting {
        self.pods.values().fold(Waiting::default(), |mut counts, entry| {
            match entry.stand {
                Stand::Waiting => counts.waiting += 1,
                Stand::Reserved(_) => counts.reserved += 1,
                Stand::Bound(_) => counts.bound += 1,
                Stand::Vacant(_) => counts.vacant += 1,
            }
            counts
        })
    }
}
