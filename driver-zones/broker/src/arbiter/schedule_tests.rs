//! The schedule over simulated time: greedy, pausing and hostile members, kernels of any length.

use super::simulation::{MICROSECOND, MILLISECOND, SECOND, Tenant, lease, share, simulate};
use super::*;
use proptest::prelude::*;

pub(super) fn shares(tenants: &[Tenant]) -> Vec<f64> {
    let total: u64 = tenants.iter().map(|tenant| tenant.busy).sum();
    tenants.iter().map(|tenant| tenant.busy as f64 * 100.0 / total as f64).collect()
}

pub(super) fn kernels() -> impl Strategy<Value = Vec<u64>> {
    let short = 20 * MICROSECOND..500 * MICROSECOND;
    let long = MILLISECOND..40 * MILLISECOND;
    let one = prop_oneof![short.clone(), short, long];
    proptest::collection::vec(one, 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 20, ..ProptestConfig::default() })]

    #[test]
    fn shares_follow_the_weights(
        greedy in proptest::collection::vec((1u32..=100, kernels(), 0u64..5 * MICROSECOND), 2..6),
    ) {
        let total: u32 = greedy.iter().map(|(weight, ..)| weight).sum();
        let mut tenants: Vec<Tenant> =
            greedy.into_iter().map(|(w, kernels, pause)| Tenant::new(w, kernels, pause)).collect();
        simulate(&mut tenants, 8 * SECOND);
        for (tenant, share) in tenants.iter().zip(shares(&tenants)) {
            let fair = f64::from(tenant.terms.weight.percent()) * 100.0 / f64::from(total);
            prop_assert!((share - fair).abs() < 2.0, "{share} of {fair}: {tenants:?}");
            prop_assert!(!tenant.waits.is_empty(), "starved");
        }
    }

    #[test]
    fn an_idle_gpu_is_nobodys_fault(pause in MILLISECOND..20 * MILLISECOND, kernels in kernels()) {
        // One pauses, the other is greedy: together they leave no time unused.
        let mut tenants =
            [Tenant::new(50, kernels, 0), Tenant::new(50, vec![MILLISECOND], pause)];
        simulate(&mut tenants, 4 * SECOND);
        let busy: u64 = tenants.iter().map(|tenant| tenant.busy).sum();
        prop_assert!(busy >= 4 * SECOND * 98 / 100, "{busy}");
    }

    #[test]
    fn a_newcomer_gets_its_share_and_has_saved_nothing(weight in 10u32..=90, kernels in kernels()) {
        let (came, end) = (2 * SECOND, 8 * SECOND);
        let mut tenants =
            [Tenant::new(100 - weight, kernels, 0), Tenant::new(weight, vec![MILLISECOND], 0)];
        tenants[1].active = came..u64::MAX;
        simulate(&mut tenants, end);
        let got = tenants[1].busy as f64 * 100.0 / (end - came) as f64;
        prop_assert!((got - f64::from(weight)).abs() < 2.0, "{got} of {weight}");
        // At most a turn and the kernel that is running.
        prop_assert!(tenants[1].waits[0] < 60 * MILLISECOND, "{}", tenants[1].waits[0]);
    }
}

#[test]
fn a_latency_critical_launch_goes_before_batch_work() {
    let mut tenants = vec![
        Tenant::new(40, vec![MILLISECOND], 0),
        Tenant::new(40, vec![2 * MILLISECOND], 0),
        Tenant::new(20, vec![200 * MICROSECOND], 10 * MILLISECOND),
    ];
    tenants[2].terms.priority = Priority::LatencyCritical;
    simulate(&mut tenants, 5 * SECOND);
    let urgent = &tenants[2].waits;
    assert!(urgent.len() > 400);
    // Never longer than the kernel that is running.
    assert!(urgent.iter().all(|wait| *wait <= 2 * MILLISECOND), "{:?}", urgent.iter().max());
    // As batch work it waits for its place in the round.
    tenants.iter_mut().for_each(Tenant::start_over);
    tenants[2].terms.priority = Priority::Batch;
    simulate(&mut tenants, 5 * SECOND);
    assert!(tenants[2].waits.iter().any(|wait| *wait > 3 * MILLISECOND));
}

#[test]
fn a_latency_critical_lease_gets_no_more_than_its_share() {
    let mut tenants =
        [Tenant::new(70, vec![MILLISECOND], 0), Tenant::new(30, vec![300 * MICROSECOND], 0)];
    tenants[1].terms.priority = Priority::LatencyCritical;
    simulate(&mut tenants, 10 * SECOND);
    let shares = shares(&tenants);
    assert!((shares[1] - 30.0).abs() < 2.0, "{shares:?}");
}

#[test]
fn a_capped_lease_gets_no_more_even_alone() {
    let mut tenants = [Tenant::new(50, vec![MILLISECOND], 0)];
    tenants[0].terms.cap = Some(share(25));
    simulate(&mut tenants, 10 * SECOND);
    let part = tenants[0].busy as f64 / (10 * SECOND) as f64;
    assert!((part - 0.25).abs() < 0.02, "{part}");
}

fn grant(n: usize) -> Action {
    Action::Grant { lease: lease(n), contended: false, brief: false }
}

#[test]
fn one_that_does_not_yield_is_named_once() {
    let at = |ms: u64| Monotonic::from_nanoseconds(ms * MILLISECOND);
    let config = FairTime { watchdog_milliseconds: 1_000, ..FairTime::default() };
    let mut schedule = Schedule::new(config);
    for n in 0..2 {
        schedule.join(lease(n), Tenant::new(50, vec![], 0).terms, at(0));
    }
    schedule.want(lease(0), at(0));
    assert_eq!(schedule.poll(at(0)), [grant(0)]);
    // Alone, it may keep the GPU for ever.
    assert_eq!(schedule.poll(at(100_000)), []);
    schedule.want(lease(1), at(100_001));
    assert_eq!(schedule.poll(at(100_001)), [Action::Contended { lease: lease(0) }]);
    assert_eq!(schedule.poll(at(100_020)), [Action::Recall { lease: lease(0) }]);
    assert_eq!(schedule.wake_at(at(100_020)), Some(at(101_020)));
    assert_eq!(schedule.poll(at(101_019)), []);
    assert_eq!(schedule.poll(at(101_020)), [Action::Overrun { lease: lease(0) }]);
    assert_eq!(schedule.poll(at(102_000)), []);
    schedule.leave(lease(0), at(102_000));
    assert_eq!(schedule.poll(at(102_000)), [grant(1)]);
}

#[test]
fn what_is_held_while_another_waits_is_charged_used_or_not() {
    let at = |ms: u64| Monotonic::from_nanoseconds(ms * MILLISECOND);
    let mut schedule = Schedule::new(FairTime::default());
    for n in 0..2 {
        schedule.join(lease(n), Tenant::new(50, vec![], 0).terms, at(0));
        schedule.want(lease(n), at(0));
    }
    let granted = schedule.poll(at(0));
    assert_eq!(granted.len(), 1);
    let Action::Grant { lease: first, .. } = granted[0] else { panic!("{granted:?}") };
    let before = schedule.members[&first].deficit;
    schedule.yielded(first, 0, false, at(80));
    let free = 20 * MILLISECOND + super::CHANGE_OF_TURNS;
    assert_eq!(schedule.members[&first].deficit, before - signed(80 * MILLISECOND - free));
}

#[test]
fn a_cap_counts_what_was_used_where_nobody_waited() {
    let at = |ms: u64| Monotonic::from_nanoseconds(ms * MILLISECOND);
    let mut schedule = Schedule::new(FairTime::default());
    let mut terms = Tenant::new(50, vec![], 0).terms;
    terms.cap = ComputeShare::new(30).ok();
    schedule.join(lease(0), terms, at(0));
    schedule.want(lease(0), at(0));
    assert_eq!(schedule.poll(at(0)), [grant(0)]);
    let over = schedule.wake_at(at(0)).unwrap();
    assert_eq!(schedule.poll(over), [Action::Recall { lease: lease(0) }]);
    // One that used none of it goes on at once; one that used all of it has to wait.
    schedule.yielded(lease(0), 0, true, over);
    assert_eq!(schedule.poll(over), [grant(0)]);
    let over = schedule.wake_at(over).unwrap();
    assert_eq!(schedule.poll(over), [Action::Recall { lease: lease(0) }]);
    schedule.yielded(lease(0), u64::MAX, true, over);
    assert_eq!(schedule.poll(over), []);
}
