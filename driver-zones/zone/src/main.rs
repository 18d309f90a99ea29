//! The launcher of sandboxes: `gpu-zone-sandbox --orders FD --report FD -- FILE NAME [ARG]...`.
//!
//! It reads a `Spec` as JSON from the descriptor FD, makes itself what that says, answers on the
//! other with a `Report` a line, and becomes FILE, which is told that its name is NAME.
//! `--probe` prints what this host lacks.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::process::ExitCode;

use gpuzone_zone::sandbox;

const USAGE: &str = "usage: gpu-zone-sandbox --orders FD --report FD -- FILE NAME [ARG]...\n\
                     \x20      gpu-zone-sandbox --probe | --version";

#[allow(clippy::print_stdout, reason = "a program")]
fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    match words.first().and_then(|word| word.to_str()) {
        Some("--version") => {
            println!("gpu-zone-sandbox {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Some("--probe") => return probe(),
        Some(_) | None => {}
    }
    let Some((orders, report, command)) = parse(words) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    if orders == report {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    }
    for descriptor in [orders, report] {
        // SAFETY: both are inherited for this purpose, as the command line says, and are looked
        // at only once they are known to be open.
        if unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
            eprintln!("gpu-zone-sandbox: descriptor {descriptor} is not open");
            return ExitCode::from(2);
        }
    }
    // SAFETY: open, inherited, not the same, and nobody else's in this process.
    let (orders, report) = unsafe { (File::from_raw_fd(orders), OwnedFd::from_raw_fd(report)) };
    ExitCode::from(sandbox::run(orders, report, command))
}

fn parse(mut words: Vec<OsString>) -> Option<(RawFd, RawFd, Vec<OsString>)> {
    if words.len() < 7 {
        return None;
    }
    let command = words.split_off(5);
    let number = |word: &OsString| word.to_str()?.parse().ok().filter(|fd: &RawFd| *fd > 2);
    let [orders_flag, orders, report_flag, report, dashes] = &words[..] else { return None };
    let flags = orders_flag == "--orders" && report_flag == "--report" && dashes == "--";
    flags.then_some((number(orders)?, number(report)?, command))
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

fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("gpu-zone-sandbox: {error}");
    ExitCode::FAILURE
}
