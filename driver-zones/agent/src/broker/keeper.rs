use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gpuzone_wire::control::{BrokerConfig, Sandbox};
use gpuzone_zone::files::{private_dir, write_atomically};
use gpuzone_zone::sandbox::{
    Launch, LaunchError, Missing, Policy, SandboxError, Sandboxed, Supervisor,
};
use gpuzone_zone::{Process, ProcessId};
use tokio::sync::{Notify, watch};

use super::{BrokerLink, LinkError};

/// How long a new broker may take until it answers. It may have workers to end first.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// The same of one that starts a microVM first, which may be emulated.
const BOOT_LIMIT: Duration = Duration::from_secs(180);
const SHORTEST_BACKOFF: Duration = Duration::from_millis(50);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);
/// Its name among zones, and its host's name.
const ZONE: &str = "driver-zone";
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
}

/// Why there is no broker.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// Its files cannot be written.
    #[error("cannot prepare the driver zone in {}", .dir.display())]
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
    /// It could not be started in a sandbox.
    #[error("the driver zone's broker cannot be started in its sandbox")]
    Sandbox(#[from] SandboxError),
    /// The configuration requires what there is not.
    #[error("a sandbox has no feature '{0}' to be required")]
    Feature(String),
    /// It runs and does not answer.
    #[error("the driver zone's broker does not come up; its log is {}", .log.display())]
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
    #[error("cannot watch the driver zone's broker")]
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
        Self { program, config, slots, link }
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

    async fn launch(&self) -> Result<Process, BrokerError> {
        let prepare = || -> io::Result<Launch> {
            let null = || File::options().read(true).write(true).open("/dev/null");
            let log = self.log_path();
            let long = std::fs::metadata(&log).is_ok_and(|log| log.len() > LOG_LIMIT);
            let mut options = OpenOptions::new();
            let options = options.create(true).mode(0o600);
            if long {
                options.clone().write(true).truncate(true).open(&log)?;
            }
            Ok(Launch {
                program: self.program.clone(),
                arguments: vec![OsString::from("--config"), self.config_path().into()],
                // What it logs is the only thing that it may be told this way.
                environment: std::env::var("RUST_LOG")
                    .map(|level| ("RUST_LOG".to_owned(), level))
                    .into_iter()
                    .collect(),
                stdin: null()?.into(),
                stdout: null()?.into(),
                stderr: options.append(true).open(&log)?.into(),
                inherit: Vec::new(),
            })
        };
        let unprepared =
            |source| BrokerError::Prepare { dir: self.config.zone_dir.clone(), source };
        let launch = prepare().map_err(unprepared)?;
        let sandbox = match &self.config {
            BrokerConfig { sandbox: Some(sandbox), microvm: None, .. } => sandbox,
            // That of a microVM has the sandbox inside.
            BrokerConfig { .. } => return Ok(launch.start()?),
        };
        let spec = self.view(sandbox)?.spec().map_err(unprepared)?;
        let launcher = sandbox.launcher.clone();
        let (process, held) = Sandboxed { launcher, spec, launch }.hold()?;
        match held.go().await {
            Ok(missing) => {
                if !missing.is_empty() {
                    let missing: Vec<String> = missing.iter().map(Missing::to_string).collect();
                    let missing = missing.join("; ");
                    tracing::warn!(broker = process.pid(), %missing,
                        "the broker runs without a part of its sandbox, which the policy allows");
                }
                Ok(process)
            }
            Err(error) => {
                process.end(None).await.map_err(BrokerError::Watch)?;
                Err(error.into())
            }
        }
    }

    /// What the broker is shown of the host: what it hands to workers, and where it writes.
    fn view(&self, sandbox: &Sandbox) -> Result<Supervisor, BrokerError> {
        let BrokerConfig { zone_dir, worker, driver, .. } = &self.config;
        let own = [&self.program, &sandbox.launcher, worker];
        let read = own.into_iter().chain([&driver.cuda_library, &driver.nvml_library]);
        let write = std::iter::once(zone_dir).chain(&self.slots).chain(&sandbox.write);
        Ok(Supervisor {
            zone: ZONE.to_owned(),
            read: read.chain(&sandbox.read).cloned().collect(),
            write: write.cloned().collect(),
            devices: sandbox.devices.clone(),
            users: sandbox.users.is_some(),
            policy: Policy::requiring(&sandbox.require).map_err(BrokerError::Feature)?,
        })
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
                return;
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
