//! `gpu-zoned --supervise`: the agent as a child that is started anew when it crashes.
//!
//! A container ends with its first process, and takes all others along: broker, workers, and with
//! them every lease's GPU. An agent that crashes must not be that process.

use std::ffi::OsString;
use std::future::Future;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

/// What the first restart waits, and the longest wait.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// An agent that lived so long had started well.
const WELL: Duration = Duration::from_secs(30);

/// Why there is nothing to supervise.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// The agent's program does not start.
    #[error("cannot start the agent's program again; see that it is still there and may be run")]
    Start(#[source] std::io::Error),
    /// Signals cannot be received.
    #[error("cannot receive signals; see the process's limits")]
    Signals(#[source] std::io::Error),
}

/// What the end of an agent means.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// It was told to end, or cannot do better when it is started again.
    Final(u8),
    /// It crashed.
    Crash,
}

/// Runs the agent with these arguments until it ends by its own will; returns its exit code.
/// Signals that end an agent are passed on.
///
/// # Errors
/// When it cannot be started, or no signal be received.
pub async fn supervise(arguments: Vec<OsString>, last: &[u8]) -> Result<u8, SuperviseError> {
    let program = std::env::current_exe().map_err(SuperviseError::Start)?;
    let mut told = Told::new().map_err(SuperviseError::Signals)?;
    let mut pause = PAUSES.0;
    loop {
        let since = Instant::now();
        let mut command = Command::new(&program);
        let mut agent = command.args(&arguments).spawn().map_err(SuperviseError::Start)?;
        let status = told.until_it_ends(&mut agent).await.map_err(SuperviseError::Start)?;
        match end(status, told.stopped, last) {
            End::Final(code) => return Ok(code),
            End::Crash => {}
        }
        if since.elapsed() > WELL {
            pause = PAUSES.0;
        }
        tracing::error!(%status, ?pause, "the agent crashed and is started again");
        if told.within(tokio::time::sleep(pause)).await {
            return Ok(code_of(status));
        }
        pause = PAUSES.1.min(pause * 2);
    }
}

fn code_of(status: ExitStatus) -> u8 {
    status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}

fn end(status: ExitStatus, stopped: bool, last: &[u8]) -> End {
    let code = code_of(status);
    match stopped || code == 0 || last.contains(&code) {
        true => End::Final(code),
        false => End::Crash,
    }
}

/// The signals that came in.
struct Told {
    signals: [(Signal, tokio::signal::unix::Signal); 3],
    stopped: bool,
}

impl Told {
    fn new() -> std::io::Result<Self> {
        let signals = [
            (Signal::TERM, signal(SignalKind::terminate())?),
            (Signal::INT, signal(SignalKind::interrupt())?),
            (Signal::HUP, signal(SignalKind::hangup())?),
        ];
        Ok(Self { signals, stopped: false })
    }

    async fn next(&mut self) -> Signal {
        let [(term, on_term), (int, on_int), (hup, on_hup)] = &mut self.signals;
        tokio::select! {
            _ = on_term.recv() => *term,
            _ = on_int.recv() => *int,
            _ = on_hup.recv() => *hup,
        }
    }

    /// Passes signals on meanwhile.
    async fn until_it_ends(&mut self, agent: &mut Child) -> std::io::Result<ExitStatus> {
        loop {
            tokio::select! {
                ended = agent.wait() => return ended,
                signal = self.next() => {
                    self.stopped = true;
                    let pid = agent.id().and_then(|id| Pid::from_raw(id.cast_signed()));
                    // It may have ended just now; then the wait says so.
                    let _ = pid.map(|pid| kill_process(pid, signal));
                }
            }
        }
    }

    /// Whether a signal came while `future` was waited for.
    async fn within(&mut self, future: impl Future<Output = ()>) -> bool {
        tokio::select! {
            () = future => false,
            _ = self.next() => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn only_a_crash_is_started_again() {
        let exited = |code: i32| ExitStatus::from_raw(code << 8);
        assert_eq!(end(exited(0), false, &[78]), End::Final(0));
        assert_eq!(end(exited(78), false, &[78]), End::Final(78));
        assert_eq!(end(exited(70), false, &[78]), End::Crash);
        assert_eq!(end(exited(70), true, &[78]), End::Final(70));
        assert_eq!(end(ExitStatus::from_raw(9), false, &[78]), End::Crash);
    }
}
