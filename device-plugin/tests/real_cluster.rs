//! Against a real API server, when `GPU_ZONE_E2E_KUBECONFIG` names a kubeconfig of an
//! administrator: the definition of `GpuNode` is taken, its rules hold, and what the plugin
//! publishes is accepted. It makes objects called `gpu-zone-e2e` and removes them.

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::panic::AssertUnwindSafe;
    use std::path::PathBuf;
    use std::time::Duration;

    use futures::FutureExt;
    use gpuzone_crds::{GpuNode, GpuNodeSpec, GpuNodeStatus};
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
    use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
    use kube::config::{KubeConfigOptions, Kubeconfig};
    use kube::{Api, Client, CustomResourceExt};

    const VARIABLE: &str = "GPU_ZONE_E2E_KUBECONFIG";
    const NAME: &str = "gpu-zone-e2e";

    async fn client() -> Option<Client> {
        let path = PathBuf::from(std::env::var_os(VARIABLE)?);
        let file = Kubeconfig::read_from(path).unwrap();
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(file, &options).await.unwrap();
        Some(Client::try_from(config).unwrap())
    }

    /// Not by a macro: what those print is shown of a test that fails only.
    fn say(line: &str) {
        std::io::stderr().write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    #[tokio::test]
    async fn a_real_api_server_takes_gpu_nodes_and_holds_their_rules() {
        let Some(client) = client().await else {
            say(&format!("SKIPPED: no cluster; {VARIABLE} names the kubeconfig of one"));
            return;
        };
        let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
        let definition = GpuNode::crd();
        let crd = definition.metadata.name.clone().unwrap();
        let there = definitions.get_opt(&crd).await.unwrap();
        // Not applied: a server that knows no rules in CEL (before 1.23) refuses to apply what has some,
        // and leaves them out of what is created.
        let made = there.is_none();
        let stored = match there {
            Some(stored) => stored,
            None => definitions.create(&PostParams::default(), &definition).await.unwrap(),
        };
        let has_rules =
            serde_json::to_string(&stored).unwrap().contains("x-kubernetes-validations");
        let ended = AssertUnwindSafe(takes_and_holds(client, has_rules)).catch_unwind().await;
        if made {
            definitions.delete(&crd, &DeleteParams::default()).await.unwrap();
        }
        if let Err(panic) = ended {
            std::panic::resume_unwind(panic);
        }
    }

    async fn takes_and_holds(client: Client, has_rules: bool) {
        let apply = PatchParams::apply(NAME).force();
        let nodes: Api<GpuNode> = Api::all(client);
        let mut node = GpuNode::new(NAME, GpuNodeSpec { node: NAME.into() });
        // The new kind is served a moment later.
        for _ in 0..100 {
            if nodes.patch(NAME, &apply, &Patch::Apply(&node)).await.is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
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
}
