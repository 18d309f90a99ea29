//! The start of a process in a sandbox, seen from outside.

use std::ffi::OsString;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use super::launch::{FIRST_INHERITED, Launch, LaunchError};
use super::spec::{Missing, Report, Spec};
use crate::Process;

/// A process that is started in a sandbox of its own.
#[derive(Debug)]
pub struct Sandboxed {
    /// The launcher, `gpu-zone-sandbox`.
    pub launcher: PathBuf,
    /// The sandbox.
    pub spec: Spec,
    /// The process, as the sandbox shows its program.
    pub launch: Launch,
}

/// Why a process does not run in a sandbox. None is left then.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The launcher could not be started.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The launcher could not be told or heard.
    #[error("cannot speak to the sandbox's launcher")]
    Speak(#[source] io::Error),
    /// The launcher could not make the sandbox; what it said.
    #[error("no sandbox: {0}")]
    Refused(String),
}

impl Sandboxed {
    /// Starts the process: what holds it, and what the host lacks. Unless the sandbox numbers
    /// its processes on its own, the launcher has become the program, and the number is its.
    ///
    /// # Errors
    /// When the host lacks what the policy requires, or something that was named is not there.
    pub fn start(self) -> Result<(Process, Vec<Missing>), SandboxError> {
        let Self { launcher, spec, mut launch } = self;
        let (mut heard, report) = io::pipe().map_err(SandboxError::Speak)?;
        let orders = orders(&spec).map_err(SandboxError::Speak)?;
        let number = launch.inherit.len();
        launch.inherit.extend([orders, report.into()]);
        let number = FIRST_INHERITED.saturating_add(i32::try_from(number).unwrap_or(i32::MAX));
        let program: OsString = std::mem::replace(&mut launch.program, launcher).into();
        let mut words: Vec<OsString> = vec!["--orders".into(), number.to_string().into()];
        words.extend(["--report".into(), number.saturating_add(1).to_string().into()]);
        words.extend(["--".into(), program.clone(), program]);
        words.append(&mut launch.arguments);
        launch.arguments = words;
        let process = launch.start()?;
        // Ends when the launcher becomes the program, or ends.
        let mut said = String::new();
        let spoken = heard.read_to_string(&mut said).map_err(SandboxError::Speak);
        let missing = spoken.and_then(|_| understand(&said));
        if missing.is_err() {
            let _ = process.signal(rustix::process::Signal::KILL);
            process.reap();
        }
        Ok((process, missing?))
    }
}

/// The orders, in a file that is nowhere.
fn orders(spec: &Spec) -> io::Result<OwnedFd> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let mut file = std::fs::File::from(rustix::fs::memfd_create("gpu-zone-sandbox", flags)?);
    file.write_all(&serde_json::to_vec(spec)?)?;
    file.rewind()?;
    Ok(file.into())
}

/// One report a line; the program runs when none says that it failed.
fn understand(said: &str) -> Result<Vec<Missing>, SandboxError> {
    let mut ready = None;
    for line in said.lines() {
        match serde_json::from_str(line) {
            Ok(Report::Ready(missing)) => ready = Some(missing),
            Ok(Report::Failed(reason) | Report::Unrunnable { errno: _, reason }) => {
                return Err(SandboxError::Refused(reason));
            }
            Err(error) => {
                let error = io::Error::new(io::ErrorKind::InvalidData, error);
                return Err(SandboxError::Speak(error));
            }
        }
    }
    ready.ok_or_else(|| SandboxError::Refused("its launcher ended and did not say why".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_and_a_later_failure_are_failures() {
        assert!(understand("").is_err());
        assert!(understand("nonsense\n").is_err());
        assert_eq!(understand("{\"ready\":[]}\n").unwrap(), []);
        let error = understand("{\"ready\":[]}\n{\"failed\":\"no program\"}\n").unwrap_err();
        assert_eq!(error.to_string(), "no sandbox: no program");
    }
}
