//! How a tenant process and a worker meet: one message each way over the slot's socket.
//! The socket stays open; when one side is gone, the other sees it there.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::ring::{RecordBytes, RingSizes};

/// The socket's name in a slot.
pub const SOCKET: &str = "cuda.sock";

/// Longest message either side reads, in bytes.
pub(crate) const MAX_MESSAGE: usize = 128 << 10;

/// From the tenant's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Its [`crate::spec::VERSION`].
    pub version: u32,
    /// Its process, as it sees itself; for logs only.
    pub pid: u32,
    /// The rings lie in memory that came with this message, and so did two bells: what wakes the
    /// worker, and what the worker rings. Said by a machine's first process in the place of a
    /// tenant in another machine, and refused from anybody else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<RingSizes>,
    /// It is said in the place of a tenant in another machine: nothing but the rings' memory can be
    /// handed over, and a wake costs that machine's attention.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub apart: bool,
}

/// Files that come with a [`Hello`] for a window, or with [`Welcome::Accepted`] to a tenant that is
/// apart: the rings' memory, what wakes who gets it is last, and what wakes the other side second.
pub const WINDOW_FILES: usize = 3;

/// From the worker; with [`Welcome::Accepted`] comes the file of the rings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Welcome {
    /// Come in.
    Accepted {
        /// How the rings are cut.
        sizes: RingSizes,
        /// How much a record of the tenant's may hold.
        #[serde(default)]
        record_bytes: RecordBytes,
        /// The driver's version, as `cuDriverGetVersion` has it.
        driver_version: i32,
        /// The lease's GPUs, in order.
        devices: Vec<DeviceInfo>,
    },
    /// No.
    Refused {
        /// Why, and what to do.
        reason: String,
    },
}

/// A GPU as the lease sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// Product name.
    pub name: String,
    /// As `cuDeviceGetUuid` has it.
    pub uuid: [u8; 16],
    /// The lease's memory on it, in bytes.
    pub memory: u64,
    /// Attributes and their values.
    pub attributes: Vec<(i32, i32)>,
}

/// Why the two did not meet.
#[derive(Debug, thiserror::Error)]
pub enum HelloError {
    /// The socket's path is too long for a socket.
    #[error("the slot's socket path '{0}' is longer than 107 bytes")]
    PathTooLong(String),
    /// Nobody answers there.
    #[error("nobody answers at the slot's socket: {0}")]
    Socket(#[from] io::Error),
    /// The message was no such message.
    #[error("the other end of the slot's socket does not speak this protocol")]
    NotUnderstood,
}

impl From<rustix::io::Errno> for HelloError {
    fn from(error: rustix::io::Errno) -> Self {
        Self::Socket(error.into())
    }
}

/// Connects to a slot's socket.
///
/// # Errors
/// When nobody listens there.
pub fn connect(path: &Path, timeout: Duration) -> Result<OwnedFd, HelloError> {
    let address = SocketAddrUnix::new(path)
        .map_err(|_| HelloError::PathTooLong(path.display().to_string()))?;
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    limit_waiting(&socket, timeout)?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket)
}

/// Bounds how long a message is waited for.
///
/// # Errors
/// When the kernel refuses.
pub fn limit_waiting(socket: impl AsFd, timeout: Duration) -> Result<(), HelloError> {
    use rustix::net::sockopt::{Timeout, set_socket_timeout};
    set_socket_timeout(&socket, Timeout::Recv, Some(timeout))?;
    set_socket_timeout(&socket, Timeout::Send, Some(timeout))?;
    Ok(())
}

/// Sends a message, with a file if there is one.
///
/// # Errors
/// When the other side is gone or does not read.
pub fn send<T: Serialize>(
    socket: impl AsFd,
    message: &T,
    file: Option<BorrowedFd<'_>>,
) -> Result<(), HelloError> {
    let files: Vec<BorrowedFd<'_>> = file.into_iter().collect();
    send_with(socket, message, &files)
}

/// Sends a message with up to [`WINDOW_FILES`] files.
///
/// # Errors
/// As [`send`].
pub fn send_with<T: Serialize>(
    socket: impl AsFd,
    message: &T,
    files: &[BorrowedFd<'_>],
) -> Result<(), HelloError> {
    let bytes = serde_json::to_vec(message).map_err(|_| HelloError::NotUnderstood)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(WINDOW_FILES))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(HelloError::NotUnderstood);
    }
    let sent = sendmsg(socket, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
    if sent == bytes.len() { Ok(()) } else { Err(HelloError::NotUnderstood) }
}

/// Receives a message and the file that came with it.
///
/// # Errors
/// When none came in time, or it was something else.
pub fn receive<T: DeserializeOwned>(socket: impl AsFd) -> Result<(T, Option<OwnedFd>), HelloError> {
    let (message, files) = receive_with(socket)?;
    Ok((message, files.into_iter().next()))
}

/// Receives a message and the files that came with it, [`WINDOW_FILES`] at most.
///
/// # Errors
/// As [`receive`].
pub fn receive_with<T: DeserializeOwned>(
    socket: impl AsFd,
) -> Result<(T, Vec<OwnedFd>), HelloError> {
    let mut bytes = vec![0u8; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(WINDOW_FILES))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let received = recvmsg(socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut files = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            files.extend(received);
        }
    }
    if received.bytes == 0 {
        return Err(HelloError::Socket(io::ErrorKind::ConnectionReset.into()));
    }
    let message = bytes.get(..received.bytes).unwrap_or(&[]);
    let message = serde_json::from_slice(message).map_err(|_| HelloError::NotUnderstood)?;
    Ok((message, files))
}

/// Hands over a file after the greeting, at once or not at all.
///
/// # Errors
/// When the other side is gone, or has not taken those before.
pub fn hand_over(socket: impl AsFd, file: BorrowedFd<'_>) -> Result<(), HelloError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let files = [file];
    ancillary.push(SendAncillaryMessage::ScmRights(&files));
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    sendmsg(socket, &[IoSlice::new(b"null")], &mut ancillary, flags)?;
    Ok(())
}

/// Takes the file that was handed over.
///
/// # Errors
/// When none came in time.
pub fn take_over(socket: impl AsFd) -> Result<OwnedFd, HelloError> {
    let ((), file) = receive(socket)?;
    file.ok_or(HelloError::NotUnderstood)
}

/// Whether the other end of a socket is closed.
pub fn is_closed(socket: impl AsFd) -> bool {
    let events = PollFlags::RDHUP;
    let mut fds = [PollFd::new(&socket, events)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
}
