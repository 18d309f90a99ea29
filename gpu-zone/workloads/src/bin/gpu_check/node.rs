//! A node of its own on this machine's GPUs, by the product's commands.

use std::fmt::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::{Arguments, Driver, Places};

/// How long an agent may take until it answers.
const START: Duration = Duration::from_secs(60);

/// Its agent ends with it.
pub(crate) struct Node {
    places: Places,
    work: tempfile::TempDir,
    /// Where the loader finds the driver, if it has to be told.
    driver: Option<PathBuf>,
    agent: Child,
}

/// How a program ended, and what it said.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// What it said, when it ended well.
    pub(crate) fn ok(self) -> anyhow::Result<String> {
        ensure!(self.code == Some(0), "it ended with {:?}: {}", self.code, self.stderr.trim());
        Ok(self.stdout)
    }
}

pub(crate) fn end(child: Child) -> anyhow::Result<Ended> {
    let output = child.wait_with_output()?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let (stdout, stderr) = (text(output.stdout), text(output.stderr));
    Ok(Ended { code: output.status.code(), stdout, stderr })
}

fn started(mut command: Command) -> anyhow::Result<Child> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().with_context(|| format!("cannot start {command:?}"))
}

/// A simulated library, beside the programs or where they are installed.
fn library(programs: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let installed = programs.parent().unwrap_or(programs).join("lib/gpu-zone");
    let found = [programs, &installed].into_iter().map(|folder| folder.join(name));
    found.into_iter().find(|path| path.is_file()).with_context(|| format!("there is no {name}"))
}

impl Node {
    pub(crate) fn start(arguments: &Arguments, places: Places) -> anyhow::Result<Self> {
        let work = tempfile::Builder::new().prefix("gz-").tempdir_in("/tmp")?;
        let mut text = "[driver]\n".to_owned();
        let driver = match arguments.driver {
            Driver::Nvidia => {
                text.push_str("kind = \"nvidia\"\n");
                for (key, path) in [
                    ("cuda_library", &arguments.cuda_library),
                    ("nvml_library", &arguments.nvml_library),
                ] {
                    if let Some(path) = path {
                        // Writing into a string cannot fail.
                        let _ = writeln!(text, "{key} = {path:?}");
                    }
                }
                arguments.cuda_library.as_deref().and_then(Path::parent).map(PathBuf::from)
            }
            Driver::Simulated => Some(simulate(&places, work.path(), &mut text)?),
        };
        text.push_str("[tenants.default]\n");
        std::fs::write(work.path().join("agent.toml"), text)?;
        let mut up = gpu_zone(&places, work.path());
        up.arg("up").arg("--config").arg(work.path().join("agent.toml"));
        // A file takes what a pipe that nobody reads does not.
        let log = std::fs::File::create(work.path().join("agent.log"))?;
        up.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let agent = up.spawn().with_context(|| format!("cannot start {up:?}"))?;
        let mut node = Self { places, work, driver, agent };
        let began = Instant::now();
        while node.command(&["ps"])?.code != Some(0) {
            if node.agent.try_wait()?.is_some() {
                let said = std::fs::read_to_string(node.work.path().join("agent.log"))?;
                bail!("the agent ended: {}", said.trim());
            }
            ensure!(began.elapsed() < START, "the agent does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(node)
    }

    fn workload(&self, mut command: Command, words: &[&str]) -> anyhow::Result<Child> {
        command.args(words).env("GPUZONE_KERNELS", &self.places.kernels);
        started(command)
    }

    /// Starts a program on the driver itself.
    pub(crate) fn direct(&self, words: &[&str]) -> anyhow::Result<Child> {
        let mut command = Command::new(self.places.programs.join("gpuzone-workload"));
        if let Some(folder) = &self.driver {
            command.env("LD_LIBRARY_PATH", folder);
            command.env("GPUZONE_SIM_CONFIG", self.work.path().join("direct.toml"));
        }
        self.workload(command, words)
    }

    /// Starts a program in a lease.
    pub(crate) fn mediated(
        &self,
        tenant: &str,
        memory: &str,
        words: &[&str],
    ) -> anyhow::Result<Child> {
        let mut command = gpu_zone(&self.places, self.work.path());
        command.args(["run", "--tenant", tenant, "--memory", memory, "--share", "50"]);
        command.arg("--volume").arg(format!("{}:ro", self.places.kernels.display()));
        command.arg("--").arg(self.places.programs.join("gpuzone-workload"));
        self.workload(command, words)
    }

    /// Runs `gpu-zone` with these words.
    pub(crate) fn command(&self, words: &[&str]) -> anyhow::Result<Ended> {
        let mut command = gpu_zone(&self.places, self.work.path());
        command.args(words);
        end(started(command)?)
    }
}

fn gpu_zone(places: &Places, work: &Path) -> Command {
    let mut command = Command::new(places.programs.join("gpu-zone"));
    command.env("GPUZONE_RUN_DIR", work.join("run")).env("GPUZONE_STATE_DIR", work.join("state"));
    command.current_dir(&places.folder);
    command
}

/// Simulated GPUs for the node, and one for programs without it.
fn simulate(places: &Places, work: &Path, text: &mut String) -> anyhow::Result<PathBuf> {
    let gpu = "[[gpu]]\nname = \"gpu-zone Simulated GPU\"\nmemory = \"8Gi\"\n";
    for name in ["node", "direct"] {
        let state = work.join(format!("{name}-gpus"));
        let file = work.join(format!("{name}.toml"));
        std::fs::write(file, format!("state_dir = {state:?}\n{gpu}"))?;
    }
    text.push_str("kind = \"simulated\"\nsimulated_config = \"node.toml\"\n");
    let folder = work.join("driver");
    std::fs::create_dir(&folder)?;
    for (name, file) in
        [("cuda", "libgpuzone_sim_cuda.so"), ("nvidia-ml", "libgpuzone_sim_nvml.so")]
    {
        let library = library(&places.programs, file)?.canonicalize()?;
        for end in ["so", "so.1"] {
            symlink(&library, folder.join(format!("lib{name}.{end}")))?;
        }
    }
    Ok(folder)
}

impl Drop for Node {
    fn drop(&mut self) {
        // As a person stops it; one that does not end is killed.
        let _ = self.command(&["stop", "--agent"]);
        let began = Instant::now();
        while matches!(self.agent.try_wait(), Ok(None)) && began.elapsed() < START {
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = self.agent.kill();
        let _ = self.agent.wait();
    }
}
