//! The index with its lock and its clock, and what this replica is.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::{Notify, watch};

use crate::index::{Index, Moment, Settings};

/// What this replica is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Another one binds pods; who, if it is known.
    Standby(Option<String>),
    /// It leads, and reads all pods once more before it binds any: the one before it may have
    /// bound pods that were not seen here yet.
    Settling,
    /// It binds pods.
    Leading,
    /// It ends, and binds none any more.
    Ending,
}

/// What all tasks share.
#[derive(Debug)]
pub(crate) struct Shared {
    index: Mutex<Index>,
    start: Instant,
    /// What this replica is.
    pub(crate) role: watch::Sender<Role>,
    /// Until when it may begin to bind, in milliseconds of [`Shared::now`]: a role is only looked
    /// at now and then, and this holds in between.
    lead_until: AtomicU64,
    /// Lists of pods that were asked for, and that have come.
    pub(crate) lists: watch::Sender<Lists>,
    /// Something in the index changed that binds of a group may wait for.
    pub(crate) stirred: Notify,
    /// Binds on their way.
    pub(crate) binds: watch::Sender<usize>,
}

/// Complete lists of pods: how many were asked for, and how many of those have come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lists {
    /// Asked for.
    pub(crate) wanted: u64,
    /// Have come.
    pub(crate) come: u64,
}

impl Shared {
    /// With an index that knows nothing yet.
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            index: Mutex::new(Index::new(settings)),
            start: Instant::now(),
            role: watch::Sender::new(Role::Standby(None)),
            lead_until: AtomicU64::new(0),
            lists: watch::Sender::new(Lists::default()),
            stirred: Notify::new(),
            binds: watch::Sender::new(0),
        }
    }

    /// The index. Nothing waits while it is held.
    pub(crate) fn index(&self) -> MutexGuard<'_, Index> {
        // A panic in it leaves it as consistent as its last step was; the process's end is worse.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time since this process began.
    pub(crate) fn now(&self) -> Moment {
        self.start.elapsed()
    }

    /// Whether this replica binds pods.
    pub(crate) fn leads(&self) -> bool {
        let until = Moment::from_millis(self.lead_until.load(Ordering::Acquire));
        *self.role.borrow() == Role::Leading && self.now() < until
    }

    /// It may begin to bind until then.
    pub(crate) fn lead_until(&self, until: Moment) {
        let until = u64::try_from(until.as_millis()).unwrap_or(u64::MAX);
        self.lead_until.store(until, Ordering::Release);
    }

    /// Asks for one more complete list of pods.
    pub(crate) fn want_list(&self) -> u64 {
        self.lists.send_modify(|lists| lists.wanted += 1);
        self.lists.borrow().wanted
    }
}
