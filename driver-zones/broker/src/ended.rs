//! How leases did that have ended, until the agent has written that down.
//!
//! It is on disk before the agent is answered. So whoever dies, agent or broker, the agent of
//! after is told it again; the ledger knows from the counters themselves what is new to it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use gpuzone_core::LeaseId;
use gpuzone_wire::control::LeaseStatus;
use gpuzone_wire::stats::{StatsError, StatsFile};
use gpuzone_zone::files::{remove, sync_parent};

use crate::paths::ZonePaths;
use crate::record;

/// As many are kept at most: an agent settles each at once, but for those that its ledger does not
/// take now.
const MOST: usize = 1024;

pub(crate) struct Ended {
    paths: ZonePaths,
    leases: Mutex<BTreeMap<LeaseId, LeaseStatus>>,
}

impl Ended {
    /// With those that an earlier broker kept.
    pub(crate) fn new(paths: ZonePaths, found: Vec<LeaseStatus>) -> Self {
        let leases = found.into_iter().map(|last| (last.lease, last)).collect();
        Self { paths, leases: Mutex::new(leases) }
    }

    fn leases(&self) -> MutexGuard<'_, BTreeMap<LeaseId, LeaseStatus>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, id: LeaseId) -> Option<LeaseStatus> {
        self.leases().get(&id).cloned()
    }

    pub(crate) fn all(&self) -> Vec<LeaseStatus> {
        self.leases().values().cloned().collect()
    }

    /// Keeps how a lease did, and its files, which are its own no more.
    pub(crate) fn keep(&self, last: &LeaseStatus) {
        let mut leases = self.leases();
        if let Err(error) = self.put_away(last) {
            tracing::error!(lease = %last.lease, %error,
                "how an ended lease did is not on disk; it is lost if this broker ends now");
        }
        leases.insert(last.lease, last.clone());
        while leases.len() > MOST {
            // Identifiers begin with the time at which they were made.
            let Some((oldest, last)) = leases.pop_first() else { break };
            tracing::error!(lease = %oldest, counters = ?last.counters,
                "nobody has written down what it used, and there are too many after it");
            self.remove(oldest);
        }
    }

    /// The folder is the lease's until the rename, and an ended one's with all that is to be known
    /// of it from then on.
    fn put_away(&self, last: &LeaseStatus) -> io::Result<()> {
        let (dir, ended) = (self.paths.lease(last.lease), self.paths.ended_lease(last.lease));
        record::write(&dir.last(), last)?;
        // Of an earlier time of the same lease, on whose counters it went on.
        remove(ended.dir())?;
        std::fs::rename(dir.dir(), ended.dir())?;
        sync_parent(ended.dir())
    }

    pub(crate) fn settle(&self, id: LeaseId) {
        if self.leases().remove(&id).is_some() {
            self.remove(id);
        }
    }

    fn remove(&self, id: LeaseId) {
        let ended = self.paths.ended_lease(id);
        // First what makes it one: half of a folder is nothing to be told.
        if let Err(error) = remove(&ended.last()).and_then(|()| remove(ended.dir())) {
            tracing::error!(lease = %id, %error, "cannot remove all files of an ended lease");
        }
    }

    /// Has a lease that is served again count on from where it ended.
    pub(crate) fn continue_counting(&self, id: LeaseId, stats: &StatsFile) {
        // Held meanwhile, so that nobody settles it.
        let leases = self.leases();
        if !leases.contains_key(&id) {
            return;
        }
        let before = File::open(self.paths.ended_lease(id).stats());
        let before = before.map_err(|source| StatsError::Io { action: "open", source });
        if let Err(error) = before.and_then(|before| stats.go_on_from(before)) {
            tracing::error!(lease = %id, %error, "it is served again, and counts from nothing");
        }
    }
}
