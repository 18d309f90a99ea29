//! Against a real API server, when `GPU_ZONE_E2E_KUBECONFIG` names a kubeconfig of an
//! administrator: the definition of `GpuNode` is taken, its rules hold, what the plugin
//! publishes is accepted, and with the rights of its role the plugin makes and ends leases of pods of
//! that server. It makes objects called `gpu-zone-e2e` and removes them.

#[cfg(test)]
mod node;
#[cfg(test)]
use tests::{NAME, VARIABLE, say};

#[cfg(test)]
mod tests {
    use std::fmt::Debug;
    use std::io::Write;
    use std::panic::AssertUnwindSafe;
    use std::path::PathBuf;
    use std::time::Duration;

    use futures::FutureExt;
    use gpuzone_crds::{GpuNode, GpuNodeSpec, GpuNodeStatus, GpuQuota};
    use k8s_openapi::api::core::v1::Node;
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
    use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
    use kube::config::{KubeConfigOptions, Kubeconfig};
    use kube::{Api, Client, CustomResourceExt, Resource};
    use serde::de::DeserializeOwned;

    use super::node::{Served, clean, prepare};

    pub(crate) const VARIABLE: &str = "GPU_ZONE_E2E_KUBECONFIG";
    pub(crate) const NAME: &str = "gpu-zone-e2e";

    /// What one makes and removes, the other needs.
    static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

    async fn client() -> Option<Client> {
        let path = PathBuf::from(std::env::var_os(VARIABLE)?);
        let file = Kubeconfig::read_from(path).unwrap();
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(file, &options).await.unwrap();
        Some(Client::try_from(config).unwrap())
    }

    /// Not by a macro: what those print is shown of a test that fails only.
    pub(crate) fn say(line: &str) {
        std::io::stderr().write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    #[tokio::test]
    async fn a_real_api_server_takes_gpu_nodes_and_holds_their_rules() {
        let Some(client) = client().await else {
            say(&format!("SKIPPED: no cluster; {VARIABLE} names the kubeconfig of one"));
            return;
        };
        let _turn = TURN.lock().await;
        let (stored, made) = define::<GpuNode>(&client).await;
        let has_rules =
            serde_json::to_string(&stored).unwrap().contains("x-kubernetes-validations");
        let checks = takes_and_holds(client.clone(), has_rules);
        let ended = AssertUnwindSafe(checks).catch_unwind().await;
        if made {
            undefine::<GpuNode>(&client).await;
        }
        if let Err(panic) = ended {
            std::panic::resume_unwind(panic);
        }
    }

    /// The definition as it is stored, and whether it was made now.
    async fn define<K>(client: &Client) -> (CustomResourceDefinition, bool)
    where
        K: CustomResourceExt + Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
    {
        let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
        let definition = K::crd();
        // Not applied: a server that knows no rules in CEL (before 1.23) refuses to apply what has some,
        // and leaves them out of what is created.
        if let Some(stored) = definitions.get_opt(K::crd_name()).await.unwrap() {
            return (stored, false);
        }
        let stored = definitions.create(&PostParams::default(), &definition).await.unwrap();
        // The new kind is served a moment later.
        let (objects, few) = (Api::<K>::all(client.clone()), ListParams::default().limit(1));
        for _ in 0..100 {
            if objects.list(&few).await.is_ok() {
                return (stored, true);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{} is not served", K::crd_name());
    }

    async fn undefine<K: CustomResourceExt>(client: &Client) {
        let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
        definitions.delete(K::crd_name(), &DeleteParams::default()).await.unwrap();
        // It goes when its objects have gone.
        for _ in 0..100 {
            if definitions.get_opt(K::crd_name()).await.unwrap().is_none() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{} does not go", K::crd_name());
    }

    async fn takes_and_holds(client: Client, has_rules: bool) {
        let apply = PatchParams::apply(NAME).force();
        let nodes: Api<GpuNode> = Api::all(client);
        let mut node = GpuNode::new(NAME, GpuNodeSpec { node: NAME.into() });
        nodes.patch(NAME, &apply, &Patch::Apply(&node)).await.unwrap();
        node.status = Some(GpuNodeStatus::new("simulated", Vec::new()));
        nodes.patch_status(NAME, &apply, &Patch::Apply(&node)).await.unwrap();
        let wrong = GpuNode::new(NAME, GpuNodeSpec { node: "another".into() });
        let refused = nodes.patch(NAME, &apply, &Patch::Apply(&wrong)).await;
        nodes.delete(NAME, &DeleteParams::default()).await.unwrap();
        if !has_rules {
            say("SKIPPED: the rules of GpuNode: this API server knows none in CEL");
            return;
        }
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("a GpuNode is called like its node"), "{refused}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn pods_of_a_real_api_server_get_leases_and_lose_them() {
        let Some(client) = client().await else {
            say(&format!("SKIPPED: no cluster; {VARIABLE} names the kubeconfig of one"));
            return;
        };
        let _turn = TURN.lock().await;
        let (_, nodes) = define::<GpuNode>(&client).await;
        let (_, quotas) = define::<GpuQuota>(&client).await;
        prepare(&client).await;
        let ended = AssertUnwindSafe(serves(&client)).catch_unwind().await;
        clean(&client).await;
        let published: Api<GpuNode> = Api::all(client.clone());
        let _ = published.delete(NAME, &DeleteParams::default()).await;
        if nodes {
            undefine::<GpuNode>(&client).await;
        }
        if quotas {
            undefine::<GpuQuota>(&client).await;
        }
        if let Err(panic) = ended {
            std::panic::resume_unwind(panic);
        }
    }

    async fn serves(client: &Client) {
        let served = Served::start(client);
        served.until("the slots", async |served| served.kubelet.allocatable() == 8).await;
        let published: Api<GpuNode> = Api::all(client.clone());
        let (nodes, name) = (Api::<Node>::all(client.clone()), "GpuZoneGpusHealthy");
        served
            .until("the GpuNode and the condition", async |_| {
                let gpus = published.get_opt(NAME).await.unwrap().and_then(|node| node.status);
                let status = nodes.get(NAME).await.unwrap().status.unwrap_or_default();
                let conditions = status.conditions.unwrap_or_default();
                let healthy = conditions.iter().any(|c| c.type_ == name && c.status == "True");
                healthy && gpus.is_some_and(|gpus| (gpus.total, gpus.healthy) == (2, 2))
            })
            .await;

        let first = served.pod("first", false).await;
        let started = served.kubelet.start_container(&first, "app").await;
        let container = started.unwrap_or_else(|error| panic!("{error}\n{}", served.log()));
        let leases = served.node.leases().unwrap();
        assert_eq!((leases.len(), leases[0].tenant()), (1, NAME));
        let artifacts = served.node.artifacts();
        let mut program = container.command(artifacts.file("gpuzone-workload").unwrap());
        program.arg("saxpy").env("GPUZONE_KERNELS", artifacts.kernels());
        assert!(program.output().unwrap().status.success(), "{}", served.log());

        let bare = served.pod("bare", true).await;
        let refused = served.kubelet.start_container(&bare, "app").await;
        let said = refused.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(said.contains("leave spec.nodeName out"), "{said}");
        assert_eq!(served.node.leases().unwrap().len(), 1);

        // Once as a pod that goes by itself, and once as one that is made anew by its name.
        served.delete(&first).await;
        served.until("no lease", async |served| served.node.leases().unwrap().is_empty()).await;
        let anew = served.pod("first", false).await;
        served.kubelet.start_container(&anew, "app").await.unwrap();
        assert_eq!(served.node.leases().unwrap().len(), 1);
        for pod in [&anew, &bare] {
            served.delete(pod).await;
        }
        served.until("no lease", async |served| served.node.leases().unwrap().is_empty()).await;
        assert!(!served.log().contains("does not let the device plugin"), "{}", served.log());
    }
}
