//! What this host has of what a sandbox needs.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use super::cgroup;
use super::spec::{Feature, Filter, Limits, Missing, Mount, Policy, Root, Spec, UserRanges};
use super::{Launch, SandboxError, Sandboxed};

/// Features that the host lacks, learnt by making a sandbox with all of them that does nothing.
/// `launcher` is `gpu-zone-sandbox`.
///
/// # Errors
/// When no sandbox can be made at all.
pub fn probe(launcher: &Path) -> Result<Vec<Missing>, SandboxError> {
    let null = || -> Result<OwnedFd, SandboxError> {
        let null = File::options().read(true).write(true).open("/dev/null");
        Ok(null.map_err(SandboxError::Speak)?.into())
    };
    let everything = Spec {
        zone: format!("probe-{}", std::process::id()),
        root: Root::Host,
        // A file system in memory and one that is likely to hold what programs work on: both are
        // to be shared with other users.
        mounts: ["/dev/shm", "/var/tmp"]
            .map(|folder| Mount { optional: true, ..Mount::write(folder) })
            .into(),
        devices: Vec::new(),
        private: Vec::new(),
        hidden: Vec::new(),
        directory: "/".into(),
        network: false,
        own_pids: true,
        users: Some(UserRanges::default()),
        record: None,
        filter: Filter::Workload,
        limits: Limits {
            memory: Some(256 << 20),
            pids: Some(64),
            cpu: Some(100),
            cpu_weight: Some(100),
            open_files: Some(64),
            locked: None,
            scratch: Some(1 << 20),
            device_memory: cgroup::device_memory().into_iter().collect(),
        },
        policy: Policy::default(),
    };
    let program = std::fs::canonicalize(launcher).map_err(SandboxError::Speak)?;
    let launch = Launch {
        program: program.clone(),
        arguments: vec!["--version".into()],
        environment: BTreeMap::new(),
        stdin: null()?,
        stdout: null()?,
        stderr: null()?,
        inherit: Vec::new(),
    };
    let regions = everything.limits.device_memory.len();
    let (process, mut missing) =
        Sandboxed { launcher: program, spec: everything, launch }.start()?;
    process.reap();
    if regions == 0 {
        let reason = "no GPU's driver books its memory with control groups here".to_owned();
        missing.push(Missing { feature: Feature::Dmem, reason });
    }
    Ok(missing)
}
