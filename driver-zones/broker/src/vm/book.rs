//! The leases that a microVM serves, each in a file: they outlive both the microVM and this process.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use gpuzone_core::{LeaseId, UsageCounters};
use gpuzone_wire::control::{LeaseStatus, WorkerEnd, WorkerOrder};
use gpuzone_zone::files::{private_dir, remove};
use serde::{Deserialize, Serialize};

use crate::ends::Ends;
use crate::record;

const SUFFIX: &str = "lease";
/// Beside it, what was heard last: for whoever comes after both this process and the microVM.
const HEARD: &str = "heard";

/// All leases.
#[derive(Debug)]
pub(super) struct Book {
    folder: PathBuf,
    leases: Mutex<BTreeMap<LeaseId, Entry>>,
    /// How many microVMs went; changed and read with `leases` held.
    machine: AtomicU64,
}

/// A lease, and what is known of it beyond what the microVM says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Entry {
    order: WorkerOrder,
    /// What was used in microVMs that are gone.
    before: UsageCounters,
    /// Workers that were replaced in those, and those that went with them.
    restarts: u32,
    #[serde(default)]
    ends: Ends,
    /// As the microVM said last.
    last: Option<LeaseStatus>,
    /// It has ended, and the agent has not settled that.
    #[serde(default)]
    ended: bool,
}

/// What a lease's microVM said last. Not worth a wait for the disk: it is of use while the host runs.
#[derive(Serialize, Deserialize)]
struct Heard {
    /// As in the lease's [`Entry`], else this was counted there.
    before: UsageCounters,
    last: LeaseStatus,
}

impl Heard {
    fn keep(path: &Path, entry: &Entry) -> io::Result<()> {
        let Some(last) = entry.last.clone() else { return Ok(()) };
        let new = path.with_extension("heard-new");
        std::fs::write(&new, serde_json::to_vec(&Heard { before: entry.before, last })?)?;
        std::fs::rename(new, path.with_extension(HEARD))
    }

    /// One that is damaged was never said.
    fn of(path: &Path, entry: &Entry) -> Option<LeaseStatus> {
        let heard: Heard = record::read(&path.with_extension(HEARD)).ok()?;
        (!entry.ended && heard.before == entry.before).then_some(heard.last)
    }
}

impl Book {
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        private_dir(folder)?;
        let mut leases = BTreeMap::new();
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != SUFFIX) {
                continue;
            }
            match record::read::<Entry>(&path) {
                Ok(mut entry) => {
                    entry.last = Heard::of(&path, &entry).or(entry.last);
                    leases.insert(entry.order.lease, entry);
                }
                Err(error) => {
                    let aside = path.with_extension("unreadable");
                    std::fs::rename(&path, &aside)?;
                    tracing::error!(file = %path.display(), %error, moved_to = %aside.display(),
                        "a file that is no lease's was put aside; look at it and remove it");
                }
            }
        }
        Ok(Self {
            folder: folder.to_owned(),
            leases: Mutex::new(leases),
            machine: AtomicU64::new(0),
        })
    }

    fn leases(&self) -> MutexGuard<'_, BTreeMap<LeaseId, Entry>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, lease: LeaseId) -> PathBuf {
        self.folder.join(format!("{lease}.{SUFFIX}"))
    }

    /// Writes a lease down before it is served; the same order again is no error. One that has
    /// ended and is not settled goes on.
    pub(super) fn begin(&self, order: &WorkerOrder) -> Result<(), String> {
        let mut leases = self.leases();
        let ended = leases.get(&order.lease).filter(|entry| entry.ended).cloned();
        if let (Some(entry), None) = (leases.get(&order.lease), &ended) {
            let same = entry.order == *order;
            return if same {
                Ok(())
            } else {
                Err(format!(
                    "{} is served already, with other GPUs or limits; stop it first",
                    order.lease
                ))
            };
        }
        let entry = Entry { order: order.clone(), ..ended.unwrap_or_else(|| Entry::new(order)) };
        let entry = Entry { ended: false, ..entry };
        let lease = entry.order.lease;
        record::write(&self.path(lease), &entry)
            .map_err(|error| format!("cannot write {lease} down: {error}"))?;
        leases.insert(lease, entry);
        Ok(())
    }

    /// Ends a lease; what it used in all, again until that is settled.
    pub(super) fn end(&self, lease: LeaseId, last: Option<LeaseStatus>) -> Option<LeaseStatus> {
        let mut leases = self.leases();
        let entry = leases.get_mut(&lease)?;
        if !entry.ended {
            entry.end(last);
            if let Err(error) = record::write(&self.path(lease), entry) {
                tracing::error!(%lease, %error,
                    "how it did is not on disk; it is lost if this process ends now");
            }
        }
        Some(entry.status())
    }

    /// Forgets a lease that has ended.
    pub(super) fn settle(&self, lease: LeaseId) {
        let mut leases = self.leases();
        if leases.get(&lease).is_some_and(|entry| entry.ended) {
            leases.remove(&lease);
            let (path, heard) = (self.path(lease), self.path(lease).with_extension(HEARD));
            if let Err(error) = remove(&heard).and_then(|()| remove(&path)) {
                tracing::error!(%lease, %error, "a settled lease's file is still there");
            }
        }
    }

    /// Of all leases that are served.
    pub(super) fn orders(&self) -> Vec<WorkerOrder> {
        let leases = self.leases();
        let served = leases.values().filter(|entry| !entry.ended);
        served.map(|entry| entry.order.clone()).collect()
    }

    /// The number of the microVM that serves, or will.
    pub(super) fn machine(&self) -> u64 {
        self.machine.load(Ordering::Relaxed)
    }

    /// Takes in what microVM `machine` says; what it says of leases that are not its is dropped, and
    /// what is heard of it once it is gone: that was counted.
    pub(super) fn heard(&self, machine: u64, statuses: Vec<LeaseStatus>) -> Vec<LeaseStatus> {
        let mut leases = self.leases();
        if machine != self.machine() {
            return Vec::new();
        }
        let mut known = Vec::new();
        for status in statuses {
            // What comes late of one that has ended is not its last.
            if let Some(entry) = leases.get_mut(&status.lease).filter(|entry| !entry.ended) {
                let news = entry.last.as_ref() != Some(&status);
                entry.last = Some(status);
                known.push(entry.status());
                let path = self.path(entry.order.lease);
                if news && let Err(error) = Heard::keep(&path, entry) {
                    tracing::warn!(lease = %entry.order.lease, %error,
                        "what it used is not written down; it is lost if the microVM and this process end now");
                }
            }
        }
        known
    }

    /// How all leases are doing that are served, as far as it was heard.
    pub(super) fn statuses(&self) -> Vec<LeaseStatus> {
        self.leases().values().filter(|entry| !entry.ended).map(Entry::status).collect()
    }

    /// How those did that have ended and are not settled.
    pub(super) fn ended(&self) -> Vec<LeaseStatus> {
        self.leases().values().filter(|entry| entry.ended).map(Entry::status).collect()
    }

    /// The microVM is gone, and all workers with it. What was used since it was last heard is lost.
    pub(super) fn machine_gone(&self, reason: &str) {
        let mut leases = self.leases();
        self.machine.fetch_add(1, Ordering::Relaxed);
        for (lease, entry) in &mut *leases {
            entry.machine_gone(reason);
            if let Err(error) = record::write(&self.path(*lease), entry) {
                tracing::error!(%lease, %error, "cannot write down what it used so far");
            }
        }
    }

    pub(super) fn acknowledge(&self, lease: LeaseId, through: u32) -> Option<u32> {
        let mut leases = self.leases();
        let entry = leases.get_mut(&lease)?;
        entry.ends.acknowledge(through);
        // Numbers of workers in this microVM begin anew.
        Some(through.saturating_sub(entry.restarts))
    }
}

impl Entry {
    fn new(order: &WorkerOrder) -> Self {
        let (order, before) = (order.clone(), UsageCounters::default());
        Self { order, before, restarts: 0, ends: Ends::default(), last: None, ended: false }
    }

    fn end(&mut self, last: Option<LeaseStatus>) {
        self.ended = true;
        let Some(last) = last.or_else(|| self.last.take()) else { return };
        let used = gpuzone_core::MemoryBytes::ZERO;
        self.last = Some(LeaseStatus { worker_pid: None, sessions: 0, used, ..last });
    }

    fn machine_gone(&mut self, reason: &str) {
        let Some(last) = self.last.take() else { return };
        for end in last.ends {
            let number = self.restarts.saturating_add(end.number);
            self.ends.push(number, end.pid, &end.reason);
        }
        self.before = self.before.plus(&last.counters);
        self.restarts = self.restarts.saturating_add(last.restarts);
        if let Some(pid) = last.worker_pid {
            self.restarts = self.restarts.saturating_add(1);
            self.ends.push(self.restarts, pid, reason);
        }
    }

    fn status(&self) -> LeaseStatus {
        let mut ends = self.ends.to_vec();
        let Some(last) = self.last.clone() else {
            return LeaseStatus {
                lease: self.order.lease,
                worker_pid: None,
                restarts: self.restarts,
                sessions: 0,
                used: gpuzone_core::MemoryBytes::ZERO,
                counters: self.before,
                refused_by_name: BTreeMap::new(),
                trouble: "the driver zone's microVM is being started".to_owned(),
                ends,
            };
        };
        ends.extend(
            last.ends
                .into_iter()
                .map(|end| WorkerEnd { number: self.restarts.saturating_add(end.number), ..end }),
        );
        LeaseStatus {
            lease: self.order.lease,
            restarts: self.restarts.saturating_add(last.restarts),
            counters: self.before.plus(&last.counters),
            ends,
            ..last
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order() -> WorkerOrder {
        WorkerOrder {
            lease: LeaseId::from_uuid(uuid::Uuid::from_u128(7)),
            slot_dir: "/run/slot".into(),
            grants: Vec::new(),
            priority: gpuzone_wire::turn::Priority::default(),
            time_cap: None,
            access: gpuzone_wire::control::SlotAccess::Private,
        }
    }

    fn said(launches: u64, pid: Option<u32>, restarts: u32) -> LeaseStatus {
        let counters = UsageCounters { launches, ..UsageCounters::default() };
        let entry = Entry { before: counters, restarts, ..Entry::new(&order()) };
        LeaseStatus { worker_pid: pid, trouble: String::new(), ..entry.status() }
    }

    #[test]
    fn what_was_used_only_grows_over_machines_and_owners() {
        let dir = tempfile::tempdir().unwrap();
        let book = Book::open(dir.path()).unwrap();
        book.begin(&order()).unwrap();
        assert_eq!(book.heard(book.machine(), vec![said(5, Some(70), 1)])[0].counters.launches, 5);
        book.machine_gone("signal 9");
        assert_eq!(book.heard(0, vec![said(6, Some(70), 1)]), [], "answered before it went");
        let book = Book::open(dir.path()).unwrap();
        let between = &book.statuses()[0];
        assert_eq!((between.counters.launches, between.restarts, between.worker_pid), (5, 2, None));
        assert_eq!(between.ends[0].number, 2);
        let after = &book.heard(book.machine(), vec![said(3, Some(71), 0)])[0];
        assert_eq!((after.counters.launches, after.restarts), (8, 2));
        assert_eq!(book.end(order().lease, None).unwrap().counters.launches, 8);
        assert!(Book::open(dir.path()).unwrap().orders().is_empty());
    }

    #[test]
    fn what_was_used_is_not_lost_when_machine_and_owner_end_at_once() {
        let (dir, lease) = (tempfile::tempdir().unwrap(), order().lease);
        let book = Book::open(dir.path()).unwrap();
        book.begin(&order()).unwrap();
        book.heard(0, vec![said(5, Some(70), 0)]);
        let book = Book::open(dir.path()).unwrap();
        assert_eq!(book.statuses()[0].counters.launches, 5);
        let heard = std::fs::read(book.path(lease).with_extension(HEARD)).unwrap();
        book.machine_gone("the host ran out of memory");
        assert_eq!(book.statuses()[0].counters.launches, 5);

        // The file stays, and counts no more.
        std::fs::write(book.path(lease).with_extension(HEARD), &heard).unwrap();
        assert_eq!(Book::open(dir.path()).unwrap().statuses()[0].counters.launches, 5);
        std::fs::write(book.path(lease).with_extension(HEARD), &heard[..heard.len() / 2]).unwrap();
        let book = Book::open(dir.path()).unwrap();
        assert_eq!(book.heard(0, vec![said(2, Some(71), 0)])[0].counters.launches, 7);
        book.end(lease, None);
        book.settle(lease);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn how_a_lease_ended_is_told_until_it_is_settled() {
        let (dir, lease) = (tempfile::tempdir().unwrap(), order().lease);
        let book = Book::open(dir.path()).unwrap();
        book.begin(&order()).unwrap();
        book.heard(book.machine(), vec![said(5, Some(70), 0)]);
        assert_eq!(book.end(lease, Some(said(6, None, 0))).unwrap().counters.launches, 6);
        assert_eq!(
            book.heard(book.machine(), vec![said(5, Some(70), 0)]),
            [],
            "asked before it ended"
        );
        let book = Book::open(dir.path()).unwrap();
        assert_eq!((book.orders(), book.statuses()), (vec![], vec![]));
        let last = book.ended().remove(0);
        assert_eq!((last.counters.launches, last.worker_pid), (6, None));
        assert_eq!(book.end(lease, None), Some(last));

        // Its broker counts on where it ended.
        book.begin(&order()).unwrap();
        assert_eq!((book.orders().len(), book.ended()), (1, vec![]));
        book.settle(lease);
        book.heard(book.machine(), vec![said(9, Some(71), 0)]);
        assert_eq!(book.end(lease, None).unwrap().counters.launches, 9);
        book.settle(lease);
        assert_eq!((book.ended(), book.end(lease, None)), (vec![], None));
        assert!(Book::open(dir.path()).unwrap().ended().is_empty());
    }

    #[test]
    fn a_lease_that_nobody_asked_for_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let book = Book::open(dir.path()).unwrap();
        assert!(book.heard(book.machine(), vec![said(5, Some(70), 1)]).is_empty());
        book.begin(&order()).unwrap();
        book.begin(&order()).unwrap();
        let other = WorkerOrder { slot_dir: "/elsewhere".into(), ..order() };
        assert!(book.begin(&other).is_err());
    }

    #[test]
    fn a_file_that_is_no_lease_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("x.lease"), "{").unwrap();
        assert!(Book::open(dir.path()).unwrap().orders().is_empty());
        assert!(dir.path().join("x.unreadable").exists());
    }
}
