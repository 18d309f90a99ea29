//! What the extender knows of the cluster, as one plain structure: fed with objects, asked with
//! questions, without a clock, a lock or a network.
//!
//! ```text
//! GpuNode, Node, Namespace, GpuQuota, Pod, PodGroup ──apply──▶ Index ◀──reserve, settle, looked── binder
//!                                                 filter, prioritize, preempt ──▶ answers
//! ```
//!
//! What is free of a GPU is computed from the pods of its node each time that one of them
//! changes, and never counted up and down: so no counter drifts. A pod holds what its placement
//! says from the moment that a Binding is on its way ([`Stand::Reserved`]), and as the API server
//! says once the pod was seen bound ([`Stand::Bound`]).

mod bind;
mod cohort;
mod filter;
mod gang;
mod group;
mod nodes;
mod pods;
mod preempt;
mod quota;
mod reclaim;
mod report;
mod resume;
mod rooms;
mod settle;
mod together;
mod usage;
mod vacant;
mod why;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use foldhash::HashMap;
use gpuzone_api::kubernetes::{NodeName, PodUid, ResourceNames, TENANT_LABEL, tenant_of};
use gpuzone_core::engine::{Mix, ModelTable, Policy, WorkloadMix};
use gpuzone_core::{InvalidId, TenantId};

pub use bind::{BindOrder, Gate, ReserveError, Ticket};
pub use filter::{FilterError, Filtered, Named, Refusal};
pub use preempt::Victims;
pub use quota::{QuotaRefusal, WithoutQuota};
pub use reclaim::Reclaim;
pub use report::{QuotaReport, Waiting};
pub use settle::{Concluded, Doubt, Look, Overdue, Settled};
pub use usage::{Amount, Usage};
pub use why::{Lacking, Why};

use crate::ask::Ask;
use cohort::Left;
use gang::{GroupKey, PodGroups};
use group::Group;
use nodes::Node;
use pods::{Other, PodEntry};
use quota::Quota;
use reclaim::Claims;
use rooms::Rooms;
use vacant::Vacancy;

/// A moment, as the time since some start that only ever grows.
pub type Moment = Duration;

/// What an operator chose.
#[derive(Clone, Debug)]
pub struct Settings {
    /// By which names pods ask.
    pub names: ResourceNames,
    /// What placements are to be good for, where a pod does not say.
    pub policy: Policy,
    /// What a namespace may have that no quota holds for.
    pub without_quota: WithoutQuota,
    /// How long the pods of a group wait for each other.
    pub group_patience: Duration,
    /// How long the place of a group's pod that is gone stays for the one that replaces it, at most.
    pub replacement: Duration,
}

/// The kinds of objects that the index is fed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Inventories of nodes.
    GpuNodes,
    /// Nodes.
    Nodes,
    /// Namespaces.
    Namespaces,
    /// Quotas.
    Quotas,
    /// Pods.
    Pods,
    /// Coscheduling's groups. A cluster need not have them, and only pods of groups wait for them.
    PodGroups,
}

impl Kind {
    /// Those that the index needs.
    const NEEDED: [Self; 5] =
        [Self::GpuNodes, Self::Nodes, Self::Namespaces, Self::Quotas, Self::Pods];

    /// Its name in the API.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::GpuNodes => "gpunodes",
            Self::Nodes => "nodes",
            Self::Namespaces => "namespaces",
            Self::Quotas => "gpuquotas",
            Self::Pods => "pods",
            Self::PodGroups => "podgroups",
        }
    }
}

/// A namespace: its tenant, and its labels, by which quotas choose.
#[derive(Clone, Debug)]
struct Namespace {
    tenant: Result<TenantId, InvalidId>,
    labels: BTreeMap<String, String>,
}

/// What the extender knows. See the module.
#[derive(Clone, Debug)]
pub struct Index {
    settings: Settings,
    complete: BTreeSet<Kind>,
    nodes: HashMap<Box<str>, Node>,
    models: ModelTable,
    namespaces: BTreeMap<String, Namespace>,
    quotas: BTreeMap<String, Quota>,
    /// Namespaces that left a cohort with GPUs.
    left: Left,
    pods: HashMap<PodUid, PodEntry>,
    /// Pods without GPUs that are on a node: what they take of hosts.
    others: HashMap<PodUid, Other>,
    groups: BTreeMap<GroupKey, Group>,
    pod_groups: PodGroups,
    /// Places that no pod holds, by who held them.
    vacant: BTreeMap<PodUid, Vacancy>,
    /// What the pods of a namespace hold.
    usage: BTreeMap<String, Usage>,
    /// Pods that wait for what is guaranteed to them.
    claims: Claims,
    /// Pods that came before all was known, with when they did.
    before: Vec<(i64, Ask)>,
    arrivals: WorkloadMix,
    mix: Arc<Mix>,
    /// What is free of nodes, and what that is to kinds of pods.
    rooms: Rooms,
    tickets: u64,
    epoch: u64,
    /// The last moment that it was told.
    now: Moment,
    /// Nodes on which something changed in waiting pods' favour that wakes nobody by itself.
    favours: BTreeSet<NodeName>,
    /// The same, for what belongs to no node.
    favour: bool,
}

impl Index {
    /// An index that knows nothing yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            complete: BTreeSet::new(),
            nodes: HashMap::default(),
            models: ModelTable::default(),
            namespaces: BTreeMap::new(),
            quotas: BTreeMap::new(),
            left: Left::default(),
            pods: HashMap::default(),
            others: HashMap::default(),
            groups: BTreeMap::new(),
            pod_groups: PodGroups::new(),
            vacant: BTreeMap::new(),
            usage: BTreeMap::new(),
            claims: Claims::default(),
            before: Vec::new(),
            arrivals: WorkloadMix::default(),
            mix: Arc::default(),
            rooms: Rooms::default(),
            tickets: 0,
            epoch: 0,
            now: Moment::ZERO,
            favours: BTreeSet::new(),
            favour: false,
        }
    }

    /// What was chosen.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// All objects of a kind are known.
    pub fn complete(&mut self, kind: Kind) {
        self.complete.insert(kind);
    }

    /// Not all objects of a kind need be known any more.
    pub fn incomplete(&mut self, kind: Kind) {
        self.complete.remove(&kind);
    }

    /// Kinds that are needed and of which not all objects are known: as long as there are any, nothing
    /// is answered.
    pub fn missing(&self) -> Vec<&'static str> {
        let missing = Kind::NEEDED.into_iter().filter(|kind| !self.complete.contains(kind));
        missing.map(Kind::plural).collect()
    }

    /// A namespace, as it is.
    pub fn apply_namespace(&mut self, name: &str, labels: &BTreeMap<String, String>) {
        let tenant = tenant_of(name, labels.get(TENANT_LABEL).map(String::as_str));
        let known = self.namespaces.get(name);
        if known.is_some_and(|known| known.labels == *labels) {
            return;
        }
        let namespace = Namespace { tenant, labels: labels.clone() };
        self.namespaces.insert(name.to_owned(), namespace);
        self.note_left(|_, quota| quota.namespaces.contains(name).then(|| vec![name.to_owned()]));
        self.quotas.values_mut().for_each(|quota| quota.choose(name, labels));
        self.favour = true;
    }

    /// A namespace that is gone.
    pub fn remove_namespace(&mut self, name: &str) {
        self.namespaces.remove(name);
        self.note_left(|_, quota| quota.namespaces.contains(name).then(|| vec![name.to_owned()]));
        self.quotas.values_mut().for_each(|quota| quota.forget(name));
    }

    /// Only these namespaces are there.
    pub fn keep_namespaces(&mut self, names: &BTreeSet<String>) {
        let gone = self.namespaces.keys().filter(|name| !names.contains(*name));
        for name in gone.cloned().collect::<Vec<_>>() {
            self.remove_namespace(&name);
        }
    }

    /// What is likely to be asked for next, seen from this cluster.
    fn mix(&mut self) -> Arc<Mix> {
        self.learn_before();
        if self.arrivals.is_due() {
            let rooms = &self.rooms;
            let of_nodes = self.nodes.values().filter_map(|node| rooms.get(node.room?));
            self.mix = Arc::new(self.arrivals.renew(of_nodes.map(Arc::as_ref)));
            self.rooms.forget_scores();
        }
        Arc::clone(&self.mix)
    }

    /// Nodes on which something changed in favour of pods that wait, and that wake nobody by
    /// themselves; none while no pod waits. What is told is not told again.
    pub fn take_favours(&mut self) -> BTreeSet<NodeName> {
        if (self.favours.is_empty() && !self.favour) || !self.anybody_waits() {
            self.favour = false;
            self.favours.clear();
            return BTreeSet::new();
        }
        let mut told = std::mem::take(&mut self.favours);
        if self.favour && told.is_empty() {
            // Any node will do: the scheduler looks at all that it has put aside.
            told.extend(self.some_node(|_| true));
        }
        // Without a node there is nothing to wake for; it is owed until there is one.
        self.favour &= told.is_empty();
        told
    }

    /// Whether any pod waits for a place, or for the scheduler to try it again.
    pub fn anybody_waits(&self) -> bool {
        self.pods.values().any(PodEntry::is_to_be_tried)
    }

    /// A node that the API server has, other than `node`.
    pub fn another_node(&self, node: &NodeName) -> Option<NodeName> {
        self.some_node(|name| name != node.as_str())
    }

    fn some_node(&self, which: impl Fn(&str) -> bool) -> Option<NodeName> {
        let there = self.nodes.iter().filter(|(name, node)| node.exists && which(name));
        there.map(|(name, _)| name).min().and_then(|name| name.parse().ok())
    }
}
