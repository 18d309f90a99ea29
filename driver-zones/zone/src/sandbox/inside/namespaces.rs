//! New namespaces.

use std::io;

use rustix::process::{getgid, getuid};
use rustix::thread::UnshareFlags;

use super::{Setup, SetupError, step, users};
use crate::sandbox::spec::Feature;

/// Leaves the starter's namespaces for new ones. A pid namespace begins with the next child.
pub(super) fn enter(setup: &mut Setup) -> Result<(), SetupError> {
    let (uid, gid) = (getuid().as_raw(), getgid().as_raw());
    if let Some(users) = &setup.users {
        users::enter(users).map_err(step("cannot enter the zone's user namespace"))?;
    } else if !(setup.makes_zones() && getuid().is_root()) {
        match unshare(UnshareFlags::NEWUSER) {
            Ok(()) => map(uid, gid).map_err(step("cannot map the user into the zone"))?,
            Err(error) => setup.lacks(Feature::User, error)?,
        }
    }
    let mut wanted = vec![
        (Feature::Mount, UnshareFlags::NEWNS),
        (Feature::Ipc, UnshareFlags::NEWIPC),
        (Feature::Uts, UnshareFlags::NEWUTS),
        (Feature::Time, UnshareFlags::NEWTIME),
    ];
    if !setup.spec.network {
        wanted.push((Feature::Net, UnshareFlags::NEWNET));
    }
    if setup.spec.own_pids {
        wanted.push((Feature::Pid, UnshareFlags::NEWPID));
    }
    let all = wanted.iter().fold(UnshareFlags::empty(), |all, (_, flag)| all | *flag);
    if unshare(all).is_err() {
        // One by one, to learn which the kernel has not.
        for (feature, flag) in wanted {
            if let Err(error) = unshare(flag) {
                setup.lacks(feature, error)?;
            }
        }
    }
    if setup.has(Feature::Uts) {
        let name = setup.spec.zone.as_bytes();
        rustix::system::sethostname(name).map_err(step("cannot name the zone's host"))?;
    }
    Ok(())
}

/// What begins where the process is: its control groups are the root of all that the zone sees.
pub(super) fn enter_inner(setup: &mut Setup) -> Result<(), SetupError> {
    match unshare(UnshareFlags::NEWCGROUP) {
        Ok(()) => Ok(()),
        Err(error) => setup.lacks(Feature::CgroupNamespace, error),
    }
}

fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: this process has one thread, and no flag here separates what that thread shares
    // with code that relies on it, like its table of descriptors.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

/// This user and no other exists in the zone. (user_namespaces(7): groups can be mapped without
/// privileges only once `setgroups` is given up.)
fn map(uid: u32, gid: u32) -> io::Result<()> {
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))
}
