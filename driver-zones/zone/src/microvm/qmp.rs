//! QEMU's monitor: one command, one answer, in JSON lines.
//!
//! A QEMU that its guest has taken over is hostile: lines are bounded, what it says between a
//! command and its answer is bounded, and waiting has an end.

use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};

/// Longest line that is read.
const MAX_LINE: u64 = 1 << 20;
/// Most lines that are read for one answer: events come in between.
const MOST_LINES: usize = 4096;
/// How long an answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// A connection to a monitor. There is one at a time: the next waits until this is dropped.
#[derive(Debug)]
pub struct Monitor {
    stream: BufReader<UnixStream>,
}

/// Why QEMU did not do it.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// It does not answer.
    #[error("QEMU's monitor does not answer: {0}")]
    Broken(#[from] io::Error),
    /// What it says is not QMP.
    #[error("QEMU's monitor said something that makes no sense: {0}")]
    Nonsense(String),
    /// It said no.
    #[error("QEMU refused '{command}': {reason}")]
    Refused {
        /// What.
        command: &'static str,
        /// Why, in its words.
        reason: String,
    },
}

impl Monitor {
    /// Connects to the monitor that listens at `path`.
    ///
    /// # Errors
    /// When none answers in time.
    pub fn connect(path: &Path) -> Result<Self, QmpError> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        stream.set_write_timeout(Some(ANSWER_LIMIT))?;
        let mut monitor = Self { stream: BufReader::new(stream) };
        let greeting = monitor.line(Instant::now() + ANSWER_LIMIT)?;
        if greeting.get("QMP").is_none() {
            return Err(QmpError::Nonsense(short(&greeting.to_string())));
        }
        monitor.execute("qmp_capabilities", json!({}))?;
        Ok(monitor)
    }

    /// Has a command executed.
    ///
    /// # Errors
    /// When it is refused, or QEMU does not answer.
    pub fn execute(&mut self, command: &'static str, arguments: Value) -> Result<Value, QmpError> {
        self.execute_with(command, arguments, None)
    }

    /// The same, with a file.
    ///
    /// # Errors
    /// As [`Monitor::execute`].
    pub fn execute_with(
        &mut self,
        command: &'static str,
        arguments: Value,
        file: Option<BorrowedFd<'_>>,
    ) -> Result<Value, QmpError> {
        let text = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        self.send(text.as_bytes(), file)?;
        let end = Instant::now() + ANSWER_LIMIT;
        for _ in 0..MOST_LINES {
            let mut line = self.line(end)?;
            if let Some(answer) = line.get_mut("return") {
                return Ok(answer.take());
            }
            if let Some(error) = line.get("error") {
                let reason = error.get("desc").and_then(Value::as_str).unwrap_or("no reason");
                return Err(QmpError::Refused { command, reason: short(reason) });
            }
            if line.get("event").is_none() {
                return Err(QmpError::Nonsense(short(&line.to_string())));
            }
        }
        Err(QmpError::Nonsense(format!("{MOST_LINES} events and no answer to '{command}'")))
    }

    fn send(&mut self, text: &[u8], file: Option<BorrowedFd<'_>>) -> Result<(), QmpError> {
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let files: Vec<BorrowedFd<'_>> = file.into_iter().collect();
        if !files.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(&files));
        }
        let parts = [io::IoSlice::new(text)];
        let socket = self.stream.get_ref().as_fd();
        let sent = sendmsg(socket, &parts, &mut ancillary, SendFlags::NOSIGNAL);
        match sent.map_err(io::Error::from)? {
            sent if sent == text.len() => Ok(()),
            _ => Err(QmpError::Broken(io::ErrorKind::WriteZero.into())),
        }
    }

    fn line(&mut self, end: Instant) -> Result<Value, QmpError> {
        if Instant::now() > end {
            return Err(QmpError::Broken(io::ErrorKind::TimedOut.into()));
        }
        let mut line = Vec::new();
        Read::by_ref(&mut self.stream).take(MAX_LINE).read_until(b'\n', &mut line)?;
        match line.last() {
            None => Err(QmpError::Broken(io::ErrorKind::ConnectionReset.into())),
            Some(b'\n') => serde_json::from_slice(&line)
                .map_err(|error| QmpError::Nonsense(format!("{error}"))),
            Some(_) => Err(QmpError::Nonsense(format!("a line of more than {MAX_LINE} bytes"))),
        }
    }
}

/// Not more of it than fits into a log's line.
fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A monitor that says `said` and then nothing, and what a client of it gets for a command.
    fn with(said: &'static [u8]) -> Result<Value, QmpError> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let writer = std::thread::spawn(move || {
            let mut asked = String::new();
            BufReader::new(&theirs).read_line(&mut asked).unwrap();
            // The reader may have had enough before the end.
            let _ = (&theirs).write_all(said);
            asked
        });
        let mut monitor = Monitor { stream: BufReader::new(ours) };
        let answer = monitor.execute("query-status", json!({}));
        drop(monitor);
        let asked = writer.join().unwrap();
        assert!(asked.starts_with('{') && asked.ends_with('\n'));
        answer
    }

    #[test]
    fn an_answer_is_found_behind_events() {
        let answer = with(b"{\"event\":\"RESUME\"}\n{\"return\":{\"status\":\"running\"}}\n");
        assert_eq!(answer.unwrap()["status"], "running");
    }

    #[test]
    fn a_refusal_has_qemus_reason_without_control_characters() {
        let refused =
            with(b"{\"error\":{\"class\":\"GenericError\",\"desc\":\"no\\u001b such\"}}\n");
        assert_eq!(refused.unwrap_err().to_string(), "QEMU refused 'query-status': no such");
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        for said in [&b"nonsense\n"[..], b"{\"a\":1}\n", b"[[[[\n", b"", b"{\"return\":{}}"] {
            assert!(with(said).is_err(), "{}", String::from_utf8_lossy(said));
        }
    }

    #[test]
    fn a_line_without_end_and_events_without_end_are_errors() {
        let endless: &'static [u8] = Vec::leak(vec![b'x'; usize::try_from(MAX_LINE).unwrap() + 10]);
        assert!(with(endless).is_err());
        let events: &'static [u8] = Vec::leak(b"{\"event\":\"X\"}\n".repeat(MOST_LINES + 1));
        assert!(with(events).is_err());
    }
}
