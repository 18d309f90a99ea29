//! Finding the worker.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::{Duration, Instant};

use gpuzone_wire::client::Client;
use gpuzone_wire::hello::{self, DeviceInfo, Hello, HelloError, SOCKET, WINDOW_FILES, Welcome};
use gpuzone_wire::ring::{Bells, RecordBytes, Region, RegionError, RingSizes, Side, Spin};
use gpuzone_wire::spec;

/// Names the slot's directory.
const SLOT: &str = "GPUZONE_SLOT";
/// How long a worker that is being replaced is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a worker may take to answer the greeting.
const ANSWER: Duration = Duration::from_secs(15);

/// What the worker told.
pub(crate) struct Connection {
    pub(crate) client: Client,
    pub(crate) driver_version: i32,
    pub(crate) devices: Vec<DeviceInfo>,
    pub(crate) record_bytes: RecordBytes,
}

/// Whether this process was forked from one that had a connection: it has none of its own, and
/// cannot use its parent's.
pub(crate) static FORKED: AtomicBool = AtomicBool::new(false);
static SOCKET_FD: AtomicI32 = AtomicI32::new(-1);

/// Connects to the worker of the slot; the error says why there is no GPU.
pub(crate) fn connect() -> Result<Connection, String> {
    let slot = std::env::var_os(SLOT).filter(|slot| !slot.is_empty()).ok_or_else(|| {
        format!("{SLOT} is not set, so this program has no lease; start it with `gpu-zone run`")
    })?;
    let path = PathBuf::from(slot).join(SOCKET);
    let explain = |error: HelloError| {
        format!("{error} ({}); `gpu-zone ps` shows whether the lease is active", path.display())
    };
    let (socket, welcome, files) = greet_patiently(&path).map_err(explain)?;
    match welcome {
        Welcome::Refused { reason } => Err(reason),
        Welcome::Accepted { sizes, record_bytes, driver_version, devices } => {
            let region = region(files, sizes).ok_or(HelloError::NotUnderstood).map_err(explain)?;
            let region = region.map_err(|error| error.to_string())?;
            region.keep_from_children();
            watch_forks(&socket);
            let client = Client::new(region, socket, Spin::default());
            Ok(Connection { client, record_bytes, driver_version, devices })
        }
    }
}

/// The rings in what the worker handed over; or, in a machine of this program's own, that machine's
/// first process, which stands in the worker's place there. `None` when it is neither.
fn region(files: Vec<OwnedFd>, sizes: RingSizes) -> Option<Result<Region, RegionError>> {
    if files.len() < WINDOW_FILES {
        return Some(Region::open(files.into_iter().next()?, sizes));
    }
    let [file, theirs, ours] = <[OwnedFd; WINDOW_FILES]>::try_from(files).ok()?;
    Some(Region::window(file, sizes, Bells { ours, theirs }, Side::Tenant))
}

/// Greets the worker, again and again for a while: one that ended a faulty session is being
/// replaced, and what had reached its socket by then is reset.
fn greet_patiently(path: &Path) -> Result<Greeting, HelloError> {
    let began = Instant::now();
    loop {
        match greet(path) {
            Err(HelloError::Socket(_)) if began.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(20));
            }
            greeted => return greeted,
        }
    }
}

type Greeting = (OwnedFd, Welcome, Vec<OwnedFd>);

fn greet(path: &Path) -> Result<Greeting, HelloError> {
    let socket = hello::connect(path, ANSWER)?;
    let hello =
        Hello { version: spec::VERSION, pid: std::process::id(), window: None, apart: false };
    hello::send(&socket, &hello, None)?;
    let (welcome, files) = hello::receive_with::<Welcome>(&socket)?;
    Ok((socket, welcome, files))
}

fn watch_forks(socket: &OwnedFd) {
    static REGISTERED: Once = Once::new();
    SOCKET_FD.store(socket.as_raw_fd(), Ordering::SeqCst);
    // SAFETY: the handler only stores to atomics and closes a descriptor, which is allowed in
    // a child of a process with threads.
    REGISTERED.call_once(|| unsafe {
        libc::pthread_atfork(None, None, Some(in_child));
    });
}

extern "C" fn in_child() {
    FORKED.store(true, Ordering::SeqCst);
    let socket = SOCKET_FD.swap(-1, Ordering::SeqCst);
    if socket >= 0 {
        // The worker must see the parent go when it goes, child or no child.
        // SAFETY: the child's copy of the socket; this library never touches it again here.
        unsafe { libc::close(socket) };
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

    use super::*;

    #[test]
    fn a_worker_that_makes_room_for_the_next_is_asked_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(SOCKET);
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let listener = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None);
        let listener = listener.expect("a socket");
        let address = SocketAddrUnix::new(&path).expect("short enough");
        rustix::net::bind(&listener, &address).expect("bound");
        rustix::net::listen(&listener, 8).expect("listening");
        let worker = std::thread::spawn(move || {
            drop(rustix::net::accept(&listener).expect("the first try"));
            let socket = rustix::net::accept(&listener).expect("the second try");
            // Closed with something unread, the socket would be reset once more.
            hello::receive::<Hello>(&socket).expect("a greeting");
            let refused = Welcome::Refused { reason: "no".to_owned() };
            hello::send(&socket, &refused, None).expect("an answer");
        });
        let (_, welcome, _) = greet_patiently(&path).expect("an answer in the end");
        assert!(matches!(welcome, Welcome::Refused { reason } if reason == "no"));
        worker.join().expect("no panic");
    }
}
