//! Small messages with open files, over sockets that keep messages apart (`SOCK_SEQPACKET`).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Longest message.
pub(crate) const LONGEST: usize = 64 << 10;
/// Most open files with one message.
pub(crate) const MOST_FILES: usize = 6;

/// A message, and the files that came with it.
#[derive(Debug)]
pub(crate) struct Packet {
    pub(crate) text: Vec<u8>,
    pub(crate) files: Vec<OwnedFd>,
}

/// Two ends of a new connection.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    Ok(socketpair(family, kind, SocketFlags::CLOEXEC, None)?)
}

/// The next message, waited for; `None` at the end. One that is too long, or comes with more files
/// than [`MOST_FILES`], is an error.
pub(crate) fn receive(socket: impl AsFd) -> io::Result<Option<Packet>> {
    receive_with(socket, RecvFlags::empty())
}

/// The next message, from a task.
pub(crate) async fn receive_soon(socket: &AsyncFd<OwnedFd>) -> io::Result<Option<Packet>> {
    let now = |socket: &OwnedFd| receive_with(socket, RecvFlags::DONTWAIT);
    socket.async_io(Interest::READABLE, now).await
}

/// A socket that a task waits for, to read from it and to write to it.
pub(crate) fn watched(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the `OwnedFd` is moved in, so it stays the same open descriptor until dropped.
    Ok(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE | Interest::WRITABLE) }?)
}

fn receive_with(socket: impl AsFd, flags: RecvFlags) -> io::Result<Option<Packet>> {
    let mut text = vec![0; LONGEST + 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let (length, flags) = loop {
        let mut slices = [IoSliceMut::new(&mut text)];
        match recvmsg(&socket, &mut slices, &mut control, flags | RecvFlags::CMSG_CLOEXEC) {
            Ok(message) => break (message.bytes, message.flags),
            Err(Errno::INTR) => {}
            // The other end went away with something unread.
            Err(Errno::CONNRESET) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    };
    let mut files = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            files.extend(received);
        }
    }
    match length {
        0 => Ok(None),
        length if length > LONGEST || flags.contains(ReturnFlags::CTRUNC) => {
            Err(io::ErrorKind::InvalidData.into())
        }
        length => {
            text.truncate(length);
            Ok(Some(Packet { text, files }))
        }
    }
}

/// Sends a message without waiting for room; files go along.
pub(crate) fn send(socket: impl AsFd, text: &[u8], files: &[OwnedFd]) -> io::Result<()> {
    let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    send_with(socket, text, &files, SendFlags::DONTWAIT)
}

/// Sends a message from a task, which waits for room. `socket` is watched for that, too.
pub(crate) async fn send_soon(
    socket: &AsyncFd<OwnedFd>,
    text: &[u8],
    files: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let now = |socket: &OwnedFd| send_with(socket, text, files, SendFlags::DONTWAIT);
    socket.async_io(Interest::WRITABLE, now).await
}

/// Sends a message that must not be lost.
pub(crate) fn send_for_sure(socket: impl AsFd, text: &[u8]) -> io::Result<()> {
    send_with(socket, text, &[], SendFlags::empty())
}

fn send_with(
    socket: impl AsFd,
    text: &[u8],
    files: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    sendmsg(&socket, &[IoSlice::new(text)], &mut control, flags | SendFlags::NOSIGNAL)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_stay_apart_and_files_go_along() {
        let (a, b) = pair().unwrap();
        let (read, write) = std::io::pipe().unwrap();
        send(&a, b"one", &[write.into()]).unwrap();
        send(&a, b"two", &[]).unwrap();
        let one = receive(&b).unwrap().unwrap();
        assert_eq!((&one.text[..], one.files.len()), (&b"one"[..], 1));
        drop(one);
        assert_eq!(std::io::read_to_string(read).unwrap(), "", "the file was closed");
        assert_eq!(receive(&b).unwrap().unwrap().text, b"two");
        drop(a);
        assert!(receive(&b).unwrap().is_none());
    }

    #[test]
    fn a_message_with_more_files_than_it_may_have_is_no_message_and_they_are_closed() {
        let (a, b) = pair().unwrap();
        let (read, write) = std::io::pipe().unwrap();
        let files: Vec<OwnedFd> =
            (0..MOST_FILES + 7).map(|_| write.try_clone().unwrap().into()).collect();
        drop(write);
        let borrowed: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES + 7))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&borrowed)));
        sendmsg(&a, &[IoSlice::new(b"many")], &mut control, SendFlags::empty()).unwrap();
        drop(files);
        assert_eq!(receive(&b).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(std::io::read_to_string(read).unwrap(), "", "all are closed");
    }

    #[test]
    fn a_message_that_is_too_long_is_no_message() {
        let (a, b) = pair().unwrap();
        send(&a, &vec![0; LONGEST + 1], &[]).unwrap();
        assert!(receive(&b).is_err());
    }
}
