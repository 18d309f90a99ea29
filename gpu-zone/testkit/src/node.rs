use std::fmt::Write as _;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::{Artifacts, Finished, HarnessError, Process, Role, Running};

/// Longest time that a command of a test may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Usage is written often, so that tests need not wait for it; everybody may have everything.
const OPEN: &str = "[usage]\nflush_seconds = 0.2\n[tenants.default]\n";

/// Of the simulated GPUs.
const NAME: &str = "gpu-zone Simulated GPU";

/// What a node is like.
#[derive(Clone, Debug)]
pub struct Options {
    /// Memory of each simulated GPU, like `16Gi`; behind a ` mig `, the profiles of its MIG instances
    /// with spaces between: `16Gi mig 1g.2gb 2g.4gb`.
    pub gpus: Vec<String>,
    /// The agent's `[tenants.…]` tables, and whatever else it reads but `[driver]`.
    pub configuration: String,
}

impl Default for Options {
    /// One GPU of 16 GiB and an open quota for everyone.
    fn default() -> Self {
        Self { gpus: vec!["16Gi".into()], configuration: OPEN.into() }
    }
}

/// What `ps` says of a lease.
#[derive(Clone, Debug)]
pub struct Lease(pub serde_json::Value);

/// An agent with simulated GPUs, in a folder of its own. Dropping it ends everything.
#[derive(Debug)]
pub struct Node {
    artifacts: &'static Artifacts,
    folder: TempDir,
    /// Of the simulated GPUs: in memory where there is a place for it.
    gpus: TempDir,
    agent: Option<Running>,
}

/// Ends all processes of a node, from any thread.
#[derive(Clone, Debug)]
pub struct Sweeper {
    folder: PathBuf,
    gpus: PathBuf,
}

impl Node {
    /// Builds what is needed, and starts a node.
    ///
    /// # Errors
    /// When the build fails, or the agent does not answer.
    pub fn start(options: &Options) -> Result<Self, HarnessError> {
        let mut node = Self::prepare(options)?;
        node.start_agent()?;
        Ok(node)
    }

    /// A node whose agent is not started yet.
    ///
    /// # Errors
    /// When the build fails, or its files cannot be written.
    pub fn prepare(options: &Options) -> Result<Self, HarnessError> {
        let artifacts = Artifacts::build()?;
        // Sockets' paths are short, so the folder's has to be.
        let folder = temporary(Path::new("/tmp"))?;
        let gpus = temporary(Path::new("/dev/shm")).or_else(|_| temporary(Path::new("/tmp")))?;
        let node = Self { artifacts, folder, gpus, agent: None };
        let mut simulated = format!("state_dir = {:?}\n", node.simulated_state());
        for gpu in &options.gpus {
            let (memory, mig) = match gpu.split_once(" mig ") {
                Some((memory, profiles)) => (memory, Some(profiles)),
                None => (gpu.as_str(), None),
            };
            // Writing into a string cannot fail.
            let _ = writeln!(simulated, "\n[[gpu]]\nname = {NAME:?}\nmemory = {memory:?}");
            if let Some(profiles) = mig {
                let each =
                    profiles.split(' ').map(|profile| format!("{{ profile = {profile:?} }}"));
                let each = each.collect::<Vec<_>>().join(", ");
                let _ = writeln!(simulated, "mig_capable = true\nmig = [{each}]");
            }
        }
        node.write("simulated.toml", &simulated)?;
        let driver = "[driver]\nkind = \"simulated\"\nsimulated_config = \"simulated.toml\"\n";
        node.write("agent.toml", &format!("{driver}{}", options.configuration))?;
        Ok(node)
    }

    fn write(&self, name: &str, text: &str) -> Result<(), HarnessError> {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text)
            .map_err(HarnessError::io(format!("cannot write {}", path.display())))
    }

    /// Starts the agent, as a person does, and waits until it answers.
    ///
    /// # Errors
    /// When it ends or does not answer.
    pub fn start_agent(&mut self) -> Result<(), HarnessError> {
        self.start_agent_within(Duration::from_secs(120))
    }

    /// The same, of a node that takes so long at most: one that boots a machine first.
    ///
    /// # Errors
    /// When it ends or does not answer.
    pub fn start_agent_within(&mut self, limit: Duration) -> Result<(), HarnessError> {
        let mut command = self.cli(["up"])?;
        command.arg("--config").arg(self.configuration());
        // Apart from the terminal's foreground: Ctrl-C is for whoever runs the test.
        command.process_group(0);
        let mut agent = Running::start(command)?;
        let end = Instant::now() + limit;
        loop {
            if !agent.runs()? {
                let finished = agent.finish(LIMIT)?;
                let (status, output) = (finished.status.to_string(), finished.text());
                return Err(HarnessError::Failed { command: finished.command, status, output });
            }
            if self.command(["ps"])?.status.success() {
                break;
            }
            if Instant::now() > end {
                let output = agent.stderr();
                return Err(HarnessError::Timeout {
                    what: "the agent's start".into(),
                    limit,
                    output,
                });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.agent = Some(agent);
        Ok(())
    }

    /// Stops the agent as a person does; what it said, and how it ended.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop_agent(&mut self) -> Result<Option<Finished>, HarnessError> {
        self.command(["stop", "--agent"])?.ok()?;
        self.agent.take().map(|agent| agent.finish(LIMIT)).transpose()
    }

    /// Kills the agent with SIGKILL.
    ///
    /// # Errors
    /// When it does not end.
    pub fn kill_agent(&mut self) -> Result<(), HarnessError> {
        if let Some(agent) = self.agent.take() {
            crate::processes::send(agent.pid(), Signal::KILL);
            agent.finish(LIMIT)?;
        }
        Ok(())
    }

    /// What the agent has logged since it was started.
    pub fn agent_log(&self) -> String {
        self.agent.as_ref().map(Running::stderr).unwrap_or_default()
    }

    /// Folder of everything.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The agent's state folder.
    pub fn state_dir(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// The agent's run folder.
    pub fn run_dir(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    /// Folder of the simulated GPUs' state and memory.
    pub fn simulated_state(&self) -> &Path {
        self.gpus.path()
    }

    /// The agent's configuration file.
    pub fn configuration(&self) -> PathBuf {
        self.folder.path().join("agent.toml")
    }

    /// The files that were built.
    pub fn artifacts(&self) -> &'static Artifacts {
        self.artifacts
    }

    /// `gpu-zone` with these arguments, for this node.
    ///
    /// # Errors
    /// When it was not built.
    pub fn cli<S: AsRef<std::ffi::OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<Command, HarnessError> {
        let mut command = Command::new(self.artifacts.file("gpu-zone")?);
        command.env("GPUZONE_RUN_DIR", self.run_dir()).env("GPUZONE_STATE_DIR", self.state_dir());
        command.env("GPUZONE_KERNELS", self.artifacts.kernels());
        // A zone shows the working directory, but not a checkout that lies in /tmp.
        command.current_dir(self.artifacts.root());
        command.args(arguments);
        Ok(command)
    }

    /// Runs `gpu-zone` with these arguments to its end.
    ///
    /// # Errors
    /// When it cannot be started or takes too long. Its exit code is the caller's to look at.
    pub fn command<S: AsRef<std::ffi::OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<Finished, HarnessError> {
        Running::start(self.cli(arguments)?)?.finish(LIMIT)
    }

    /// What `gpu-zone` answers with `--format json`.
    ///
    /// # Errors
    /// When it fails, or answers no JSON.
    pub fn json(&self, arguments: &[&str]) -> Result<serde_json::Value, HarnessError> {
        self.command(arguments.iter().chain(&["--format", "json"]))?.ok()?.json()
    }

    /// The leases, as `ps` shows them.
    ///
    /// # Errors
    /// When `ps` fails.
    pub fn leases(&self) -> Result<Vec<Lease>, HarnessError> {
        let listed = self.json(&["ps"])?;
        Ok(listed["leases"].as_array().into_iter().flatten().cloned().map(Lease).collect())
    }

    /// Starts a test program in a lease. One that goes on until its input ends does so until
    /// [`Running::finish`].
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(
        &self,
        tenant: &str,
        memory: &str,
        share: &str,
        workload: &[&str],
    ) -> Result<Running, HarnessError> {
        let program = self.artifacts.file("gpuzone-workload")?.as_os_str().to_owned();
        let lease = ["run", "--tenant", tenant, "--memory", memory, "--share", share, "--"];
        let mut command = self.cli(lease)?;
        command.arg(program).args(workload);
        Running::start_fed(command)
    }

    /// Runs a test program in a lease, to its end.
    ///
    /// # Errors
    /// When it cannot be started or takes too long.
    pub fn run(
        &self,
        tenant: &str,
        memory: &str,
        share: &str,
        workload: &[&str],
    ) -> Result<Finished, HarnessError> {
        self.spawn(tenant, memory, share, workload)?.finish(LIMIT)
    }

    /// This node's living processes.
    pub fn processes(&self) -> Vec<Process> {
        Process::of(self.folder.path())
    }

    /// Kills all processes of a role with SIGKILL; how many there were.
    pub fn kill(&self, role: Role) -> usize {
        let of_role = self.processes().into_iter().filter(|process| process.role == role);
        of_role.filter(|process| process.send(Signal::KILL)).count()
    }

    /// Waits until `condition` holds.
    ///
    /// # Errors
    /// When it does not within `limit`.
    pub fn until(
        &self,
        what: &str,
        limit: Duration,
        mut condition: impl FnMut(&Self) -> Result<bool, HarnessError>,
    ) -> Result<(), HarnessError> {
        let end = Instant::now() + limit;
        while !condition(self)? {
            if Instant::now() > end {
                let (what, output) = (what.to_owned(), self.agent_log());
                return Err(HarnessError::Timeout { what, limit, output });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// What an agent that was stopped should not have left: processes, sockets, leases' files.
    ///
    /// Zones' janitors have work to do when all else is gone, so they are given time for it.
    pub fn leftovers(&self) -> Vec<String> {
        let end = Instant::now() + LIMIT;
        while self.processes().iter().any(Process::is_janitor) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
        let processes = self.processes().into_iter();
        let mut found: Vec<String> = processes
            .map(|process| format!("process {}: {}", process.pid, process.command))
            .collect();
        let mut folders = vec![self.run_dir()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let Ok(kind) = entry.file_type() else { continue };
                let is_lease = entry.file_name().to_string_lossy().starts_with("lease-");
                if is_socket(kind) || is_lease {
                    found.push(entry.path().display().to_string());
                } else if kind.is_dir() {
                    folders.push(entry.path());
                }
            }
        }
        found
    }

    /// Something that can end this node's processes from another thread.
    pub fn sweeper(&self) -> Sweeper {
        Sweeper { folder: self.folder.path().to_owned(), gpus: self.gpus.path().to_owned() }
    }

    /// Ends everything and removes both folders.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub fn remove(mut self) -> Result<(), HarnessError> {
        self.agent = None;
        self.sweeper().kill_all();
        for folder in [self.folder.path(), self.gpus.path()] {
            std::fs::remove_dir_all(folder)
                .map_err(HarnessError::io(format!("cannot remove {}", folder.display())))?;
        }
        Ok(())
    }
}

fn temporary(parent: &Path) -> Result<TempDir, HarnessError> {
    let made = tempfile::Builder::new().prefix("gz-").tempdir_in(parent);
    made.map_err(HarnessError::io(format!("cannot make a folder in {}", parent.display())))
}

fn is_socket(kind: std::fs::FileType) -> bool {
    use std::os::unix::fs::FileTypeExt;
    kind.is_socket()
}

impl Lease {
    /// Its identifier.
    pub fn id(&self) -> &str {
        self.0["lease"].as_str().unwrap_or_default()
    }

    /// Who pays.
    pub fn tenant(&self) -> &str {
        self.0["tenant"].as_str().unwrap_or_default()
    }

    /// Where it is in its life.
    pub fn state(&self) -> &str {
        self.0["state"].as_str().unwrap_or_default()
    }

    /// Index of its first GPU.
    pub fn gpu(&self) -> Option<u64> {
        self.0["grants"][0]["gpu_index"].as_u64()
    }

    /// Its worker's process.
    pub fn worker(&self) -> Option<u32> {
        self.0["worker_pid"].as_u64().and_then(|pid| u32::try_from(pid).ok())
    }
}

impl Sweeper {
    /// Kills what belongs to the node, until nothing does.
    pub fn kill_all(&self) {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let processes = Process::of(&self.folder);
            if processes.is_empty() || Instant::now() > end {
                return;
            }
            for process in processes {
                process.send(Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// [`Sweeper::kill_all`], and the node's folders go, too, as far as they can.
    pub fn remove(&self) {
        self.kill_all();
        for folder in [&self.folder, &self.gpus] {
            if let Err(error) = std::fs::remove_dir_all(folder) {
                eprintln!("cannot remove {}: {error}", folder.display());
            }
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.agent = None;
        self.sweeper().kill_all();
    }
}
