//! The index between threads, in every order that a scheduler of threads allows (up to a number of
//! switches), with loom: binds in flight, the watch, a list, and a request that is carried out late.
//! Each thread does what the binder and the feeds do, one lock at a time. What is written at the API
//! server never holds more than there is, and in the end the index says what is written there.
#[cfg(test)]
mod support;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use gpuzone_api::kubernetes::PodUid;
    use gpuzone_scheduler_ext::index::{
        BindOrder, Concluded, Doubt, Gate, Index, Look, Moment, Settled,
    };
    use gpuzone_scheduler_ext::view::PodView;
    use loom::sync::Mutex;
    use loom::thread;

    use super::support::*;

    const T: Moment = Duration::from_secs(100);

    /// What becomes of a Binding's request.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Fate {
        Answered,
        /// Carried out, and the answer is lost.
        Lost,
        /// Not carried out, and the answer is lost.
        Dropped,
        /// The answer is lost, and it is carried out at any later time.
        Late,
        /// Not carried out, and that is answered.
        Refused,
    }

    enum Happened {
        Changed(Box<PodView>),
        Gone(PodUid),
    }

    /// The API server.
    #[derive(Default)]
    struct Api {
        pods: BTreeMap<PodUid, PodView>,
        log: Vec<Happened>,
        late: Vec<BindOrder>,
    }

    impl Api {
        fn of(pods: &[PodView]) -> Self {
            let pods = pods.iter().map(|pod| (pod.uid.clone(), pod.clone()));
            Self { pods: pods.collect(), ..Self::default() }
        }

        fn memory(&self) -> u64 {
            let placed = self.pods.values().filter_map(|pod| pod.placement.as_ref());
            let grants =
                placed.flat_map(|placed| placed.containers().flat_map(|(_, p)| p.grants()));
            grants.map(|grant| grant.memory.get()).sum()
        }

        /// Carries a Binding out, if it can.
        fn write(&mut self, order: &BindOrder) -> bool {
            let Some(pod) = self.pods.get_mut(&order.uid).filter(|pod| pod.node.is_none()) else {
                return false;
            };
            (pod.node, pod.placement) = (Some(order.node.clone()), Some(order.placement.clone()));
            self.log.push(Happened::Changed(Box::new(pod.clone())));
            assert!(self.memory() <= 16 * GIB, "two pods have the same bytes");
            true
        }

        fn look(&self, uid: &PodUid) -> Look {
            match self.pods.get(uid) {
                None => Look::Gone,
                Some(pod) if pod.node.is_some() => Look::OnNode(Box::new(pod.clone())),
                Some(_) => Look::Unbound,
            }
        }
    }

    /// One node with one GPU of 16 GiB.
    struct World {
        index: Mutex<Index>,
        api: Mutex<Api>,
    }

    impl World {
        fn of(pods: &[PodView]) -> Arc<Self> {
            let mut known = index(1, 1);
            pods.iter().for_each(|pod| known.apply_pod(pod.clone()));
            Arc::new(Self { index: Mutex::new(known), api: Mutex::new(Api::of(pods)) })
        }

        fn index<R>(&self, ask: impl FnOnce(&mut Index) -> R) -> R {
            ask(&mut self.index.lock().unwrap())
        }

        fn api<R>(&self, ask: impl FnOnce(&mut Api) -> R) -> R {
            ask(&mut self.api.lock().unwrap())
        }

        /// The scheduler's round for a pod, as far as it goes; an order that waits for its group.
        fn schedule(&self, pod: &PodView, fate: Fate) -> Option<BindOrder> {
            let fits = self.index(|index| index.filter(pod, &["n1"], T).unwrap().0[0].is_ok());
            if !fits {
                return None;
            }
            let order = self.index(|index| index.reserve(&pod.uid, &node("n1"))).ok()?;
            if order.grouped {
                return Some(order);
            }
            self.post(&order, fate);
            None
        }

        fn post(&self, order: &BindOrder, fate: Fate) {
            let doubt = match fate {
                Fate::Answered if self.api(|api| api.write(order)) => {
                    self.index(|i| i.settle(&order.uid, order.ticket, Settled::Written, T));
                    return;
                }
                Fate::Refused => {
                    self.index(|i| i.settle(&order.uid, order.ticket, Settled::Refused, T));
                    return;
                }
                Fate::Answered => Doubt::Conflict,
                Fate::Lost => {
                    self.api(|api| api.write(order));
                    Doubt::Lost
                }
                Fate::Dropped => Doubt::Lost,
                Fate::Late => {
                    self.api(|api| api.late.push(order.clone()));
                    Doubt::Lost
                }
            };
            let look = self.api(|api| api.look(&order.uid));
            let concluded = self.index(|index| index.conclude(order, doubt, Some(look), T));
            let told = [Concluded::Gone, Concluded::Refused, Concluded::Unsure, Concluded::Bound];
            assert!(told.contains(&concluded), "nobody else binds here: {concluded:?}");
        }

        /// What the watch brings, one after the other.
        fn watch(&self) {
            for happened in self.api(|api| std::mem::take(&mut api.log)) {
                self.index(|index| match happened {
                    Happened::Changed(pod) => index.apply_pod(*pod),
                    Happened::Gone(uid) => index.remove_pod(&uid),
                });
            }
        }

        /// A complete list, and from it on the watch.
        fn list(&self) {
            self.index(Index::begin_pods);
            let listed = self.api(|api| {
                api.log.clear();
                api.pods.values().cloned().collect::<Vec<_>>()
            });
            for pod in listed {
                self.index(|index| index.apply_pod(pod));
            }
            self.index(|index| index.end_pods(T));
            self.watch();
        }

        fn delete(&self, uid: &PodUid) {
            self.api(|api| {
                api.pods.remove(uid);
                api.log.push(Happened::Gone(uid.clone()));
            });
            self.watch();
        }

        /// All that is late has come, or has been given up, and all is seen.
        fn settle(&self) {
            self.watch();
            let later = T + Duration::from_secs(80);
            for late in self.index(|index| index.overdue(later)) {
                let look = self.api(|api| api.look(&late.uid));
                self.index(|index| index.looked(&late.uid, late.ticket, look, later));
            }
            let written = self.api(|api| api.memory());
            self.index(|index| {
                assert_eq!(index.usage_of("team").total.memory, written);
                assert_eq!(index.counts().reserved, 0, "nothing is left behind");
            });
        }
    }

    fn part(name: &str, gib: u64) -> PodView {
        view(&pod("team", name, &[("gpu", 1), ("memory-mib", gib * 1024), ("share", 30)]))
    }

    /// Every order with so many switches in the middle of something; how many there were.
    fn explore(switches: usize, run: impl Fn() + Sync + Send + 'static) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(switches);
        model.check(run);
    }

    #[test]
    fn binds_in_flight_never_share_bytes() {
        for fate in [Fate::Answered, Fate::Lost, Fate::Dropped, Fate::Late] {
            // Either of both with the small one, never both.
            let pods = [part("a", 12), part("b", 8), part("c", 4)];
            let bound: Arc<[AtomicU32; 2]> = Arc::default();
            let seen = Arc::clone(&bound);
            explore(2, move || {
                let world = World::of(&pods);
                let go = |pod: usize, fate| {
                    let (world, pod) = (Arc::clone(&world), pods[pod].clone());
                    thread::spawn(move || assert_eq!(world.schedule(&pod, fate), None))
                };
                let threads = [go(0, fate), go(1, Fate::Answered)];
                let late = Arc::clone(&world);
                let late = thread::spawn(move || {
                    late.list();
                    late.api(|api| {
                        for order in std::mem::take(&mut api.late) {
                            api.write(&order);
                        }
                    });
                });
                threads.into_iter().chain([late]).for_each(|thread| thread.join().unwrap());
                assert_eq!(world.schedule(&pods[2], Fate::Answered), None);
                world.settle();
                for (pod, seen) in pods.iter().zip(seen.iter()) {
                    let node = world.api(|api| api.pods[&pod.uid].node.clone());
                    seen.fetch_add(u32::from(node.is_some()), Ordering::Relaxed);
                }
            });
            let [a, b] = [&bound[0], &bound[1]].map(|count| count.load(Ordering::Relaxed));
            assert!(b > 0 && (a > 0 || fate == Fate::Dropped), "{fate:?}: {a}, {b}");
        }
    }

    #[test]
    fn what_a_deleted_pod_had_is_the_next_ones_and_once_only() {
        let pods = [part("a", 12), part("b", 12)];
        explore(3, move || {
            let world = World::of(&pods);
            let go = |pod: usize| {
                let (world, pod) = (Arc::clone(&world), pods[pod].clone());
                thread::spawn(move || assert_eq!(world.schedule(&pod, Fate::Answered), None))
            };
            let (deleting, uid) = (Arc::clone(&world), pods[0].uid.clone());
            let deleting = thread::spawn(move || deleting.delete(&uid));
            [go(0), go(1), deleting].into_iter().for_each(|thread| thread.join().unwrap());
            world.watch();
            assert_eq!(world.schedule(&pods[1], Fate::Answered), None);
            world.settle();
            assert!(world.api(|api| api.pods[&pods[1].uid].node.is_some()), "it is its turn");
        });
    }

    fn member(name: &str) -> PodView {
        let limits = [("gpu", 1), ("memory-mib", 6 * 1024), ("share", 30)];
        view(&grouped(pod("team", name, &limits), "g", 2))
    }

    #[test]
    fn a_group_and_another_pod_are_bound_all_or_none() {
        let pods = [member("a"), member("b"), part("c", 8)];
        let won: Arc<[AtomicU32; 2]> = Arc::default();
        let seen = Arc::clone(&won);
        explore(2, move || {
            let world = World::of(&pods);
            let go = |pod: usize| {
                let (world, pod) = (Arc::clone(&world), pods[pod].clone());
                thread::spawn(move || world.schedule(&pod, Fate::Answered))
            };
            let called = [go(0), go(1), go(2)].map(|thread| thread.join().unwrap());
            let gates = called.iter().flatten().map(|order| {
                let gate = world.index(|index| index.gate(&order.uid, order.ticket));
                if gate == Gate::Open {
                    world.post(order, Fate::Answered);
                }
                gate
            });
            let gates: Vec<Gate> = gates.collect();
            assert!(gates.iter().all(|gate| *gate == gates[0]), "{gates:?}");
            let there = |pod: &PodView| world.api(|api| api.pods[&pod.uid].node.is_some());
            let bound = [there(&pods[0]), there(&pods[1]), there(&pods[2])];
            assert!([[true, true, false], [false, false, true]].contains(&bound), "{bound:?}");
            seen[usize::from(bound[2])].fetch_add(1, Ordering::Relaxed);
            world.settle();
        });
        assert!(won.iter().all(|count| count.load(Ordering::Relaxed) > 0), "each was first once");
    }

    /// Whatever becomes of the second Binding of a group, and whoever wants its place meanwhile: it is
    /// there when the scheduler tries again.
    #[test]
    fn a_binding_of_a_group_that_fails_costs_it_no_place() {
        let fates = [(Fate::Refused, 2), (Fate::Lost, 1), (Fate::Dropped, 1), (Fate::Late, 1)];
        for (fate, switches) in fates {
            let pods = [member("a"), member("b"), part("c", 8)];
            explore(switches, move || {
                let world = World::of(&pods);
                let orders = [0, 1].map(|at| world.schedule(&pods[at], Fate::Answered).unwrap());
                for order in &orders {
                    let gate = world.index(|index| index.gate(&order.uid, order.ticket));
                    assert_eq!(gate, Gate::Open);
                }
                let post = |at: usize, fate| {
                    let (world, order) = (Arc::clone(&world), orders[at].clone());
                    thread::spawn(move || world.post(&order, fate))
                };
                let (other, pod) = (Arc::clone(&world), pods[2].clone());
                let other = thread::spawn(move || drop(other.schedule(&pod, Fate::Answered)));
                let all = [post(0, Fate::Answered), post(1, fate), other];
                all.into_iter().for_each(|thread| thread.join().unwrap());
                assert_eq!(world.schedule(&pods[1], Fate::Answered), None);
                world.api(|api| {
                    for order in std::mem::take(&mut api.late) {
                        api.write(&order);
                    }
                });
                world.settle();
                let there = |pod: &PodView| world.api(|api| api.pods[&pod.uid].node.is_some());
                assert_eq!(pods.each_ref().map(there), [true, true, false], "{fate:?}");
            });
        }
    }
}
