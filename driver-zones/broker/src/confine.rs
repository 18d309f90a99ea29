//! Workers in sandboxes.
//!
//! A worker's zone has namespaces of its own but for one: it shares the broker's pid namespace.
//! The driver, real or simulated, books device memory by pid, and the worker looks its own up in
//! NVML's list, as the agent does for usage: inside a pid namespace the numbers would not meet.
//! In its place, a worker has no `/proc` to see others in, seccomp lets it signal nobody, and
//! Landlock would not either. So the launcher becomes the worker and leaves no process between.

use gpuzone_wire::control::{self as wire, BrokerConfig, Sandbox};
use gpuzone_zone::sandbox::{
    Filter, Launch, LaunchError, Limits, Missing, Mount, Order, Policy, Root, SandboxError,
    Sandboxes, Spec, UserRanges, libraries,
};
use gpuzone_zone::{Zone, ZoneError, Zones};

/// More than any worker within its caps needs, and no fork bomb.
const MOST_THREADS: u64 = 4096;
/// Many threads in one worker are no more of the processors for it than few in another.
const SAME_AS_OTHERS: u64 = 100;
/// Sockets, rings and events of all sessions that the caps allow.
const MOST_FILES: u64 = 65_536;

/// Why a process was not started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfineError {
    #[error("{}", crate::worker::with_cause(.0))]
    Launch(#[from] LaunchError),
    #[error("{0}")]
    Sandbox(String),
}

impl From<SandboxError> for ConfineError {
    fn from(error: SandboxError) -> Self {
        match error {
            SandboxError::Launch(error) => Self::Launch(error),
            SandboxError::Speak(source) => {
                Self::Sandbox(format!("cannot speak to the sandbox's launcher: {source}"))
            }
            SandboxError::Refused(_) => Self::Sandbox(error.to_string()),
        }
    }
}

impl From<ZoneError<SandboxError>> for ConfineError {
    fn from(error: ZoneError<SandboxError>) -> Self {
        match error {
            ZoneError::Backend(error) => error.into(),
            ZoneError::Name(_)
            | ZoneError::Exists(_)
            | ZoneError::Record(_)
            | ZoneError::Wrong(_)
            | ZoneError::Late(_)
            | ZoneError::Ended => Self::Sandbox(error.to_string()),
        }
    }
}

/// Makes a zone for a process that opens the driver, in a sandbox if the configuration has one;
/// [`begin`] lets it run. `name` is letters, digits, `-` and `_`.
pub(crate) fn make(
    config: &BrokerConfig,
    zones: &Zones<Sandboxes>,
    name: &str,
    launch: Launch,
) -> Result<Zone<Sandboxes>, ConfineError> {
    let order = match &config.sandbox {
        Some(sandbox) => {
            let (launcher, spec) = (sandbox.launcher.clone(), spec(config, sandbox, name)?);
            Order::Program { launcher, spec, launch }
        }
        None => Order::Bare(launch),
    };
    Ok(zones.create(name, order)?)
}

/// Lets a zone run, and answers when its program begins. On an error it is being ended.
pub(crate) async fn begin(zone: &Zone<Sandboxes>) -> Result<(), ConfineError> {
    let missing = zone.start().await?;
    if !missing.is_empty() {
        let missing: Vec<String> = missing.iter().map(Missing::to_string).collect();
        let missing = missing.join("; ");
        tracing::warn!(zone = zone.name(), process = zone.process().pid, %missing,
            "a worker runs without a part of its sandbox, which the policy allows");
    }
    Ok(())
}

fn spec(config: &BrokerConfig, sandbox: &Sandbox, zone: &str) -> Result<Spec, ConfineError> {
    let mut mounts: Vec<Mount> = libraries().collect();
    let driver = [&config.worker, &config.driver.cuda_library, &config.driver.nvml_library];
    mounts.extend(driver.into_iter().map(Mount::read));
    mounts.extend(sandbox.read.iter().map(Mount::read));
    mounts.extend(sandbox.write.iter().map(Mount::write));
    Ok(Spec {
        zone: zone.to_owned(),
        root: Root::Empty,
        mounts,
        devices: sandbox.devices.clone(),
        private: Vec::new(),
        hidden: Vec::new(),
        directory: "/".into(),
        network: false,
        own_pids: false,
        users: sandbox.users.map(|wire::UserRanges { first, each, zones }| UserRanges {
            first,
            each,
            zones,
        }),
        record: None,
        filter: Filter::Worker,
        limits: Limits {
            pids: Some(MOST_THREADS),
            open_files: Some(MOST_FILES),
            cpu_weight: Some(SAME_AS_OTHERS),
            ..Limits::default()
        },
        policy: policy(sandbox)?,
    })
}

fn policy(sandbox: &Sandbox) -> Result<Policy, ConfineError> {
    Policy::requiring(&sandbox.require).map_err(|name| {
        ConfineError::Sandbox(format!("a sandbox has no feature '{name}' to be required"))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use gpuzone_zone::sandbox::{Demand, Feature};

    use super::*;

    fn sandbox(require: &[&str]) -> Sandbox {
        Sandbox {
            launcher: "/bin/launcher".into(),
            read: Vec::new(),
            write: Vec::new(),
            devices: Vec::new(),
            users: None,
            require: require.iter().map(ToString::to_string).collect::<BTreeSet<_>>(),
        }
    }

    #[test]
    fn what_is_required_is_demanded_and_nothing_else() {
        let policy = policy(&sandbox(&["seccomp"])).unwrap();
        assert_eq!(policy.of(Feature::Seccomp), Demand::Require);
        assert_eq!(policy.of(Feature::Pids), Demand::Warn);
    }

    #[test]
    fn a_requirement_that_nothing_can_meet_is_refused() {
        let error = policy(&sandbox(&["secomp"])).unwrap_err();
        assert!(error.to_string().contains("'secomp'"));
    }
}
