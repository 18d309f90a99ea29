//! The side of who asks.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use super::{Ask, Tell};
use crate::packets::{self, Packet};
use crate::process::has_ended;
use crate::sandbox::Missing;
use crate::{Exit, ProcessId};

/// The maker, as those see it who ask.
#[derive(Clone, Debug)]
pub struct Maker {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    line: AsyncFd<OwnedFd>,
    zones: Mutex<BTreeMap<String, watch::Sender<Seen>>>,
    lost: watch::Sender<bool>,
}

/// What the maker has said of a zone.
#[derive(Clone, Debug, Default)]
struct Seen {
    made: Option<(ProcessId, Arc<OwnedFd>)>,
    begun: Option<Vec<Missing>>,
    refused: Option<String>,
    exit: Option<Exit>,
}

/// A zone that the maker made. Dropping it does nothing to the zone.
#[derive(Clone, Debug)]
pub struct MadeZone {
    name: Arc<str>,
    process: ProcessId,
    pidfd: Arc<OwnedFd>,
    seen: watch::Receiver<Seen>,
    shared: Arc<Shared>,
}

/// Open files that a zone's program gets.
#[derive(Debug)]
pub struct Files {
    /// Standard input.
    pub stdin: OwnedFd,
    /// Standard output.
    pub stdout: OwnedFd,
    /// Standard error.
    pub stderr: OwnedFd,
    /// Those that it gets as 3, 4 and so on.
    pub inherit: Vec<OwnedFd>,
}

/// Why there is no zone, or why it does not run.
#[derive(Debug, thiserror::Error)]
pub enum MakerError {
    /// The maker said no.
    #[error("{0}")]
    Refused(String),
    /// It ended before its program began.
    #[error("it ended before its program began")]
    Ended,
    /// There is one.
    #[error("there is a zone '{0}' already, and it has not ended")]
    Exists(String),
    /// The maker cannot be told or heard.
    #[error("cannot speak to the maker of zones: {0}")]
    Line(#[from] io::Error),
}

impl Maker {
    /// The maker at the other end of `line`, when it has said which zones there are.
    ///
    /// # Errors
    /// When it says something else, or nothing.
    pub async fn connect(line: OwnedFd) -> io::Result<Self> {
        let line = packets::watched(line)?;
        let lost = watch::Sender::new(false);
        let shared = Arc::new(Shared { line, zones: Mutex::default(), lost });
        loop {
            match hear(&shared.line).await? {
                Some((Tell::Found { zone, process }, pidfd)) => {
                    let seen = Seen { made: Some((process, made(pidfd)?)), ..Seen::default() };
                    shared.zones().insert(zone, watch::Sender::new(seen));
                }
                Some((Tell::Serving, _)) => break,
                // One that was found has ended since.
                Some((Tell::Ended { zone, exit }, _)) => {
                    shared.note(&zone, |seen| seen.exit = Some(exit))
                }
                Some((
                    tell @ (Tell::Made { .. } | Tell::Begun { .. } | Tell::Refused { .. }),
                    _,
                )) => {
                    return Err(io::Error::other(format!("the maker begins with {tell:?}")));
                }
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        tokio::spawn(listen(Arc::clone(&shared)));
        Ok(Self { shared })
    }

    /// Makes a zone of that kind, held back. It ends with this process until it is started.
    ///
    /// # Errors
    /// When there is one of that name, or it cannot be made.
    pub async fn make(&self, name: &str, kind: &str, files: Files) -> Result<MadeZone, MakerError> {
        let mut seen = {
            let mut zones = self.shared.zones();
            zones.retain(|_, zone| zone.borrow().exit.is_none());
            if zones.contains_key(name) {
                return Err(MakerError::Exists(name.to_owned()));
            }
            let zone = watch::Sender::new(Seen::default());
            let seen = zone.subscribe();
            zones.insert(name.to_owned(), zone);
            seen
        };
        let made = self.wait_for_zone(name, kind, &files, &mut seen).await;
        if made.is_err() {
            self.shared.zones().remove(name);
        }
        let (process, pidfd) = made?;
        Ok(self.zone(name, process, pidfd, seen))
    }

    async fn wait_for_zone(
        &self,
        name: &str,
        kind: &str,
        files: &Files,
        seen: &mut watch::Receiver<Seen>,
    ) -> Result<(ProcessId, Arc<OwnedFd>), MakerError> {
        let ask = Ask::Make { zone: name.to_owned(), kind: kind.to_owned() };
        let Files { stdin, stdout, stderr, inherit } = files;
        let all: Vec<BorrowedFd<'_>> =
            [stdin, stdout, stderr].into_iter().chain(inherit).map(AsFd::as_fd).collect();
        self.shared.ask(&ask, &all).await?;
        let is_known = |seen: &Seen| seen.made.is_some() || seen.refused.is_some();
        let known = self.shared.unless_lost(seen, is_known).await?;
        known.made.ok_or_else(|| MakerError::Refused(known.refused.unwrap_or_default()))
    }

    fn zone(
        &self,
        name: &str,
        process: ProcessId,
        pidfd: Arc<OwnedFd>,
        seen: watch::Receiver<Seen>,
    ) -> MadeZone {
        MadeZone { name: name.into(), process, pidfd, seen, shared: Arc::clone(&self.shared) }
    }

    /// The zones that have not ended.
    pub fn list(&self) -> Vec<MadeZone> {
        let zones = self.shared.zones();
        let living = zones.iter().filter(|(_, zone)| zone.borrow().exit.is_none());
        let known = living.filter_map(|(name, zone)| {
            let (process, pidfd) = zone.borrow().made.clone()?;
            Some(self.zone(name, process, pidfd, zone.subscribe()))
        });
        known.collect()
    }

    /// The zone of that name, if it has not ended.
    pub fn get(&self, name: &str) -> Option<MadeZone> {
        self.list().into_iter().find(|zone| zone.name() == name)
    }

    /// Waits until the maker is gone. Zones that run go on, and nothing is heard of them any more:
    /// whoever waits for one of them does so for ever.
    pub async fn lost(&self) {
        let mut lost = self.shared.lost.subscribe();
        // An error would mean that nobody can tell; this holds who could.
        let _ = lost.wait_for(|lost| *lost).await;
    }

    /// Says goodbye to the maker, and waits until it is gone.
    pub async fn close(&self) {
        let closed = rustix::net::shutdown(&self.shared.line, rustix::net::Shutdown::Write);
        if closed.is_ok() {
            self.lost().await;
        }
    }
}

impl MadeZone {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process that stands for it.
    pub fn process(&self) -> ProcessId {
        self.process
    }

    /// Whether that process has ended, whatever the maker has said so far.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn is_gone(&self) -> io::Result<bool> {
        has_ended(self.pidfd.as_fd())
    }

    /// Lets it run; answers when its program begins, with what the host lacks.
    ///
    /// # Errors
    /// When the program does not begin. The zone is being ended then.
    pub async fn start(&self) -> Result<Vec<Missing>, MakerError> {
        self.shared.ask(&Ask::Start { zone: self.name.to_string() }, &[]).await?;
        let is_known =
            |seen: &Seen| seen.begun.is_some() || seen.refused.is_some() || seen.exit.is_some();
        let known = self.shared.unless_lost(&mut self.seen.clone(), is_known).await?;
        match (known.begun, known.refused) {
            (Some(missing), _) => Ok(missing),
            (None, Some(reason)) => Err(MakerError::Refused(reason)),
            (None, None) => Err(MakerError::Ended),
        }
    }

    /// Has it ended, and answers when it is gone.
    ///
    /// # Errors
    /// When the maker cannot be told.
    pub async fn end(&self) -> io::Result<Exit> {
        self.shared.ask(&Ask::End { zone: self.name.to_string() }, &[]).await?;
        Ok(self.ended().await)
    }

    /// Waits until it is gone; for ever when the maker is lost ([`Maker::lost`]). May be asked by
    /// several, and again later.
    pub async fn ended(&self) -> Exit {
        let mut seen = self.seen.clone();
        match seen.wait_for(|seen| seen.exit.is_some()).await.map(|seen| seen.exit) {
            Ok(Some(exit)) => exit,
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }
}

impl Shared {
    fn zones(&self) -> MutexGuard<'_, BTreeMap<String, watch::Sender<Seen>>> {
        self.zones.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(&self, ask: &Ask, files: &[BorrowedFd<'_>]) -> io::Result<()> {
        packets::send_soon(&self.line, &serde_json::to_vec(ask)?, files).await
    }

    /// What is seen when `is_known`.
    async fn unless_lost(
        &self,
        seen: &mut watch::Receiver<Seen>,
        is_known: impl FnMut(&Seen) -> bool,
    ) -> Result<Seen, MakerError> {
        let gone = || MakerError::Line(io::ErrorKind::UnexpectedEof.into());
        let mut lost = self.lost.subscribe();
        tokio::select! {
            biased;
            known = seen.wait_for(is_known) => known.map(|seen| seen.clone()).map_err(|_| gone()),
            _ = lost.wait_for(|lost| *lost) => Err(gone()),
        }
    }

    fn note(&self, zone: &str, what: impl FnOnce(&mut Seen)) {
        if let Some(zone) = self.zones().get(zone) {
            zone.send_modify(what);
        }
    }
}

/// Hears what the maker says until it is gone.
async fn listen(shared: Arc<Shared>) {
    while let Ok(Some((tell, pidfd))) = hear(&shared.line).await {
        match tell {
            Tell::Made { zone, process } => {
                let Ok(pidfd) = made(pidfd) else { break };
                shared.note(&zone, |seen| seen.made = Some((process, pidfd)));
            }
            Tell::Begun { zone, missing } => shared.note(&zone, |seen| seen.begun = Some(missing)),
            Tell::Refused { zone, reason } => {
                shared.note(&zone, |seen| seen.refused = Some(reason));
            }
            Tell::Ended { zone, exit } => shared.note(&zone, |seen| seen.exit = Some(exit)),
            Tell::Found { .. } | Tell::Serving => break,
        }
    }
    shared.lost.send_replace(true);
}

async fn hear(line: &AsyncFd<OwnedFd>) -> io::Result<Option<(Tell, Option<OwnedFd>)>> {
    let Some(Packet { text, files }) = packets::receive_soon(line).await? else { return Ok(None) };
    Ok(Some((serde_json::from_slice(&text)?, files.into_iter().next())))
}

fn made(pidfd: Option<OwnedFd>) -> io::Result<Arc<OwnedFd>> {
    pidfd.map(Arc::new).ok_or_else(|| io::Error::other("the maker hands over no process"))
}
