//! Zones and their owner: one task for each zone, and a record of each for the next owner.
//!
//! ```text
//! create ─▶ held back ─▶ record: made ──▶ (handle)
//! start  ─▶ record: starting ─▶ let it run ─▶ begun ─▶ record: running
//! end    ─▶ record: ending ─▶ stop ─▶ gone ─▶ record removed
//! ```
//!
//! The record is written before what it says is done. An owner that was killed left its zones
//! running, held back (then they end by themselves), or half started. The next one, over the
//! same folder, keeps those that ran and ends all others ([`crate::ZoneEvent::Adopt`]).

mod owner;
mod record;
pub(crate) mod single;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use crate::backend::{Backend, ZoneStats};
use crate::sandbox::Missing;
use crate::{Exit, ProcessId, WrongEvent, ZoneEvent, ZoneState};
use owner::{Command, Owner, Status};
use record::Record;
pub use record::RecordError;

/// How long a zone may take from its start until its program begins: long, since a node's disk can be
/// busy for seconds, and programs, records and control groups are read and made from it.
pub const START_LIMIT: Duration = Duration::from_secs(30);

/// The zones of one owner. One at a time may have a folder: whoever opens it has its lock.
#[derive(Debug)]
pub struct Zones<B: Backend> {
    backend: Arc<B>,
    folder: PathBuf,
    zones: Mutex<BTreeMap<String, Zone<B>>>,
}

/// A zone, as those see it who use it. Dropping it does nothing to the zone.
#[derive(Debug)]
pub struct Zone<B: Backend> {
    name: Arc<str>,
    backend: Arc<B>,
    zone: Arc<B::Zone>,
    commands: mpsc::UnboundedSender<Command<B::Error>>,
    status: watch::Receiver<Status>,
}

/// Why there is no new zone, or why it does not run.
#[derive(Debug, thiserror::Error)]
pub enum ZoneError<E: std::error::Error + 'static> {
    /// Names are files' and control groups' names.
    #[error("a zone's name has 1 to 64 letters, digits, '-' and '_'; {0:?} has not")]
    Name(String),
    /// One of that name has not ended.
    #[error("there is a zone '{0}' already, and it has not ended")]
    Exists(String),
    /// Without a record, nobody would find it again.
    #[error("cannot write down the zone: {0}")]
    Record(#[source] io::Error),
    /// The backend said no.
    #[error(transparent)]
    Backend(E),
    /// It cannot be started where it is in its life.
    #[error(transparent)]
    Wrong(#[from] WrongEvent),
    /// It takes too long.
    #[error("its program did not begin within {} s", .0.as_secs())]
    Late(Duration),
    /// Somebody ended it, or something did.
    #[error("it ended before its program began")]
    Ended,
}

/// A record that [`Zones::open`] could not read. Its zone, if there is one, has no owner.
#[derive(Debug, thiserror::Error)]
#[error("the record of zone '{zone}' was put aside as {}: {source}", .aside.display())]
pub struct Unreadable {
    /// The zone's name.
    pub zone: String,
    /// Where the record is now.
    pub aside: PathBuf,
    /// What is wrong with it.
    pub source: RecordError,
}

impl<B: Backend> Zones<B> {
    /// An owner over `folder`, which is made if it is not there. Takes over what an earlier
    /// owner left: zones that ran are kept, others are gone when this returns.
    ///
    /// # Errors
    /// When the folder cannot be used, or a process cannot be looked at.
    pub async fn open(backend: B, folder: &Path) -> io::Result<(Self, Vec<Unreadable>)> {
        crate::files::private_dir(folder)?;
        let zones = Self {
            backend: Arc::new(backend),
            folder: folder.to_owned(),
            zones: Mutex::new(BTreeMap::new()),
        };
        let (mut unreadable, mut ending) = (Vec::new(), Vec::new());
        let found = record::all(folder)?;
        for (_, half) in found.halves {
            // Its zone was held back, and has ended by itself.
            crate::files::remove(&half)?;
        }
        for (name, path) in found.records {
            match record::read(&path, B::KIND) {
                Ok(record) => ending.extend(zones.take_over(&name, &path, &record)?),
                Err(source) => {
                    let aside = record::put_aside(&path)?;
                    unreadable.push(Unreadable { zone: name, aside, source });
                }
            }
        }
        for zone in ending {
            zone.ended().await?;
        }
        Ok((zones, unreadable))
    }

    /// The zone, if it has to be ended.
    fn take_over(&self, name: &str, path: &Path, found: &Record) -> io::Result<Option<Zone<B>>> {
        let Some(zone) = self.backend.adopt(name, found.process)? else {
            crate::files::remove(path)?;
            return Ok(None);
        };
        // A record of one that has ended is none that an owner leaves; it is ended again.
        let state = found.state.after(ZoneEvent::Adopt).unwrap_or(ZoneState::Ending);
        let zone = self.own(&mut self.lock(), name, zone, state);
        Ok((state != ZoneState::Running).then_some(zone))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Zone<B>>> {
        self.zones.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn own(
        &self,
        zones: &mut BTreeMap<String, Zone<B>>,
        name: &str,
        zone: B::Zone,
        state: ZoneState,
    ) -> Zone<B> {
        let (commands, taken) = mpsc::unbounded_channel();
        let (told, status) = watch::channel(Status { state, exit: None });
        let zone = Zone {
            name: name.into(),
            backend: Arc::clone(&self.backend),
            zone: Arc::new(zone),
            commands,
            status,
        };
        let record = Record { kind: B::KIND.to_owned(), state, process: zone.process() };
        let path = record::path(&self.folder, name);
        let (backend, owned) = (Arc::clone(&zone.backend), Arc::clone(&zone.zone));
        tokio::spawn(Owner::new(backend, owned, path, record, told, taken).run());
        zones.insert(name.to_owned(), zone.clone());
        zone
    }

    /// Makes a zone, held back and written down. It ends with this owner until it is started.
    ///
    /// # Errors
    /// When there is one of that name, or it cannot be made. What there is of it ends then.
    pub fn create(&self, name: &str, order: B::Order) -> Result<Zone<B>, ZoneError<B::Error>> {
        if !crate::sandbox::is_name(name) {
            return Err(ZoneError::Name(name.to_owned()));
        }
        let mut zones = self.lock();
        zones.retain(|_, zone| zone.state() != ZoneState::Ended);
        if zones.contains_key(name) {
            return Err(ZoneError::Exists(name.to_owned()));
        }
        let zone = self.backend.create(name, order).map_err(ZoneError::Backend)?;
        let process = self.backend.process(&zone);
        let record = Record { kind: B::KIND.to_owned(), state: ZoneState::Made, process };
        match record::write(&record::path(&self.folder, name), &record) {
            Ok(()) => Ok(self.own(&mut zones, name, zone, ZoneState::Made)),
            Err(error) => {
                self.own(&mut zones, name, zone, ZoneState::Ending);
                Err(ZoneError::Record(error))
            }
        }
    }

    /// The zones that have not ended.
    pub fn list(&self) -> Vec<Zone<B>> {
        let mut zones = self.lock();
        zones.retain(|_, zone| zone.state() != ZoneState::Ended);
        zones.values().cloned().collect()
    }

    /// The zone of that name, if it has not ended.
    pub fn get(&self, name: &str) -> Option<Zone<B>> {
        let zones = self.lock();
        zones.get(name).filter(|zone| zone.state() != ZoneState::Ended).cloned()
    }
}

impl<B: Backend> Zone<B> {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process that stands for it.
    pub fn process(&self) -> ProcessId {
        self.backend.process(&self.zone)
    }

    /// Where it is in its life.
    pub fn state(&self) -> ZoneState {
        self.status.borrow().state
    }

    /// Lets it run; answers when its program begins, with what the host lacks.
    ///
    /// # Errors
    /// When the program does not begin. The zone is being ended then.
    pub async fn start(&self) -> Result<Vec<Missing>, ZoneError<B::Error>> {
        let (answer, answered) = oneshot::channel();
        let sent = self.commands.send(Command::Start(answer));
        if sent.is_err() {
            return Err(WrongEvent { state: self.state(), event: ZoneEvent::Start }.into());
        }
        answered.await.unwrap_or(Err(ZoneError::Ended))
    }

    /// Has it ended, and answers when it is gone: at once, or when `grace` has passed since it
    /// was asked to end.
    ///
    /// # Errors
    /// As [`Zone::ended`].
    pub async fn end(&self, grace: Option<Duration>) -> io::Result<Exit> {
        // Nobody takes commands any more when it has ended.
        let _ = self.commands.send(Command::End(grace));
        self.ended().await
    }

    /// Waits until it is gone. May be asked by several, and again later.
    ///
    /// # Errors
    /// When its task failed, so that nobody knows.
    pub async fn ended(&self) -> io::Result<Exit> {
        let mut status = self.status.clone();
        let ended = status.wait_for(|status| status.state == ZoneState::Ended).await;
        let ended = ended.map_err(|_| io::Error::other("the task that owns the zone failed"))?;
        Ok(ended.exit.unwrap_or(Exit::Unknown))
    }

    /// The way to whatever listens for requests in it.
    ///
    /// # Errors
    /// When it is there and cannot be had.
    pub fn channel(&self) -> io::Result<Option<std::os::fd::OwnedFd>> {
        self.backend.channel(&self.zone)
    }

    /// What it uses now.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn stats(&self) -> io::Result<ZoneStats> {
        self.backend.stats(&self.zone)
    }
}

impl Zone<crate::sandbox::Sandboxes> {
    /// What holds its process, for others to watch it by.
    pub(crate) fn pidfd(&self) -> io::Result<std::os::fd::OwnedFd> {
        self.zone.pidfd()
    }
}

impl<B: Backend> Clone for Zone<B> {
    fn clone(&self) -> Self {
        Self {
            name: Arc::clone(&self.name),
            backend: Arc::clone(&self.backend),
            zone: Arc::clone(&self.zone),
            commands: self.commands.clone(),
            status: self.status.clone(),
        }
    }
}
