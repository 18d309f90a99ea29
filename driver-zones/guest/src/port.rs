//! The way to the host: a virtio-serial port, found by its name.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use serde::Serialize;
use serde::de::DeserializeOwned;

const PORTS: &str = "/sys/class/virtio-ports";
/// How often the port is looked for, and for how long: its driver may come up later than this.
const LOOKS: (u32, Duration) = (600, Duration::from_millis(10));

/// The port. Messages are written whole, by whoever has one.
#[derive(Clone, Debug)]
pub(crate) struct Port {
    file: Arc<File>,
    writing: Arc<Mutex<()>>,
}

/// What came in.
#[derive(Debug)]
pub(crate) enum Heard<T> {
    Message(Box<T>),
    /// The host's end was closed; what was begun is not to be finished.
    Interrupted,
    Nonsense(String),
}

impl Port {
    pub(crate) fn find(name: &str) -> io::Result<Self> {
        Ok(Self { file: Arc::new(find(name)?), writing: Arc::default() })
    }

    /// Sends a message. A host that is away misses it, and says hello when it is back.
    pub(crate) fn send<T: Serialize>(&self, message: &T) {
        let Ok(mut line) = serde_json::to_vec(message) else { return };
        line.push(b'\n');
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = (&*self.file).write_all(&line);
    }

    /// What it says, in lines of at most `longest` bytes.
    pub(crate) fn reader(&self, longest: usize) -> Reader {
        Reader { port: self.clone(), buffer: Vec::new(), searched: 0, longest }
    }
}

/// Opens the port of a name, waiting for its driver.
pub(crate) fn find(name: &str) -> io::Result<File> {
    for _ in 0..LOOKS.0 {
        if let Some(node) = named(name)? {
            return File::options().read(true).write(true).open(format!("/dev/{node}"));
        }
        std::thread::sleep(LOOKS.1);
    }
    Err(io::Error::new(io::ErrorKind::NotFound, format!("no port is called {name}")))
}

fn named(wanted: &str) -> io::Result<Option<String>> {
    let ports = match fs::read_dir(PORTS) {
        Ok(ports) => ports,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    for port in ports {
        let port = port?;
        let name = fs::read_to_string(port.path().join("name")).unwrap_or_default();
        if name.trim() == wanted {
            return Ok(Some(port.file_name().to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}

pub(crate) struct Reader {
    port: Port,
    buffer: Vec<u8>,
    searched: usize,
    longest: usize,
}

impl Reader {
    /// The next thing that the host says. Waits for it.
    pub(crate) fn next<T: DeserializeOwned>(&mut self) -> Heard<T> {
        let mut piece = [0; 16 << 10];
        loop {
            let fresh = self.buffer.get(self.searched..).unwrap_or_default();
            if let Some(at) = fresh.iter().position(|byte| *byte == b'\n') {
                let rest = self.buffer.split_off(self.searched + at + 1);
                let line = std::mem::replace(&mut self.buffer, rest);
                self.searched = 0;
                return match serde_json::from_slice(&line) {
                    Ok(message) => Heard::Message(message),
                    Err(error) => Heard::Nonsense(error.to_string()),
                };
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > self.longest {
                self.buffer.clear();
                self.searched = 0;
                return Heard::Nonsense(format!("a line of more than {} bytes", self.longest));
            }
            match (&*self.port.file).read(&mut piece) {
                // The port reads as ended while the host's end is closed.
                Ok(0) | Err(_) => {
                    self.buffer.clear();
                    self.searched = 0;
                    self.wait();
                    return Heard::Interrupted;
                }
                Ok(length) => self.buffer.extend(piece.iter().take(length)),
            }
        }
    }

    /// Until the host's end is open, or for a moment.
    fn wait(&self) {
        let mut fds = [PollFd::new(&*self.port.file, PollFlags::IN)];
        let moment = rustix::time::Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        // It answers at once that the other end hangs up, so the time is slept.
        let _ = poll(&mut fds, Some(&moment));
        if fds.iter().any(|fd| fd.revents().contains(PollFlags::HUP)) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
