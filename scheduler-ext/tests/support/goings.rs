//! Pods that go in the model of a cluster: who goes for whom, who replaces whom, and what has to hold then.
#![allow(dead_code, clippy::unwrap_used, reason = "not every test needs all of it")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use gpuzone_api::kubernetes::PodUid;
use gpuzone_scheduler_ext::index::{Index, Moment, Reclaim};
use serde_json::{Value, json};

use super::world::{Happened, World, waits};
use super::*;

/// How long a place stays for who replaces a pod.
const STAYS: Duration = Duration::from_secs(60);
/// A pod within what is guaranteed to it waits so long for room: what is due at once happens often.
const PATIENCE: Duration = Duration::ZERO;

/// What is known of pods that go, beside the index.
#[derive(Default)]
pub(crate) struct Goings {
    /// Since when pods are seen on their nodes.
    since: BTreeMap<PodUid, Moment>,
    /// When a place became vacant last.
    vacated: Moment,
    /// Evictions that were granted.
    granted: BTreeSet<PodUid>,
    /// On which nodes pods and groups were tried last.
    offered: BTreeMap<String, Vec<String>>,
    /// How many places were left to whoever replaces and how many of those were sure to be, how many of
    /// those who did had them, for how many groups room was made, and how many pods went for others.
    pub(crate) counts: [u32; 5],
}

/// Its group's name, or its own.
fn claimant(pod: &Value) -> String {
    group_of(pod).unwrap_or_else(|| uid_of(pod).to_string())
}

fn ends(pod: &Value) -> bool {
    !pod["metadata"]["deletionTimestamp"].is_null()
}

fn priority(pod: &Value) -> i64 {
    pod["spec"]["priority"].as_i64().unwrap_or_default()
}

impl Goings {
    pub(crate) fn restarted(&mut self) {
        self.since.clear();
        self.granted.clear();
        self.offered.clear();
        self.vacated = Moment::ZERO;
    }

    /// Who is not in a list is gone, and may have left a place.
    pub(crate) fn listed(&mut self, now: Moment) {
        self.vacated = now;
    }

    pub(crate) fn offered(&mut self, pod: &Value, names: &[&str]) {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        self.offered.insert(claimant(pod), names);
    }
}

impl World {
    /// Word of a pod.
    pub(crate) fn see(&mut self, pod: &Value) {
        let uid = uid_of(pod);
        let vacant = self.index.counts().vacant;
        self.index.apply_pod(view(pod));
        self.seen.insert(uid.clone(), pod.clone());
        if !waits(pod) {
            self.goings.since.entry(uid).or_insert(self.now);
        } else if self.index.counts().vacant < vacant && !self.index.holds(&uid).is_empty() {
            self.goings.counts[1] += 1;
        }
    }

    /// Word that a pod is gone.
    pub(crate) fn see_gone(&mut self, uid: &PodUid) {
        let (before, leaves) = (self.index.counts(), self.leaves_a_place(uid));
        let held = self.index.holds(uid);
        let waiting: Vec<PodUid> = self.index_waits(uid);
        self.index.remove_pod(uid);
        let since = self.goings.since.remove(uid);
        self.goings.granted.remove(uid);
        self.seen.remove(uid);
        let taken = waiting.iter().find(|uid| self.index.holds(uid) == held && !held.is_empty());
        let stays = self.index.counts().vacant > before.vacant || taken.is_some();
        if leaves {
            self.goings.counts[4] += 1;
            assert!(stays, "{uid} was one of a group that is whole, since {since:?}");
        }
        self.goings.counts[0] += u32::from(stays);
        self.goings.counts[1] += u32::from(taken.is_some());
        self.goings.vacated = if stays { self.now } else { self.goings.vacated };
    }

    /// Pods that wait, of those that are known.
    fn index_waits(&self, but: &PodUid) -> Vec<PodUid> {
        let uids = self.pods.values().map(uid_of);
        uids.filter(|uid| uid != but && self.index.holds(uid).is_empty()).collect()
    }

    /// Whether it is sure that a pod's place stays when it goes. The model does not know in all cases.
    fn leaves_a_place(&self, uid: &PodUid) -> bool {
        let Some(since) = self.goings.since.get(uid) else { return false };
        let Some((size, group, disrupted)) = self.of_group(uid) else { return false };
        let of_it = |pod: &&Value| group_of(pod).as_ref() == Some(&group) && uid_of(pod) != *uid;
        let others = self.pods.values().filter(of_it);
        let (mut hold, mut run) = (0, 0);
        for pod in others {
            hold += u64::from(!self.index.holds(&uid_of(pod)).is_empty());
            let seen = self.goings.since.contains_key(&uid_of(pod));
            run += u64::from(seen && !ends(pod));
        }
        // Others that are gone, and of which there is no word yet, are still counted by the index.
        let word = self.watch.iter().any(|of| matches!(of, Happened::Delete(_)));
        let whole = hold + 1 == size && run > 0;
        let counts = self.index.counts();
        // Nor is there word of those whose Binding is on its way.
        let word = word || counts.reserved > 0;
        *since < self.now && !disrupted && whole && !word && counts.vacant == 0
    }

    /// How many start together with it, its group, and whether it is taken away for another.
    fn of_group(&self, uid: &PodUid) -> Option<(u64, String, bool)> {
        let pod = self.seen.get(uid)?;
        let group = group_of(pod)?;
        let says = &pod["metadata"]["annotations"]["gpuzone.dev/pod-group-size"];
        let says = says.as_str().and_then(|says| says.parse().ok());
        let of_team = pod["metadata"]["namespace"] == "team";
        let size = self.sizes.get(&group).filter(|_| of_team).copied().or(says)?;
        let disrupted = ends(pod) || self.goings.granted.contains(uid);
        (size > 0).then_some((size, group, disrupted))
    }

    /// A controller makes another pod in the place of one that is gone.
    pub(crate) fn replace(&mut self, gone: &Value) {
        let (annotations, gone) = (gone["metadata"]["annotations"].clone(), gone.clone());
        self.put(|name| {
            let mut pod = gone;
            let meta = json!({ "namespace": pod["metadata"]["namespace"], "name": name,
                "uid": format!("uid-{name}"), "labels": pod["metadata"]["labels"] });
            pod["metadata"] = meta;
            let size = &annotations["gpuzone.dev/pod-group-size"];
            if !size.is_null() {
                pod["metadata"]["annotations"] = json!({ "gpuzone.dev/pod-group-size": size });
            }
            pod["spec"].as_object_mut().unwrap().remove("nodeName");
            pod["status"] = json!({ "phase": "Pending" });
            pod
        });
    }

    /// A pod is told to end, and ends later.
    fn evict(&mut self, uid: &PodUid) {
        let Some(pod) = self.pods.values_mut().find(|pod| uid_of(pod) == *uid) else { return };
        pod["metadata"]["deletionTimestamp"] = json!("2026-11-26T10:00:00Z");
        pod["status"]["conditions"] = json!([{ "type": "DisruptionTarget", "status": "True" }]);
        self.watch.push_back(Happened::Apply(pod.clone()));
        self.goings.counts[3] += 1;
    }

    /// One that was told to end does.
    pub(crate) fn end(&mut self) {
        let ending: Vec<Value> = self.pods.values().filter(|pod| ends(pod)).cloned().collect();
        let at = self.dice.below(ending.len().max(1) as u64);
        let Some(pod) = ending.get(usize::try_from(at).unwrap()) else { return };
        self.remove(pod);
        if self.dice.one_in(2) {
            self.replace(pod);
        }
    }

    /// Whoever borrows goes for who lent it, if budgets let it.
    pub(crate) fn reclaim(&mut self) {
        let Some(reclaim) = self.index.reclaim(self.now, PATIENCE) else { return };
        let room = self.room_after(&reclaim);
        assert_eq!(room, Ok(()), "{reclaim:?} makes room");
        if let Some((_, uid)) = reclaim.victims.first().filter(|_| self.dice.one_in(6)) {
            return self.index.evicting(std::slice::from_ref(uid), false, self.now);
        }
        for (_, uid) in &reclaim.victims {
            self.index.evicting(std::slice::from_ref(uid), true, self.now);
            self.goings.granted.insert(uid.clone());
            self.evict(uid);
        }
        self.goings.counts[2] +=
            u32::from(self.pods.get(&reclaim.pod.name).is_some_and(|pod| group_of(pod).is_some()));
    }

    /// Who it is for has room when those are gone, and those that go anyhow: all of its group.
    fn room_after(&self, reclaim: &Reclaim) -> Result<(), String> {
        let Some(pod) = self.pods.get(&reclaim.pod.name) else { return Ok(()) };
        let mut index = self.index.clone();
        let mut gone: Vec<PodUid> = reclaim.victims.iter().map(|(_, uid)| uid.clone()).collect();
        index.evicting(&gone, true, self.now);
        gone.extend(self.goings.granted.iter().cloned());
        gone.extend(self.seen.iter().filter(|(_, pod)| ends(pod)).map(|(uid, _)| uid.clone()));
        let names = &self.goings.offered[&claimant(pod)];
        self.fits_without(index, &gone, pod, names, self.now)
    }

    fn fits_without(
        &self,
        mut index: Index,
        gone: &[PodUid],
        pod: &Value,
        names: &[String],
        now: Moment,
    ) -> Result<(), String> {
        gone.iter().for_each(|uid| index.remove_pod(uid));
        index.expire_groups(now);
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let answer = index.filter(&view(pod), &names, now).unwrap();
        match answer.0.iter().find_map(|answer| answer.as_ref().err()) {
            _ if answer.0.iter().any(Result::is_ok) => Ok(()),
            // It had its turn, and others have theirs.
            Some(why) if why.reason.contains("tried again in a moment") => Ok(()),
            why => Err(format!("{why:?}")),
        }
    }

    /// The scheduler asks whose place a pod may take that no node serves, and takes it on one of them.
    pub(crate) fn preempt(&mut self, pod: &Value, names: &[&str]) {
        if !self.weather.lends || self.dice.one_in(2) {
            return;
        }
        let nodes = names.iter().map(|name| ((*name).to_owned(), BTreeSet::new())).collect();
        let chosen = self.index.preempt(&view(pod), &nodes);
        let Some((name, victims)) = chosen.into_iter().next() else { return };
        let mut index = self.index.clone();
        let mut gone: Vec<PodUid> = victims.pods.iter().cloned().collect();
        let ending = self.seen.iter().filter(|(_, pod)| ends(pod)).map(|(uid, _)| uid.clone());
        gone.extend(ending);
        let room = if group_of(pod).is_none() {
            for pod in gone.iter().filter_map(|uid| self.seen.get(uid)).filter(|pod| !waits(pod)) {
                let mut pod = pod.clone();
                pod["status"]["conditions"] =
                    json!([{ "type": "DisruptionTarget", "status": "True" }]);
                index.apply_pod(view(&pod));
            }
            self.fits_without(index, &gone, pod, &[name], self.now)
        } else {
            // Whatever it may take: then all of its group has room. What stays of those is not looked at.
            let may = |of: &&Value| {
                let lends = of["metadata"]["namespace"] != pod["metadata"]["namespace"];
                let less = priority(of) < priority(pod);
                group_of(of) != group_of(pod) && (less || (lends && priority(of) == priority(pod)))
            };
            gone.extend(self.seen.values().chain(self.pods.values()).filter(may).map(uid_of));
            let names = (1..=super::world::NODES).map(|n| format!("n{n}")).collect::<Vec<_>>();
            self.fits_without(index, &gone, pod, &names, self.now + STAYS)
        };
        // Of pods that differ, one that has a place may stand in another's way.
        if self.are_alike(pod) {
            assert_eq!(room, Ok(()), "{pod} has room without {victims:?}");
        }
        victims.pods.iter().for_each(|uid| self.evict(uid));
    }

    /// Whether all pods of its group ask for the same.
    fn are_alike(&self, pod: &Value) -> bool {
        let asks = |pod: &Value| pod["spec"]["containers"].clone();
        let group = group_of(pod);
        let of_it = |of: &&Value| group.is_some() && group_of(of) == group;
        self.pods.values().chain(self.seen.values()).filter(of_it).all(|of| asks(of) == asks(pod))
    }

    /// Nothing is vacant for longer than it may be, and never more than runs.
    pub(crate) fn check_vacancies(&self, seed: u64, step: usize) {
        let vacant = self.index.counts().vacant;
        let bound = self.index.counts().bound;
        // What was taken back for a group beside.
        assert!(self.weather.lends || vacant <= bound, "seed {seed}, step {step}");
        if self.now >= self.goings.vacated + STAYS {
            assert_eq!(vacant, 0, "seed {seed}, step {step}: for ever");
        }
    }
}
