//! A tenant's session, as its worker sees it: this process stands in the tenant's place at the
//! slot's socket, hands over the window, and carries wakes.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gpuzone_wire::hello::{self, Hello, HelloError, SOCKET, Welcome};
use gpuzone_wire::ring::RingSizes;
use gpuzone_wire::zone_link::{SessionId, ToHost};
use rustix::net::Shutdown;

use crate::port::Port;
use crate::{bells, window};

const GREETING: Duration = Duration::from_secs(60);

/// The sessions that there are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sessions(Arc<Mutex<BTreeMap<SessionId, Arc<Session>>>>);

#[derive(Debug)]
struct Session {
    socket: OwnedFd,
    to_worker: OwnedFd,
    to_tenant: OwnedFd,
}

/// What a session is made of.
#[derive(Debug)]
pub(crate) struct Opening {
    pub(crate) session: SessionId,
    pub(crate) socket: std::path::PathBuf,
    pub(crate) bridge: String,
    pub(crate) sizes: RingSizes,
    pub(crate) version: u32,
    /// The tenant's process, as it says itself.
    pub(crate) pid: u32,
}

#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error("its window cannot be opened: {0}")]
    Window(#[from] std::io::Error),
    #[error(transparent)]
    Hello(#[from] HelloError),
}

impl Sessions {
    fn map(&self) -> MutexGuard<'_, BTreeMap<SessionId, Arc<Session>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves one session, until one of its sides ends it.
    pub(crate) fn serve(&self, opening: &Opening, port: &Port) {
        let id = opening.session;
        let (session, welcome) = match open(opening) {
            Ok(opened) => opened,
            Err(error) => {
                let reason = Some(error.to_string());
                port.send(&ToHost::Closed { session: id, reason });
                return;
            }
        };
        let accepted = matches!(welcome, Welcome::Accepted { .. });
        let session = Arc::new(session);
        if accepted {
            self.map().insert(id, Arc::clone(&session));
        }
        port.send(&ToHost::Opened { session: id, welcome: Box::new(welcome) });
        if accepted {
            bells::carry(&session.to_tenant, &session.socket, || {
                port.send(&ToHost::Bell { session: id });
            });
            self.map().remove(&id);
            port.send(&ToHost::Closed { session: id, reason: None });
        }
    }

    /// The tenant woke its worker.
    pub(crate) fn bell(&self, id: SessionId) {
        if let Some(session) = self.map().get(&id) {
            bells::ring(&session.to_worker);
        }
    }

    /// The tenant is gone: its worker sees that at the socket.
    pub(crate) fn close(&self, id: SessionId) {
        if let Some(session) = self.map().get(&id) {
            let _ = rustix::net::shutdown(&session.socket, Shutdown::Both);
        }
    }

    pub(crate) fn close_all(&self) {
        let all: Vec<SessionId> = self.map().keys().copied().collect();
        all.into_iter().for_each(|id| self.close(id));
    }
}

fn open(opening: &Opening) -> Result<(Session, Welcome), OpenError> {
    let window = window::open(&opening.bridge)?;
    let (to_worker, to_tenant) = (bells::bell()?, bells::bell()?);
    let socket = hello::connect(&opening.socket, GREETING)?;
    let &Opening { version, pid, sizes, .. } = opening;
    let hello = Hello { version, pid, window: Some(sizes), apart: true };
    hello::send_with(&socket, &hello, &[window.as_fd(), to_worker.as_fd(), to_tenant.as_fd()])?;
    let (welcome, _) = hello::receive::<Welcome>(&socket)?;
    Ok((Session { socket, to_worker, to_tenant }, welcome))
}

/// The socket of a slot.
pub(crate) fn socket_of(slot: &Path) -> std::path::PathBuf {
    slot.join(SOCKET)
}
