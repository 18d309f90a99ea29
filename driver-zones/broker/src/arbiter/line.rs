//! The socket that a worker listens at for its turns, and the broker's end of it.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use gpuzone_wire::turn::{FromArbiter, FromWorker, MESSAGE};
use gpuzone_zone::files::remove;
use rustix::fd::{AsFd, BorrowedFd};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, connect,
    listen, recv, send, socket_with,
};

/// Binds a fresh socket at `path`, for a worker to listen at.
pub(crate) fn serve(path: &Path) -> io::Result<OwnedFd> {
    remove(path)?;
    let socket = socket()?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600))?;
    listen(&socket, 4)?;
    Ok(socket)
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// The broker's end of a worker's line.
#[derive(Debug)]
pub(super) struct Line {
    socket: OwnedFd,
}

/// Why a line is of no use any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum LineError {
    #[error("it was closed")]
    Closed,
    #[error("what came is no message")]
    NoMessage,
    #[error("{0}")]
    Io(Errno),
}

impl LineError {
    fn of(error: Errno) -> Self {
        match error {
            // The worker is gone, or never came round to accepting.
            Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN => Self::Closed,
            error => Self::Io(error),
        }
    }
}

impl Line {
    /// Connects to the worker that listens at `path`; it need not have come round to accepting.
    pub(super) fn connect(path: &Path) -> io::Result<Self> {
        let socket = socket()?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(Self { socket })
    }

    pub(super) fn send(&self, message: FromArbiter) -> Result<(), LineError> {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        send(&self.socket, &message.encode(), flags).map(drop).map_err(LineError::of)
    }

    /// The next message, if one is there.
    pub(super) fn receive(&self) -> Result<Option<FromWorker>, LineError> {
        // One byte more than a message has, so that a longer one is seen to be none.
        let mut packet = [0u8; MESSAGE + 1];
        match recv(&self.socket, &mut packet, RecvFlags::DONTWAIT) {
            Ok((0, _)) => Err(LineError::Closed),
            Ok((length, _)) => {
                let message = packet.get(..length).and_then(FromWorker::decode);
                message.map(Some).ok_or(LineError::NoMessage)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(error) => Err(LineError::of(error)),
        }
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
