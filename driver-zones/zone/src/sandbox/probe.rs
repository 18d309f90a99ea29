//! What this host has of what a sandbox needs.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use super::spec::{Filter, Limits, Missing, Policy, Root, Spec};
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
        mounts: Vec::new(),
        devices: Vec::new(),
        private: Vec::new(),
        hidden: Vec::new(),
        directory: "/".into(),
        network: false,
        own_pids: true,
        filter: Filter::Workload,
        limits: Limits {
            memory: Some(256 << 20),
            pids: Some(64),
            cpu: Some(100),
            open_files: Some(64),
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
    let (process, missing) = Sandboxed { launcher: program, spec: everything, launch }.start()?;
    process.reap();
    Ok(missing)
}
