//! One control group of one zone: made, held, and removed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};

use super::limit::Setting;

/// In front of a zone's name.
pub(super) const PREFIX: &str = "gpu-zone-";
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
