//! One process of a tenant, from its greeting to its end: a thread of its own.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use gpuzone_core::LeaseId;
use gpuzone_wire::hello::{self, Hello, HelloError, Welcome};
use gpuzone_wire::ring::{Carrier, RegionError, RingSizes, Side};
use gpuzone_wire::view::{Look, Opening, Seen};
use gpuzone_wire::zone_link::{SessionId, ToGuest};
use gpuzone_zone::microvm::{Window, WindowError};

use super::link::{self, Link, Told};
use super::relay::Machine;

/// How long a process that connected may take to say hello.
const HELLO_LIMIT: Duration = Duration::from_secs(5);
/// How long it waits for an answer, less a little: it should hear why there is none.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(13);
/// How long the guest may take to let go of a session's window.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);
/// Between two looks whether the process is there.
const LOOK: Duration = Duration::from_millis(100);
/// Most wakes carried in each of these; a process that wakes its worker for nothing keeps only
/// itself from it.
const PACE: (u32, Duration) = (200, Duration::from_millis(10));
/// More GPUs than a machine has.
const MOST_DEVICES: usize = 64;

/// Why a process was not connected.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error(transparent)]
    Hello(#[from] HelloError),
    #[error(transparent)]
    Window(#[from] WindowError),
    #[error(transparent)]
    Memory(#[from] RegionError),
    #[error("the way to the driver zone's microVM broke: {0}")]
    Link(#[from] std::io::Error),
    #[error("{0}")]
    Refused(String),
}

/// What the link tells a session.
struct Carried {
    carrier: Carrier,
    over: AtomicBool,
    told: mpsc::SyncSender<Told>,
}

impl link::Session for Carried {
    fn bell(&self) {
        self.carrier.wake_here();
    }

    fn told(&self, what: Told) {
        if matches!(what, Told::Closed(_)) {
            self.over.store(true, Ordering::SeqCst);
        }
        link::tell(&self.told, what);
        self.carrier.interrupt();
    }
}

/// Serves the process at `socket`, in the machine that `machine` finds.
pub(super) fn serve(
    lease: LeaseId,
    socket: &OwnedFd,
    machine: impl FnOnce() -> Option<Machine>,
) -> Result<(), SessionError> {
    hello::limit_waiting(socket, HELLO_LIMIT)?;
    let hello = match hello::receive::<Opening>(socket)?.0 {
        Opening::Work(hello) => hello,
        Opening::Look(look) => {
            let machine = machine().ok_or_else(being_started)?;
            let seen = looked(lease, &machine.link, look)?;
            return Ok(hello::send(socket, &seen, None)?);
        }
    };
    let machine = machine().ok_or_else(being_started)?;
    if hello.window.is_some() {
        let reason = "windows are the driver zone's to make";
        return Err(SessionError::Refused(reason.to_owned()));
    }
    let window = machine.windows.take()?;
    let served = in_window(lease, socket, &machine.link, &window, &hello, || {
        machine.prepare_another();
    });
    if served.is_ok() {
        // The tenant sees the end before the window is taken out, which takes its time.
        let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
    }
    let windows = Arc::clone(&machine.windows);
    std::thread::spawn(move || windows.unplug(window));
    served
}

fn being_started() -> SessionError {
    let reason = "the driver zone's microVM is being started; try again in a moment";
    SessionError::Refused(reason.to_owned())
}

/// What the worker in the guest says of its lease; for one answer, a session without a window.
fn looked(lease: LeaseId, link: &Link, look: Look) -> Result<Seen, SessionError> {
    let (told, heard) = mpsc::sync_channel(1);
    let id = link.open_session(Arc::new(Looking(told)))?;
    let slot = super::relay::slot_in_guest(lease);
    let asked = link.send(&ToGuest::Look { session: id, slot, look });
    let answer = asked.map(|()| heard.recv_timeout(ANSWER_LIMIT));
    link.forget_session(id);
    match answer? {
        Ok(Told::Seen(seen)) => Ok(seen),
        Ok(Told::Opened(_) | Told::Closed(_)) | Err(_) => {
            Err(SessionError::Refused("the driver zone does not tell of the lease".to_owned()))
        }
    }
}

/// What the link tells of a look.
struct Looking(mpsc::SyncSender<Told>);

impl link::Session for Looking {
    fn bell(&self) {}

    fn told(&self, what: Told) {
        link::tell(&self.0, what);
    }
}

fn in_window(
    lease: LeaseId,
    socket: &OwnedFd,
    link: &Arc<Link>,
    window: &Window,
    asked: &Hello,
    begun: impl FnOnce(),
) -> Result<(), SessionError> {
    let (told, heard) = mpsc::sync_channel(4);
    let carrier = Carrier::open(window.file.as_fd(), Side::Worker)?;
    let session = Arc::new(Carried { carrier, over: AtomicBool::new(false), told });
    let id = link.open_session(Arc::<Carried>::clone(&session))?;
    let sizes = RingSizes::default();
    let slot = super::relay::slot_in_guest(lease);
    let &Hello { version, pid, .. } = asked;
    let open = ToGuest::Open { session: id, slot, bridge: window.bridge(), sizes, version, pid };
    let opened = link.send(&open).map_err(SessionError::from);
    let opened = opened.and_then(|()| welcome(&heard, sizes));
    let served = opened.and_then(|welcome| {
        hello::send(socket, &welcome, Some(window.file.as_fd()))?;
        begun();
        carry(id, socket, link, &session);
        Ok(())
    });
    // The guest's end is closed when this is answered, and the worker has been told.
    if !session.over.load(Ordering::SeqCst) && link.send(&ToGuest::Close { session: id }).is_ok() {
        let _ = heard.recv_timeout(CLOSE_LIMIT);
    }
    link.forget_session(id);
    served
}

/// The worker's welcome, as far as it is the worker's to say.
fn welcome(heard: &mpsc::Receiver<Told>, sizes: RingSizes) -> Result<Welcome, SessionError> {
    match heard.recv_timeout(ANSWER_LIMIT) {
        Ok(Told::Opened(Welcome::Accepted { record_bytes, driver_version, devices, .. }))
            if devices.len() <= MOST_DEVICES =>
        {
            Ok(Welcome::Accepted { sizes, record_bytes, driver_version, devices })
        }
        Ok(Told::Opened(Welcome::Refused { reason })) => Err(SessionError::Refused(reason)),
        Ok(Told::Opened(Welcome::Accepted { .. })) => {
            Err(SessionError::Refused("the driver zone names too many GPUs".to_owned()))
        }
        Ok(Told::Seen(_)) => {
            Err(SessionError::Refused("the driver zone answers nonsense".to_owned()))
        }
        Ok(Told::Closed(reason)) => Err(SessionError::Refused(
            reason.unwrap_or_else(|| "the driver zone's worker ended".to_owned()),
        )),
        Err(_) => Err(SessionError::Refused("the driver zone did not answer in time".to_owned())),
    }
}

/// Carries the tenant's wakes to its worker until one of them is gone.
fn carry(id: SessionId, socket: &OwnedFd, link: &Link, session: &Carried) {
    let (mut carried, mut since) = (0, Instant::now());
    let over = || session.over.load(Ordering::SeqCst);
    session.carrier.carry(
        LOOK,
        over,
        || hello::is_closed(socket),
        || {
            if link.bell(id).is_err() {
                return false;
            }
            carried += 1;
            if carried >= PACE.0 {
                std::thread::sleep(PACE.1.saturating_sub(since.elapsed()));
                (carried, since) = (0, Instant::now());
            }
            true
        },
    );
}

/// Tells a process why it is not connected.
pub(super) fn refuse(socket: &OwnedFd, error: &SessionError) {
    // Whether it hears the reason is up to it.
    let _ = hello::limit_waiting(socket, Duration::from_millis(100));
    let _ = hello::send(socket, &Welcome::Refused { reason: error.to_string() }, None);
}
