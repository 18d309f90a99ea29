use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000_000;

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_nanoseconds((1_000_000 + seconds) * SECOND)
}

fn terms() -> HealthTerms {
    HealthTerms::default()
}

fn xid(number: u64) -> Signal {
    Signal::Xid(Xid::new(number), 1)
}

fn trouble(level: Level) -> Signal {
    Signal::Trouble(level, "it is silent".into())
}

/// What it is after all of these.
fn after(signals: &[(u64, Signal)]) -> GpuWatch {
    let mut watch = GpuWatch::default();
    for (second, signal) in signals {
        watch.observe(signal, at(*second), &terms());
    }
    watch
}

/// Another agent's, after this one was killed.
fn restarted(watch: &GpuWatch) -> GpuWatch {
    serde_json::from_str(&serde_json::to_string(watch).unwrap()).unwrap()
}

fn badness(health: &GpuHealth) -> u8 {
    match health {
        GpuHealth::Healthy => 0,
        GpuHealth::Suspended { .. } => 1,
        GpuHealth::Quarantined { .. } => 2,
    }
}

#[test]
fn a_devices_fault_stays_until_it_is_cleared_whoever_restarts() {
    let mut watch = restarted(&after(&[(0, xid(79)), (1, xid(48))]));
    watch.pass(at(1_000_000), &terms());
    let GpuHealth::Quarantined { cause, reason } = watch.health() else { panic!("{watch:?}") };
    assert_eq!(cause, Cause::Xid(Xid::new(79)));
    assert!(reason.starts_with("Xid 79: the GPU has fallen off the bus; reboot"), "{reason}");
    assert!(reason.ends_with("(and 1 more)"), "{reason}");
    assert_eq!(watch.since(), Some(at(0)));
    assert!(watch.clear(at(5)));
    assert_eq!(watch.health(), GpuHealth::Healthy);
    let recovered = watch.recovered().unwrap();
    assert!(recovered.at == at(5) && recovered.from.starts_with("Xid 79"));
    assert!(!watch.clear(at(6)));
}

#[test]
fn what_a_program_did_is_noted() {
    let watch = after(&[(0, xid(31)), (1, Signal::Xid(Xid::new(31), 6)), (2, xid(63))]);
    assert_eq!(watch.health(), GpuHealth::Healthy);
    let noted = watch.noted()[&Xid::new(31)];
    assert_eq!((noted.count, noted.last), (7, at(1)));
    assert!(watch.is_blank());
}

#[test]
fn contained_errors_add_up_and_one_error_of_many_programs_is_one() {
    let burst: Vec<_> = (0..50).map(|second| (second, xid(94))).collect();
    assert_eq!(after(&burst).health(), GpuHealth::Healthy);
    let mut watch = restarted(&after(&[(0, xid(94)), (3600, xid(94))]));
    assert_eq!(watch.health(), GpuHealth::Healthy);
    assert!(watch.observe(&xid(94), at(7200), &terms()));
    assert_eq!(watch.health().why().unwrap().0, Cause::Contained);
    assert_eq!(badness(&watch.health()), 2);
    let rare = after(&[(0, xid(94)), (80_000, xid(94)), (160_000, xid(94))]);
    assert_eq!(rare.health(), GpuHealth::Healthy);
}

#[test]
fn an_unknown_error_keeps_a_gpu_out_for_a_while_and_the_third_for_good() {
    let mut watch = after(&[(0, xid(999))]);
    assert_eq!(badness(&watch.health()), 1);
    let said = watch.health().why().unwrap().1.to_owned();
    assert!(said.starts_with("Xid 999: look it up"), "{said}");
    watch.pass(at(599), &terms());
    assert_eq!(badness(&watch.health()), 1);
    watch.pass(at(600), &terms());
    assert_eq!(watch.health(), GpuHealth::Healthy);
    watch.observe(&xid(998), at(700), &terms());
    watch.pass(at(1400), &terms());
    assert_eq!(badness(&watch.health()), 1, "twice as long the second time");
    watch.pass(at(1900), &terms());
    assert_eq!(watch.health(), GpuHealth::Healthy);
    watch.observe(&xid(999), at(2000), &terms());
    assert_eq!(badness(&watch.health()), 2);
    // An operator says that this one is a program's.
    let told = HealthTerms { noted: [Xid::new(999)].into(), ..terms() };
    let mut watch = GpuWatch::default();
    watch.observe(&xid(999), at(0), &told);
    assert_eq!(watch.health(), GpuHealth::Healthy);
}

#[test]
fn a_zone_that_is_being_restarted_is_no_trouble_and_one_that_flaps_stays_out() {
    let zone = || trouble(Level::Zone);
    let well = || Signal::Well(Level::Zone);
    let short = after(&[(0, zone()), (4, zone()), (5, well()), (9, zone())]);
    assert_eq!(short.health(), GpuHealth::Healthy);

    let mut watch = after(&[(0, zone()), (5, zone()), (6, well())]);
    assert_eq!(badness(&watch.health()), 1);
    watch = restarted(&watch);
    watch.observe(&well(), at(15), &terms());
    assert_eq!(badness(&watch.health()), 1, "ten seconds from the first good look");
    watch.observe(&well(), at(16), &terms());
    assert_eq!(watch.health(), GpuHealth::Healthy);
    // Nobody who does not look finds it well.
    let mut unseen = after(&[(0, zone()), (5, zone()), (6, well())]);
    unseen.pass(at(1000), &terms());
    assert_eq!(badness(&unseen.health()), 1);

    // It comes and goes: 20, 40, … seconds, and never more than ten minutes.
    let mut now = 20;
    for settle in [20, 40, 80, 160, 320, 600, 600] {
        watch.observe(&zone(), at(now), &terms());
        watch.observe(&zone(), at(now + 5), &terms());
        now += 6;
        watch.observe(&well(), at(now), &terms());
        watch.observe(&well(), at(now + settle - 1), &terms());
        assert_eq!(badness(&watch.health()), 1, "before {settle} s");
        watch.observe(&well(), at(now + settle), &terms());
        assert_eq!(watch.health(), GpuHealth::Healthy, "after {settle} s");
        now += settle + 1;
    }
    // And after a quiet hour it is as it was.
    now += 3600;
    watch.observe(&zone(), at(now), &terms());
    watch.observe(&zone(), at(now + 5), &terms());
    watch.observe(&well(), at(now + 6), &terms());
    watch.observe(&well(), at(now + 16), &terms());
    assert_eq!(watch.health(), GpuHealth::Healthy);
}

#[test]
fn an_operator_does_not_talk_away_what_is_there() {
    let mut watch = after(&[(0, trouble(Level::Zone)), (5, trouble(Level::Zone)), (6, xid(79))]);
    assert_eq!(badness(&watch.health()), 2);
    assert!(watch.clear(at(7)));
    assert_eq!(watch.health().why().unwrap().0, Cause::Level(Level::Zone));
}

fn signals() -> impl Strategy<Value = Signal> {
    let level = prop::sample::select(Level::ALL.to_vec());
    prop_oneof![
        prop::sample::select(vec![13, 31, 45, 63, 79, 94, 999, 1000])
            .prop_flat_map(|n| (1..5_u64).prop_map(move |count| Signal::Xid(Xid::new(n), count))),
        Just(Signal::UncorrectableEcc),
        Just(Signal::RemapFailed),
        Just(Signal::Lost),
        "[a-zä]{0,500}".prop_map(Signal::ScrubFailed),
        level.clone().prop_map(|level| Signal::Trouble(level, "x".into())),
        level.clone().prop_map(|level| Signal::Trouble(level, "x".into())),
        level.clone().prop_map(Signal::Well),
        level.prop_map(Signal::Well),
    ]
}

#[derive(Clone, Debug)]
enum Step {
    See(Signal),
    Pass,
    Restart,
    Clear,
}

fn steps() -> impl Strategy<Value = Vec<(u64, Step)>> {
    let step = prop_oneof![
        8 => signals().prop_map(Step::See),
        2 => Just(Step::Pass),
        1 => Just(Step::Restart),
        1 => Just(Step::Clear),
    ];
    prop::collection::vec((0..30_u64, step), 0..120)
}

/// What must hold, told a second time and in another way.
#[derive(Default)]
struct Model {
    condemned: bool,
    /// When a level was last seen in trouble, and when it was first in trouble without a break.
    last: BTreeMap<Level, u64>,
    first: BTreeMap<Level, u64>,
    unknown: Option<u64>,
}

impl Model {
    fn see(&mut self, signal: &Signal, now: u64) {
        match signal {
            Signal::Xid(xid, _) => match xid.class() {
                XidClass::Device => self.condemned = true,
                XidClass::Unknown => self.unknown = Some(now),
                XidClass::Application | XidClass::Notice | XidClass::Contained => {}
            },
            Signal::UncorrectableEcc
            | Signal::RemapFailed
            | Signal::Lost
            | Signal::ScrubFailed(_) => self.condemned = true,
            Signal::Trouble(level, _) => {
                self.last.insert(*level, now);
                self.first.entry(*level).or_insert(now);
            }
            Signal::Well(level) => drop(self.first.remove(level)),
        }
    }

    /// Whether it cannot serve now, whatever else is so.
    fn must_be_out(&self, now: u64) -> bool {
        let lasts = Level::ALL.iter().any(|level| {
            let seen = self.first.get(level).zip(self.last.get(level));
            seen.is_some_and(|(first, last)| last - first >= 5)
        });
        self.condemned || lasts || self.unknown.is_some_and(|at| now - at < 600)
    }
}

proptest! {
    /// A device's fault never ends by itself, trouble that lasts always counts, a restart of the
    /// agent never makes anything better, and nothing grows without end.
    #[test]
    fn nothing_is_forgotten(steps in steps()) {
        let (mut watch, mut model, mut now) = (GpuWatch::default(), Model::default(), 0);
        for (pause, step) in steps {
            now += pause;
            let before = watch.clone();
            match step {
                Step::See(signal) => {
                    let kept = watch.observe(&signal, at(now), &terms());
                    model.see(&signal, now);
                    prop_assert!(kept || watch.kept() == before.kept());
                }
                Step::Pass => drop(watch.pass(at(now), &terms())),
                Step::Restart => {
                    watch = restarted(&watch);
                    prop_assert!(badness(&watch.health()) >= badness(&before.health()));
                    // What was doubtful begins anew.
                    model.first.retain(|level, _| watch.find(Cause::Level(*level)).is_some());
                }
                Step::Clear => {
                    watch.clear(at(now));
                    let Model { first, last, .. } = std::mem::take(&mut model);
                    (model.first, model.last) = (first, last);
                }
            }
            let health = watch.health();
            prop_assert!(!(model.must_be_out(now) && health.serves()), "{watch:?}");
            prop_assert!(!model.condemned || badness(&health) == 2);
            prop_assert!(watch.faults.len() <= 10 && watch.strikes.len() <= 5 * MOST_STRIKES);
            prop_assert!(health.why().is_none_or(|(_, why)| why.len() < 1000));
        }
    }

    /// Programs cannot condemn a GPU, whatever they do how often.
    #[test]
    fn programs_condemn_nothing(numbers in prop::collection::vec((0..200_u64, 1..9_u64), 0..200)) {
        let mut watch = GpuWatch::default();
        for (number, count) in numbers {
            let xid = Xid::new(number);
            if matches!(xid.class(), XidClass::Application | XidClass::Notice) {
                prop_assert!(!watch.observe(&Signal::Xid(xid, count), at(number), &terms()));
            }
        }
        prop_assert_eq!(watch.health(), GpuHealth::Healthy);
        prop_assert!(watch.noted.len() <= NOTED_KINDS);
    }

    /// Whatever comes and goes is over one day: an hour without trouble is enough.
    #[test]
    fn what_is_well_serves_in_the_end(steps in steps()) {
        let mut watch = GpuWatch::default();
        let mut now = 0;
        for (pause, step) in steps {
            now += pause;
            if let Step::See(signal @ (Signal::Trouble(..) | Signal::Well(_))) = step {
                watch.observe(&signal, at(now), &terms());
            }
        }
        for second in [now + 1, now + 3601] {
            for level in Level::ALL {
                watch.observe(&Signal::Well(level), at(second), &terms());
            }
        }
        prop_assert_eq!(watch.health(), GpuHealth::Healthy);
    }
}
