//! The program's slot: this process stands in the worker's place there. Rings come from the worker as
//! a window, and wakes are carried.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use gpuzone_wire::hello::{self, Hello, HelloError, SOCKET, Welcome};
use gpuzone_wire::view::{Opening, Seen};
use gpuzone_wire::workload_link::{FromWorkload, SLOT_SEEN, ToWorkload};
use gpuzone_wire::zone_link::SessionId;
use rustix::fs::Mode;
use rustix::net::{AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType};

use super::root::seen;
use crate::port::Port;
use crate::{bells, window};

/// How long a process that connected may take to say hello.
const HELLO_LIMIT: Duration = Duration::from_secs(5);
/// How long the host may take to connect it: less than a process waits.
const ANSWER_LIMIT: Duration = Duration::from_secs(14);

pub(super) struct Slot {
    port: Port,
    next: AtomicU64,
    sessions: Mutex<BTreeMap<SessionId, Arc<Session>>>,
}

struct Session {
    /// The process.
    socket: OwnedFd,
    to_worker: OwnedFd,
    to_tenant: OwnedFd,
    told: mpsc::SyncSender<Answer>,
}

enum Answer {
    Opened { bridge: String, welcome: Welcome },
    Seen(Seen),
    Refused(String),
}

#[derive(Debug, thiserror::Error)]
enum AttendError {
    #[error("its rings cannot be opened: {0}")]
    Window(#[from] io::Error),
    #[error(transparent)]
    Hello(#[from] HelloError),
    #[error("{0}")]
    Refused(String),
}

impl Slot {
    /// Listens for the program's processes.
    pub(super) fn open(port: &Port) -> io::Result<Arc<Self>> {
        let path = seen(SLOT_SEEN).join(SOCKET);
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let listener = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
        rustix::net::bind(&listener, &SocketAddrUnix::new(&path)?)?;
        rustix::fs::chmod(&path, Mode::from_raw_mode(0o666))?;
        rustix::net::listen(&listener, 64)?;
        let slot = Arc::new(Self {
            port: port.clone(),
            next: AtomicU64::new(1),
            sessions: Mutex::default(),
        });
        let serving = Arc::clone(&slot);
        std::thread::spawn(move || {
            while let Ok(socket) = rustix::net::accept_with(&listener, SocketFlags::CLOEXEC) {
                let slot = Arc::clone(&serving);
                std::thread::spawn(move || slot.attend(socket));
            }
        });
        Ok(slot)
    }

    fn sessions(&self) -> MutexGuard<'_, BTreeMap<SessionId, Arc<Session>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the host says of sessions.
    pub(super) fn hear(&self, message: ToWorkload) {
        let find = |id: &SessionId| self.sessions().get(id).cloned();
        match message {
            ToWorkload::Opened { session, bridge, welcome } => {
                let told = find(&session).map(|session| session.told.clone());
                // Who does not wait any more has said so.
                let _ =
                    told.map(|told| told.try_send(Answer::Opened { bridge, welcome: *welcome }));
            }
            ToWorkload::Refused { session, reason } => {
                let told = find(&session).map(|session| session.told.clone());
                let _ = told.map(|told| told.try_send(Answer::Refused(reason)));
            }
            ToWorkload::Seen { session, seen } => {
                let told = find(&session).map(|session| session.told.clone());
                let _ = told.map(|told| told.try_send(Answer::Seen(*seen)));
            }
            ToWorkload::Bell { session } => {
                if let Some(session) = find(&session) {
                    bells::ring(&session.to_tenant);
                }
            }
            ToWorkload::Closed { session } => {
                if let Some(session) = find(&session) {
                    let _ = rustix::net::shutdown(&session.socket, Shutdown::Both);
                }
            }
            ToWorkload::Signal { .. }
            | ToWorkload::InputEnds { .. }
            | ToWorkload::Unwanted { .. } => {}
        }
    }

    /// Serves one process, from its greeting to its end.
    fn attend(&self, socket: OwnedFd) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let copy = socket.try_clone();
        let served = copy.map_err(AttendError::from).and_then(|copy| self.serve(id, copy));
        if let Err(error) = served {
            let refused = Welcome::Refused { reason: error.to_string() };
            // Whether it hears the reason is up to it.
            let _ = hello::send(&socket, &refused, None);
        }
        if self.sessions().remove(&id).is_some() {
            self.port.send(&FromWorkload::Close { session: id });
        }
    }

    fn serve(&self, id: SessionId, socket: OwnedFd) -> Result<(), AttendError> {
        hello::limit_waiting(&socket, HELLO_LIMIT)?;
        let opening = hello::receive::<Opening>(&socket)?.0;
        let (to_worker, to_tenant) = (bells::bell()?, bells::bell()?);
        let (told, heard) = mpsc::sync_channel(2);
        let session = Arc::new(Session { socket, to_worker, to_tenant, told });
        self.sessions().insert(id, Arc::clone(&session));
        self.port.send(&match opening {
            Opening::Work(Hello { version, pid, .. }) => {
                FromWorkload::Open { session: id, version, pid }
            }
            Opening::Look(look) => FromWorkload::Look { session: id, look },
        });
        let (bridge, welcome) = match heard.recv_timeout(ANSWER_LIMIT) {
            Ok(Answer::Opened { bridge, welcome }) => (bridge, welcome),
            Ok(Answer::Seen(seen)) => return Ok(hello::send(&session.socket, &seen, None)?),
            Ok(Answer::Refused(reason)) => return Err(AttendError::Refused(reason)),
            Err(_) => return Err(AttendError::Refused("the host does not answer".to_owned())),
        };
        let window = window::open(&bridge)?;
        let files = [window.as_fd(), session.to_worker.as_fd(), session.to_tenant.as_fd()];
        hello::send_with(&session.socket, &welcome, &files)?;
        bells::carry(&session.to_worker, &session.socket, || {
            self.port.send(&FromWorkload::Bell { session: id });
        });
        Ok(())
    }
}
