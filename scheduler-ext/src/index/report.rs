//! What people are told: what is used of quotas, and why a pod is where it is.

use std::collections::BTreeMap;

use gpuzone_api::kubernetes::PodUid;
use gpuzone_core::engine::fit;
use gpuzone_crds::{Amounts, GpuQuotaStatus};
use serde::Serialize;

use super::bind::State;
use super::pods::{PodEntry, Stand};
use super::quota::What;
use super::{Amount, Index};
use crate::view::PodName;

/// No more tenants stand in a quota's status.
const MOST_TENANTS: usize = 64;

/// A quota's use.
#[derive(Clone, Debug, PartialEq)]
pub struct QuotaReport {
    /// Which.
    pub name: String,
    /// As its status has it.
    pub status: GpuQuotaStatus,
}

/// Why a pod is where it is, or why it waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Why {
    /// Its namespace and name.
    pub pod: String,
    /// Where it is on its way, as a sentence.
    pub stands: String,
    /// What it asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asks: Option<String>,
    /// What it holds: GPU, memory, share.
    pub holds: Vec<String>,
    /// What its quota says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota: Option<String>,
    /// What nodes say, each with how many say it.
    pub nodes: BTreeMap<String, usize>,
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
                    used.saturating_sub(guaranteed.get(what).unwrap_or(used))
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
            QuotaReport { name: name.clone(), status }
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
            }
            counts
        })
    }

    /// Why a pod is where it is; `None` for one that is not known here.
    pub fn explain(&self, name: &PodName) -> Option<Why> {
        let (uid, entry) = self.pods.iter().find(|(_, entry)| entry.name == *name)?;
        let stands = stands(entry);
        let holds = entry.held().map(|held| held.holds.to_vec()).unwrap_or_default();
        let holds = holds.iter().map(|h| format!("{}: {}, {}", h.gpu, h.memory, h.share));
        let asks = entry.ask.as_deref().map(|ask| match ask {
            Ok(Some(ask)) => ask.sentence(),
            Ok(None) => "no GPU".to_owned(),
            Err(error) => error.to_string(),
        });
        let (quota, nodes) = self.why_it_waits(uid);
        Some(Why { pod: name.to_string(), stands, asks, holds: holds.collect(), quota, nodes })
    }

    fn why_it_waits(&self, uid: &PodUid) -> (Option<String>, BTreeMap<String, usize>) {
        let mut nodes: BTreeMap<String, usize> = BTreeMap::new();
        let Some(entry) = self.pods.get(uid).filter(|entry| entry.waits()) else {
            return (None, nodes);
        };
        let Some(ask) = entry.asks() else { return (None, nodes) };
        let gates = self.gates(&entry.name.namespace, &BTreeMap::new());
        let mut quota = gates.as_ref().err().map(ToString::to_string);
        let demand = ask.demand(&self.models);
        for node in self.nodes.values().filter(|node| node.exists && node.reported) {
            let said = match (fit(&node.room, &demand), &gates) {
                (Err(reason), _) => reason.to_string(),
                (Ok(choice), Ok(gates)) => {
                    let mut asked = super::Usage::of_pod();
                    for given in choice.containers().iter().flatten() {
                        let model = node.gpus.get(given.gpu).map(|(_, kind)| kind.model);
                        asked.add_gpu(model, given.memory, u64::from(given.share.get() / 10));
                    }
                    match gates.check(&asked) {
                        Ok(()) => "has room".to_owned(),
                        Err(refusal) => {
                            let said = refusal.to_string();
                            quota.get_or_insert(said);
                            "has room, and the quota is against it".to_owned()
                        }
                    }
                }
                (Ok(_), Err(_)) => "has room, and the quota is against it".to_owned(),
            };
            *nodes.entry(said).or_default() += 1;
        }
        (quota, nodes)
    }
}

fn stands(entry: &PodEntry) -> String {
    match &entry.stand {
        Stand::Waiting => "waits for a place".to_owned(),
        Stand::Bound(held) if held.holds.is_empty() => format!(
            "is on {} without a placement: it did not come by this extender and gets no GPU",
            held.node
        ),
        Stand::Bound(held) => format!("is on {}", held.node),
        Stand::Reserved(reservation) => {
            let node = &reservation.held.node;
            match reservation.state {
                State::Planned { .. } => format!("has a place on {node} and waits for its group"),
                State::Posting => format!("is being bound to {node}"),
                State::Unsure { .. } => format!(
                    "may have been bound to {node}: the API server's answer was lost, and it is looked at"
                ),
                State::Written { .. } => format!("was bound to {node} just now"),
            }
        }
    }
}
