//! Pods, as far as they matter here. Reading the whole of each would cost code and memory that
//! nothing else on the node needs.

use std::collections::BTreeMap;

use gpuzone_api::kubernetes::{PLACEMENT_ANNOTATION, PodUid};
use kube::api::ObjectMeta;
use serde::{Deserialize, Serialize};

use crate::claim::{ContainerKind, ContainerView, PodView};
use crate::holders::{PodName, Resources};

/// A pod of the API server's, read in part.
#[derive(Clone, Debug, Default, kube::Resource, Serialize, Deserialize)]
#[resource(inherit = k8s_openapi::api::core::v1::Pod)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Pod {
    pub(super) metadata: ObjectMeta,
    spec: Option<Spec>,
    status: Option<Status>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    node_name: Option<String>,
    containers: Option<Vec<Container>>,
    init_containers: Option<Vec<Container>>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    name: String,
    restart_policy: Option<String>,
    resources: Option<Asked>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Asked {
    limits: Option<BTreeMap<String, String>>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    phase: Option<String>,
    container_statuses: Option<Vec<ContainerStatus>>,
    init_container_statuses: Option<Vec<ContainerStatus>>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct ContainerStatus {
    name: String,
    state: Option<ContainerState>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct ContainerState {
    running: Option<Running>,
    terminated: Option<Terminated>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Terminated {
    exit_code: i32,
}

/// That it is there says all.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Running {}

/// What matters of a pod; `None` for one without a name, which the API server has none of.
pub(super) fn view(pod: &Pod, resources: &Resources) -> Option<PodView> {
    let meta = &pod.metadata;
    let name = PodName { namespace: meta.namespace.clone()?, name: meta.name.clone()? };
    let uid: PodUid = meta.uid.as_deref()?.parse().ok()?;
    let (spec, status) = (pod.spec.as_ref(), pod.status.as_ref());
    let init = status.and_then(|status| status.init_container_statuses.as_deref());
    let app = status.and_then(|status| status.container_statuses.as_deref());
    let (init, app) = (init.unwrap_or_default(), app.unwrap_or_default());
    let phase = status.and_then(|status| status.phase.as_deref());
    // A controller may write a final phase while the node is out of reach; what a container's
    // state says is the kubelet's.
    let runs = |status: &&ContainerStatus| is_running(status);
    let final_phase = matches!(phase, Some("Succeeded" | "Failed"));
    let ended = final_phase && init.iter().chain(app).find(runs).is_none();
    let inits = spec.and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default();
    let apps = spec.and_then(|spec| spec.containers.as_deref()).unwrap_or_default();
    let sidecar = |c: &Container| c.restart_policy.as_deref() == Some("Always");
    let inits = inits.iter().map(|container| {
        let status = init.iter().find(|status| status.name == container.name);
        let kind = match sidecar(container) {
            true => ContainerKind::Lasting,
            false => ContainerKind::Init { done: status.is_some_and(has_succeeded) },
        };
        container_view(container, kind, status, resources)
    });
    let apps = apps.iter().map(|container| {
        let status = app.iter().find(|status| status.name == container.name);
        container_view(container, ContainerKind::Lasting, status, resources)
    });
    let annotations = meta.annotations.as_ref();
    Some(PodView {
        name,
        uid,
        node: spec.and_then(|spec| spec.node_name.clone()),
        ended,
        placement: annotations.and_then(|all| all.get(PLACEMENT_ANNOTATION)).cloned(),
        containers: inits.chain(apps).collect(),
    })
}

fn is_running(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|state| state.running.is_some())
}

fn has_succeeded(status: &ContainerStatus) -> bool {
    let terminated = status.state.as_ref().and_then(|state| state.terminated.as_ref());
    terminated.is_some_and(|terminated| terminated.exit_code == 0)
}

fn container_view(
    container: &Container,
    kind: ContainerKind,
    status: Option<&ContainerStatus>,
    resources: &Resources,
) -> ContainerView {
    let limits = container.resources.as_ref().and_then(|resources| resources.limits.as_ref());
    let ours = limits.into_iter().flatten().filter(|(name, _)| resources.include(name));
    let slots = ours.filter_map(|(_, count)| count.parse::<usize>().ok());
    ContainerView {
        name: container.name.clone(),
        kind,
        slots: slots.fold(0, usize::saturating_add),
        running: status.is_some_and(is_running),
    }
}
