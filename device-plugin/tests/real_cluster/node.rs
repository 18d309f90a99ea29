//! A node of the real plugin and the real agent with simulated GPUs, whose API server is a real one, and
//! whose kubelet is a stand-in.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use gpuzone_api::kubernetes::{DEVICE_PLUGIN_ACCESS, PLACEMENT_ANNOTATION, PodPlacement};
use gpuzone_core::{ComputeShare, GpuUuid, Grant, MemoryBytes, Placement};
use gpuzone_crds::GpuQuota;
use gpuzone_testkit::kubernetes::{Kubelet, Pod as Held};
use gpuzone_testkit::{Node, Options};
use k8s_openapi::api::core::v1::{Namespace, Node as NodeObject, Pod};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::config::{AuthInfo, Kubeconfig};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{NAME, VARIABLE};

const LIMIT: Duration = Duration::from_secs(60);
const RESOURCE: &str = "gpuzone.dev/gpu";

/// Applies an object of the cluster's.
async fn apply<K>(client: &Client, mut object: Value)
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + std::fmt::Debug,
{
    object["apiVersion"] = K::api_version(&()).into();
    object["kind"] = K::kind(&()).into();
    object["metadata"]["name"] = NAME.into();
    let objects: Api<K> = Api::all(client.clone());
    let apply = PatchParams::apply(NAME).force();
    let end = Instant::now() + LIMIT;
    while let Err(error) = objects.patch(NAME, &apply, &Patch::Apply(&object)).await {
        assert!(Instant::now() < end, "{error}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn remove<K>(client: &Client)
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + std::fmt::Debug,
{
    let removed = Api::<K>::all(client.clone()).delete(NAME, &DeleteParams::default()).await;
    if let Err(error) = removed {
        super::say(&format!("{} {NAME} stays: {error}", K::kind(&())));
    }
}

/// The plugin's user, with the role's rights and no other; a namespace with a quota; a node.
pub(crate) async fn prepare(client: &Client) {
    let rule = |access: &gpuzone_api::kubernetes::Access| json!({ "apiGroups": [access.group], "resources": [access.resource], "verbs": access.verbs });
    let rules: Vec<Value> = DEVICE_PLUGIN_ACCESS.iter().map(rule).collect();
    apply::<ClusterRole>(client, json!({ "metadata": {}, "rules": rules })).await;
    let group = "rbac.authorization.k8s.io";
    let role = json!({ "apiGroup": group, "kind": "ClusterRole", "name": NAME });
    let user = json!([{ "apiGroup": group, "kind": "User", "name": NAME }]);
    let binding = json!({ "metadata": {}, "roleRef": role, "subjects": user });
    apply::<ClusterRoleBinding>(client, binding).await;
    let labelled = json!({ "metadata": { "labels": { NAME: "team" } } });
    apply::<Namespace>(client, labelled).await;
    let selector = json!({ "matchLabels": { NAME: "team" } });
    let quota = json!({ "namespaceSelector": selector, "limits": { "gpus": 2 } });
    apply::<GpuQuota>(client, json!({ "metadata": {}, "spec": quota })).await;
    // No scheduler takes it, and whoever looks for silent nodes is not to end its pods.
    let spec = json!({ "unschedulable": true });
    apply::<NodeObject>(client, json!({ "metadata": {}, "spec": spec })).await;
}

pub(crate) async fn clean(client: &Client) {
    remove::<NodeObject>(client).await;
    remove::<Namespace>(client).await;
    remove::<GpuQuota>(client).await;
    remove::<ClusterRoleBinding>(client).await;
    remove::<ClusterRole>(client).await;
}

/// The administrator's file, for somebody who acts as the plugin's user.
fn as_the_plugin(folder: &Path) -> std::path::PathBuf {
    let mut config = Kubeconfig::read_from(std::env::var_os(VARIABLE).unwrap()).unwrap();
    for user in &mut config.auth_infos {
        let auth = user.auth_info.get_or_insert_with(AuthInfo::default);
        auth.impersonate = Some(NAME.to_owned());
    }
    let path = folder.join("plugin.kubeconfig");
    std::fs::write(&path, serde_json::to_vec(&config).unwrap()).unwrap();
    path
}

pub(crate) struct Served {
    pub(crate) node: Node,
    pub(crate) kubelet: Kubelet,
    plugin: Child,
    pods: Api<Pod>,
    gpu: GpuUuid,
}

impl Served {
    pub(crate) fn start(client: &Client) -> Self {
        let gpus = vec!["1Gi".into(), "1Gi".into()];
        let configuration = "[tenants.default]\n".into();
        let node = Node::start(&Options { gpus, configuration }).unwrap();
        let folder = node.folder();
        let kubelet = Kubelet::start(&folder.join("kubelet"), RESOURCE, [], "v1beta1").unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_gpu-zone-device-plugin"));
        command.args(["--node", NAME, "--slots", "8", "--library"]);
        command.arg(node.artifacts().file("libgpuzone_cuda.so").unwrap());
        command.arg("--run-dir").arg(node.run_dir()).arg("--state-dir").arg(node.state_dir());
        command.arg("--kubelet-dir").arg(folder.join("kubelet/device-plugins"));
        let listing = folder.join("kubelet/pod-resources/kubelet.sock");
        command.arg("--pod-resources").arg(listing);
        command.arg("--kubeconfig").arg(as_the_plugin(folder));
        let log = std::fs::File::create(folder.join("plugin.log")).unwrap();
        let plugin = command.stdin(Stdio::null()).stderr(log).spawn().unwrap();
        let listed = node.json(&["gpus"]).unwrap();
        let gpu = listed["gpus"][0]["uuid"].as_str().unwrap().parse().unwrap();
        Self { node, kubelet, plugin, pods: Api::namespaced(client.clone(), NAME), gpu }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.node.folder().join("plugin.log")).unwrap_or_default()
    }

    pub(crate) async fn until(&self, what: &str, mut holds: impl AsyncFnMut(&Self) -> bool) {
        let end = Instant::now() + LIMIT;
        while !holds(self).await {
            assert!(Instant::now() < end, "not within {LIMIT:?}: {what}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Makes a pod; past the scheduler if that is `bare`, and otherwise bound as the extender binds.
    pub(crate) async fn pod(&self, name: &str, bare: bool) -> Held {
        let node = bare.then_some(NAME);
        let limits = json!({ "limits": { RESOURCE: "1" } });
        let container = json!({ "name": "app", "image": "none", "resources": limits });
        let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
            "spec": { "containers": [container], "schedulerName": NAME, "nodeName": node,
                "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 0,
                "tolerations": [{ "operator": "Exists" }] } });
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let mut made = self.pods.create(&PostParams::default(), &pod).await;
        let end = Instant::now() + LIMIT;
        // A new namespace has its service account a moment later.
        while made.is_err() && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(200)).await;
            made = self.pods.create(&PostParams::default(), &pod).await;
        }
        let uid = made.unwrap().metadata.uid.unwrap();
        if !bare {
            self.bind(name, &uid).await;
        }
        let held = Held::new(NAME, name, &uid, 1);
        self.kubelet.admit(&held).await.unwrap();
        held
    }

    async fn bind(&self, name: &str, uid: &str) {
        let (memory, share) =
            (MemoryBytes::new(256 << 20).unwrap(), ComputeShare::new(40).unwrap());
        let given = Placement::of(vec![Grant { gpu: self.gpu, memory, share }]).unwrap();
        let given = BTreeMap::from([("app".parse().unwrap(), given)]);
        let placement = PodPlacement::new(NAME.parse().unwrap(), uid.parse().unwrap(), given);
        let annotations = json!({ PLACEMENT_ANNOTATION: placement.unwrap().to_string() });
        let binding = json!({ "apiVersion": "v1", "kind": "Binding",
            "metadata": { "name": name, "namespace": NAME, "uid": uid, "annotations": annotations },
            "target": { "apiVersion": "v1", "kind": "Node", "name": NAME } });
        let params = PostParams::default();
        let bound =
            self.pods.create_subresource::<Value, Value>("binding", name, &params, &binding);
        bound.await.unwrap();
    }

    pub(crate) async fn delete(&self, pod: &Held) {
        self.kubelet.remove(pod);
        let at_once = DeleteParams::default().grace_period(0);
        self.pods.delete(&pod.name, &at_once).await.unwrap();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.plugin.kill();
        let _ = self.plugin.wait();
    }
}
