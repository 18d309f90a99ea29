//! What a zone's process gives up for good.

use std::io;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, RestrictionStatus, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, path_beneath_rules,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitiesSecureBits, set_capabilities_secure_bits, set_no_new_privs};

use super::{Setup, SetupError, step};
use crate::sandbox::spec::{Feature, Filter, Limits, Root, Spec};
use crate::sandbox::{filter, maker};

/// Rights up to this version of Landlock are asked for; a kernel with fewer gives what it has.
const LANDLOCK: ABI = ABI::V6;

/// No privileges now, none by running a program, no core files.
pub(super) fn drop_privileges(setup: &Setup) -> Result<(), SetupError> {
    let failed = "cannot give up privileges";
    set_no_new_privs(true).map_err(step(failed))?;
    limit(Resource::Core, 0).map_err(step("cannot turn off core files"))?;
    if let Some(files) = setup.spec.limits.open_files {
        limit(Resource::Nofile, files).map_err(step("cannot limit open files"))?;
    }
    let limits = &setup.spec.limits;
    // The floor where there is no control group: of each process, and of each user's processes.
    if let Some(bytes) = limits.memory.filter(|_| !setup.has(Feature::Memory)) {
        limit(Resource::Data, bytes).map_err(step("cannot limit memory"))?;
    }
    if let Some(count) = limits.pids.filter(|_| !setup.has(Feature::Pids)) {
        limit(Resource::Nproc, count).map_err(step("cannot limit processes"))?;
    }
    let kept = maker::kept(setup.spec.filter);
    let privileged = maker::bound_to(kept).map_err(step(failed))?;
    if privileged && kept.is_empty() {
        // Being called root gives a program nothing, and nobody turns that back.
        let bits = CapabilitiesSecureBits::NO_ROOT
            | CapabilitiesSecureBits::NO_ROOT_LOCKED
            | CapabilitiesSecureBits::NO_SETUID_FIXUP
            | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
            | CapabilitiesSecureBits::KEEP_CAPS_LOCKED
            | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
            | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED;
        set_capabilities_secure_bits(bits).map_err(step(failed))?;
    }
    maker::drop_all_but(kept).map_err(step(failed))
}

/// Memory that is not moved, while this process may still give itself more of it.
pub(super) fn allow_locked(limits: &Limits) -> Result<(), SetupError> {
    let Some(bytes) = limits.locked else { return Ok(()) };
    let allowed = getrlimit(Resource::Memlock).maximum;
    let most = allowed.map(|allowed| allowed.max(bytes));
    let raised = setrlimit(Resource::Memlock, Rlimit { current: most, maximum: most });
    raised.map_err(step(cannot_lock(bytes, allowed)))
}

/// Root in a container often has no CAP_SYS_RESOURCE, so that being root is no answer.
fn cannot_lock(bytes: u64, allowed: Option<u64>) -> String {
    let (needs, has) = (bytes.div_ceil(1024), allowed.unwrap_or_default() / 1024);
    format!(
        "cannot let the zone keep {needs} KiB of memory where they are, as a device in a VM needs it: {has} KiB are allowed here. Start this with CAP_SYS_RESOURCE, or after `ulimit -l {needs}` (LimitMEMLOCK={bytes} in systemd's unit, --ulimit memlock={bytes} of a container)"
    )
}

/// At most `most`, and never more than before.
fn limit(resource: Resource, most: u64) -> Result<(), rustix::io::Errno> {
    let before = getrlimit(resource).maximum;
    let limit = Some(before.map_or(most, |before| before.min(most)));
    setrlimit(resource, Rlimit { current: limit, maximum: limit })
}

/// Files by rule once more, so that a mistake in the mounts is not the end; and no signals and
/// no abstract sockets to anybody outside.
pub(super) fn landlock(setup: &mut Setup) -> Result<(), SetupError> {
    let refused = |error: &dyn std::error::Error| SetupError::Step {
        what: "cannot set Landlock's rules".to_owned(),
        source: io::Error::other(error.to_string()),
    };
    let restricted = match setup.spec.filter {
        Filter::Maker | Filter::Machines => makes_zones(),
        Filter::Worker => files(&setup.spec, None, AccessFs::from_all(LANDLOCK)),
        // Others read in its folders, with more rights: no link of its making leads them elsewhere.
        Filter::Broker => files(&setup.spec, None, AccessFs::from_all(LANDLOCK) & !special()),
        // Programs look around from the top; what is there is theirs to know.
        Filter::Workload => files(&setup.spec, Some("/"), AccessFs::from_all(LANDLOCK)),
    };
    let restricted = restricted.map_err(|error: RulesetError| refused(&error))?;
    match restricted.ruleset {
        RulesetStatus::FullyEnforced => Ok(()),
        RulesetStatus::PartiallyEnforced => {
            setup.lacks(Feature::Landlock, "the kernel has an older version: not all rules hold")
        }
        RulesetStatus::NotEnforced => {
            setup.lacks(Feature::Landlock, "the kernel does not have it, or it is not turned on")
        }
    }
}

/// To make what is neither file, folder nor socket.
fn special() -> BitFlags<AccessFs> {
    AccessFs::MakeSym | AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::MakeFifo
}

/// Rules for files: what may be done where it may be written; of `list`, what is there may be read, too.
fn files(
    spec: &Spec,
    list: Option<&str>,
    writing: BitFlags<AccessFs>,
) -> Result<RestrictionStatus, RulesetError> {
    let (read, write) = paths(spec);
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .scope(Scope::from_all(LANDLOCK))?;
    if !spec.network {
        rules = rules.handle_access(AccessNet::from_all(LANDLOCK))?;
    }
    rules
        .create()?
        .add_rules(path_beneath_rules(read, AccessFs::from_read(LANDLOCK)))?
        .add_rules(path_beneath_rules(write, writing))?
        .add_rules(path_beneath_rules(list, AccessFs::ReadDir))?
        .restrict_self()
}

/// For a program that makes zones: rules for files would deny it and its zones every mount, and
/// the scope of signals those workers that an earlier one started. What is left keeps it from
/// looking into processes that it did not start, too (landlock(7), "Ptrace restrictions").
fn makes_zones() -> Result<RestrictionStatus, RulesetError> {
    Ruleset::default()
        .handle_access(AccessNet::from_all(LANDLOCK))?
        .scope(Scope::AbstractUnixSocket)?
        .create()?
        .restrict_self()
}

/// What may be read, and what may be written too.
fn paths(spec: &Spec) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let mut read = vec![PathBuf::from("/proc")];
    let mut write = vec![PathBuf::from("/dev")];
    match spec.root {
        Root::Empty => {}
        Root::Host | Root::Folder(_) => read.push(PathBuf::from("/")),
    }
    for mount in &spec.mounts {
        let target = mount.target.as_deref().unwrap_or(&mount.source).to_owned();
        if mount.write { write.push(target) } else { read.push(target) }
    }
    write.extend(spec.private.iter().cloned());
    let there = |path: &PathBuf| Path::exists(path);
    read.retain(there);
    write.retain(there);
    (read, write)
}

/// The reviewed policy of system calls. Nothing is set up after it.
pub(super) fn seccomp(setup: &mut Setup) -> Result<(), SetupError> {
    let name = match setup.spec.filter {
        Filter::Worker => "worker",
        Filter::Workload => "workload",
        Filter::Broker => "broker",
        Filter::Maker => "maker",
        Filter::Machines => "machines",
    };
    let programs = filter::programs(setup.spec.filter)
        .map_err(|error| SetupError::Spec(format!("the policy {name}.json is wrong: {error}")))?;
    for program in programs {
        if let Err(error) = seccompiler::apply_filter(&program) {
            return setup.lacks(Feature::Seccomp, error);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_not_lock_so_much_is_told_how_much_and_how_to_get_it() {
        let said = cannot_lock(192 << 20, Some(8 << 20));
        for part in ["196608 KiB", "8192 KiB are allowed", "CAP_SYS_RESOURCE", "`ulimit -l 196608`"]
        {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
}
