//! The folder of one named zone, in the run directory: its socket, its record, its locks.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep};

use crate::files::{LockError, PidLock, remove};
use crate::packets;

const SOCKET: &str = "zone.sock";
/// Held by the keeper, as long as it lives.
const KEEPER: &str = "keeper.lock";
/// Held by whoever starts a keeper, until that serves.
const START: &str = "start.lock";
/// How many programs may wait to be heard.
const BACKLOG: i32 = 128;
/// How long an earlier keeper may take to go.
const LIMIT: Duration = Duration::from_secs(10);

/// A keeper's right to a folder.
pub(super) struct Folder {
    path: PathBuf,
    _lock: PidLock,
}

impl Folder {
    /// Takes the folder over from an earlier keeper that is on its way out.
    pub(super) async fn take(path: &Path) -> io::Result<Self> {
        let end = Instant::now() + LIMIT;
        loop {
            match PidLock::take(&path.join(KEEPER)) {
                Ok(lock) => return Ok(Self { path: path.to_owned(), _lock: lock }),
                Err(LockError::Held { .. }) if Instant::now() < end => {
                    sleep(Duration::from_millis(5)).await;
                }
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Binds the socket; one that a killed keeper left is replaced.
    pub(super) fn listen(&self) -> io::Result<AsyncFd<OwnedFd>> {
        let path = self.path.join(SOCKET);
        remove(&path)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        bind(&socket, &SocketAddrUnix::new(&path)?)?;
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600))?;
        listen(&socket, BACKLOG)?;
        packets::watched(socket)
    }

    /// Takes the socket away: who comes now finds none, and starts another zone.
    pub(super) fn close(&self) {
        if let Err(error) = remove(&self.path.join(SOCKET)) {
            eprintln!("gpu-zone-sandbox: cannot remove the zone's socket: {error}");
        }
    }

    /// Removes the folder, unless somebody is starting another zone of the name.
    pub(super) fn remove(self) {
        let start = File::options().read(true).write(true).open(self.path.join(START));
        if let Ok(start) = start
            && flock(&start, FlockOperation::NonBlockingLockExclusive).is_ok()
        {
            // The lock is the file's: who waits for it sees that the file is another.
            let _ = remove(&self.path);
        }
    }
}
