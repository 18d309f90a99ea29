//! A zone whose processes are numbered on their own: three processes stand in a row.
//!
//! The first stays outside, is what the starter waits for and signals, and passes both on. The
//! second is the zone's process 1: it collects orphans, and the zone ends with it. The third is
//! the program. The second dies with the first, however that dies.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitOptions, WaitStatus, kill_process,
    set_parent_process_death_signal, wait, waitid,
};

use super::own::{Owner, Starts};
use super::{EXIT_FAILED, Inner, Setup, SetupError, finish, programs, say, step, unrunnable};
use crate::sandbox::spec::{Feature, Report};
use crate::zones::single::Single;

/// What is passed on, and the word that a child ended.
const HANDLED: [i32; 9] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGTSTP,
    libc::SIGCONT,
    libc::SIGCHLD,
];

/// How long a program may take to stop when it is told to.
const STOP_LIMIT: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Where a process of the row stands, and its end of the pipe on which the inner one says that
/// the program has stopped. The outer one stops then, for whoever waits for a stopped job sees
/// no other; process 1 of a zone cannot be stopped.
#[derive(Debug)]
enum Place {
    Outside(PipeReader),
    Inside {
        stopped: PipeWriter,
        /// Where the launcher owns the zone: tells it how the start goes.
        starts: Option<Starts>,
    },
}

impl Place {
    /// In process 1, when the program's own process has it, too, which lets go of it by becoming the
    /// program.
    fn leave_the_start(&mut self) {
        if let Self::Inside { starts, .. } = self {
            *starts = None;
        }
    }

    fn has_failed(&mut self) {
        if let Self::Inside { starts: Some(starts), .. } = self {
            starts.have_failed();
        }
    }
}

pub(super) fn supervise(
    setup: Setup,
    owned: &mut Option<Single>,
    report: &mut File,
    runs: Inner,
) -> Result<u8, SetupError> {
    let (handled, before) = hold_back().map_err(step("cannot hold back signals"))?;
    let (dies_with, alive) = io::pipe().map_err(step("cannot make a pipe"))?;
    let (stops, stopped) = io::pipe().map_err(step("cannot make a pipe"))?;
    let (owner, starts) = match owned.as_mut().map(Owner::new).transpose()? {
        Some((owner, starts)) => (Some(owner), Some(starts)),
        None => (None, None),
    };
    match fork().map_err(step("cannot start the zone's first process"))? {
        Some(child) => {
            drop((dies_with, stopped, starts));
            match owner {
                Some(owner) => owner.follow(child, report),
                None => let_go(report),
            }
            let code = attend(child, &handled, &mut Place::Outside(stops));
            drop(alive);
            Ok(code)
        }
        None => {
            drop((alive, stops, owner));
            // It is the first process's, and the host's folder with it.
            *owned = None;
            let mut place = Place::Inside { stopped, starts };
            let dies_with = dies_with.into();
            let masks = (&handled, before);
            let code = match first(setup, report, runs, &dies_with, masks, &mut place) {
                Ok(code) => code,
                Err(error) => {
                    say(report, &Report::Failed(error.to_string()));
                    place.has_failed();
                    EXIT_FAILED
                }
            };
            // Not a return: what the caller would do next is the first process's to do.
            std::process::exit(i32::from(code))
        }
    }
}

/// In the second process.
fn first(
    mut setup: Setup,
    report: &mut File,
    runs: Inner,
    dies_with: &OwnedFd,
    (handled, before): (&libc::sigset_t, libc::sigset_t),
    place: &mut Place,
) -> Result<u8, SetupError> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(step("cannot tie the zone to its launcher"))?;
    // The launcher may have ended before that; then the pipe's other end is closed.
    let mut ends = [PollFd::new(dies_with, PollFlags::empty())];
    if poll(&mut ends, Some(&Timespec::default())).map_err(step("cannot look at a pipe"))? > 0 {
        return Err(SetupError::Spec("the zone's launcher is gone".to_owned()));
    }
    if let (Inner::Requests(_), false) = (&runs, setup.has(Feature::Pid)) {
        let message = "a zone for several programs needs a pid namespace, which this host lacks";
        return Err(SetupError::Spec(message.to_owned()));
    }
    finish(&mut setup)?;
    say(report, &Report::Ready(std::mem::take(&mut setup.missing)));
    let mut program = match runs {
        Inner::Program(program) => program,
        Inner::Requests(requests) => {
            let_go(report);
            return programs::serve(requests, handled, before);
        }
    };
    // SAFETY: between fork and exec, only one system call is made, on a set that was moved in.
    unsafe { program.pre_exec(move || set_mask(&before)) };
    match fork().map_err(step("cannot start the program's process"))? {
        Some(child) => {
            let_go(report);
            place.leave_the_start();
            Ok(attend(child, handled, place))
        }
        None => {
            // Where there is no process 1 to die with, it dies with its parent.
            if !setup.has(Feature::Pid) {
                let _ = set_parent_process_death_signal(Some(Signal::KILL));
            }
            say(report, &unrunnable(&program.exec(), program.get_program()));
            place.has_failed();
            Ok(EXIT_FAILED)
        }
    }
}

/// From here on only the program's process can report, and its silence is the good news.
pub(super) fn let_go(report: &mut File) {
    if let Ok(null) = File::open("/dev/null") {
        *report = null;
    }
}

/// Passes signals on to `child` and collects whoever ends, until it is `child`.
fn attend(child: Pid, handled: &libc::sigset_t, place: &mut Place) -> u8 {
    loop {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if pid == child {
                return code_of(&status);
            }
        }
        let mut info = MaybeUninit::<libc::siginfo_t>::uninit();
        // SAFETY: `handled` is initialised, and `info` has room for what the call writes.
        let number = unsafe { libc::sigwaitinfo(handled, info.as_mut_ptr()) };
        if number == libc::SIGCHLD {
            tell_of_stop(child, place);
        }
        if number < 0 || number == libc::SIGCHLD {
            continue;
        }
        if number == libc::SIGTSTP {
            // Of an earlier stop, which is over.
            let _ = has_stopped(place, &Timespec::default());
        }
        // SAFETY: a call that did not fail has written `info`.
        let from_kernel = unsafe { info.assume_init() }.si_code > 0;
        // What a terminal's key sends goes to the program, too, which is in its foreground.
        if let Some(signal) = Signal::from_named_raw(number)
            && (!from_kernel || signal == Signal::CONT)
        {
            let _ = kill_process(child, signal);
        }
        if number == libc::SIGTSTP && has_stopped(place, &STOP_LIMIT) {
            let _ = kill_process(rustix::process::getpid(), Signal::STOP);
        }
    }
}

/// A program's exit code, as shells have it.
pub(super) fn code_of(status: &WaitStatus) -> u8 {
    let code = status.exit_status().and_then(|code| u8::try_from(code & 0xff).ok());
    let signal = status.terminating_signal().and_then(|n| u8::try_from(n).ok());
    code.or(signal.map(|n| n.saturating_add(128))).unwrap_or(EXIT_FAILED)
}

/// Inside, says that the program has stopped, if that is what its parent was woken for.
fn tell_of_stop(child: Pid, place: &mut Place) {
    let Place::Inside { stopped, .. } = place else { return };
    let looking = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG;
    if matches!(waitid(WaitId::Pid(child), looking), Ok(Some(status)) if status.stopped()) {
        // With nobody left to hear it, the zone ends anyway.
        let _ = stopped.write_all(b"s");
    }
}

/// Outside, whether the program stops within `limit`.
fn has_stopped(place: &mut Place, limit: &Timespec) -> bool {
    let Place::Outside(stops) = place else { return false };
    let mut word = [PollFd::new(&*stops, PollFlags::IN)];
    let said = poll(&mut word, Some(limit)).is_ok_and(|ready| ready > 0);
    let said = said && word.iter().any(|word| word.revents().contains(PollFlags::IN));
    said && stops.read(&mut [0; 64]).is_ok_and(|bytes| bytes > 0)
}

/// The child's number, or `None` in the child.
fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: this process has one thread, so the child may do what this process may.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(Pid::from_raw(pid)),
    }
}

/// Signals that wait until they are asked for, and those that waited before.
fn hold_back() -> io::Result<(libc::sigset_t, libc::sigset_t)> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigemptyset` initialises the set, the numbers added to it are signals' numbers,
    // and `before` has room for a set, which a call that does not fail writes.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for number in HANDLED {
            libc::sigaddset(set.as_mut_ptr(), number);
        }
        let set = set.assume_init();
        match libc::sigprocmask(libc::SIG_BLOCK, &raw const set, before.as_mut_ptr()) {
            0 => Ok((set, before.assume_init())),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

pub(super) fn set_mask(mask: &libc::sigset_t) -> io::Result<()> {
    // SAFETY: the set is initialised; a null pointer says that the old one is not wanted.
    match unsafe {
        libc::sigprocmask(libc::SIG_SETMASK, std::ptr::from_ref(mask), std::ptr::null_mut())
    } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
