use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use super::carrier::Carrier;
use super::{Answer, Order, Task};
use crate::host::Host;

/// First argument of a child.
pub(crate) const CHILD: &str = "--child-of-the-probe";
/// What stands in front of a child's answer: libraries write to standard output, too.
pub(crate) const MARK: &str = "gpu-zone-probe-answer:";

/// Longest that a child may take; a driver's first initialisation takes seconds.
const LIMIT: Duration = Duration::from_secs(30);
/// A library that writes without end must not fill the memory.
const LONGEST_OUTPUT: u64 = 1 << 20;

/// Starts children.
#[derive(Debug)]
pub(crate) struct Launcher {
    carrier: Result<Carrier, String>,
    environment: BTreeMap<String, OsString>,
}

/// A change to the environment of a child.
#[derive(Clone, Debug, Default)]
pub(crate) struct Change {
    pub(crate) set: Vec<(String, String)>,
    pub(crate) remove: Vec<String>,
    /// The library to open instead of what the loader finds.
    pub(crate) library: Option<PathBuf>,
}

/// A child that holds memory until this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Launcher {
    pub(crate) fn new(program: Option<&Path>, host: &Host) -> Self {
        let carrier = Carrier::new(program).map_err(|error| error.to_string());
        Self { carrier, environment: host.variables().clone() }
    }

    /// Runs a task in a child of its own.
    pub(crate) fn ask(&self, task: Task, change: &Change) -> Answer {
        match self.start(task, change) {
            Ok((answer, held)) => {
                drop(held);
                answer
            }
            Err(reason) => Answer::Failed(reason),
        }
    }

    /// Starts a task whose child keeps what it has until the second value is dropped.
    pub(crate) fn start(&self, task: Task, change: &Change) -> Result<(Answer, Held), String> {
        let carrier = self.carrier.as_ref().map_err(String::clone)?;
        let order = Order { library: change.library.clone(), task };
        let order = serde_json::to_string(&order).map_err(|error| error.to_string())?;
        let mut command = Command::new(carrier.program());
        command.args([CHILD, &order]).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(Stdio::null());
        command.env_clear().envs(&self.environment);
        for name in &change.remove {
            command.env_remove(name);
        }
        command.envs(change.set.iter().map(|(name, value)| (name, value)));
        let mut child = command.spawn().map_err(|error| {
            format!("the part that opens libraries cannot be started ({error}); has this workload a dynamic loader?")
        })?;
        let stdin = child.stdin.take();
        let answers = read_answer(child.stdout.take());
        let mut held = Held { child, stdin };
        match answers.recv_timeout(LIMIT) {
            Ok(answer) => Ok((answer, held)),
            Err(_) => Err(held.end()),
        }
    }
}

fn read_answer(stdout: Option<impl Read + Send + 'static>) -> Receiver<Answer> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let lines = stdout.map(|pipe| BufReader::new(pipe.take(LONGEST_OUTPUT)).lines());
        for line in lines.into_iter().flatten().map_while(Result::ok) {
            let answer = line.split_once(MARK).map(|(_, text)| serde_json::from_str(text));
            if let Some(Ok(answer)) = answer {
                let _ = sender.send(answer);
                return;
            }
        }
    });
    receiver
}

impl Held {
    /// Ends the child that gave no answer; how it ended.
    fn end(&mut self) -> String {
        // Its output's end comes a moment before its own.
        let end = Instant::now() + Duration::from_millis(200);
        while Instant::now() < end {
            if let Ok(Some(status)) = self.child.try_wait() {
                return format!("the driver library ended the process: {status}");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        format!("the driver library gave no answer within {LIMIT:?}")
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.stdin = None;
        let end = Instant::now() + LIMIT;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > end {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
