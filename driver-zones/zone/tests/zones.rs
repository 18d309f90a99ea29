//! A model of zones and their owners: whatever happens in whatever order, no zone is leaked,
//! doubled, or running after its end. The backend is a fake one that records what it is told,
//! fails on demand, and keeps its zones when their owner is killed, as the kernel does.
#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::io;
    use std::os::fd::OwnedFd;
    use std::path::Path;
    use std::sync::{Arc, Mutex, MutexGuard};
    use std::time::Duration;

    use gpuzone_zone::sandbox::Missing;
    use gpuzone_zone::{
        Backend, BootId, Exit, ProcessId, Zone, ZoneError, ZoneState, ZoneStats, Zones,
    };
    use proptest::prelude::*;
    use tokio::runtime::Runtime;
    use tokio::sync::Notify;

    /// The fake machine: it outlives owners.
    #[derive(Debug, Default)]
    struct Machine {
        processes: Mutex<BTreeMap<u32, Process>>,
        changed: Notify,
    }

    #[derive(Clone, Debug)]
    struct Process {
        name: String,
        plan: Plan,
        held: bool,
        alive: bool,
    }

    /// What goes wrong with a zone.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Plan {
        Good,
        /// It cannot be made.
        NotMade,
        /// Its program cannot be started, and its process stays.
        NotBegun,
        /// Its process ends while it is started.
        DiesInStart,
        /// Its start never comes to an end.
        Hangs,
    }

    impl Machine {
        fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Process>> {
            self.processes.lock().unwrap()
        }

        fn kill(&self, pid: u32) {
            if let Some(process) = self.lock().get_mut(&pid) {
                process.alive = false;
            }
            self.changed.notify_waiters();
        }

        fn alive(&self) -> Vec<(u32, Process)> {
            let processes = self.lock();
            let alive = processes.iter().filter(|(_, process)| process.alive);
            alive.map(|(pid, process)| (*pid, process.clone())).collect()
        }

        fn is_alive(&self, pid: u32) -> bool {
            self.lock()[&pid].alive
        }
    }

    #[derive(Debug)]
    struct Fake(Arc<Machine>);

    /// An owner's hold on a zone.
    #[derive(Debug)]
    struct FakeZone(Arc<Machine>, u32);

    impl Drop for FakeZone {
        /// A zone that is held back ends with its owner, by itself.
        fn drop(&mut self) {
            if self.0.lock()[&self.1].held {
                self.0.kill(self.1);
            }
        }
    }

    #[derive(Debug, thiserror::Error)]
    #[error("as planned")]
    struct Planned;

    impl Backend for Fake {
        const KIND: &'static str = "fake";
        type Order = Plan;
        type Zone = FakeZone;
        type Error = Planned;

        fn create(&self, name: &str, plan: Plan) -> Result<FakeZone, Planned> {
            if plan == Plan::NotMade {
                return Err(Planned);
            }
            let mut processes = self.0.lock();
            let pid = u32::try_from(processes.len()).unwrap() + 1;
            processes.insert(pid, Process { name: name.into(), plan, held: true, alive: true });
            Ok(FakeZone(Arc::clone(&self.0), pid))
        }

        fn process(&self, zone: &FakeZone) -> ProcessId {
            ProcessId { pid: zone.1, start_time: 1, boot: BootId::current().unwrap() }
        }

        async fn start(&self, zone: &FakeZone) -> Result<Vec<Missing>, Planned> {
            let plan = {
                let mut processes = self.0.lock();
                let process = processes.get_mut(&zone.1).unwrap();
                process.held = false;
                process.plan
            };
            match plan {
                Plan::Good if self.0.is_alive(zone.1) => Ok(Vec::new()),
                Plan::Hangs => std::future::pending().await,
                Plan::Good | Plan::NotMade | Plan::NotBegun => Err(Planned),
                Plan::DiesInStart => {
                    self.0.kill(zone.1);
                    Err(Planned)
                }
            }
        }

        async fn gone(&self, zone: &FakeZone) -> io::Result<Exit> {
            loop {
                let changed = self.0.changed.notified();
                if !self.0.is_alive(zone.1) {
                    return Ok(Exit::Unknown);
                }
                changed.await;
            }
        }

        async fn stop(&self, zone: &FakeZone, _: Option<Duration>) -> io::Result<Exit> {
            // Somewhere between the word and the end, the owner may be killed.
            tokio::task::yield_now().await;
            self.0.kill(zone.1);
            Ok(Exit::Signal(9))
        }

        fn channel(&self, _: &FakeZone) -> io::Result<Option<OwnedFd>> {
            Ok(None)
        }

        fn stats(&self, _: &FakeZone) -> io::Result<ZoneStats> {
            Ok(ZoneStats::default())
        }

        fn adopt(&self, name: &str, process: ProcessId) -> io::Result<Option<FakeZone>> {
            let processes = self.0.lock();
            let found = processes.get(&process.pid).filter(|found| found.alive);
            assert!(found.is_none_or(|found| found.name == name), "another zone's process");
            Ok(found.map(|_| FakeZone(Arc::clone(&self.0), process.pid)))
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Create(usize, Plan),
        Start(usize),
        End(usize),
        /// Its process is killed by somebody else.
        Kill(usize),
        /// The folder takes no records for a while.
        Full(bool),
        /// The owner is killed and another takes over.
        Crash,
    }

    const NAMES: [&str; 3] = ["a", "b", "c"];

    fn step() -> impl Strategy<Value = Step> {
        let name = 0..NAMES.len();
        let plan = prop_oneof![
            4 => Just(Plan::Good),
            1 => Just(Plan::NotMade),
            1 => Just(Plan::NotBegun),
            1 => Just(Plan::DiesInStart),
            1 => Just(Plan::Hangs),
        ];
        prop_oneof![
            6 => (name.clone(), plan).prop_map(|(name, plan)| Step::Create(name, plan)),
            6 => name.clone().prop_map(Step::Start),
            3 => name.clone().prop_map(Step::End),
            2 => name.prop_map(Step::Kill),
            1 => any::<bool>().prop_map(Step::Full),
            2 => Just(Step::Crash),
        ]
    }

    /// An owner and what it says; dropped without a word, as by SIGKILL.
    struct Owner {
        runtime: Runtime,
        zones: Zones<Fake>,
    }

    impl Owner {
        fn open(machine: &Arc<Machine>, folder: &Path) -> Self {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.unwrap();
            let opened = runtime.block_on(Zones::open(Fake(Arc::clone(machine)), folder));
            let (zones, unreadable) = opened.unwrap();
            assert!(unreadable.is_empty(), "{unreadable:?}");
            Self { runtime, zones }
        }

        /// Lets the owner's tasks do what there is to do, but for `turns`.
        fn settle(&self, turns: usize) {
            self.runtime.block_on(async {
                for _ in 0..turns {
                    tokio::task::yield_now().await;
                }
            });
        }

        fn zone(&self, name: usize) -> Option<Zone<Fake>> {
            self.zones.get(NAMES[name])
        }
    }

    struct World {
        machine: Arc<Machine>,
        folder: tempfile::TempDir,
        owner: Option<Owner>,
    }

    impl World {
        fn new() -> Self {
            let (machine, folder) = (Arc::default(), tempfile::tempdir().unwrap());
            let owner = Some(Owner::open(&machine, folder.path()));
            Self { machine, folder, owner }
        }

        fn owner(&self) -> &Owner {
            self.owner.as_ref().unwrap()
        }

        /// `turns` is how far the owner's tasks get before the next step.
        fn take(&mut self, step: Step, turns: usize) {
            match step {
                Step::Create(name, plan) => self.create(name, plan),
                Step::Start(name) => {
                    if let Some(zone) = self.owner().zone(name) {
                        self.owner().runtime.spawn(async move { drop(zone.start().await) });
                    }
                }
                Step::End(name) => {
                    if let Some(zone) = self.owner().zone(name) {
                        self.owner().runtime.spawn(async move { drop(zone.end(None).await) });
                    }
                }
                Step::Kill(name) => {
                    if let Some(zone) = self.owner().zone(name) {
                        self.machine.kill(zone.process().pid);
                    }
                }
                Step::Full(full) => self.fill(full),
                Step::Crash => {
                    self.fill(false);
                    self.owner = None;
                    self.check_leaks();
                    let before: BTreeSet<u32> =
                        self.machine.alive().into_iter().map(|(pid, _)| pid).collect();
                    self.owner = Some(Owner::open(&self.machine, self.folder.path()));
                    let after: BTreeSet<u32> =
                        self.machine.alive().into_iter().map(|(pid, _)| pid).collect();
                    assert!(after.is_subset(&before), "an adoption starts nothing");
                    let zones = self.owner().zones.list();
                    assert!(zones.iter().all(|zone| zone.state() == ZoneState::Running));
                }
            }
            self.owner().settle(turns);
            self.check();
        }

        fn create(&self, name: usize, plan: Plan) {
            let _inside = self.owner().runtime.enter();
            let before = self.owner().zone(name);
            let created = self.owner().zones.create(NAMES[name], plan);
            match (&created, before) {
                (Err(ZoneError::Exists(_)), before) => assert!(before.is_some()),
                (_, Some(before)) => panic!("doubled: {before:?}"),
                (Err(ZoneError::Backend(Planned)), None) => assert_eq!(plan, Plan::NotMade),
                (Ok(zone), None) => assert_eq!(zone.state(), ZoneState::Made),
                (Err(error), None) => assert!(matches!(error, ZoneError::Record(_)), "{error}"),
            }
        }

        /// A folder in the place of the new record cannot be written to.
        fn fill(&self, full: bool) {
            for name in NAMES {
                let place = self.folder.path().join(format!("{name}.new"));
                let _ = if full { std::fs::create_dir(place) } else { std::fs::remove_dir(place) };
            }
        }

        /// Every process belongs to a zone, no zone has two, and one that has ended has none.
        fn check(&self) {
            self.check_leaks();
            let owned = self.owner().zones.list();
            let owned: BTreeMap<u32, ZoneState> =
                owned.iter().map(|zone| (zone.process().pid, zone.state())).collect();
            let mut names = BTreeSet::new();
            for (pid, process) in self.machine.alive() {
                assert!(owned.contains_key(&pid), "{process:?} runs and nobody owns it");
                assert!(names.insert(process.name.clone()), "two of {process:?}");
            }
        }

        /// What was let go is written down, owner or not.
        fn check_leaks(&self) {
            for (pid, process) in self.machine.alive() {
                assert!(process.held || self.is_written(&process.name, pid), "{process:?}");
            }
        }

        fn is_written(&self, name: &str, pid: u32) -> bool {
            let text = std::fs::read(self.folder.path().join(format!("{name}.zone")));
            let record: Option<serde_json::Value> =
                text.ok().and_then(|text| serde_json::from_slice(&text).ok());
            record.is_some_and(|record| record["process"]["pid"] == pid)
        }

        /// All are ended; nothing is left of any.
        fn finish(mut self) {
            self.fill(false);
            self.owner().runtime.block_on(async {
                for zone in self.owner().zones.list() {
                    zone.end(None).await.unwrap();
                    assert_eq!(zone.state(), ZoneState::Ended);
                    let again = zone.start().await.unwrap_err();
                    assert!(matches!(again, ZoneError::Wrong(_) | ZoneError::Ended), "{again}");
                }
            });
            assert!(self.machine.alive().is_empty(), "{:?}", self.machine.alive());
            self.owner = Some(Owner::open(&self.machine, self.folder.path()));
            assert!(self.owner().zones.list().is_empty());
            assert_eq!(std::fs::read_dir(self.folder.path()).unwrap().count(), 0);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

        #[test]
        fn no_zone_is_leaked_doubled_or_running_after_its_end(
            steps in prop::collection::vec((step(), 0usize..6), 1..40)
        ) {
            let mut world = World::new();
            for (step, turns) in steps {
                world.take(step, turns);
            }
            world.finish();
        }
    }

    #[test]
    fn a_start_that_hangs_is_ended_when_its_time_is_up() {
        let world = World::new();
        let owner = world.owner();
        owner.runtime.block_on(async {
            let zone = owner.zones.create("a", Plan::Hangs).unwrap();
            tokio::time::pause();
            let error = zone.start().await.unwrap_err();
            assert!(matches!(error, ZoneError::Late(_)), "{error}");
            zone.ended().await.unwrap();
        });
        assert!(world.machine.alive().is_empty());
    }

    #[test]
    fn a_record_that_cannot_be_read_is_put_aside_and_named() {
        let world = World::new();
        std::fs::write(world.folder.path().join("a.zone"), "{").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let machine = Arc::clone(&world.machine);
        let (zones, unreadable) =
            runtime.block_on(Zones::open(Fake(machine), world.folder.path())).unwrap();
        assert!(zones.list().is_empty());
        let [unreadable] = &unreadable[..] else { panic!("{unreadable:?}") };
        assert_eq!(unreadable.zone, "a");
        assert_eq!(std::fs::read(&unreadable.aside).unwrap(), b"{");
    }

    #[test]
    fn a_name_that_is_no_file_name_is_refused() {
        let world = World::new();
        let _inside = world.owner().runtime.enter();
        for name in ["", "../a", "a/b", ".a", "ä"] {
            let refused = world.owner().zones.create(name, Plan::Good);
            assert!(matches!(refused, Err(ZoneError::Name(_))), "{name}");
        }
        assert!(world.machine.alive().is_empty());
    }
}
