//! Random interleavings of filters, binds, watch events, refused Bindings, lost answers, late requests,
//! lists, lost GPUs, PodGroups that come, change and go, and restarts, against a model of the API server:
//! what is written there never holds more than there is, quotas hold, no pod of a group is bound before
//! the group has room, one that is refused keeps its place while others of its group are bound, and
//! nothing is lost or left behind.
//!
//! `GPUZONE_MODEL_SEEDS=2000 cargo test -p gpuzone-scheduler-ext --test model` tries more.
#[cfg(test)]
mod support;

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet, VecDeque};
    use std::time::Duration;

    use gpuzone_api::kubernetes::PodUid;
    use gpuzone_core::engine::HostRoom;
    use gpuzone_scheduler_ext::index::{
        BindOrder, Concluded, Doubt, Gate, Index, Look, Moment, ReserveError, Settled,
    };
    use serde_json::{Value, json};

    use super::support::promises::Promises;
    use super::support::*;

    const NODES: u8 = 3;
    const GPUS: u8 = 2;
    const QUOTA_GIB: u64 = 60;

    fn waits(pod: &Value) -> bool {
        pod["spec"]["nodeName"].is_null()
    }

    enum Happened {
        Apply(Value),
        Delete(PodUid),
    }

    /// A Binding on its way. Nobody waits any more for one that is late.
    struct Post {
        order: BindOrder,
        late: bool,
        until: Moment,
    }

    struct World {
        dice: Dice,
        now: Moment,
        index: Index,
        /// What the API server has.
        pods: BTreeMap<String, Value>,
        watch: VecDeque<Happened>,
        posts: Vec<Post>,
        called: Vec<BindOrder>,
        /// Pods and nodes of filters whose bind is still to be called.
        offered: Vec<(Value, String)>,
        /// A list that is being read: when it began, and what was there then.
        listing: Option<(Moment, Vec<Value>)>,
        sick: BTreeSet<(u8, u8)>,
        /// Groups' sizes, as their PodGroups say them.
        sizes: BTreeMap<String, u64>,
        promises: Promises,
        /// Pods that a Binding failed for: the scheduler tries them again soon.
        failed: Vec<Value>,
        made: u32,
        bound: u32,
        refused: u32,
    }

    impl World {
        fn new(seed: u64) -> Self {
            let mut world = Self {
                dice: Dice::new(seed),
                now: Duration::from_secs(1000),
                index: Index::new(settings()),
                pods: BTreeMap::new(),
                watch: VecDeque::new(),
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
            };
            world.restart();
            world
        }

        /// A new process, which knows what the API server says. Requests of the one before have
        /// ended: its lease has run out.
        fn restart(&mut self) {
            while let Some(post) = self.posts.pop() {
                if self.dice.one_in(2) {
                    self.write(&post.order);
                }
            }
            self.called.clear();
            self.promises.restarted();
            self.watch.clear();
            self.index = Index::new(settings());
            for n in 1..=NODES {
                self.index.apply_node(&node(&format!("n{n}")), HostRoom::default());
                self.report(n);
            }
            namespace(&mut self.index, "team");
            let spec = json!({ "namespaceSelector": {}, "limits": { "memory": format!("{QUOTA_GIB}Gi") } });
            self.index.apply_quota("q", Some("1"), Some(1), &quota(spec));
            let sizes = self.sizes.clone();
            sizes.iter().for_each(|(group, size)| self.say_size(group, *size));
            complete(&mut self.index);
            self.offered.clear();
            self.listing = None;
            self.begin_list();
            self.end_list();
        }

        fn report(&mut self, n: u8) {
            let mut said = status(n, GPUS, 16);
            for (index, gpu) in (0..).zip(&mut said.gpus) {
                gpu.healthy = !self.sick.contains(&(n, index));
            }
            self.index.apply_gpu_node(&node(&format!("n{n}")), Some(&said));
        }

        /// What happens from now on is watched when the list has been read.
        fn begin_list(&mut self) {
            self.watch.clear();
            self.index.begin_pods();
            self.listing = Some((self.now, self.pods.values().cloned().collect()));
        }

        fn end_list(&mut self) {
            let Some((began, pods)) = self.listing.take() else { return };
            for pod in &pods {
                self.index.apply_pod(view(pod));
            }
            self.index.end_pods(began);
        }

        fn create(&mut self) {
            // Whoever makes pods does not go on when many wait.
            if self.pods.values().filter(|pod| waits(pod)).count() >= 8 {
                return;
            }
            self.made += 1;
            let name = format!("p{}", self.made);
            let gib = [1, 4, 8, 12, 16][usize::try_from(self.dice.below(5)).unwrap()];
            let gpus = 1 + self.dice.below(2);
            let mut limits = vec![("gpu", gpus)];
            if !self.dice.one_in(4) {
                limits.push(("memory-mib", gib * 1024));
            }
            let mut pod = pod("team", &name, &limits);
            if self.dice.one_in(2) {
                let group = format!("g{}", self.dice.below(3));
                pod = match self.dice.one_in(3) {
                    true => labelled(pod, &group),
                    false => grouped(pod, &group, 2),
                };
            }
            self.pods.insert(name, pod.clone());
            self.watch.push_back(Happened::Apply(pod));
        }

        fn say_size(&mut self, group: &str, size: u64) {
            // 0 is none that a group can have.
            apply_pod_group(&mut self.index, &pod_group(group, json!({ "minMember": size })));
        }

        fn change_pod_group(&mut self) {
            let group = format!("g{}", self.dice.below(3));
            if self.sizes.contains_key(&group) && self.dice.one_in(2) {
                self.sizes.remove(&group);
                self.index.remove_pod_group("team", &group);
            } else {
                let size = self.dice.below(5);
                self.say_size(&group, size);
                self.sizes.insert(group, size);
            }
        }

        fn some_pod(&mut self) -> Option<Value> {
            let count = self.pods.len() as u64;
            if count == 0 {
                return None;
            }
            let at = usize::try_from(self.dice.below(count)).unwrap();
            self.pods.values().nth(at).cloned()
        }

        /// Of a group, or any: pods of one are tried one after the other.
        fn waiting_pod(&mut self) -> Option<Value> {
            let name = self.dice.one_in(2).then(|| format!("g{}", self.dice.below(3)));
            let waits = self.pods.values().filter(|pod| waits(pod));
            let waits = waits.filter(|pod| name.is_none() || group_of(pod) == name);
            let waits: Vec<&Value> = waits.collect();
            let at = self.dice.below(waits.len().max(1) as u64);
            waits.get(usize::try_from(at).unwrap()).map(|pod| (*pod).clone())
        }

        fn delete(&mut self) {
            let at_all = self.dice.one_in(2);
            let bound = self.pods.values().filter(|pod| !at_all && !waits(pod));
            let bound: Vec<Value> = bound.cloned().collect();
            let some = self.dice.below(bound.len().max(1) as u64);
            let bound = bound.get(usize::try_from(some).unwrap()).cloned();
            let Some(pod) = bound.or_else(|| self.some_pod()) else { return };
            self.pods.remove(pod["metadata"]["name"].as_str().unwrap());
            self.watch.push_back(Happened::Delete(view(&pod).uid));
        }

        fn deliver(&mut self) {
            if self.listing.is_some() {
                return;
            }
            match self.watch.pop_front() {
                Some(Happened::Apply(pod)) => self.index.apply_pod(view(&pod)),
                Some(Happened::Delete(uid)) => self.index.remove_pod(&uid),
                None => {}
            }
        }

        /// The scheduler's round for one pod, as far as its call of bind.
        fn schedule(&mut self) {
            let again = self.failed.pop().filter(|_| !self.dice.one_in(4));
            let Some(pod) = again.or_else(|| self.waiting_pod()) else { return };
            let names: Vec<String> = (1..=NODES).map(|n| format!("n{n}")).collect();
            let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
            if self.dice.one_in(6) {
                names.pop();
            }
            let filtered = self.index.filter(&view(&pod), &names, self.now).unwrap();
            let fits = names.iter().zip(&filtered.0).filter(|(_, answer)| answer.is_ok());
            let fits: Vec<&str> = fits.map(|(name, _)| *name).collect();
            if fits.is_empty() {
                return;
            }
            let at = usize::try_from(self.dice.below(fits.len() as u64)).unwrap();
            let place = (pod.clone(), fits[at].to_owned());
            self.offered.push(place);
        }

        /// The scheduler calls bind for one of the pods that it found a node for.
        fn bind(&mut self) {
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

        fn gates(&mut self) {
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
        fn write(&mut self, order: &BindOrder) -> bool {
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

        fn post(&mut self) {
            if self.posts.is_empty() {
                return;
            }
            let at = usize::try_from(self.dice.below(self.posts.len() as u64)).unwrap();
            let mut post = self.posts.swap_remove(at);
            if post.late && self.now < post.until && !self.dice.one_in(3) {
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
            if self.dice.one_in(4) {
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
            let concluded = if self.dice.one_in(4) {
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
                    self.promises.refused(pod, &self.pods, &self.index, self.now);
                    self.failed.push(pod.clone());
                }
            }
        }

        fn look(&self, name: &str, uid: &PodUid) -> Look {
            match self.pods.get(name).map(view).filter(|view| view.uid == *uid) {
                None => Look::Gone,
                Some(view) if view.node.is_some() => Look::OnNode(Box::new(view)),
                Some(_) => Look::Unbound,
            }
        }

        fn resolve(&mut self) {
            self.index.expire_groups(self.now);
            for late in self.index.overdue(self.now) {
                let look = self.look(&late.pod.name, &late.uid);
                self.index.looked(&late.uid, late.ticket, look, self.now);
            }
        }

        fn step(&mut self) {
            if self.listing.is_some() && self.dice.one_in(8) {
                return self.end_list();
            }
            match self.dice.below(41) {
                0..=6 => self.create(),
                7..=9 => self.delete(),
                10..=16 => self.deliver(),
                17..=21 => self.schedule(),
                22..=25 => self.bind(),
                26..=31 => self.post(),
                32..=33 => self.gates(),
                34..=35 => self.resolve(),
                36 => self.now += Duration::from_secs(1 + self.dice.below(12)),
                37 => {
                    let n = 1 + u8::try_from(self.dice.below(NODES.into())).unwrap();
                    let gpu = (n, u8::try_from(self.dice.below(GPUS.into())).unwrap());
                    if !self.sick.remove(&gpu) {
                        self.sick.insert(gpu);
                    }
                    self.report(n);
                }
                38 => {
                    let n = 1 + u8::try_from(self.dice.below(NODES.into())).unwrap();
                    let name = node(&format!("n{n}"));
                    self.index.remove_gpu_node(&name);
                    if self.dice.one_in(2) {
                        self.index.remove_node(name.as_str());
                        self.index.apply_node(&name, HostRoom::default());
                    }
                    self.report(n);
                }
                39 => self.change_pod_group(),
                _ if self.dice.one_in(4) => self.restart(),
                _ if self.listing.is_some() => self.end_list(),
                _ => self.begin_list(),
            }
        }

        /// What is written at the API server never holds more than there is.
        fn check(&self, seed: u64, step: usize) {
            let mut held: BTreeMap<String, (u64, u32)> = BTreeMap::new();
            let mut memory = 0;
            for pod in self.pods.values().filter(|pod| !pod["spec"]["nodeName"].is_null()) {
                let Some(placement) = view(pod).placement else { continue };
                for (_, placed) in placement.containers() {
                    for grant in placed.grants() {
                        let own = held.entry(grant.gpu.to_string()).or_default();
                        own.0 += grant.memory.get();
                        own.1 += grant.share.percent();
                        memory += grant.memory.get();
                    }
                }
            }
            for (gpu, (memory, share)) in held {
                assert!(memory <= 16 * GIB, "seed {seed}, step {step}: {gpu} has {memory}");
                assert!(share <= 100, "seed {seed}, step {step}: {gpu} has {share}%");
            }
            assert!(memory <= QUOTA_GIB * GIB, "seed {seed}, step {step}: the quota is broken");
        }

        /// When all is delivered and looked at, the index says what the API server says.
        fn settle(&mut self, seed: u64) {
            self.end_list();
            for _ in 0..200 {
                self.post();
                self.gates();
            }
            while !self.watch.is_empty() {
                self.deliver();
            }
            for _ in 0..4 {
                self.now += Duration::from_secs(80);
                self.resolve();
                self.gates();
                self.post();
                while !self.watch.is_empty() {
                    self.deliver();
                }
            }
            assert_eq!(self.index.counts().reserved, 0, "seed {seed}: left behind");
            let held = self.pods.values().filter_map(|pod| view(pod).placement);
            let grants = held.flat_map(|placement| {
                let all = placement.containers().flat_map(|(_, p)| p.grants().to_vec());
                all.collect::<Vec<_>>()
            });
            let memory: u64 = grants.map(|grant| grant.memory.get()).sum();
            assert_eq!(self.index.usage_of("team").total.memory, memory, "seed {seed}");
            for pod in self.pods.values() {
                let placed = view(pod).placement.into_iter().flat_map(|placement| {
                    let all = placement.containers().flat_map(|(_, p)| p.grants().to_vec());
                    all.collect::<Vec<_>>()
                });
                assert_eq!(self.index.holds(&view(pod).uid), placed.collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn never_two_pods_on_the_same_bytes() {
        let (mut bound, mut refused, mut out, mut kept) = (0, 0, 0, 0);
        for seed in 1..=seeds(60) {
            let mut world = World::new(seed);
            for step in 0..600 {
                world.step();
                world.check(seed, step);
                let kept = world.promises.check(&world.pods, &world.index, world.now);
                assert_eq!(kept, Ok(()), "seed {seed}, step {step}");
            }
            world.settle(seed);
            world.check(seed, usize::MAX);
            bound += world.bound;
            refused += world.refused;
            out += world.promises.counts.0;
            kept += world.promises.counts.1;
        }
        println!("{bound} bound, {refused} refused, {out} of groups, of which {kept} were kept");
        assert!(u64::from(refused.min(out)) > seeds(60) && kept > 0, "each of it happened");
        assert!(u64::from(bound) > 6 * seeds(60), "the model did bind pods: {bound}");
    }
}
