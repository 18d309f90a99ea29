//! A hostile tenant beside an honest one.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::{Artifacts, Finished, HarnessError, Holdings, Node, Role, Running};

/// The honest tenant's part of the GPU's time, in per cent; the hostile one has the rest.
pub const NEIGHBOURS_SHARE: u32 = 90;

/// What a hostile tenant can do; `gpuzone-hostile` has it.
#[derive(Clone, Debug)]
pub struct Attack {
    /// Its name.
    pub name: String,
    /// What it does, for people.
    pub about: String,
    /// How long it takes in the short set, in seconds.
    pub seconds: f64,
    /// The honest tenant that may take as much, by name: "spin" computes on the host's
    /// processors, "work" on the GPU.
    pub like: String,
    /// Whether it needs a zone around it, or is the machine's misfortune.
    pub zone: bool,
}

/// An attack that was made.
#[derive(Debug)]
pub struct Made {
    /// How it ended.
    pub finished: Finished,
    /// The most that the attacker's own worker was seen to hold.
    pub worker: Holdings,
    /// By how much the node's run and state folders were seen to grow, in bytes.
    pub growth: u64,
}

impl Attack {
    /// All of them.
    ///
    /// # Errors
    /// When the program is not built, or does not say.
    pub fn all() -> Result<Vec<Self>, HarnessError> {
        let mut command = Command::new(Artifacts::build()?.file("gpuzone-hostile")?);
        command.arg("list");
        let listed = Running::start(command)?.finish(Duration::from_secs(60))?.ok()?;
        let lines = listed.stdout.lines().filter_map(|line| serde_json::from_str(line).ok());
        Ok(lines.map(|line| Self::of(&line)).collect())
    }

    fn of(line: &serde_json::Value) -> Self {
        let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
        let seconds = line["seconds"].as_f64().unwrap_or(1.0);
        let zone = line["zone"].as_bool().unwrap_or(true);
        Self { name: text("name"), about: text("about"), seconds, like: text("like"), zone }
    }

    /// Makes it, as the tenant mallory.
    ///
    /// # Errors
    /// When it cannot be started, or takes too long.
    pub fn make(&self, node: &Node, manner: &Manner) -> Result<Made, HarnessError> {
        let program = node.artifacts().file("gpuzone-hostile")?;
        let folder = node.folder().join("work");
        std::fs::create_dir_all(&folder).map_err(HarnessError::io("cannot make a folder"))?;
        let share = (100 - NEIGHBOURS_SHARE).to_string();
        let lease = ["run", "--tenant", "mallory", "--memory", "512Mi", "--share", &share, "--"];
        let mut command = node.cli(lease)?;
        command.current_dir(folder).arg(program).args(["attack", &self.name, "--seconds"]);
        command.arg(manner.seconds.to_string()).args(manner.long.then_some("--long"));
        let folders = bytes(node);
        let mut running = Running::start(command)?;
        let mut watch = Watch::default();
        let end = Instant::now() + manner.limit;
        while running.runs()? && Instant::now() < end {
            watch.look(node, manner);
            std::thread::sleep(Duration::from_millis(20));
        }
        let finished = running.finish(Duration::from_secs(10))?;
        Ok(Made { finished, worker: watch.worker, growth: watch.folders.saturating_sub(folders) })
    }
}

/// How an attack is made.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// For how long, in seconds.
    pub seconds: f64,
    /// As much of it as a machine bears.
    pub long: bool,
    /// When to give up.
    pub limit: Duration,
    /// The worker that is not the attacker's.
    pub neighbour: Option<u32>,
    /// The processor that the attacker's worker is kept on, if it is kept on one.
    pub processor: Option<usize>,
}

/// Keeps a process, or this thread and what it starts, on one processor.
///
/// # Errors
/// When there is no such processor.
pub fn keep_on(processor: usize, process: Option<u32>) -> Result<(), HarnessError> {
    let mut set = CpuSet::new();
    set.set(processor);
    let failed = || HarnessError::io(format!("cannot keep a process on processor {processor}"));
    let Some(process) = process else {
        return sched_setaffinity(None, &set).map_err(|error| failed()(error.into()));
    };
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let tasks = tasks.filter_map(|task| Pid::from_raw(task.file_name().to_str()?.parse().ok()?));
    for task in tasks {
        match sched_setaffinity(Some(task), &set) {
            // It has just ended.
            Err(rustix::io::Errno::SRCH) | Ok(()) => {}
            Err(error) => return Err(failed()(error.into())),
        }
    }
    Ok(())
}

#[derive(Default)]
struct Watch {
    worker: Holdings,
    folders: u64,
}

impl Watch {
    /// Looks at the attacker's worker, whichever it is by now, and at the node's files.
    fn look(&mut self, node: &Node, manner: &Manner) {
        let processes = node.processes();
        let workers = processes.iter().filter(|process| process.role == Role::Worker);
        for worker in workers.filter(|worker| Some(worker.pid) != manner.neighbour) {
            if let Some(processor) = manner.processor {
                // It may be gone again, and the next is found at the next look.
                let _ = keep_on(processor, Some(worker.pid));
            }
            let now = Holdings::of(worker.pid);
            let most = &mut self.worker;
            most.threads = most.threads.max(now.threads);
            most.own_kib = most.own_kib.max(now.own_kib);
            let count = |all: &Option<Vec<String>>| all.as_ref().map_or(0, Vec::len);
            if count(&now.descriptors) > count(&most.descriptors) {
                most.descriptors = now.descriptors;
            }
        }
        self.folders = self.folders.max(bytes(node));
    }
}

/// Of the node's run and state folders.
fn bytes(node: &Node) -> u64 {
    crate::census::bytes(&node.run_dir()) + crate::census::bytes(&node.state_dir())
}

/// Starts the honest tenant globex, which says how much it gets done until its input ends.
///
/// # Errors
/// When it does not begin.
pub fn neighbour(node: &Node, limit: Duration) -> Result<Running, HarnessError> {
    let share = NEIGHBOURS_SHARE.to_string();
    let mut neighbour = node.spawn("globex", "256Mi", &share, &["meter", "--every", "50"])?;
    neighbour.wait_for("meter: window=1", limit)?;
    Ok(neighbour)
}

/// Whether this host can give a zone what keeps its program in.
///
/// # Errors
/// When the launcher is not built or cannot be started.
pub fn host_has_zones() -> Result<bool, HarnessError> {
    let mut command = Command::new(Artifacts::build()?.file("gpu-zone-sandbox")?);
    command.arg("--probe").stdin(Stdio::null());
    let probed = Running::start(command)?.finish(Duration::from_secs(60))?;
    let lacks = |need: &str| probed.stdout.contains(&format!("\"{need}\""));
    Ok(!["mount", "pid", "seccomp"].into_iter().any(lacks))
}
