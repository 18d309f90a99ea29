//! The sandbox of a driver zone's broker: that of a worker, with the files of leases.
//!
//! It has no capability and no user namespace in which it could get one, starts no process, opens no
//! device and sees no process and no file but its own. What it needs done, the maker does.

use std::io;
use std::path::PathBuf;

use rustix::thread::CapabilitySet;

use super::filter;
use super::maker::{PrivilegesError, bound_to, close, confine_maker, drop_all_but, libraries};
use super::spec::{
    Demand, Feature, Filter, Limits, Missing, Mount, Policy, Root, Spec, UserRanges,
};

/// What a broker is shown of the host, beside the libraries that every program needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BrokerSandbox {
    /// The zone's name.
    pub zone: String,
    /// Its program.
    pub program: PathBuf,
    /// Folders that it writes to.
    pub write: Vec<PathBuf>,
    /// Folders in those that it does not write to.
    pub closed: Vec<PathBuf>,
    /// From where it gets users of its own.
    pub users: Option<UserRanges>,
    /// What happens where something is missing.
    pub policy: Policy,
}

impl BrokerSandbox {
    /// Its sandbox.
    pub fn spec(self) -> Spec {
        let Self { zone, program, write, closed, users, mut policy } = self;
        let mut mounts: Vec<Mount> = libraries().collect();
        mounts.push(Mount::read(program));
        mounts.extend(write.into_iter().map(Mount::write));
        mounts.extend(closed.into_iter().map(Mount::read));
        // Its folders may be where nothing can be ID-mapped though the workers' are not. It is its
        // starter's user then, in a user namespace without anybody else, and has no more rights.
        policy.features.insert(Feature::Users, Demand::Warn);
        Spec {
            zone,
            root: Root::Empty,
            mounts,
            devices: Vec::new(),
            private: Vec::new(),
            hidden: Vec::new(),
            directory: "/".into(),
            network: false,
            own_pids: false,
            users,
            record: None,
            filter: Filter::Broker,
            limits: Limits { scratch: Some(1 << 20), ..Limits::default() },
            policy,
        }
    }
}

/// Who makes the zones of a broker's workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MadeBy {
    /// A maker beside it, and the broker has a sandbox of its own.
    Maker,
    /// The broker, without sandboxes.
    Itself,
    /// The broker, with sandboxes: in a microVM, which is its own.
    ItselfSandboxed,
}

/// Gives up for good what a broker does not need once it has begun: new privileges and, with a maker
/// beside it, running programs; without one, the system calls that `policies/maker.json` does not list
/// and all capabilities that making zones does not take. Returns what the host lacks of it. Called while
/// the process has one thread.
///
/// # Errors
/// When the kernel refuses a step.
pub fn confine_broker(workers: MadeBy) -> Result<Option<Missing>, PrivilegesError> {
    let programs = match workers {
        MadeBy::Maker => {
            close()?;
            filter::begun()?
        }
        MadeBy::Itself => {
            close()?;
            bound_to(CapabilitySet::empty())?;
            drop_all_but(CapabilitySet::empty())?;
            filter::programs(Filter::Maker)?
        }
        MadeBy::ItselfSandboxed => {
            confine_maker(Filter::Maker)?;
            filter::programs(Filter::Maker)?
        }
    };
    for program in programs {
        if let Err(error) = seccompiler::apply_filter(&program) {
            let reason = io::Error::other(error).to_string();
            return Ok(Some(Missing { feature: Feature::Seccomp, reason }));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn it_is_shown_nothing_but_its_own() {
        let named = BrokerSandbox {
            zone: "driver-zone".to_owned(),
            program: "/opt/broker".into(),
            write: vec!["/run/gz/driver-zone".into(), "/run/gz/slots".into()],
            closed: vec!["/run/gz/driver-zone/zones".into()],
            ..BrokerSandbox::default()
        };
        let spec = named.spec();
        assert_eq!((&spec.root, spec.network, spec.filter), (&Root::Empty, false, Filter::Broker));
        assert!(spec.devices.is_empty() && spec.private.is_empty());
        let known: Vec<Mount> = libraries().collect();
        let own: Vec<_> = spec.mounts.iter().filter(|mount| !known.contains(mount)).collect();
        let shown: Vec<_> = own.iter().map(|mount| (mount.source.as_path(), mount.write)).collect();
        let path = Path::new;
        let expected = [
            (path("/opt/broker"), false),
            (path("/run/gz/driver-zone"), true),
            (path("/run/gz/slots"), true),
            // Behind the folder that it is in, so that it is put on top.
            (path("/run/gz/driver-zone/zones"), false),
        ];
        assert_eq!(shown, expected);
    }
}
