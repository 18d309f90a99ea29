//! Messages from and to the guest.
//!
//! What comes in is a stranger's: a line has an end, a session is one that there is, and there are no
//! more of them than windows.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gpuzone_wire::workload_link::{FromWorkload, MAX_LINE, ToWorkload, VERSION};
use gpuzone_wire::zone_link::SessionId;
use gpuzone_zone::microvm::{MOST_WINDOWS, Outbox, Windows};
use tokio::sync::mpsc::UnboundedSender;

use crate::session::{Session, Visit};

/// The way to the guest, and its sessions.
pub(crate) struct Relay {
    outbox: Outbox,
    sessions: Mutex<BTreeMap<SessionId, Arc<Session>>>,
    pub(crate) windows: Windows,
    pub(crate) slot: Option<PathBuf>,
}

/// How the guest's part came to its end.
pub(crate) type Outcome = Result<FromWorkload, io::Error>;

impl Relay {
    /// Listens to the guest, on a thread of its own, until the program has ended. A guest that reads
    /// nothing for `stalled` has no say any more.
    pub(crate) fn start(
        control: UnixStream,
        windows: Windows,
        slot: Option<PathBuf>,
        over: UnboundedSender<Outcome>,
        stalled: Duration,
    ) -> io::Result<Arc<Self>> {
        let reader = BufReader::new(control.try_clone()?);
        let (outbox, sessions) = (Outbox::start(control, stalled)?, Mutex::default());
        let relay = Arc::new(Self { outbox, sessions, windows, slot });
        let listening = Arc::clone(&relay);
        std::thread::Builder::new().name("guest".to_owned()).spawn(move || {
            // Nobody hears it when all is over.
            let heard = Arc::clone(&listening).listen(reader);
            let heard = heard.map_err(|error| match listening.outbox.trouble() {
                Some(trouble) => io::Error::new(io::ErrorKind::BrokenPipe, trouble),
                None => error,
            });
            let _ = over.send(heard);
        })?;
        Ok(relay)
    }

    fn sessions(&self) -> MutexGuard<'_, BTreeMap<SessionId, Arc<Session>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a message. Never waits, whether the guest reads or not.
    pub(crate) fn send(&self, message: &ToWorkload) -> io::Result<()> {
        self.outbox.send(line_of(message)?)
    }

    /// Wakes a session's process, unless the guest is still to hear of the last time.
    pub(crate) fn bell(&self, session: SessionId) -> io::Result<()> {
        self.outbox.send_once(session, line_of(&ToWorkload::Bell { session })?)
    }

    fn listen(self: Arc<Self>, mut reader: impl BufRead) -> Outcome {
        loop {
            match next(&mut reader)? {
                FromWorkload::Hello { version: VERSION } => {}
                FromWorkload::Hello { version } => {
                    let message = format!(
                        "the guest's image speaks version {version}, and this host {VERSION}; build the image anew"
                    );
                    return Err(io::Error::new(io::ErrorKind::InvalidData, message));
                }
                FromWorkload::Open { session, version, pid } => {
                    self.visit(session, Visit::Work { version, pid })?;
                }
                FromWorkload::Look { session, look } => self.visit(session, Visit::Look(look))?,
                FromWorkload::Bell { session } => {
                    if let Some(session) = self.sessions().get(&session) {
                        session.bell();
                    }
                }
                FromWorkload::Close { session } => {
                    if let Some(session) = self.sessions().get(&session) {
                        session.close();
                    }
                }
                over @ (FromWorkload::Exited { .. }
                | FromWorkload::Unrunnable { .. }
                | FromWorkload::Failed { .. }) => return Ok(over),
            }
        }
    }

    fn visit(self: &Arc<Self>, id: SessionId, visit: Visit) -> io::Result<()> {
        let mut sessions = self.sessions();
        if sessions.contains_key(&id) || sessions.len() >= usize::from(MOST_WINDOWS) {
            drop(sessions);
            let reason = "too many processes are connected".to_owned();
            return self.send(&ToWorkload::Refused { session: id, reason });
        }
        let session = Arc::new(Session::default());
        sessions.insert(id, Arc::clone(&session));
        drop(sessions);
        let relay = Arc::clone(self);
        std::thread::Builder::new().name(format!("session-{id}")).spawn(move || {
            session.serve(id, visit, &relay);
            relay.sessions().remove(&id);
        })?;
        Ok(())
    }
}

fn line_of(message: &ToWorkload) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

fn next(reader: &mut impl BufRead) -> io::Result<FromWorkload> {
    let mut line = Vec::new();
    reader.take(MAX_LINE as u64).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the microVM says no more"));
    }
    if line.last() != Some(&b'\n') {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the microVM's line has no end"));
    }
    serde_json::from_slice(&line).map_err(|error| {
        let message = format!("the microVM says what is no message: {error}");
        io::Error::new(io::ErrorKind::InvalidData, message)
    })
}

/// What a guest says goes to a terminal: not more of it than fits a line.
pub(crate) fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(500).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use gpuzone_zone::microvm::{Hypervisor, MicroVms};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_line_without_end_and_what_is_no_message_are_errors() {
        let said = |bytes: &[u8]| next(&mut io::Cursor::new(bytes.to_vec()));
        let hello = b"{\"to_host\":\"hello\",\"version\":1}\n";
        assert_eq!(said(hello).unwrap(), FromWorkload::Hello { version: 1 });
        for wrong in [&b""[..], b"{}\n", b"nonsense\n", b"{\"to_host\":\"hello\",\"version\":1}"] {
            assert!(said(wrong).is_err());
        }
        assert!(said(&vec![b' '; MAX_LINE * 2]).is_err());
    }

    /// As much of a guest as does what it likes.
    fn guest() -> (UnixStream, tokio::sync::mpsc::UnboundedReceiver<Outcome>) {
        let (guest, _, outcome) = guest_that_stalls(LONG);
        (guest, outcome)
    }

    fn guest_that_stalls(
        stalled: Duration,
    ) -> (UnixStream, Arc<Relay>, tokio::sync::mpsc::UnboundedReceiver<Outcome>) {
        let (guest, control) = UnixStream::pair().unwrap();
        let (over, outcome) = tokio::sync::mpsc::unbounded_channel();
        let vms = MicroVms::new("/nonexistent".into(), Hypervisor::Qemu);
        let windows = Windows::new(&vms, "none", 1);
        let slot = Some("/nonexistent".into());
        let relay = Relay::start(control, windows, slot, over, stalled).unwrap();
        (guest, relay, outcome)
    }

    #[test]
    fn a_guest_that_opens_without_end_gets_an_answer_for_each_and_nothing_else() {
        const MANY: u64 = 1000;
        let (guest, mut outcome) = guest();
        let mut writer = guest.try_clone().unwrap();
        let asking = std::thread::spawn(move || {
            for session in 0..MANY {
                let bell = FromWorkload::Bell { session: session + MANY };
                for message in [bell, FromWorkload::Open { session, version: 1, pid: 1 }] {
                    let line = serde_json::to_string(&message).unwrap() + "\n";
                    writer.write_all(line.as_bytes()).unwrap();
                }
            }
        });
        let mut lines = BufReader::new(&guest).lines();
        let mut refused = std::collections::BTreeSet::new();
        while refused.len() < usize::try_from(MANY).unwrap() {
            let line = lines.next().unwrap().unwrap();
            match serde_json::from_str(&line).unwrap() {
                ToWorkload::Refused { session, .. } => assert!(refused.insert(session), "{line}"),
                other => panic!("{other:?}"),
            }
        }
        asking.join().unwrap();
        (&guest).write_all(b"{}\n").unwrap();
        assert!(outcome.blocking_recv().unwrap().is_err());
    }

    /// A program's signals, and whoever else speaks to the guest, never wait for it.
    #[test]
    fn a_guest_that_stops_reading_holds_up_no_signal_and_is_over() {
        let (guest, relay, mut outcome) = guest_that_stalls(Duration::from_millis(200));
        let error = loop {
            if let Err(error) = relay.send(&ToWorkload::Signal { number: 15 }) {
                break error.to_string();
            }
        };
        assert!(error.contains("at its control port"), "{error}");
        let over = outcome.blocking_recv().unwrap().unwrap_err().to_string();
        assert_eq!(over, error);
        drop(guest);
    }

    #[test]
    fn a_guest_of_another_version_and_one_that_leaves_are_errors() {
        let (guest, mut outcome) = guest();
        (&guest).write_all(b"{\"to_host\":\"hello\",\"version\":99}\n").unwrap();
        let error = outcome.blocking_recv().unwrap().unwrap_err().to_string();
        assert!(error.contains("build the image anew"), "{error}");
        let (guest, mut outcome) = self::guest();
        drop(guest);
        assert!(outcome.blocking_recv().unwrap().is_err());
    }
}
