use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gpuzone_wire::control::BrokerConfig;
use gpuzone_zone::files::{private_dir, write_atomically};
use gpuzone_zone::maker::line;
use gpuzone_zone::sandbox::{Launch, LaunchError, Missing, SandboxError, Sandboxed, Spec};
use gpuzone_zone::{Process, ProcessId};
use tokio::sync::{Mutex, Notify, watch};

use super::sandboxes::{self, Sandboxes};
use super::{BrokerLink, LinkError};

/// How long a new broker may take until it answers. It may have workers to end first.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// The same of one that starts a microVM first, which may be emulated.
const BOOT_LIMIT: Duration = Duration::from_secs(180);
const SHORTEST_BACKOFF: Duration = Duration::from_millis(50);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);
/// How long a maker may take to end when its broker has.
const MAKER_LIMIT: Duration = Duration::from_secs(3);
/// A log larger than this is begun anew with the next broker.
const LOG_LIMIT: u64 = 10 << 20;

/// Keeps a driver zone's broker alive.
#[derive(Debug)]
pub struct BrokerKeeper {
    /// The broker's program.
    program: PathBuf,
    config: BrokerConfig,
    /// Folders in which it makes slots.
    slots: Vec<PathBuf>,
    link: BrokerLink,
    /// That this agent started beside the broker.
    maker: Mutex<Option<Process>>,
}

/// Why there is no broker.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// Its files cannot be written.
    #[error("cannot prepare the driver zone in {}; check that folder's permissions and its disk, or choose another --run-dir", .dir.display())]
    Prepare {
        /// The zone's directory.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// One runs already, with leases that another driver serves.
    #[error(
        "leases are served by another driver ({}) than the configuration names; end them with `gpu-zone stop` under the old configuration first", .0.display()
    )]
    OtherDriver(PathBuf),
    /// Its program cannot be started.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// It, or its maker of zones, could not be started in a sandbox.
    #[error(
        "the driver zone's {0} cannot be started in its sandbox; `gpu-zone doctor` says what this host lacks for one"
    )]
    Sandbox(&'static str, #[source] SandboxError),
    /// The microVM cannot be described.
    #[error(transparent)]
    MicroVm(#[from] gpuzone_zone::microvm::MicroVmError),
    /// The configuration requires what there is not.
    #[error(
        "a sandbox has no feature '{0}' to be required; correct [zone.features] in the configuration"
    )]
    Feature(String),
    /// It runs and does not answer.
    #[error("the driver zone's broker does not come up; its log {} says why", .log.display())]
    Silent {
        /// Where it says why.
        log: PathBuf,
        /// What came instead of an answer.
        source: LinkError,
    },
    /// One of another version runs.
    #[error(transparent)]
    Link(LinkError),
    /// The kernel does not let it be watched.
    #[error("cannot watch the driver zone's broker; see the agent's limit of open files")]
    Watch(#[source] io::Error),
}

impl BrokerKeeper {
    /// A keeper of the broker that is described by `config`, run by `program`, and makes slots in
    /// `slots`, which are there.
    pub fn new(
        program: PathBuf,
        config: BrokerConfig,
        slots: Vec<PathBuf>,
        link: BrokerLink,
    ) -> Self {
        Self { program, config, slots, link, maker: Mutex::default() }
    }

    fn config_path(&self) -> PathBuf {
        self.config.zone_dir.join("broker.json")
    }

    fn log_path(&self) -> PathBuf {
        self.config.zone_dir.join("broker.log")
    }

    /// The broker: the one that an earlier agent started, if it lives and was told the same,
    /// else a new one. Workers live through the exchange.
    ///
    /// # Errors
    /// When none can be made to answer.
    pub async fn ensure(&self) -> Result<Process, BrokerError> {
        let prepare = |source| {
            let dir = self.config.zone_dir.clone();
            BrokerError::Prepare { dir, source }
        };
        private_dir(&self.config.zone_dir).map_err(prepare)?;
        if let Some(running) = self.running().await? {
            return Ok(running);
        }
        let json = serde_json::to_vec(&self.config).map_err(|error| prepare(error.into()))?;
        write_atomically(&self.config_path(), &json).map_err(prepare)?;
        self.start().await
    }

    /// A broker that answers and was told what it would be told now.
    async fn running(&self) -> Result<Option<Process>, BrokerError> {
        let pid = match self.link.hello().await {
            Ok(pid) => pid,
            Err(LinkError::Broken(_) | LinkError::Slow(_)) => return Ok(None),
            Err(error @ (LinkError::Refused(_) | LinkError::Nonsense(_))) => {
                return Err(BrokerError::Link(error));
            }
        };
        let found = ProcessId::of(pid).map_err(BrokerError::Watch)?;
        let found = found.map(Process::find).transpose().map_err(BrokerError::Watch)?;
        let Some(process) = found.flatten() else { return Ok(None) };
        let told = std::fs::read(self.config_path()).ok();
        let told: Option<BrokerConfig> = told.and_then(|json| serde_json::from_slice(&json).ok());
        if told.as_ref() == Some(&self.config) {
            tracing::info!(broker = pid, "the broker lives and is kept");
            return Ok(Some(process));
        }
        let leases = self.link.status().await.map_err(BrokerError::Link)?;
        let other = told.filter(|told| told.driver != self.config.driver);
        if let (Some(other), false) = (other, leases.is_empty()) {
            return Err(BrokerError::OtherDriver(other.driver.cuda_library));
        }
        tracing::info!(broker = pid, "the broker was told something else; it is exchanged");
        process.end(None).await.map_err(BrokerError::Watch)?;
        Ok(None)
    }

    async fn start(&self) -> Result<Process, BrokerError> {
        let process = self.launch().await?;
        let limit = if self.config.microvm.is_some() { BOOT_LIMIT } else { ANSWER_LIMIT };
        let end = Instant::now() + limit;
        loop {
            let source = match self.link.hello().await {
                Ok(pid) if pid == process.pid() => {
                    tracing::info!(broker = pid, "the broker serves");
                    return Ok(process);
                }
                Ok(pid) => LinkError::Nonsense(format!("process {pid} answers in its place")),
                Err(error) => error,
            };
            let gone = process.is_gone().map_err(BrokerError::Watch)?;
            if gone || Instant::now() > end {
                process.end(None).await.map_err(BrokerError::Watch)?;
                return Err(BrokerError::Silent { log: self.log_path(), source });
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Starts the broker and, where its workers have sandboxes, the maker of those.
    async fn launch(&self) -> Result<Process, BrokerError> {
        let unprepared =
            |source| BrokerError::Prepare { dir: self.config.zone_dir.clone(), source };
        let broker = self.broker().map_err(unprepared)?;
        let Some(found) = sandboxes::of(&self.config, &self.program, &self.slots)? else {
            return Ok(broker.start()?);
        };
        let Sandboxes { launcher, records, maker: spec, template, broker: sandbox } = found;
        // It has nobody to make zones for any more, and gives way.
        self.end_maker().await;
        private_dir(&records).map_err(unprepared)?;
        let (ours, theirs) = line().map_err(unprepared)?;
        let maker = Launch {
            program: launcher.clone(),
            arguments: vec!["--make".into(), records.into()],
            environment: BTreeMap::new(),
            stdin: template.to_file().map_err(unprepared)?,
            stdout: null().map_err(unprepared)?,
            stderr: self.log().map_err(unprepared)?,
            inherit: vec![theirs],
        };
        let broker = Launch { inherit: vec![ours], ..broker };
        let maker = start_in(&launcher, spec, maker, "maker").await?;
        *self.maker.lock().await = Some(maker);
        // Should this fail, the maker hears that nobody is at the other end.
        start_in(&launcher, sandbox, broker, "broker").await
    }

    /// How the broker's program is started.
    fn broker(&self) -> io::Result<Launch> {
        let log = self.log_path();
        if std::fs::metadata(&log).is_ok_and(|log| log.len() > LOG_LIMIT) {
            OpenOptions::new().write(true).truncate(true).open(&log)?;
        }
        Ok(Launch {
            program: self.program.clone(),
            arguments: vec![OsString::from("--config"), self.config_path().into()],
            // What it logs is the only thing that it may be told this way.
            environment: std::env::var("RUST_LOG")
                .map(|level| ("RUST_LOG".to_owned(), level))
                .into_iter()
                .collect(),
            stdin: null()?,
            stdout: null()?,
            stderr: self.log()?,
            inherit: Vec::new(),
        })
    }

    fn log(&self) -> io::Result<OwnedFd> {
        let mut options = OpenOptions::new();
        let options = options.create(true).append(true).mode(0o600);
        Ok(options.open(self.log_path())?.into())
    }

    /// Waits until the maker is gone, which ends with its broker, and ends it if it does not.
    async fn end_maker(&self) {
        let Some(maker) = self.maker.lock().await.take() else { return };
        if tokio::time::timeout(MAKER_LIMIT, maker.exited()).await.is_err() {
            tracing::warn!(maker = maker.pid(), "the maker of zones does not end with its broker");
            if let Err(error) = maker.end(None).await {
                tracing::error!(maker = maker.pid(), %error, "the maker of zones cannot be ended");
            }
        }
    }

    /// Replaces the broker whenever it ends, until `closing`; then returns when it is gone.
    /// Each new one is announced, for its leases have to be compared with the book's.
    pub async fn keep(
        self: Arc<Self>,
        mut process: Process,
        mut closing: watch::Receiver<bool>,
        replaced: Arc<Notify>,
    ) {
        loop {
            if let Err(error) = process.exited().await {
                tracing::error!(%error, "the broker cannot be watched");
                return;
            }
            if *closing.borrow_and_update() {
                return self.end_maker().await;
            }
            tracing::error!(broker = process.pid(), "the broker died; a new one takes over");
            let mut backoff = SHORTEST_BACKOFF;
            process = loop {
                match self.ensure().await {
                    Ok(process) => break process,
                    Err(error) => tracing::error!(%error, "no broker"),
                }
                tokio::select! {
                    () = tokio::time::sleep(backoff) => {}
                    _ = closing.changed() => return,
                }
                backoff = (backoff * 2).min(LONGEST_BACKOFF);
            };
            replaced.notify_one();
        }
    }
}

/// Starts a process in a sandbox; `what` it is, for the log.
async fn start_in(
    launcher: &Path,
    spec: Spec,
    launch: Launch,
    what: &'static str,
) -> Result<Process, BrokerError> {
    let failed = |error| BrokerError::Sandbox(what, error);
    let sandboxed = Sandboxed { launcher: launcher.to_owned(), spec, launch };
    let (process, held) = sandboxed.hold().map_err(failed)?;
    match held.go().await {
        Ok(missing) => {
            if !missing.is_empty() {
                let missing: Vec<String> = missing.iter().map(Missing::to_string).collect();
                let missing = missing.join("; ");
                tracing::warn!(process = process.pid(), %missing,
                    "the {what} runs without a part of its sandbox, which the policy allows");
            }
            Ok(process)
        }
        Err(error) => {
            process.end(None).await.map_err(BrokerError::Watch)?;
            Err(failed(error))
        }
    }
}

fn null() -> io::Result<OwnedFd> {
    Ok(File::options().read(true).write(true).open("/dev/null")?.into())
}
