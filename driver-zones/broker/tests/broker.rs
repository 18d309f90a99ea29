//! The broker's program, with shell scripts for workers: what it starts, replaces, ends, finds
//! again and refuses.
#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs::File;
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;
    use std::path::Path;
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    use gpuzone_broker::ZonePaths;
    use gpuzone_core::{ComputeShare, GpuUuid, Grant, LeaseId, MemoryBytes};
    use gpuzone_wire::control::{
        BrokerConfig, Caps, Driver, LeaseStatus, Reply, Request, SlotAccess, VERSION, WorkerOrder,
    };
    use gpuzone_wire::scrub::{ScrubGpu, ScrubOrder};
    use gpuzone_wire::stats::StatsWriter;
    use gpuzone_wire::turn::{FairTime, Priority};
    use gpuzone_zone::ProcessId;
    use uuid::Uuid;

    const READY: &str = "read -r spec; echo ready; exec >&-; exec sleep 1000";

    struct Zone {
        dir: tempfile::TempDir,
        broker: Child,
    }

    impl Zone {
        /// A broker whose workers run `script` in a shell.
        fn new(script: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let worker = dir.path().join("worker");
            set_worker(&worker, script);
            let driver = Driver {
                cuda_library: "/lib/libcuda.so.1".into(),
                nvml_library: "/lib/libnvidia-ml.so.1".into(),
                environment: BTreeMap::from([("PATH".into(), "/usr/bin:/bin".into())]),
            };
            let zone_dir = dir.path().join("zone");
            let config = BrokerConfig {
                zone_dir,
                worker,
                driver,
                caps: Caps::default(),
                fair_time: FairTime::default(),
                sandbox: None,
                windows: false,
                microvm: None,
            };
            let json = serde_json::to_vec(&config).unwrap();
            std::fs::write(dir.path().join("broker.json"), json).unwrap();
            let broker = broker(dir.path());
            Self { dir, broker }
        }

        fn paths(&self) -> ZonePaths {
            ZonePaths::new(self.dir.path().join("zone"))
        }

        fn connect(&self) -> Connection {
            let socket = self.paths().control_socket();
            let stream = eventually(|| UnixStream::connect(&socket).ok());
            let mut connection = Connection { stream: BufReader::new(stream) };
            let hello = connection.ask(&Request::Hello { version: VERSION });
            assert!(matches!(hello, Reply::Hello { version: VERSION, .. }), "{hello:?}");
            connection
        }

        fn order(&self, n: u128) -> WorkerOrder {
            let lease = LeaseId::from_uuid(Uuid::from_u128(n));
            let slot_dir = self.dir.path().join("slots").join(lease.to_string());
            let (memory, share) = (MemoryBytes::gib(1), ComputeShare::WHOLE);
            let grants = vec![Grant { gpu: GpuUuid::from_bytes([1; 16]), memory, share }];
            let (priority, access) = (Priority::Batch, SlotAccess::Private);
            WorkerOrder { lease, slot_dir, grants, priority, time_cap: None, access }
        }

        fn kill_broker(&mut self) {
            self.broker.kill().unwrap();
            self.broker.wait().unwrap();
        }

        fn worker_of(&self, lease: LeaseId) -> ProcessId {
            self.running(&lease.to_string()).unwrap()
        }

        /// The process of a zone that is written down as running.
        fn running(&self, zone: &str) -> Option<ProcessId> {
            let json = std::fs::read(self.paths().zones().join(format!("{zone}.zone"))).ok()?;
            let record: serde_json::Value = serde_json::from_slice(&json).unwrap();
            let running = record["state"] == "running";
            running.then(|| serde_json::from_value(record["process"].clone()).unwrap())
        }
    }

    impl Drop for Zone {
        fn drop(&mut self) {
            if let Ok(None) = self.broker.try_wait() {
                let _ = self.connect().ask(&Request::Shutdown);
                let _ = self.broker.wait();
            }
        }
    }

    struct Connection {
        stream: BufReader<UnixStream>,
    }

    impl Connection {
        fn ask(&mut self, request: &Request) -> Reply {
            self.say(&serde_json::to_string(request).unwrap())
        }

        fn say(&mut self, line: &str) -> Reply {
            writeln!(self.stream.get_mut(), "{line}").unwrap();
            let mut reply = String::new();
            self.stream.read_line(&mut reply).unwrap();
            serde_json::from_str(&reply).unwrap_or_else(|error| panic!("{reply:?}: {error}"))
        }

        fn start(&mut self, order: &WorkerOrder) -> LeaseStatus {
            self.leases(&Request::Start(order.clone())).remove(0)
        }

        fn stop(&mut self, order: &WorkerOrder) -> Option<LeaseStatus> {
            self.leases(&Request::Stop { lease: order.lease }).pop()
        }

        fn leases(&mut self, request: &Request) -> Vec<LeaseStatus> {
            match self.ask(request) {
                Reply::Leases { leases } => leases,
                other => panic!("{other:?}"),
            }
        }

        fn refused(&mut self, order: &WorkerOrder) -> String {
            match self.ask(&Request::Start(order.clone())) {
                Reply::Refused { reason } => reason,
                other => panic!("{other:?}"),
            }
        }

        fn status(&mut self) -> Vec<LeaseStatus> {
            self.leases(&Request::Status)
        }
    }

    fn set_worker(path: &Path, script: &str) {
        // Renamed into its place: writing to a script that a broker is about to run fails it.
        let new = path.with_extension("new");
        std::fs::write(&new, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&new, PermissionsExt::from_mode(0o700)).unwrap();
        std::fs::rename(new, path).unwrap();
    }

    fn broker(dir: &Path) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gpu-zone-broker"));
        command.arg("--config").arg(dir.join("broker.json"));
        command.stderr(Stdio::null()).spawn().unwrap()
    }

    fn eventually<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(done) = attempt() {
                return done;
            }
            assert!(Instant::now() < end, "it did not happen within a minute");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn listing(dir: &Path) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn serves_and_ends_a_lease() {
        let zone = Zone::new(&format!(
            "[ -S /proc/self/fd/3 ] && [ -f /proc/self/fd/4 ] || exit 1; {READY}"
        ));
        let order = zone.order(1);
        let mut agent = zone.connect();
        let status = agent.start(&order);
        let worker = zone.worker_of(order.lease);
        assert_eq!(status.worker_pid, Some(worker.pid));
        let socket = order.slot_dir.join("cuda.sock");
        assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(agent.start(&order).worker_pid, Some(worker.pid), "asked again");
        let mut other = order.clone();
        other.grants[0].memory = MemoryBytes::gib(2);
        assert!(agent.refused(&other).contains("with other GPUs or limits"));

        let last = agent.stop(&order).unwrap();
        assert_eq!((last.worker_pid, last.restarts), (None, 0));
        assert!(!worker.is_alive().unwrap());
        assert!(!order.slot_dir.exists());
        assert_eq!(listing(&zone.paths().leases()), [format!(".ended-{}", order.lease)]);
        assert_eq!(agent.status(), vec![]);
    }

    /// Counts launches as a worker does.
    fn launches(zone: &Zone, order: &WorkerOrder, count: u32) {
        let stats = zone.paths().leases().join(order.lease.to_string()).join("stats");
        let file = File::options().read(true).write(true).open(stats).unwrap();
        let writer = StatsWriter::open(file).unwrap();
        (0..count).for_each(|_| writer.add_launch());
    }

    #[test]
    fn how_a_lease_ended_outlives_the_broker_until_it_is_settled() {
        let mut zone = Zone::new(READY);
        let order = zone.order(1);
        let mut agent = zone.connect();
        agent.start(&order);
        launches(&zone, &order, 3);
        let last = agent.stop(&order).unwrap();
        assert_eq!(last.counters.launches, 3);
        zone.kill_broker();
        zone.broker = broker(zone.dir.path());
        let mut agent = zone.connect();
        assert_eq!(agent.stop(&order).as_ref(), Some(&last));
        assert_eq!(agent.leases(&Request::Ended), [last]);
        assert_eq!(agent.status(), []);

        // Served again, as after a broker that was ended with its leases, it counts on.
        assert_eq!(agent.start(&order).counters.launches, 3);
        launches(&zone, &order, 2);
        let last = agent.stop(&order).unwrap();
        assert_eq!(last.counters.launches, 5);
        // One that cannot be served again is still told.
        set_worker(&zone.dir.path().join("worker"), "exit 1");
        agent.refused(&order);
        zone.kill_broker();
        zone.broker = broker(zone.dir.path());
        let mut agent = zone.connect();
        assert_eq!(agent.leases(&Request::Ended), [last]);

        let settle = Request::Settle { lease: order.lease };
        assert_eq!(agent.leases(&settle), []);
        assert_eq!(agent.leases(&settle), []);
        assert_eq!(agent.leases(&Request::Ended), []);
        assert_eq!(agent.stop(&order), None);
        assert_eq!(listing(&zone.paths().leases()), Vec::<String>::new());
    }

    #[test]
    fn a_worker_that_does_not_serve_leaves_nothing() {
        let zone = Zone::new("echo first >&2; echo 'libcuda.so.1: no such file' >&2; exit 78");
        let mut agent = zone.connect();
        let order = zone.order(1);
        let reason = agent.refused(&order);
        assert_eq!(reason, "the worker cannot use its driver: libcuda.so.1: no such file");
        set_worker(&zone.dir.path().join("worker"), "read -r spec; kill -9 $$");
        assert!(agent.refused(&order).contains("signal 9 before it was ready: it said nothing"));
        set_worker(&zone.dir.path().join("worker"), "echo hello; exec sleep 1000");
        assert!(agent.refused(&order).contains("hello"));
        std::fs::remove_file(zone.dir.path().join("worker")).unwrap();
        assert!(agent.refused(&order).contains("check that the file is there"));
        assert!(!order.slot_dir.exists());
        assert_eq!(listing(&zone.paths().leases()), Vec::<String>::new());
        assert_eq!(agent.status(), vec![]);
    }

    #[test]
    fn a_dead_worker_is_replaced_and_others_stay() {
        let zone = Zone::new(READY);
        let mut agent = zone.connect();
        let (order, other) = (zone.order(1), zone.order(2));
        let first = agent.start(&order).worker_pid;
        let second = agent.start(&other).worker_pid;
        let pid = rustix::process::Pid::from_raw(first.unwrap().try_into().unwrap());
        rustix::process::kill_process(pid.unwrap(), rustix::process::Signal::KILL).unwrap();
        let find = |agent: &mut Connection, lease| {
            agent.status().into_iter().find(|status| status.lease == lease).unwrap()
        };
        let fresh = eventually(|| {
            let status = find(&mut agent, order.lease);
            (status.worker_pid.is_some() && status.worker_pid != first).then_some(status)
        });
        assert_eq!(fresh.restarts, 1);
        assert!(fresh.trouble.contains("signal 9"), "{}", fresh.trouble);
        assert_eq!(find(&mut agent, other.lease).worker_pid, second);
    }

    #[test]
    fn a_lease_whose_workers_keep_failing_can_be_ended() {
        let zone = Zone::new("read -r spec; echo ready; exec >&-; sleep 0.1; exit 75");
        let mut agent = zone.connect();
        let order = zone.order(1);
        agent.start(&order);
        eventually(|| (agent.status()[0].restarts >= 3).then_some(()));
        assert!(agent.status()[0].trouble.contains("a program's fault"));
        set_worker(&zone.dir.path().join("worker"), "exit 1");
        eventually(|| agent.status()[0].trouble.contains("exit code 1").then_some(()));
        assert!(agent.stop(&order).is_some());
        assert!(!order.slot_dir.exists());
    }

    #[test]
    fn workers_outlive_their_broker_and_are_found_again() {
        let mut zone = Zone::new(READY);
        let (order, dead) = (zone.order(1), zone.order(2));
        let mut agent = zone.connect();
        let kept = agent.start(&order).worker_pid;
        agent.start(&dead);
        let (worker, other) = (zone.worker_of(order.lease), zone.worker_of(dead.lease));
        zone.kill_broker();
        assert!(worker.is_alive().unwrap());
        let pid = rustix::process::Pid::from_raw(other.pid.try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        eventually(|| (!other.is_alive().unwrap()).then_some(()));
        // And a folder that is no lease's.
        std::fs::create_dir(zone.paths().leases().join("rubbish")).unwrap();

        zone.broker = broker(zone.dir.path());
        let mut agent = zone.connect();
        let statuses = eventually(|| {
            let statuses = agent.status();
            (statuses.len() == 2 && statuses.iter().all(|s| s.worker_pid.is_some()))
                .then_some(statuses)
        });
        assert_eq!(statuses[0].worker_pid, kept);
        assert_eq!(statuses[0].restarts, 0);
        assert!(listing(&zone.paths().leases()).contains(&".unreadable-0-rubbish".to_owned()));
        assert_eq!(agent.start(&order).worker_pid, kept);
        assert_eq!(agent.ask(&Request::Shutdown), Reply::Bye);
        assert!(zone.broker.wait().unwrap().success());
        assert!(!worker.is_alive().unwrap());
        assert!(!zone.paths().control_socket().exists());
    }

    fn kill(pid: u32) {
        let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }

    /// The worker is a zombie at most, so that its end is its own and not the stop's.
    fn is_dead(pid: u32) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(')')
            .next()
            .is_none_or(|rest| !rest.starts_with(" S") && !rest.starts_with(" R"))
    }

    #[test]
    fn a_worker_that_died_just_before_its_lease_ended_is_told_with_its_reason() {
        let zone = Zone::new(READY);
        let mut agent = zone.connect();
        for n in 1..=10 {
            let order = zone.order(n);
            let worker = agent.start(&order).worker_pid.unwrap();
            kill(worker);
            eventually(|| is_dead(worker).then_some(()));
            let last = agent.stop(&order).unwrap();
            assert_eq!((last.ends[0].number, last.ends[0].pid), (1, worker), "{last:?}");
            assert!(last.ends[0].reason.contains("signal 9"), "{last:?}");
        }
        let order = zone.order(11);
        agent.start(&order);
        assert_eq!(agent.stop(&order).unwrap().ends, vec![], "this one was ended");
    }

    #[test]
    fn ends_outlive_the_broker_until_they_are_acknowledged() {
        let mut zone = Zone::new(READY);
        let mut agent = zone.connect();
        let order = zone.order(1);
        let first = agent.start(&order).worker_pid.unwrap();
        kill(first);
        let fresh = |agent: &mut Connection, after: u32| {
            eventually(|| {
                agent.status().pop().filter(|s| s.worker_pid.is_some_and(|pid| pid != after))
            })
        };
        let second = fresh(&mut agent, first).worker_pid.unwrap();
        // Nobody sees this one's end.
        zone.kill_broker();
        kill(second);
        eventually(|| is_dead(second).then_some(()));
        for _ in 0..2 {
            zone.broker = broker(zone.dir.path());
            agent = zone.connect();
            let status = fresh(&mut agent, second);
            let told: Vec<_> = status.ends.iter().map(|end| (end.number, end.pid)).collect();
            assert_eq!(told, [(1, first), (2, second)], "{status:?}");
            assert_eq!(status.restarts, 2);
            zone.kill_broker();
        }
        zone.broker = broker(zone.dir.path());
        agent = zone.connect();
        let acknowledge = Request::Acknowledge { lease: order.lease, through: 1 };
        assert_eq!(agent.leases(&acknowledge), vec![]);
        assert_eq!(agent.status()[0].ends.len(), 1);
        zone.kill_broker();
        zone.broker = broker(zone.dir.path());
        agent = zone.connect();
        let last = agent.stop(&order).unwrap();
        assert_eq!(last.ends.iter().map(|end| end.number).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn a_scrub_workers_zone_does_not_outlive_the_next_broker() {
        let mut zone = Zone::new("exec sleep 100");
        let order = zone.order(1);
        let (gpu, gib) = (order.grants[0].gpu, MemoryBytes::gib(1));
        let gpus = vec![ScrubGpu { gpu, memory: gib, at_least: gib, at_most: gib }];
        let scrub = ScrubOrder { lease: order.lease, gpus, sample: gib, limit_ms: 60_000 };
        let mut agent = zone.connect();
        let request = serde_json::to_string(&Request::Scrub(scrub)).unwrap();
        writeln!(agent.stream.get_mut(), "{request}").unwrap();
        let name = format!("scrub-{}", order.lease);
        let worker = eventually(|| zone.running(&name));
        zone.kill_broker();
        assert!(worker.is_alive().unwrap());
        zone.broker = broker(zone.dir.path());
        zone.connect();
        assert!(!worker.is_alive().unwrap());
        assert_eq!(listing(&zone.paths().zones()), Vec::<String>::new());
    }

    #[test]
    fn a_broker_has_given_up_what_it_does_not_need() {
        let zone = Zone::new(READY);
        zone.connect();
        let pid = zone.broker.id();
        // Closed to this user's other processes, its own files in /proc belong to root.
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let value = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_else(|| panic!("{name}: {status}")).trim().to_owned()
        };
        assert_eq!(value("NoNewPrivs:"), "1");
        assert_eq!(value("Seccomp:"), "2");
        let effective = u64::from_str_radix(&value("CapEff:"), 16).unwrap();
        // CAP_CHOWN, DAC_OVERRIDE, KILL, SETGID, SETUID, SETPCAP, SYS_ADMIN, SETFCAP (capability.h).
        let most = if rustix::process::geteuid().is_root() { 0x8020_01e3 } else { 0 };
        assert_eq!(effective & !most, 0, "{status}");
    }

    #[test]
    fn a_second_broker_is_refused() {
        let zone = Zone::new(READY);
        zone.connect();
        let mut second = Command::new(env!("CARGO_BIN_EXE_gpu-zone-broker"));
        let output =
            second.arg("--config").arg(zone.dir.path().join("broker.json")).output().unwrap();
        assert!(!output.status.success());
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(&format!("locked by process {}", zone.broker.id())), "{said}");
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let zone = Zone::new(READY);
        for line in ["", "{}", "{\"request\":\"format\"}", "not json", "[[[[", "\"\\u0000\""] {
            let mut agent = zone.connect();
            assert!(matches!(agent.say(line), Reply::Refused { .. }), "{line:?}");
            let mut rest = String::new();
            assert_eq!(agent.stream.read_line(&mut rest).unwrap(), 0, "closed after {line:?}");
        }
        let mut agent = zone.connect();
        let newer = agent.ask(&Request::Hello { version: VERSION + 1 });
        assert!(matches!(newer, Reply::Refused { reason } if reason.contains("protocol")));

        let stream = UnixStream::connect(zone.paths().control_socket()).unwrap();
        let mut early = Connection { stream: BufReader::new(stream) };
        assert!(matches!(early.ask(&Request::Status), Reply::Refused { .. }));

        let mut endless = UnixStream::connect(zone.paths().control_socket()).unwrap();
        let chunk = vec![b'x'; 1 << 20];
        while endless.write_all(&chunk).is_ok() {}
        assert_eq!(zone.connect().status(), vec![], "others are served on");
    }
}
