//! The sandbox of a maker, which makes a driver zone's workers' zones.
//!
//! It has a root of its own with what it and its workers need, no network, and the system calls of
//! `policies/maker.json`. Two things set it apart from a worker's sandbox. Started by root it has
//! no user namespace and keeps what giving zones users of their own takes: who may give out the
//! host's numbers of users, and files that belong to them, is in the host's user namespace. And
//! Landlock has no rules for files, for with such rules nobody below it could mount anything.

use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, getuid, set_dumpable_behavior, setrlimit,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, remove_capability_from_bounding_set,
    set_capabilities, set_no_new_privs,
};

use super::spec::{Filter, LIBRARIES, Limits, Mount, Policy, Root, Spec};
use super::users;

/// The kernel's settings and levers in `/proc`, which are root's own files.
const SETTINGS: [&str; 5] =
    ["/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs"];
const GROUPS: &str = "/sys/fs/cgroup";

/// What root needs to make zones: users and groups of theirs (`SETFCAP` to have root itself mapped
/// into one, user_namespaces(7)), mounts, processes of theirs, and control groups in folders that
/// are nobody's to write to by their mode (`DAC_OVERRIDE`).
fn needed() -> CapabilitySet {
    CapabilitySet::CHOWN
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::KILL
        | CapabilitySet::SETFCAP
        | CapabilitySet::SETGID
        | CapabilitySet::SETUID
        | CapabilitySet::SETPCAP
        | CapabilitySet::SYS_ADMIN
}

/// Capabilities that a program under this filter keeps: others than root need none, for a new user
/// namespace gives whoever makes it all that are needed there.
pub(super) fn kept(filter: Filter) -> CapabilitySet {
    let needed = match filter {
        Filter::Worker | Filter::Workload | Filter::Broker => CapabilitySet::empty(),
        Filter::Maker => needed(),
        // KVM's node and VFIO's are root's alone on most hosts, and a zone's users get their own.
        Filter::Machines => needed() | CapabilitySet::MKNOD,
    };
    if getuid().is_root() { needed } else { CapabilitySet::empty() }
}

/// What a maker is shown of the host, beside the libraries that every program needs, the
/// host's processes, and control groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MakerSandbox {
    /// The zone's name.
    pub zone: String,
    /// Files and folders that it reads: its program, and what it hands to its zones.
    pub read: Vec<PathBuf>,
    /// Folders that it writes to, or hands to its zones to be written to.
    pub write: Vec<PathBuf>,
    /// Device nodes that it hands to its zones.
    pub devices: Vec<PathBuf>,
    /// Whether it gives its zones users of their own.
    pub users: bool,
    /// What happens where something is missing.
    pub policy: Policy,
}

impl MakerSandbox {
    /// Its sandbox.
    ///
    /// # Errors
    /// When the folder in which users are claimed cannot be made.
    pub fn spec(self) -> io::Result<Spec> {
        let Self { zone, read, write, devices, users, policy } = self;
        let mut mounts: Vec<Mount> = libraries().collect();
        // The host's processes are shown as a whole, below.
        mounts.extend(read.into_iter().filter(|path| path != Path::new("/proc")).map(Mount::read));
        // Workers are looked up and watched there, and given users.
        mounts.push(Mount::write("/proc"));
        mounts.extend(SETTINGS.map(Mount::read_if_there));
        mounts.push(Mount { optional: true, ..Mount::write(GROUPS) });
        if users && getuid().is_root() {
            mounts.push(Mount::write(users::folder()?));
        }
        mounts.extend(write.into_iter().map(Mount::write));
        Ok(Spec {
            zone,
            root: Root::Empty,
            mounts,
            devices,
            private: Vec::new(),
            hidden: Vec::new(),
            directory: "/".into(),
            network: false,
            own_pids: false,
            users: None,
            record: None,
            filter: Filter::Maker,
            limits: Limits { scratch: Some(1 << 20), ..Limits::default() },
            policy,
        })
    }
}

/// The folders of the host's libraries that are folders here.
pub fn libraries() -> impl Iterator<Item = Mount> {
    // Where it is a link, it is one in the zone.
    let folders = LIBRARIES.into_iter().filter(|path| !Path::new(path).is_symlink());
    folders.map(Mount::read_if_there)
}

/// Why a process could not give up what it does not need.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegesError {
    /// The kernel refused.
    #[error("cannot give up privileges: {0}")]
    Kernel(#[from] rustix::io::Errno),
    /// The policy is wrong.
    #[error("the policy of system calls is wrong: {0}")]
    Policy(#[from] super::FilterError),
}

/// Gives up for good what a maker does not need, whoever started it: new privileges, capabilities, and
/// being looked into by its user's other processes. Called while the process has one thread.
pub(crate) fn confine_maker(filter: Filter) -> Result<(), PrivilegesError> {
    close()?;
    // Each zone takes some, and there is nobody else here to be kept from them.
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most })?;
    bound_to(kept(filter))?;
    Ok(drop_all_but(kept(filter))?)
}

/// No new privileges, and no looking into.
pub(super) fn close() -> Result<(), rustix::io::Errno> {
    set_no_new_privs(true)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

/// Programs to come have no capabilities but `kept`; whether this process may say so.
pub(super) fn bound_to(kept: CapabilitySet) -> Result<bool, rustix::io::Errno> {
    let mut privileged = true;
    for capability in CapabilitySet::all().difference(kept).iter() {
        match remove_capability_from_bounding_set(capability) {
            // Not one that this kernel has.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            // Without a user namespace and without privileges there are none to give up, and
            // no_new_privs keeps new ones away.
            Err(rustix::io::Errno::PERM) => privileged = false,
            Err(error) => return Err(error),
        }
    }
    Ok(privileged)
}

/// This process has no capabilities but `kept`.
pub(super) fn drop_all_but(kept: CapabilitySet) -> Result<(), rustix::io::Errno> {
    let kept = capabilities(None)?.permitted.intersection(kept);
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: none })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_hosts_is_in_it_but_what_was_named() {
        let named = MakerSandbox {
            zone: "driver-zone".to_owned(),
            read: vec!["/opt/worker".into(), "/proc".into()],
            write: vec!["/run/gz/driver-zone".into()],
            ..MakerSandbox::default()
        };
        let spec = named.spec().unwrap();
        assert_eq!((spec.root, spec.network, spec.own_pids), (Root::Empty, false, false));
        let writable = spec.mounts.iter().filter(|mount| mount.write);
        let writable: Vec<_> = writable.map(|mount| mount.source.to_str().unwrap()).collect();
        assert_eq!(writable, ["/proc", GROUPS, "/run/gz/driver-zone"]);
        for mount in spec.mounts.iter().filter(|mount| !mount.write) {
            let known = |path: &&str| mount.source == Path::new(*path);
            let named = mount.source == Path::new("/opt/worker");
            assert!(
                named || LIBRARIES.iter().any(known) || SETTINGS.iter().any(known),
                "{mount:?}"
            );
        }
    }
}
