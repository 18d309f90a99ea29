//! Pods: what they hold, and what the API server's word changes of it.

use std::cmp::Reverse;
use std::sync::Arc;

use gpuzone_api::kubernetes::{NodeName, PodPlacement, PodUid};
use gpuzone_core::Grant;
use gpuzone_core::engine::{Amount, HostDemand, MemoryAsk};

use super::bind::{Reservation, State};
use super::{Index, Moment, Usage};
use crate::ask::{Ask, AskError};
use crate::view::{PodName, PodView};

/// Of no more pods that were there before is anything learned: of those before the last 30,000 little
/// would be left.
const MOST_BEFORE: usize = 50_000;

/// What a pod holds.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) node: NodeName,
    pub(super) holds: Box<[Grant]>,
    /// What it counts for, as it was added to its namespace's usage.
    pub(super) charge: Usage,
}

/// Where a pod is on its way.
#[derive(Clone, Debug)]
pub(super) enum Stand {
    /// It has no node.
    Waiting,
    /// It was given a place, and was not seen there yet.
    Reserved(Box<Reservation>),
    /// It was seen on its node.
    Bound(Held),
    /// It is gone, and its place stays for who comes in its place.
    Vacant(Held),
}

/// A pod that asks for GPUs, or has some.
#[derive(Clone, Debug)]
pub(super) struct PodEntry {
    pub(super) name: PodName,
    pub(super) priority: i32,
    /// What it takes of its host.
    pub(super) host: HostDemand,
    /// What it asks for; not kept once it is bound.
    pub(super) ask: Option<Arc<Result<Option<Ask>, AskError>>>,
    pub(super) stand: Stand,
    /// Whether it is being deleted.
    pub(super) terminating: bool,
    /// Whether it goes so that its place is free, or because its node is not well.
    pub(super) disrupted: bool,
    /// Since when it is on its node, as far as is known here.
    pub(super) since: Moment,
    /// Until when the place stays that it was given as the one that replaces another.
    pub(super) given_until: Moment,
    /// The list that it was last seen in, or after.
    epoch: u64,
}

impl PodEntry {
    pub(super) fn held(&self) -> Option<&Held> {
        match &self.stand {
            Stand::Waiting => None,
            Stand::Reserved(reservation) => Some(&reservation.held),
            Stand::Bound(held) | Stand::Vacant(held) => Some(held),
        }
    }

    pub(super) fn waits(&self) -> bool {
        matches!(self.stand, Stand::Waiting)
    }

    /// Whether it waits for a place, or has one that is kept, and the scheduler is to try it again.
    pub(super) fn is_to_be_tried(&self) -> bool {
        match &self.stand {
            Stand::Waiting => true,
            Stand::Reserved(reservation) => reservation.state == State::Kept,
            Stand::Bound(_) | Stand::Vacant(_) => false,
        }
    }

    pub(super) fn asks(&self) -> Option<&Ask> {
        self.ask.as_deref().and_then(|ask| ask.as_ref().ok()).and_then(Option::as_ref)
    }

    /// Less of who asks for more: of a group they are given places in this order, the largest first.
    pub(super) fn smallness(&self) -> (Reverse<u32>, Reverse<u64>) {
        let asks = self.asks().into_iter().flat_map(|ask| &ask.containers);
        let size = asks.fold((0, 0), |(gpus, most), ask| {
            let of_each = match ask.amount {
                Amount::Whole => u64::MAX,
                Amount::Part { memory: MemoryAsk::Bytes(memory), .. } => memory.get(),
                // Of GPUs that differ it differs.
                Amount::Part { memory: MemoryAsk::Percent(_), .. } => 0,
            };
            (gpus + ask.gpus.get(), of_each.max(most))
        });
        (Reverse(size.0), Reverse(size.1))
    }

    pub(super) fn group(&self) -> Option<(String, String)> {
        let group = self.asks()?.terms.group.as_ref()?;
        Some((self.name.namespace.clone(), group.name.clone()))
    }
}

/// A pod without GPUs that is on a node.
#[derive(Clone, Debug)]
pub(super) struct Other {
    node: NodeName,
    /// As of [`PodEntry`].
    epoch: u64,
}

/// What is held of each GPU, over all containers.
pub(super) fn holds_of(placement: &PodPlacement) -> Box<[Grant]> {
    placement.containers().flat_map(|(_, placed)| placed.grants().iter().copied()).collect()
}

impl Index {
    /// Whether a pod is gone, or on its way.
    pub(crate) fn goes(&self, uid: &PodUid) -> bool {
        self.pods.get(uid).is_none_or(|entry| entry.terminating)
    }

    /// A pod, as the API server has it. Once it was seen on a node, word of it without one is
    /// older, for nothing takes a pod from its node.
    pub fn apply_pod(&mut self, view: PodView) {
        if view.succeeded {
            // Nobody comes in its place.
            self.remove_other(&view.uid);
            self.forget_pod(&view.uid);
            return self.tidy_vacancies();
        }
        if view.ended {
            return self.remove_pod(&view.uid);
        }
        if self.vacant.contains_key(&view.uid) {
            // Older word of it, as the first list after a watch that broke may have.
            self.forget_pod(&view.uid);
        }
        let stand = self.pods.get(&view.uid).map(|entry| &entry.stand);
        match (stand, view.node.is_some()) {
            (Some(Stand::Bound(_)), false) => self.seen(&view.uid),
            (Some(Stand::Reserved(_)), false) => self.seen(&view.uid),
            (Some(Stand::Waiting | Stand::Vacant(_)) | None, false) => self.apply_waiting(view),
            (_, true) => self.apply_bound(view),
        }
    }

    /// Whether a pod is known.
    pub fn knows(&self, uid: &PodUid) -> bool {
        self.pods.contains_key(uid)
    }

    fn seen(&mut self, uid: &PodUid) {
        let epoch = self.epoch;
        if let Some(entry) = self.pods.get_mut(uid) {
            entry.epoch = epoch;
        }
    }

    fn apply_waiting(&mut self, view: PodView) {
        if view.ask == Ok(None) || view.terminating {
            return self.remove_pod(&view.uid);
        }
        let new = self.arrived(&view);
        let entry = PodEntry {
            name: view.name,
            priority: view.priority,
            host: view.host,
            ask: Some(Arc::new(view.ask)),
            stand: Stand::Waiting,
            terminating: false,
            disrupted: false,
            since: self.now,
            given_until: Moment::ZERO,
            epoch: self.epoch,
        };
        self.leave_group(&view.uid);
        self.join_group(&view.uid, &entry);
        // Those that came before it were put aside, and its coming wakes none of them.
        self.favour |= new && self.is_whole(&entry);
        let group = entry.group();
        self.pods.insert(view.uid, entry);
        if let Some(key) = group {
            self.hand_over(&key);
        }
    }

    /// Whether a pod is new. What new ones ask for is learned from. Those that were there before this
    /// process began are listed by their names, so they are kept until all are known, and then taken in the
    /// order in which they came.
    fn arrived(&mut self, view: &PodView) -> bool {
        let new = !self.pods.contains_key(&view.uid);
        if let (true, Ok(Some(ask))) = (new, &view.ask) {
            match self.missing().is_empty() {
                true => self.arrivals.observe(&ask.demand(&self.models)),
                false if self.before.len() < MOST_BEFORE => {
                    self.before.push((view.created, ask.clone()));
                }
                false => {}
            }
        }
        new
    }

    /// Learns from pods that were there before all was known.
    pub(super) fn learn_before(&mut self) {
        if self.before.is_empty() || !self.missing().is_empty() {
            return;
        }
        let mut before = std::mem::take(&mut self.before);
        before.sort_by_key(|(created, _)| *created);
        before.iter().for_each(|(_, ask)| self.arrivals.observe(&ask.demand(&self.models)));
    }

    fn apply_bound(&mut self, view: PodView) {
        let Some(node) = view.node.clone() else { return };
        if view.is_foreign() {
            self.forget_pod(&view.uid);
            return self.apply_other(view.uid, node, view.host);
        }
        self.remove_other(&view.uid);
        let holds = view.placement.as_ref().map(holds_of).unwrap_or_default();
        let known = self.pods.get(&view.uid);
        let same = known
            .and_then(PodEntry::held)
            .is_some_and(|held| held.node == node && held.holds == holds);
        if let (true, Some(entry)) = (same, self.pods.get_mut(&view.uid)) {
            // What it holds does not change, so nothing has to be computed anew.
            if let Stand::Reserved(reservation) = &entry.stand {
                entry.stand = Stand::Bound(reservation.held.clone());
                entry.since = self.now;
            }
            entry.ask = entry.ask.take().filter(|_| has_group(&view));
            entry.priority = view.priority;
            (entry.terminating, entry.disrupted) = (view.terminating, view.disrupted);
            entry.epoch = self.epoch;
            if std::mem::replace(&mut entry.host, view.host) != view.host {
                self.refresh(node.as_str());
            }
            return;
        }
        self.arrived(&view);
        self.unhold(&view.uid);
        self.leave_group(&view.uid);
        let entry = PodEntry {
            name: view.name.clone(),
            priority: view.priority,
            host: view.host,
            ask: has_group(&view).then(|| Arc::new(view.ask.clone())),
            stand: Stand::Waiting,
            terminating: view.terminating,
            disrupted: view.disrupted,
            since: self.now,
            given_until: Moment::ZERO,
            epoch: self.epoch,
        };
        self.join_group(&view.uid, &entry);
        self.pods.insert(view.uid.clone(), entry);
        let held = self.charged(&view.name.namespace, node, holds);
        self.hold(&view.uid, Stand::Bound(held));
    }

    /// A pod that is gone, or over. The scheduler sees that, too, but may have asked again before
    /// it was seen here. Its place may stay for who comes in its place.
    pub fn remove_pod(&mut self, uid: &PodUid) {
        self.remove_other(uid);
        if self.vacant.contains_key(uid) {
            return;
        }
        match self.vacancy_after(uid) {
            Some(vacancy) => self.vacate(uid, vacancy),
            None => self.forget_pod(uid),
        }
        self.tidy_vacancies();
    }

    /// A pod that is gone, with its place.
    pub(super) fn forget_pod(&mut self, uid: &PodUid) {
        let held =
            self.pods.get(uid).and_then(PodEntry::held).filter(|held| !held.holds.is_empty());
        let node = held.map(|held| held.node.clone());
        self.favours.extend(node);
        self.unhold(uid);
        self.leave_group(uid);
        self.claims.forget(uid);
        self.pods.remove(uid);
    }

    /// A pod without GPUs, on its node.
    fn apply_other(&mut self, uid: PodUid, node: NodeName, host: HostDemand) {
        let epoch = self.epoch;
        if self.others.get(&uid).is_some_and(|other| other.node != node) {
            self.remove_other(&uid);
        }
        let known = self.nodes.entry(node.as_str().into()).or_default();
        let new = known.others.insert(uid.clone(), host) != Some(host);
        if new {
            self.refresh(node.as_str());
        }
        self.others.insert(uid, Other { node, epoch });
    }

    fn remove_other(&mut self, uid: &PodUid) {
        let Some(other) = self.others.remove(uid) else { return };
        if let Some(node) = self.nodes.get_mut(other.node.as_str()) {
            node.others.remove(uid);
        }
        self.refresh(other.node.as_str());
        self.drop_nothing(other.node.as_str());
    }

    /// A complete list of pods begins.
    pub fn begin_pods(&mut self) {
        self.epoch += 1;
    }

    /// The list that began at `began` is complete: pods that it did not have are gone. One whose
    /// Binding is on its way, or was answered since, need not have been in it.
    pub fn end_pods(&mut self, began: Moment) {
        let gone = self.pods.iter().filter(|(_, entry)| {
            let younger = match &entry.stand {
                Stand::Reserved(reservation) => reservation.may_be_younger_than(began),
                // No list has it.
                Stand::Vacant(_) => true,
                Stand::Waiting | Stand::Bound(_) => false,
            };
            entry.epoch != self.epoch && !younger
        });
        let others = self.others.iter().filter(|(_, other)| other.epoch != self.epoch);
        let gone = gone.map(|(uid, _)| uid).chain(others.map(|(uid, _)| uid));
        for uid in gone.cloned().collect::<Vec<_>>() {
            self.remove_pod(&uid);
        }
        self.complete(super::Kind::Pods);
    }

    /// What `holds` on `node` come to for a pod of `namespace`; added to what that uses.
    pub(super) fn charged(&mut self, namespace: &str, node: NodeName, holds: Box<[Grant]>) -> Held {
        let charge = self.charge(&node, &holds);
        self.usage.entry(namespace.to_owned()).or_default().add(&charge);
        Held { node, holds, charge }
    }

    pub(super) fn charge(&self, node: &NodeName, holds: &[Grant]) -> Usage {
        if holds.is_empty() {
            return Usage::default();
        }
        let node = self.nodes.get(node.as_str());
        let mut charge = Usage::of_pod();
        for hold in holds {
            let sort = node.and_then(|node| node.sort(hold));
            charge.add_gpu(sort, hold.memory, hold.share.percent().into());
        }
        charge
    }

    /// Puts a pod where its stand says.
    pub(super) fn hold(&mut self, uid: &PodUid, stand: Stand) {
        let Some(entry) = self.pods.get_mut(uid) else { return };
        entry.stand = stand;
        let Some(node) = entry.held().map(|held| held.node.clone()) else { return };
        self.nodes.entry(node.as_str().into()).or_default().pods.insert(uid.clone());
        self.refresh(node.as_str());
    }

    /// Takes from a pod whatever it holds.
    pub(super) fn unhold(&mut self, uid: &PodUid) {
        let Some(entry) = self.pods.get_mut(uid) else { return };
        let held = match std::mem::replace(&mut entry.stand, Stand::Waiting) {
            Stand::Waiting => return,
            Stand::Reserved(reservation) => reservation.held,
            Stand::Bound(held) => held,
            Stand::Vacant(held) => {
                self.vacant.remove(uid);
                held
            }
        };
        if let Some(usage) = self.usage.get_mut(&entry.name.namespace) {
            usage.remove(&held.charge);
            if *usage == Usage::default() {
                self.usage.remove(&entry.name.namespace);
                self.left.forget(&entry.name.namespace);
            }
        }
        if let Some(node) = self.nodes.get_mut(held.node.as_str()) {
            node.pods.remove(uid);
        }
        self.refresh(held.node.as_str());
        self.drop_nothing(held.node.as_str());
    }

    /// What a node's pods hold is of other models than it was.
    pub(super) fn recharge(&mut self, node: &NodeName) {
        let Some(pods) = self.nodes.get(node.as_str()).map(|node| node.pods.clone()) else {
            return;
        };
        for uid in pods {
            let Some(held) = self.pods.get(&uid).and_then(PodEntry::held) else { continue };
            let charge = self.charge(node, &held.holds);
            let Some(entry) = self.pods.get_mut(&uid) else { continue };
            let held = match &mut entry.stand {
                Stand::Waiting => continue,
                Stand::Reserved(reservation) => &mut reservation.held,
                Stand::Bound(held) | Stand::Vacant(held) => held,
            };
            let before = std::mem::replace(&mut held.charge, charge.clone());
            let usage = self.usage.entry(entry.name.namespace.clone()).or_default();
            usage.remove(&before);
            usage.add(&charge);
        }
    }
}

fn has_group(view: &PodView) -> bool {
    matches!(&view.ask, Ok(Some(ask)) if ask.terms.group.is_some())
}
