//! Files that processes of a node share with their own successors.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// A file that has no name, to be read from its beginning; `name` is what the kernel shows of it.
///
/// # Errors
/// When there is no memory for it.
pub(crate) fn in_memory(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file.into())
}

/// A lock file that says who holds it; the lock ends with the process, however that ends.
#[derive(Debug)]
pub struct PidLock {
    _file: File,
}

/// Why a lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody has it.
    #[error("{} is locked by process {pid}", .path.display())]
    Held {
        /// The lock file.
        path: PathBuf,
        /// Who, as the file says: a number, or a question mark.
        pid: String,
    },
    /// The file cannot be used.
    #[error("cannot lock {}", .path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl PidLock {
    /// Takes the lock at `path`, without waiting for it.
    ///
    /// # Errors
    /// When another process has it, or the file cannot be written.
    pub fn take(path: &Path) -> Result<Self, LockError> {
        let io = |source| LockError::Io { path: path.to_owned(), source };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(path).map_err(io)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                // Bounded, for the file may be anything; unreadable, the question mark serves.
                let _ = Read::by_ref(&mut file).take(20).read_to_string(&mut pid);
                let known = pid.trim().parse::<u32>().is_ok();
                let pid = if known { pid.trim().to_owned() } else { "?".to_owned() };
                return Err(LockError::Held { path: path.to_owned(), pid });
            }
            Err(error) => return Err(io(error.into())),
        }
        file.set_len(0).map_err(io)?;
        file.write_all(format!("{}\n", std::process::id()).as_bytes()).map_err(io)?;
        Ok(Self { _file: file })
    }
}

/// Replaces the file at `path` so that, whatever happens, it holds either what it held or all of
/// `bytes`. On disk when this returns.
///
/// # Errors
/// When the file system refuses a step; the old file is still there then.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    sync_parent(path)
}

/// Makes a rename, creation or removal at `path` outlive a power failure.
///
/// # Errors
/// When the folder cannot be opened or written.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        Some(_) | None => File::open(".")?.sync_all(),
    }
}

/// Makes the folder at `path`, with those above it, for this user alone (0700). One that is
/// there is closed to others, and the log says that it was open.
///
/// # Errors
/// When it cannot be made, is no folder, or is another user's.
pub fn private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let found = std::fs::metadata(path)?;
    // In a folder like /tmp, somebody else may have made it first, to look into it later.
    if found.uid() != rustix::process::geteuid().as_raw() {
        let message = format!("it belongs to user {}; choose another folder", found.uid());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
    }
    let mode = found.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        tracing::warn!(
            folder = %path.display(),
            mode = format!("{mode:04o}"),
            "this folder was open to other users and is closed to them now; look at what lies in it"
        );
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o700))?;
    }
    Ok(())
}

/// Makes the folder at `path`, into which everybody who gets to it may look (0755), and those
/// above it for this user alone.
///
/// # Errors
/// When it cannot be made, is no folder, or is another user's.
pub fn mounted_dir(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        private_dir(parent)?;
    }
    DirBuilder::new().recursive(true).mode(0o755).create(path)?;
    let found = std::fs::metadata(path)?;
    if found.uid() != rustix::process::geteuid().as_raw() {
        let message = format!("it belongs to user {}; choose another folder", found.uid());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
    }
    // Whatever the umask took away.
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o755))
}

/// Removes a file or an empty or full folder; one that is not there is no error.
///
/// # Errors
/// When it cannot be removed.
pub fn remove(path: &Path) -> io::Result<()> {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patience::at_last;

    #[test]
    fn a_lock_has_one_holder_and_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = PidLock::take(&path).unwrap();
        let error = PidLock::take(&path).unwrap_err().to_string();
        assert!(error.ends_with(&format!("process {}", std::process::id())), "{error}");
        drop(first);
        at_last(|| PidLock::take(&path).ok());
    }

    #[test]
    fn an_atomic_write_replaces_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        write_atomically(&path, b"one").unwrap();
        write_atomically(&path, b"2").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"2");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        remove(&path).unwrap();
        remove(&path).unwrap();
    }

    #[test]
    fn a_folder_of_another_user_is_refused_where_this_one_can_make_one() {
        let dir = tempfile::tempdir().unwrap();
        if std::os::unix::fs::chown(dir.path(), Some(12_345), None).is_err() {
            eprintln!("skipped: only root can give a folder away");
            return;
        }
        let error = private_dir(dir.path()).unwrap_err();
        assert!(error.to_string().contains("user 12345"), "{error}");
    }

    #[test]
    fn a_private_folder_is_closed_to_others_and_the_log_says_how_open_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let log = dir.path().join("log");
        let file = File::create(&log).unwrap();
        let subscriber = tracing_subscriber::fmt().with_writer(file).finish();
        tracing::subscriber::with_default(subscriber, || {
            private_dir(&path).unwrap();
            assert_eq!(std::fs::read_to_string(&log).unwrap(), "", "it is its own");
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
            private_dir(&path).unwrap();
            private_dir(&path).unwrap();
        });
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        let said = std::fs::read_to_string(&log).unwrap();
        assert_eq!(said.lines().count(), 1, "{said}");
        let parts = ["WARN", &path.display().to_string(), "0755", "look at what lies in it"];
        assert!(parts.iter().all(|part| said.contains(part)), "{said}");
    }
}
