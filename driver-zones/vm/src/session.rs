//! One process of the program's, and its connection to the lease's worker: a thread of its own.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use gpuzone_wire::hello::{self, Hello, HelloError, SOCKET, Welcome};
use gpuzone_wire::ring::{Carrier, RegionError, Side};
use gpuzone_wire::view::{self, Look, Seen};
use gpuzone_wire::workload_link::ToWorkload;
use gpuzone_wire::zone_link::SessionId;
use gpuzone_zone::microvm::{Window, WindowError};

use crate::relay::Relay;

/// How long a worker may take to answer; the process waits a little longer.
const ANSWER_LIMIT: Duration = Duration::from_secs(13);
/// Between two looks whether the worker is there.
const LOOK: Duration = Duration::from_millis(100);
/// How long the guest may take to let go of rings whose worker is gone.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error(transparent)]
    Hello(#[from] HelloError),
    #[error(transparent)]
    Window(#[from] WindowError),
    #[error(transparent)]
    Memory(#[from] RegionError),
    #[error("{0}")]
    Refused(String),
    #[error("the microVM does not hear: {0}")]
    Guest(#[from] io::Error),
}

/// What a process comes to its slot for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Visit {
    /// To compute; with its version of the spec, and its number as it says itself.
    Work { version: u32, pid: u32 },
    /// To look at its lease.
    Look(Look),
}

/// What the guest says of it.
#[derive(Default)]
pub(crate) struct Session {
    carrier: Mutex<Option<Carrier>>,
    closed: AtomicBool,
}

/// A session that was let in.
struct Begun {
    worker: OwnedFd,
    window: Window,
    carrier: Carrier,
}

impl Session {
    /// The process woke its worker.
    pub(crate) fn bell(&self) {
        if let Some(carrier) = &*self.carrier.lock().unwrap_or_else(PoisonError::into_inner) {
            carrier.wake_here();
        }
    }

    /// The process is gone.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        if let Some(carrier) = &*self.carrier.lock().unwrap_or_else(PoisonError::into_inner) {
            carrier.interrupt();
        }
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// From the process's greeting to its end.
    pub(crate) fn serve(&self, id: SessionId, visit: Visit, relay: &Relay) {
        let (version, pid) = match visit {
            Visit::Work { version, pid } => (version, pid),
            Visit::Look(look) => {
                let seen = slot(relay).and_then(|slot| Ok(view::ask(slot, look, ANSWER_LIMIT)?));
                let seen = Box::new(seen.unwrap_or_else(Seen::refused));
                // Where it cannot be said, there is nobody to hear it.
                let _ = relay.send(&ToWorkload::Seen { session: id, seen });
                return;
            }
        };
        let Begun { worker, window, carrier } = match self.begin(id, version, pid, relay) {
            Ok(begun) => begun,
            Err(error) => {
                let reason = error.to_string();
                // Where it cannot be said, there is nobody to hear it.
                let _ = relay.send(&ToWorkload::Refused { session: id, reason });
                return;
            }
        };
        let (over, gone) = (|| self.is_closed(), || hello::is_closed(&worker));
        carrier.carry(LOOK, over, gone, || relay.bell(id).is_ok());
        drop(worker);
        let _ = relay.send(&ToWorkload::Closed { session: id });
        let end = Instant::now() + CLOSE_LIMIT;
        while !self.is_closed() && Instant::now() < end {
            std::thread::sleep(LOOK);
        }
        self.carrier.lock().unwrap_or_else(PoisonError::into_inner).take();
        relay.windows.unplug(window);
    }

    fn begin(
        &self,
        id: SessionId,
        version: u32,
        pid: u32,
        relay: &Relay,
    ) -> Result<Begun, SessionError> {
        let worker = hello::connect(&slot(relay)?.join(SOCKET), ANSWER_LIMIT)?;
        hello::send(&worker, &Hello { version, pid, window: None, apart: true }, None)?;
        let (welcome, file) = hello::receive::<Welcome>(&worker)?;
        let file = match (&welcome, file) {
            (Welcome::Accepted { .. }, Some(file)) => file,
            (Welcome::Accepted { .. }, None) => return Err(HelloError::NotUnderstood.into()),
            (Welcome::Refused { reason }, _) => return Err(SessionError::Refused(reason.clone())),
        };
        let carrier = Carrier::open(file.as_fd(), Side::Tenant)?;
        let bells = Carrier::open(file.as_fd(), Side::Tenant)?;
        *self.carrier.lock().unwrap_or_else(PoisonError::into_inner) = Some(bells);
        let window = relay.windows.show(file)?;
        let opened =
            ToWorkload::Opened { session: id, bridge: window.bridge(), welcome: Box::new(welcome) };
        match relay.send(&opened) {
            Ok(()) => Ok(Begun { worker, window, carrier }),
            Err(error) => {
                relay.windows.unplug(window);
                Err(error.into())
            }
        }
    }
}

/// The lease's slot, where it has a worker.
fn slot(relay: &Relay) -> Result<&Path, SessionError> {
    let none = || SessionError::Refused("the program has its GPU itself, and no worker".to_owned());
    relay.slot.as_deref().ok_or_else(none)
}
