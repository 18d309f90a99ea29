//! What people are told of a pod: why it is where it is, or waits, and what would have to change.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use gpuzone_api::kubernetes::{
    MODEL_ANNOTATION, POD_GROUP_SIZE_ANNOTATION, PodUid, TENANT_LABEL, TOPOLOGY_ANNOTATION,
};
use gpuzone_core::engine::{Lack, Reason, fit, lack};
use serde::Serialize;

use super::bind::State;
use super::gang::NoGang;
use super::pods::{PodEntry, Stand};
use super::{Index, QuotaRefusal, Usage};
use crate::view::PodName;

/// So many nodes are named of those that lack the same, and so many of such sets are told.
const MOST_NAMES: usize = 3;
const MOST_LACKS: usize = 20;

/// What nodes lack, in numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Lacking {
    /// Some of those that lack just this.
    pub nodes: Vec<String>,
    /// How many they are.
    pub number: usize,
    /// What they lack.
    pub says: String,
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
    /// Which pods it starts together with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// What it holds: GPU, memory, share.
    pub holds: Vec<String>,
    /// What its quota says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota: Option<String>,
    /// What nodes say, each with how many say it.
    pub nodes: BTreeMap<String, usize>,
    /// What they lack, the nearest to serving it first.
    pub lacking: Vec<Lacking>,
    /// What would have to change so that it gets its GPUs; nothing where it has them.
    pub changes: Vec<String>,
}

/// What a node says to a pod that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Said {
    Room,
    RoomWithoutQuota,
    Lacks(Reason),
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Room => f.write_str("has room"),
            Self::RoomWithoutQuota => f.write_str("has room, and the quota is against it"),
            Self::Lacks(reason) => reason.fmt(f),
        }
    }
}

/// What stands in a pod's way.
#[derive(Debug, Default)]
struct Hindrances {
    quota: Option<QuotaRefusal>,
    nodes: BTreeMap<Said, usize>,
    /// Nodes by what they lack, those that lack least first.
    lacking: BTreeMap<(Reverse<u64>, String), (Lack, BTreeSet<String>)>,
}

impl Hindrances {
    fn lacks(&mut self, node: &str, lack: Lack) {
        let key = (Reverse(lack.nearness()), lack.to_string());
        self.lacking
            .entry(key)
            .or_insert_with(|| (lack, BTreeSet::new()))
            .1
            .insert(node.to_owned());
    }

    fn told(&self) -> Vec<Lacking> {
        let told = self.lacking.iter().take(MOST_LACKS).map(|((_, says), (_, nodes))| Lacking {
            nodes: nodes.iter().take(MOST_NAMES).cloned().collect(),
            number: nodes.len(),
            says: says.clone(),
        });
        told.collect()
    }

    /// The node that lacks least, and what would get past that.
    fn nearest(&self) -> Option<String> {
        let ((_, says), (lack, nodes)) = self.lacking.first_key_value()?;
        let node = nodes.first()?;
        let instead = lack.instead().map(|less| format!("; with {less} it would get past that"));
        Some(format!("the nearest is {node}: {says}{}", instead.unwrap_or_default()))
    }
}

impl Index {
    /// Why a pod is where it is; `None` for one that is not known here.
    pub fn explain(&self, name: &PodName) -> Option<Why> {
        // Another one may have had the name.
        let is = |entry: &PodEntry| entry.name == *name && !matches!(entry.stand, Stand::Vacant(_));
        let (uid, entry) = self.pods.iter().find(|(_, entry)| is(entry))?;
        let holds = entry.held().map(|held| held.holds.to_vec()).unwrap_or_default();
        let holds = holds.iter().map(|h| format!("{}: {}, {}", h.gpu, h.memory, h.share));
        let asks = entry.ask.as_deref().map(|ask| match ask {
            Ok(Some(ask)) => ask.sentence(),
            Ok(None) => "no GPU".to_owned(),
            Err(error) => error.to_string(),
        });
        let hindrances = self.hindrances(uid);
        let changes = self.changes(entry, &hindrances);
        let nodes = hindrances.nodes.iter().map(|(said, number)| (said.to_string(), *number));
        Some(Why {
            pod: name.to_string(),
            stands: stands(entry),
            asks,
            group: self.group_sentence(entry),
            holds: holds.collect(),
            quota: hindrances.quota.as_ref().map(ToString::to_string),
            nodes: nodes.collect(),
            lacking: hindrances.told(),
            changes,
        })
    }

    fn hindrances(&self, uid: &PodUid) -> Hindrances {
        let mut found = Hindrances::default();
        let Some(entry) = self.pods.get(uid).filter(|entry| entry.waits()) else { return found };
        let Some(ask) = entry.asks() else { return found };
        let gates = self.gates(&entry.name.namespace, &BTreeMap::new());
        let demand = ask.gpu_demand(&self.models);
        found.quota = gates.as_ref().err().cloned();
        for (name, node) in self.nodes.iter().filter(|(_, node)| node.exists && node.reported) {
            let room = node.room.and_then(|room| self.rooms.get(room)).ok_or(Reason::NoGpu);
            let fits = room.and_then(|room| Ok(Usage::of_choice(room, &fit(room, &demand)?)));
            let said = match (fits, &gates) {
                (Err(reason), _) => Said::Lacks(reason),
                (Ok(_), Err(_)) => Said::RoomWithoutQuota,
                (Ok(asked), Ok(gates)) => match gates.check(&asked) {
                    Ok(()) => Said::Room,
                    Err(refusal) => {
                        found.quota.get_or_insert(refusal);
                        Said::RoomWithoutQuota
                    }
                },
            };
            if let (Said::Lacks(_), Ok(room)) = (said, room)
                && let Some(lack) = lack(room, &demand)
            {
                found.lacks(name, lack);
            }
            *found.nodes.entry(said).or_default() += 1;
        }
        found
    }

    fn changes(&self, entry: &PodEntry, hindrances: &Hindrances) -> Vec<String> {
        match &entry.stand {
            Stand::Bound(held) if held.holds.is_empty() => vec![
                "its schedulerName has to be the scheduler that asks this extender, and its spec no nodeName: delete it and create it so".to_owned(),
            ],
            Stand::Bound(_) | Stand::Vacant(_) => Vec::new(),
            Stand::Reserved(reservation) => match reservation.state {
                State::Planned { .. } => vec!["the other pods of its group have to get as far".to_owned()],
                State::Kept => vec![
                    "the API server has to take its Binding: the pod's events say why it does not, if it was asked; the scheduler tries again, and its place is kept for a while".to_owned(),
                ],
                State::Posting | State::Unsure { .. } | State::Written { .. } => Vec::new(),
            },
            Stand::Waiting => match entry.ask.as_deref() {
                Some(Err(_)) => vec![
                    "its limits, annotations and labels have to say what can be given: delete it and create it so".to_owned(),
                ],
                Some(Ok(_)) | None => self.to_get_in(entry, hindrances),
            },
        }
    }

    /// Of a pod that waits and asks for what can be given.
    fn to_get_in(&self, entry: &PodEntry, hindrances: &Hindrances) -> Vec<String> {
        let mut changes = Vec::new();
        if let Some(missing) = self.missing_of_group(entry) {
            changes.push(missing);
        }
        if let Some(refusal) = &hindrances.quota {
            changes.push(of_quota(refusal));
        }
        let with_room = |said: &Said| matches!(said, Said::Room | Said::RoomWithoutQuota);
        if hindrances.nodes.is_empty() {
            changes.push("nodes have to report GPUs: agent and device plugin have to run there (`kubectl get gpunodes`)".to_owned());
        } else if !hindrances.nodes.keys().any(with_room) {
            changes.extend(of_nodes(&hindrances.nodes));
            changes.extend(hindrances.nearest());
        }
        if changes.is_empty() {
            changes.push(
                "nothing here: the scheduler looks at it again soon; if it stays, its events say what else the nodes lack (`kubectl describe pod`)"
                    .to_owned(),
            );
        }
        changes
    }

    fn missing_of_group(&self, entry: &PodEntry) -> Option<String> {
        let said = self.gang(entry)?;
        let (key, whole) = (entry.group()?, self.is_whole(entry));
        let there = self.groups.get(&key).map_or(0, |group| group.pods.len());
        let name = key.1;
        match said {
            Ok(_) if whole => None,
            Ok(gang) => Some(format!(
                "the other pods of its group '{name}' have to be there: {there} of {} are",
                gang.size
            )),
            Err(NoGang::Unread { .. }) => Some(
                "PodGroups have to be read from the API server: this takes a moment, or the extender's log says why it cannot".to_owned(),
            ),
            Err(NoGang::NoSize { .. }) => Some(format!(
                "somebody has to say how many pods its group '{name}' has: a PodGroup of that name in its namespace, or {POD_GROUP_SIZE_ANNOTATION} on each of them, which have to be created anew for that"
            )),
            Err(NoGang::Unreadable { error, .. }) => {
                Some(format!("the PodGroup '{name}' has to be one that can be read: {error}"))
            }
        }
    }
}

fn of_quota(refusal: &QuotaRefusal) -> String {
    match refusal {
        QuotaRefusal::NoNamespace(namespace) => {
            format!("the namespace '{namespace}' has to become known here, which takes a moment")
        }
        QuotaRefusal::Tenant { namespace, .. } => {
            format!("the label {TENANT_LABEL} of the namespace '{namespace}' has to name a tenant")
        }
        QuotaRefusal::None { namespace, .. } => format!(
            "a GpuQuota has to hold for the namespace '{namespace}': an administrator creates one"
        ),
        QuotaRefusal::Unreadable { quota, .. } => {
            format!("the spec of the GpuQuota '{quota}' has to be one that can be read")
        }
        QuotaRefusal::Exceeded(exceeded) => format!(
            "the pod has to ask for less, others of the GpuQuota '{}' have to end, or it has to grant more",
            exceeded.quota()
        ),
    }
}

/// One of these for one node would do. Nodes without GPUs say nothing where others have some.
fn of_nodes(nodes: &BTreeMap<Said, usize>) -> BTreeSet<String> {
    let reasons = nodes.keys().filter_map(|said| match said {
        Said::Lacks(reason) => Some(*reason),
        Said::Room | Said::RoomWithoutQuota => None,
    });
    let alone = nodes.len() == 1;
    reasons.filter(|reason| alone || *reason != Reason::NoGpu).map(of_node).collect()
}

fn of_node(reason: Reason) -> String {
    match reason {
        Reason::HostCpu => "pods that use a node's processors have to end".to_owned(),
        Reason::HostMemory => "pods that use a node's memory have to end".to_owned(),
        Reason::NoGpu => {
            "nodes have to have GPUs: `kubectl get gpunodes` shows what is there".to_owned()
        }
        Reason::Model => format!("{MODEL_ANNOTATION} has to name GPUs that nodes have as many of"),
        Reason::Exposure => "nodes have to expose GPUs in the way that is asked for".to_owned(),
        Reason::TooFew => {
            "it has to ask for fewer GPUs, for no node has as many, or a larger node has to come"
                .to_owned()
        }
        Reason::TooSmall => {
            "it has to ask for less memory, for no GPU is that large, or larger GPUs have to come"
                .to_owned()
        }
        Reason::Unhealthy => {
            "GPUs that are out of service have to be well again: `kubectl get gpunodes -o yaml` says what is wrong with them".to_owned()
        }
        Reason::Topology => {
            format!("{TOPOLOGY_ANNOTATION} has to ask for less, or GPUs that are near have to become free")
        }
        Reason::GpuMemory => {
            "pods that hold GPU memory have to end, or it has to ask for less memory".to_owned()
        }
        Reason::GpuShare => {
            "pods that hold GPU time have to end, or it has to ask for a smaller share".to_owned()
        }
        Reason::GpuRoom => {
            "memory and time have to become free on the same GPUs: pods have to end, or it has to ask for less of one".to_owned()
        }
        Reason::Together => {
            "its containers have to fit on one node together: pods have to end there, or they have to ask for less".to_owned()
        }
    }
}

fn stands(entry: &PodEntry) -> String {
    match &entry.stand {
        Stand::Waiting => "waits for a place".to_owned(),
        Stand::Vacant(held) => {
            format!("is gone, and its place on {} stays for a while", held.node)
        }
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
                State::Kept => format!(
                    "keeps its place on {node}: others of its group are bound, and the API server refused its Binding, or it replaces one that is gone"
                ),
            }
        }
    }
}
