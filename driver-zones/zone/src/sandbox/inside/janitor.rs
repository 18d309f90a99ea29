//! Who cleans up behind a zone: a process outside that waits for the launcher's end.
//!
//! It holds the zone's numbers of users and its control groups, ends what is left in them and removes
//! them, however the launcher ended, and with them the record of a zone that its launcher owned.
//! Should it be killed itself, the next zone's launcher sweeps, and `settle` does.

use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{PidfdFlags, getpid, pidfd_open};

use crate::sandbox::cgroup::{Group, Groups, KILL};
use crate::sandbox::users::Claim;

/// The first pause between two attempts; each is twice as long as the last.
const FIRST_PAUSE: Duration = Duration::from_micros(200);
/// About half a minute of attempts in all: killed processes may have to finish writing.
const ATTEMPTS: u32 = 16;

/// Starts the janitor of the zone that this process is about to make. To be called while this
/// process still has its starter's rights and namespaces.
pub(super) fn start(groups: &Groups, claim: Option<&Claim>, record: &[PathBuf]) -> io::Result<()> {
    if groups.is_empty() && claim.is_none() && record.is_empty() {
        return Ok(());
    }
    let launcher = pidfd_open(getpid(), PidfdFlags::empty())?;
    // SAFETY: this process has one thread, so the child may do what this process may.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            attend(&launcher, groups, claim);
            for file in record {
                // The launcher did, unless it was killed.
                let _ = crate::files::remove(file);
            }
            // SAFETY: ends this process and runs nothing that the launcher is still to run.
            unsafe { libc::_exit(0) }
        }
        _ => Ok(()),
    }
}

fn attend(launcher: &OwnedFd, groups: &Groups, claim: Option<&Claim>) {
    // A terminal's signals are for the program, and no folder is kept busy.
    let _ = rustix::process::setsid();
    let _ = rustix::process::chdir("/");
    let _ = rustix::thread::set_name(c"zone-janitor");
    // What the launcher was handed is not to stay open because of this process.
    let held = groups.iter().map(|group| group.held.as_raw_fd());
    let held = held.chain(claim.map(|claim| claim.held().as_raw_fd()));
    close_all_but(held.chain([launcher.as_raw_fd()]).collect());
    let mut ends = [PollFd::new(launcher, PollFlags::IN)];
    while let Err(rustix::io::Errno::INTR) = poll(&mut ends, None) {}
    let mut pause = FIRST_PAUSE;
    for _ in 0..ATTEMPTS {
        groups.iter().for_each(end);
        // All of them are tried, whatever comes of one.
        if groups.iter().filter(|group| !is_removed(group)).count() == 0 {
            break;
        }
        std::thread::sleep(pause);
        pause = pause.saturating_mul(2);
    }
    // Last: until its processes are gone, the numbers are theirs.
    if let Some(claim) = claim {
        claim.give_back();
    }
}

/// Ends what is left in a group. Only version 2 can do that at once, and where it is, each zone
/// has a group of it.
fn end(group: &Group) {
    let kill = std::fs::File::options().write(true).open(group.path.join(KILL));
    // An older kernel has no such file, and a group that is gone has none either.
    let _ = kill.and_then(|mut file| file.write_all(b"1"));
}

fn is_removed(group: &Group) -> bool {
    let removed = std::fs::remove_dir(&group.path);
    !removed.is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY))
}

fn close_all_but(mut kept: Vec<RawFd>) {
    kept.sort_unstable();
    let mut next = 0;
    for number in kept.into_iter().chain([RawFd::MAX]) {
        if number > next {
            let (first, last) = (libc::c_long::from(next), libc::c_long::from(number - 1));
            // SAFETY: closes descriptors of this process that nothing in it uses any more: its
            // one thread goes on with those that are kept.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, libc::c_long::from(0)) };
        }
        next = number.saturating_add(1);
    }
}
