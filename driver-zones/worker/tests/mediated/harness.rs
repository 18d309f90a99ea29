//! A worker with the simulated GPU behind it, and tenant processes with the shim before them.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use gpuzone_core::{ComputeShare, Grant, MemoryBytes};
use gpuzone_testkit::Artifacts;
use gpuzone_wire::control::{Caps, Driver};
use gpuzone_wire::handover::{LISTENER_FD, STATS_FD, WorkerSpec};
use gpuzone_wire::stats::{Monotonic, Snapshot, StatsFile};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

pub(crate) const GPU: &str = "GPU-11111111-2222-3333-4444-555555555555";
const SECOND: &str = "GPU-66666666-7777-8888-9999-aaaaaaaaaaaa";
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// One of this workspace's libraries, built if it is not.
fn library(name: &str) -> &'static Path {
    Artifacts::build().expect("it builds").file(name).expect("it is built")
}

const SHIM: &str = "libgpuzone_cuda.so";
const CUDA: &str = "libgpuzone_sim_cuda.so";
const NVML: &str = "libgpuzone_sim_nvml.so";

/// One lease on a simulated GPU.
pub(crate) struct Lease {
    dir: tempfile::TempDir,
    listener: OwnedFd,
    stats: StatsFile,
    limit: u64,
    caps: Caps,
    gpus: Vec<&'static str>,
    worker: Option<Child>,
}

impl Lease {
    /// A lease of this many bytes, with its worker running.
    pub(crate) fn start(limit: u64) -> Self {
        Self::start_on(limit, "")
    }

    /// The same, with more lines for the simulated GPU's configuration.
    pub(crate) fn start_on(limit: u64, more: &str) -> Self {
        Self::start_with(limit, more, Caps::default())
    }

    /// The same, with other caps.
    pub(crate) fn start_with(limit: u64, more: &str, caps: Caps) -> Self {
        Self::start_of(vec![GPU], limit, more, caps)
    }

    /// A lease of two GPUs.
    pub(crate) fn start_on_two(limit: u64) -> Self {
        let second = format!(
            "[[gpu]]\nname = \"Second\"\nuuid = \"{SECOND}\"\nmemory = \"1Gi\"\ncompute_capability = \"9.0\"\npci = \"0000:02:00.0\"\n"
        );
        Self::start_of(vec![GPU, SECOND], limit, &second, Caps::default())
    }

    fn start_of(gpus: Vec<&'static str>, limit: u64, more: &str, caps: Caps) -> Self {
        let dir = tempfile::Builder::new().prefix("gz").tempdir().expect("a directory");
        let config = format!(
            "state_dir = \"{}/state\"\n[[gpu]]\nname = \"Simulated\"\nuuid = \"{GPU}\"\nmemory = \"1Gi\"\ncompute_capability = \"9.0\"\npci = \"0000:01:00.0\"\n{more}\n",
            dir.path().display()
        );
        std::fs::write(dir.path().join("sim.toml"), config).expect("written");
        std::os::unix::fs::symlink(library(SHIM), dir.path().join("libcuda.so.1")).expect("linked");
        std::os::unix::fs::symlink("libcuda.so.1", dir.path().join("libcuda.so")).expect("linked");
        let listener = listen(&dir.path().join("cuda.sock"));
        let stats = StatsFile::create(&dir.path().join("stats")).expect("created");
        let mut lease = Self { dir, listener, stats, limit, caps, gpus, worker: None };
        lease.start_worker();
        lease
    }

    pub(crate) fn spec(&self) -> WorkerSpec {
        let path = self.dir.path().join("sim.toml").display().to_string();
        let grant = |gpu: &&str| Grant {
            gpu: gpu.parse().expect("a UUID"),
            memory: MemoryBytes::new(self.limit).expect("an amount"),
            share: ComputeShare::new(50).expect("a share"),
        };
        WorkerSpec {
            lease: "lease-0192f0c1222273338444555555555555".parse().expect("an id"),
            grants: self.gpus.iter().map(grant).collect(),
            driver: Driver {
                cuda_library: library(CUDA).to_owned(),
                nvml_library: library(NVML).to_owned(),
                environment: BTreeMap::from([("GPUZONE_SIM_CONFIG".to_owned(), path)]),
            },
            caps: self.caps,
            arbitrated: false,
            windows: false,
        }
    }

    /// Starts a worker as a broker would.
    pub(crate) fn spawn_worker(&self, spec: &WorkerSpec) -> Child {
        let above = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, 20).expect("duplicated");
        let listener = above(&self.listener);
        let stats = OwnedFd::from(self.stats.file().try_clone().expect("cloned"));
        let stats = above(&stats);
        let mut command = Command::new(env!("CARGO_BIN_EXE_gpu-zone-worker"));
        command.env_clear().envs(&spec.driver.environment);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // SAFETY: only system calls that are allowed between fork and exec.
        unsafe {
            command.pre_exec(move || {
                for (from, to) in [(&listener, LISTENER_FD), (&stats, STATS_FD)] {
                    // SAFETY: whatever has this number in the child is to be replaced.
                    let mut place = ManuallyDrop::new(OwnedFd::from_raw_fd(to));
                    rustix::io::dup2(from, &mut place)?;
                }
                Ok(())
            });
        }
        let mut worker = command.spawn().expect("the worker starts");
        let orders = serde_json::to_vec(spec).expect("orders");
        worker.stdin.take().expect("piped").write_all(&orders).expect("written");
        worker
    }

    pub(crate) fn start_worker(&mut self) {
        let mut worker = self.spawn_worker(&self.spec());
        let mut line = String::new();
        let mut stdout = BufReader::new(worker.stdout.take().expect("piped"));
        stdout.read_line(&mut line).expect("readable");
        assert_eq!(line, "ready\n", "{:?}", worker.wait_with_output());
        self.worker = Some(worker);
    }

    /// Ends the worker the hard way.
    pub(crate) fn kill_worker(&mut self) {
        let mut worker = self.worker.take().expect("running");
        worker.kill().expect("killed");
        worker.wait().expect("gone");
        self.stats.worker_gone(Monotonic::now()).expect("settled");
    }

    /// Waits for the worker to end by itself.
    pub(crate) fn worker_exit(&mut self) -> Option<i32> {
        let mut worker = self.worker.take().expect("running");
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if let Some(status) = worker.try_wait().expect("waited") {
                self.stats.worker_gone(Monotonic::now()).expect("settled");
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.worker = Some(worker);
        None
    }

    pub(crate) fn stats(&self) -> Snapshot {
        self.stats.snapshot(Monotonic::now()).expect("readable")
    }

    /// Waits until the stats are as wanted.
    pub(crate) fn wait_for(&self, what: &str, is: impl Fn(&Snapshot) -> bool) {
        let began = Instant::now();
        while !is(&self.stats()) {
            assert!(began.elapsed() < PATIENCE, "waited for {what}: {:?}", self.stats());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// A tenant process that plays a role, see `tenant`.
    pub(crate) fn tenant(&self, role: &str) -> Tenant {
        self.tenant_with(role, &[])
    }

    /// The slot's directory.
    pub(crate) fn slot(&self) -> &Path {
        self.dir.path()
    }

    /// A tenant process with other variables.
    pub(crate) fn tenant_with(&self, role: &str, variables: &[(&str, &str)]) -> Tenant {
        let mut command = role_of(role);
        command.env("GPUZONE_SLOT", self.dir.path()).env("LD_LIBRARY_PATH", self.dir.path());
        command.envs(variables.iter().copied());
        Tenant::start(command)
    }

    /// Runs a role on the simulated library itself, to a good end.
    pub(crate) fn run_without_us(&self, role: &str) {
        let mut command = role_of(role);
        self.without_us(&mut command);
        Tenant::start(command).finish();
    }

    /// What a role says on its way to a good end.
    pub(crate) fn output(&self, role: &str, variables: &[(&str, &str)]) -> Output {
        let mut command = role_of(role);
        command.env("GPUZONE_SLOT", self.dir.path()).env("LD_LIBRARY_PATH", self.dir.path());
        command.envs(variables.iter().copied());
        output_of(command)
    }

    /// The same on the simulated library itself.
    pub(crate) fn output_without_us(&self, role: &str) -> Output {
        let mut command = role_of(role);
        self.without_us(&mut command);
        output_of(command)
    }

    /// Has a program use the simulated library itself, on a node of its own.
    pub(crate) fn without_us(&self, command: &mut Command) {
        let folder = self.dir.path().join("direct");
        std::fs::create_dir_all(&folder).expect("a folder");
        let config = std::fs::read_to_string(self.dir.path().join("sim.toml")).expect("readable");
        let config = config.replace("/state\"", "/direct/state\"");
        std::fs::write(folder.join("sim.toml"), config).expect("written");
        for name in ["libcuda.so.1", "libcuda.so"] {
            let link = folder.join(name);
            if !link.exists() {
                std::os::unix::fs::symlink(library(CUDA), link).expect("linked");
            }
        }
        command.env("GPUZONE_SIM_CONFIG", folder.join("sim.toml"));
        command.env("LD_LIBRARY_PATH", folder);
    }

    /// Runs a role to its end, which must be a good one.
    pub(crate) fn run(&self, role: &str) {
        self.tenant(role).finish();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(mut worker) = self.worker.take() {
            let _ = worker.kill();
            let _ = worker.wait();
        }
    }
}

fn listen(path: &Path) -> OwnedFd {
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .expect("a socket");
    let address = SocketAddrUnix::new(path).expect("short enough");
    rustix::net::bind(&socket, &address).expect("bound");
    rustix::net::listen(&socket, 64).expect("listening");
    assert!(socket.as_raw_fd() >= 0);
    socket
}

/// A tenant process.
pub(crate) struct Tenant {
    child: Child,
    stdout: BufReader<std::process::ChildStdout>,
}

/// This test's binary, to play a role.
fn role_of(role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this test"));
    command
        .args(["tenant::tenant_process", "--exact", "--ignored", "--nocapture"])
        .env("TENANT_ROLE", role)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    command
}

fn output_of(mut command: Command) -> Output {
    let output = command.stderr(Stdio::piped()).output().expect("the tenant runs");
    assert!(output.status.success(), "{output:?}");
    output
}

impl Tenant {
    fn start(mut command: Command) -> Self {
        let mut child = command.spawn().expect("the tenant starts");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, stdout }
    }

    /// The value of the next line that says `key value`.
    pub(crate) fn says(&mut self, key: &str) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            let read = self.stdout.read_line(&mut line).expect("readable");
            assert!(read > 0, "the tenant ended before it said {key}");
            // The test runner's own words may stand before it on the line.
            if let Some((_, value)) = line.split_once(&format!("[{key}]")) {
                return value.trim().to_owned();
            }
        }
    }

    /// Lets the tenant go on.
    pub(crate) fn go_on(&mut self) {
        let stdin = self.child.stdin.as_mut().expect("piped");
        stdin.write_all(b"go\n").expect("written");
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("gone");
    }

    pub(crate) fn finish(mut self) {
        let began = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("waited") {
                break status;
            }
            if began.elapsed() > PATIENCE {
                let _ = self.child.kill();
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let mut said = String::new();
        for line in self.stdout.lines().map_while(Result::ok) {
            said.push_str(&line);
            said.push('\n');
        }
        assert!(status.success(), "a tenant failed or hung ({status}):\n{said}");
    }
}
