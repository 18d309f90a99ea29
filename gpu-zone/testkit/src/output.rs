use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::HarnessError;

/// A program that has ended, and what it said.
#[derive(Debug)]
pub struct Finished {
    /// The command line, for messages.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Finished {
    /// The exit code; `None` when a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The signal that ended it.
    pub fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    /// Both outputs, for messages.
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }

    /// Itself, when it ended with 0.
    ///
    /// # Errors
    /// Otherwise, with what it said.
    pub fn ok(self) -> Result<Self, HarnessError> {
        if self.status.success() {
            return Ok(self);
        }
        let (status, output) = (self.status.to_string(), self.text());
        Err(HarnessError::Failed { command: self.command, status, output })
    }

    /// Its standard output as JSON.
    ///
    /// # Errors
    /// When it is none.
    pub fn json(&self) -> Result<serde_json::Value, HarnessError> {
        serde_json::from_str(&self.stdout).map_err(|error| HarnessError::Unexpected {
            command: self.command.clone(),
            what: format!("JSON ({error})"),
            output: self.text(),
        })
    }

    /// The number behind `key=` in its standard output.
    ///
    /// # Errors
    /// When there is none.
    pub fn number(&self, key: &str) -> Result<u64, HarnessError> {
        let words = self.stdout.split_whitespace();
        let mut values = words.filter_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        values.next().and_then(|value| value.parse().ok()).ok_or_else(|| HarnessError::Unexpected {
            command: self.command.clone(),
            what: format!("a number '{key}='"),
            output: self.text(),
        })
    }
}

/// A program that runs; killed when this is dropped.
#[derive(Debug)]
pub struct Running {
    command: String,
    child: Child,
    /// Open until the program is to end.
    input: Option<ChildStdin>,
    stdout: Stream,
    stderr: Stream,
}

/// How much of an output is kept: its end. A program may print without end.
const KEPT: usize = 4 << 20;

/// An output that a thread collects.
#[derive(Debug)]
struct Stream {
    text: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Stream {
    fn collect(mut from: impl Read + Send + 'static) -> Self {
        let text = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&text);
        let reader = std::thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(length @ 1..) = from.read(&mut buffer) {
                let mut text = sink.lock().unwrap_or_else(PoisonError::into_inner);
                text.extend_from_slice(&buffer[..length]);
                if text.len() > 2 * KEPT {
                    let dropped = text.len() - KEPT;
                    text.drain(..dropped);
                }
            }
        });
        Self { text, reader: Some(reader) }
    }

    fn so_far(&self) -> String {
        let text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&text).into_owned()
    }

    /// All of it. A grandchild may hold the pipe open longer than the program lived, so the
    /// reader gets a moment to come to the end, and no more.
    fn all(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            let limit = Instant::now() + Duration::from_secs(2);
            while !reader.is_finished() && Instant::now() < limit {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        self.so_far()
    }
}

impl Running {
    /// Starts `command`, its outputs collected, its input empty.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(mut command: Command) -> Result<Self, HarnessError> {
        command.stdin(Stdio::null());
        Self::spawn(command)
    }

    /// As [`Running::start`], with an input that is empty and open until [`Running::finish`].
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_fed(mut command: Command) -> Result<Self, HarnessError> {
        command.stdin(Stdio::piped());
        Self::spawn(command)
    }

    fn spawn(mut command: Command) -> Result<Self, HarnessError> {
        let shown = format!("{command:?}");
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let failed = HarnessError::io(format!("cannot start {shown}"));
        let mut child = command.spawn().map_err(failed)?;
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            unreachable!("both outputs are pipes");
        };
        let (stdout, stderr) = (Stream::collect(stdout), Stream::collect(stderr));
        let input = child.stdin.take();
        Ok(Self { command: shown, child, input, stdout, stderr })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to standard output so far; of more than some MiB, the end.
    pub fn stdout(&self) -> String {
        self.stdout.so_far()
    }

    /// What it has written to standard error so far.
    pub fn stderr(&self) -> String {
        self.stderr.so_far()
    }

    /// Whether it runs still.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn runs(&mut self) -> Result<bool, HarnessError> {
        let status = self.child.try_wait().map_err(HarnessError::io("cannot look at a child"))?;
        Ok(status.is_none())
    }

    /// Waits until `text` is in its standard output.
    ///
    /// # Errors
    /// When it ends before, or `limit` passes.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Result<(), HarnessError> {
        let end = Instant::now() + limit;
        while !self.stdout().contains(text) {
            let runs = self.runs()?;
            // What it wrote last may come in after it has ended.
            if !runs && !self.stdout.all().contains(text) {
                let (command, what) = (self.command.clone(), format!("'{text}'"));
                return Err(HarnessError::Unexpected { command, what, output: self.said() });
            }
            if Instant::now() > end {
                return Err(self.timeout(&format!("'{text}' from {}", self.command), limit));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Waits until it ends.
    ///
    /// # Errors
    /// When `limit` passes; it is killed then.
    pub fn finish(mut self, limit: Duration) -> Result<Finished, HarnessError> {
        drop(self.input.take());
        let end = Instant::now() + limit;
        loop {
            let status = self.child.try_wait();
            if let Some(status) = status.map_err(HarnessError::io("cannot wait for a child"))? {
                let (stdout, stderr) = (self.stdout.all(), self.stderr.all());
                let command = std::mem::take(&mut self.command);
                return Ok(Finished { command, status, stdout, stderr });
            }
            if Instant::now() > end {
                return Err(self.timeout(&self.command, limit));
            }
            std::thread::sleep(Duration::from_millis(3));
        }
    }

    fn said(&self) -> String {
        format!("{}{}", self.stdout(), self.stderr())
    }

    fn timeout(&self, what: &str, limit: Duration) -> HarnessError {
        HarnessError::Timeout { what: what.to_owned(), limit, output: self.said() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail when it has ended already, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Running {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Running::start(command).unwrap()
    }

    #[test]
    fn collects_what_a_program_says() {
        let finished =
            shell("echo got=7; echo no >&2; exit 3").finish(Duration::from_secs(10)).unwrap();
        assert_eq!((finished.code(), finished.number("got").unwrap()), (Some(3), 7));
        assert_eq!(finished.stderr, "no\n");
        assert!(finished.number("other").is_err());
        assert!(finished.ok().unwrap_err().to_string().contains("no"));
    }

    #[test]
    fn of_much_the_end_is_kept() {
        let finished = shell("head -c 20000000 /dev/zero; echo end=1");
        let finished = finished.finish(Duration::from_secs(30)).unwrap();
        assert!(finished.stdout.ends_with("end=1\n"));
        assert!(
            (KEPT..=2 * KEPT + 6).contains(&finished.stdout.len()),
            "{}",
            finished.stdout.len()
        );
    }

    #[test]
    fn nothing_is_waited_for_forever() {
        let limit = Duration::from_millis(50);
        assert!(matches!(shell("sleep 60").finish(limit), Err(HarnessError::Timeout { .. })));
        let mut running = shell("echo first; sleep 60");
        running.wait_for("first", Duration::from_secs(10)).unwrap();
        assert!(matches!(running.wait_for("more", limit), Err(HarnessError::Timeout { .. })));
        let mut ended = shell("echo end");
        let error = ended.wait_for("more", Duration::from_secs(10)).unwrap_err();
        assert!(matches!(error, HarnessError::Unexpected { .. }));
    }
}
