//! A zone's own users: numbers that are nobody's on the host.
//!
//! What the zone is handed belongs to the same users inside as outside, by ID-mapped mounts:
//! root's file is the zone's root's, and what the zone writes is root's on the host. Only who
//! has the host's privileges can make those, so that is done before anything is given up.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, getpid, getuid, kill_process, pidfd_open,
    set_parent_process_death_signal, waitpid,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::root::{Handed, hand};
use super::{Setup, SetupError, step};
use crate::sandbox::spec::Feature;
use crate::sandbox::users::{self, Claim};

/// `f_type` of pipes without a name (statfs(2)).
const PIPES: u32 = 0x5049_5045;

/// The users of a zone.
#[derive(Debug)]
pub(crate) struct Users {
    claim: Claim,
    /// A user namespace with the range.
    namespace: OwnedFd,
    /// The launcher, with which the zone is to end.
    launcher: OwnedFd,
}

impl Users {
    pub(super) fn claim(&self) -> &Claim {
        &self.claim
    }

    pub(super) fn namespace(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

/// Gives the zone a range of its own, if it is to have one and this user may give it.
pub(super) fn claim(setup: &mut Setup) -> Result<(), SetupError> {
    let Some(ranges) = setup.spec.users else { return Ok(()) };
    if !getuid().is_root() {
        let reason = "only root can give a zone files that belong to other users";
        return setup.lacks(Feature::Users, reason);
    }
    let made = users::claim(ranges).and_then(|claim| {
        let namespace = namespace(&claim)?;
        let launcher = pidfd_open(getpid(), PidfdFlags::empty())?;
        Ok(Users { claim, namespace, launcher })
    });
    match made {
        Ok(users) => setup.users = Some(users),
        Err(error) => setup.lacks(Feature::Users, error)?,
    }
    Ok(())
}

/// A user namespace with the claimed numbers as 0 and up, and no process in it.
fn namespace(claim: &Claim) -> io::Result<OwnedFd> {
    let parent = getpid();
    let flags = libc::c_long::from(libc::CLONE_NEWUSER | libc::SIGCHLD);
    // SAFETY: a fork: this process has one thread, and the child only makes system calls.
    let child = match unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) } {
        -1 => return Err(io::Error::last_os_error()),
        0 => wait_to_be_killed(parent),
        child => i32::try_from(child).ok().and_then(Pid::from_raw),
    };
    let child = child.ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
    let map = || {
        let of_child = |file: &str| format!("/proc/{}/{file}", child.as_raw_pid());
        let range = &claim.range;
        let map = format!("0 {} {}", range.start, range.end - range.start);
        std::fs::write(of_child("uid_map"), &map)?;
        std::fs::write(of_child("gid_map"), &map)?;
        Ok(std::fs::File::open(of_child("ns/user"))?.into())
    };
    let namespace = map();
    kill_process(child, Signal::KILL)?;
    waitpid(Some(child), WaitOptions::empty())?;
    namespace
}

fn wait_to_be_killed(parent: Pid) -> ! {
    let tied = set_parent_process_death_signal(Some(Signal::KILL));
    if tied.is_ok() && rustix::process::getppid() == Some(parent) {
        rustix::event::pause();
    }
    // SAFETY: ends this process and runs nothing of the launcher's.
    unsafe { libc::_exit(1) }
}

/// Makes what the zone is handed its users' own. Where that cannot be, it has none.
pub(super) fn prepare(setup: &mut Setup) -> Result<(), SetupError> {
    let Some(users) = &setup.users else { return Ok(()) };
    match hand(&setup.spec, users.namespace(), users.claim.range.start)? {
        Ok(handed) => {
            setup.handed = Some(handed);
            Ok(())
        }
        Err(reason) => {
            setup.users = None;
            setup.lacks(Feature::Users, reason)
        }
    }
}

/// Enters the user namespace. This process stays who it is: whoever started it may signal it,
/// and no one in the zone.
pub(super) fn enter(users: &Users) -> io::Result<()> {
    let first = rustix::fs::Uid::from_raw(users.claim.range.start);
    for stream in [io::stdin().as_fd(), io::stdout().as_fd(), io::stderr().as_fd()] {
        // `/dev/stdout` and its like are opened once more by those who use them.
        if rustix::fs::fstatfs(stream).is_ok_and(|found| u32::try_from(found.f_type) == Ok(PIPES)) {
            rustix::fs::fchown(stream, Some(first), None)?;
        }
    }
    Ok(move_into_link_name_space(users.namespace(), Some(LinkNameSpaceType::User))?)
}

/// Becomes the zone's root, who is nobody on the host and has no more rights than any other.
pub(super) fn become_own(setup: &Setup) -> Result<(), SetupError> {
    let Some(users) = &setup.users else { return Ok(()) };
    let failed = "cannot become the zone's own user";
    // SAFETY: no memory is involved but an empty list, and this process has one thread.
    let done = unsafe {
        libc::setgroups(0, std::ptr::null()) == 0
            && libc::setresgid(0, 0, 0) == 0
            && libc::setresuid(0, 0, 0) == 0
    };
    if !done {
        return Err(step(failed)(io::Error::last_os_error()));
    }
    if setup.spec.own_pids {
        // The kernel forgets this when a process changes its user.
        set_parent_process_death_signal(Some(Signal::KILL)).map_err(step(failed))?;
        if crate::process::has_ended(users.launcher.as_fd()).is_ok_and(|ended| ended) {
            return Err(SetupError::Spec("the zone's launcher is gone".to_owned()));
        }
    }
    Ok(())
}

/// Folders of the host's on the way to what is handed over that only their owner may enter.
/// They are shown empty but for that.
pub(super) fn closed(handed: &[Handed]) -> Vec<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let is_closed = |folder: &Path| {
        std::fs::metadata(folder).is_ok_and(|found| found.permissions().mode() & 0o001 == 0)
    };
    let mut closed: Vec<PathBuf> = Vec::new();
    for piece in handed {
        let folder = piece.target.parent().and_then(|folder| std::fs::canonicalize(folder).ok());
        let Some(folder) = folder else { continue };
        let mut above: Vec<&Path> = folder.ancestors().collect();
        above.reverse();
        let is_handed =
            |folder: &Path| handed.iter().any(|other| folder.starts_with(&other.target));
        let first = above.into_iter().find(|folder| is_closed(folder) && !is_handed(folder));
        closed.extend(first.map(Path::to_owned));
    }
    closed.sort();
    closed.dedup();
    closed
}
