//! Process 1 of a zone for several programs: it starts them on request, and tells how they end.
//!
//! Requests come from the zone's keeper, over a socket that no program in the zone can see: this
//! process cannot be looked into, and hands nothing on but what belongs to the program. Each
//! program has a line to whoever asked for it: a byte on it is a signal for the program, its end
//! is the program's. When the keeper's socket closes, the zone ends.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{
    DumpableBehavior, Pid, Signal, WaitOptions, kill_process_group, set_dumpable_behavior, setsid,
    wait,
};
use serde_json::json;

use super::init::{code_of, set_mask};
use super::{SetupError, step};
use crate::packets::{self, Packet};

/// Longest request: words and environment of a program, as the kernel bounds them.
const LONGEST: u64 = 4 << 20;
/// What the keeper is told when a program has ended or was not started.
const DONE: &[u8] = b"done";
/// Programs that one zone runs at a time, beside their children.
const MOST_PROGRAMS: usize = 512;

/// What a program is, as the keeper passes it on: words that end with a zero byte.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    file: PathBuf,
    directory: PathBuf,
    words: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
}

impl Asked {
    fn parse(text: &[u8]) -> Option<Self> {
        let text = text.strip_suffix(b"\0")?;
        let mut words = text.split(|byte| *byte == 0).map(|word| OsString::from_vec(word.to_vec()));
        let (file, directory) = (words.next()?.into(), words.next()?.into());
        let count: usize = words.next()?.to_str()?.parse().ok()?;
        let arguments: Vec<OsString> = words.by_ref().take(count).collect();
        if arguments.len() != count || count == 0 {
            return None;
        }
        let variable = |word: OsString| {
            let word = word.into_vec();
            // A name may begin with the sign, never be empty.
            let at = word.iter().skip(1).position(|byte| *byte == b'=')? + 1;
            let value = OsString::from_vec(word.get(at + 1..)?.to_vec());
            Some((OsString::from_vec(word.get(..at)?.to_vec()), value))
        };
        // What is no variable means nothing to a program either.
        let environment = words.filter_map(variable).collect();
        Some(Self { file, directory, words: arguments, environment })
    }
}

struct Program {
    pid: Pid,
    line: OwnedFd,
}

struct Programs {
    requests: OwnedFd,
    signals: OwnedFd,
    before: libc::sigset_t,
    running: Vec<Program>,
}

/// Serves until the keeper closes `requests`; the zone ends when this process does.
pub(super) fn serve(
    requests: OwnedFd,
    handled: &libc::sigset_t,
    before: libc::sigset_t,
) -> Result<u8, SetupError> {
    // Nobody in the zone may take its descriptors or write its memory.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(step("cannot close the zone's first process to its programs"))?;
    let signals = signals(handled).map_err(step("cannot listen for signals"))?;
    let mut programs = Programs { requests, signals, before, running: Vec::new() };
    programs.serve().map_err(step("the zone's first process failed"))?;
    Ok(0)
}

fn signals(handled: &libc::sigset_t) -> io::Result<OwnedFd> {
    let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
    // SAFETY: the set is initialised, and -1 asks for a new descriptor.
    let signals = unsafe { libc::signalfd(-1, std::ptr::from_ref(handled), flags) };
    if signals < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was just made, and is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(signals) })
}

impl Programs {
    fn serve(&mut self) -> io::Result<()> {
        loop {
            let Ready { requests, signals, lines } = self.wait()?;
            if signals {
                self.pass_on();
                self.reap();
            }
            for pid in lines {
                self.hear(pid);
            }
            if requests && !self.take()? {
                return Ok(());
            }
        }
    }

    fn wait(&self) -> io::Result<Ready> {
        let lines = self.running.iter().map(|program| &program.line);
        let mut fds: Vec<PollFd<'_>> = [&self.requests, &self.signals]
            .into_iter()
            .chain(lines)
            .map(|fd| PollFd::new(fd, PollFlags::IN))
            .collect();
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let lines = self.running.iter().zip(ready.iter().skip(2));
        Ok(Ready {
            requests: ready.first().copied().unwrap_or_default(),
            signals: ready.get(1).copied().unwrap_or_default(),
            lines: lines.filter(|(_, ready)| **ready).map(|(program, _)| program.pid).collect(),
        })
    }

    /// Signals that the zone's owner sent go to every program. (Those of programs in the zone
    /// come here, too, for they are held back; they are nobody's to send.)
    fn pass_on(&self) {
        loop {
            let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
            let size = size_of::<libc::signalfd_siginfo>();
            // SAFETY: `info` has room for `size` bytes, and the descriptor is open.
            let read =
                unsafe { libc::read(self.signals.as_raw_fd(), info.as_mut_ptr().cast(), size) };
            if usize::try_from(read) != Ok(size) {
                return;
            }
            // SAFETY: the call has written all of it.
            let info = unsafe { info.assume_init() };
            let signal = i32::try_from(info.ssi_signo).ok().and_then(Signal::from_named_raw);
            // A sender outside the zone has no number in it.
            if let Some(Signal::TERM) = signal
                && info.ssi_pid == 0
            {
                for program in &self.running {
                    let _ = kill_process_group(program.pid, Signal::TERM);
                }
            }
        }
    }

    /// Collects whoever ended, and tells those who asked for a program how it did.
    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let Some(at) = self.running.iter().position(|program| program.pid == pid) else {
                continue;
            };
            let program = self.running.swap_remove(at);
            say(&program.line, &json!({ "exited": code_of(&status) }));
            self.done();
        }
    }

    /// A byte is a signal; the end of the line, or nonsense on it, is the program's end. Whoever
    /// holds the line sees the program's end there.
    fn hear(&mut self, pid: Pid) {
        let Some(program) = self.running.iter().find(|program| program.pid == pid) else { return };
        let signal = match packets::receive(&program.line) {
            Ok(Some(Packet { text, .. })) => match text[..] {
                [number] => Signal::from_named_raw(i32::from(number)),
                _ => None,
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Ok(None) | Err(_) => None,
        };
        let _ = kill_process_group(pid, signal.unwrap_or(Signal::KILL));
    }

    /// Starts the program of the next request; whether there may be more.
    fn take(&mut self) -> io::Result<bool> {
        let Some(Packet { text: _, files }) = packets::receive(&self.requests)? else {
            return Ok(false);
        };
        let Ok([line, body, stdin, stdout, stderr]) = <[OwnedFd; 5]>::try_from(files) else {
            // The keeper's message was cut, for this process has too many files open.
            self.done();
            return Ok(true);
        };
        match self.start(body, [stdin, stdout, stderr]) {
            Ok(pid) => {
                say(&line, &json!({ "begun": true }));
                self.running.push(Program { pid, line });
            }
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or_default();
                let reason = format!("the program does not run in the zone: {error}");
                say(&line, &json!({ "unrunnable": { "errno": errno, "reason": reason } }));
                self.done();
            }
        }
        Ok(true)
    }

    fn start(&self, body: OwnedFd, [stdin, stdout, stderr]: [OwnedFd; 3]) -> io::Result<Pid> {
        if self.running.len() >= MOST_PROGRAMS {
            return Err(io::Error::other(format!("the zone has {MOST_PROGRAMS} programs already")));
        }
        let mut text = Vec::new();
        File::from(body).take(LONGEST).read_to_end(&mut text)?;
        let asked = Asked::parse(&text).ok_or(io::ErrorKind::InvalidInput)?;
        let (name, arguments) = asked.words.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let mut command = Command::new(&asked.file);
        command.arg0(name).args(arguments).env_clear().envs(asked.environment);
        command.stdin(stdin).stdout(stdout).stderr(stderr);
        // Where the zone has the folder; else in the zone's own, where this process is.
        if asked.directory.is_dir() {
            command.current_dir(asked.directory);
        }
        let before = self.before;
        // SAFETY: between fork and exec, only two system calls are made, on a set that was moved
        // in. In a session of its own, for its group is what is signalled.
        unsafe {
            command.pre_exec(move || {
                setsid()?;
                set_mask(&before)
            });
        }
        let pid = command.spawn()?.id();
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        pid.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn done(&self) {
        // With nobody left to hear it, the zone ends anyway.
        let _ = packets::send_for_sure(&self.requests, DONE);
    }
}

/// What there is to do.
struct Ready {
    requests: bool,
    signals: bool,
    /// Programs of which somebody said something.
    lines: Vec<Pid>,
}

/// Whoever does not listen any more will not miss it.
fn say(line: &OwnedFd, what: &serde_json::Value) {
    let _ = packets::send(line, what.to_string().as_bytes(), &[]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_what_was_asked_for() {
        let text = b"/bin/sh\0/home\x002\0sh\0-c\0A=1\0B==\0=C=2\0none\0";
        let asked = Asked::parse(text).unwrap();
        assert_eq!(asked.file, PathBuf::from("/bin/sh"));
        assert_eq!(asked.words, ["sh", "-c"]);
        let pairs = [("A", "1"), ("B", "="), ("=C", "2")];
        let pairs = pairs.map(|(name, value)| (OsString::from(name), OsString::from(value)));
        assert_eq!(asked.environment, pairs);
    }

    #[test]
    fn what_is_cut_or_lies_about_its_words_is_refused() {
        let cases: [&[u8]; 6] = [
            b"",
            b"\0",
            b"/bin/sh",
            b"/bin/sh\0/\x002\0sh\0",
            b"/bin/sh\0/\x000\0",
            b"a\0b\0x\0c\0",
        ];
        for text in cases {
            assert_eq!(Asked::parse(text), None, "{text:?}");
        }
    }
}
