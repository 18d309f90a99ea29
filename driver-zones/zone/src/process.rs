use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open, pidfd_send_signal, waitid,
};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::ProcessId;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// It was not this process's child, so the kernel does not say.
    Unknown,
}

/// A process that is held by its pidfd: a child of this process, or one that was found again.
#[derive(Debug)]
pub struct Process {
    id: ProcessId,
    pidfd: OwnedFd,
    exit: Mutex<Option<Exit>>,
}

impl Process {
    /// Takes hold of the process `id`; `None` when it is gone.
    ///
    /// # Errors
    /// When the kernel refuses a pidfd, or `/proc` cannot be read.
    pub fn find(id: ProcessId) -> io::Result<Option<Self>> {
        let Some(pid) = id.raw() else { return Ok(None) };
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(Errno::SRCH) => return Ok(None),
            // A pid that is some thread's number, not a process's (pidfd_open(2)).
            Err(Errno::INVAL | Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Looked at after the pidfd is open: what is alive under the number now is what it holds.
        if !id.is_alive()? {
            return Ok(None);
        }
        Ok(Some(Self { id, pidfd, exit: Mutex::new(None) }))
    }

    /// Takes hold of a child that was just started and not yet waited for.
    pub(crate) fn of_child(pid: u32) -> io::Result<Self> {
        let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "not a process number");
        let raw = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
        let pidfd = pidfd_open(raw.ok_or_else(invalid)?, PidfdFlags::empty())?;
        let id = match ProcessId::of(pid)? {
            Some(id) => id,
            // It ended already; an identity that no living process has says so from now on.
            None => ProcessId { pid, start_time: 0, boot: crate::BootId::current()? },
        };
        Ok(Self { id, pidfd, exit: Mutex::new(None) })
    }

    /// Which process it is.
    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.id.pid
    }

    /// What holds it, for others to watch it by.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Sends a signal; one that is gone gets none, which is no error.
    ///
    /// # Errors
    /// When this process may not signal it.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether it ended.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn is_gone(&self) -> io::Result<bool> {
        has_ended(self.pidfd.as_fd())
    }

    /// Waits until it ended, and takes a child's exit from the kernel. May be called by several
    /// at once and again later; all get the same answer.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub async fn exited(&self) -> io::Result<Exit> {
        // A duplicate, for epoll takes a descriptor's number only once.
        let duplicate = self.pidfd.try_clone()?;
        // SAFETY: the `OwnedFd` is moved in, so it stays the same open descriptor until dropped.
        let watched = unsafe { AsyncFd::register_with_interest(duplicate, Interest::READABLE)? };
        let _ready = watched.readable().await?;
        // Held over the call: the kernel tells a child's exit once.
        let mut known = self.exit.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(exit) = *known {
            return Ok(exit);
        }
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let status = match waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
            Ok(status) => status,
            Err(Errno::CHILD) => None,
            Err(error) => return Err(error.into()),
        };
        let exit = status.as_ref().map_or(Exit::Unknown, exit_of);
        *known = Some(exit);
        Ok(exit)
    }

    /// Waits for a child that is about to end, and takes its exit; for where nothing else runs.
    pub(crate) fn reap(&self) {
        let mut known = self.exit.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody else's child has a status for this process; then there is nothing to take.
        if known.is_none()
            && let Ok(Some(status)) =
                waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED)
        {
            *known = Some(exit_of(&status));
        }
    }

    /// Ends it and waits until it is gone: with SIGTERM first when there is a `grace`, with
    /// SIGKILL when that did not do, or at once.
    ///
    /// # Errors
    /// When this process may not signal it, or the kernel does not answer.
    pub async fn end(&self, grace: Option<Duration>) -> io::Result<Exit> {
        if let Some(grace) = grace {
            self.signal(Signal::TERM)?;
            if let Ok(exit) = tokio::time::timeout(grace, self.exited()).await {
                return exit;
            }
        }
        self.signal(Signal::KILL)?;
        self.exited().await
    }
}

/// Whether the process behind a pidfd has ended. Whoever has the pidfd may ask.
pub(crate) fn has_ended(pidfd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut ends = [PollFd::new(&pidfd, PollFlags::IN)];
    Ok(poll(&mut ends, Some(&Timespec::default()))? > 0)
}

fn exit_of(status: &WaitIdStatus) -> Exit {
    let code = status.exit_status().map(Exit::Code);
    code.or(status.terminating_signal().map(Exit::Signal)).unwrap_or(Exit::Unknown)
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Unknown => f.write_str("an exit that the kernel did not report"),
        }
    }
}
