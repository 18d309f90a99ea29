//! The program as a child of this process.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::io::FdFlags;
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, getpid, getppid, kill_process,
    set_parent_process_death_signal, waitid,
};
use tokio::process::{Child, Command};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::sleep;

use crate::error::{CliError, Kind};
use crate::run::program::Program;
use crate::run::sandbox::Zone;
use crate::run::signals::{Mask, Received};

/// How long a program may take to stop when it is told to.
const STOP_LIMIT: Duration = Duration::from_secs(1);
/// How often it is looked whether it has.
const STOP_LOOK: Duration = Duration::from_millis(5);

/// What a program inherits: a file that has no name, to be read from its beginning; `name` is what the kernel shows of it.
///
/// # Errors
/// When there is no memory for it.
pub(crate) fn in_memory(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file.into())
}

/// Starts the program with `environment` added to ours, and with the signals held back that
/// were before.
pub(crate) fn spawn(
    program: &Program,
    environment: &[(OsString, OsString)],
    zone: Option<&Zone>,
    mask: Mask,
) -> Result<Child, CliError> {
    let mut command = match zone {
        Some(zone) => in_zone(zone, program),
        None => {
            let mut command = Command::new(&program.file);
            command.arg0(&program.name).args(&program.arguments);
            command
        }
    };
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    let parent = getpid();
    // SAFETY: between fork and exec, both only make system calls and compare numbers; they
    // neither allocate nor take a lock.
    unsafe { command.pre_exec(move || die_with(parent).and_then(|()| mask.restore())) };
    command.spawn().map_err(|error| {
        let kind = match error.kind() {
            // The file was there a moment ago: what is missing is the interpreter it names.
            io::ErrorKind::NotFound => Kind::NoProgram,
            _ => Kind::NotExecutable,
        };
        let file = program.file.display();
        let hint = "a script's first line names its interpreter; a program has to be built for \
                    this machine";
        CliError::new(kind, format!("cannot start '{file}': {error}")).hint(hint)
    })
}

/// The launcher, which is given descriptors under the numbers that they have here.
fn in_zone(zone: &Zone, program: &Program) -> Command {
    let descriptors = [zone.orders.as_raw_fd(), zone.report.as_raw_fd()];
    let secrets = zone.secrets.as_ref().map(AsRawFd::as_raw_fd);
    let mut command = Command::new(&zone.launcher);
    command.arg("--orders").arg(descriptors[0].to_string());
    command.arg("--report").arg(descriptors[1].to_string());
    command.arg("--").arg(&program.file).arg(&program.name).args(&program.arguments);
    let hand_over = move || {
        for number in descriptors.into_iter().chain(secrets) {
            // SAFETY: `zone` outlives the start, so the descriptor is open in the child, too.
            let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
            rustix::io::fcntl_setfd(descriptor, FdFlags::empty())?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec, it only makes system calls.
    unsafe { command.pre_exec(hand_over) };
    command
}

/// What a keeper's process has from the one that started it.
#[derive(Debug)]
pub(crate) struct Inherited {
    /// Where it says once how its start went.
    pub(crate) report: OwnedFd,
    /// The first program's connection.
    pub(crate) first: OwnedFd,
}

impl Inherited {
    /// The descriptors with these numbers, if they are open; nobody else in this process may
    /// have them.
    pub(crate) fn take([report, first]: [RawFd; 2]) -> io::Result<Self> {
        if report == first || report <= 2 || first <= 2 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for number in [report, first] {
            // SAFETY: asks for the flags of a number, whether it is open or not.
            if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // SAFETY: both are open, differ, and were inherited for this; this is called before
        // anything else is opened.
        let own = |number| unsafe { OwnedFd::from_raw_fd(number) };
        Ok(Self { report: own(report), first: own(first) })
    }
}

/// Starts this program once more as a zone's keeper, which outlives this process: with the same
/// words and two descriptors, in a session of its own.
pub(crate) fn spawn_keeper(
    report: &OwnedFd,
    first: &OwnedFd,
    log: File,
    mask: Mask,
) -> io::Result<()> {
    let descriptors = [report.as_raw_fd(), first.as_raw_fd()];
    let mut command = std::process::Command::new(std::env::current_exe()?);
    command.arg("--keeper").arg(format!("{},{}", descriptors[0], descriptors[1]));
    command.args(std::env::args_os().skip(1));
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let prepare = move || {
        rustix::process::setsid()?;
        for number in descriptors {
            // SAFETY: both outlive the start, so they are open in the child, too.
            let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
            rustix::io::fcntl_setfd(descriptor, FdFlags::empty())?;
        }
        mask.restore()
    };
    // SAFETY: between fork and exec, it only makes system calls.
    unsafe { command.pre_exec(prepare) };
    // It is waited for by whoever comes after this process.
    command.spawn().map(drop)
}

/// The program is killed when this process ends, however that happens. (The kernel drops the
/// order when a program with another user's rights is executed; the lease ends all the same.)
fn die_with(parent: Pid) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // The parent may have ended before the order was given.
    if getppid() == Some(parent) { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
}

/// Waits for the program, passing signals on; its exit code, or 128 and the number of the
/// signal that ended it, as shells have it.
pub(crate) async fn wait(
    mut child: Child,
    mut signals: UnboundedReceiver<Received>,
) -> Result<u8, CliError> {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    let mut may_stop_until = None;
    loop {
        tokio::select! {
            status = child.wait() => {
                let status = status.map_err(|error| CliError::caused(Kind::Internal, &error))?;
                return Ok(code_of(status));
            }
            Some(received) = signals.recv() => {
                if let Some(pid) = pid {
                    pass_on(received, pid);
                    if received.number == Signal::TSTP.as_raw() {
                        may_stop_until = Some(Instant::now() + STOP_LIMIT);
                    }
                }
            }
            () = sleep(STOP_LOOK), if may_stop_until.is_some() => {
                let stopped = pid.is_some_and(has_stopped);
                if stopped {
                    // So that the shell sees a stopped job, this process stops, too.
                    let _ = kill_process(getpid(), Signal::STOP);
                }
                may_stop_until = may_stop_until.filter(|end| !stopped && Instant::now() < *end);
            }
        }
    }
}

/// Whether the program has stopped. It need not have: it may handle the signal, and the kernel
/// stops no process of a group that no shell looks after, for nobody would continue it.
fn has_stopped(pid: Pid) -> bool {
    let looking = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    matches!(waitid(WaitId::Pid(pid), looking), Ok(Some(status)) if status.stopped())
}

fn pass_on(received: Received, pid: Pid) {
    let Some(signal) = Signal::from_named_raw(received.number) else { return };
    // SIGCONT is passed on always: whoever woke this process wants the program awake, too.
    if !received.from_kernel || signal == Signal::CONT {
        // It may just have ended; then there is nobody left to tell.
        let _ = kill_process(pid, signal);
    }
}

fn code_of(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code & 0xff).unwrap_or(u8::MAX),
        (None, Some(signal)) => code_of_signal(signal),
        (None, None) => Kind::Internal.exit_code(),
    }
}

/// 128 and the signal's number.
pub(crate) fn code_of_signal(signal: i32) -> u8 {
    u8::try_from(signal).unwrap_or(0).saturating_add(128)
}
