use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gpuzone_core::LeaseId;
use gpuzone_wire::control::{BrokerConfig, LeaseStatus, WorkerOrder};
use gpuzone_wire::scrub::{ScrubOrder, ScrubReport};
use gpuzone_wire::stats::{StatsError, StatsFile};
use gpuzone_zone::files::remove;
use gpuzone_zone::maker::Maker;
use tokio::sync::Mutex as AsyncMutex;

use crate::arbiter::Turns;
use crate::ended::Ended;
use crate::lease::{Common, Lease, ServeError};
use crate::paths::ZonePaths;
use crate::record;
use crate::scrub::ScrubError;
use crate::scrubs::Scrubs;
use crate::slot::{self, Slot};

/// The leases of a driver zone.
///
/// Starting and stopping one lease is one after the other; different leases do not wait for
/// each other.
pub(crate) struct Broker {
    common: Common,
    paths: ZonePaths,
    leases: Mutex<BTreeMap<LeaseId, Entry>>,
    scrubs: Scrubs,
    ended: Ended,
}

/// `None` while the lease is started for the first time, and when that failed.
type Entry = Arc<AsyncMutex<Option<Lease>>>;

/// Why a lease is not served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("{0} is served already, with other GPUs or limits; stop it first")]
    Different(LeaseId),
    #[error("cannot keep the files of {lease}: {source}")]
    Files { lease: LeaseId, source: io::Error },
    #[error(transparent)]
    Stats(#[from] StatsError),
    #[error(transparent)]
    Serve(#[from] ServeError),
}

impl Broker {
    /// A broker that serves the leases that it finds in its directory.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub(crate) async fn resume(
        config: BrokerConfig,
        paths: ZonePaths,
        maker: Maker,
    ) -> io::Result<Self> {
        let config = Arc::new(config);
        let turns = Turns::start(config.fair_time)?;
        let common = Common { config, turns, maker };
        let (found, ended) = crate::resume::leases(&common, &paths).await?;
        let entry = |lease: Lease| (lease.order().lease, Arc::new(AsyncMutex::new(Some(lease))));
        let leases = Mutex::new(found.into_iter().map(entry).collect());
        let (scrubs, ended) = (Scrubs::default(), Ended::new(paths.clone(), ended));
        Ok(Self { common, paths, leases, scrubs, ended })
    }

    fn leases(&self) -> MutexGuard<'_, BTreeMap<LeaseId, Entry>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves a lease; when it cannot be served, nothing of it is left.
    pub(crate) async fn start(&self, order: WorkerOrder) -> Result<LeaseStatus, StartError> {
        let id = order.lease;
        let entry = Arc::clone(self.leases().entry(id).or_default());
        let mut lease = entry.lock().await;
        if let Some(lease) = &*lease {
            let same = *lease.order() == order;
            return if same { Ok(lease.status()) } else { Err(StartError::Different(id)) };
        }
        let started = self.start_new(order).await;
        match started {
            Ok(started) => Ok(lease.insert(started).status()),
            Err(error) => {
                drop(lease);
                self.forget(id, &entry);
                Err(error)
            }
        }
    }

    async fn start_new(&self, order: WorkerOrder) -> Result<Lease, StartError> {
        let id = order.lease;
        let (slot, paths) = (Slot::of(&order), self.paths.lease(id));
        let started = match self.lay_out(&order) {
            Ok(stats) => {
                let common = self.common.clone();
                Lease::start(common, order, paths, stats).await.map_err(StartError::from)
            }
            Err(error) => Err(error),
        };
        if started.is_err() {
            self.take_away(id, &slot);
        }
        started
    }

    /// Makes the lease's files; the order is on disk before there is anything to serve it.
    fn lay_out(&self, order: &WorkerOrder) -> Result<StatsFile, StartError> {
        let id = order.lease;
        let making = self.paths.lease_in_the_making(id);
        let files = |source| StartError::Files { lease: id, source };
        let laid_out = || -> io::Result<()> {
            remove(making.dir())?;
            std::fs::create_dir(making.dir())?;
            record::write(&making.order(), order)
        };
        laid_out().map_err(files)?;
        let stats = StatsFile::create(&making.stats())?;
        self.ended.continue_counting(id, &stats);
        let dir = self.paths.lease(id);
        std::fs::rename(making.dir(), dir.dir()).map_err(files)?;
        gpuzone_zone::files::sync_parent(dir.dir()).map_err(files)?;
        Ok(stats)
    }

    /// Ends a lease and answers how it did, again until that is settled; `None` when there is no
    /// such lease.
    pub(crate) async fn stop(&self, id: LeaseId) -> Option<LeaseStatus> {
        let entry = self.leases().get(&id).map(Arc::clone);
        let Some(entry) = entry else { return self.ended.get(id) };
        let mut lease = entry.lock().await;
        let stopped = match lease.take() {
            Some(lease) => {
                let slot = Slot::of(lease.order());
                let last = lease.stop().await;
                self.put_away(&last, &slot);
                tracing::info!(lease = %id, "ended");
                Some(last)
            }
            // Somebody else stopped it while this one waited, or it never began.
            None => self.ended.get(id),
        };
        drop(lease);
        self.forget(id, &entry);
        stopped
    }

    /// How leases did that are not settled.
    pub(crate) fn ended(&self) -> Vec<LeaseStatus> {
        self.ended.all()
    }

    /// Forgets how a lease did: the agent has written it down.
    pub(crate) fn settle(&self, id: LeaseId) {
        self.ended.settle(id);
    }

    /// Clears what a lease gave back. It needs nothing of this broker's leases, so it keeps none
    /// of them waiting.
    pub(crate) async fn scrub(&self, order: ScrubOrder) -> Result<Vec<ScrubReport>, ScrubError> {
        let turn = self.scrubs.take(&order.gpus).await;
        let lease = order.lease;
        let (log, socket) = (self.paths.scrub_log(lease), self.paths.scrub_turns(lease));
        crate::scrub::scrub(&self.common, order, &log, &socket, turn).await
    }

    /// Drops the entry of a lease that is not served, unless somebody waits for it.
    fn forget(&self, id: LeaseId, entry: &Entry) {
        let mut leases = self.leases();
        // The map's and the caller's; the map is locked, so nobody gets another meanwhile.
        if Arc::strong_count(entry) == 2 && entry.try_lock().is_ok_and(|lease| lease.is_none()) {
            leases.remove(&id);
        }
    }

    /// Removes the files of a lease that never began. The rename comes first: half a folder under
    /// the lease's own name would look like a lease to the next broker.
    fn take_away(&self, id: LeaseId, slot: &Slot) {
        let (dir, making) = (self.paths.lease(id), self.paths.lease_in_the_making(id));
        let removed = || -> io::Result<()> {
            slot::close(slot)?;
            remove(making.dir())?;
            match std::fs::rename(dir.dir(), making.dir()) {
                Ok(()) => remove(making.dir()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(error),
            }
        };
        if let Err(error) = removed() {
            tracing::error!(lease = %id, %error, "cannot remove all files of a lease");
        }
    }

    /// Closes the slot of a lease that no process serves any more, and keeps how it did.
    fn put_away(&self, last: &LeaseStatus, slot: &Slot) {
        if let Err(error) = slot::close(slot) {
            tracing::error!(lease = %last.lease, %error, "an ended lease's slot is still there");
        }
        self.ended.keep(last);
    }

    /// How the leases are doing; one that is being started or stopped is left out.
    pub(crate) fn status(&self) -> Vec<LeaseStatus> {
        let leases = self.leases();
        let settled = leases.values().filter_map(|entry| entry.try_lock().ok());
        settled.filter_map(|lease| lease.as_ref().map(Lease::status)).collect()
    }

    /// Forgets ends of workers that the agent has written down. One whose lease is just being
    /// stopped stays: it is told again, and known.
    pub(crate) fn acknowledge(&self, id: LeaseId, through: u32) {
        let entry = self.leases().get(&id).map(Arc::clone);
        if let Some(Ok(lease)) = entry.as_ref().map(|entry| entry.try_lock())
            && let Some(lease) = &*lease
        {
            lease.acknowledge(through);
        }
    }

    /// Ends all leases.
    pub(crate) async fn stop_all(self: &Arc<Self>) {
        let all: Vec<LeaseId> = self.leases().keys().copied().collect();
        let mut stops = tokio::task::JoinSet::new();
        for id in all {
            let broker = Arc::clone(self);
            stops.spawn(async move { broker.stop(id).await });
        }
        stops.join_all().await;
    }
}
