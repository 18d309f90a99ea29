//! The way to the host: a virtio-serial port, found by its name, or a port of a vsock device, at which the
//! host comes.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gpuzone_wire::zone_link::{VSOCK, vsock_port};
use rustix::event::{PollFd, PollFlags, poll};
use serde::Serialize;
use serde::de::DeserializeOwned;
use vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockListener};

const PORTS: &str = "/sys/class/virtio-ports";
/// How often the port is looked for, and for how long: its driver may come up later than this.
const LOOKS: (u32, Duration) = (600, Duration::from_millis(10));
const MOMENT: Duration = Duration::from_millis(20);

/// The port. Messages are written whole, by whoever has one.
#[derive(Clone, Debug)]
pub(crate) struct Port {
    /// What is open to the host.
    file: Arc<Mutex<Arc<File>>>,
    /// Where the host comes again, where it comes at all.
    listener: Option<Arc<VsockListener>>,
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
        let (file, listener) = match is_vsock() {
            true => {
                let listener = listen(name)?;
                (accept(&listener)?, Some(Arc::new(listener)))
            }
            false => (serial(name)?, None),
        };
        Ok(Self { file: Arc::new(Mutex::new(Arc::new(file))), listener, writing: Arc::default() })
    }

    fn file(&self) -> Arc<File> {
        Arc::clone(&self.file.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// After the host's end was closed: until it is open again, or for a moment.
    fn wait(&self, closed: &File) {
        let Some(listener) = &self.listener else { return wait_for_serial(closed) };
        match accept(listener) {
            Ok(file) => {
                *self.file.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(file);
            }
            Err(_) => std::thread::sleep(MOMENT),
        }
    }

    /// Sends a message. A host that is away misses it, and says hello when it is back.
    pub(crate) fn send<T: Serialize>(&self, message: &T) {
        let Ok(mut line) = serde_json::to_vec(message) else { return };
        line.push(b'\n');
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = (&*self.file()).write_all(&line);
    }

    /// What it says, in lines of at most `longest` bytes.
    pub(crate) fn reader(&self, longest: usize) -> Reader {
        Reader { port: self.clone(), buffer: Vec::new(), searched: 0, longest }
    }
}

/// Opens the port of a name, waiting for its driver or for the host.
pub(crate) fn find(name: &str) -> io::Result<File> {
    if is_vsock() { accept(&listen(name)?) } else { serial(name) }
}

fn is_vsock() -> bool {
    let words = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    words.split_whitespace().any(|word| word == VSOCK)
}

fn listen(name: &str) -> io::Result<VsockListener> {
    let missing = || io::Error::new(io::ErrorKind::NotFound, format!("no port is called {name}"));
    let number = vsock_port(name).ok_or_else(missing)?;
    VsockListener::bind_with_cid_port(VMADDR_CID_ANY, number).map_err(|error| {
        let message =
            format!("no vsock, which this machine's hypervisor needs of the kernel: {error}");
        io::Error::new(error.kind(), message)
    })
}

/// The host, whenever it comes; nobody else.
fn accept(listener: &VsockListener) -> io::Result<File> {
    loop {
        let (stream, from) = listener.accept()?;
        if from.cid() == VMADDR_CID_HOST {
            return Ok(OwnedFd::from(stream).into());
        }
    }
}

fn serial(name: &str) -> io::Result<File> {
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
            let file = self.port.file();
            match (&*file).read(&mut piece) {
                // The port reads as ended while the host's end is closed.
                Ok(0) | Err(_) => {
                    self.buffer.clear();
                    self.searched = 0;
                    self.port.wait(&file);
                    return Heard::Interrupted;
                }
                Ok(length) => self.buffer.extend(piece.iter().take(length)),
            }
        }
    }
}

fn wait_for_serial(file: &File) {
    let mut fds = [PollFd::new(file, PollFlags::IN)];
    let moment = rustix::time::Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
    // It answers at once that the other end hangs up, so the time is slept.
    let _ = poll(&mut fds, Some(&moment));
    if fds.iter().any(|fd| fd.revents().contains(PollFlags::HUP)) {
        std::thread::sleep(MOMENT);
    }
}
