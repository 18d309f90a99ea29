use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::io::fcntl_dupfd_cloexec;

use crate::Process;

/// The number of the first descriptor of [`Launch::inherit`] in the new process.
pub const FIRST_INHERITED: RawFd = 3;

/// How a process is started: with exactly this and nothing else of the one that starts it.
///
/// It leads a session and process group of its own, so that a terminal's signals do not reach it
/// and it lives on when its starter dies; its working directory is `/` and its umask 077.
#[derive(Debug)]
pub struct Launch {
    /// What to run.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Its whole environment.
    pub environment: BTreeMap<String, String>,
    /// Standard input.
    pub stdin: OwnedFd,
    /// Standard output.
    pub stdout: OwnedFd,
    /// Standard error.
    pub stderr: OwnedFd,
    /// Descriptors that it gets as 3, 4 and so on.
    pub inherit: Vec<OwnedFd>,
}

/// Why a process could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The program cannot be run.
    #[error("cannot run {}; check that the file is there and executable", .program.display())]
    Program {
        /// Which.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its descriptors cannot be prepared.
    #[error("cannot prepare the descriptors of {}", .program.display())]
    Descriptors {
        /// Which.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It was started, but cannot be held; it was killed.
    #[error("cannot take hold of {} after its start", .program.display())]
    Hold {
        /// Which.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Launch {
    /// Starts the process. It exists when this returns, and its program was found.
    ///
    /// Call it from a thread that alone opens and closes descriptors at that time, or hand over
    /// no descriptors.
    ///
    /// # Errors
    /// When the program cannot be run. No process is left then.
    pub fn start(self) -> Result<Process, LaunchError> {
        let program = self.program;
        let descriptors = |source| LaunchError::Descriptors { program: program.clone(), source };
        // One past the last number that is handed over.
        let count = RawFd::try_from(self.inherit.len()).map_err(io::Error::other);
        let end = FIRST_INHERITED + count.map_err(descriptors)?;
        // Sources lie above all targets, so that no dup2 overwrites a source.
        let above = |fd: &OwnedFd| fcntl_dupfd_cloexec(fd, end).map_err(io::Error::from);
        let sources: Vec<OwnedFd> =
            self.inherit.iter().map(above).collect::<Result<_, _>>().map_err(descriptors)?;
        // Descriptors that `Command` opens for itself must not get a target's number either.
        let _placeholders = occupy(&self.stdin, end).map_err(descriptors)?;
        let raw: Vec<RawFd> = sources.iter().map(AsRawFd::as_raw_fd).collect();

        let mut command = Command::new(&program);
        command
            .args(&self.arguments)
            .env_clear()
            .envs(&self.environment)
            .current_dir("/")
            .stdin(Stdio::from(self.stdin))
            .stdout(Stdio::from(self.stdout))
            .stderr(Stdio::from(self.stderr));
        // SAFETY: the closure runs between fork and exec. It calls only system calls that are
        // async-signal-safe, allocates nothing, and `raw` was allocated before the fork.
        unsafe { command.pre_exec(move || prepare(&raw, end)) };
        let child = command.spawn();
        let mut child =
            child.map_err(|source| LaunchError::Program { program: program.clone(), source })?;
        Process::of_child(child.id()).map_err(|source| {
            // Nobody could end it later. Both fail only for a process that is gone.
            let _ = child.kill();
            let _ = child.wait();
            LaunchError::Hold { program: program.clone(), source }
        })
    }
}

/// Fills every free descriptor number below `end` until the result is dropped.
fn occupy(any: &OwnedFd, end: RawFd) -> io::Result<Vec<OwnedFd>> {
    let mut placeholders = Vec::new();
    loop {
        let next = fcntl_dupfd_cloexec(any, FIRST_INHERITED)?;
        if next.as_raw_fd() >= end {
            return Ok(placeholders);
        }
        placeholders.push(next);
    }
}

/// Makes the new process what [`Launch`] says; runs in it, before its program does.
fn prepare(sources: &[RawFd], end: RawFd) -> io::Result<()> {
    rustix::process::setsid()?;
    // SAFETY: umask only swaps a number of this process.
    unsafe { libc::umask(0o077) };
    for (source, target) in sources.iter().zip(FIRST_INHERITED..) {
        // SAFETY: dup2 on numbers; `source` is open, and what `target` was belongs to the parent's
        // table, of which this process has its own copy that nobody uses any more.
        if unsafe { libc::dup2(*source, target) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    let first = libc::c_long::from(end);
    let last = libc::c_long::from(i32::MAX);
    let flags = libc::c_long::from(libc::CLOSE_RANGE_CLOEXEC);
    // SAFETY: marks descriptors close-on-exec and touches no memory. What `Command` still needs
    // stays open until exec.
    if unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
