//! Room for pods that start together: for all of them, or nobody goes.
//!
//! One pod after the other is given a place in thought, on top of what those before it were given: where
//! there is room, there, and else on the node where it costs others least. When one finds none, none of it
//! counts. Afterwards whoever would have gone for nothing stays.

use std::collections::{BTreeMap, BTreeSet};

use gpuzone_api::kubernetes::PodUid;
use gpuzone_core::Grant;
use gpuzone_core::engine::{PodDemand, Policy};

use super::nodes::Node;
use super::pods::PodEntry;
use super::preempt::{Needy, Served};
use super::{Index, Usage};
use crate::view::PodView;

/// A node, and what it is called.
#[derive(Clone, Copy, Debug)]
pub(super) struct Somewhere<'a> {
    pub(super) name: &'a str,
    pub(super) node: &'a Node,
}

/// What pods would hold that are given room before another.
#[derive(Clone, Debug, Default)]
pub(super) struct Imagined {
    /// By node.
    holds: BTreeMap<Box<str>, Vec<Grant>>,
    /// What they come to, of their quotas.
    pub(super) asked: Usage,
}

impl Imagined {
    pub(super) fn on(&self, node: &str) -> impl Iterator<Item = &Grant> {
        self.holds.get(node).into_iter().flatten()
    }

    fn add(&mut self, node: &str, served: Served) {
        self.asked.add(&served.asked);
        self.holds.entry(node.into()).or_default().extend(served.holds);
    }
}

/// Who asks for places, for which pods, and where.
#[derive(Clone, Debug)]
pub(super) struct Search<'a> {
    pub(super) needy: Needy<'a>,
    pub(super) demands: Vec<(Policy, PodDemand)>,
    pub(super) nodes: Vec<Somewhere<'a>>,
    /// Whether they are to take no more than is guaranteed to them.
    pub(super) guaranteed: bool,
}

/// Who has to go for all to have a place, and from where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) victims: Vec<PodUid>,
    pub(super) nodes: BTreeSet<String>,
}

impl Index {
    /// Who of those that `may` be taken has to go, beside `gone`, so that all have a place; `None` when that
    /// cannot be.
    pub(super) fn room_for_all(
        &self,
        search: &Search<'_>,
        gone: &BTreeSet<PodUid>,
        may: &impl Fn(&PodUid, &BTreeSet<PodUid>) -> bool,
    ) -> Option<Found> {
        let mut all = gone.clone();
        let mut chosen = self.give_each(search, &mut all, may)?;
        // Who was taken for one may not have to go since another's place was made.
        if search.demands.len() > 1 {
            chosen.retain(|(uid, _)| {
                let without = all.iter().filter(|other| *other != uid).cloned();
                let mut without: BTreeSet<PodUid> = without.collect();
                let needed = self.give_each(search, &mut without, &|_, _| false).is_none();
                if !needed {
                    all.remove(uid);
                }
                needed
            });
        }
        let nodes = chosen.iter().map(|(_, node)| (*node).to_owned()).collect();
        Some(Found { victims: chosen.into_iter().map(|(uid, _)| uid).collect(), nodes })
    }

    /// The same, one pod after the other; with whom each victim's node is.
    fn give_each<'a>(
        &self,
        search: &Search<'a>,
        gone: &mut BTreeSet<PodUid>,
        may: &impl Fn(&PodUid, &BTreeSet<PodUid>) -> bool,
    ) -> Option<Vec<(PodUid, &'a str)>> {
        let (mut imagined, mut chosen) = (Imagined::default(), Vec::new());
        for (policy, demand) in &search.demands {
            let serves = |on: Somewhere<'_>, gone: &BTreeSet<PodUid>, imagined: &Imagined| {
                let served = self.served(search.needy, on, (*policy, demand), gone, imagined);
                served.filter(|served| served.guaranteed || !search.guaranteed)
            };
            let free = search.nodes.iter();
            let free = free.filter_map(|on| Some((*on, serves(*on, gone, &imagined)?)));
            // As the group's plan chooses: of equals the first.
            let best = free.reduce(|a, b| if b.1.score > a.1.score { b } else { a });
            let (on, served) = match best {
                Some(best) => best,
                None => {
                    let costs = search.nodes.iter().filter_map(|on| {
                        let serves =
                            |gone: &BTreeSet<PodUid>| serves(*on, gone, &imagined).is_some();
                        let victims = self.fewest(on.node, gone, serves, may)?;
                        Some(((self.disturbance(gone, &victims), on.name), on, victims))
                    });
                    let (_, on, victims) = costs.min_by_key(|(cost, ..)| *cost)?;
                    gone.extend(victims.iter().cloned());
                    chosen.extend(victims.into_iter().map(|uid| (uid, on.name)));
                    (*on, serves(*on, gone, &imagined)?)
                }
            };
            imagined.add(on.name, served);
        }
        Some(chosen)
    }

    /// What pods ask for, in the order in which their group's plan gives them places.
    pub(super) fn demands_of(&self, pods: &[&PodEntry]) -> Vec<(Policy, PodDemand)> {
        let asks = pods.iter().filter_map(|entry| entry.asks());
        asks.map(|ask| (self.policy_of(ask), ask.demand(&self.models))).collect()
    }

    /// Nodes that have GPUs.
    pub(super) fn somewhere<'a>(
        &'a self,
        names: impl Iterator<Item = &'a str>,
    ) -> Vec<Somewhere<'a>> {
        let known = names.filter_map(|name| {
            let node = self.nodes.get(name).filter(|node| node.exists && node.reported)?;
            Some(Somewhere { name, node })
        });
        known.collect()
    }

    /// The pods that a group is to place now: those that wait, as many as are missing. None where it cannot
    /// start whoever makes room.
    pub(super) fn missing_pods(&self, key: &super::gang::GroupKey) -> Vec<&PodEntry> {
        let Some(group) = self.groups.get(key) else { return Vec::new() };
        let pods = || group.pods.iter().filter_map(|uid| self.pods.get(uid));
        if group.pods.iter().any(|uid| self.is_going(uid)) {
            // It is one less soon.
            return Vec::new();
        }
        let waits: Vec<&PodEntry> = pods().filter(|entry| entry.waits()).collect();
        let size = waits.first().and_then(|entry| self.gang(entry)?.ok()).map(|gang| gang.size);
        let missing = size.map_or(0, |size| size.saturating_sub(self.placed(group)));
        if waits.len() < missing {
            return Vec::new();
        }
        let mut missing: Vec<&PodEntry> = waits.into_iter().take(missing).collect();
        // Of equals that with the lesser UID, as it was.
        missing.sort_by_key(|entry| entry.smallness());
        missing
    }

    /// Whether a pod's place helps it: always, but for one of a group of which others are missing, too, that
    /// find none.
    pub(super) fn helps_its_group(
        &self,
        pod: &PodView,
        nodes: &BTreeMap<String, BTreeSet<PodUid>>,
    ) -> bool {
        if !matches!(&pod.ask, Ok(Some(ask)) if ask.terms.group.is_some()) {
            return true;
        }
        // Which group that is, is not known of one that is not.
        let Some(entry) = self.pods.get(&pod.uid) else { return false };
        let Some(key) = entry.group().filter(|_| self.group_needs_plan(entry)) else { return true };
        if !matches!(self.gang(entry), Some(Ok(_))) {
            return false;
        }
        let missing = self.missing_pods(&key);
        let Some(priority) = missing.iter().map(|entry| entry.priority).min() else { return false };
        let needy = Needy { namespace: &pod.name.namespace, priority };
        let offered: Vec<&str> = nodes.keys().map(String::as_str).collect();
        let search = Search {
            needy,
            demands: self.demands_of(&missing),
            // The scheduler names nodes where a pod has to go; where there is room, others go, too.
            nodes: self.somewhere(self.nodes.keys().map(|name| &**name)),
            guaranteed: false,
        };
        let mut gone = self.making_way(needy, &offered);
        gone.extend(self.kept_for(pod));
        let ends = |(uid, entry): &(&PodUid, &PodEntry)| {
            entry.terminating && self.claims.is_free_for(uid, Some(&key))
        };
        gone.extend(self.pods.iter().filter(ends).map(|(uid, _)| uid.clone()));
        self.room_for_all(&search, &gone, &self.may_preempt(pod)).is_some()
    }
}
