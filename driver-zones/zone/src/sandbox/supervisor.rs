//! What a driver zone's broker gives up, for itself and for all that it starts.
//!
//! It makes namespaces, control groups and, as root, users for workers, so it cannot live in a
//! worker's sandbox: Landlock would deny it every mount, a user namespace every user but one. It
//! keeps what that takes and gives up the rest, before it looks at anything that a worker wrote.

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, remove_capability_from_bounding_set,
    set_capabilities, set_no_new_privs,
};

use super::filter;
use super::spec::{Feature, Missing};

/// What root needs to make zones: users and groups of theirs (`SETFCAP` to have root itself mapped
/// into one, user_namespaces(7)), mounts where there is no user namespace, files and processes of
/// theirs.
fn needed() -> CapabilitySet {
    CapabilitySet::CHOWN
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::FOWNER
        | CapabilitySet::KILL
        | CapabilitySet::SETFCAP
        | CapabilitySet::SETGID
        | CapabilitySet::SETUID
        | CapabilitySet::SETPCAP
        | CapabilitySet::SYS_ADMIN
        | CapabilitySet::SYS_RESOURCE
}

/// Why a supervisor could not give up what it does not need.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// The kernel refused.
    #[error("cannot give up privileges: {0}")]
    Privileges(#[from] rustix::io::Errno),
    /// The policy is wrong.
    #[error("the policy broker.json is wrong: {0}")]
    Policy(#[from] filter::FilterError),
}

/// Gives up for good: new privileges, capabilities that making zones does not take, being looked
/// into by its user's other processes, and the system calls that `policies/broker.json` denies.
/// Returns what the host lacks of it. Called while the process has one thread.
///
/// # Errors
/// When the kernel refuses a step.
pub fn confine_supervisor() -> Result<Option<Missing>, SuperviseError> {
    set_no_new_privs(true)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    for capability in CapabilitySet::all().difference(needed()).iter() {
        match remove_capability_from_bounding_set(capability) {
            // Not one that this kernel has; or this user may not, and has none.
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let has = capabilities(None)?;
    let kept = has.permitted.intersection(needed());
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: none };
    set_capabilities(None, sets)?;
    for program in filter::compile(include_str!("../../policies/broker.json"))? {
        if let Err(error) = seccompiler::apply_filter(&program) {
            let reason = error.to_string();
            return Ok(Some(Missing { feature: Feature::Seccomp, reason }));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_compiles_to_what_the_kernel_takes() {
        let programs = filter::compile(include_str!("../../policies/broker.json")).unwrap();
        assert_eq!(programs.len(), if cfg!(target_arch = "x86_64") { 2 } else { 1 });
        // BPF_MAXINSNS, seccomp(2).
        assert!(programs.iter().all(|program| program.len() <= 4096));
    }
}
