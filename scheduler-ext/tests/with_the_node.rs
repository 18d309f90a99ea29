//! The extender, the device plugin and the agent with simulated GPUs, all of them the real
//! programs: what the extender writes is what the node gives, and what the node gives back is
//! free for the next pod.
#[cfg(test)]
mod support;

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use gpuzone_api::kubernetes::{DEVICE_PLUGIN_ACCESS, PodPlacement};
    use gpuzone_testkit::kubernetes::{ClusterApi, Kubelet, Pod};
    use gpuzone_testkit::{Artifacts, Node, Options};
    use serde_json::json;

    use super::support::extender::*;
    use super::support::pod;

    const NODE: &str = "gpu-1";

    struct Plugin(Child);

    impl Drop for Plugin {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn plugin(node: &Node, api: &ClusterApi) -> Plugin {
        let built = Artifacts::of_package("gpuzone-device-plugin").unwrap();
        let mut command = Command::new(built.file("gpu-zone-device-plugin").unwrap());
        let library = node.artifacts().file("libgpuzone_cuda.so").unwrap();
        command.args(["--node", NODE, "--slots", "64"]).arg("--library").arg(library);
        command.arg("--run-dir").arg(node.run_dir()).arg("--state-dir").arg(node.state_dir());
        command.arg("--kubelet-dir").arg(node.folder().join("kubelet/device-plugins"));
        let socket = node.folder().join("kubelet/pod-resources/kubelet.sock");
        command.arg("--pod-resources").arg(socket);
        command.arg("--kubeconfig").arg(api.kubeconfig(node.folder()).unwrap());
        let log = std::fs::File::create(node.folder().join("plugin.log")).unwrap();
        Plugin(command.stdin(Stdio::null()).stderr(log).spawn().unwrap())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_the_extender_writes_is_what_the_node_gives() {
        let options = Options {
            gpus: vec!["16Gi".into(), "16Gi".into()],
            configuration: "[usage]\nflush_seconds = 0.2\n[tenants.default]\n".into(),
        };
        let node = Node::start(&options).unwrap();
        let api = cluster(0, 0).await;
        // The plugin asks the same server.
        api.allow_only(&[&ROLES[..], &[DEVICE_PLUGIN_ACCESS]].concat());
        api.put("nodes", json!({ "metadata": { "name": NODE } }));
        let spec = json!({ "namespaceSelector": {}, "perPod": { "gpus": 2 } });
        api.put(
            "gpuquotas",
            json!({ "apiVersion": "gpuzone.dev/v1alpha1", "kind": "GpuQuota",
                "metadata": { "name": "all", "generation": 1 }, "spec": spec }),
        );
        let kubelet = Kubelet::start(
            &node.folder().join("kubelet"),
            "gpuzone.dev/gpu",
            Vec::new(),
            "v1beta1",
        );
        let kubelet = kubelet.unwrap();
        let _plugin = plugin(&node, &api);
        let extender = Extender::start(&api, node.folder(), "ext", &[]);
        extender.leads().await;
        let log = || {
            let plugin = std::fs::read_to_string(node.folder().join("plugin.log"));
            format!("{}{}{}", extender.log(), plugin.unwrap_or_default(), node.agent_log())
        };
        until("registration", log, async || kubelet.allocatable() == 64).await;

        // Filter, bind, Allocate, PreStart, lease.
        let whole = pod("team", "train", &[("gpu", 1)]);
        api.put("pods", whole.clone());
        until("the node's GPUs are known", log, async || {
            extender.filter(&whole, &[NODE]).await["NodeNames"] == json!([NODE])
        })
        .await;
        assert_eq!(extender.bind(&whole, NODE).await, "");
        let admitted = Pod::new("team", "train", "uid-train", 1);
        kubelet.admit(&admitted).await.unwrap();
        let mut container = None;
        until("its start", log, async || {
            container = kubelet.start_container(&admitted, "app").await.ok();
            container.is_some()
        })
        .await;
        let artifacts = node.artifacts();
        let container = container.unwrap();
        let mut program = container.command(artifacts.file("gpuzone-workload").unwrap());
        let output = program.arg("saxpy").env("GPUZONE_KERNELS", artifacts.kernels()).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

        // The lease is the placement.
        let bound = api.get("pods", "team/train").unwrap();
        let text = bound["metadata"]["annotations"]["gpuzone.dev/placement"].as_str().unwrap();
        let placement: PodPlacement = text.parse().unwrap();
        let (_, placed) = placement.containers().next().unwrap();
        let leases = node.leases().unwrap();
        assert_eq!(leases.len(), 1);
        let grants = leases[0].0["grants"].to_string();
        assert!(grants.contains(&placed.grants()[0].gpu.to_string()), "{grants}");
        assert_eq!(leases[0].tenant(), "team");

        // One GPU is left, and both are when it is gone.
        let both = pod("team", "both", &[("gpu", 2)]);
        assert_eq!(extender.filter(&both, &[NODE]).await["NodeNames"], json!([]));
        kubelet.remove(&admitted);
        api.delete("pods", "team/train");
        until("the lease's end", log, async || node.leases().unwrap().is_empty()).await;
        until("both are free", log, async || {
            extender.filter(&both, &[NODE]).await["NodeNames"] == json!([NODE])
        })
        .await;
    }
}
