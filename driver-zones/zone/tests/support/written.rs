//! Zones that are written down by their launchers.

use std::path::Path;

use gpuzone_zone::sandbox::{Limits, Spec};
use rustix::process::{Pid, Signal, kill_process};

use super::{descendants, eventually, groups_of, spec};

pub(crate) fn files(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

pub(crate) fn is_gone(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
}

pub(crate) fn mounts() -> usize {
    std::fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count()
}

/// The zone's janitor, which is to be told from its siblings by its name only.
pub(crate) fn janitors_of(launcher: u32) -> Vec<u32> {
    let children = descendants(launcher);
    let name = |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/comm"));
    let named = |pid: &u32| name(pid).is_ok_and(|name| name.trim() == "zone-janitor");
    children.into_iter().filter(named).collect()
}

pub(crate) fn kill(pid: u32) {
    // It may just have ended.
    let _ = kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), Signal::KILL);
}

/// Processes of the zone, as they were, are gone, and so are its groups and its record.
pub(crate) fn nothing_is_left(folder: &Path, launcher: u32, row: &[u32], when: &str) {
    assert!(eventually(|| row.iter().all(|pid| is_gone(*pid))), "{when}: a process");
    assert!(eventually(|| groups_of(launcher).is_empty()), "{when}: a control group");
    assert!(eventually(|| files(folder).is_empty()), "{when}: {:?}", files(folder));
}

/// A zone that is written down in `folder`.
pub(crate) fn written(folder: &Path, name: &str) -> Spec {
    let limits = Limits { pids: Some(64), ..Limits::default() };
    Spec { zone: name.to_owned(), record: Some(folder.to_owned()), limits, ..spec() }
}
