//! An agent of the real programs over simulated GPUs, in a folder of its own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use gpuzone_agent::broker::BrokerLink;
use gpuzone_api::agent::v1::{self as proto, CreateLeaseReply, CreateLeaseRequest};
use gpuzone_api::{AgentClient, AgentError, ConnectError, Directories, connect_channel};
use gpuzone_testkit::Artifacts;
use rustix::process::{Pid, Signal, kill_process};
use tokio::runtime::{Builder, Runtime};
use tonic::transport::Channel;

/// On a machine that others use, too.
const LIMIT: Duration = Duration::from_secs(120);

/// Where connections live. On a test's own thread, which waits for its agent's end, none would be
/// closed by then, and the agent would wait for them.
static CONNECTIONS: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap());

pub(crate) async fn connect(socket: &Path) -> Result<Channel, ConnectError> {
    let socket = socket.to_owned();
    CONNECTIONS.spawn(async move { connect_channel(&socket).await }).await.unwrap()
}

/// A node, whose agent may or may not run.
pub(crate) struct Node {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) agent: Option<Child>,
}

impl Node {
    /// With one simulated GPU of 16 GiB, and an agent that answers.
    pub(crate) async fn start() -> Self {
        let mut node = Self::prepare();
        node.start_agent().await;
        node
    }

    pub(crate) fn prepare() -> Self {
        let artifacts = Artifacts::build().unwrap();
        // Sockets' paths are short, so the folder's has to be.
        let folder = tempfile::Builder::new().prefix("gz-").tempdir_in("/tmp").unwrap();
        let node = Self { folder, agent: None };
        let path = |name: &str| artifacts.file(name).unwrap().display().to_string();
        node.write(
            "simulated.toml",
            &format!(
                "state_dir = {:?}\n[[gpu]]\nname = \"gpu-zone Simulated GPU\"\nmemory = \"16Gi\"\n",
                node.path("gpus")
            ),
        );
        node.write(
            "agent.toml",
            &format!(
                "[node]\nstate_dir = \"state\"\nrun_dir = \"run\"\n\
                 [driver]\nkind = \"simulated\"\nsimulated_config = \"simulated.toml\"\n\
                 cuda_library = {:?}\nnvml_library = {:?}\n\
                 [shim]\nlibrary = {:?}\n[binaries]\nbroker = {:?}\nworker = {:?}\n\
                 [usage]\nflush_seconds = 0.1\n[tenants.default]\n[tenants.small]\nmemory = \"1Gi\"\n",
                path("libgpuzone_sim_cuda.so"),
                path("libgpuzone_sim_nvml.so"),
                path("libgpuzone_cuda.so"),
                path("gpu-zone-broker"),
                path("gpu-zone-worker"),
            ),
        );
        node
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    /// Changes the configuration by replacing text in it.
    pub(crate) fn configure(&self, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.path("agent.toml")).unwrap();
        assert!(text.contains(from), "{from:?} is not in {text}");
        self.write("agent.toml", &text.replace(from, to));
    }

    pub(crate) fn directories(&self) -> Directories {
        Directories { state: self.path("state"), run: self.path("run") }
    }

    pub(crate) fn agent_command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gpu-zoned"));
        command.arg("--config").arg(self.path("agent.toml")).env_remove("GPUZONE_SIM_CONFIG");
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    pub(crate) async fn start_agent(&mut self) {
        self.start_agent_as(|_| ()).await;
    }

    /// The same with more said of how it is run.
    pub(crate) async fn start_agent_as(&mut self, how: impl FnOnce(&mut Command)) {
        let log = std::fs::File::options().create(true).append(true).open(self.path("agent.log"));
        let mut command = self.agent_command();
        how(&mut command);
        let agent = command.stderr(log.unwrap()).spawn().unwrap();
        self.agent = Some(agent);
        let socket = self.directories().agent_socket();
        let end = Instant::now() + LIMIT;
        while Instant::now() < end {
            if connect(&socket).await.is_ok() {
                return;
            }
            let status = self.agent.as_mut().unwrap().try_wait().unwrap();
            assert!(status.is_none(), "the agent ended with {status:?}:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the agent does not answer:\n{}", self.log());
    }

    pub(crate) fn log(&self) -> String {
        let read = |name: &str| std::fs::read_to_string(self.path(name)).unwrap_or_default();
        format!("{}\n{}", read("agent.log"), read("run/driver-zone/broker.log"))
    }

    /// Starts an agent that must not start; what it says.
    pub(crate) fn refused(&self) -> String {
        let output = self.agent_command().output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    }

    pub(crate) async fn client(&self) -> AgentClient {
        AgentClient::new(connect(&self.directories().agent_socket()).await.unwrap())
    }

    /// Sends the agent a signal and waits for its end.
    pub(crate) fn signal_agent(&mut self, signal: Signal) -> ExitStatus {
        let mut agent = self.agent.take().unwrap();
        send(agent.id(), signal);
        agent.wait().unwrap()
    }

    /// A lease whose holder is this test's process.
    pub(crate) async fn lease(&self, gib: u64) -> Result<CreateLeaseReply, AgentError> {
        let created = self.client().await.create_lease(request("acme", gib)).await;
        created.map(tonic::Response::into_inner).map_err(AgentError::from)
    }

    /// Runs a test program in a lease, which has to go well.
    pub(crate) fn run_in(&self, lease: &CreateLeaseReply, workload: &str) {
        let output = self.run_to_end(lease, workload);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{workload}: {said}\n{}", self.log());
    }

    pub(crate) fn run_to_end(&self, lease: &CreateLeaseReply, workload: &str) -> Output {
        self.run_arguments(lease, &[workload])
    }

    pub(crate) fn run_arguments(&self, lease: &CreateLeaseReply, arguments: &[&str]) -> Output {
        let artifacts = Artifacts::build().unwrap();
        let mut command = Command::new(artifacts.file("gpuzone-workload").unwrap());
        command.args(arguments).envs(&lease.environment);
        command.env("LD_LIBRARY_PATH", &lease.library_dir);
        command.env("GPUZONE_KERNELS", artifacts.kernels());
        command.output().unwrap()
    }

    pub(crate) async fn leases(&self) -> Vec<proto::Lease> {
        let listed = self.client().await.list_leases(proto::ListLeasesRequest {}).await;
        listed.unwrap().into_inner().leases
    }

    /// The only lease's worker, when it has one.
    pub(crate) async fn worker(&self) -> Option<u32> {
        let leases = self.leases().await;
        assert_eq!(leases.len(), 1, "{}", self.log());
        leases[0].worker_pid
    }

    /// The only process of the node that is that.
    pub(crate) fn process(&self, role: gpuzone_testkit::Role) -> gpuzone_testkit::Process {
        let mut all = gpuzone_testkit::Process::of(self.folder.path());
        all.retain(|process| process.role == role);
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    pub(crate) async fn broker(&self) -> u32 {
        self.broker_that_answers().await.unwrap()
    }

    pub(crate) async fn broker_that_answers(&self) -> Option<u32> {
        let socket = self.directories().driver_zone_dir().join("control.sock");
        BrokerLink::new(socket).hello().await.ok()
    }

    pub(crate) async fn eventually(&self, what: &str, mut holds: impl AsyncFnMut(&Self) -> bool) {
        let end = Instant::now() + LIMIT;
        while !holds(self).await {
            assert!(Instant::now() < end, "not within {LIMIT:?}: {what}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            send(agent.id(), Signal::INT);
            let _ = agent.wait();
        }
        // Whatever a failed test left.
        for process in gpuzone_testkit::Process::of(self.folder.path()) {
            process.send(Signal::KILL);
        }
    }
}

pub(crate) fn request(tenant: &str, gib: u64) -> CreateLeaseRequest {
    CreateLeaseRequest {
        tenant: tenant.into(),
        gpus: 1,
        memory_bytes: Some(gib << 30),
        share_percent: Some(10),
        model: None,
        program: "a test".into(),
        zone_name: None,
        priority: String::new(),
        cap_percent: None,
        exposure: String::new(),
    }
}

pub(crate) fn send(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), signal).unwrap();
}

pub(crate) fn is_alive(pid: u32) -> bool {
    gpuzone_zone::ProcessId::of(pid).unwrap().is_some()
}

/// All that lies in a folder, by path within it.
pub(crate) fn listing(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.is_symlink() {
                folders.push(path.clone());
            }
            found.push(path.strip_prefix(folder).unwrap().to_owned());
        }
    }
    found
}
