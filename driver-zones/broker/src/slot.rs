//! A slot's socket: where programs of a lease connect.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use gpuzone_zone::files::{private_dir, remove};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};

/// How many programs may wait for a worker to accept them.
const BACKLOG: i32 = 128;
const SOCKET: &str = "cuda.sock";

/// Why a slot has no socket.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve the slot {}: {source}", .slot.display())]
pub(crate) struct SlotError {
    slot: PathBuf,
    source: io::Error,
}

/// Binds a fresh socket and puts it in the place of the one that was there, if any: there is no
/// moment without a socket, and programs that connect from now on wait for the next worker.
pub(crate) fn serve(slot: &Path) -> Result<OwnedFd, SlotError> {
    let fresh = || -> io::Result<OwnedFd> {
        private_dir(slot)?;
        // Not longer than the final name, whose length was checked.
        let new = slot.join("new.sock");
        remove(&new)?;
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
        bind(&socket, &SocketAddrUnix::new(&new)?)?;
        std::fs::set_permissions(&new, PermissionsExt::from_mode(0o600))?;
        listen(&socket, BACKLOG)?;
        std::fs::rename(&new, slot.join(SOCKET))?;
        Ok(socket)
    };
    fresh().map_err(|source| SlotError { slot: slot.to_owned(), source })
}

/// Takes the slot away.
pub(crate) fn close(slot: &Path) -> io::Result<()> {
    remove(&slot.join(SOCKET))?;
    remove(&slot.join("new.sock"))?;
    match std::fs::remove_dir(slot) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
