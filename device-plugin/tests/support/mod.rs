//! A node of the real agent and the real plugin, with stand-ins of kubelet and API server.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use gpuzone_api::kubernetes::{DEVICE_PLUGIN_ACCESS, PLACEMENT_ANNOTATION, PodPlacement};
use gpuzone_core::{ComputeShare, GpuUuid, Grant, MemoryBytes, Placement};
use gpuzone_testkit::kubernetes::{ApiServer, Container, Kubelet, Pod};
use gpuzone_testkit::{Node, Options};

pub(crate) const NODE: &str = "gpu-1";
pub(crate) const RESOURCE: &str = "gpuzone.dev/gpu";
const LIMIT: Duration = Duration::from_secs(30);

/// The whole node. Dropping it ends everything.
pub(crate) struct Cluster {
    pub(crate) node: Node,
    pub(crate) api: ApiServer,
    pub(crate) kubelet: Option<Kubelet>,
    pub(crate) plugin: Option<Child>,
    pub(crate) gpus: Vec<GpuUuid>,
}

impl Cluster {
    /// With two simulated GPUs, and everything running.
    pub(crate) async fn start() -> Self {
        let mut cluster = Self::without_plugin().await;
        cluster.start_plugin();
        cluster.registered().await;
        cluster
    }

    pub(crate) async fn without_plugin() -> Self {
        Self::of(Node::start(&Self::options("")).unwrap()).await
    }

    /// Two simulated GPUs, and an agent that is told this, too.
    pub(crate) fn options(more: &str) -> Options {
        let tenants = "[usage]\nflush_seconds = 0.2\n[tenants.default]\n\
                       [tenants.small]\nmemory = \"1Gi\"\n";
        Options {
            gpus: vec!["16Gi".into(), "16Gi".into()],
            configuration: format!("{tenants}{more}"),
        }
    }

    /// A node whose agent runs already; no plugin yet.
    pub(crate) async fn of(node: Node) -> Self {
        let listed = node.json(&["gpus"]).unwrap();
        let gpus = listed["gpus"].as_array().unwrap().iter();
        let gpus = gpus.map(|gpu| gpu["uuid"].as_str().unwrap().parse().unwrap()).collect();
        let api = ApiServer::start().await.unwrap();
        api.allow_only(DEVICE_PLUGIN_ACCESS);
        api.put_quota("all", Some(serde_json::json!({ "namespaceSelector": {} })));
        let mut cluster = Self { node, api, kubelet: None, plugin: None, gpus };
        cluster.start_kubelet(Vec::new());
        cluster
    }

    /// A kubelet that looks at another resource.
    pub(crate) fn start_kubelet_for(&mut self, resource: &str, active: Vec<Pod>) {
        self.kubelet = None;
        let folder = self.node.folder().join("kubelet");
        self.kubelet = Some(Kubelet::start(&folder, resource, active, "v1beta1").unwrap());
    }

    pub(crate) fn start_kubelet(&mut self, active: Vec<Pod>) {
        self.start_kubelet_of("v1beta1", active);
    }

    pub(crate) fn start_kubelet_of(&mut self, version: &str, active: Vec<Pod>) {
        self.kubelet = None;
        let folder = self.node.folder().join("kubelet");
        self.kubelet = Some(Kubelet::start(&folder, RESOURCE, active, version).unwrap());
    }

    /// A kubelet that ends and starts again, with the pods it had.
    pub(crate) fn restart_kubelet(&mut self) {
        let active = self.kubelet().active();
        self.start_kubelet(active);
    }

    pub(crate) fn kubelet(&self) -> &Kubelet {
        self.kubelet.as_ref().unwrap()
    }

    pub(crate) fn plugin_command(&self) -> Command {
        let kubeconfig = self.api.kubeconfig(self.node.folder()).unwrap();
        self.plugin_over(&self.node.state_dir(), &kubeconfig)
    }

    /// A plugin with another state folder.
    pub(crate) fn plugin_over(&self, state: &Path, kubeconfig: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gpu-zone-device-plugin"));
        let library = self.node.artifacts().file("libgpuzone_cuda.so").unwrap();
        command.args(["--node", NODE, "--slots", "64"]).arg("--library").arg(library);
        command.arg("--run-dir").arg(self.node.run_dir());
        command.arg("--state-dir").arg(state);
        command.arg("--kubelet-dir").arg(self.node.folder().join("kubelet/device-plugins"));
        let socket = self.node.folder().join("kubelet/pod-resources/kubelet.sock");
        command.arg("--pod-resources").arg(socket);
        command.arg("--kubeconfig").arg(kubeconfig);
        command.stdin(Stdio::null()).env("RUST_LOG", "info,gpuzone_device_plugin=debug");
        command
    }

    pub(crate) fn log_path(&self) -> PathBuf {
        self.node.folder().join("plugin.log")
    }

    pub(crate) fn start_plugin(&mut self) {
        self.start_plugin_with(&[]);
    }

    pub(crate) fn start_plugin_with(&mut self, arguments: &[&str]) {
        let log = std::fs::File::options().create(true).append(true).open(self.log_path());
        let mut command = self.plugin_command();
        self.plugin = Some(command.args(arguments).stderr(log.unwrap()).spawn().unwrap());
    }

    /// One that writes what CDI devices there are into this folder.
    pub(crate) fn start_plugin_with_cdi(&mut self) -> PathBuf {
        let folder = self.node.folder().join("cdi");
        self.start_plugin_with(&["--cdi-dir", folder.to_str().unwrap()]);
        folder
    }

    pub(crate) fn kill_plugin(&mut self) {
        if let Some(mut plugin) = self.plugin.take() {
            plugin.kill().unwrap();
            plugin.wait().unwrap();
        }
    }

    pub(crate) fn log(&self) -> String {
        let plugin = std::fs::read_to_string(self.log_path()).unwrap_or_default();
        format!("plugin:\n{plugin}\nagent:\n{}", self.node.agent_log())
    }

    /// Waits until the kubelet has the plugin's slots.
    pub(crate) async fn registered(&self) {
        self.until("registration", async |cluster| cluster.kubelet().allocatable() == 64).await;
    }

    /// Waits until the kubelet may hand out so many of what it looks at.
    pub(crate) async fn allocatable(&self, count: usize) {
        let holds = async |cluster: &Self| cluster.kubelet().allocatable() == count;
        self.until(&format!("{count} that may be handed out"), holds).await;
    }

    /// Waits until there are as many leases.
    pub(crate) async fn leases(&self, count: usize) {
        self.until(&format!("{count} leases"), async |cluster| {
            cluster.node.leases().unwrap().len() == count
        })
        .await;
    }

    pub(crate) async fn until(&self, what: &str, mut holds: impl AsyncFnMut(&Self) -> bool) {
        let end = std::time::Instant::now() + LIMIT;
        while !holds(self).await {
            assert!(
                std::time::Instant::now() < end,
                "not within {LIMIT:?}: {what}\n{}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The placement of a container: this much of this GPU.
    pub(crate) fn grant(&self, gpu: usize, gib: u64) -> Grant {
        let (memory, share) = (MemoryBytes::gib(gib), ComputeShare::new(5).unwrap());
        Grant { gpu: self.gpus[gpu], memory, share }
    }

    /// The pod with a placement, as the scheduler's extender writes it.
    pub(crate) fn placed(&self, pod: Pod, containers: &[(&str, &[Grant])]) -> Pod {
        let given = containers
            .iter()
            .map(|(name, grants)| (name.parse().unwrap(), Placement::of(grants.to_vec()).unwrap()));
        let given: BTreeMap<_, _> = given.collect();
        let uid = pod.uid.parse().unwrap();
        let placement = PodPlacement::new(NODE.parse().unwrap(), uid, given).unwrap();
        pod.annotated(PLACEMENT_ANNOTATION, placement)
    }

    /// A pod of one container with one GiB of the first GPU.
    pub(crate) fn small_pod(&self, name: &str) -> Pod {
        let pod = Pod::new("team", name, &format!("uid-{name}"), 1);
        self.placed(pod, &[("app", &[self.grant(0, 1)])])
    }

    /// Binds a pod to this node, and has the kubelet admit it.
    pub(crate) async fn admit(&self, pod: &Pod) {
        self.api.put(pod, NODE, "Pending", false);
        self.kubelet().admit(pod).await.unwrap_or_else(|error| panic!("{error}\n{}", self.log()));
    }

    /// Starts a container, as often as the kubelet does until it starts.
    pub(crate) async fn start_container(&self, pod: &Pod, name: &str) -> Container {
        let mut started = None;
        self.until(&format!("start of {name} of {}", pod.name), async |cluster| {
            match cluster.kubelet().start_container(pod, name).await {
                Ok(container) => started = Some(container),
                Err(error) => eprintln!("{error}"),
            }
            started.is_some()
        })
        .await;
        self.api.put(pod, NODE, "Running", true);
        started.unwrap()
    }

    /// Why a container does not start.
    pub(crate) async fn refusal(&self, pod: &Pod) -> String {
        match self.kubelet().start_container(pod, "app").await {
            Ok(_) => panic!("{} started\n{}", pod.name, self.log()),
            Err(error) => error.to_string(),
        }
    }

    /// Each of these pods does not start, for a reason that says this.
    pub(crate) async fn refuses(&self, pods: &[(&Pod, &str)]) {
        for (pod, part) in pods {
            self.admit(pod).await;
            let said = self.refusal(pod).await;
            assert!(said.contains(part), "{said} lacks {part}");
            self.delete(pod);
        }
    }

    /// What the plugin wrote down of the devices that it handed out, and that are not clear yet.
    pub(crate) fn handed_out(&self) -> Vec<String> {
        let files = std::fs::read_dir(self.node.state_dir().join("handed-out")).unwrap();
        let marks = files.flatten().filter(|file| file.path().extension().is_none());
        marks.filter_map(|file| std::fs::read_to_string(file.path()).ok()).collect()
    }

    /// Waits until the plugin knows that this pod has a device.
    pub(crate) async fn knows(&self, pod: &Pod) {
        let marked = |mark: &String| mark.contains(&format!("{:?}", pod.uid));
        let knows = async |cluster: &Self| cluster.handed_out().iter().any(marked);
        self.until(&format!("a mark of {}", pod.name), knows).await;
    }

    /// How often the audit log says this.
    pub(crate) fn audited(&self, what: &str) -> usize {
        let log = std::fs::read_to_string(self.node.state_dir().join("audit.log"));
        log.unwrap_or_default().matches(what).count()
    }

    /// A pod that is deleted, and whose containers are gone.
    pub(crate) fn delete(&self, pod: &Pod) {
        self.kubelet().remove(pod);
        self.api.delete(pod);
    }

    /// Runs a CUDA program in a container, to its end.
    pub(crate) fn run_in(&self, container: &Container) -> Output {
        let artifacts = self.node.artifacts();
        let mut command = container.command(artifacts.file("gpuzone-workload").unwrap());
        command.arg("saxpy").env("GPUZONE_KERNELS", artifacts.kernels()).output().unwrap()
    }

    pub(crate) fn works(&self, container: &Container) {
        let output = self.run_in(container);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}\n{}", self.log());
    }

    pub(crate) fn fails(&self, container: &Container) {
        assert!(!self.run_in(container).status.success(), "{}", self.log());
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.kill_plugin();
    }
}
