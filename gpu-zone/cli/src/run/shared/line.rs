//! A connection to a zone's keeper: messages of JSON, with open files.
//!
//! The socket keeps messages apart (`SOCK_SEQPACKET`): what one read returns is one message.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, sendmsg, socket_with, socketpair,
};
use serde_json::Value;
use tokio::io::Interest;
use tokio::net::UnixStream;

/// Longest message.
const LONGEST: usize = 64 << 10;
/// Words, and three standard streams.
const MOST_FILES: usize = 4;

pub(crate) struct Line(UnixStream);

impl Line {
    /// To the keeper that serves `socket`.
    pub(crate) fn connect(socket: &Path) -> io::Result<Self> {
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let line = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
        connect(&line, &SocketAddrUnix::new(socket)?)?;
        Self::of(line)
    }

    /// With its other end, for a keeper that is about to be started.
    pub(crate) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let (ours, theirs) = socketpair(family, kind, SocketFlags::CLOEXEC, None)?;
        Ok((Self::of(ours)?, theirs))
    }

    fn of(line: OwnedFd) -> io::Result<Self> {
        let line = std::os::unix::net::UnixStream::from(line);
        line.set_nonblocking(true)?;
        Ok(Self(UnixStream::from_std(line)?))
    }

    /// Says something; files go along.
    pub(crate) async fn say(&self, text: &[u8], files: &[OwnedFd]) -> io::Result<()> {
        let send = || {
            let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !files.is_empty() {
                control.push(SendAncillaryMessage::ScmRights(&files));
            }
            let flags = SendFlags::NOSIGNAL;
            Ok(sendmsg(&self.0, &[IoSlice::new(text)], &mut control, flags).map(drop)?)
        };
        self.0.async_io(Interest::WRITABLE, send).await
    }

    /// The next message; `None` when nobody is at the other end any more.
    pub(crate) async fn hear(&self) -> io::Result<Option<Value>> {
        let mut text = vec![0; LONGEST];
        loop {
            self.0.readable().await?;
            match self.0.try_read(&mut text) {
                Ok(0) => return Ok(None),
                Ok(length) => return Ok(Some(serde_json::from_slice(&text[..length])?)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }
}
