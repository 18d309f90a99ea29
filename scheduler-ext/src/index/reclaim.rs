//! What is guaranteed comes back: which pods that borrow have to go so that one which only takes
//! what is its tenant's has room.
//!
//! kube-scheduler asks for victims only where its own simulation sees a lack, and GPU memory is
//! none that it knows. So the filter remembers pods that are within their guarantee and had no
//! room, with the nodes that the scheduler offered them: where a pod may not go for other reasons,
//! nobody is disturbed for it.

use std::collections::{BTreeMap, BTreeSet};

use gpuzone_api::kubernetes::PodUid;

use super::nodes::Node;
use super::pods::PodEntry;
use super::preempt::Guaranteed;
use super::{Index, Moment};
use crate::ask::Ask;
use crate::view::{PodName, PodView};

/// Pods that are remembered at a time.
const MOST: usize = 64;
/// How long an eviction that was granted may take to be seen.
const UNSEEN: Moment = Moment::from_secs(30);
/// How long a pod whose eviction was refused is left alone.
const UNWILLING: Moment = Moment::from_secs(60);

/// Pods that wait for what is guaranteed to them, and what is being done about it.
#[derive(Clone, Debug, Default)]
pub(super) struct Claims {
    waiting: BTreeMap<PodUid, Waiting>,
    /// Their eviction was granted, and is not seen yet; until when that is believed.
    going: BTreeMap<PodUid, Moment>,
    /// A disruption budget keeps them, until it is looked at again.
    unwilling: BTreeMap<PodUid, Moment>,
}

#[derive(Clone, Debug)]
struct Waiting {
    view: PodView,
    since: Moment,
    nodes: Vec<Box<str>>,
}

/// By which of two sets of victims the better one is: tenants that lose a pod, pods, and the node.
type Disturbance<'a> = (usize, usize, &'a str);

/// Pods that have to go for another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reclaim {
    /// Who gets what is guaranteed to it.
    pub pod: PodName,
    /// Where.
    pub node: String,
    /// Who borrowed it.
    pub victims: Vec<(PodName, PodUid)>,
}

impl Claims {
    pub(super) fn forget(&mut self, uid: &PodUid) {
        self.waiting.remove(uid);
        self.going.remove(uid);
        self.unwilling.remove(uid);
    }
}

impl Index {
    /// Remembers a pod that no node served, if it asks for no more than is guaranteed to it.
    pub(super) fn note_claim(&mut self, pod: &PodView, ask: &Ask, nodes: &[&str], now: Moment) {
        // Room for one pod of a group starts none.
        let known = self.claims.waiting.contains_key(&pod.uid) || self.claims.waiting.len() < MOST;
        if ask.terms.group.is_some() || !known || !self.in_cohort(&pod.name.namespace) {
            return;
        }
        let nodes = nodes.iter().map(|node| (*node).into()).collect();
        let since = self.claims.waiting.get(&pod.uid).map_or(now, |known| known.since);
        let waiting = Waiting { view: pod.clone(), since, nodes };
        self.claims.waiting.insert(pod.uid.clone(), waiting);
    }

    /// A pod that waits no more, or that a node serves.
    pub(super) fn drop_claim(&mut self, uid: &PodUid) {
        self.claims.waiting.remove(uid);
    }

    /// The next pods to go for one that has waited for `patience`, the longest wait first; of the
    /// places where it may go, that where fewest tenants lose a pod, and fewest pods.
    pub fn reclaim(&mut self, now: Moment, patience: Moment) -> Option<Reclaim> {
        let pods = &self.pods;
        self.claims.waiting.retain(|uid, _| pods.get(uid).is_some_and(PodEntry::waits));
        self.claims.going.retain(|_, until| *until > now);
        self.claims.unwilling.retain(|_, until| *until > now);
        let late = self.claims.waiting.values().filter(|w| now.saturating_sub(w.since) >= patience);
        let mut late: Vec<&Waiting> = late.collect();
        late.sort_by_key(|waiting| waiting.since);
        late.into_iter().find_map(|waiting| self.reclaim_for(waiting))
    }

    fn reclaim_for(&self, waiting: &Waiting) -> Option<Reclaim> {
        let view = &waiting.view;
        let Ok(Some(ask)) = &view.ask else { return None };
        let demand = ask.gpu_demand(&self.models);
        let mut best: Option<(Disturbance<'_>, Vec<PodUid>)> = None;
        for name in &waiting.nodes {
            let known = self.nodes.get(name).filter(|node| node.exists && node.reported);
            let Some(node) = known else { continue };
            let going = node.pods.iter().filter(|uid| self.is_going(uid)).cloned().collect();
            let served = |gone: &BTreeSet<PodUid>| self.served_as(view, node, &demand, gone);
            if served(&going).is_some() {
                // There is room, or there will be.
                return None;
            }
            let serves = |gone: &BTreeSet<PodUid>| served(gone) == Some(Guaranteed(true));
            let Some(chosen) = self.borrowers(view, node, going, serves) else { continue };
            let hurt: BTreeSet<&str> =
                chosen.iter().filter_map(|uid| self.namespace_of(uid)).collect();
            let order = (hurt.len(), chosen.len(), &**name);
            if best.as_ref().is_none_or(|(other, _)| order < *other) {
                best = Some((order, chosen));
            }
        }
        let ((_, _, node), chosen) = best?;
        let named = chosen.into_iter().filter_map(|uid| {
            let name = self.pods.get(&uid)?.name.clone();
            Some((name, uid))
        });
        Some(Reclaim { pod: view.name.clone(), node: node.to_owned(), victims: named.collect() })
    }

    /// As few pods that borrow as will do, beside those that go anyhow.
    fn borrowers(
        &self,
        pod: &PodView,
        node: &Node,
        going: BTreeSet<PodUid>,
        serves: impl Fn(&BTreeSet<PodUid>) -> bool,
    ) -> Option<Vec<PodUid>> {
        let lent = |uid: &PodUid, gone: &BTreeSet<PodUid>| {
            !self.claims.unwilling.contains_key(uid) && self.borrows_of(pod, uid, gone)
        };
        self.fewest(node, &going, serves, lent)
    }

    fn is_going(&self, uid: &PodUid) -> bool {
        let terminating = self.pods.get(uid).is_some_and(|entry| entry.terminating);
        terminating || self.claims.going.contains_key(uid)
    }

    /// What became of asking whether pods may be evicted.
    pub fn evicting(&mut self, victims: &[PodUid], granted: bool, now: Moment) {
        for uid in victims {
            match granted {
                true => self.claims.going.insert(uid.clone(), now + UNSEEN),
                false => self.claims.unwilling.insert(uid.clone(), now + UNWILLING),
            };
        }
    }
}
