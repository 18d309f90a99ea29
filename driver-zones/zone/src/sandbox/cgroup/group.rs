//! One control group of one zone: made, held, and removed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::process::{Pid, Signal, kill_process};

use super::limit::Setting;

/// In front of a zone's name.
pub(super) const PREFIX: &str = "gpu-zone-";
/// Between two attempts to remove a group whose processes were killed.
const PAUSE: Duration = Duration::from_millis(2);
/// Another launcher may remove a group between its making and its lock.
const ATTEMPTS: usize = 5;

/// A group that this process made.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) path: PathBuf,
    /// The group's folder with a lock on it, which says that it is somebody's.
    pub(crate) held: OwnedFd,
    /// Where a process writes that it joins.
    members: File,
}

/// How a folder of control groups is made; a test's are no kernel's.
pub(super) type Create<'a> = &'a dyn Fn(&Path) -> io::Result<()>;

impl Group {
    /// Makes the group, sets its limits, and opens `members` for [`Group::join`].
    pub(super) fn make(
        path: &Path,
        settings: &[Setting],
        members: &str,
        create: Create<'_>,
    ) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            sweep(parent);
        }
        let attempt = || -> io::Result<Self> {
            create(path)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let held = rustix::fs::open(path, flags, Mode::empty())?;
            flock(&held, FlockOperation::NonBlockingLockShared)?;
            for setting in settings {
                match write(&path.join(setting.file), &setting.value) {
                    Err(error) if setting.optional && error.kind() == io::ErrorKind::NotFound => {}
                    other => other?,
                }
            }
            let members = File::options().append(true).open(path.join(members))?;
            Ok(Self { path: path.to_owned(), held, members })
        };
        let mut last = attempt();
        for _ in 1..ATTEMPTS {
            match &last {
                Ok(_) => return last,
                // A group of this process's number from before: nobody's, or somebody's who
                // will be seen to be there.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    fs::remove_dir(path)?;
                    last = attempt();
                }
                Err(error) if is_swept(error) => last = attempt(),
                Err(_) => break,
            }
        }
        if last.is_err() {
            let _ = fs::remove_dir(path);
        }
        last
    }

    /// Puts the calling process, which has one thread, into the group.
    pub(super) fn join(&self) -> io::Result<()> {
        (&self.members).write_all(b"0\n")
    }
}

/// Whether the group was removed under its maker's hands.
fn is_swept(error: &io::Error) -> bool {
    let errno = error.raw_os_error();
    errno == Some(libc::ENODEV)
        || errno == Some(libc::EWOULDBLOCK)
        || error.kind() == io::ErrorKind::NotFound
}

/// Writes to a file that is there; nothing is made where it is not.
pub(super) fn write(file: &Path, value: &str) -> io::Result<()> {
    File::options().append(true).open(file)?.write_all(format!("{value}\n").as_bytes())
}

/// Ends what is left in a group of a zone that has no launcher any more, and removes it. What
/// takes longer to end is left for the next sweep.
pub(super) fn end(path: &Path) {
    const ATTEMPTS: u32 = 10;
    for _ in 0..ATTEMPTS {
        match fs::remove_dir(path) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Ok(()) | Err(_) => return,
        }
        if write(&path.join(super::KILL), "1").is_err() {
            // Version 1, and kernels before 5.14: each by itself.
            let members = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
            let members = members.lines().filter_map(|pid| Pid::from_raw(pid.parse().ok()?));
            for member in members {
                let _ = kill_process(member, Signal::KILL);
            }
        }
        std::thread::sleep(PAUSE);
    }
}

/// Removes the groups of zones that have ended and that nobody removed: nobody holds them, and
/// the kernel removes no group with a process in it.
pub(super) fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let unheld = File::open(entry.path()).and_then(|group| {
            flock(&group, FlockOperation::NonBlockingLockExclusive)?;
            Ok(group)
        });
        if unheld.is_ok() {
            let _ = fs::remove_dir(entry.path());
        }
    }
}
