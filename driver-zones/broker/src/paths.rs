use std::path::{Path, PathBuf};

use gpuzone_core::LeaseId;

/// The files of a driver zone.
#[derive(Clone, Debug)]
pub struct ZonePaths {
    dir: PathBuf,
}

/// The files of one lease in a driver zone.
#[derive(Clone, Debug)]
pub(crate) struct LeasePaths {
    dir: PathBuf,
}

impl ZonePaths {
    /// Of the zone in `dir`.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The socket that the agent speaks to.
    pub fn control_socket(&self) -> PathBuf {
        self.dir.join("control.sock")
    }

    /// Locked by the broker that serves the zone.
    pub fn lock(&self) -> PathBuf {
        self.dir.join("broker.lock")
    }

    /// The zone's leases.
    pub fn leases(&self) -> PathBuf {
        self.dir.join("leases")
    }

    /// The records of zones: workers' and scrub workers'.
    pub fn zones(&self) -> PathBuf {
        self.dir.join("zones")
    }

    /// The sockets and the log of the zone's microVM, if it is one.
    pub(crate) fn machine(&self) -> PathBuf {
        self.dir.join("machine")
    }

    pub(crate) fn scrub_log(&self, lease: LeaseId) -> PathBuf {
        self.dir.join(format!("scrub-{lease}.log"))
    }

    /// Where a scrub worker listens for its turns.
    pub(crate) fn scrub_turns(&self, lease: LeaseId) -> PathBuf {
        self.dir.join(format!("scrub-{lease}.sock"))
    }

    pub(crate) fn lease(&self, lease: LeaseId) -> LeasePaths {
        LeasePaths { dir: self.leases().join(lease.to_string()) }
    }

    /// Where a lease's folder is made before it counts.
    pub(crate) fn lease_in_the_making(&self, lease: LeaseId) -> LeasePaths {
        LeasePaths { dir: self.leases().join(format!("{MAKING}{lease}")) }
    }

    /// Where a lease's folder is between its end and its settlement.
    pub(crate) fn ended_lease(&self, lease: LeaseId) -> LeasePaths {
        LeasePaths { dir: self.leases().join(format!("{ENDED}{lease}")) }
    }
}

/// In front of the name of a folder that is not complete.
pub(crate) const MAKING: &str = ".new-";
/// In front of the name of the folder of a lease that has ended.
pub(crate) const ENDED: &str = ".ended-";
/// In front of the name of a folder that could not be read and was put aside.
pub(crate) const UNREADABLE: &str = ".unreadable-";

impl LeasePaths {
    pub(crate) fn in_dir(dir: PathBuf) -> Self {
        Self { dir }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn order(&self) -> PathBuf {
        self.dir.join("order.json")
    }

    pub(crate) fn stats(&self) -> PathBuf {
        self.dir.join("stats")
    }

    /// Where the worker listens for its turns.
    pub(crate) fn turns(&self) -> PathBuf {
        self.dir.join("turns.sock")
    }

    pub(crate) fn worker(&self) -> PathBuf {
        self.dir.join("worker.json")
    }

    /// How the lease did, when it has ended.
    pub(crate) fn last(&self) -> PathBuf {
        self.dir.join("last.json")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("worker.log")
    }
}
