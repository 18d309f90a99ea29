//! What the kubelet's device manager remembers, and how it chooses.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{ContainerKind, ContainerSpec, Pod};

/// What one container was given of one resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Given {
    pub(super) devices: BTreeSet<String>,
    /// What the plugin answered: host path by path in the container, and the variables.
    pub(super) mounts: BTreeMap<String, String>,
    pub(super) environment: BTreeMap<String, String>,
    /// Device nodes, and the names of CDI devices.
    #[serde(default)]
    pub(super) nodes: BTreeSet<String>,
}

/// What a container was given, by resource.
pub(super) type ByResource = BTreeMap<String, Given>;

/// By pod UID and container: what outlives a restart of the kubelet.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Checkpoint {
    pods: BTreeMap<String, BTreeMap<String, ByResource>>,
}

impl Checkpoint {
    /// What a container was given of all resources.
    pub(super) fn all_of(&self, pod: &str, container: &str) -> Option<&ByResource> {
        self.pods.get(pod)?.get(container)
    }

    pub(super) fn of(&self, pod: &str, container: &str, resource: &str) -> Option<&Given> {
        self.all_of(pod, container)?.get(resource)
    }

    pub(super) fn give(&mut self, pod: &str, container: &str, resource: &str, given: Given) {
        let containers = self.pods.entry(pod.to_owned()).or_default();
        containers.entry(container.to_owned()).or_default().insert(resource.to_owned(), given);
    }

    /// Frees what pods that are not active any more held.
    pub(super) fn keep(&mut self, active: &BTreeMap<String, Pod>) {
        self.pods.retain(|uid, _| active.contains_key(uid));
    }

    fn in_use(&self, resource: &str) -> BTreeSet<&String> {
        let containers = self.pods.values().flat_map(BTreeMap::values);
        containers.filter_map(|given| given.get(resource)).flat_map(|g| &g.devices).collect()
    }

    /// What plain init containers of a pod held, which its app containers take over; without what
    /// other lasting containers hold.
    fn reusable(&self, pod: &Pod, resource: &str) -> BTreeSet<String> {
        let held = |kind: fn(ContainerKind) -> bool| {
            let containers = pod.containers.iter().filter(move |c| kind(c.kind));
            let given = containers.filter_map(|c| self.of(&pod.uid, &c.name, resource));
            given.flat_map(|given| given.devices.clone())
        };
        let lasting: BTreeSet<String> = held(|kind| kind != ContainerKind::Init).collect();
        held(|kind| kind == ContainerKind::Init).filter(|id| !lasting.contains(id)).collect()
    }

    /// The devices of a resource that a container takes over, of the `count` that it asks for, and
    /// those that are free for the rest.
    pub(super) fn offers(
        &self,
        pod: &Pod,
        container: &ContainerSpec,
        (resource, count): (&str, usize),
        healthy: &BTreeSet<String>,
    ) -> (BTreeSet<String>, BTreeSet<String>) {
        let reusable = match container.kind {
            ContainerKind::App | ContainerKind::Init => self.reusable(pod, resource),
            ContainerKind::Sidecar => BTreeSet::new(),
        };
        let taken: BTreeSet<String> = reusable.into_iter().take(count).collect();
        let in_use = self.in_use(resource);
        let free = healthy.iter().filter(|id| !in_use.contains(id)).cloned().collect();
        (taken, free)
    }
}
