//! The extender, the device plugin and the agent with simulated GPUs, all of them the real
//! programs: what the extender writes is what the node gives, and what the node gives back is
//! free for the next pod. Whole GPUs over VFIO are a folder that stands for sysfs.
#[cfg(test)]
mod support;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::process::{Child, Command, Output, Stdio};

    use gpuzone_api::kubernetes::{DEVICE_PLUGIN_ACCESS, PodPlacement};
    use gpuzone_core::{GpuUuid, Grant};
    use gpuzone_testkit::kubernetes::{ClusterApi, Container, Kubelet, Pod};
    use gpuzone_testkit::{Artifacts, Node, Options, Sysfs};
    use serde_json::{Value, json};

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

    /// All of them. Whoever asks ends before who answers.
    struct World {
        _plugin: Plugin,
        extender: Extender,
        kubelet: Kubelet,
        api: ClusterApi,
        node: Node,
    }

    fn options(gpus: &[&str], more: &str) -> Options {
        let usage = "[usage]\nflush_seconds = 0.2\n[tenants.default]\n";
        let gpus = gpus.iter().map(|gpu| (*gpu).to_owned()).collect();
        Options { gpus, configuration: format!("{usage}{more}") }
    }

    impl World {
        /// Over a node whose agent runs, and a kubelet that looks at this resource.
        async fn of(node: Node, resource: &str, devices: usize) -> Self {
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
            let folder = node.folder().join("kubelet");
            let kubelet = Kubelet::start(&folder, resource, Vec::new(), "v1beta1").unwrap();
            let _plugin = plugin(&node, &api);
            let extender = Extender::start(&api, node.folder(), "ext", &[]);
            extender.leads().await;
            let world = Self { _plugin, extender, kubelet, api, node };
            world.until("registration", async |w| w.kubelet.allocatable() == devices).await;
            world
        }

        fn log(&self) -> String {
            let plugin = std::fs::read_to_string(self.node.folder().join("plugin.log"));
            format!(
                "{}{}{}",
                self.extender.log(),
                plugin.unwrap_or_default(),
                self.node.agent_log()
            )
        }

        async fn until(&self, what: &str, mut holds: impl AsyncFnMut(&Self) -> bool) {
            until(what, || self.log(), async || holds(self).await).await;
        }

        /// Waits until a filter says that this node serves it.
        async fn fits(&self, pod: &Value) {
            let fits = async |w: &Self| {
                w.extender.filter(pod, &[NODE]).await["NodeNames"] == json!([NODE])
            };
            self.until("room", fits).await;
        }

        /// As the scheduler has a pod placed: filter, prioritize, bind. What it is given.
        async fn schedule(&self, pod: &Value) -> Grant {
            self.api.put("pods", pod.clone());
            self.fits(pod).await;
            let asked = json!({ "Pod": pod, "Nodes": null, "NodeNames": [NODE] });
            let (_, ranks) = self.extender.ask("/prioritize", &asked).await;
            assert_eq!(ranks, json!([]), "an only node has the least rank, which is left out");
            assert_eq!(self.extender.bind(pod, NODE).await, "", "{}", self.log());
            let meta = &pod["metadata"];
            let key = format!("team/{}", meta["name"].as_str().unwrap());
            let bound = self.api.get("pods", &key).unwrap();
            let text = bound["metadata"]["annotations"]["gpuzone.dev/placement"].as_str().unwrap();
            let placement: PodPlacement = text.parse().unwrap();
            let (_, placed) = placement.containers().next().unwrap();
            assert_eq!(placed.grants().len(), 1);
            placed.grants()[0]
        }

        /// Has the kubelet admit a pod; the device that it gives.
        async fn admit(&self, name: &str) -> (Pod, String) {
            let pod = Pod::new("team", name, &format!("uid-{name}"), 1);
            self.kubelet
                .admit(&pod)
                .await
                .unwrap_or_else(|error| panic!("{error}\n{}", self.log()));
            let device = self.kubelet.devices(&pod, "app").pop_first().unwrap();
            (pod, device)
        }

        async fn start(&self, pod: &Pod) -> Container {
            let mut container = None;
            self.until("its start", async |w| {
                container = w.kubelet.start_container(pod, "app").await.ok();
                container.is_some()
            })
            .await;
            container.unwrap()
        }

        fn run(&self, container: &Container, program: &str) -> Output {
            let artifacts = self.node.artifacts();
            let mut command = container.command(artifacts.file("gpuzone-workload").unwrap());
            command.arg(program).env("GPUZONE_KERNELS", artifacts.kernels()).output().unwrap()
        }

        fn works(&self, container: &Container) {
            let output = self.run(container, "saxpy");
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{said}\n{}", self.log());
        }

        fn delete(&self, pod: &Pod) {
            self.kubelet.remove(pod);
            self.api.delete("pods", &format!("team/{}", pod.name));
        }

        /// GPUs or instances that leases are of, each with whose it is.
        fn leased(&self) -> BTreeSet<(String, String)> {
            let leases = self.node.leases().unwrap();
            let one = |lease: &gpuzone_testkit::Lease| {
                let text = |value: &Value| value.as_str().unwrap().to_owned();
                (text(&lease.0["program"]), text(&lease.0["grants"][0]["gpu_uuid"]))
            };
            leases.iter().map(one).collect()
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_the_extender_writes_is_what_the_node_gives() {
        let node = Node::start(&options(&["16Gi", "16Gi"], "")).unwrap();
        let world = World::of(node, "gpuzone.dev/gpu", 64).await;
        let whole = pod("team", "train", &[("gpu", 1)]);
        let placed = world.schedule(&whole).await;
        let (admitted, _) = world.admit("train").await;
        let container = world.start(&admitted).await;
        world.works(&container);
        // The lease is the placement.
        let lease = ("team/train/app".to_owned(), placed.gpu.to_string());
        assert_eq!(world.leased(), BTreeSet::from([lease]));
        assert_eq!(world.node.leases().unwrap()[0].tenant(), "team");

        // One GPU is left, and both are when it is gone.
        let both = pod("team", "both", &[("gpu", 2)]);
        assert_eq!(world.extender.filter(&both, &[NODE]).await["NodeNames"], json!([]));
        world.delete(&admitted);
        world.until("the lease's end", async |w| w.leased().is_empty()).await;
        world.fits(&both).await;
    }

    /// Which instance of the profile a container gets is the kubelet's word, and the lease is of that:
    /// here each of two pods gets the one that the other was placed on.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_mig_instance_is_the_kubelets_choice_of_the_profile_that_was_placed() {
        let gpus = ["16Gi mig 1g.2gb 3g.6gb", "16Gi mig 1g.2gb"];
        let node = Node::start(&options(&gpus, "")).unwrap();
        let listed = node.json(&["gpus"]).unwrap();
        let world = World::of(node, "gpuzone.dev/mig-1g.2gb", 2).await;
        let gpu_of = |instance: &str| -> GpuUuid {
            let gpus = listed["gpus"].as_array().unwrap().iter();
            let has = |gpu: &&Value| {
                let parts = gpu["partitions"].as_array().unwrap();
                parts.iter().any(|part| part["id"] == instance)
            };
            gpus.clone().find(has).unwrap()["uuid"].as_str().unwrap().parse().unwrap()
        };
        // The kubelet's first choice is always the same.
        let (probe, first) = world.admit("probe").await;
        world.kubelet.remove(&probe);

        let [a, b] = ["a", "b"].map(|name| pod("team", name, &[("mig-1g.2gb", 1)]));
        let placed = [world.schedule(&a).await, world.schedule(&b).await];
        assert_ne!(placed[0].gpu, placed[1].gpu, "each GPU has one");
        assert_eq!(
            placed.map(|grant| (grant.memory.get(), grant.share.percent())),
            [(2 << 30, 14); 2]
        );
        let third = pod("team", "c", &[("mig-1g.2gb", 1)]);
        assert_eq!(world.extender.filter(&third, &[NODE]).await["NodeNames"], json!([]));

        let order = if placed[0].gpu == gpu_of(&first) { ["b", "a"] } else { ["a", "b"] };
        let mut expected = BTreeSet::new();
        let mut pods = Vec::new();
        for name in order {
            let (pod, device) = world.admit(name).await;
            let placed = &placed[usize::from(name == "b")];
            assert_ne!(gpu_of(&device), placed.gpu, "the kubelet chose another");
            let container = world.start(&pod).await;
            world.works(&container);
            let said = world.run(&container, "info").stdout;
            let said = String::from_utf8_lossy(&said).into_owned();
            let sees = ["devices=1 ", " MIG 1g.2gb", "total_bytes=2147483648 "];
            assert!(sees.iter().all(|part| said.contains(part)), "{said}");
            expected.insert((format!("team/{name}/app"), device));
            pods.push(pod);
        }
        assert_eq!(world.leased(), expected);

        // One goes: what it held is free at the node, and as much is free in the extender's count,
        // though that one had it elsewhere.
        world.delete(&pods[0]);
        world.until("the lease's end", async |w| w.leased().len() == 1).await;
        world.schedule(&third).await;
        let (pod, device) = world.admit("c").await;
        assert_eq!(device, first);
        let container = world.start(&pod).await;
        world.works(&container);
    }

    const ADDRESSES: [&str; 2] = ["0000:3b:00.0", "0000:af:00.0"];

    /// Two GPUs on vfio-pci, of these models, and the folder that says so.
    fn whole_gpus(models: [&str; 2]) -> (Node, Sysfs) {
        let mut tables = String::from("[node]\nsysfs = \"sys\"\n");
        for ((number, address), model) in (1..).zip(ADDRESSES).zip(models) {
            let uuid = GpuUuid::from_bytes([number; 16]);
            tables += &format!(
                "[[gpu]]\nuuid = \"{uuid}\"\nexposure = \"passthrough\"\naddress = \"{address}\"\n\
                 model = \"{model}\"\nmemory = \"80Gi\"\n"
            );
        }
        let mut node = Node::prepare(&options(&["16Gi"], &tables)).unwrap();
        let sysfs = Sysfs::new(&node.folder().join("sys")).unwrap();
        for (group, address) in (12..).zip(ADDRESSES) {
            sysfs.gpu(address, group).unwrap();
        }
        node.start_agent().unwrap();
        (node, sysfs)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_whole_gpu_is_the_kubelets_choice_of_those_that_are_alike() {
        let (node, _sysfs) = whole_gpus(["Simulated H100"; 2]);
        let world = World::of(node, "gpuzone.dev/passthrough", 2).await;
        let [a, b, c] = ["a", "b", "c"].map(|name| pod("team", name, &[("passthrough", 1)]));
        let placed = [world.schedule(&a).await, world.schedule(&b).await];
        assert_ne!(placed[0].gpu, placed[1].gpu);
        assert_eq!(world.extender.filter(&c, &[NODE]).await["NodeNames"], json!([]));
        // The later one is admitted first, and so gets what the other was placed on.
        let (second, _) = world.admit("b").await;
        let (first, _) = world.admit("a").await;
        let (second_has, first_has) = (world.start(&second).await, world.start(&first).await);
        let nodes: BTreeSet<&str> = second_has.nodes().iter().map(String::as_str).collect();
        assert_eq!(nodes, BTreeSet::from(["/dev/vfio/12", "/dev/vfio/vfio"]));
        assert!(first_has.nodes().contains("/dev/vfio/13"), "{:?}", first_has.nodes());
        let uuid = |number| GpuUuid::from_bytes([number; 16]);
        let held = [("team/b/app", uuid(1)), ("team/a/app", uuid(2))];
        assert_eq!(world.leased(), held.map(|(who, gpu)| (who.to_owned(), gpu.to_string())).into());
        assert_eq!(placed.map(|grant| grant.gpu), [uuid(1), uuid(2)], "the other way round");

        // What it leaves is nobody's until an operator has cleared it. It was placed on the other, which
        // the first one holds: none is free.
        world.delete(&second);
        world.until("the lease's end", async |w| w.leased().len() == 1).await;
        let well = |w: &World| {
            let said = w.api.get("gpunodes", NODE).unwrap_or_default();
            let gpus = said["status"]["gpus"].as_array().cloned().unwrap_or_default();
            gpus.into_iter().map(|gpu| gpu["healthy"] == json!(true)).collect::<Vec<_>>()
        };
        world.until("the GpuNode", async |w| well(w) == [true, false, true]).await;
        let mut answer = Value::Null;
        world
            .until("the refusal", async |w| {
                answer = w.extender.filter(&c, &[NODE]).await;
                answer["NodeNames"] == json!([])
            })
            .await;
        let said = answer["FailedNodes"][NODE].as_str().unwrap_or_default();
        assert!(said.starts_with("needs 1 GPU by passthrough: "), "{answer}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_whole_gpu_unlike_what_was_placed_is_not_leased() {
        let (node, _sysfs) = whole_gpus(["Simulated H100", "Simulated A100"]);
        let world = World::of(node, "gpuzone.dev/passthrough", 2).await;
        let mut picky = pod("team", "picky", &[("passthrough", 1)]);
        picky["metadata"]["annotations"] = json!({ "gpuzone.dev/model": "Simulated A100" });
        assert_eq!(world.schedule(&picky).await.gpu, GpuUuid::from_bytes([2; 16]));
        let (pod, device) = world.admit("picky").await;
        assert_eq!(device, ADDRESSES[0], "the kubelet knows no models");
        let mut said = String::new();
        world
            .until("a refusal", async |w| {
                let refused = w.kubelet.start_container(&pod, "app").await;
                said = refused.expect_err("it is another model").to_string();
                said.contains("let it be scheduled again")
            })
            .await;
        assert!(said.contains("Simulated H100") && said.contains("Simulated A100"), "{said}");
        assert!(world.leased().is_empty());
    }
}
