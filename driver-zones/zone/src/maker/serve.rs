//! The maker's side.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use super::{Ask, Sandbox, Tell, Template};
use crate::packets::{self, Packet};
use crate::sandbox::{EXIT_FAILED, Filter, Launch, Order, Sandboxes, confine_maker};
use crate::{Zone, ZoneError, ZoneState, Zones};

/// How long the maker before this one may take to end.
const TAKE_OVER_LIMIT: Duration = Duration::from_secs(10);
/// Zones at one time; each holds descriptors and numbers of users.
const MOST_ZONES: usize = 2048;
/// Longest reason for a refusal.
const LONGEST_REASON: usize = 4096;

/// Why a maker does not serve, or does not go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// It cannot give up what it does not need.
    #[error(transparent)]
    Privileges(#[from] crate::sandbox::PrivilegesError),
    /// It does not know what to make.
    #[error("the template of zones is none: {0}")]
    Template(#[source] io::Error),
    /// What an earlier maker left cannot be taken over.
    #[error("cannot take over the zones of {}: {source}", .folder.display())]
    Folder {
        /// Where they are written down.
        folder: std::path::PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Whoever asks is not to be believed any more.
    #[error("what was asked for makes no sense, so nothing is made for who asked any more: {0}")]
    Nonsense(String),
    /// The line broke.
    #[error("cannot speak to who asks: {0}")]
    Line(#[source] io::Error),
}

/// As [`serve`], as a process of its own with the template in the file `template`; the exit code.
pub fn run(folder: &Path, template: File, line: OwnedFd) -> u8 {
    let served = || -> Result<(), ServeError> {
        // Its sandbox has taken what is not for a maker of its kind.
        confine_maker(Filter::Machines)?;
        let template = Template::read(template).map_err(ServeError::Template)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(ServeError::Line)?.block_on(serve(folder, template, line))
    };
    match served() {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("gpu-zone-sandbox: {error}");
            EXIT_FAILED
        }
    }
}

/// Makes zones as the template says for who asks over `line`, until that closes, and writes them down in
/// `folder`, where nobody else writes.
///
/// # Errors
/// When an earlier maker's zones cannot be taken over, or what is heard makes no sense. Zones that run
/// go on.
pub async fn serve(folder: &Path, template: Template, line: OwnedFd) -> Result<(), ServeError> {
    let unusable = |source| ServeError::Folder { folder: folder.to_owned(), source };
    let _lock = take(folder).await.map_err(unusable)?;
    let (zones, unreadable) = Zones::open(Sandboxes, folder).await.map_err(unusable)?;
    for unreadable in unreadable {
        eprintln!("{unreadable}; if its process runs, nobody looks after it: end it");
    }
    let line = Arc::new(packets::watched(line).map_err(ServeError::Line)?);
    let mut makes = Makes { template, zones, line, made: BTreeMap::new() };
    let served = makes.serve().await;
    // What does not run yet was made for nobody.
    for zone in makes.zones.list() {
        if zone.state() != ZoneState::Running {
            zone.end(None).await.map_err(ServeError::Line)?;
        }
    }
    // Closed for good, whoever still holds it to tell of a zone's end.
    let _ = rustix::net::shutdown(&makes.line, rustix::net::Shutdown::Both);
    served
}

/// The right to the folder, when no other maker has it any more.
async fn take(folder: &Path) -> io::Result<OwnedFd> {
    crate::files::private_dir(folder)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let lock = rustix::fs::open(folder, flags, Mode::empty())?;
    let end = Instant::now() + TAKE_OVER_LIMIT;
    loop {
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(lock),
            Err(Errno::WOULDBLOCK) if Instant::now() < end => sleep(Duration::from_millis(2)).await,
            Err(Errno::WOULDBLOCK) => return Err(io::Error::other("another maker has it")),
            Err(error) => return Err(error.into()),
        }
    }
}

struct Makes {
    template: Template,
    zones: Zones<Sandboxes>,
    line: Arc<AsyncFd<OwnedFd>>,
    /// Those that can be started and ended; that have ended, go when another is made.
    made: BTreeMap<String, Made>,
}

struct Made {
    zone: Zone<Sandboxes>,
    /// Told once.
    start: Option<oneshot::Sender<()>>,
    ends: bool,
}

impl Makes {
    async fn serve(&mut self) -> Result<(), ServeError> {
        for zone in self.zones.list() {
            self.found(zone).await.map_err(ServeError::Line)?;
        }
        tell(&self.line, &Tell::Serving, &[]).await.map_err(ServeError::Line)?;
        loop {
            match packets::receive_soon(&self.line).await {
                Ok(Some(packet)) => self.answer(packet).await?,
                Ok(None) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    return Err(ServeError::Nonsense("it is too long".to_owned()));
                }
                Err(error) => return Err(ServeError::Line(error)),
            }
        }
    }

    async fn found(&mut self, zone: Zone<Sandboxes>) -> io::Result<()> {
        let found = Tell::Found { zone: zone.name().to_owned(), process: zone.process() };
        self.announce(zone, &found, None).await
    }

    async fn answer(&mut self, Packet { text, files }: Packet) -> Result<(), ServeError> {
        let ask = serde_json::from_slice(&text);
        match ask.map_err(|error| ServeError::Nonsense(error.to_string()))? {
            Ask::Make { zone, kind } => match self.make(&zone, &kind, files) {
                Ok(made) => {
                    let (start, started) = oneshot::channel();
                    let told = Tell::Made { zone, process: made.process() };
                    self.announce(made, &told, Some((start, started))).await
                }
                Err(reason) => tell(&self.line, &refused(&zone, &reason), &[]).await,
            },
            // Whoever asks for what has ended meanwhile will hear of that.
            Ask::Start { zone } => {
                if let Some(start) = self.made.get_mut(&zone).and_then(|made| made.start.take()) {
                    let _ = start.send(());
                }
                Ok(())
            }
            Ask::End { zone } => {
                if let Some(made) = self.made.get_mut(&zone).filter(|made| !made.ends) {
                    made.ends = true;
                    let zone = made.zone.clone();
                    tokio::spawn(async move { zone.end(None).await });
                }
                Ok(())
            }
        }
        .map_err(ServeError::Line)
    }

    fn make(
        &mut self,
        zone: &str,
        kind: &str,
        files: Vec<OwnedFd>,
    ) -> Result<Zone<Sandboxes>, String> {
        self.made.retain(|_, made| made.zone.state() != ZoneState::Ended);
        if self.made.len() >= MOST_ZONES {
            return Err(format!("there are {MOST_ZONES} zones already"));
        }
        let Template { program, environment, kinds, sandbox } = &self.template;
        let kind = kinds.get(kind).ok_or_else(|| "there is no such kind of zone".to_owned())?;
        if files.len() != 3 + kind.files {
            return Err(format!("{} files come with it, and not {}", 3 + kind.files, files.len()));
        }
        let mut files = files.into_iter();
        let (Some(stdin), Some(stdout), Some(stderr)) = (files.next(), files.next(), files.next())
        else {
            return Err("standard input, output and error come with it".to_owned());
        };
        let launch = Launch {
            program: program.clone(),
            arguments: kind.arguments.iter().map(Into::into).collect(),
            environment: environment.clone(),
            stdin,
            stdout,
            stderr,
            inherit: files.collect(),
        };
        let order = match sandbox.clone() {
            Some(Sandbox { launcher, mut spec }) => {
                spec.limits.device_memory.clone_from(&kind.device_memory);
                Order::Program { launcher, spec, launch }
            }
            None => Order::Bare(launch),
        };
        self.zones.create(zone, order).map_err(|error| with_causes(&error))
    }

    /// Says that there is a zone, and then what becomes of it.
    async fn announce(
        &mut self,
        zone: Zone<Sandboxes>,
        what: &Tell,
        start: Option<(oneshot::Sender<()>, oneshot::Receiver<()>)>,
    ) -> io::Result<()> {
        let (start, started) = start.unzip();
        let pidfd = zone.pidfd()?;
        let name = zone.name().to_owned();
        self.made.insert(name, Made { zone: zone.clone(), start, ends: false });
        tell(&self.line, what, &[std::os::fd::AsFd::as_fd(&pidfd)]).await?;
        tokio::spawn(attend(Arc::clone(&self.line), zone, started));
        Ok(())
    }
}

/// Starts a zone when it is told to, and tells of that and of its end, in this order.
async fn attend(
    line: Arc<AsyncFd<OwnedFd>>,
    zone: Zone<Sandboxes>,
    start: Option<oneshot::Receiver<()>>,
) {
    let name = zone.name().to_owned();
    let told = async {
        if let Some(start) = start {
            tokio::select! {
                biased;
                Ok(()) = start => {
                    let begun = match zone.start().await {
                        Ok(missing) => Some(Tell::Begun { zone: name.clone(), missing }),
                        // Its end says it all.
                        Err(ZoneError::Ended | ZoneError::Wrong(_)) => None,
                        Err(error) => Some(refused(&name, &with_causes(&error))),
                    };
                    if let Some(begun) = begun {
                        tell(&line, &begun, &[]).await?;
                    }
                }
                _ = zone.ended() => {}
            }
        }
        let exit = zone.ended().await?;
        tell(&line, &Tell::Ended { zone: name, exit }, &[]).await
    };
    // Whoever asked is gone; the line's other reader hears of it, too.
    let _: io::Result<()> = told.await;
}

fn refused(zone: &str, reason: &str) -> Tell {
    let zone = zone.chars().take(64).collect();
    Tell::Refused { zone, reason: reason.chars().take(LONGEST_REASON).collect() }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

async fn tell(line: &AsyncFd<OwnedFd>, what: &Tell, files: &[BorrowedFd<'_>]) -> io::Result<()> {
    packets::send_soon(line, &serde_json::to_vec(what)?, files).await
}
