use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

/// What a process of a node is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `gpu-zoned`.
    Agent,
    /// `gpu-zone-broker`.
    Broker,
    /// `gpu-zone-worker`.
    Worker,
    /// `gpu-zone`.
    Cli,
    /// `gpu-zone-sandbox`: the maker of workers' zones.
    Maker,
    /// `gpu-zone-sandbox`: who cleans up behind the broker.
    BrokersJanitor,
    /// `gpu-zone-sandbox`: around a tenant's program.
    Sandbox,
    /// Anything else: tenants' programs.
    Program,
}

/// A process that belongs to a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// What it is for.
    pub role: Role,
    /// Its command line.
    pub command: String,
}

impl Process {
    /// All living processes that have `folder` in their command line or environment, but this
    /// one: so a node's processes are found whoever started them.
    pub fn of(folder: &Path) -> Vec<Self> {
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid| *pid != std::process::id())
            .filter_map(|pid| look_at(pid, folder))
            .collect()
    }

    /// Whether it cleans up behind a zone, which it does once that has ended.
    pub fn is_janitor(&self) -> bool {
        let name = std::fs::read_to_string(format!("/proc/{}/comm", self.pid));
        name.is_ok_and(|name| name.trim() == "zone-janitor")
    }

    /// Sends it a signal; whether it was there.
    pub fn send(&self, signal: Signal) -> bool {
        send(self.pid, signal)
    }
}

/// Sends `pid` a signal; whether it was there.
pub(crate) fn send(pid: u32, signal: Signal) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| kill_process(pid, signal).is_ok())
}

fn look_at(pid: u32, folder: &Path) -> Option<Process> {
    let read = |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).ok();
    let command = read("cmdline")?;
    let wanted = folder.as_os_str().as_bytes();
    let names = |text: &[u8]| text.windows(wanted.len()).any(|window| window == wanted);
    let belongs = names(&command) || read("environ").is_some_and(|text| names(&text));
    // A zombie has neither, and one that was reaped in between is gone.
    if !belongs || command.is_empty() {
        return None;
    }
    let words: Vec<String> =
        command.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into()).collect();
    let file = words.first().map(Path::new).and_then(Path::file_name)?;
    let role = match file.to_str() {
        Some("gpu-zoned") => Role::Agent,
        Some("gpu-zone-broker") => Role::Broker,
        Some("gpu-zone-worker") => Role::Worker,
        Some("gpu-zone") => Role::Cli,
        Some("gpu-zone-sandbox") => match words.get(1).map(String::as_str) {
            Some("--make") => Role::Maker,
            _ if words.iter().any(|word| word.ends_with("/gpu-zone-broker")) => {
                Role::BrokersJanitor
            }
            _ => Role::Sandbox,
        },
        Some(_) | None => Role::Program,
    };
    Some(Process { pid, role, command: words.join(" ").trim().to_owned() })
}
