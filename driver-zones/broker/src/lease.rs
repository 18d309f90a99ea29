//! One lease's worker, kept alive.
//!
//! ```text
//!            ready                     ended
//! starting ─────────▶ serving ────────────────────▶ waiting (backoff) ──▶ starting
//!     │                  │                             │
//!     └──────────────────┴──────── stop ───────────────┴──▶ gone
//! ```
//!
//! One task owns the worker; [`Lease::status`] reads what it publishes and the stats file.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gpuzone_core::LeaseId;
use gpuzone_wire::control::{BrokerConfig, LeaseStatus, WorkerOrder};
use gpuzone_wire::handover::{EXIT_REPLACE, WorkerSpec};
use gpuzone_wire::stats::{Monotonic, Snapshot, StatsFile};
use gpuzone_zone::sandbox::Sandboxes;
use gpuzone_zone::{Exit, Zone, Zones};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::arbiter::{self, Turns};
use crate::ends::Ends;
use crate::paths::LeasePaths;
use crate::record::{self, WorkerRecord};
use crate::respite::Respite;
use crate::slot::{self, Slot, SlotError};
use crate::worker::{self, Starting, WorkerError};

const SHORTEST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);
/// A worker that served this long was healthy: the next failure is a first one.
const HEALTHY: Duration = Duration::from_secs(60);

/// A lease that is served until [`Lease::stop`].
pub(crate) struct Lease {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// What all leases of a driver zone have in common.
#[derive(Clone)]
pub(crate) struct Common {
    pub(crate) config: Arc<BrokerConfig>,
    pub(crate) turns: Turns,
    pub(crate) zones: Arc<Zones<Sandboxes>>,
}

/// What the worker's task and those who ask about the lease have in common.
struct Shared {
    common: Common,
    /// Notified when the worker kept a GPU too long.
    overran: Mutex<Arc<Notify>>,
    order: WorkerOrder,
    paths: LeasePaths,
    stats: StatsFile,
    live: Mutex<Live>,
}

#[derive(Clone, Default)]
struct Live {
    worker_pid: Option<u32>,
    restarts: u32,
    trouble: String,
    ends: Ends,
    /// As it is on disk.
    written: Option<Written>,
}

/// The worker that the next broker would look for.
#[derive(Clone, Copy)]
struct Written {
    pid: u32,
    ready: bool,
    ended: bool,
}

/// Why a worker could not be put into service.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error(transparent)]
    Slot(#[from] SlotError),
    #[error(transparent)]
    Worker(#[from] WorkerError),
    #[error("cannot write down the worker: {0}")]
    Record(#[source] std::io::Error),
    #[error("cannot give the worker its turns on the GPUs: {0}")]
    Turns(#[source] std::io::Error),
    #[error("the lease ended before its worker was ready")]
    Stopped,
}

impl Lease {
    /// Puts a first worker into service; on an error no process is left.
    pub(crate) async fn start(
        common: Common,
        order: WorkerOrder,
        paths: LeasePaths,
        stats: StatsFile,
    ) -> Result<Self, ServeError> {
        let (overran, live) = (Mutex::default(), Mutex::default());
        let shared = Shared { common, overran, order, paths, stats, live };
        let listener = slot::serve(&Slot::of(&shared.order))?;
        // A first start is not stopped: it succeeds or fails within the worker's time limit.
        let (_never, mut stop) = watch::channel(false);
        let worker = shared.start_worker(&listener, &mut stop).await?;
        Ok(Self::supervise(shared, Some(worker)))
    }

    /// Serves a lease that an earlier broker served: by its worker, if one is alive and ready,
    /// else by a fresh one as soon as possible.
    pub(crate) fn resume(
        common: Common,
        order: WorkerOrder,
        paths: LeasePaths,
        stats: StatsFile,
        record: Option<WorkerRecord>,
        worker: Option<Zone<Sandboxes>>,
    ) -> Self {
        let live = record.map_or_else(Live::default, |record| {
            let WorkerRecord { pid, ready, restarts, trouble, ended, ends } = record;
            let written = Some(Written { pid, ready, ended });
            Live { worker_pid: None, restarts, trouble, ends, written }
        });
        let (overran, live) = (Mutex::default(), Mutex::new(live));
        let shared = Shared { common, overran, order, paths, stats, live };
        if worker.is_none() {
            shared.ended_unwatched();
        }
        if worker.is_some()
            && let Err(error) = shared.give_turns()
        {
            // It would go on without asking anybody.
            tracing::error!(lease = %shared.lease(), %error, "its worker takes no turns");
            shared.overran().notify_one();
        }
        Self::supervise(shared, worker)
    }

    fn supervise(shared: Shared, worker: Option<Zone<Sandboxes>>) -> Self {
        let shared = Arc::new(shared);
        let (stop, stopped) = watch::channel(false);
        shared.live().worker_pid = worker.as_ref().map(pid);
        let task = tokio::spawn(Arc::clone(&shared).run(worker, stopped));
        Self { shared, stop, task }
    }

    pub(crate) fn order(&self) -> &WorkerOrder {
        &self.shared.order
    }

    pub(crate) fn status(&self) -> LeaseStatus {
        self.shared.status()
    }

    /// Forgets ends that are written down elsewhere.
    pub(crate) fn acknowledge(&self, through: u32) {
        self.shared.live().ends.acknowledge(through);
        self.shared.keep();
    }

    /// Ends the worker and says how the lease did; no process of it is left then.
    pub(crate) async fn stop(self) -> LeaseStatus {
        // The task ends by itself only by a fault of ours, and then there is nobody to tell.
        let _ = self.stop.send(true);
        if let Err(error) = self.task.await {
            tracing::error!(lease = %self.shared.order.lease, %error, "the lease's task failed");
        }
        self.shared.common.turns.forget(self.shared.lease());
        self.shared.status()
    }
}

impl Shared {
    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn overran(&self) -> Arc<Notify> {
        Arc::clone(&self.overran.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn lease(&self) -> LeaseId {
        self.order.lease
    }

    fn status(&self) -> LeaseStatus {
        let Live { worker_pid, restarts, mut trouble, ends, written: _ } = self.live().clone();
        let read = self.stats.snapshot(Monotonic::now());
        let Snapshot { counters, used, sessions, refused_by_name } = read.unwrap_or_else(|error| {
            trouble = error.to_string();
            Snapshot::default()
        });
        let lease = self.lease();
        LeaseStatus {
            lease,
            worker_pid,
            restarts,
            sessions,
            used,
            counters,
            refused_by_name,
            trouble,
            ends: ends.to_vec(),
        }
    }

    /// Keeps a worker alive until `stop`.
    async fn run(self: Arc<Self>, first: Option<Zone<Sandboxes>>, mut stop: watch::Receiver<bool>) {
        let mut worker = first;
        let mut backoff = SHORTEST_BACKOFF;
        let (began, mut respite) = (Instant::now(), Respite::new());
        loop {
            let mut pause = Duration::ZERO;
            if let Some(worker) = worker.take() {
                let since = Instant::now();
                let overran = self.overran();
                tokio::select! {
                    () = overran.notified() => {
                        self.end(&worker).await;
                        pause = self.overrun(&worker, &mut backoff);
                    }
                    exit = worker.ended() => {
                        pause = self.ended(&worker, exit, since, &mut backoff);
                        if pause.is_zero() {
                            pause = respite.ask(began.elapsed());
                        }
                    }
                    () = stopped(&mut stop) => {
                        // It may have ended by itself a moment ago: that is told, too.
                        if worker.process().is_alive().is_ok_and(|alive| !alive) {
                            let exit = worker.ended().await;
                            self.ended(&worker, exit, since, &mut backoff);
                        }
                        return self.end(&worker).await;
                    }
                }
            }
            let Some(fresh) = self.replace(pause, &mut backoff, &mut stop).await else {
                return;
            };
            self.live().worker_pid = Some(pid(&fresh));
            tracing::info!(lease = %self.lease(), worker = pid(&fresh), "a fresh worker serves");
            worker = Some(fresh);
        }
    }

    /// Notes a worker's unexpected end; returns how long to wait before the next.
    fn ended(
        &self,
        worker: &Zone<Sandboxes>,
        exit: std::io::Result<Exit>,
        since: Instant,
        backoff: &mut Duration,
    ) -> Duration {
        self.settle();
        if since.elapsed() >= HEALTHY {
            *backoff = SHORTEST_BACKOFF;
        }
        let (trouble, pause) = match exit {
            Ok(Exit::Code(EXIT_REPLACE)) => {
                let trouble = "a program's fault spoilt its context; the worker was replaced";
                (trouble.to_owned(), Duration::ZERO)
            }
            Ok(exit @ (Exit::Code(_) | Exit::Signal(_) | Exit::Unknown)) => {
                let said = worker::last_line(&self.paths.log());
                let pid = pid(worker);
                (format!("worker {pid} ended with {exit}: {said}"), longer(backoff))
            }
            Err(error) => (format!("the worker cannot be watched: {error}"), longer(backoff)),
        };
        tracing::warn!(lease = %self.lease(), worker = pid(worker), %trouble, "worker ended");
        self.note_end(pid(worker), trouble);
        pause
    }

    /// Notes the end of a worker that served, until the agent has written it down.
    fn note_end(&self, pid: u32, trouble: String) {
        let mut live = self.live();
        live.worker_pid = None;
        live.restarts = live.restarts.saturating_add(1);
        let number = live.restarts;
        live.ends.push(number, pid, &trouble);
        live.trouble = trouble;
        if let Some(written) = &mut live.written {
            written.ended = true;
        }
        drop(live);
        self.keep();
    }

    /// Notes a worker that served and is gone, while no broker was there to see it.
    fn ended_unwatched(&self) {
        let written = self.live().written;
        if let Some(Written { pid, ready: true, ended: false }) = written {
            let trouble = format!("worker {pid} ended while its broker was away");
            self.note_end(pid, trouble);
        }
    }

    /// Notes that a worker was ended because it kept a GPU; how long to wait before the next.
    fn overrun(&self, worker: &Zone<Sandboxes>, backoff: &mut Duration) -> Duration {
        let limit = self.common.config.fair_time.watchdog();
        let trouble = format!(
            "worker {} was ended: it kept a GPU for more than {} ms when its turn was over, most likely with a kernel that runs on (split it into shorter ones, or raise watchdog_milliseconds), or it broke its line to the arbiter",
            pid(worker),
            limit.as_millis()
        );
        tracing::warn!(lease = %self.lease(), %trouble, "worker ended");
        self.note_end(pid(worker), trouble);
        longer(backoff)
    }

    fn give_turns(&self) -> Result<(), ServeError> {
        // A new one for each worker: what an earlier one did is not this one's fault.
        let overran = Arc::new(Notify::new());
        *self.overran.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&overran);
        let joined = self.common.turns.join(&self.order, &self.paths.turns(), overran);
        joined.map_err(ServeError::Turns)
    }

    /// Puts a fresh worker into service, however often it takes; `None` when stopped.
    async fn replace(
        &self,
        mut pause: Duration,
        backoff: &mut Duration,
        stop: &mut watch::Receiver<bool>,
    ) -> Option<Zone<Sandboxes>> {
        let mut listener = None;
        loop {
            // Bound before the pause: programs that come meanwhile wait instead of failing.
            if listener.is_none() {
                match slot::serve(&Slot::of(&self.order)) {
                    Ok(fresh) => listener = Some(fresh),
                    Err(error) => self.trouble(&error),
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stopped(stop) => return None,
            }
            if let Some(listener) = &listener {
                match self.start_worker(listener, stop).await {
                    Ok(worker) => return Some(worker),
                    Err(ServeError::Stopped) => return None,
                    Err(error) => self.trouble(&error),
                }
            }
            pause = longer(backoff);
        }
    }

    fn trouble(&self, error: &dyn std::error::Error) {
        tracing::warn!(lease = %self.lease(), %error, "no worker");
        self.live().trouble = error.to_string();
    }

    /// Starts one worker and waits until it serves. On an error, and on `stop`, which is one, no
    /// process is left.
    async fn start_worker(
        &self,
        listener: &OwnedFd,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<Zone<Sandboxes>, ServeError> {
        let log = self.paths.log();
        // Kept until the arbiter is connected: a worker that ends at once is not what fails then.
        let turns = arbiter::serve(&self.paths.turns()).map_err(ServeError::Turns)?;
        let inherited = turns.try_clone().map_err(ServeError::Turns)?;
        let mut starting = worker::make(
            &self.common.config,
            &self.common.zones,
            &self.order,
            listener,
            &self.stats,
            inherited,
            &log,
        )?;
        let served = tokio::select! {
            served = self.put_into_service(&mut starting) => served,
            () = stopped(stop) => Err(ServeError::Stopped),
        };
        if served.is_err() {
            self.end(&starting.zone).await;
        }
        served.map(|()| starting.zone)
    }

    async fn put_into_service(&self, starting: &mut Starting) -> Result<(), ServeError> {
        self.write_down(&starting.zone, false)?;
        // Connected before the worker has its orders: it does nothing without asking.
        self.give_turns()?;
        let BrokerConfig { driver, caps, .. } = &*self.common.config;
        let grants = self.order.grants.clone();
        let (driver, caps) = (driver.clone(), *caps);
        let spec = WorkerSpec { lease: self.lease(), grants, driver, caps, arbitrated: true };
        starting.finish(&spec).await?;
        self.write_down(&starting.zone, true)
    }

    fn write_down(&self, worker: &Zone<Sandboxes>, ready: bool) -> Result<(), ServeError> {
        self.live().written = Some(Written { pid: pid(worker), ready, ended: false });
        self.write().map_err(ServeError::Record)
    }

    fn write(&self) -> std::io::Result<()> {
        // Held over the write: two at once would leave the older one.
        let live = self.live();
        let Live { restarts, trouble, ends, written, worker_pid: _ } = &*live;
        let Some(Written { pid, ready, ended }) = *written else { return Ok(()) };
        let (restarts, trouble, ends) = (*restarts, trouble.clone(), ends.clone());
        let record = WorkerRecord { pid, ready, restarts, trouble, ended, ends };
        record::write(&self.paths.worker(), &record)
    }

    /// Writes down what the next broker has to tell, if there is to be one.
    fn keep(&self) {
        if let Err(error) = self.write() {
            tracing::error!(lease = %self.lease(), %error, "a worker's end is not on disk");
        }
    }

    async fn end(&self, worker: &Zone<Sandboxes>) {
        if let Err(error) = worker.end(None).await {
            tracing::error!(lease = %self.lease(), worker = pid(worker), %error, "cannot end it");
        }
        self.common.turns.leave(self.lease());
        self.live().worker_pid = None;
        self.settle();
    }

    /// Notes in the stats that no worker uses anything.
    fn settle(&self) {
        if let Err(error) = self.stats.worker_gone(Monotonic::now()) {
            tracing::error!(lease = %self.lease(), %error, "the lease's counters are lost");
        }
    }
}

fn pid(worker: &Zone<Sandboxes>) -> u32 {
    worker.process().pid
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that nobody can stop it any more: the broker is being torn down, and what
    // waits here goes with it. The worker stays for the next broker.
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// The pause to take now; the next one is twice as long.
fn longer(backoff: &mut Duration) -> Duration {
    let pause = *backoff;
    *backoff = (pause * 2).min(LONGEST_BACKOFF);
    pause
}
