//! Objects of tests, and an index that knows some.
#![allow(dead_code, clippy::unwrap_used, reason = "not every test needs all of it")]

pub(crate) mod bare;
pub(crate) mod certificates;
pub(crate) mod extender;
pub(crate) mod goings;
pub(crate) mod promises;
pub(crate) mod questions;
pub(crate) mod scheduler;
pub(crate) mod suite;
pub(crate) mod world;

use std::collections::BTreeMap;
use std::time::Duration;

use gpuzone_api::kubernetes::{NodeName, PodUid, ResourceNames};
use gpuzone_core::GpuUuid;
use gpuzone_core::engine::{HostRoom, Policy};
use gpuzone_crds::{GpuEntry, GpuNodeStatus, GpuQuotaSpec};
use gpuzone_scheduler_ext::index::{Index, Kind, Settings, WithoutQuota};
use gpuzone_scheduler_ext::view::PodView;
use serde_json::{Value, json};

pub(crate) const GIB: u64 = 1 << 30;

pub(crate) fn settings() -> Settings {
    Settings {
        names: ResourceNames::defaults().unwrap(),
        policy: Policy::Pack,
        without_quota: WithoutQuota::Admit,
        group_patience: Duration::from_secs(20),
        replacement: Duration::from_secs(60),
    }
}

pub(crate) fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

pub(crate) fn uid(text: &str) -> PodUid {
    text.parse().unwrap()
}

pub(crate) fn uid_of(pod: &Value) -> PodUid {
    uid(pod["metadata"]["uid"].as_str().unwrap())
}

/// The name of its group.
pub(crate) fn group_of(pod: &Value) -> Option<String> {
    let label = &pod["metadata"]["labels"]["scheduling.x-k8s.io/pod-group"];
    label.as_str().map(str::to_owned)
}

pub(crate) fn gpu_uuid(node: u8, index: u8) -> String {
    GpuUuid::from_bytes([node, index, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]).to_string()
}

pub(crate) fn gpu(node: u8, index: u8, gib: u64, model: &str) -> GpuEntry {
    GpuEntry {
        uuid: gpu_uuid(node, index),
        index: index.into(),
        model: model.into(),
        memory_bytes: gib * GIB,
        compute_capability: "9.0".into(),
        numa_node: Some(u32::from(index) / 4),
        nvlink_peers: vec![gpu_uuid(node, index ^ 1)],
        mig_capable: false,
        simulated: true,
        exposure: Default::default(),
        partitions: Vec::new(),
        healthy: true,
        reason: None,
        cause: None,
        needs_operator: false,
    }
}

pub(crate) fn status(node: u8, gpus: u8, gib: u64) -> GpuNodeStatus {
    let gpus = (0..gpus).map(|index| gpu(node, index, gib, "Simulated H100")).collect();
    GpuNodeStatus::new("simulated", gpus)
}

/// A pod of one container, as the API server has it. `limits` are of gpu-zone's resources.
pub(crate) fn pod(namespace: &str, name: &str, limits: &[(&str, u64)]) -> Value {
    let limits: BTreeMap<String, String> =
        limits.iter().map(|(k, v)| (format!("gpuzone.dev/{k}"), v.to_string())).collect();
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": { "namespace": namespace, "name": name, "uid": format!("uid-{name}") },
        "spec": { "containers": [{ "name": "app", "image": "x", "resources": { "limits": limits } }] },
        "status": { "phase": "Pending" },
    })
}

pub(crate) fn grouped(mut pod: Value, group: &str, size: u32) -> Value {
    pod = labelled(pod, group);
    pod["metadata"]["annotations"] = json!({ "gpuzone.dev/pod-group-size": size.to_string() });
    pod
}

/// The same, without a word of how many it starts together with.
pub(crate) fn labelled(mut pod: Value, group: &str) -> Value {
    pod["metadata"]["labels"] = json!({ "scheduling.x-k8s.io/pod-group": group });
    pod
}

/// A `PodGroup` of the namespace `team`, as the API server has it.
pub(crate) fn pod_group(name: &str, spec: Value) -> Value {
    json!({ "apiVersion": "scheduling.x-k8s.io/v1alpha1", "kind": "PodGroup",
        "metadata": { "namespace": "team", "name": name }, "spec": spec })
}

pub(crate) fn apply_pod_group(index: &mut Index, group: &Value) {
    let name = group["metadata"]["name"].as_str().unwrap().to_owned();
    let object = serde_json::from_value(group.clone()).unwrap();
    index.apply_pod_group("team", &name, gpuzone_scheduler_ext::pod_group::read(&object));
}

pub(crate) fn view(pod: &Value) -> PodView {
    let pod = serde_json::from_value(pod.clone()).unwrap();
    PodView::of(&pod, &ResourceNames::defaults().unwrap()).unwrap()
}

pub(crate) fn quota(spec: Value) -> GpuQuotaSpec {
    serde_json::from_value(spec).unwrap()
}

pub(crate) fn namespace(index: &mut Index, name: &str) {
    let labels = BTreeMap::from([("team".to_owned(), name.to_owned())]);
    index.apply_namespace(name, &labels);
}

pub(crate) fn complete(index: &mut Index) {
    use Kind::{GpuNodes, Namespaces, Nodes, PodGroups, Pods, Quotas};
    for kind in [GpuNodes, Nodes, Namespaces, Quotas, Pods, PodGroups] {
        index.complete(kind);
    }
}

/// With nodes `n1`, `n2`… of so many GPUs of 16 GiB, and the namespace `team`.
pub(crate) fn index(nodes: u8, gpus: u8) -> Index {
    index_with(settings(), nodes, gpus)
}

pub(crate) fn index_with(settings: Settings, nodes: u8, gpus: u8) -> Index {
    let mut index = Index::new(settings);
    for n in 1..=nodes {
        let name = node(&format!("n{n}"));
        index.apply_node(&name, HostRoom::default());
        index.apply_gpu_node(&name, Some(&status(n, gpus, 16)));
    }
    namespace(&mut index, "team");
    complete(&mut index);
    index
}

/// xorshift64*: the same sequence for a seed everywhere.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % n
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// How many sequences a model tries.
pub(crate) fn seeds(usual: u64) -> u64 {
    let set = std::env::var("GPUZONE_MODEL_SEEDS").ok();
    set.and_then(|seeds| seeds.parse().ok()).unwrap_or(usual)
}

/// The first of them.
pub(crate) fn first_seed() -> u64 {
    let set = std::env::var("GPUZONE_MODEL_FIRST").ok();
    set.and_then(|seed| seed.parse().ok()).unwrap_or(1)
}
