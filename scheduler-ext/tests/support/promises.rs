//! What is promised to pods of groups whose Bindings are refused, kept track of beside the index.
#![allow(dead_code, clippy::unwrap_used, reason = "not every test needs all of it")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use gpuzone_api::kubernetes::PodUid;
use gpuzone_scheduler_ext::index::{Concluded, Index, Moment};
use serde_json::Value;

use super::{group_of, uid_of};

const GROUP_TIME: Duration = Duration::from_secs(20);

/// Of one leader: the next one does not know of them.
#[derive(Default)]
pub(crate) struct Promises {
    /// Pods of groups that were refused, and until when each has a place.
    kept: BTreeMap<PodUid, Moment>,
    /// Until when those have one that were kept while none of their group ran, but some might: the time
    /// begins with the first refusal.
    since: BTreeMap<PodUid, Moment>,
    /// Pods whose group has gone out with them.
    out: BTreeSet<PodUid>,
    /// How many that were, and how many of them were refused while others run.
    pub(crate) counts: (u32, u32),
}

impl Promises {
    pub(crate) fn restarted(&mut self) {
        self.kept.clear();
        self.since.clear();
        self.out.clear();
    }

    /// The gate was open for it.
    pub(crate) fn goes_out(&mut self, uid: &PodUid) {
        self.out.insert(uid.clone());
        self.counts.0 += 1;
    }

    /// Its place is of no use any more.
    pub(crate) fn needs_another(&mut self, uid: &PodUid) {
        self.out.remove(uid);
        self.kept.remove(uid);
        self.since.remove(uid);
    }

    /// The API server refused it, and no earlier try is in doubt.
    pub(crate) fn refused(
        &mut self,
        pod: &Value,
        concluded: &Concluded,
        pods: &BTreeMap<String, Value>,
        index: &Index,
        now: Moment,
    ) {
        let group = group_of(pod).filter(|_| self.out.contains(&uid_of(pod)));
        let runs =
            |other: &&Value| group_of(other) == group && is_bound(other) && has_place(index, other);
        if group.is_some() && pods.values().filter(runs).any(|o| self.out.contains(&uid_of(o))) {
            let until = self.since.get(&uid_of(pod)).copied().unwrap_or(now + GROUP_TIME);
            self.kept.entry(uid_of(pod)).or_insert(until);
            self.counts.1 += 1;
        }
        if *concluded == Concluded::Kept {
            self.since.entry(uid_of(pod)).or_insert(now + GROUP_TIME);
        } else {
            self.since.remove(&uid_of(pod));
        }
    }

    /// Who was refused while others of its group are bound has a place.
    pub(crate) fn check(
        &self,
        pods: &BTreeMap<String, Value>,
        index: &Index,
        now: Moment,
    ) -> Result<(), String> {
        if self.kept.values().all(|until| *until <= now) {
            return Ok(());
        }
        let bound = pods.values().filter(|pod| is_bound(pod) && has_place(index, pod));
        let running: BTreeSet<String> = bound.filter_map(group_of).collect();
        for pod in pods.values().filter(|pod| !is_bound(pod)) {
            let runs = group_of(pod).is_some_and(|group| running.contains(&group));
            let until = self.kept.get(&uid_of(pod)).copied().unwrap_or_default();
            if runs && now < until && !has_place(index, pod) {
                return Err(format!("{pod} has no place"));
            }
        }
        Ok(())
    }
}

fn is_bound(pod: &Value) -> bool {
    !pod["spec"]["nodeName"].is_null()
}

fn has_place(index: &Index, pod: &Value) -> bool {
    !index.holds(&uid_of(pod)).is_empty()
}
