//! The agent, from its start to its end.

mod files;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use gpuzone_api::agent::v1 as proto;
use gpuzone_api::agent::v1::agent_server::AgentServer;
use gpuzone_api::placements::v1::placements_server::PlacementsServer;
use gpuzone_api::{AgentError, DRIVER_ZONE_DIR, PLACED_SLOTS_DIR, SocketPathTooLong};
use gpuzone_hw::NotReady;
use gpuzone_hw::actions::JournalError;
use gpuzone_ledger::{AuditKind, OpenError};
use gpuzone_wire::control::{BrokerConfig, Driver};
use gpuzone_zone::files::LockError;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;

use crate::audit::{self, AGENT, Audit, AuditError};
use crate::book::{Book, BookHandle};
use crate::broker::{BrokerError, BrokerKeeper, BrokerLink};
use crate::config::{Config, InMicroVm, MicroVmTable};
use crate::gpus::{DiscoveryError, Gpus};
use crate::health;
use crate::journal::ReplayError;
use crate::leases::Leases;
use crate::metrics::{self, BindError};
use crate::passthrough::Passthrough;
use crate::placements::PlacementService;
use crate::service::{Service, Watchers};
use crate::usage::{UsageBook, now};

/// How long open connections may delay the end.
const GOODBYE_LIMIT: Duration = Duration::from_secs(3);
/// How often the book and the broker are compared when nothing else asks for it.
const RECONCILE: Duration = Duration::from_secs(5);

/// What to do about a device of the driver zone's that opens with a token.
const NO_TOKENS: &str = "a driver zone is handed no tokens, so bind the physical function to its own driver, or give the zone another device";

/// Why the agent does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A directory of its own cannot be used.
    #[error("cannot use {}; the agent needs it for itself, choose another with --state-dir or --run-dir", .path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another agent uses a directory.
    #[error(
        "another agent uses {}; end it with `gpu-zone stop --agent`, or give this one its own --state-dir and --run-dir", .directory.display()
    )]
    Locked {
        /// Which.
        directory: PathBuf,
        /// Who.
        source: LockError,
    },
    /// The run directory's name is too long.
    #[error(transparent)]
    SocketPath(#[from] SocketPathTooLong),
    /// No GPUs.
    #[error(transparent)]
    Discovery(#[from] DiscoveryError),
    /// No journal.
    #[error(transparent)]
    Journal(#[from] ReplayError),
    /// It is not known what was done to devices.
    #[error(transparent)]
    Devices(#[from] JournalError),
    /// The driver zone cannot have what the configuration gives it.
    #[error("[zone.microvm] devices: the driver zone cannot be given this one")]
    DriverZoneDevice(#[source] NotReady),
    /// No ledger.
    #[error("cannot use the ledger {}; a file that cannot be used is put right, or moved away with its usage, before the agent is started again", .path.display())]
    Ledger {
        /// Which.
        path: PathBuf,
        /// Why.
        source: OpenError,
    },
    /// No audit log.
    #[error(
        "what is granted and refused cannot be written down, so nothing is granted; put that right and start the agent again"
    )]
    Audit(#[from] AuditError),
    /// No broker.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// Nobody can read metrics.
    #[error(transparent)]
    Metrics(#[from] BindError),
    /// What an earlier agent left cannot be taken over.
    #[error(
        "cannot take over what an earlier agent left; put the reason right and start the agent again: what runs goes on meanwhile"
    )]
    Recover(#[source] AgentError),
    /// No thread, no signals.
    #[error(
        "cannot set up the agent's process; see its limits of open files, processes and memory"
    )]
    Process(#[source] io::Error),
    /// The service broke.
    #[error("the agent's service broke; start the agent again, leases and workers go on")]
    Serve(#[source] tonic::transport::Error),
}

impl RunError {
    /// The program's exit code, as in BSD's sysexits(3).
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Directory { .. } | Self::SocketPath(_) | Self::Metrics(_) => 78,
            Self::DriverZoneDevice(_) => 78,
            Self::Locked { .. } => 75,
            Self::Discovery(_) | Self::Broker(_) => 76,
            Self::Journal(_) | Self::Devices(_) => 70,
            Self::Ledger { .. } | Self::Audit(_) | Self::Recover(_) => 70,
            Self::Process(_) | Self::Serve(_) => 70,
        }
    }
}

/// How an agent ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// SIGINT or a client's request: leases, workers and broker end with it.
    All,
    /// SIGTERM or SIGHUP: only the agent ends; the next one takes over what goes on.
    OnlyAgent,
}

/// Runs an agent until it is told to end.
///
/// SIGINT ends all leases, the workers and the broker, as a client's shutdown does. SIGTERM and
/// SIGHUP end the agent only.
///
/// # Errors
/// When it cannot start. Leases that an earlier agent left are then as they were.
pub async fn run(config: Config) -> Result<(), RunError> {
    let directories = config.directories.clone();
    let locks = files::take(&directories)?;
    check_driver_zone(&config)?;
    // Before the driver's library is opened, which would have the GPUs open itself.
    let passthrough = Passthrough::start(&config)?;
    let gpus = Arc::new(Gpus::discover(&config)?);
    let inventory = gpus.inventory().clone();
    let (book, lost) =
        Book::open(&directories.journal(), inventory.clone(), config.quotas.clone())?;
    let book = book.with_health(config.health.clone());
    let book = BookHandle::open(book).map_err(RunError::Process)?;
    let path = directories.ledger();
    let usage = UsageBook::open(&path).map_err(|source| RunError::Ledger { path, source })?;
    let audit = Audit::open(&directories.audit_log(), usage.clone(), &config.quotas).await?;
    files::lay_out(&directories, &config.shim_library, &config.shim_nvml_library)?;

    // Before anything is started, for it may not be to be had.
    let scrapers = match &config.metrics {
        Some(listen) => Some(listen.bind().await?),
        None => None,
    };
    let zone_dir = directories.run.join(DRIVER_ZONE_DIR);
    let link = BrokerLink::new(zone_dir.join(files::CONTROL_SOCKET));
    let broker_config = broker_config(&config, zone_dir);
    let slots = vec![directories.slots_dir(), directories.state.join(PLACED_SLOTS_DIR)];
    let keeper = BrokerKeeper::new(config.broker.clone(), broker_config, slots, link.clone());
    let broker = keeper.ensure().await?;
    let (to_audit, folders) = (audit.clone(), directories.clone());
    let leases = Leases::new(book, link.clone(), usage, to_audit, folders, inventory, config.scrub);
    let leases = leases.with_workload_zones(config.zone.workload);
    let leases = Arc::new(leases.with_passthrough(passthrough));
    leases.saw_broker(Some(broker.pid())).await;
    leases.recover(lost).await.map_err(RunError::Recover)?;

    let (closing, closed) = watch::channel(false);
    let replaced = Arc::new(Notify::new());
    let kept = tokio::spawn(Arc::new(keeper).keep(broker, closed, Arc::clone(&replaced)));
    let watched = health::start(Arc::clone(&leases), Arc::clone(&gpus));
    let watched = watched.map_err(RunError::Process)?;
    let mut chores = vec![
        tokio::spawn(watched),
        tokio::spawn(flush_regularly(Arc::clone(&leases), config.flush)),
        tokio::spawn(reconcile_regularly(Arc::clone(&leases), replaced)),
    ];
    if let (Some(listener), Some(listen)) = (scrapers, &config.metrics) {
        tracing::info!(%listen, "metrics are served");
        let source = metrics::Source::new(Arc::clone(&leases), Arc::clone(&gpus));
        chores.push(tokio::spawn(metrics::serve(listener, Arc::new(source))));
    }

    health::listening(&gpus).await;
    let ending = serve(&config, &leases, gpus).await?;
    for chore in chores {
        chore.abort();
    }
    if let Some(listen) = &config.metrics {
        listen.remove();
    }
    if let Err(error) = leases.flush().await {
        tracing::warn!(%error, "usage since the last flush is written by the next agent");
    }
    match ending {
        Ending::OnlyAgent => files::remove_socket(&directories),
        Ending::All => {
            closing.send_replace(true);
            end_broker(&link, kept).await;
            leases.saw_broker(None).await;
            files::clear(&directories);
        }
    }
    let how = serde_json::json!({ "ending": format!("{ending:?}") });
    audit.write_or_log(audit::event(AuditKind::AgentEnd, AGENT, AGENT, how)).await;
    tracing::info!(?ending, "the agent ends");
    drop(locks);
    Ok(())
}

/// Refuses devices that a driver zone's microVM could not open: it is started again and again by what has no secrets,
/// so it is handed no token.
fn check_driver_zone(config: &Config) -> Result<(), RunError> {
    let table = config.zone.microvm.iter();
    for address in table.flat_map(MicroVmTable::devices) {
        let checked = config.sysfs.without_token(address, NO_TOKENS);
        checked.map_err(RunError::DriverZoneDevice)?;
    }
    Ok(())
}

fn broker_config(config: &Config, zone_dir: PathBuf) -> BrokerConfig {
    let driver = Driver {
        cuda_library: config.cuda_library.clone(),
        nvml_library: config.nvml_library.clone(),
        environment: config.worker_environment(),
    };
    let on_host = BrokerConfig {
        zone_dir,
        worker: config.worker.clone(),
        driver,
        caps: config.caps,
        fair_time: config.fair_time,
        sandbox: config.sandbox(),
        windows: false,
        microvm: None,
    };
    match config.microvm() {
        Some(InMicroVm { microvm, driver, sandbox }) => BrokerConfig {
            driver,
            sandbox: Some(sandbox),
            microvm: Some(Box::new(microvm)),
            ..on_host
        },
        None => on_host,
    }
}

/// Serves clients until something ends the agent.
async fn serve(config: &Config, leases: &Arc<Leases>, gpus: Arc<Gpus>) -> Result<Ending, RunError> {
    let (end, ended) = watch::channel(false);
    let placements = PlacementService { leases: Arc::clone(leases), gpus: Arc::clone(&gpus) };
    let (about, zone) = (about(config, &gpus), config.zone.clone());
    let (stop, stopped) = watch::channel(false);
    let driver = config.driver.as_str();
    let watchers = Watchers::new(Arc::clone(leases), Arc::clone(&gpus), driver, stopped.clone());
    let service = Service { leases: Arc::clone(leases), about, zone, gpus, watchers, end };
    let socket = config.directories.agent_socket();
    let listener = files::bind(&socket)?;
    tracing::info!(socket = %socket.display(), driver = config.driver.as_str(), "serving");
    let mut server = tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(AgentServer::new(service))
            .add_service(PlacementsServer::new(placements))
            .serve_with_incoming_shutdown(incoming(listener), until(stopped)),
    );
    let ending = tokio::select! {
        ending = told_by_signal(leases) => ending?,
        () = until(ended) => Ending::All,
        broken = &mut server => match broken {
            Ok(Err(error)) => return Err(RunError::Serve(error)),
            Ok(Ok(())) => Ending::OnlyAgent,
            Err(error) => return Err(RunError::Process(io::Error::other(error))),
        },
    };
    stop.send_replace(true);
    if tokio::time::timeout(GOODBYE_LIMIT, &mut server).await.is_err() {
        server.abort();
    }
    Ok(ending)
}

fn incoming(listener: UnixListener) -> UnixListenerStream {
    UnixListenerStream::new(listener)
}

async fn until(mut flag: watch::Receiver<bool>) {
    if flag.wait_for(|set| *set).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Waits for a signal, and does what it asks for first.
async fn told_by_signal(leases: &Arc<Leases>) -> Result<Ending, RunError> {
    let catch = |kind| signal(kind).map_err(RunError::Process);
    let mut interrupt = catch(SignalKind::interrupt())?;
    let mut terminate = catch(SignalKind::terminate())?;
    let mut hang_up = catch(SignalKind::hangup())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => return Ok(Ending::OnlyAgent),
        _ = hang_up.recv() => return Ok(Ending::OnlyAgent),
    }
    tracing::info!("all leases are ended");
    tokio::select! {
        ended = leases.end_all("the agent was interrupted") => if let Err(error) = ended {
            tracing::error!(%error, "not all leases could be ended; the next agent ends them");
        },
        _ = interrupt.recv() => {
            tracing::warn!("interrupted again: only the agent ends now, the next one takes over");
            return Ok(Ending::OnlyAgent);
        }
    }
    Ok(Ending::All)
}

async fn end_broker(link: &BrokerLink, kept: JoinHandle<()>) {
    if let Err(error) = link.shutdown().await {
        tracing::error!(%error, "the broker could not be ended; the next agent takes it over");
        kept.abort();
        return;
    }
    // It said goodbye; it is gone in a moment.
    if tokio::time::timeout(GOODBYE_LIMIT, kept).await.is_err() {
        tracing::error!("the broker said that it ends, and has not");
    }
}

async fn flush_regularly(leases: Arc<Leases>, interval: Duration) {
    let mut timer = tokio::time::interval(interval);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        timer.tick().await;
        if let Err(error) = leases.flush().await {
            tracing::warn!(%error, "usage could not be written now; it is with the next flush");
        }
    }
}

async fn reconcile_regularly(leases: Arc<Leases>, replaced: Arc<Notify>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(RECONCILE) => {}
            () = replaced.notified() => {
                if let Ok(pid) = leases.link.hello().await {
                    leases.saw_broker(Some(pid)).await;
                }
            }
        }
        let programs = leases.directories.programs_dir();
        // Looks at processes and files; ends what there is of a killed zone, which takes a while.
        let settled = tokio::task::spawn_blocking(move || files::settle(&programs)).await;
        if let Err(error) = settled {
            tracing::warn!(%error, "what killed zones left could not be looked at now");
        }
        if let Err(error) = leases.reconcile().await {
            tracing::warn!(%error, "leases and workers could not be compared now");
        }
    }
}

fn about(config: &Config, gpus: &Gpus) -> proto::DescribeReply {
    let text = |path: &std::path::Path| path.display().to_string();
    proto::DescribeReply {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        driver: config.driver.as_str().to_owned(),
        state_dir: text(&config.directories.state),
        run_dir: text(&config.directories.run),
        cuda_library: text(&config.cuda_library),
        nvml_library: text(&config.nvml_library),
        driver_version: gpus.driver_version().to_owned(),
        started_unix_ns: now().nanoseconds(),
        ledger_path: text(&config.directories.ledger()),
        workload_zones: config.zone.workload.as_str().to_owned(),
    }
}
