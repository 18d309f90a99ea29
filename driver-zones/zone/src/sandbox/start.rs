//! The start of a process in a sandbox, seen from outside.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;

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

/// A launcher that waits for its orders. It has made nothing yet, and when this is dropped, or
/// the process that holds it ends, it ends too.
#[derive(Debug)]
pub struct Held {
    orders: PipeWriter,
    heard: PipeReader,
    text: Vec<u8>,
}

/// More than a launcher says.
const MOST_SAID: u64 = 1 << 20;

impl Sandboxed {
    /// Starts the process: what holds it, and what the host lacks. Unless the sandbox numbers
    /// its processes on its own, the launcher has become the program, and the number is its.
    ///
    /// # Errors
    /// When the host lacks what the policy requires, or something that was named is not there.
    pub fn start(self) -> Result<(Process, Vec<Missing>), SandboxError> {
        let (process, Held { mut orders, heard, text }) = self.hold()?;
        let spoken = orders.write_all(&text);
        drop(orders);
        let mut said = String::new();
        // Ends when the launcher becomes the program, or ends.
        let heard = spoken.and_then(|()| heard.take(MOST_SAID).read_to_string(&mut said));
        let missing = heard.map_err(SandboxError::Speak).and_then(|_| understand(&said));
        if missing.is_err() {
            let _ = process.signal(rustix::process::Signal::KILL);
            process.reap();
        }
        Ok((process, missing?))
    }

    /// Starts the launcher, held back: it has no orders yet.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn hold(self) -> Result<(Process, Held), SandboxError> {
        let Self { launcher, spec, mut launch } = self;
        let program: OsString = std::mem::replace(&mut launch.program, launcher).into();
        let mut words: Vec<OsString> = vec!["--".into(), program.clone(), program];
        words.append(&mut launch.arguments);
        hold(&spec, launch, words)
    }
}

/// Starts a launcher, held back, whose zone runs what is asked for over `requests`.
pub(super) fn hold_for_requests(
    launcher: PathBuf,
    spec: &Spec,
    requests: OwnedFd,
) -> Result<(Process, Held), SandboxError> {
    let null = || -> io::Result<OwnedFd> {
        Ok(std::fs::File::options().read(true).write(true).open("/dev/null")?.into())
    };
    let nulls = || -> io::Result<[OwnedFd; 3]> { Ok([null()?, null()?, null()?]) };
    let [stdin, stdout, stderr] = nulls().map_err(SandboxError::Speak)?;
    let launch = Launch {
        program: launcher,
        arguments: Vec::new(),
        environment: BTreeMap::new(),
        stdin,
        stdout,
        stderr,
        inherit: vec![requests],
    };
    hold(spec, launch, vec!["--requests".into(), FIRST_INHERITED.to_string().into()])
}

/// `what` is the rest of the launcher's command line.
fn hold(
    spec: &Spec,
    mut launch: Launch,
    what: Vec<OsString>,
) -> Result<(Process, Held), SandboxError> {
    let speak = SandboxError::Speak;
    let text = serde_json::to_vec(spec).map_err(|error| speak(error.into()))?;
    let (ordered, orders) = io::pipe().map_err(speak)?;
    let (heard, report) = io::pipe().map_err(speak)?;
    let number = launch.inherit.len();
    launch.inherit.extend([ordered.into(), report.into()]);
    let number = FIRST_INHERITED.saturating_add(i32::try_from(number).unwrap_or(i32::MAX));
    launch.arguments = vec!["--orders".into(), number.to_string().into()];
    launch.arguments.extend(["--report".into(), number.saturating_add(1).to_string().into()]);
    launch.arguments.extend(what);
    Ok((launch.start()?, Held { orders, heard, text }))
}

impl Held {
    /// Gives the launcher its orders, and waits until the program begins; what the host lacks.
    ///
    /// # Errors
    /// When the program does not begin. The caller ends the process then.
    pub async fn go(self) -> Result<Vec<Missing>, SandboxError> {
        let Self { orders, heard, text } = self;
        let spoken = async {
            let mut orders = pipe::Sender::from_owned_fd(orders.into())?;
            match orders.write_all(&text).await {
                // It is gone, and says why.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                other => other?,
            }
            drop(orders);
            let mut said = String::new();
            let heard = pipe::Receiver::from_owned_fd(heard.into())?;
            heard.take(MOST_SAID).read_to_string(&mut said).await?;
            Ok(said)
        };
        understand(&spoken.await.map_err(SandboxError::Speak)?)
    }
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
