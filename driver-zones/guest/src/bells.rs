//! What the two ends of a session that this machine sees wake each other with.

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

/// One that nobody has rung.
pub(crate) fn bell() -> io::Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

/// Rings it.
pub(crate) fn ring(bell: &OwnedFd) {
    // Full means that it rings already.
    let _ = rustix::io::write(bell, &1u64.to_ne_bytes());
}

/// Has `tell` say each time that `bell` was rung, until the other end of `socket` is closed.
pub(crate) fn carry(bell: &OwnedFd, socket: &OwnedFd, tell: impl Fn()) {
    loop {
        let mut fds = [
            PollFd::new(bell, PollFlags::IN),
            PollFd::new(socket, PollFlags::IN | PollFlags::RDHUP),
        ];
        if poll(&mut fds, None).is_err() {
            continue;
        }
        let [rung, closed] = fds.map(|fd| !fd.revents().is_empty());
        if rung {
            let mut count = [0; 8];
            let _ = rustix::io::read(bell, &mut count);
            tell();
        }
        if closed {
            return;
        }
    }
}
