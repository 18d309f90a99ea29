//! Random interleavings of filters, binds, watch events, refused Bindings, lost answers, late requests,
//! lists, lost GPUs, PodGroups that come, change and go, and restarts, against a model of the API server:
//! what is written there never holds more than there is, quotas hold, no pod of a group is bound before
//! the group has room, one that is refused keeps its place while others of its group are bound, one that
//! is gone leaves its place to who replaces it, pods go for others only where that makes room for all that
//! start together, and nothing is lost or left behind.
//!
//! `GPUZONE_MODEL_SEEDS=2000 cargo test -p gpuzone-scheduler-ext --test model` tries more, and
//! `GPUZONE_MODEL_FIRST=1000` begins with that one.
#[cfg(test)]
mod support;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use gpuzone_core::engine::HostRoom;

    use super::support::world::{NODES, QUOTA_GIB, World};
    use super::support::*;

    impl World {
        fn step(&mut self) {
            if self.listing.is_some() && self.dice.one_in(8) {
                return self.end_list();
            }
            if self.dice.below(100) < self.weather.deletes {
                return self.delete();
            }
            if self.weather.lends && self.dice.one_in(10) {
                return if self.dice.one_in(2) { self.reclaim() } else { self.end() };
            }
            match self.dice.below(41) {
                0..=6 => self.create(),
                7..=12 => self.deliver(),
                13..=19 => self.schedule(),
                20..=25 => self.bind(),
                26..=31 => self.post(),
                32..=33 => self.gates(),
                34..=35 => self.resolve(),
                36 => {
                    self.now += Duration::from_secs(1 + self.dice.below(self.weather.pace));
                    self.index.expire_groups(self.now);
                }
                37 => self.change_health(),
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
            let mut memory: BTreeMap<&str, u64> = BTreeMap::new();
            for pod in self.pods.values().filter(|pod| !pod["spec"]["nodeName"].is_null()) {
                let Some(placement) = view(pod).placement else { continue };
                for (_, placed) in placement.containers() {
                    for grant in placed.grants() {
                        let own = held.entry(grant.gpu.to_string()).or_default();
                        own.0 += grant.memory.get();
                        own.1 += grant.share.percent();
                        let of = pod["metadata"]["namespace"].as_str().unwrap();
                        *memory.entry(of).or_insert(0) += grant.memory.get();
                    }
                }
            }
            for (gpu, (memory, share)) in held {
                assert!(memory <= 16 * GIB, "seed {seed}, step {step}: {gpu} has {memory}");
                assert!(share <= 100, "seed {seed}, step {step}: {gpu} has {share}%");
            }
            let within = memory.values().all(|memory| *memory <= QUOTA_GIB * GIB);
            assert!(within, "seed {seed}, step {step}: the quota is broken");
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
            let counts = self.index.counts();
            assert_eq!((counts.reserved, counts.vacant), (0, 0), "seed {seed}: left behind");
            let held = self.pods.values().filter_map(|pod| view(pod).placement);
            let grants = held.flat_map(|placement| {
                let all = placement.containers().flat_map(|(_, p)| p.grants().to_vec());
                all.collect::<Vec<_>>()
            });
            let memory: u64 = grants.map(|grant| grant.memory.get()).sum();
            let used = ["team", "other"].map(|of| self.index.usage_of(of).total.memory);
            assert_eq!(used.iter().sum::<u64>(), memory, "seed {seed}");
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
        let (mut resumed, mut goings) = (0, [0; 5]);
        let (first, last) = (first_seed(), seeds(60));
        let tried = last.saturating_sub(first - 1);
        for seed in first..=last {
            let mut world = World::new(seed);
            for step in 0..2400 {
                world.step();
                world.check(seed, step);
                world.check_vacancies(seed, step);
                let kept = world.promises.check(&world.pods, &world.index, world.now);
                assert_eq!(kept, Ok(()), "seed {seed}, step {step}");
            }
            world.settle(seed);
            world.check(seed, usize::MAX);
            bound += world.bound;
            refused += world.refused;
            out += world.promises.counts.0;
            kept += world.promises.counts.1;
            resumed += world.resumed.1;
            for (sum, count) in goings.iter_mut().zip(world.goings.counts) {
                *sum += count;
            }
        }
        println!(
            "{bound} bound, {refused} refused, {out} of groups, of which {kept} were kept; {resumed} got a place from the next leader"
        );
        let [left, taken, room, went, sure] = goings;
        println!(
            "{left} places were left to who replaces a pod, {sure} of them for sure, {taken} taken by one; room was made for {room} groups; {went} pods went for others"
        );
        // Of few sequences not each has everything.
        assert!(tried < 60 || u64::from(4 * taken.min(went)) > tried && sure.min(room) > 0);
        assert!(
            u64::from(refused.min(out)) > tried && kept.min(resumed) > 0,
            "each of it happened"
        );
        assert!(u64::from(bound) > 12 * tried, "the model did bind pods: {bound}");
    }
}
