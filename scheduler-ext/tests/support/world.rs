//! A model of the API server, a scheduler and the way of Bindings between, for the index.
#![allow(dead_code, clippy::unwrap_used, reason = "not every test needs all of it")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use gpuzone_api::kubernetes::PodUid;
use gpuzone_core::engine::HostRoom;
use gpuzone_scheduler_ext::index::{
    BindOrder, Concluded, Doubt, Gate, Index, Look, Moment, ReserveError, Settled,
};
use serde_json::{Value, json};

use super::goings::Goings;
use super::promises::Promises;
use super::*;

pub(crate) const NODES: u8 = 3;
pub(crate) const GPUS: u8 = 2;
pub(crate) const QUOTA_GIB: u64 = 60;
/// In a world with two tenants, so much is guaranteed to each.
const GUARANTEED_GIB: u64 = 40;

pub(crate) fn waits(pod: &Value) -> bool {
    pod["spec"]["nodeName"].is_null()
}

pub(crate) enum Happened {
    Apply(Value),
    Delete(PodUid),
}

/// A Binding on its way. Nobody waits any more for one that is late.
pub(crate) struct Post {
    order: BindOrder,
    late: bool,
    until: Moment,
}

/// How often what happens, drawn for each sequence: what is rare everywhere meets nothing else that is.
pub(crate) struct Weather {
    /// One of so many answers to a Binding is lost.
    lost: u64,
    /// One of so many Bindings is refused.
    refused: u64,
    /// One of so many new pods is a group's.
    grouped: u64,
    /// A late request is carried out at one of so many looks at it.
    late: u64,
    /// So many seconds pass at a time, and fewer.
    pub(crate) pace: u64,
    /// Out of a hundred steps, so many delete a pod: what waits gets the place of what is gone.
    pub(crate) deletes: u64,
    /// Whether two tenants lend each other what is guaranteed to them, and pods go for others.
    pub(crate) lends: bool,
}

impl Weather {
    fn draw(dice: &mut Dice) -> Self {
        let mut of = |rates: [u64; 3]| rates[usize::try_from(dice.below(3)).unwrap()];
        Self {
            lost: of([8, 4, 2]),
            refused: of([8, 4, 2]),
            grouped: of([4, 2, 1]),
            late: of([2, 6, 20]),
            pace: of([4, 12, 40]),
            deletes: of([4, 10, 20]),
            lends: of([0, 1, 1]) == 1,
        }
    }
}

pub(crate) struct World {
    pub(crate) dice: Dice,
    pub(crate) weather: Weather,
    pub(crate) now: Moment,
    pub(crate) index: Index,
    /// What the API server has.
    pub(crate) pods: BTreeMap<String, Value>,
    pub(crate) watch: VecDeque<Happened>,
    /// The last word of each that the index has.
    pub(crate) seen: BTreeMap<PodUid, Value>,
    pub(crate) posts: Vec<Post>,
    pub(crate) called: Vec<BindOrder>,
    /// Pods and nodes of filters whose bind is still to be called.
    pub(crate) offered: Vec<(Value, String)>,
    /// A list that is being read: when it began, and what was there then.
    pub(crate) listing: Option<(Moment, Vec<Value>)>,
    pub(crate) sick: BTreeSet<(u8, u8)>,
    /// Groups' sizes, as their PodGroups say them.
    pub(crate) sizes: BTreeMap<String, u64>,
    pub(crate) promises: Promises,
    /// Pods that a Binding failed for: the scheduler tries them again soon.
    pub(crate) failed: Vec<Value>,
    pub(crate) made: u32,
    pub(crate) bound: u32,
    pub(crate) refused: u32,
    /// After restarts, pods that waited while others of their group ran, and how many got a place.
    pub(crate) resumed: (u32, u32),
    pub(crate) goings: Goings,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let mut world = Self {
            weather: Weather::draw(&mut dice),
            dice,
            now: Duration::from_secs(1000),
            index: Index::new(settings()),
            pods: BTreeMap::new(),
            watch: VecDeque::new(),
            seen: BTreeMap::new(),
            posts: Vec::new(),
            called: Vec::new(),
            offered: Vec::new(),
            listing: None,
            sick: BTreeSet::new(),
            sizes: BTreeMap::new(),
            promises: Promises::default(),
            failed: Vec::new(),
            made: 0,
            bound: 0,
            refused: 0,
            resumed: (0, 0),
            goings: Goings::default(),
        };
        world.restart();
        world
    }

    /// A new process, which knows what the API server says. Requests of the one before have
    /// ended: its lease has run out.
    pub(crate) fn restart(&mut self) {
        while let Some(post) = self.posts.pop() {
            if self.dice.one_in(2) {
                self.write(&post.order);
            }
        }
        self.called.clear();
        self.promises.restarted();
        self.goings.restarted();
        self.watch.clear();
        self.index = Index::new(settings());
        for n in 1..=NODES {
            self.index.apply_node(&node(&format!("n{n}")), HostRoom::default());
            self.report(n);
        }
        namespace(&mut self.index, "team");
        namespace(&mut self.index, "other");
        for name in ["team", "other"] {
            let mut spec = json!({ "namespaceSelector": { "matchLabels": { "team": name } },
                "limits": { "memory": format!("{QUOTA_GIB}Gi") } });
            if self.weather.lends {
                spec["cohort"] = json!("c");
                spec["guaranteed"] = json!({ "memory": format!("{GUARANTEED_GIB}Gi") });
            }
            self.index.apply_quota(name, Some("1"), Some(1), &quota(spec));
        }
        let sizes = self.sizes.clone();
        sizes.iter().for_each(|(group, size)| self.say_size(group, *size));
        complete(&mut self.index);
        self.offered.clear();
        self.listing = None;
        self.begin_list();
        self.end_list();
        self.index.resume_groups(self.now);
        self.check_resumed();
    }

    /// Of groups that run in part, each pod has a place where there is room for one.
    fn check_resumed(&mut self) {
        let bound = self.pods.values().filter(|pod| !waits(pod)).filter_map(group_of);
        let run: BTreeSet<String> = bound.collect();
        let of_those = |pod: &&Value| waits(pod) && group_of(pod).is_some_and(|g| run.contains(&g));
        let missing: Vec<Value> = self.pods.values().filter(of_those).cloned().collect();
        for pod in missing {
            self.resumed.0 += 1;
            if !self.index.holds(&uid_of(&pod)).is_empty() {
                self.resumed.1 += 1;
                continue;
            }
            let names: Vec<String> = (1..=NODES).map(|n| format!("n{n}")).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let mut index = self.index.clone();
            index.filter(&view(&pod), &names, self.now).unwrap();
            // With a plan, it was missing and there was room. More than start together are not missing.
            let planned = !index.holds(&uid_of(&pod)).is_empty();
            assert!(!planned, "{pod} has no place, and there is room");
        }
    }

    /// A GPU falls ill, or gets well: few are ill at a time.
    pub(crate) fn change_health(&mut self) {
        let ill = self.sick.iter().next().copied().filter(|_| !self.dice.one_in(3));
        let n = match ill {
            Some(gpu) => {
                self.sick.remove(&gpu);
                gpu.0
            }
            None => {
                let n = 1 + u8::try_from(self.dice.below(NODES.into())).unwrap();
                self.sick.insert((n, u8::try_from(self.dice.below(GPUS.into())).unwrap()));
                n
            }
        };
        self.report(n);
    }

    pub(crate) fn report(&mut self, n: u8) {
        let mut said = status(n, GPUS, 16);
        for (index, gpu) in (0..).zip(&mut said.gpus) {
            gpu.healthy = !self.sick.contains(&(n, index));
        }
        self.index.apply_gpu_node(&node(&format!("n{n}")), Some(&said));
    }

    /// What happens from now on is watched when the list has been read.
    pub(crate) fn begin_list(&mut self) {
        self.watch.clear();
        self.index.begin_pods();
        self.listing = Some((self.now, self.pods.values().cloned().collect()));
    }

    pub(crate) fn end_list(&mut self) {
        let Some((began, pods)) = self.listing.take() else { return };
        for pod in &pods {
            self.see(pod);
        }
        self.index.end_pods(began);
        self.goings.listed(self.now);
        let listed: BTreeSet<PodUid> = pods.iter().map(uid_of).collect();
        self.seen.retain(|uid, _| listed.contains(uid));
    }

    pub(crate) fn create(&mut self) {
        // Whoever makes pods does not go on when many wait.
        if self.pods.values().filter(|pod| waits(pod)).count() >= 8 {
            return;
        }
        let gib = [1, 4, 8, 12][usize::try_from(self.dice.below(4)).unwrap()];
        let gpus = 1 + u64::from(self.dice.one_in(4));
        let mut limits = vec![("gpu", gpus)];
        if !self.dice.one_in(6) {
            limits.push(("memory-mib", gib * 1024));
        }
        // One of them borrows, and the other one mostly comes in groups.
        let others = self.weather.lends && self.dice.one_in(3);
        let tenant = if others { "other" } else { "team" };
        if !others && !self.dice.one_in(self.weather.grouped) {
            return self.put(|name| pod(tenant, name, &limits));
        }
        // A group mostly comes as a whole. PodGroups are of one tenant alone.
        let group = format!("{}{}", if others { "h" } else { "g" }, self.dice.below(3));
        for _ in 0..if self.dice.one_in(4) { 1 } else { 2 } {
            let says = others || !self.dice.one_in(3);
            self.put(|name| match says {
                true => grouped(pod(tenant, name, &limits), &group, 2),
                false => labelled(pod(tenant, name, &limits), &group),
            });
        }
    }

    pub(crate) fn put(&mut self, make: impl FnOnce(&str) -> Value) {
        self.made += 1;
        let name = format!("p{}", self.made);
        let mut pod = make(&name);
        if self.weather.lends && pod["spec"]["priority"].is_null() {
            pod["spec"]["priority"] = json!(self.dice.below(3));
        }
        self.pods.insert(name, pod.clone());
        self.watch.push_back(Happened::Apply(pod));
    }

    pub(crate) fn say_size(&mut self, group: &str, size: u64) {
        // 0 is none that a group can have.
        apply_pod_group(&mut self.index, &pod_group(group, json!({ "minMember": size })));
    }

    pub(crate) fn change_pod_group(&mut self) {
        let group = format!("g{}", self.dice.below(3));
        if self.sizes.contains_key(&group) && self.dice.one_in(2) {
            self.sizes.remove(&group);
            self.index.remove_pod_group("team", &group);
        } else {
            let size = [0, 1, 2, 2, 3][usize::try_from(self.dice.below(5)).unwrap()];
            self.say_size(&group, size);
            self.sizes.insert(group, size);
        }
    }

    pub(crate) fn some_pod(&mut self) -> Option<Value> {
        let count = self.pods.len() as u64;
        if count == 0 {
            return None;
        }
        let at = usize::try_from(self.dice.below(count)).unwrap();
        self.pods.values().nth(at).cloned()
    }

    /// Of a group, or any: pods of one are tried one after the other.
    pub(crate) fn waiting_pod(&mut self) -> Option<Value> {
        let name = self.dice.one_in(2).then(|| format!("g{}", self.dice.below(3)));
        let all: Vec<&Value> = self.pods.values().filter(|pod| waits(pod)).collect();
        let of_group = |pod: &&&Value| name.is_some() && group_of(pod) == name;
        let of_group: Vec<&Value> = all.iter().filter(of_group).copied().collect();
        let waits = if of_group.is_empty() { all } else { of_group };
        let at = self.dice.below(waits.len().max(1) as u64);
        waits.get(usize::try_from(at).unwrap()).map(|pod| (*pod).clone())
    }

    pub(crate) fn delete(&mut self) {
        let at_all = self.dice.one_in(2);
        let bound = self.pods.values().filter(|pod| !at_all && !waits(pod));
        let bound: Vec<Value> = bound.cloned().collect();
        let some = self.dice.below(bound.len().max(1) as u64);
        let bound = bound.get(usize::try_from(some).unwrap()).cloned();
        let Some(pod) = bound.or_else(|| self.some_pod()) else { return };
        self.remove(&pod);
        if group_of(&pod).is_some() && !waits(&pod) && !self.dice.one_in(4) {
            self.replace(&pod);
        }
    }

    pub(crate) fn remove(&mut self, pod: &Value) {
        self.pods.remove(pod["metadata"]["name"].as_str().unwrap());
        self.watch.push_back(Happened::Delete(view(pod).uid));
    }

    pub(crate) fn deliver(&mut self) {
        if self.listing.is_some() {
            return;
        }
        match self.watch.pop_front() {
            Some(Happened::Apply(pod)) => self.see(&pod),
            Some(Happened::Delete(uid)) => self.see_gone(&uid),
            None => {}
        }
    }

    /// The scheduler's round for one pod, as far as its call of bind.
    pub(crate) fn schedule(&mut self) {
        let again = self.failed.pop().filter(|_| !self.dice.one_in(4));
        let Some(pod) = again.or_else(|| self.waiting_pod()) else { return };
        let names: Vec<String> = (1..=NODES).map(|n| format!("n{n}")).collect();
        let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
        if self.dice.one_in(6) {
            names.pop();
        }
        self.goings.offered(&pod, &names);
        let filtered = self.index.filter(&view(&pod), &names, self.now).unwrap();
        let fits = names.iter().zip(&filtered.0).filter(|(_, answer)| answer.is_ok());
        let fits: Vec<&str> = fits.map(|(name, _)| *name).collect();
        if fits.is_empty() {
            let refused = names.iter().zip(&filtered.0);
            let hopeful = refused
                .filter(|(_, answer)| answer.as_ref().is_err_and(|refusal| !refusal.hopeless));
            let hopeful: Vec<&str> = hopeful.map(|(name, _)| *name).collect();
            return self.preempt(&pod, &hopeful);
        }
        let at = usize::try_from(self.dice.below(fits.len() as u64)).unwrap();
        let place = (pod.clone(), fits[at].to_owned());
        self.offered.push(place);
    }

    /// The scheduler calls bind for one of the pods that it found a node for.
    pub(crate) fn bind(&mut self) {
        if self.offered.is_empty() {
            return;
        }
        let at = usize::try_from(self.dice.below(self.offered.len() as u64)).unwrap();
        let (pod, on) = self.offered.swap_remove(at);
        let (uid, on) = (view(&pod).uid, node(&on));
        let mut reserved = self.index.reserve(&uid, &on);
        if reserved == Err(ReserveError::Unknown) {
            // As the binder does it: the pod is looked at, and becomes known.
            let name = pod["metadata"]["name"].as_str().unwrap();
            if self.look(name, &uid) == Look::Unbound && !self.index.knows(&uid) {
                self.index.apply_pod(view(&pod));
                reserved = self.index.reserve(&uid, &on);
            }
        }
        if reserved == Err(ReserveError::NoPlan) {
            // Its GPU is not well: it needs another place.
            self.promises.needs_another(&uid);
        }
        if let Ok(order) = reserved {
            if order.grouped {
                self.called.push(order);
            } else {
                self.posts.push(Post { order, late: false, until: Moment::ZERO });
            }
        }
    }

    pub(crate) fn gates(&mut self) {
        let called = std::mem::take(&mut self.called);
        for order in called {
            match self.index.gate(&order.uid, order.ticket) {
                Gate::Open => {
                    self.promises.goes_out(&order.uid);
                    self.posts.push(Post { order, late: false, until: Moment::ZERO });
                }
                Gate::Wait => self.called.push(order),
                Gate::Closed => {}
            }
        }
    }

    /// The API server carries a Binding out, if it can.
    pub(crate) fn write(&mut self, order: &BindOrder) -> bool {
        let Some(pod) = self.pods.get_mut(&order.pod.name) else { return false };
        if !pod["spec"]["nodeName"].is_null() {
            return false;
        }
        pod["spec"]["nodeName"] = json!(order.node.as_str());
        pod["metadata"]["annotations"]["gpuzone.dev/placement"] =
            json!(order.placement.to_string());
        self.bound += 1;
        self.watch.push_back(Happened::Apply(pod.clone()));
        true
    }

    pub(crate) fn post(&mut self) {
        if self.posts.is_empty() {
            return;
        }
        let at = usize::try_from(self.dice.below(self.posts.len() as u64)).unwrap();
        let mut post = self.posts.swap_remove(at);
        if post.late && self.now < post.until && !self.dice.one_in(self.weather.late) {
            self.posts.push(post);
            return;
        }
        if post.late {
            // Given up by the API server in the end.
            if self.now < post.until {
                self.write(&post.order);
            }
            return;
        }
        if self.dice.one_in(self.weather.lost) {
            // The answer is lost, before or after it is carried out, or never.
            self.index.settle(&post.order.uid, post.order.ticket, Settled::Unsure, self.now);
            self.failed.extend(self.pods.get(&post.order.pod.name).cloned());
            match self.dice.below(3) {
                0 => drop(self.write(&post.order)),
                1 => {
                    (post.late, post.until) = (true, self.now + Duration::from_secs(60));
                    self.posts.push(post);
                }
                _ => {}
            }
            return;
        }
        let (uid, ticket) = (&post.order.uid, post.order.ticket);
        let concluded = if self.dice.one_in(self.weather.refused) {
            self.refused += 1;
            self.index.settle(uid, ticket, Settled::Refused, self.now)
        } else if self.write(&post.order) {
            self.index.settle(uid, ticket, Settled::Written, self.now)
        } else {
            // A conflict: it is looked at.
            let look = self.look(&post.order.pod.name, uid);
            self.index.conclude(&post.order, Doubt::Conflict, Some(look), self.now)
        };
        if matches!(concluded, Concluded::Kept | Concluded::Refused) {
            let pod = self.pods.get(&post.order.pod.name);
            if let Some(pod) = pod.filter(|pod| uid_of(pod) == *uid) {
                self.promises.refused(pod, &concluded, &self.pods, &self.index, self.now);
                self.failed.push(pod.clone());
            }
        }
    }

    pub(crate) fn look(&self, name: &str, uid: &PodUid) -> Look {
        match self.pods.get(name).map(view).filter(|view| view.uid == *uid) {
            None => Look::Gone,
            Some(view) if view.node.is_some() => Look::OnNode(Box::new(view)),
            Some(_) => Look::Unbound,
        }
    }

    pub(crate) fn resolve(&mut self) {
        self.index.expire_groups(self.now);
        for late in self.index.overdue(self.now) {
            let look = self.look(&late.pod.name, &late.uid);
            self.index.looked(&late.uid, late.ticket, look, self.now);
        }
    }
}
