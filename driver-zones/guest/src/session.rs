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
pub(crate) struct Sessions(Arc<Mutex<BTreeMap<SessionId, State>>>);

#[derive(Debug)]
enum State {
    Opening,
    Open(Arc<Session>),
    /// While it was being opened.
    Closed,
}

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
    #[error("the host closed it before it was open")]
    Closed,
}

impl Sessions {
    fn map(&self) -> MutexGuard<'_, BTreeMap<SessionId, State>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session that [`Sessions::serve`] is about to open.
    pub(crate) fn begin(&self, id: SessionId) {
        self.map().insert(id, State::Opening);
    }

    /// Serves one session, until one of its sides ends it.
    pub(crate) fn serve(&self, opening: &Opening, port: &Port) {
        let id = opening.session;
        let reason = self.open_and_carry(opening, port).err().map(|error| error.to_string());
        self.map().remove(&id);
        port.send(&ToHost::Closed { session: id, reason });
    }

    fn open_and_carry(&self, opening: &Opening, port: &Port) -> Result<(), OpenError> {
        let id = opening.session;
        let (session, welcome) = open(opening)?;
        let session = Arc::new(session);
        if !self.opened(id, &session) {
            return Err(OpenError::Closed);
        }
        let accepted = matches!(welcome, Welcome::Accepted { .. });
        port.send(&ToHost::Opened { session: id, welcome: Box::new(welcome) });
        if accepted {
            bells::carry(&session.to_tenant, &session.socket, || {
                port.send(&ToHost::Bell { session: id });
            });
        }
        Ok(())
    }

    /// Whether it is still wanted.
    fn opened(&self, id: SessionId, session: &Arc<Session>) -> bool {
        match self.map().get_mut(&id) {
            Some(state @ State::Opening) => *state = State::Open(Arc::clone(session)),
            Some(State::Open(_) | State::Closed) | None => return false,
        }
        true
    }

    /// The tenant woke its worker.
    pub(crate) fn bell(&self, id: SessionId) {
        if let Some(State::Open(session)) = self.map().get(&id) {
            bells::ring(&session.to_worker);
        }
    }

    /// The tenant is gone: its worker sees that at the socket.
    pub(crate) fn close(&self, id: SessionId) {
        match self.map().get_mut(&id) {
            Some(State::Open(session)) => {
                let _ = rustix::net::shutdown(&session.socket, Shutdown::Both);
            }
            Some(state @ State::Opening) => *state = State::Closed,
            Some(State::Closed) | None => {}
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

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn session() -> (Arc<Session>, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (to_worker, to_tenant) = (bells::bell().unwrap(), bells::bell().unwrap());
        (Arc::new(Session { socket: ours.into(), to_worker, to_tenant }), theirs)
    }

    #[test]
    fn a_session_that_is_closed_while_it_is_opened_does_not_open() {
        let sessions = Sessions::default();
        let (one, mut worker) = session();
        sessions.begin(1);
        sessions.begin(2);
        sessions.close(1);
        assert!(!sessions.opened(1, &one));
        assert!(!sessions.opened(3, &one), "that nobody asked for");
        assert!(sessions.opened(2, &one));
        assert!(!sessions.opened(2, &one), "twice");
        sessions.close_all();
        assert_eq!(worker.read(&mut [0]).unwrap(), 0, "the worker sees the end");
        sessions.begin(4);
        sessions.close_all();
        assert!(!sessions.opened(4, &one));
    }
}
