//! What a container that holds slots may have: the pod's placement, checked against everything
//! that can be wrong with it.

use std::fmt;

use gpuzone_api::HolderName;
use gpuzone_api::kubernetes::{
    ContainerName, NodeName, PLACEMENT_ANNOTATION, PlacementError, PodPlacement, PodUid, tenant_of,
};
use gpuzone_core::{ClusterQuota, InvalidId, Placement, TenantId};

use crate::holders::PodName;

/// What kind of container it is, as far as its slots are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerKind {
    /// It runs as long as the pod: an app container, or a sidecar.
    Lasting,
    /// A plain init container. Whether it is done.
    Init {
        /// Whether it has succeeded.
        done: bool,
    },
}

/// A container of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerView {
    /// Its name.
    pub name: String,
    /// What kind it is.
    pub kind: ContainerKind,
    /// How many slots it asks for.
    pub slots: usize,
    /// Whether it runs now.
    pub running: bool,
}

/// A pod, as the API server has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodView {
    /// Its name.
    pub name: PodName,
    /// Which of all pods that ever had this name.
    pub uid: PodUid,
    /// The node that it is bound to.
    pub node: Option<String>,
    /// Whether it is over: a final phase, and no container that could still run.
    pub ended: bool,
    /// The annotation [`PLACEMENT_ANNOTATION`].
    pub placement: Option<String>,
    /// Init containers first, each in the order of the spec.
    pub containers: Vec<ContainerView>,
}

/// What a container of a pod gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Of which pod.
    pub pod: PodUid,
    /// The container whose entry of the placement it is.
    pub container: ContainerName,
    /// Who pays.
    pub tenant: TenantId,
    /// What it gets.
    pub placement: Placement,
    /// Quotas of the cluster that hold for it; none before somebody has asked for them.
    pub quotas: Vec<ClusterQuota>,
}

/// Who holds a pod's lease, as the agent knows it: `pod/<uid>/<container>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodHolder {
    /// The pod.
    pub pod: PodUid,
    /// The container.
    pub container: ContainerName,
}

/// Why a container gets nothing. Each is a sentence that `kubectl describe` shows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// No annotation.
    #[error(
        "the pod {0} has no GPU placement, so it did not come by gpu-zone's scheduler extender; leave spec.nodeName out, use the scheduler that calls the extender, and create the pod again"
    )]
    NoPlacement(PodName),
    /// An annotation that cannot be read.
    #[error(
        "the pod {pod} has no usable GPU placement: {source}; delete it and let it be scheduled again"
    )]
    Unreadable {
        /// Which pod.
        pod: PodName,
        /// Why.
        source: PlacementError,
    },
    /// A copied annotation.
    #[error(
        "the GPU placement of the pod {pod} was made for another pod ({made_for}), as when a manifest is copied with its annotations; remove {PLACEMENT_ANNOTATION} from it and create the pod again"
    )]
    AnotherPods {
        /// Which pod.
        pod: PodName,
        /// For which pod it was made.
        made_for: PodUid,
    },
    /// GPUs of another node.
    #[error(
        "the GPU placement of the pod {pod} is for the node {placed} and this is {here}; delete the pod and let it be scheduled again"
    )]
    AnotherNode {
        /// Which pod.
        pod: PodName,
        /// The placement's node.
        placed: NodeName,
        /// This one.
        here: NodeName,
    },
    /// A pod of another node.
    #[error(
        "the API server says that the pod {0} is not on this node; delete it and let it be scheduled again"
    )]
    Elsewhere(PodName),
    /// Nothing for this container.
    #[error(
        "the GPU placement of the pod {pod} has nothing for {}; delete the pod and let it be scheduled again", or_init(.container)
    )]
    NoEntry {
        /// Which pod.
        pod: PodName,
        /// Which container; `None` for an init container that cannot be told.
        container: Option<String>,
    },
    /// Not as many GPUs as slots.
    #[error(
        "container {container} of the pod {pod} asks for {slots} GPU(s) and its placement names {placed}; delete the pod and let it be scheduled again"
    )]
    Count {
        /// Which pod.
        pod: PodName,
        /// Which container.
        container: ContainerName,
        /// How many slots it holds.
        slots: usize,
        /// How many GPUs it was given.
        placed: usize,
    },
    /// The namespace's label is wrong.
    #[error(
        "the namespace of the pod {pod} is labelled with a tenant that cannot be: {source}; correct the namespace's label"
    )]
    Tenant {
        /// Which pod.
        pod: PodName,
        /// Why.
        source: InvalidId,
    },
    /// The pod is over.
    #[error("the pod {0} is over, and gets no GPU; nothing is to be done")]
    Ended(PodName),
}

fn or_init(container: &Option<String>) -> String {
    match container {
        Some(name) => format!("container {name}"),
        None => "any init container with as many GPUs".to_owned(),
    }
}

/// The claim of a container of `pod` that holds `slots` slots. `container` is the one that the
/// kubelet lists with them, if it lists one.
///
/// # Errors
/// When the container may not have a lease; the error says why and what to do.
pub fn claim(
    pod: &PodView,
    namespace_label: Option<&str>,
    here: &NodeName,
    container: Option<&str>,
    slots: usize,
) -> Result<Claim, ClaimError> {
    let name = || pod.name.clone();
    if pod.ended {
        return Err(ClaimError::Ended(name()));
    }
    if pod.node.as_deref() != Some(here.as_str()) {
        return Err(ClaimError::Elsewhere(name()));
    }
    let text = pod.placement.as_deref().ok_or_else(|| ClaimError::NoPlacement(name()))?;
    let placement: PodPlacement =
        text.parse().map_err(|source| ClaimError::Unreadable { pod: name(), source })?;
    if *placement.pod() != pod.uid {
        let made_for = placement.pod().clone();
        return Err(ClaimError::AnotherPods { pod: name(), made_for });
    }
    if placement.node() != here {
        let (placed, here) = (placement.node().clone(), here.clone());
        return Err(ClaimError::AnotherNode { pod: name(), placed, here });
    }
    let tenant = tenant_of(&pod.name.namespace, namespace_label);
    let tenant = tenant.map_err(|source| ClaimError::Tenant { pod: name(), source })?;
    let entry = match container {
        Some(container) => entry_of(&placement, container),
        None => init_entry(pod, &placement, slots),
    };
    let Some((container, given)) = entry else {
        return Err(ClaimError::NoEntry { pod: name(), container: container.map(str::to_owned) });
    };
    let placed = given.grants().len();
    if placed != slots {
        return Err(ClaimError::Count { pod: name(), container, slots, placed });
    }
    Ok(Claim { pod: pod.uid.clone(), container, tenant, placement: given, quotas: Vec::new() })
}

fn entry_of(placement: &PodPlacement, container: &str) -> Option<(ContainerName, Placement)> {
    let name: ContainerName = container.parse().ok()?;
    let given = placement.container(&name)?.clone();
    Some((name, given))
}

/// The first plain init container that is not done, holds that many slots, and has an entry:
/// they run one after the other.
fn init_entry(
    pod: &PodView,
    placement: &PodPlacement,
    slots: usize,
) -> Option<(ContainerName, Placement)> {
    let waiting = pod.containers.iter().filter(|container| match container.kind {
        ContainerKind::Init { done } => !done && container.slots == slots,
        ContainerKind::Lasting => false,
    });
    waiting.filter_map(|container| entry_of(placement, &container.name)).next()
}

impl fmt::Display for PodHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pod/{}/{}", self.pod, self.container)
    }
}

impl PodHolder {
    /// The holder that a name of ours means.
    pub fn parse(name: &HolderName) -> Option<Self> {
        let (pod, container) = name.as_str().strip_prefix("pod/")?.split_once('/')?;
        Some(Self { pod: pod.parse().ok()?, container: container.parse().ok()? })
    }
}

#[cfg(test)]
mod tests;
