use std::os::unix::fs::MetadataExt;

use rustix::process::{geteuid, getpid};

use super::confinement::{sees_all_processes, shares_memory};
use super::{Context, Outcome};
use crate::Severity;
use crate::catalog as c;
use crate::finding::Finding;
use crate::host;

pub(super) fn interfaces(context: &mut Context<'_>, outcome: &mut Outcome) {
    let all = sees_all_processes(context.host);
    // In a namespace of its own a workload traces nobody but itself.
    let worst = |severity| if all { severity } else { Severity::Info };
    let scope = context.host.text("/proc/sys/kernel/yama/ptrace_scope");
    match scope.as_deref() {
        Some("0") => {
            let finding = Finding::new(&c::PTRACE_OPEN, "kernel.yama.ptrace_scope is 0");
            outcome.found(finding.at(worst(c::PTRACE_OPEN.severity)));
        }
        None => {
            let seen = "the kernel has no Yama, or hides it: nothing but user ids is in the way";
            outcome.found(Finding::new(&c::PTRACE_OPEN, seen).at(worst(Severity::Low)));
        }
        Some(_) => {}
    }
    for folder in ["/sys/kernel/debug", "/sys/kernel/tracing"] {
        let entries = context.host.entries(folder);
        if !entries.is_empty() && context.host.readable(folder) {
            let seen = format!("{folder} lists {} entries", entries.len());
            outcome.found(Finding::new(&c::DEBUGFS, seen));
        }
    }
}

/// Processes that are neither this one, nor its ancestors, nor its descendants.
fn strangers(context: &Context<'_>) -> Vec<(u32, std::path::PathBuf)> {
    let own = u32::try_from(getpid().as_raw_nonzero().get()).unwrap_or_default();
    let parent_of = |pid: u32| -> Option<u32> {
        let stat = context.host.text(&format!("/proc/{pid}/stat"))?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    let line = |start: u32| {
        std::iter::successors(Some(start), |pid| parent_of(*pid).filter(|up| *up > 0)).take(64)
    };
    let ancestors: Vec<u32> = line(own).collect();
    let pids = context.host.entries("/proc").into_iter();
    pids.filter_map(|path| Some((host::name(&path).parse::<u32>().ok()?, path)))
        .filter(|(pid, _)| !ancestors.contains(pid) && !line(*pid).any(|up| up == own))
        .collect()
}

pub(super) fn processes(context: &mut Context<'_>, outcome: &mut Outcome) {
    // Threads of the kernel have no memory of their own; opening tells nothing about them.
    let has_memory = |path: &std::path::Path| {
        std::fs::read(path.join("cmdline")).is_ok_and(|line| !line.is_empty())
    };
    let mut found = 0_u32;
    let mut example = None;
    for (pid, path) in strangers(context) {
        let other_user = std::fs::metadata(&path).is_ok_and(|m| m.uid() != geteuid().as_raw());
        if has_memory(&path) && host::opens(&path.join("mem"), false).is_ok() {
            found += 1;
            example = Some((pid, other_user));
        }
    }
    if let Some((pid, other_user)) = example {
        let whose = if other_user { "another user" } else { "the same user" };
        let seen = format!("{found} process(es), pid {pid} of {whose} among them");
        let finding = Finding::new(&c::OTHERS_MEMORY, seen);
        // In a namespace of its own a workload sees its own processes only.
        let all = sees_all_processes(context.host);
        outcome.found(if all { finding } else { finding.at(Severity::Info) });
    }
}

pub(super) fn shared_memory(context: &mut Context<'_>, outcome: &mut Outcome) {
    let mut folders = context.host.entries("/dev/shm");
    let mut readable = Vec::new();
    // One level of folders is what frameworks use.
    for path in folders.clone() {
        if path.is_dir() {
            folders
                .extend(std::fs::read_dir(path).into_iter().flatten().flatten().map(|e| e.path()));
        }
    }
    for path in folders {
        let is_file = std::fs::symlink_metadata(&path).is_ok_and(|m| m.is_file() && m.len() > 0);
        if is_file && host::opens(&path, false).is_ok() {
            readable.push(context.host.shown(&path));
        }
    }
    if let Some(first) = readable.first() {
        let seen = format!("{} file(s), {first} among them", readable.len());
        let finding = Finding::new(&c::SHARED_MEMORY, seen);
        // Elsewhere they are most likely the workload's own.
        let shared = shares_memory(context.host);
        outcome.found(if shared { finding } else { finding.at(Severity::Info) });
    }
}
