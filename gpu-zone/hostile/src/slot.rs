//! Attacks at the slot's socket.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use gpuzone_wire::hello::SOCKET;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, SocketAddrUnix,
    SocketFlags, SocketType, connect as connect_to, sendmsg, shutdown, socket_with,
};

use crate::arena::{Arena, Dice};
use crate::line::Line;

/// Longest time that a full socket is waited for.
const PATIENCE: Duration = Duration::from_millis(100);

/// A raw connection; never waits for long.
fn dial(arena: &Arena) -> Result<OwnedFd, Errno> {
    let path: PathBuf = arena.slot.join(SOCKET);
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    use rustix::net::sockopt::{Timeout, set_socket_timeout};
    set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
    connect_to(&socket, &SocketAddrUnix::new(&path)?)?;
    Ok(socket)
}

fn send(socket: impl AsFd, bytes: &[u8]) -> Result<usize, Errno> {
    let mut none = SendAncillaryBuffer::default();
    sendmsg(socket, &[IoSlice::new(bytes)], &mut none, SendFlags::NOSIGNAL)
}

pub(crate) fn connect(arena: &Arena) -> anyhow::Result<String> {
    let most = arena.pick(1_000, 10_000);
    let (mut connected, mut refused) = (0, 0);
    while connected + refused < most || arena.goes_on() {
        match dial(arena) {
            Ok(socket) => {
                connected += 1;
                drop(socket);
            }
            Err(_) => refused += 1,
        }
    }
    Ok(format!("connected={connected} refused={refused}"))
}

pub(crate) fn hold(arena: &Arena) -> anyhow::Result<String> {
    let most = arena.pick(500, 10_000);
    let (mut held, mut refused) = (Vec::new(), 0);
    while held.len() < most && arena.goes_on() {
        match dial(arena) {
            Ok(socket) => held.push(socket),
            Err(_) => refused += 1,
        }
    }
    arena.wait();
    Ok(format!("held={} refused={refused}", held.len()))
}

pub(crate) fn half_hello(arena: &Arena) -> anyhow::Result<String> {
    let mut dice = Dice::new(0x6861_6c66);
    let good = br#"{"version":1,"pid":1}"#;
    let deep = [b'['; 100_000];
    let (mut held, mut sent) = (Vec::new(), 0);
    while arena.goes_on() {
        let Ok(socket) = dial(arena) else { continue };
        let cut = usize::try_from(dice.below(good.len() as u64))?;
        let noise: Vec<u8> = (0..dice.below(4096)).map(|_| dice.next().to_le_bytes()[3]).collect();
        let message: &[u8] = match dice.below(7) {
            0 => good.get(..cut).unwrap_or_default(),
            1 => &noise,
            2 => &deep,
            3 => b"",
            4 => br#"{"version":4294967295,"pid":4294967295}"#,
            5 => br#"{"version":1,"pid":1,"version":2,"more":{}}"#,
            _ => good,
        };
        if send(&socket, message).is_ok() {
            sent += 1;
        }
        match dice.below(3) {
            // One half of them stays open, each in its own way.
            0 => drop(shutdown(&socket, Shutdown::Write)),
            1 => drop(shutdown(&socket, Shutdown::Read)),
            _ => {}
        }
        if held.len() < 40 && dice.below(2) == 0 {
            held.push(socket);
        }
    }
    drop(held);
    Line::open(&arena.slot).context("an honest greeting is not heard any more")?;
    Ok(format!("sent={sent}"))
}

pub(crate) fn descriptors(arena: &Arena) -> anyhow::Result<String> {
    // SCM_MAX_FD of the kernel.
    const MOST: usize = 253;
    let file = std::fs::File::open("/dev/null")?;
    let files: Vec<BorrowedFd<'_>> = std::iter::repeat_n(file.as_fd(), MOST).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let with_files = |socket: &OwnedFd, bytes: &[u8], space: &mut [MaybeUninit<u8>]| {
        let mut ancillary = SendAncillaryBuffer::new(space);
        ancillary.push(SendAncillaryMessage::ScmRights(&files));
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags)
    };
    let (mut greeted, mut after, mut stuck) = (0, 0, Vec::new());
    while arena.goes_on() {
        let Ok(socket) = dial(arena) else { continue };
        greeted += u32::from(with_files(&socket, br#"{"version":1,"pid":1}"#, &mut space).is_ok());
        // Nobody reads these: they lie in the socket until it is closed.
        for _ in 0..8 {
            after += u32::from(with_files(&socket, b"x", &mut space).is_ok());
        }
        if stuck.len() < 16 {
            stuck.push(socket);
        }
    }
    ensure!(greeted > 0, "no message with descriptors was taken at all");
    Ok(format!("greetings={greeted} messages={after}"))
}

pub(crate) fn chatter(arena: &Arena) -> anyhow::Result<String> {
    let mut sent = 0_u64;
    let lines: Vec<Line> =
        (0..4).map(|_| Line::open(&arena.slot)).collect::<anyhow::Result<_>>()?;
    let large = vec![b'x'; 64 << 10];
    while arena.goes_on() {
        for line in &lines {
            for message in [&b"y"[..], &large, b""] {
                let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
                let mut none = SendAncillaryBuffer::default();
                let message = [IoSlice::new(message)];
                sent += u64::from(sendmsg(&line.socket, &message, &mut none, flags).is_ok());
            }
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    for line in &lines {
        // Half an end: the tenant still listens and says no more.
        let _ = shutdown(&line.socket, Shutdown::Write);
    }
    lines.iter().try_for_each(Line::ends)?;
    Ok(format!("sent={sent}"))
}
