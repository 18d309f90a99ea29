//! Places that no pod holds, and that nobody gets but one group, for a while.
//!
//! ```text
//!                     deleted, or failed                a pod of the group that asks for the same
//! Bound, group whole ────────────────────▶ Vacant ───────────────────────────────▶ Kept, for that pod
//! Bound ──evicted for a group's claim──────▶   │  its heir has a plan, it makes way, or its time is over
//!                                              └──────────────────────────────────────────────▶ free
//! ```
//!
//! **Who replaces a pod of a group gets its place.** A group that runs waits for a pod that is gone, and its
//! controller makes another one a moment later; until then nobody else gets that place. It counts against
//! the quota of its namespace, as the pod did, so nobody holds more by deleting pods than by running them.
//! It stays no longer than the pod was there, and whoever comes in its place is there on what was left of
//! that time: so a place is not vacant for longer than it was in use, whatever is deleted. No more places of
//! a group are vacant than pods of it run, so what is left of a group that goes holds nothing.
//!
//! It makes way for pods of higher priority, and for those that it was borrowed from.

use std::collections::{BTreeMap, BTreeSet};

use gpuzone_api::kubernetes::{ContainerName, PodPlacement, PodUid};
use gpuzone_core::Placement;

use super::bind::State;
use super::cohort::Left;
use super::gang::GroupKey;
use super::pods::{Held, PodEntry, Stand};
use super::preempt::Needy;
use super::{Index, Moment};
use crate::ask::Ask;
use crate::view::PodView;

/// How long a place that was taken back for a group stays with it: pods that go for it end one after the
/// other.
const TAKEN_BACK: Moment = Moment::from_secs(60);

/// Whose a place is that no pod holds.
#[derive(Clone, Debug)]
pub(super) struct Vacancy {
    /// The group that gets it.
    heir: GroupKey,
    until: Moment,
    from: From,
    /// How many start together, as it was said when it became vacant: who said it may be gone.
    size: usize,
}

/// Whose it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    /// The group's own.
    Itself,
    /// Of who borrowed what is guaranteed to the group.
    Borrower,
}

/// Places that were taken out of the index, to see what is without them.
pub(super) struct TakenOut {
    places: Vec<(PodUid, PodEntry, Held, Vacancy)>,
    left: Left,
}

impl Index {
    /// What becomes of a pod's place when it goes, if that stays with somebody.
    pub(super) fn vacancy_after(&self, uid: &PodUid) -> Option<Vacancy> {
        let entry = self.pods.get(uid)?;
        match &entry.stand {
            Stand::Bound(held) if !held.holds.is_empty() => {}
            Stand::Bound(_) | Stand::Reserved(_) | Stand::Waiting | Stand::Vacant(_) => {
                return None;
            }
        }
        if let Some(heir) = self.claims.heir_of(uid).cloned() {
            let until = self.now + TAKEN_BACK;
            return Some(Vacancy { heir, until, from: From::Borrower, size: 0 });
        }
        if entry.disrupted || self.claims.is_going(uid) {
            // Somebody else is to have it, or it is of no use.
            return None;
        }
        let (heir, Some(Ok(gang))) = (entry.group()?, self.gang(entry)) else { return None };
        let group = self.groups.get(&heir)?;
        let (vacant, placed) = (self.own_vacancies(&heir).count(), self.placed(group));
        let was_whole = placed + vacant >= gang.size;
        let most = self.most_vacancies(&heir, gang.size, Some(uid));
        let found_left = entry.given_until.saturating_sub(entry.since);
        let there = self.now.saturating_sub(entry.since) + found_left;
        let until = self.now + there.min(self.settings.replacement);
        let stays = was_whole && vacant < most && until > self.now;
        stays.then_some(Vacancy { heir, until, from: From::Itself, size: gang.size })
    }

    /// Vacant places that were a group's own.
    fn own_vacancies(&self, key: &GroupKey) -> impl Iterator<Item = (&PodUid, &Vacancy)> {
        let own = |vacancy: &Vacancy| vacancy.heir == *key && vacancy.from == From::Itself;
        self.vacant.iter().filter(move |(_, vacancy)| own(vacancy))
    }

    /// So many places of a group may be vacant, when `gone` goes: no more than are missing, nor than pods
    /// run.
    fn most_vacancies(&self, key: &GroupKey, size: usize, gone: Option<&PodUid>) -> usize {
        let Some(group) = self.groups.get(key) else { return 0 };
        let stay = group.pods.iter().filter(|uid| Some(*uid) != gone);
        let stay: Vec<&PodEntry> = stay.filter_map(|uid| self.pods.get(uid)).collect();
        let placed = stay.iter().filter(|entry| !entry.waits()).count();
        let runs = |entry: &&&PodEntry| {
            matches!(entry.stand, Stand::Bound(_)) && !entry.terminating && !entry.disrupted
        };
        size.saturating_sub(placed).min(stay.iter().filter(runs).count())
    }

    /// A pod that is gone, and whose place stays.
    pub(super) fn vacate(&mut self, uid: &PodUid, vacancy: Vacancy) {
        self.leave_group(uid);
        self.claims.forget(uid);
        let Some(entry) = self.pods.get_mut(uid) else { return };
        entry.stand = match std::mem::replace(&mut entry.stand, Stand::Waiting) {
            Stand::Bound(held) => Stand::Vacant(held),
            other @ (Stand::Waiting | Stand::Reserved(_) | Stand::Vacant(_)) => other,
        };
        tracing::info!(pod = %entry.name, group = vacancy.heir.1, "it is gone, and its place stays with the group for a while");
        // Who is to have it may have asked before it was seen here.
        self.favours.extend(entry.held().map(|held| held.node.clone()));
        let heir = vacancy.heir.clone();
        if vacancy.from == From::Borrower {
            // The last one that goes says how long they all stay.
            let all = self.vacant.values_mut().filter(|of| of.from == From::Borrower);
            all.filter(|of| of.heir == heir).for_each(|of| of.until = vacancy.until);
        }
        self.vacant.insert(uid.clone(), vacancy);
        self.hand_over(&heir);
    }

    /// Gives a group's vacant places to pods of it that ask for just what those had that are gone.
    pub(super) fn hand_over(&mut self, key: &GroupKey) {
        if self.vacant.is_empty() {
            return;
        }
        let own = self.own_vacancies(key).map(|(uid, vacancy)| (uid.clone(), vacancy.until));
        for (gone, until) in own.collect::<Vec<_>>() {
            let Some((uid, placement, patience)) = self.successor_of(key, &gone) else { continue };
            self.unhold(&gone);
            self.pods.remove(&gone);
            self.set_aside(&uid, placement, State::Kept);
            if let Some(entry) = self.pods.get_mut(&uid) {
                entry.given_until = until;
                tracing::info!(pod = %entry.name, "it gets the place of one of its group that is gone");
            }
            if let Some(reservation) = self.reservation_mut(&uid) {
                reservation.kept = Some(until);
            }
            if let Some(group) = self.groups.get_mut(key) {
                // Others of it run, so it waits for nobody.
                (group.open, group.keeps, group.patience) = (true, true, patience);
            }
        }
    }

    /// Who of a group comes in the place of one that is gone, and what it gets there.
    fn successor_of(
        &self,
        key: &GroupKey,
        gone: &PodUid,
    ) -> Option<(PodUid, PodPlacement, Moment)> {
        let before = self.pods.get(gone)?;
        let node = self.nodes.get(before.held()?.node.as_str())?;
        if !node.exists || !self.still_fits(gone) {
            return None;
        }
        let mut pods = self.groups.get(key)?.pods.iter();
        pods.find_map(|uid| {
            let entry = self.pods.get(uid).filter(|entry| entry.waits())?;
            let (ask, asked) = (entry.asks()?, before.asks()?);
            let same = ask.containers == asked.containers
                && ask.terms.models == asked.terms.models
                && ask.terms.topology == asked.terms.topology;
            let gang = self.gang(entry)?.ok()?;
            let placement = written_for(uid, ask, before.held()?).filter(|_| same)?;
            Some((uid.clone(), placement, gang.patience))
        })
    }

    /// Gives vacant places back whose time is over, or that nobody is to get any more.
    pub(super) fn tidy_vacancies(&mut self) {
        let mut seen: BTreeMap<&GroupKey, usize> = BTreeMap::new();
        let over = self.vacant.iter().filter(|(_, vacancy)| {
            let key = &vacancy.heir;
            let stays = match vacancy.from {
                From::Borrower => {
                    self.groups.get(key).is_some_and(|group| self.somebody_waits(group))
                }
                From::Itself => {
                    let seen = seen.entry(key).or_default();
                    *seen += 1;
                    let size = self.gang_of(key).map_or(vacancy.size, |gang| gang.size);
                    *seen <= self.most_vacancies(key, size, None)
                }
            };
            !stays || vacancy.until <= self.now
        });
        for uid in over.map(|(uid, _)| uid.clone()).collect::<Vec<_>>() {
            self.forget_pod(&uid);
        }
    }

    /// Vacant places of which a group is the heir.
    pub(super) fn vacancies_of(&self, key: &GroupKey) -> Vec<PodUid> {
        let own = self.vacant.iter().filter(|(_, vacancy)| vacancy.heir == *key);
        own.map(|(uid, _)| uid.clone()).collect()
    }

    /// The same of a pod's group.
    pub(super) fn kept_for(&self, pod: &PodView) -> Vec<PodUid> {
        self.group_of(pod).map(|key| self.vacancies_of(&key)).unwrap_or_default()
    }

    /// Vacant places on `nodes` that make way for `needy`.
    pub(super) fn making_way(&self, needy: Needy<'_>, nodes: &[&str]) -> BTreeSet<PodUid> {
        let none = BTreeSet::new();
        let make_way = self.vacant.iter().filter(|(uid, vacancy)| {
            let Some(entry) = self.pods.get(*uid) else { return false };
            let Some(held) = entry.held() else { return false };
            let lower = entry.priority < needy.priority || self.borrows_of(needy, uid, &none);
            lower && vacancy.from == From::Itself && nodes.contains(&held.node.as_str())
        });
        make_way.map(|(uid, _)| uid.clone()).collect()
    }

    /// Lets vacant places make way for a pod that no node serves, where that gives it one.
    pub(super) fn make_way(&mut self, pod: &PodView, ask: &Ask, nodes: &[&str]) -> bool {
        if self.vacant.is_empty() {
            return false;
        }
        let (needy, demand) = (pod.needy(), ask.gpu_demand(&self.models));
        let how = (self.policy_of(ask), &demand);
        let ways = self.making_way(needy, nodes);
        let on_nodes =
            ways.iter().filter_map(|uid| Some(self.pods.get(uid)?.held()?.node.as_str()));
        let on_nodes: BTreeSet<&str> = on_nodes.collect();
        let way = self.somewhere(on_nodes.into_iter()).into_iter().find_map(|on| {
            let serves = |gone: &BTreeSet<PodUid>| {
                self.served(needy, on, how, gone, &Default::default()).is_some()
            };
            let mut gone: BTreeSet<PodUid> = ways.intersection(&on.node.pods).cloned().collect();
            if !serves(&gone) {
                return None;
            }
            for uid in gone.clone() {
                gone.remove(&uid);
                if !serves(&gone) {
                    gone.insert(uid);
                }
            }
            Some(gone)
        });
        let way = way.unwrap_or_default();
        way.iter().for_each(|uid| self.forget_pod(uid));
        !way.is_empty()
    }

    /// Takes vacant places out, until it is known whether they are needed.
    pub(super) fn take_out(&mut self, uids: impl IntoIterator<Item = PodUid>) -> TakenOut {
        let left = self.left.clone();
        let places = uids.into_iter().filter_map(|uid| {
            let (vacancy, entry) = (self.vacant.get(&uid)?.clone(), self.pods.get(&uid)?.clone());
            let held = entry.held()?.clone();
            self.unhold(&uid);
            self.pods.remove(&uid);
            Some((uid, entry, held, vacancy))
        });
        let places = places.collect();
        TakenOut { places, left }
    }

    /// What was taken out is free.
    pub(super) fn give_back(&mut self, out: TakenOut) {
        self.favours.extend(out.places.into_iter().map(|(_, _, held, _)| held.node));
    }

    /// Puts those back that are not on some nodes; the others are free.
    pub(super) fn put_back(&mut self, out: TakenOut, but_on: &BTreeSet<String>) {
        for (uid, mut entry, held, vacancy) in out.places {
            if but_on.contains(held.node.as_str()) {
                self.favours.insert(held.node.clone());
                continue;
            }
            entry.stand = Stand::Waiting;
            let usage = self.usage.entry(entry.name.namespace.clone()).or_default();
            usage.add(&held.charge);
            self.pods.insert(uid.clone(), entry);
            self.vacant.insert(uid.clone(), vacancy);
            self.hold(&uid, Stand::Vacant(held));
        }
        self.left = out.left;
    }
}

/// What a pod gets that asks for the same as who held this, as it is written.
fn written_for(uid: &PodUid, ask: &Ask, held: &Held) -> Option<PodPlacement> {
    // What is held is in the order of the containers' names.
    let asks: BTreeMap<&ContainerName, usize> = ask
        .containers
        .iter()
        .map(|ask| Some((&ask.container, usize::try_from(ask.gpus.get()).ok()?)))
        .collect::<Option<_>>()?;
    let mut grants = held.holds.iter().copied();
    let containers = asks.into_iter().map(|(name, gpus)| {
        let placement = Placement::of(grants.by_ref().take(gpus).collect::<Vec<_>>()).ok()?;
        (placement.grants().len() == gpus).then(|| (name.clone(), placement))
    });
    let containers = containers.collect::<Option<BTreeMap<_, _>>>()?;
    grants.next().is_none().then_some(())?;
    PodPlacement::new(held.node.clone(), uid.clone(), containers).ok()
}
