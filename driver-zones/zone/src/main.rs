//! The launcher of sandboxes: `gpu-zone-sandbox --orders FD --report FD -- FILE NAME [ARG]...`.
//!
//! It reads a `Spec` as JSON from the descriptor FD, makes itself what that says, answers on the
//! other with a `Report` a line, and becomes FILE, which is told that its name is NAME.
//!
//! With `--requests`, the zone has no program of its own: it runs those that are asked for over the
//! socket FD. With `--keep`, this process keeps such a zone for `gpu-zone`, as `Order` says, and
//! FD is the first program's connection. With `--make`, it makes zones for who asks over its descriptor
//! 3, as the template on its standard input says, and writes them down in FOLDER. `--probe` prints what this host lacks, and `--list` the
//! zones of one program each that are written down in FOLDER.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::process::ExitCode;

use gpuzone_zone::sandbox::{self, Runs};
use gpuzone_zone::{keeper, maker};

const USAGE: &str = "usage: gpu-zone-sandbox --orders FD --report FD -- FILE NAME [ARG]...\n\
                     \x20      gpu-zone-sandbox --orders FD --report FD --requests FD\n\
                     \x20      gpu-zone-sandbox --orders FD --report FD --keep FD\n\
                     \x20      gpu-zone-sandbox --make FOLDER | --probe | --list FOLDER | --version";

#[allow(clippy::print_stdout, reason = "a program")]
fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    match words.first().and_then(|word| word.to_str()) {
        Some("--version") => {
            println!("gpu-zone-sandbox {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Some("--probe") => return probe(),
        Some("--make") => return make(&words[1..]),
        Some("--list") => return list(&words[1..]),
        Some(_) | None => {}
    }
    match orders(words).and_then(Orders::take) {
        Ok(Taken::Zone { orders, report, runs }) => {
            ExitCode::from(sandbox::run(orders, report, runs))
        }
        Ok(Taken::Keeper { orders, report, first }) => {
            ExitCode::from(keeper::run(orders, report, first))
        }
        Err(reason) => {
            eprintln!("{reason}");
            ExitCode::from(2)
        }
    }
}

/// What the command line says.
enum Orders {
    Program { orders: RawFd, report: RawFd, command: Vec<OsString> },
    Requests { orders: RawFd, report: RawFd, requests: RawFd },
    Keeper { orders: RawFd, report: RawFd, first: RawFd },
}

/// The same with what it names.
enum Taken {
    Zone { orders: File, report: OwnedFd, runs: Runs },
    Keeper { orders: File, report: OwnedFd, first: OwnedFd },
}

fn orders(mut words: Vec<OsString>) -> Result<Orders, String> {
    let usage = || USAGE.to_owned();
    let command = words.split_off(words.len().min(5));
    let mut flags = words.iter().map(|word| word.to_str().unwrap_or_default());
    let mut next = || flags.next().unwrap_or_default();
    let number = |word: &str| word.parse().ok().filter(|fd: &RawFd| *fd > 2).ok_or_else(usage);
    if next() != "--orders" {
        return Err(usage());
    }
    let orders = number(next())?;
    if next() != "--report" {
        return Err(usage());
    }
    let report = number(next())?;
    match (next(), &command[..]) {
        ("--", [_, _, ..]) => Ok(Orders::Program { orders, report, command }),
        ("--requests", [fd]) => {
            let requests = number(fd.to_str().unwrap_or_default())?;
            Ok(Orders::Requests { orders, report, requests })
        }
        ("--keep", [fd]) => {
            let first = number(fd.to_str().unwrap_or_default())?;
            Ok(Orders::Keeper { orders, report, first })
        }
        _ => Err(usage()),
    }
}

impl Orders {
    fn take(self) -> Result<Taken, String> {
        let (Self::Program { orders, report, .. }
        | Self::Requests { orders, report, .. }
        | Self::Keeper { orders, report, .. }) = self;
        let third = match self {
            Self::Program { .. } => None,
            Self::Requests { requests: fd, .. } | Self::Keeper { first: fd, .. } => Some(fd),
        };
        let mut all: Vec<RawFd> = [orders, report].into_iter().chain(third).collect();
        for descriptor in &all {
            // SAFETY: all are inherited for this purpose, as the command line says, and are
            // looked at only once they are known to be open.
            if unsafe { libc::fcntl(*descriptor, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
                return Err(format!("gpu-zone-sandbox: descriptor {descriptor} is not open"));
            }
        }
        all.sort_unstable();
        all.dedup();
        if all.len() != 2 + usize::from(third.is_some()) {
            return Err(USAGE.to_owned());
        }
        // SAFETY: open, inherited, not the same, and nobody else's in this process.
        let own = |fd| unsafe { OwnedFd::from_raw_fd(fd) };
        let (orders, report) = (File::from(own(orders)), own(report));
        Ok(match self {
            Self::Program { command, .. } => {
                Taken::Zone { orders, report, runs: Runs::Program(command) }
            }
            Self::Requests { requests, .. } => {
                Taken::Zone { orders, report, runs: Runs::Requests(own(requests)) }
            }
            Self::Keeper { first, .. } => Taken::Keeper { orders, report, first: own(first) },
        })
    }
}

fn make(words: &[OsString]) -> ExitCode {
    let [folder] = words else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let taken = maker::inherited()
        .and_then(|line| Ok((File::from(std::io::stdin().as_fd().try_clone_to_owned()?), line)));
    match taken {
        Ok((template, line)) => ExitCode::from(maker::run(folder.as_ref(), template, line)),
        Err(error) => fail(&error),
    }
}

#[allow(clippy::print_stdout, reason = "a program")]
fn probe() -> ExitCode {
    let missing = std::env::current_exe()
        .map_err(sandbox::SandboxError::Speak)
        .and_then(|own| sandbox::probe(&own));
    match missing.map(|missing| serde_json::to_string(&missing)) {
        Ok(Ok(json)) => {
            println!("{json}");
            ExitCode::SUCCESS
        }
        Ok(Err(error)) => fail(&error),
        Err(error) => fail(&error),
    }
}

#[allow(clippy::print_stdout, reason = "a program")]
fn list(words: &[OsString]) -> ExitCode {
    let [folder] = words else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let listed = gpuzone_zone::list(folder.as_ref());
    match listed.map(|listed| serde_json::to_string(&listed)) {
        Ok(Ok(json)) => {
            println!("{json}");
            ExitCode::SUCCESS
        }
        Ok(Err(error)) => fail(&error),
        Err(error) => fail(&error),
    }
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("gpu-zone-sandbox: {error}");
    ExitCode::FAILURE
}
