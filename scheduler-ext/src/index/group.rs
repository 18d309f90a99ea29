//! Groups: pods that start together or not at all.
//!
//! A group gets a place for all of its pods in one step, or for none: so two groups never hold
//! half of what each other needs. The pods' binds wait until all have been called, and then go
//! out together. If they are not all called in time, the whole plan is given back, and the group
//! waits a while before it makes another, so that others get a turn. How many they are, [`super::gang`]
//! says.
//!
//! A Binding cannot be undone, and the API server may refuse one when others of the group are carried
//! out. Its pod keeps its place then, for as long as the pods of the group wait for each other.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use gpuzone_api::kubernetes::{NodeName, PodUid};
use gpuzone_core::engine::Score;

use super::bind::State;
use super::gang::{Gang, GroupKey, NoGang};
use super::pods::{PodEntry, Stand};
use super::preempt::Needy;
use super::{Gate, Index, Moment, Ticket};
use crate::ask::Ask;

/// A group's pods and its plan.
#[derive(Clone, Debug, Default)]
pub(super) struct Group {
    pub(super) pods: BTreeSet<PodUid>,
    /// When its plan is given back, if there is one and its binds have not gone out.
    until: Option<Moment>,
    /// How long its pods wait for each other, as it was when the plan was made.
    pub(super) patience: Duration,
    /// No plan is made before.
    not_before: Moment,
    /// Its pods were put aside until then.
    asleep: bool,
    /// All have been called: binds go out.
    pub(super) open: bool,
    /// Some of its pods may have a place that is kept, after the API server refused it.
    pub(super) keeps: bool,
}

/// Why a group has no place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoPlan {
    #[error(transparent)]
    NoGang(#[from] NoGang),
    #[error("waits for its group '{name}': {there} of {size} pods are there")]
    Incomplete { name: String, there: usize, size: usize },
    #[error("its group '{name}' could not start together and is tried again in a moment")]
    Later { name: String },
    #[error("its group '{name}' needs room for {pods} pods at once, and {found} of them have it")]
    NoRoom { name: String, pods: usize, found: usize },
    #[error(
        "its group '{name}' runs in part: {bound} of its {size} pods are on their nodes, and there is no room for the others; it is tried again"
    )]
    InPart { name: String, bound: usize, size: usize },
    #[error("its group '{name}': {reason}")]
    Quota { name: String, reason: String },
}

impl Index {
    pub(super) fn join_group(&mut self, uid: &PodUid, entry: &PodEntry) {
        if let Some(key) = entry.group() {
            self.groups.entry(key).or_default().pods.insert(uid.clone());
        }
    }

    pub(super) fn leave_group(&mut self, uid: &PodUid) {
        let Some(key) = self.pods.get(uid).and_then(PodEntry::group) else { return };
        if let Some(group) = self.groups.get_mut(&key) {
            group.pods.remove(uid);
            if group.pods.is_empty() {
                self.groups.remove(&key);
            }
        }
    }

    /// Whether any pod of a group has no place.
    pub(super) fn somebody_waits(&self, group: &Group) -> bool {
        group.pods.iter().any(|uid| self.pods.get(uid).is_some_and(PodEntry::waits))
    }

    /// What starts together, as any of a group's pods says it.
    pub(super) fn gang_of(&self, key: &GroupKey) -> Option<Gang> {
        let mut pods = self.groups.get(key)?.pods.iter();
        pods.find_map(|uid| self.gang(self.pods.get(uid)?)?.ok())
    }

    /// Whether all pods of a pod's group are there.
    pub(super) fn is_whole(&self, entry: &PodEntry) -> bool {
        let group = entry.group().and_then(|key| self.groups.get(&key));
        let gang = self.gang(entry).and_then(Result::ok);
        group.zip(gang).is_some_and(|(group, gang)| group.pods.len() >= gang.size)
    }

    /// Whether a pod may only be bound as a part of a plan of its group.
    pub(super) fn group_needs_plan(&self, entry: &PodEntry) -> bool {
        let Some(key) = entry.group() else { return false };
        let placed = self.groups.get(&key).map_or(0, |group| self.placed(group));
        match self.gang(entry) {
            None => false,
            Some(Ok(gang)) => placed < gang.size,
            Some(Err(_)) => true,
        }
    }

    pub(super) fn placed(&self, group: &Group) -> usize {
        let held = |uid: &&PodUid| self.pods.get(*uid).is_some_and(|entry| !entry.waits());
        group.pods.iter().filter(held).count()
    }

    /// Makes a plan for the group of `uid` on `nodes`, if it needs one.
    pub(super) fn plan_group(
        &mut self,
        uid: &PodUid,
        nodes: &[&str],
        now: Moment,
    ) -> Result<(), NoPlan> {
        let Some(entry) = self.pods.get(uid) else { return Ok(()) };
        if !self.group_needs_plan(entry) {
            return Ok(());
        }
        let (Some(key), Some(gang)) = (entry.group(), self.gang(entry)) else { return Ok(()) };
        let Gang { size, patience, .. } = gang?;
        let Some(group) = self.groups.get(&key) else { return Ok(()) };
        let name = key.1.clone();
        if now < group.not_before {
            return Err(NoPlan::Later { name });
        }
        let there = group.pods.len();
        if there < size {
            return Err(NoPlan::Incomplete { name, there, size });
        }
        let missing = size.saturating_sub(self.placed(group));
        let waiting = group
            .pods
            .iter()
            .filter(|other| *other != uid && self.pods.get(*other).is_some_and(PodEntry::waits));
        let planned = std::iter::once(uid).chain(waiting).take(missing).cloned();
        let mut planned: Vec<PodUid> = planned.collect();
        // Whoever asks, the places are the same, so that room that was made for them serves.
        planned
            .sort_by_cached_key(|uid| (self.pods.get(uid).map(PodEntry::smallness), uid.clone()));
        let bound = self.bound_of(group);
        self.plan_with_vacancies(&key, &planned, nodes).map_err(|error| match error {
            NoPlan::NoRoom { name, .. } if bound > 0 => NoPlan::InPart { name, bound, size },
            other => other,
        })?;
        if let Some(group) = self.groups.get_mut(&key) {
            (group.until, group.patience) = (Some(now + patience), patience);
            // Pods that join a group that runs do not wait for those that run.
            group.open = missing < size && group.open;
        }
        Ok(())
    }

    /// With the places that are vacant for the group, and those that make way for it.
    fn plan_with_vacancies(
        &mut self,
        key: &GroupKey,
        pods: &[PodUid],
        nodes: &[&str],
    ) -> Result<(), NoPlan> {
        let own = self.take_out(self.vacancies_of(key));
        let planned = self.plan(&key.1, pods, nodes);
        let lacks = matches!(planned, Err(NoPlan::NoRoom { .. }));
        let priority = pods.iter().filter_map(|uid| Some(self.pods.get(uid)?.priority)).min();
        let needy = Needy { namespace: &key.0, priority: priority.unwrap_or_default() };
        let others = if lacks { self.making_way(needy, nodes) } else { BTreeSet::new() };
        let planned = match others.is_empty() {
            true => planned,
            false => {
                let others = self.take_out(others);
                let planned = self.plan(&key.1, pods, nodes);
                let used = planned.as_ref().map_or_else(|_| BTreeSet::new(), |()| self.on(pods));
                self.put_back(others, &used);
                planned
            }
        };
        match planned {
            // All that are missing have a place.
            Ok(()) => self.give_back(own),
            Err(_) => self.put_back(own, &BTreeSet::new()),
        }
        planned
    }

    /// The nodes of pods.
    fn on(&self, pods: &[PodUid]) -> BTreeSet<String> {
        let held = pods.iter().filter_map(|uid| self.pods.get(uid)?.held());
        held.map(|held| held.node.to_string()).collect()
    }

    pub(super) fn plan(
        &mut self,
        name: &str,
        pods: &[PodUid],
        nodes: &[&str],
    ) -> Result<(), NoPlan> {
        let mut done: Vec<&PodUid> = Vec::new();
        let mut scores: Option<(Ask, Vec<Option<Score>>)> = None;
        let mut failed = None;
        for uid in pods {
            let Some(ask) = self.pods.get(uid).and_then(PodEntry::asks).cloned() else {
                failed = Some(None);
                break;
            };
            // Pods of a group are mostly alike; then only the node that was chosen is new.
            let known = scores
                .take()
                .filter(|(of, _)| of.containers == ask.containers && of.host == ask.host);
            let mut known = known.map_or_else(
                || nodes.iter().map(|node| self.score(node, &ask)).collect(),
                |(_, known)| known,
            );
            let best = known.iter().enumerate().filter_map(|(at, p)| Some((at, (*p)?)));
            // Of equals the first.
            let best = best.reduce(|a, b| if b.1 > a.1 { b } else { a }).map(|(at, _)| at);
            let Some((at, node)) = best.and_then(|at| Some((at, *nodes.get(at)?))) else {
                failed = Some(None);
                break;
            };
            if let Err(reason) = self.plan_one(uid, node, &ask) {
                failed = Some(Some(reason));
                break;
            }
            done.push(uid);
            if let Some(slot) = known.get_mut(at) {
                *slot = self.score(node, &ask);
            }
            scores = Some((ask, known));
        }
        let Some(reason) = failed else { return Ok(()) };
        let (name, found) = (name.to_owned(), done.len());
        done.into_iter().for_each(|uid| self.unhold(uid));
        Err(match reason {
            None => NoPlan::NoRoom { name, pods: pods.len(), found },
            Some(reason) => NoPlan::Quota { name, reason },
        })
    }

    fn score(&mut self, node: &str, ask: &Ask) -> Option<Score> {
        let (policy, mix) = (self.policy_of(ask), self.mix());
        let demand = ask.demand(&self.models);
        let kind = self.rooms.kind(policy, &demand);
        let node = self.nodes.get(node).filter(|node| node.exists)?;
        self.rooms.score(kind, &mix, node.room)
    }

    fn plan_one(&mut self, uid: &PodUid, node: &str, ask: &Ask) -> Result<(), String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let node: NodeName = node.parse().map_err(|error| text(&error))?;
        let placement = self.choose(uid, &node, ask).map_err(|error| text(&error))?;
        let Some(entry) = self.pods.get(uid) else { return Err("a pod of it is gone".into()) };
        let charge = self.charge(&node, &super::pods::holds_of(&placement));
        let gates = self.gates(&entry.name.namespace, &BTreeMap::new());
        gates.and_then(|gates| gates.check(&charge)).map_err(|error| text(&error))?;
        self.set_aside(uid, placement, State::Planned { called: false });
        Ok(())
    }

    /// Opens a pod's group if all of it has been called or is bound.
    pub(super) fn open_group_of(&mut self, uid: &PodUid) {
        let Some(entry) = self.pods.get(uid) else { return };
        let (Some(key), Some(Ok(gang))) = (entry.group(), self.gang(entry)) else { return };
        let Some(group) = self.groups.get(&key) else { return };
        let come = group.pods.iter().filter(|uid| match self.pods.get(*uid).map(|e| &e.stand) {
            Some(Stand::Bound(_)) => true,
            Some(Stand::Reserved(reservation)) => match reservation.state {
                State::Planned { called } => called,
                State::Posting | State::Unsure { .. } | State::Written { .. } | State::Kept => true,
            },
            Some(Stand::Waiting | Stand::Vacant(_)) | None => false,
        });
        if come.count() < gang.size {
            return;
        }
        let pods = group.pods.clone();
        if let Some(group) = self.groups.get_mut(&key) {
            (group.open, group.until) = (true, None);
        }
        // The group has become smaller: who has not been called is not waited for, nor waits.
        self.let_them_go(pods, |state| *state == State::Planned { called: false });
    }

    fn let_them_go(&mut self, pods: BTreeSet<PodUid>, which: impl Fn(&State) -> bool) {
        for uid in pods {
            if self.reservation_mut(&uid).is_some_and(|reservation| which(&reservation.state)) {
                self.let_go(&uid);
            }
        }
    }

    /// Keeps the place of a pod that the API server refuses, while others of its group are bound or
    /// may be: for the group's time, from the first refusal on. When it turns out that none of the
    /// group is bound, none keeps a place.
    pub(super) fn keep_for_group(&mut self, uid: &PodUid, now: Moment) -> bool {
        let Some(key) = self.pods.get(uid).and_then(PodEntry::group) else { return false };
        let Some(group) = self.groups.get(&key).filter(|group| group.open) else { return false };
        let (patience, pods) = (group.patience, group.pods.clone());
        if !pods.iter().any(|other| other != uid && self.is_out(other)) {
            if let Some(group) = self.groups.get_mut(&key) {
                group.open = false;
            }
            self.give_up_plan(&key, now);
            self.let_them_go(pods, |state| *state == State::Kept);
            return false;
        }
        let Some(reservation) = self.reservation_mut(uid) else { return false };
        let until = *reservation.kept.get_or_insert(now + patience);
        if until <= now {
            return false;
        }
        reservation.state = State::Kept;
        if let Some(group) = self.groups.get_mut(&key) {
            group.keeps = true;
        }
        true
    }

    /// Whether a pod is bound, or may be.
    fn is_out(&self, uid: &PodUid) -> bool {
        match self.pods.get(uid).map(|entry| &entry.stand) {
            Some(Stand::Bound(_)) => true,
            Some(Stand::Reserved(reservation)) => match reservation.state {
                State::Posting | State::Unsure { .. } | State::Written { .. } => true,
                State::Planned { .. } | State::Kept => false,
            },
            Some(Stand::Waiting | Stand::Vacant(_)) | None => false,
        }
    }

    /// How many pods of a group are bound.
    pub(super) fn bound_of(&self, group: &Group) -> usize {
        let bound = |uid: &&PodUid| match self.pods.get(*uid).map(|entry| &entry.stand) {
            Some(Stand::Bound(_)) => true,
            Some(Stand::Reserved(held)) => matches!(held.state, State::Written { .. }),
            Some(Stand::Waiting | Stand::Vacant(_)) | None => false,
        };
        group.pods.iter().filter(bound).count()
    }

    /// Groups of which some pods are bound, and fewer than start together, while others wait.
    pub fn groups_in_part(&self) -> usize {
        let in_part = |group: &&Group| {
            let bound = self.bound_of(group);
            let mut pods = group.pods.iter().filter_map(|uid| self.pods.get(uid));
            let entry = pods.find(|entry| entry.is_to_be_tried());
            let gang = entry.and_then(|entry| self.gang(entry)).and_then(Result::ok);
            bound > 0 && gang.is_some_and(|gang| bound < gang.size)
        };
        self.groups.values().filter(in_part).count()
    }

    /// Whether the Binding of a pod of a group may go out.
    pub fn gate(&mut self, uid: &PodUid, ticket: Ticket) -> Gate {
        let Some(entry) = self.pods.get(uid) else { return Gate::Closed };
        let open = entry.group().and_then(|key| self.groups.get(&key)).map(|group| group.open);
        let Some(reservation) = self.reservation_mut(uid) else { return Gate::Closed };
        match (reservation.ticket == ticket, reservation.state, open) {
            (true, State::Planned { called: true }, Some(true)) => {
                reservation.state = State::Posting;
                Gate::Open
            }
            (true, State::Planned { called: true }, Some(false)) => Gate::Wait,
            (true | false, _, _) => Gate::Closed,
        }
    }

    /// Gives back the plans whose time is over, and the places of refused pods and of those that are gone
    /// whose time is.
    pub fn expire_groups(&mut self, now: Moment) {
        self.tell(now);
        self.tidy_vacancies();
        self.expire_kept(now);
        let over = |group: &Group| group.until.is_some_and(|until| until <= now);
        let over = self.groups.iter().filter(|(_, group)| over(group));
        for key in over.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.give_up_plan(&key, now);
        }
        for group in self.groups.values_mut().filter(|group| group.asleep) {
            if group.not_before <= now {
                group.asleep = false;
                self.favour = true;
            }
        }
    }

    fn expire_kept(&mut self, now: Moment) {
        let mut over = Vec::new();
        for group in self.groups.values_mut().filter(|group| group.keeps) {
            let kept = group.pods.iter().filter_map(|uid| match &self.pods.get(uid)?.stand {
                Stand::Reserved(held) if held.state == State::Kept => Some((uid, held.kept)),
                Stand::Reserved(_) | Stand::Waiting | Stand::Bound(_) | Stand::Vacant(_) => None,
            });
            let (gone, stay): (Vec<_>, Vec<_>) =
                kept.partition(|(_, until)| until.is_none_or(|until| until <= now));
            over.extend(gone.into_iter().map(|(uid, _)| uid.clone()));
            group.keeps = !stay.is_empty();
        }
        for uid in over {
            if let Some(entry) = self.pods.get(&uid) {
                tracing::warn!(pod = %entry.name, "it was not bound until its group's time was over: the group runs in part, and its place is free");
            }
            self.let_go(&uid);
        }
    }

    fn give_up_plan(&mut self, key: &GroupKey, now: Moment) {
        let Some(group) = self.groups.get_mut(key) else { return };
        (group.until, group.not_before, group.asleep) = (None, now + group.patience, true);
        let pods = group.pods.clone();
        self.let_them_go(pods, |state| matches!(state, State::Planned { .. }));
    }

    /// A pod whose place the scheduler does not offer: its own constraints are against it. It
    /// gets another place among `nodes`, or its group's plan is given back. One that is kept stays
    /// then.
    pub(super) fn replan(&mut self, uid: &PodUid, nodes: &[&str], now: Moment) -> bool {
        let Some(before) = self.reservation_mut(uid).cloned() else { return false };
        let key = self.pods.get(uid).and_then(PodEntry::group);
        let kept = match before.state {
            State::Planned { called: false } => false,
            State::Kept => true,
            State::Planned { called: true }
            | State::Posting
            | State::Unsure { .. }
            | State::Written { .. } => return false,
        };
        self.unhold(uid);
        let name = self.pods.get(uid).map(|entry| entry.name.to_string()).unwrap_or_default();
        let planned = self.plan(&name, std::slice::from_ref(uid), nodes).is_ok();
        if kept {
            if !planned {
                self.set_aside(uid, before.placement, State::Kept);
            }
            if let Some(reservation) = self.reservation_mut(uid) {
                (reservation.state, reservation.kept) = (State::Kept, before.kept);
            }
        } else if let (false, Some(key)) = (planned, key) {
            self.give_up_plan(&key, now);
        }
        planned
    }
}
