//! What is guaranteed comes back: which pods that borrow have to go so that one which only takes
//! what is its tenant's has room, or all pods of a group at once.
//!
//! kube-scheduler asks for victims only where its own simulation sees a lack, and GPU memory is
//! none that it knows. So the filter remembers pods that are within their guarantee and had no
//! room, with the nodes that the scheduler offered them: where a pod may not go for other reasons,
//! nobody is disturbed for it. Of a group what is remembered is the group.

use std::collections::{BTreeMap, BTreeSet};

use gpuzone_api::kubernetes::PodUid;

use super::gang::GroupKey;
use super::pods::PodEntry;
use super::preempt::Needy;
use super::together::{Found, Search};
use super::{Index, Moment};
use crate::ask::Ask;
use crate::view::{PodName, PodView};

/// Pods and groups that are remembered at a time.
const MOST: usize = 64;
/// How long an eviction that was granted may take to be seen.
const UNSEEN: Moment = Moment::from_secs(30);
/// How long a pod whose eviction was refused is left alone.
const UNWILLING: Moment = Moment::from_secs(60);
/// How long a group for which no room can be made is not looked at again: that is looked for among all of
/// its nodes at once.
const FRUITLESS: Moment = Moment::from_secs(5);

/// Who waits for what is guaranteed to it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Claimant {
    Pod(PodUid),
    Group(GroupKey),
}

/// Who waits for what is guaranteed to it, and what is being done about it.
#[derive(Clone, Debug, Default)]
pub(super) struct Claims {
    waiting: BTreeMap<Claimant, Waiting>,
    /// For whom pods would have to go, as it was said last.
    meant: BTreeMap<PodUid, Claimant>,
    /// Their eviction was granted.
    going: BTreeMap<PodUid, Going>,
    /// A disruption budget keeps them, until it is looked at again.
    unwilling: BTreeMap<PodUid, Moment>,
}

#[derive(Clone, Debug)]
struct Waiting {
    since: Moment,
    nodes: Vec<Box<str>>,
    /// It is not looked at before.
    again: Moment,
}

#[derive(Clone, Debug)]
struct Going {
    /// Until when it is believed that does not show it.
    until: Moment,
    for_whom: Option<Claimant>,
}

/// Pods that have to go for another, or for a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reclaim {
    /// Who gets what is guaranteed to it; one of its group.
    pub pod: PodName,
    /// From where they go.
    pub nodes: BTreeSet<String>,
    /// Who borrowed it.
    pub victims: Vec<(PodName, PodUid)>,
}

impl Claims {
    pub(super) fn forget(&mut self, uid: &PodUid) {
        self.waiting.remove(&Claimant::Pod(uid.clone()));
        self.meant.remove(uid);
        self.going.remove(uid);
        self.unwilling.remove(uid);
    }

    pub(super) fn is_going(&self, uid: &PodUid) -> bool {
        self.going.contains_key(uid)
    }

    /// Whether the place of a pod that goes is free then for this group, or for who is of none.
    pub(super) fn is_free_for(&self, uid: &PodUid, key: Option<&GroupKey>) -> bool {
        self.heir_of(uid).is_none_or(|heir| Some(heir) == key)
    }

    /// The group for which a pod was evicted, if that still waits.
    pub(super) fn heir_of(&self, uid: &PodUid) -> Option<&GroupKey> {
        let claimant = self.going.get(uid)?.for_whom.as_ref()?;
        match claimant {
            Claimant::Group(key) if self.waiting.contains_key(claimant) => Some(key),
            Claimant::Group(_) | Claimant::Pod(_) => None,
        }
    }
}

fn claimant_of(pod: &PodView, ask: &Ask) -> Claimant {
    match &ask.terms.group {
        Some(group) => Claimant::Group((pod.name.namespace.clone(), group.name.clone())),
        None => Claimant::Pod(pod.uid.clone()),
    }
}

impl Index {
    /// Remembers a pod that no node served, or its group, if it asks for no more than is guaranteed to it.
    pub(super) fn note_claim(&mut self, pod: &PodView, ask: &Ask, nodes: &[&str], now: Moment) {
        let claimant = claimant_of(pod, ask);
        let known = self.claims.waiting.get(&claimant);
        let full = known.is_none() && self.claims.waiting.len() >= MOST;
        if full || !self.in_cohort(&pod.name.namespace) {
            return;
        }
        let nodes = nodes.iter().map(|node| (*node).into()).collect();
        let (since, again) = known.map_or((now, now), |known| (known.since, known.again));
        self.claims.waiting.insert(claimant, Waiting { since, nodes, again });
    }

    /// Who waits no more, or has room.
    pub(super) fn drop_claim(&mut self, pod: &PodView, ask: &Ask) {
        self.claims.waiting.remove(&claimant_of(pod, ask));
    }

    /// The next pods to go for one that has waited for `patience`, or for a group that has, the longest
    /// wait first; of the places where it may go, those where it disturbs least.
    pub fn reclaim(&mut self, now: Moment, patience: Moment) -> Option<Reclaim> {
        self.tell(now);
        self.forget_claims(now);
        let due = self.claims.waiting.iter().filter(|(_, waiting)| {
            now.saturating_sub(waiting.since) >= patience && waiting.again <= now
        });
        let mut due: Vec<(Moment, Claimant)> =
            due.map(|(claimant, waiting)| (waiting.since, claimant.clone())).collect();
        due.sort();
        for (_, claimant) in due {
            if let Some(reclaim) = self.reclaim_for(&claimant) {
                self.claims.meant.retain(|_, of| *of != claimant);
                let victims = reclaim.victims.iter();
                let meant = victims.map(|(_, uid)| (uid.clone(), claimant.clone()));
                self.claims.meant.extend(meant);
                return Some(reclaim);
            }
            if let (Claimant::Group(_), Some(waiting)) =
                (&claimant, self.claims.waiting.get_mut(&claimant))
            {
                waiting.again = now + FRUITLESS;
            }
        }
        None
    }

    fn forget_claims(&mut self, now: Moment) {
        let mut claims = std::mem::take(&mut self.claims);
        claims.waiting.retain(|claimant, _| match claimant {
            Claimant::Pod(uid) => self.pods.get(uid).is_some_and(PodEntry::waits),
            Claimant::Group(key) => self.groups.get(key).is_some_and(|g| self.somebody_waits(g)),
        });
        let ends = |uid: &PodUid| self.pods.get(uid).is_some_and(|entry| entry.terminating);
        claims.going.retain(|uid, going| going.until > now || ends(uid));
        claims.unwilling.retain(|_, until| *until > now);
        self.claims = claims;
    }

    fn reclaim_for(&self, claimant: &Claimant) -> Option<Reclaim> {
        let waiting = self.claims.waiting.get(claimant)?;
        let pods = match claimant {
            Claimant::Pod(uid) => self.pods.get(uid).into_iter().collect(),
            Claimant::Group(key) => self.missing_pods(key),
        };
        let first = *pods.first()?;
        let priority = pods.iter().map(|entry| entry.priority).min()?;
        let needy = Needy { namespace: &first.name.namespace, priority };
        let offered: Vec<&str> = waiting.nodes.iter().map(|node| &**node).collect();
        let mut search = Search {
            needy,
            demands: self.demands_of(&pods),
            nodes: self.somewhere(offered.iter().copied()),
            guaranteed: false,
        };
        let group = match claimant {
            Claimant::Pod(_) => None,
            Claimant::Group(key) => Some(key),
        };
        let on_these = search.nodes.iter().flat_map(|on| &on.node.pods);
        // What others had taken back is not free when it is given back.
        let free = |uid: &&PodUid| self.is_going(uid) && self.claims.is_free_for(uid, group);
        let mut gone: BTreeSet<PodUid> = on_these.filter(free).cloned().collect();
        gone.extend(self.making_way(needy, &offered));
        gone.extend(group.map(|key| self.vacancies_of(key)).unwrap_or_default());
        if self.room_for_all(&search, &gone, &|_, _| false).is_some() {
            // There is room, or there will be.
            return None;
        }
        search.guaranteed = true;
        let lent = |uid: &PodUid, gone: &BTreeSet<PodUid>| {
            !self.claims.unwilling.contains_key(uid)
                && self.claims.is_free_for(uid, group)
                && self.borrows_of(needy, uid, gone)
        };
        let Found { victims, nodes } = self.room_for_all(&search, &gone, &lent)?;
        let named = victims.into_iter().filter_map(|uid| {
            let name = self.pods.get(&uid)?.name.clone();
            Some((name, uid))
        });
        Some(Reclaim { pod: first.name.clone(), nodes, victims: named.collect() })
    }

    pub(super) fn is_going(&self, uid: &PodUid) -> bool {
        let terminating = self.pods.get(uid).is_some_and(|entry| entry.terminating);
        terminating || self.claims.is_going(uid)
    }

    /// What became of asking whether pods may be evicted.
    pub fn evicting(&mut self, victims: &[PodUid], granted: bool, now: Moment) {
        self.tell(now);
        for uid in victims {
            let for_whom = self.claims.meant.remove(uid);
            if granted {
                let going = Going { until: now + UNSEEN, for_whom };
                self.claims.going.insert(uid.clone(), going);
            } else {
                self.claims.unwilling.insert(uid.clone(), now + UNWILLING);
            }
        }
    }
}
