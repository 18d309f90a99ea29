//! A pod as the index knows it: what matters of the API server's object, checked once.

use std::collections::BTreeMap;

use gpuzone_api::kubernetes::{
    NodeName, PLACEMENT_ANNOTATION, PodPlacement, PodTerms, PodUid, ResourceNames,
};
use gpuzone_core::engine::HostDemand;
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodSpec};

use crate::ask::{Ask, AskError, ContainerKind, ContainerLimits};
use crate::host;

/// A pod's name. It does not say which of all that ever had it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name there.
    pub name: String,
}

impl std::fmt::Display for PodName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What matters of a pod.
#[derive(Clone, Debug, PartialEq)]
pub struct PodView {
    /// Which of all pods.
    pub uid: PodUid,
    /// What it is called.
    pub name: PodName,
    /// The node that it is bound to.
    pub node: Option<NodeName>,
    /// Whether it is over: a final phase, and no container that could still run.
    pub ended: bool,
    /// Whether it is over and did what it was to do.
    pub succeeded: bool,
    /// Whether it is being deleted.
    pub terminating: bool,
    /// Whether Kubernetes says that it is taken away, for another pod, by an eviction, or because of its
    /// node: what comes in its place is not to be where it was.
    pub disrupted: bool,
    /// What it asks for; `None` for nothing.
    pub ask: Result<Option<Ask>, AskError>,
    /// When it was created, in seconds since 1970.
    pub created: i64,
    /// What it asks of its host.
    pub host: HostDemand,
    /// What it was given: a placement of this pod on its node. Any other gives nothing.
    pub placement: Option<PodPlacement>,
    /// Pods of higher priority may take its place.
    pub priority: i32,
    /// Whether it takes the place of others.
    pub preempts: bool,
    /// Whether it says itself which nodes it likes better: the scheduler's plugins have a say then.
    pub prefers: bool,
}

impl PodView {
    /// What matters of a pod; `None` for one without a name or UID, which no API server has.
    pub fn of(pod: &Pod, names: &ResourceNames) -> Option<Self> {
        let meta = &pod.metadata;
        let name = PodName { namespace: meta.namespace.clone()?, name: meta.name.clone()? };
        let uid: PodUid = meta.uid.as_deref()?.parse().ok()?;
        let spec = pod.spec.as_ref();
        let node: Option<NodeName> =
            spec.and_then(|spec| spec.node_name.as_deref()).and_then(|node| node.parse().ok());
        let none = BTreeMap::new();
        let annotations = meta.annotations.as_ref().unwrap_or(&none);
        let placement = annotations
            .get(PLACEMENT_ANNOTATION)
            .and_then(|text| text.parse::<PodPlacement>().ok())
            .filter(|placed| *placed.pod() == uid && Some(placed.node()) == node.as_ref());
        let ask = ask_of(pod, names);
        let policy = spec.and_then(|spec| spec.preemption_policy.as_deref());
        Some(Self {
            uid,
            name,
            node,
            ended: ended(pod),
            succeeded: ended(pod) && phase(pod) == Some("Succeeded"),
            terminating: meta.deletion_timestamp.is_some(),
            disrupted: disrupted(pod),
            ask,
            created: meta.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
            host: host::requests(pod),
            placement,
            priority: spec.and_then(|spec| spec.priority).unwrap_or_default(),
            preempts: policy != Some("Never"),
            prefers: spec.is_some_and(prefers),
        })
    }

    /// Whether it is nothing to this extender: it asks for no GPU and has none.
    pub fn is_foreign(&self) -> bool {
        self.ask == Ok(None) && self.placement.is_none()
    }
}

/// What a pod asks for; `None` when no container mentions a GPU.
///
/// # Errors
/// When its limits, annotations or labels ask for nothing that can be given.
pub fn ask_of(pod: &Pod, names: &ResourceNames) -> Result<Option<Ask>, AskError> {
    let none = BTreeMap::new();
    let annotations = pod.metadata.annotations.as_ref().unwrap_or(&none);
    let labels = pod.metadata.labels.as_ref().unwrap_or(&none);
    Ask::read(names, &limits(pod), host::requests(pod), || PodTerms::read(annotations, labels))
}

/// A controller may write a final phase while the node is out of reach; what a container's state
/// says is the kubelet's.
fn ended(pod: &Pod) -> bool {
    let Some(status) = pod.status.as_ref() else { return false };
    let runs = |status: &ContainerStatus| {
        status.state.as_ref().is_some_and(|state| state.running.is_some())
    };
    let all = [&status.container_statuses, &status.init_container_statuses];
    matches!(phase(pod), Some("Succeeded" | "Failed"))
        && !all.into_iter().flatten().flatten().any(runs)
}

fn phase(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.phase.as_deref()
}

/// Kubernetes 1.26 and later says it.
fn disrupted(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|of| of.type_ == "DisruptionTarget" && of.status == "True")
}

/// Affinity and spreading that are preferred and not required.
fn prefers(spec: &PodSpec) -> bool {
    fn any<T>(terms: Option<&Vec<T>>) -> bool {
        terms.is_some_and(|terms| !terms.is_empty())
    }
    let affinity = spec.affinity.as_ref().is_some_and(|affinity| {
        let node = affinity.node_affinity.as_ref();
        let pod = affinity.pod_affinity.as_ref();
        let anti = affinity.pod_anti_affinity.as_ref();
        let node =
            node.and_then(|of| of.preferred_during_scheduling_ignored_during_execution.as_ref());
        let pod =
            pod.and_then(|of| of.preferred_during_scheduling_ignored_during_execution.as_ref());
        let anti =
            anti.and_then(|of| of.preferred_during_scheduling_ignored_during_execution.as_ref());
        any(node) || any(pod) || any(anti)
    });
    let mut spread = spec.topology_spread_constraints.iter().flatten();
    affinity || spread.any(|spread| spread.when_unsatisfiable == "ScheduleAnyway")
}

/// The limits of all its containers.
pub(crate) fn limits(pod: &Pod) -> Vec<ContainerLimits> {
    let Some(spec) = pod.spec.as_ref() else { return Vec::new() };
    let of = |container: &Container, kind| {
        let limits = container.resources.as_ref()?.limits.as_ref()?;
        let limits = limits.iter().map(|(name, limit)| (name.clone(), limit.0.clone()));
        Some(ContainerLimits { name: container.name.clone(), kind, limits: limits.collect() })
    };
    let inits = spec.init_containers.iter().flatten().filter_map(|container| {
        let lasting = container.restart_policy.as_deref() == Some("Always");
        of(container, if lasting { ContainerKind::Sidecar } else { ContainerKind::Init })
    });
    let apps = spec.containers.iter().filter_map(|container| of(container, ContainerKind::App));
    inits.chain(apps).collect()
}
