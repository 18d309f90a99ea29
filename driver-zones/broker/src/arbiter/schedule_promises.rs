//! What holds whatever priorities, caps and pauses there are.

use proptest::prelude::*;

use super::simulation::{MICROSECOND, MILLISECOND, SECOND, Tenant, lease, share, simulate};
use super::tests::{kernels, shares};
use super::*;

fn terms() -> impl Strategy<Value = Terms> {
    let priority = prop_oneof![Just(Priority::Batch), Just(Priority::LatencyCritical)];
    let cap = proptest::option::of(1u32..=100);
    (1u32..=100, cap, priority, any::<bool>()).prop_map(|(weight, cap, priority, patient)| Terms {
        weight: share(weight),
        cap: cap.map(share),
        priority,
        patient,
    })
}

/// Shares of a GPU come to no more than the whole of it.
fn prioritised() -> impl Strategy<Value = Vec<(u32, Vec<u64>, bool)>> {
    proptest::collection::vec((5u32..=25, kernels(), any::<bool>()), 2..5)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 20, ..ProptestConfig::default() })]

    /// A program that waits for each kernel has its share, also when it is late now and then; if
    /// it leaves no more than a quarter of its turns unused, which is what is free of charge.
    /// Each time it loses the GPU for a kernel of somebody else, who has that anyway in the time
    /// between: more often than that, no schedule could give it its share.
    #[test]
    fn who_stumbles_keeps_its_share(
        greedy in proptest::collection::vec(
            (20u32..=60, 200u64..4_000, 20u64..120, 150usize..400, 400u64..2_500), 2..4),
    ) {
        let total: u32 = greedy.iter().map(|(weight, ..)| weight).sum();
        let mut tenants: Vec<Tenant> = greedy
            .into_iter()
            .map(|(weight, kernel, pause, every, late)| {
                let mut tenant = Tenant::new(weight, vec![kernel * MICROSECOND], 0);
                tenant.pauses = vec![pause.min(kernel / 3) * MICROSECOND; every];
                tenant.pauses[0] = late * MICROSECOND;
                tenant
            })
            .collect();
        simulate(&mut tenants, 8 * SECOND);
        for (tenant, share) in tenants.iter().zip(shares(&tenants)) {
            let fair = f64::from(tenant.terms.weight.percent()) * 100.0 / f64::from(total);
            prop_assert!((share - fair).abs() < 2.0, "{share} of {fair}");
        }
    }

    /// Nobody is ever further behind than a few rounds and the kernels that cannot be stopped.
    #[test]
    fn nobody_starves_or_lags_far_behind(greedy in prioritised()) {
        let mut tenants: Vec<Tenant> = greedy
            .into_iter()
            .map(|(weight, kernels, urgent)| {
                let mut tenant = Tenant::new(weight, kernels, 0);
                tenant.terms.priority =
                    if urgent { Priority::LatencyCritical } else { Priority::Batch };
                tenant
            })
            .collect();
        simulate(&mut tenants, 6 * SECOND);
        let quantum = 4 * MILLISECOND;
        let total: u64 = tenants.iter().map(|t| u64::from(t.terms.weight.percent())).sum();
        let longest: u64 = tenants.iter().map(Tenant::longest).sum();
        // A round, as long as it is when each has a mean quantum; each may be two rounds ahead.
        let bound = 3 * quantum * tenants.len() as u64 + longest;
        for tenant in &tenants {
            prop_assert!(tenant.lag <= signed(bound), "{} behind: {tenants:?}", tenant.lag);
            // It works off what it used too much, and then waits for the others' turns.
            let weight = u64::from(tenant.terms.weight.percent());
            let wait = (tenant.longest() + 2 * quantum) * total / weight + bound;
            let most = tenant.waits.iter().max().copied().unwrap_or(u64::MAX);
            prop_assert!(most <= wait, "waited {most}, at most {wait}: {tenants:?}");
        }
    }

    /// Caps hold, alone or not, and what a capped one may not have is used by the others.
    #[test]
    fn caps_hold_and_waste_nothing(
        cap in 5u32..=60, weight in 1u32..=40, kernels in kernels(), alone: bool,
    ) {
        let mut tenants = vec![Tenant::new(weight.min(cap), kernels, 0)];
        tenants[0].terms.cap = Some(share(cap));
        if !alone {
            tenants.push(Tenant::new(50, vec![MILLISECOND], 0));
        }
        let end = 8 * SECOND;
        simulate(&mut tenants, end);
        let had = tenants[0].busy as f64 * 100.0 / end as f64;
        prop_assert!(had <= f64::from(cap) + 1.5, "{had} of at most {cap}");
        if alone {
            prop_assert!(had >= f64::from(cap) - 1.5, "{had} of {cap}");
        } else {
            let all: u64 = tenants.iter().map(|tenant| tenant.busy).sum();
            prop_assert!(all >= end * 98 / 100, "{all}");
        }
    }

    /// Latency-critical launches wait for the kernel under way, as long as they are within their
    /// share, whatever else there is.
    #[test]
    fn urgent_launches_wait_for_one_kernel(
        batch in proptest::collection::vec((10u32..=40, 100u64..4_000), 1..4),
        stumbles: bool,
    ) {
        let longest = batch.iter().map(|(_, kernel)| *kernel).max().unwrap_or(0) * MICROSECOND;
        let mut tenants: Vec<Tenant> = batch
            .into_iter()
            .map(|(weight, kernel)| {
                let mut tenant = Tenant::new(weight, vec![kernel * MICROSECOND], 0);
                if stumbles {
                    tenant.pauses = vec![50 * MICROSECOND, 50 * MICROSECOND, MILLISECOND];
                }
                tenant
            })
            .collect();
        let mut urgent = Tenant::new(20, vec![200 * MICROSECOND], 5 * MILLISECOND);
        urgent.terms.priority = Priority::LatencyCritical;
        tenants.push(urgent);
        simulate(&mut tenants, 3 * SECOND);
        let waits = &tenants.last().expect("it is there").waits;
        prop_assert!(waits.len() > 200);
        let most = waits.iter().max().copied().unwrap_or(u64::MAX);
        prop_assert!(most <= longest, "{most} of {longest}");
    }

    #[test]
    fn any_sequence_keeps_the_gpu_with_one_and_moves_on(
        all in proptest::collection::vec(terms(), 4),
        steps in proptest::collection::vec((0usize..4, 0u8..6, 0u64..20 * MILLISECOND, any::<u64>()), 1..200),
    ) {
        let mut schedule = Schedule::new(FairTime::default());
        let mut now = 0;
        let mut holder: Option<LeaseId> = None;
        let mut recalled = false;
        for (n, what, time, used) in steps {
            now += time;
            let (id, at) = (lease(n), Monotonic::from_nanoseconds(now));
            match what {
                0 => schedule.join(id, all[n], at),
                1 => schedule.leave(id, at),
                5 => schedule.forget(id, at),
                2 => schedule.want(id, at),
                _ => schedule.yielded(id, used, what == 4, at),
            }
            if what != 2 {
                holder = holder.filter(|h| *h != id);
            }
            recalled &= holder.is_some();
            for action in schedule.poll(at) {
                match action {
                    Action::Grant { lease, .. } => {
                        prop_assert_eq!(holder, None);
                        (holder, recalled) = (Some(lease), false);
                    }
                    Action::Recall { lease } => {
                        prop_assert_eq!((holder, recalled), (Some(lease), false));
                        recalled = true;
                    }
                    Action::Contended { lease }
                    | Action::Brief { lease }
                    | Action::Overrun { lease } => {
                        prop_assert_eq!(holder, Some(lease));
                    }
                }
            }
            let waiting: Vec<&Member> =
                schedule.members.iter().filter(|(l, m)| m.wants && holder != Some(**l)).map(|(_, m)| m).collect();
            let reserved = schedule.reserved_until(at);
            let free = holder.is_none() && reserved.is_none();
            prop_assert!(
                !free || waiting.iter().all(|member| !member.is_ready(at)),
                "somebody waits for a free GPU"
            );
            prop_assert!(reserved.is_none_or(|until| until <= after(at, 8 * MILLISECOND)));
            let ended = schedule.turn.as_ref().is_some_and(|turn| turn.overrun);
            // Those who are patient only have a turn recalled.
            let patient = recalled && waiting.iter().all(|member| member.patient);
            prop_assert!(
                waiting.is_empty() || schedule.wake_at(at).is_some() || ended || patient,
                "nobody will look again"
            );
        }
    }
}

#[test]
fn who_waits_patiently_ends_nobody() {
    let at = |ms: u64| Monotonic::from_nanoseconds(ms * MILLISECOND);
    let config = FairTime { watchdog_milliseconds: 1_000, ..FairTime::default() };
    let mut schedule = Schedule::new(config);
    let batch = Tenant::new(50, vec![], 0).terms;
    let patient = Terms { patient: true, ..batch };
    for (n, terms) in [batch, patient, batch].into_iter().enumerate() {
        schedule.join(lease(n), terms, at(0));
    }
    schedule.want(lease(0), at(0));
    schedule.poll(at(0));
    schedule.want(lease(1), at(1));
    assert_eq!(schedule.poll(at(1)), [Action::Contended { lease: lease(0) }]);
    assert_eq!(schedule.poll(at(20)), [Action::Recall { lease: lease(0) }]);
    // A kernel of a minute that only a scrub waits for.
    assert_eq!(schedule.wake_at(at(20)), None);
    assert_eq!(schedule.poll(at(60_000)), []);
    // Its time counts from when somebody else waits.
    schedule.want(lease(2), at(60_000));
    assert_eq!(schedule.poll(at(60_000)), []);
    assert_eq!(schedule.wake_at(at(60_000)), Some(at(61_000)));
    assert_eq!(schedule.poll(at(61_000)), [Action::Overrun { lease: lease(0) }]);
}

#[test]
fn beside_an_urgent_one_turns_are_brief() {
    let at = |ms: u64| Monotonic::from_nanoseconds(ms * MILLISECOND);
    let mut schedule = Schedule::new(FairTime::default());
    let batch = Tenant::new(50, vec![], 0).terms;
    let urgent = Terms { priority: Priority::LatencyCritical, ..batch };
    schedule.join(lease(0), batch, at(0));
    schedule.want(lease(0), at(0));
    let alone = Action::Grant { lease: lease(0), contended: false, brief: false };
    assert_eq!(schedule.poll(at(0)), [alone]);
    // Told as soon as it is there, before it wants anything.
    schedule.join(lease(1), urgent, at(5));
    assert_eq!(schedule.poll(at(5)), [Action::Brief { lease: lease(0) }]);
    assert_eq!(schedule.poll(at(6)), []);
    schedule.yielded(lease(0), 6 * MILLISECOND, true, at(6));
    assert_eq!(
        schedule.poll(at(6)),
        [Action::Grant { lease: lease(0), contended: false, brief: true }]
    );
    schedule.want(lease(1), at(7));
    let told = schedule.poll(at(7));
    assert_eq!(told, [Action::Contended { lease: lease(0) }, Action::Recall { lease: lease(0) }]);
    schedule.yielded(lease(0), MILLISECOND, true, at(8));
    // The urgent one itself need not be.
    let own = Action::Grant { lease: lease(1), contended: true, brief: false };
    assert_eq!(schedule.poll(at(8)), [own]);
}

/// A worker that asks for its turn again and again without using it breaks nobody's turns.
#[test]
fn going_on_is_for_once_a_round() {
    let mut now = 0;
    let at = Monotonic::from_nanoseconds;
    let mut schedule = Schedule::new(FairTime::default());
    for n in 0..2 {
        schedule.join(lease(n), Tenant::new(50, vec![], 0).terms, at(0));
        schedule.want(lease(n), at(0));
    }
    let (mut recalls, mut holder) = (0, None);
    while now < SECOND {
        for action in schedule.poll(at(now)) {
            match action {
                Action::Grant { lease, .. } => holder = Some(lease),
                Action::Recall { lease } => {
                    recalls += 1;
                    schedule.yielded(lease, 0, true, at(now));
                    holder = None;
                }
                Action::Contended { .. } | Action::Brief { .. } | Action::Overrun { .. } => {}
            }
        }
        // The first gives each turn back at once, and wants it again a moment later.
        if holder == Some(lease(0)) {
            schedule.yielded(lease(0), 0, false, at(now));
            holder = None;
        } else {
            schedule.want(lease(0), at(now));
        }
        now += 50 * MICROSECOND;
    }
    assert!(recalls < 2 * 1_000 / 4, "{recalls}");
}
