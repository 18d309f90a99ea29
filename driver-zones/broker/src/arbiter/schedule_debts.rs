//! What a lease owes, with a neighbour that works, pauses or is gone.

use proptest::prelude::*;

use super::simulation::{MICROSECOND, MILLISECOND, SECOND, Tenant, lease};
use super::*;

const HONEST: usize = 0;
const HOSTILE: usize = 1;

fn at(nanoseconds: u64) -> Monotonic {
    Monotonic::from_nanoseconds(nanoseconds)
}

/// A lease that launches kernels without an end, and one that waits for each of its kernels.
struct Pair {
    /// Of the hostile one, in per cent; the other has the rest.
    weight: u32,
    /// Milliseconds after which the hostile one's worker is ended.
    watchdog: u32,
    /// The honest one's kernels, and its pauses between them.
    kernel: u64,
    pauses: Vec<u64>,
    /// How long the hostile one has no worker then.
    away: u64,
}

/// How long each had the GPU, and how often the hostile one's worker was ended.
#[derive(Debug, Default)]
struct Had {
    honest: u64,
    hostile: u64,
    overruns: u64,
}

impl Pair {
    fn terms(&self, who: usize) -> Terms {
        let weight = if who == HOSTILE { self.weight } else { 100 - self.weight };
        Tenant::new(weight, vec![], 0).terms
    }

    /// The honest one gives its turn back after each kernel.
    fn run(&self, end: u64) -> Had {
        let config = FairTime { watchdog_milliseconds: self.watchdog, ..FairTime::default() };
        let (honest, hostile) = (lease(HONEST), lease(HOSTILE));
        let mut schedule = Schedule::new(config);
        schedule.join(honest, self.terms(HONEST), at(0));
        let (mut had, mut now, mut kernels) = (Had::default(), 0, 0);
        let (mut wants_at, mut back, mut done) = (Some(0), Some(0), None);
        let mut since = 0;
        while now < end {
            if back.take_if(|back| *back <= now).is_some() {
                schedule.join(hostile, self.terms(HOSTILE), at(now));
                schedule.want(hostile, at(now));
            }
            if wants_at.take_if(|wants| *wants <= now).is_some() {
                schedule.want(honest, at(now));
            }
            if done.take_if(|done| *done <= now).is_some() {
                had.honest += self.kernel;
                schedule.yielded(honest, self.kernel, false, at(now));
                kernels += 1;
                wants_at = Some(now + self.pauses[kernels % self.pauses.len()]);
            }
            let overruns = had.overruns;
            for action in schedule.poll(at(now)) {
                match action {
                    Action::Grant { lease, .. } if lease == honest => {
                        done = Some(now + self.kernel);
                    }
                    Action::Grant { .. } => since = now,
                    Action::Overrun { .. } => {
                        had.hostile += now - since;
                        had.overruns += 1;
                        schedule.leave(hostile, at(now));
                        back = Some(now + self.away);
                    }
                    Action::Recall { .. } | Action::Contended { .. } | Action::Brief { .. } => {}
                }
            }
            let wake = schedule.wake_at(at(now)).map(Monotonic::nanoseconds);
            // A turn that somebody lost is given to the next at once.
            let again = had.overruns > overruns;
            let soon = again.then_some(now + MICROSECOND);
            let moments = [wants_at, back, done, wake, soon].into_iter().flatten();
            now = moments.filter(|moment| *moment > now).min().unwrap_or(end);
        }
        had
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 20, ..ProptestConfig::default() })]

    /// A lease that keeps the GPU until its worker is ended, again and again, has little more than
    /// its share of it after the first time, however soon its next worker is there and however
    /// often the other one pauses for a moment. It does have its share.
    #[test]
    fn a_fresh_worker_owes_what_the_last_one_used(
        weight in 5u32..=50,
        watchdog in 200u32..1_000,
        kernel in 100u64..4_000,
        pauses in proptest::collection::vec(0u64..7_500, 1..8),
        away in 0u64..50,
    ) {
        let pauses = pauses.into_iter().map(|pause| pause * MICROSECOND).collect();
        let (kernel, away) = (kernel * MICROSECOND, away * MILLISECOND);
        let pair = Pair { weight, watchdog, kernel, pauses, away };
        let end = 60 * SECOND;
        let had = pair.run(end);
        // What it owes less than this is forgiven in a pause.
        let forgiven = had.overruns * 100 * MILLISECOND;
        let once = (u64::from(watchdog) + 50) * MILLISECOND;
        let share = end * u64::from(weight) / 100;
        prop_assert!(had.hostile <= share + forgiven + once, "{had:?}");
        prop_assert!(had.hostile + 2 * once >= share, "{had:?}");
        // The honest one had all of the other time that it wanted.
        let round = pair.kernel + pair.pauses.iter().sum::<u64>() / pair.pauses.len() as u64;
        let wanted = (end - had.hostile) as f64 * pair.kernel as f64 / round as f64;
        prop_assert!(had.honest as f64 >= wanted * 0.93, "{had:?}, {wanted}");
    }
}

/// A schedule with a lease that owes `seconds` and has a new worker that wants the GPU, after
/// another one's kernel of a millisecond; and when that is.
fn owing(seconds: u64) -> (Schedule, u64) {
    let config = FairTime { watchdog_milliseconds: 60_000, ..FairTime::default() };
    let mut schedule = Schedule::new(config);
    let terms = Tenant::new(50, vec![], 0).terms;
    schedule.join(lease(HOSTILE), terms, at(0));
    schedule.want(lease(HOSTILE), at(0));
    schedule.poll(at(0));
    schedule.join(lease(HONEST), terms, at(0));
    schedule.want(lease(HONEST), at(0));
    schedule.poll(at(0));
    let now = seconds * SECOND;
    schedule.leave(lease(HOSTILE), at(now));
    schedule.join(lease(HOSTILE), terms, at(now));
    schedule.want(lease(HOSTILE), at(now));
    let granted = schedule.poll(at(now));
    assert!(matches!(granted[..], [Action::Grant { lease: one, .. }] if one == lease(HONEST)));
    let now = now + MILLISECOND;
    schedule.yielded(lease(HONEST), MILLISECOND, false, at(now));
    (schedule, now)
}

fn grant(n: usize) -> Action {
    Action::Grant { lease: lease(n), contended: false, brief: false }
}

#[test]
fn a_debtor_waits_for_who_pauses_and_has_the_time_of_who_is_idle() {
    let (mut schedule, now) = owing(2);
    assert_eq!(schedule.poll(at(now)), []);
    let idle = now + 8 * MILLISECOND;
    assert_eq!(schedule.wake_at(at(now)), Some(at(idle)));
    assert_eq!(schedule.poll(at(idle - 1)), []);
    assert_eq!(schedule.poll(at(idle)), [grant(HOSTILE)]);
    // Who comes back is the next.
    schedule.want(lease(HONEST), at(idle));
    assert_eq!(schedule.poll(at(idle)), [Action::Contended { lease: lease(HOSTILE) }]);
    let over = at(idle + 4 * MILLISECOND);
    assert_eq!(schedule.poll(over), [Action::Recall { lease: lease(HOSTILE) }]);
}

#[test]
fn a_pause_is_no_chance_for_a_debtor() {
    let (mut schedule, mut now) = owing(2);
    for _ in 0..200 {
        assert_eq!(schedule.poll(at(now)), []);
        now += 7 * MILLISECOND;
        schedule.want(lease(HONEST), at(now));
        let granted = schedule.poll(at(now));
        assert!(matches!(granted[..], [Action::Grant { lease: one, .. }] if one == lease(HONEST)));
        now += MILLISECOND;
        schedule.yielded(lease(HONEST), MILLISECOND, false, at(now));
    }
}

#[test]
fn a_debtor_that_is_alone_has_everything() {
    let (mut schedule, now) = owing(2);
    schedule.forget(lease(HONEST), at(now));
    assert_eq!(schedule.poll(at(now)), [grant(HOSTILE)]);
    assert_eq!(schedule.poll(at(now + 100 * SECOND)), []);
}

/// A debt of less than some turns is none that others wait for.
#[test]
fn long_kernels_leave_no_time_unused() {
    let mut tenants = [
        Tenant::new(50, vec![90 * MILLISECOND], 0),
        Tenant::new(50, vec![MILLISECOND], 6 * MILLISECOND),
    ];
    simulation::simulate(&mut tenants, 8 * SECOND);
    let busy: u64 = tenants.iter().map(|tenant| tenant.busy).sum();
    assert!(busy >= 8 * SECOND * 98 / 100, "{busy}");
}

/// A lease that is over owes nothing: who has its number afterwards is a scrub.
#[test]
fn what_is_over_is_forgotten() {
    let at = |ms: u64| at(ms * MILLISECOND);
    let mut schedule = Schedule::new(FairTime::default());
    let terms = Tenant::new(50, vec![], 0).terms;
    for n in 0..2 {
        schedule.join(lease(n), terms, at(0));
        schedule.want(lease(n), at(0));
    }
    let granted = schedule.poll(at(0));
    let [Action::Grant { lease: first, .. }] = granted[..] else { panic!("{granted:?}") };
    schedule.leave(first, at(100));
    schedule.join(first, terms, at(100));
    assert!(schedule.members[&first].deficit <= -signed(90 * MILLISECOND));
    schedule.forget(first, at(100));
    schedule.join(first, terms, at(100));
    assert_eq!(schedule.members[&first].deficit, 0);
}
