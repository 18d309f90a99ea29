//! What a node holds of the machine, to be compared with what it held before.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::{HarnessError, Node};

/// What a process holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Open descriptors, by what they are of; `None` where one may not look.
    pub descriptors: Option<Vec<String>>,
    /// Threads.
    pub threads: usize,
    /// Memory of its own, in KiB: neither files' nor shared.
    pub own_kib: u64,
}

impl Holdings {
    /// Of a living process.
    pub fn of(pid: u32) -> Self {
        let folder = PathBuf::from(format!("/proc/{pid}"));
        let entries = std::fs::read_dir(folder.join("fd")).ok();
        let descriptors = entries.map(|entries| {
            let targets =
                entries.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
            let mut shown: Vec<String> = targets.map(|target| kind(&target)).collect();
            shown.sort();
            shown
        });
        let threads = std::fs::read_dir(folder.join("task")).map_or(0, Iterator::count);
        let status = std::fs::read_to_string(folder.join("status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        Self { descriptors, threads, own_kib: number.unwrap_or(0) }
    }
}

/// `socket:[123]` is as good as `socket:[124]`.
fn kind(target: &Path) -> String {
    let shown = target.display().to_string();
    shown.split('[').next().unwrap_or_default().to_owned()
}

/// What a node has in files and on its GPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traces {
    /// Files, folders and sockets in its run and state folders.
    pub files: BTreeSet<PathBuf>,
    /// Leases that are not over.
    pub leases: BTreeSet<String>,
    /// Memory in use on each GPU, in bytes.
    pub used: Vec<u64>,
}

impl Traces {
    /// Of a node whose agent answers.
    ///
    /// # Errors
    /// When it does not.
    pub fn of(node: &Node) -> Result<Self, HarnessError> {
        let mut files = BTreeSet::new();
        for folder in [node.run_dir(), node.state_dir()] {
            walk(&folder, &mut files);
        }
        let leases = node.leases()?.iter().map(|lease| lease.id().to_owned()).collect();
        let listed = node.json(&["gpus"])?;
        let gpus = listed["gpus"].as_array().into_iter().flatten();
        let used = gpus.map(|gpu| gpu["used_memory_bytes"].as_u64().unwrap_or(u64::MAX)).collect();
        Ok(Self { files, leases, used })
    }
}

fn walk(folder: &Path, found: &mut BTreeSet<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&path, found);
        }
        found.insert(path);
    }
}

/// Bytes of all files in a folder, as far as they are on a disk.
pub(crate) fn bytes(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let mut files = BTreeSet::new();
    walk(folder, &mut files);
    // A database's log grows to its bound whoever does what, and is folded in then.
    let files = files.iter().filter(|file| !file.to_string_lossy().ends_with("-wal"));
    let sizes = files.filter_map(|file| std::fs::symlink_metadata(file).ok());
    sizes.map(|data| data.blocks() * 512).sum()
}

/// Processes that run a program, wherever their environment says they belong.
pub fn processes_of(program: &Path) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| {
        std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|file| file == program)
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_process_opens_is_seen() {
        let own = std::process::id();
        let before = Holdings::of(own);
        let file = std::fs::File::open("/dev/zero").unwrap();
        let after = Holdings::of(own);
        let zeros = |held: &Holdings| {
            let all = held.descriptors.clone().unwrap();
            all.iter().filter(|name| *name == "/dev/zero").count()
        };
        assert_eq!(zeros(&after), zeros(&before) + 1);
        assert!(after.threads >= 1 && after.own_kib > 0);
        drop(file);
        let program = std::env::current_exe().unwrap();
        assert!(processes_of(&program).contains(&own));
    }
}
