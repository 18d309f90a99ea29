//! What the kubelet's device manager remembers, and how it chooses.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{ContainerKind, ContainerSpec, Pod};

/// What one container was given.
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

/// By pod UID and container: what outlives a restart of the kubelet.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Checkpoint {
    pub(super) pods: BTreeMap<String, BTreeMap<String, Given>>,
}

impl Checkpoint {
    pub(super) fn of(&self, pod: &str, container: &str) -> Option<&Given> {
        self.pods.get(pod)?.get(container)
    }

    /// Frees what pods that are not active any more held.
    pub(super) fn keep(&mut self, active: &BTreeMap<String, Pod>) {
        self.pods.retain(|uid, _| active.contains_key(uid));
    }

    fn in_use(&self) -> BTreeSet<&String> {
        self.pods.values().flat_map(BTreeMap::values).flat_map(|given| &given.devices).collect()
    }

    /// What plain init containers of a pod held, which its app containers take over; without what
    /// other lasting containers hold.
    fn reusable(&self, pod: &Pod) -> BTreeSet<String> {
        let held = |kind: fn(ContainerKind) -> bool| {
            let containers = pod.containers.iter().filter(move |c| kind(c.kind));
            containers.filter_map(|c| self.of(&pod.uid, &c.name)).flat_map(|g| g.devices.clone())
        };
        let lasting: BTreeSet<String> = held(|kind| kind != ContainerKind::Init).collect();
        held(|kind| kind == ContainerKind::Init).filter(|id| !lasting.contains(id)).collect()
    }

    /// The devices that a container takes over, and those that are free for the rest.
    pub(super) fn offers(
        &self,
        pod: &Pod,
        container: &ContainerSpec,
        healthy: &BTreeSet<String>,
    ) -> (BTreeSet<String>, BTreeSet<String>) {
        let reusable = match container.kind {
            ContainerKind::App | ContainerKind::Init => self.reusable(pod),
            ContainerKind::Sidecar => BTreeSet::new(),
        };
        let taken: BTreeSet<String> = reusable.into_iter().take(container.devices).collect();
        let in_use = self.in_use();
        let free = healthy.iter().filter(|id| !in_use.contains(id)).cloned().collect();
        (taken, free)
    }
}
