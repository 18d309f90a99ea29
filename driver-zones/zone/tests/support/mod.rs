//! Zones for tests: the host's programs and nothing else of it, unless a test says more.
#![allow(dead_code, clippy::unwrap_used, reason = "each test uses a part of it")]

pub(crate) mod written;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gpuzone_zone::sandbox::{
    Feature, Filter, Launch, Limits, Missing, Mount, Policy, Root, SandboxError, Sandboxed, Spec,
    UserRanges, probe,
};
use gpuzone_zone::{Exit, Process};

pub(crate) fn launcher() -> PathBuf {
    env!("CARGO_BIN_EXE_gpu-zone-sandbox").into()
}

/// Whether this host has the features, or else the test's name is printed as skipped.
pub(crate) fn host_has(test: &str, features: &[Feature]) -> bool {
    let missing = probe(&launcher()).unwrap_or_else(|error| {
        let reason = error.to_string();
        Feature::ALL.map(|feature| Missing { feature, reason: reason.clone() }).into()
    });
    let lacks = missing.iter().find(|missing| features.contains(&missing.feature));
    if let Some(lacks) = lacks {
        println!("skipped: {test}: this host lacks {lacks}");
    }
    lacks.is_none()
}

/// A zone with the host's programs and nothing else of it.
pub(crate) fn spec() -> Spec {
    let folders = ["/usr", "/lib", "/lib64", "/bin", "/etc/alternatives", "/etc/ld.so.cache"];
    let is_link = |path: &str| Path::new(path).is_symlink();
    let mut mounts: Vec<Mount> =
        folders.into_iter().filter(|path| !is_link(path)).map(Mount::read_if_there).collect();
    if is_link("/bin") {
        mounts.push(Mount { target: Some("/bin".into()), ..Mount::read("/usr/bin") });
    }
    Spec {
        zone: format!("test-{}", std::process::id()),
        root: Root::Empty,
        mounts,
        devices: Vec::new(),
        private: vec!["/tmp".into()],
        hidden: Vec::new(),
        directory: "/".into(),
        network: false,
        own_pids: true,
        users: Some(UserRanges::default()),
        record: None,
        filter: Filter::Workload,
        limits: Limits::default(),
        policy: Policy::default(),
    }
}

pub(crate) fn null() -> OwnedFd {
    File::options().read(true).write(true).open("/dev/null").unwrap().into()
}

pub(crate) fn start(
    spec: Spec,
    program: &str,
    arguments: &[&str],
    out: &File,
) -> Result<(Process, Vec<Missing>), SandboxError> {
    let launch = Launch {
        program: program.into(),
        arguments: arguments.iter().map(Into::into).collect(),
        environment: BTreeMap::from([("PATH".into(), "/usr/bin:/bin".into())]),
        stdin: null(),
        stdout: out.try_clone().unwrap().into(),
        stderr: out.try_clone().unwrap().into(),
        inherit: Vec::new(),
    };
    Sandboxed { launcher: launcher(), spec, launch }.start()
}

pub(crate) async fn shell(spec: Spec, script: &str) -> (Exit, String) {
    let mut out = tempfile::tempfile().unwrap();
    let (process, _) = start(spec, "/bin/sh", &["-c", script], &out).unwrap();
    let exit = process.exited().await.unwrap();
    let mut said = String::new();
    out.rewind().unwrap();
    out.read_to_string(&mut said).unwrap();
    (exit, said)
}

/// Each attempt is a shell command that must fail.
pub(crate) async fn denied(spec: Spec, attempts: &[&str]) {
    for attempt in attempts {
        let script = format!("if {attempt}; then echo DONE; else echo denied; fi");
        let (exit, said) = shell(spec.clone(), &script).await;
        assert_eq!(exit, Exit::Code(0), "{attempt}: {said}");
        assert!(said.trim_end().ends_with("denied"), "{attempt}: {said}");
    }
}

/// Whether something comes to be true within a minute.
pub(crate) fn eventually(mut is: impl FnMut() -> bool) -> bool {
    for _ in 0..6000 {
        if is() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}

/// Starts a shell in a zone and waits until it has said `ready`.
pub(crate) fn begun(spec: Spec, script: &str) -> Process {
    let out = tempfile::tempfile().unwrap();
    let script = format!("echo ready; {script}");
    let (process, _) = start(spec, "/bin/sh", &["-c", &script], &out).unwrap();
    assert!(eventually(|| out.metadata().unwrap().len() > 0));
    process
}

/// The control groups of the zone with that launcher, in all hierarchies.
pub(crate) fn groups_of(launcher: u32) -> Vec<PathBuf> {
    let end = format!("-{launcher}");
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("gpu-zone-") && name.ends_with(&end) {
                found.push(entry.path());
            } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            }
        }
    }
    found
}

/// Children of a process, and theirs, from the host's side.
pub(crate) fn descendants(of: u32) -> Vec<u32> {
    let mut found = vec![of];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        next += 1;
        for task in
            std::fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten()
        {
            let children = std::fs::read_to_string(task.path().join("children"));
            let children = children.unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
    }
    found
}

/// A field of `/proc/<pid>/status`.
pub(crate) fn status(pid: u32, field: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    Some(line.trim_start_matches(':').trim().to_owned())
}
