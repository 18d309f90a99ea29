//! A slot's socket: where programs of a lease connect.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use gpuzone_wire::control::{SlotAccess, WorkerOrder};
use gpuzone_zone::files::{mounted_dir, private_dir, remove};
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

/// Where a lease appears.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    dir: PathBuf,
    access: SlotAccess,
}

impl Slot {
    /// The slot of an order.
    pub(crate) fn of(order: &WorkerOrder) -> Self {
        Self { dir: order.slot_dir.clone(), access: order.access }
    }
}

/// Binds a fresh socket and puts it in the place of the one that was there, if any: there is no
/// moment without a socket, and programs that connect from now on wait for the next worker.
pub(crate) fn serve(slot: &Slot) -> Result<OwnedFd, SlotError> {
    let Slot { dir: slot, access } = slot;
    let fresh = || -> io::Result<OwnedFd> {
        let mode = match access {
            SlotAccess::Private => {
                private_dir(slot)?;
                0o600
            }
            SlotAccess::Mounted => {
                mounted_dir(slot)?;
                0o666
            }
        };
        // Not longer than the final name, whose length was checked.
        let new = slot.join("new.sock");
        remove(&new)?;
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
        bind(&socket, &SocketAddrUnix::new(&new)?)?;
        std::fs::set_permissions(&new, PermissionsExt::from_mode(mode))?;
        listen(&socket, BACKLOG)?;
        std::fs::rename(&new, slot.join(SOCKET))?;
        Ok(socket)
    };
    fresh().map_err(|source| SlotError { slot: slot.to_owned(), source })
}

/// Takes the slot's socket away, and the folder where it came with the lease: one that is mounted
/// somewhere belongs to whoever mounted it.
pub(crate) fn close(slot: &Slot) -> io::Result<()> {
    remove(&slot.dir.join(SOCKET))?;
    remove(&slot.dir.join("new.sock"))?;
    match (slot.access, &slot.dir) {
        (SlotAccess::Mounted, _) => Ok(()),
        (SlotAccess::Private, dir) => match std::fs::remove_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn a_mounted_slot_is_open_and_outlives_its_lease() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("slot-1").join("1");
        let slot = Slot { dir: dir.clone(), access: SlotAccess::Mounted };
        let _socket = serve(&slot).unwrap();
        let inode = std::fs::metadata(&dir).unwrap().ino();
        assert_eq!((mode(&dir), mode(&dir.join(SOCKET))), (0o755, 0o666));
        assert_eq!(mode(&scratch.path().join("slot-1")), 0o700);
        // A fresh worker takes over in the same folder, which a container has mounted.
        let _next = serve(&slot).unwrap();
        close(&slot).unwrap();
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
        assert_eq!(std::fs::metadata(&dir).unwrap().ino(), inode);
    }

    #[test]
    fn a_private_slot_is_closed_and_goes_with_its_lease() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("lease");
        let slot = Slot { dir: dir.clone(), access: SlotAccess::Private };
        let _socket = serve(&slot).unwrap();
        assert_eq!((mode(&dir), mode(&dir.join(SOCKET))), (0o700, 0o600));
        close(&slot).unwrap();
        close(&slot).unwrap();
        assert!(!dir.exists());
    }
}
