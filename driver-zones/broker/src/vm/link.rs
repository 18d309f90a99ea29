//! The way to the guest's first process: lines over the control port.
//!
//! What comes in is a stranger's: a line has an end, an answer is to something that was asked, and
//! a session is one that was opened.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use gpuzone_wire::control::{Reply, Request};
use gpuzone_wire::hello::Welcome;
use gpuzone_wire::view::Seen;
use gpuzone_wire::zone_link::{Health, MAX_LINE, SessionId, ToGuest, ToHost, VERSION};
use gpuzone_zone::microvm::Outbox;
use tokio::sync::{Notify, oneshot};

/// What a session's thread is told.
#[derive(Debug)]
pub(super) enum Told {
    Opened(Welcome),
    Seen(Seen),
    Closed(Option<String>),
}

/// What is to happen when the guest has something for a session.
pub(super) trait Session: Send + Sync {
    /// The worker woke its tenant.
    fn bell(&self);
    /// The greeting was answered, or the session is over.
    fn told(&self, what: Told);
}

/// A connection to a guest that said hello.
pub(super) struct Link {
    outbox: Outbox,
    next: AtomicU64,
    waiting: Mutex<Waiting>,
    /// Notified when it breaks.
    pub(super) broken: Notify,
}

#[derive(Default)]
struct Waiting {
    answers: BTreeMap<u64, oneshot::Sender<Reply>>,
    sessions: BTreeMap<SessionId, Arc<dyn Session>>,
    began: Option<oneshot::Sender<Result<(), String>>>,
    health: Option<oneshot::Sender<Health>>,
    over: bool,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

impl Link {
    /// Waits until a guest answers at the port. One that reads nothing for `stalled` is not heard any
    /// more either.
    ///
    /// # Errors
    /// When none does within `limit`.
    pub(super) fn open(port: OwnedFd, limit: Duration, stalled: Duration) -> io::Result<Arc<Self>> {
        let stream = UnixStream::from(port);
        let nonce = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0);
        let outbox = Outbox::start(stream.try_clone()?, stalled)?;
        let mut lines = Lines(BufReader::new(stream));
        outbox.send(line_of(&ToGuest::Hello { version: VERSION, nonce })?)?;
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            lines.0.get_ref().set_read_timeout(Some(left))?;
            match lines.next()? {
                ToHost::Hello { version, nonce: told, begun: _ } if told == nonce => {
                    if version != VERSION {
                        let message = format!(
                            "the guest's image speaks version {version}, and this host {VERSION}; build the image anew"
                        );
                        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
                    }
                    break;
                }
                // What was said to whoever was here before.
                ToHost::Hello { .. } | ToHost::Began | ToHost::Failed { .. } => {}
                ToHost::Answer { .. } | ToHost::Opened { .. } | ToHost::Bell { .. } => {}
                ToHost::Seen { .. } => {}
                ToHost::Closed { .. } | ToHost::Health(_) => {}
            }
        }
        lines.0.get_ref().set_read_timeout(None)?;
        let link = Arc::new(Self {
            outbox,
            next: AtomicU64::new(1),
            waiting: Mutex::default(),
            broken: Notify::new(),
        });
        let reader = Arc::clone(&link);
        std::thread::Builder::new().name("guest".to_owned()).spawn(move || {
            let error = loop {
                match lines.next() {
                    Ok(message) => reader.heard(message),
                    Err(error) => break error,
                }
            };
            let trouble = reader.outbox.trouble().unwrap_or_default();
            tracing::warn!(%error, trouble, "the guest says no more");
            reader.close();
        })?;
        Ok(link)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To wait for something, which nobody does once the link is over.
    fn to_wait(&self) -> io::Result<MutexGuard<'_, Waiting>> {
        let waiting = self.waiting();
        if waiting.over { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(waiting) }
    }

    /// Nothing more is heard; who waits is told so.
    pub(super) fn close(&self) {
        let over = Waiting { over: true, ..Waiting::default() };
        let waiting = std::mem::replace(&mut *self.waiting(), over);
        for session in waiting.sessions.values() {
            session.told(Told::Closed(Some("the driver zone's microVM ended".to_owned())));
        }
        self.outbox.close();
        self.broken.notify_one();
    }

    fn heard(&self, message: ToHost) {
        let mut waiting = self.waiting();
        match message {
            ToHost::Hello { .. } => {}
            ToHost::Began => drop(waiting.began.take().map(|began| began.send(Ok(())))),
            ToHost::Failed { reason } => {
                drop(waiting.began.take().map(|began| began.send(Err(printable(&reason)))));
            }
            ToHost::Answer { id, reply } => {
                drop(waiting.answers.remove(&id).map(|asked| asked.send(*reply)));
            }
            ToHost::Opened { session, welcome } => {
                if let Some(session) = waiting.sessions.get(&session) {
                    session.told(Told::Opened(*welcome));
                }
            }
            ToHost::Seen { session, seen } => {
                if let Some(session) = waiting.sessions.get(&session) {
                    session.told(Told::Seen(*seen));
                }
            }
            ToHost::Bell { session } => {
                if let Some(session) = waiting.sessions.get(&session) {
                    session.bell();
                }
            }
            ToHost::Closed { session, reason } => {
                if let Some(session) = waiting.sessions.remove(&session) {
                    session.told(Told::Closed(reason.as_deref().map(printable)));
                }
            }
            ToHost::Health(health) => {
                let _ = waiting.health.take().map(|asked| asked.send(health));
            }
        }
    }

    /// Sends a message. Never waits, whether the guest reads or not.
    pub(super) fn send(&self, message: &ToGuest) -> io::Result<()> {
        self.outbox.send(line_of(message)?)
    }

    /// Wakes a session's worker, unless the guest is still to hear of the last time.
    pub(super) fn bell(&self, session: SessionId) -> io::Result<()> {
        self.outbox.send_once(session, line_of(&ToGuest::Bell { session })?)
    }

    /// Has the broker in the guest started, which takes no longer than `limit`.
    pub(super) async fn begin(&self, message: ToGuest, limit: Duration) -> Result<(), String> {
        let (began, answered) = oneshot::channel();
        let told = self.to_wait().map(|mut waiting| waiting.began = Some(began));
        told.and_then(|()| self.send(&message)).map_err(|error| error.to_string())?;
        match tokio::time::timeout(limit, answered).await {
            Ok(began) => began.unwrap_or_else(|_| Err("the microVM ended meanwhile".to_owned())),
            Err(_) => Err(format!(
                "the guest's first process did not start the broker within {} s",
                limit.as_secs()
            )),
        }
    }

    /// Asks the broker in the guest.
    pub(super) async fn ask(&self, request: Request) -> io::Result<Reply> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (asked, answered) = oneshot::channel();
        self.to_wait()?.answers.insert(id, asked);
        let limit = limit_of(&request);
        self.send(&ToGuest::Ask { id, request: Box::new(request) })?;
        match tokio::time::timeout(limit, answered).await {
            Ok(answer) => answer.map_err(|_| io::ErrorKind::BrokenPipe.into()),
            Err(_) => {
                self.waiting().answers.remove(&id);
                Err(io::ErrorKind::TimedOut.into())
            }
        }
    }

    /// How the guest is.
    pub(super) async fn health(&self) -> io::Result<Health> {
        let (asked, answered) = oneshot::channel();
        self.to_wait()?.health = Some(asked);
        self.send(&ToGuest::Health)?;
        answered.await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    /// A new session, of which `session` hears from now on.
    pub(super) fn open_session(&self, session: Arc<dyn Session>) -> io::Result<SessionId> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.to_wait()?.sessions.insert(id, session);
        Ok(id)
    }

    pub(super) fn forget_session(&self, id: SessionId) {
        self.waiting().sessions.remove(&id);
    }
}

/// How long an answer is waited for: longer than the guest's broker takes in the worst case.
const fn limit_of(request: &Request) -> Duration {
    match request {
        Request::Start(_) => Duration::from_secs(60),
        Request::Stop { .. } => Duration::from_secs(25),
        Request::Scrub(order) => Duration::from_millis(order.limit_ms.saturating_add(30_000)),
        Request::Hello { .. }
        | Request::Status
        | Request::Ended
        | Request::Settle { .. }
        | Request::Acknowledge { .. } => Duration::from_secs(5),
        Request::Shutdown => Duration::from_secs(30),
    }
}

/// Sends what is told to a thread that waits for it.
pub(super) fn tell(to: &mpsc::SyncSender<Told>, what: Told) {
    // One that is told more than it reads has what it needs.
    let _ = to.try_send(what);
}

fn line_of(message: &ToGuest) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

struct Lines(BufReader<UnixStream>);

impl Lines {
    fn next(&mut self) -> io::Result<ToHost> {
        let mut line = Vec::new();
        Read::by_ref(&mut self.0).take(MAX_LINE as u64).read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            let kind = if line.is_empty() {
                io::ErrorKind::UnexpectedEof
            } else {
                io::ErrorKind::InvalidData
            };
            return Err(kind.into());
        }
        Ok(serde_json::from_slice(&line)?)
    }
}

/// What a guest says goes into logs and to tenants: not more of it than fits a line.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(500).collect()
}

#[cfg(test)]
mod tests;
