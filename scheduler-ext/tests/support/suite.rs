//! What is done on a cluster of one's own: definitions installed, nodes that only exist as objects,
//! pods scheduled there with the extender and without, and all of it removed again.
#![allow(dead_code, clippy::unwrap_used, reason = "not every test needs all of it")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use futures::StreamExt;
use gpuzone_core::GpuUuid;
use gpuzone_crds::{GpuNode, GpuNodeSpec, GpuNodeStatus, GpuQuota};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, CustomResourceExt, ResourceExt};
use serde_json::{Value, json};

use super::scheduler::say;
use super::{GIB, pod, status};

/// All objects are called so, or begin so.
pub(crate) const NAME: &str = "gpu-zone-e2e";
const LIMIT: Duration = Duration::from_secs(300);

/// Creates one object and is done with it, whether it was there or not.
pub(crate) async fn apply<K>(api: &Api<K>, name: &str, object: Value)
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let params = PatchParams::apply(NAME).force();
    api.patch(name, &params, &Patch::Apply(&object)).await.unwrap();
}

pub(crate) async fn client(kubeconfig: &Path) -> Client {
    let file = Kubeconfig::read_from(kubeconfig).unwrap();
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(file, &options).await.unwrap();
    Client::try_from(config).unwrap()
}

/// A cluster with nodes of ours.
pub(crate) struct Fleet {
    pub(crate) client: Client,
    pub(crate) nodes: Vec<String>,
    /// Definitions that were not there before.
    definitions: Vec<String>,
}

impl Fleet {
    /// Installs the definitions. A cluster that has objects of gpu-zone already is left alone.
    pub(crate) async fn install(client: Client) -> Self {
        let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
        let mut fleet = Self { client: client.clone(), nodes: Vec::new(), definitions: Vec::new() };
        for definition in [GpuNode::crd(), GpuQuota::crd()] {
            let name = definition.name_any();
            if definitions.get_opt(&name).await.unwrap().is_none() {
                // Not applied: a server that knows no rules in CEL (before 1.23) refuses to apply what has
                // some, and leaves them out of what is created.
                let made = definitions.create(&PostParams::default(), &definition).await.unwrap();
                if !serde_json::to_string(&made).unwrap().contains("x-kubernetes-validations") {
                    say(&format!(
                        "SKIPPED: the rules of {name}: this API server knows none in CEL"
                    ));
                }
                fleet.definitions.push(name);
            }
        }
        let (gpu_nodes, quotas) =
            (Api::<GpuNode>::all(client.clone()), Api::<GpuQuota>::all(client.clone()));
        // A new kind is served a moment later.
        let none = ListParams::default();
        let there = patiently("the definitions are served", async || {
            let listed = (gpu_nodes.list(&none).await.ok()?, quotas.list(&none).await.ok()?);
            Some(listed.0.items.len() + listed.1.items.len())
        });
        let there = there.await;
        if there > 0 {
            fleet.remove().await;
            panic!(
                "the cluster has {there} GpuNodes and GpuQuotas already; the suite wants one of its own"
            );
        }
        fleet
    }

    /// A namespace with a quota, and so many nodes of four GPUs of 16 GiB.
    pub(crate) async fn furnish(&mut self, nodes: u32) {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let quotas: Api<GpuQuota> = Api::all(self.client.clone());
        let labels = json!({ "labels": { "kubernetes.io/metadata.name": NAME } });
        apply(&namespaces, NAME, object("v1", "Namespace", NAME, json!({ "metadata": labels })))
            .await;
        let spec = json!({ "namespaceSelector": {
            "matchLabels": { "kubernetes.io/metadata.name": NAME } }, "limits": { "gpus": 4096 } });
        let quota = json!({ "spec": spec });
        apply(&quotas, NAME, object("gpuzone.dev/v1alpha1", "GpuQuota", NAME, quota)).await;
        for n in 1..=nodes {
            self.add_node(n).await;
        }
    }

    async fn add_node(&mut self, n: u32) {
        let name = format!("{NAME}-{n}");
        self.nodes.push(name.clone());
        let nodes: Api<Node> = Api::all(self.client.clone());
        let labels = json!({ "labels": { NAME: "node" } });
        apply(&nodes, &name, object("v1", "Node", &name, json!({ "metadata": labels }))).await;
        let room =
            json!({ "cpu": "64", "memory": "256Gi", "pods": "500", "gpuzone.dev/gpu": "500" });
        let ready = json!([{ "type": "Ready", "status": "True", "reason": "NoKubelet",
            "lastHeartbeatTime": k8s_openapi::jiff::Timestamp::now(),
            "lastTransitionTime": k8s_openapi::jiff::Timestamp::now() }]);
        let said =
            json!({ "status": { "capacity": room, "allocatable": room, "conditions": ready } });
        let params = PatchParams::default();
        nodes.patch_status(&name, &params, &Patch::Merge(&said)).await.unwrap();
        let gpu_nodes: Api<GpuNode> = Api::all(self.client.clone());
        let mut node = GpuNode::new(&name, GpuNodeSpec { node: name.clone() });
        apply(&gpu_nodes, &name, serde_json::to_value(&node).unwrap()).await;
        node.status = Some(gpus_of(n));
        let params = PatchParams::apply(NAME).force();
        gpu_nodes.patch_status(&name, &params, &Patch::Apply(&node)).await.unwrap();
    }

    pub(crate) fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), NAME)
    }

    /// Creates pods for a scheduler.
    pub(crate) async fn create(
        &self,
        prefix: &str,
        count: u32,
        limits: &[(&str, u64)],
    ) -> BTreeSet<String> {
        let names = (0..count).map(|n| format!("{prefix}-{n}"));
        let pods = names.map(|name| pod(NAME, &name, limits));
        self.create_these(pods.collect()).await
    }

    pub(crate) async fn create_these(&self, pods: Vec<Value>) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for mut wanted in pods {
            wanted.as_object_mut().unwrap().remove("status");
            wanted["metadata"].as_object_mut().unwrap().remove("uid");
            let spec = &mut wanted["spec"];
            spec["schedulerName"] = json!(NAME);
            // No kubelet ends them.
            spec["terminationGracePeriodSeconds"] = json!(0);
            // Nobody keeps these nodes alive, so the cluster calls them unreachable in the end.
            spec["tolerations"] = json!([{ "operator": "Exists" }]);
            spec["nodeSelector"] = json!({ NAME: "node" });
            let wanted: Pod = serde_json::from_value(wanted).unwrap();
            // A new namespace's service account comes a moment later.
            let params = PostParams::default();
            let namespace = wanted.namespace().unwrap();
            let pods: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
            patiently("a pod is created", async || pods.create(&params, &wanted).await.ok()).await;
            names.insert(wanted.name_any());
        }
        names
    }

    /// Begins, and waits until these pods have a node; what began, and how many a second got one, from
    /// the first to the last.
    pub(crate) async fn bound<T>(
        &self,
        names: &BTreeSet<String>,
        begin: impl FnOnce() -> T,
    ) -> (T, f64) {
        let mut events =
            std::pin::pin!(watcher(self.pods(), watcher::Config::default()).default_backoff());
        let (mut begin, mut began, mut first) = (Some(begin), None, None);
        let mut bound = BTreeSet::new();
        let all = async {
            while bound.len() < names.len() {
                let pod = match events.next().await {
                    Some(Ok(watcher::Event::InitDone)) => {
                        began = began.take().or_else(|| begin.take().map(|begin| begin()));
                        continue;
                    }
                    Some(Ok(watcher::Event::InitApply(pod) | watcher::Event::Apply(pod))) => pod,
                    _ => continue,
                };
                let placed = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
                if placed && names.contains(&pod.name_any()) && bound.insert(pod.name_any()) {
                    first.get_or_insert_with(Instant::now);
                }
            }
        };
        let all = tokio::time::timeout(LIMIT, all).await;
        assert!(all.is_ok(), "{} of {} pods are bound after {LIMIT:?}", bound.len(), names.len());
        let took = first.map_or(Duration::ZERO, |first| first.elapsed());
        let rate = f64::from(u32::try_from(names.len()).unwrap() - 1) / took.as_secs_f64();
        (began.expect("no pod has a node before"), rate)
    }

    /// Each of these pods has a placement on its node, and no GPU is given twice.
    pub(crate) async fn placed_once(&self, names: &BTreeSet<String>) {
        let listed = self.pods().list(&ListParams::default()).await.unwrap();
        let mut held: BTreeMap<String, u64> = BTreeMap::new();
        for pod in listed.items.iter().filter(|pod| names.contains(&pod.name_any())) {
            let view = super::view(&serde_json::to_value(pod).unwrap());
            let placement = view.placement.unwrap_or_else(|| panic!("{} has none", pod.name_any()));
            for grant in placement.containers().flat_map(|(_, placed)| placed.grants()) {
                *held.entry(grant.gpu.to_string()).or_default() += grant.memory.get();
            }
        }
        assert!(!held.is_empty() && held.values().all(|memory| *memory <= 16 * GIB), "{held:?}");
    }

    /// Removes pods at once: no kubelet ends them.
    pub(crate) async fn delete_pods(&self) {
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        for pod in self.pods().list(&ListParams::default()).await.unwrap() {
            let _ = self.pods().delete(&pod.name_any(), &now).await;
        }
    }

    /// Removes all that was made, and the definitions that were not there before.
    pub(crate) async fn remove(self) {
        let (now, client) = (DeleteParams::default(), self.client.clone());
        self.delete_pods().await;
        for node in &self.nodes {
            let _ = Api::<GpuNode>::all(client.clone()).delete(node, &now).await;
            let _ = Api::<Node>::all(client.clone()).delete(node, &now).await;
        }
        let _ = Api::<GpuQuota>::all(client.clone()).delete(NAME, &now).await;
        let _ = Api::<Namespace>::all(client.clone()).delete(NAME, &now).await;
        let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
        for definition in &self.definitions {
            let _ = definitions.delete(definition, &now).await;
        }
        // An API server takes its time, and whoever comes next would take what is going for there.
        let namespaces: Api<Namespace> = Api::all(client);
        patiently("all of it is gone", async || {
            for definition in &self.definitions {
                definitions.get_opt(definition).await.ok()?.is_none().then_some(())?;
            }
            namespaces.get_opt(NAME).await.ok()?.is_none().then_some(())
        })
        .await;
    }
}

/// What the plugin of node `n` would say: four GPUs of 16 GiB.
fn gpus_of(n: u32) -> GpuNodeStatus {
    let mut said = status(0, 4, 16);
    for (index, gpu) in (0..).zip(&mut said.gpus) {
        let [a, b, c, d] = n.to_be_bytes();
        let uuid = [a, b, c, d, index, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        gpu.uuid = GpuUuid::from_bytes(uuid).to_string();
        gpu.nvlink_peers.clear();
    }
    said
}

/// An object to apply: `more` has whatever is not its name.
pub(crate) fn object(version: &str, kind: &str, name: &str, more: Value) -> Value {
    let mut object = more;
    (object["apiVersion"], object["kind"]) = (json!(version), json!(kind));
    object["metadata"]["name"] = json!(name);
    object
}

/// Tries until there is an answer.
async fn patiently<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < end, "not within a minute: {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
