//! What the program reads and writes, carried over ports of their own.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::process::ChildStdin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

/// As many bytes as are carried at a time.
const PIECE: usize = 32 << 10;
const AGAIN: Duration = Duration::from_millis(10);
/// Nobody has said yet where the input ends.
const OPEN: u64 = u64::MAX;

/// The program's input. It ends where the host says, whatever a port says of its other end.
pub(super) struct Input {
    end: Arc<AtomicU64>,
    told: OwnedFd,
}

impl Input {
    /// Carries what comes at `port`, on a thread of its own.
    pub(super) fn carry(port: File, program: ChildStdin) -> io::Result<Self> {
        let end = Arc::new(AtomicU64::new(OPEN));
        let told = eventfd(0, EventfdFlags::CLOEXEC)?;
        let (at, bell) = (Arc::clone(&end), told.try_clone()?);
        std::thread::spawn(move || carry(port, program, &at, &bell));
        Ok(Self { end, told })
    }

    /// It ends after so many bytes.
    pub(super) fn ends(&self, bytes: u64) {
        self.end.store(bytes, Ordering::SeqCst);
        let _ = rustix::io::write(&self.told, &1u64.to_ne_bytes());
    }
}

fn carry(mut port: File, program: ChildStdin, end: &AtomicU64, told: &OwnedFd) {
    let (mut program, mut passed, mut piece) = (Some(program), 0u64, vec![0; PIECE]);
    while passed < end.load(Ordering::SeqCst) {
        if end.load(Ordering::SeqCst) == OPEN {
            let mut fds = [PollFd::new(&port, PollFlags::IN), PollFd::new(told, PollFlags::IN)];
            if poll(&mut fds, None).is_err() || !fds[0].revents().contains(PollFlags::IN) {
                continue;
            }
        }
        match port.read(&mut piece) {
            // It reads as ended until the kernel has heard that the host's end is open.
            Ok(0) => std::thread::sleep(AGAIN),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
            Ok(length) => {
                passed += length as u64;
                let bytes = piece.get(..length).unwrap_or_default();
                // A program that does not want it any more still has it taken away.
                if program.as_mut().is_some_and(|program| program.write_all(bytes).is_err()) {
                    program = None;
                }
            }
        }
    }
}

/// One of the program's outputs.
pub(super) struct Output {
    carrier: JoinHandle<u64>,
    unwanted: Unwanted,
}

/// Says that nobody reads an output any more.
#[derive(Clone, Default)]
pub(super) struct Unwanted(Arc<AtomicBool>);

impl Unwanted {
    /// The program's next write but one fails, as into a pipe without a reader.
    pub(super) fn say(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn is_said(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

impl Output {
    /// Carries it to `port`, on a thread of its own.
    pub(super) fn carry(program: OwnedFd, mut port: File) -> Self {
        let unwanted = Unwanted::default();
        let told = unwanted.clone();
        let carrier = std::thread::spawn(move || {
            let (mut program, mut passed, mut piece) = (File::from(program), 0, vec![0; PIECE]);
            while let Ok(length @ 1..) = program.read(&mut piece) {
                let bytes = piece.get(..length).unwrap_or_default();
                if told.is_said() || port.write_all(bytes).is_err() {
                    break;
                }
                passed += length as u64;
            }
            passed
        });
        Self { carrier, unwanted }
    }

    pub(super) fn unwanted(&self) -> Unwanted {
        self.unwanted.clone()
    }

    /// Waits for its end; how many bytes of it were carried.
    pub(super) fn finish(self) -> u64 {
        self.carrier.join().unwrap_or_default()
    }
}
