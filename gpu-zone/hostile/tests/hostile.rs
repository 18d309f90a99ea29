//! A hostile tenant beside an honest one: the honest one's results are right, nothing of its
//! lease changes, and nothing of the hostile one is left. The short set.
//!
//! How much the honest one gets done meanwhile is measured by `cargo xtask hostile`.

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use gpuzone_testkit::{
        Artifacts, Finished, Holdings, Lease, Node, Options, Role, Running, Traces, processes_of,
    };

    const LIMIT: Duration = Duration::from_secs(60);
    const CONFIGURATION: &str = "[usage]\nflush_seconds = 0.2\n[tenants.default]\n\
                                 [fair_time]\nwatchdog_milliseconds = 1000\n";
    /// Own memory that the agent and the broker, and the neighbour's worker, may have more at
    /// the end than at the beginning, in KiB: buffers grow to what was needed once.
    const GROWTH: u64 = 12 << 10;

    struct Field {
        node: Node,
        neighbour: Running,
        lease: Lease,
        traces: Traces,
        daemons: Vec<(&'static str, u32, Holdings)>,
        problems: Vec<String>,
    }

    fn attacks() -> Vec<serde_json::Value> {
        let program = Artifacts::build().unwrap().file("gpuzone-hostile").unwrap();
        let listed = Command::new(program).arg("list").output().unwrap();
        let text = String::from_utf8(listed.stdout).unwrap();
        let all = text.lines().map(|line| serde_json::from_str(line).unwrap());
        all.collect::<Vec<serde_json::Value>>()
    }

    /// Whether this host can give a zone what keeps its program in.
    fn has_zones() -> bool {
        let launcher = Artifacts::build().unwrap().file("gpu-zone-sandbox").unwrap();
        let probed = Command::new(launcher).arg("--probe").stdin(Stdio::null()).output().unwrap();
        let missing = String::from_utf8_lossy(&probed.stdout).into_owned();
        ["mount", "pid", "seccomp"].iter().all(|need| !missing.contains(&format!("\"{need}\"")))
    }

    impl Field {
        fn new() -> Self {
            let options = Options { gpus: vec!["2Gi".into()], configuration: CONFIGURATION.into() };
            let node = Node::start(&options).unwrap();
            let program = node.artifacts().file("gpuzone-workload").unwrap().to_owned();
            let lease = ["run", "--tenant", "globex", "--memory", "256Mi", "--share", "40", "--"];
            let mut command = node.cli(lease).unwrap();
            command.arg(program).arg("meter");
            let mut neighbour = Running::start_fed(command).unwrap();
            neighbour.wait_for("meter: window=1", LIMIT).unwrap();
            let lease = node.leases().unwrap().remove(0);
            let mut field = Self {
                node,
                neighbour,
                lease,
                traces: Traces::default(),
                daemons: Vec::new(),
                problems: Vec::new(),
            };
            // What is made once and kept is there then.
            let first = field.attack("calm", 0.1);
            assert_eq!(first.code(), Some(0), "{}", first.text());
            field.is_over();
            field.traces = Traces::of(&field.node).unwrap();
            field.daemons = field.holdings();
            field
        }

        fn holdings(&self) -> Vec<(&'static str, u32, Holdings)> {
            let processes = self.node.processes();
            let of = |role| processes.iter().find(|process| process.role == role).unwrap().pid;
            let worker = self.lease.worker().unwrap();
            let daemons = [
                ("agent", of(Role::Agent)),
                ("broker", of(Role::Broker)),
                ("neighbour's worker", worker),
            ];
            daemons.map(|(name, pid)| (name, pid, Holdings::of(pid))).into()
        }

        fn attack(&self, name: &str, seconds: f64) -> Finished {
            let artifacts = self.node.artifacts();
            let program = artifacts.file("gpuzone-hostile").unwrap();
            let lease = ["run", "--tenant", "mallory", "--memory", "512Mi", "--share", "40", "--"];
            let mut command = self.node.cli(lease).unwrap();
            let folder = self.node.folder().join("work");
            std::fs::create_dir_all(&folder).unwrap();
            command.current_dir(folder).arg(program).args(["attack", name, "--seconds"]);
            command.arg(seconds.to_string());
            Running::start(command).unwrap().finish(LIMIT).unwrap()
        }

        fn is_over(&self) {
            let over = |node: &Node| Ok(node.leases()?.len() == 1);
            self.node.until("the attacker's lease's end", LIMIT, over).unwrap();
        }

        fn says(&mut self, attack: &str, what: String) {
            println!("{attack}: {what}");
            self.problems.push(format!("{attack}: {what}"));
        }

        fn nothing_is_left(&mut self, attack: &str) {
            self.is_over();
            let program = self.node.artifacts().file("gpuzone-hostile").unwrap();
            let end = Instant::now() + Duration::from_secs(5);
            let left = loop {
                let left = self.left(program);
                if left.is_empty() || Instant::now() > end {
                    break left;
                }
                std::thread::sleep(Duration::from_millis(20));
            };
            for left in left {
                self.says(attack, left);
            }
        }

        fn left(&self, program: &std::path::Path) -> Vec<String> {
            let mut left = Vec::new();
            let alive = processes_of(program);
            if !alive.is_empty() {
                left.push(format!("processes {alive:?} live on"));
            }
            let traces = Traces::of(&self.node).unwrap();
            if traces != self.traces {
                let more: Vec<_> = traces.files.difference(&self.traces.files).collect();
                let used = (&self.traces.used, &traces.used);
                left.push(format!("left: files {more:?}, memory of GPUs {used:?}"));
            }
            for ((name, pid, before), (_, now, after)) in self.daemons.iter().zip(self.holdings()) {
                if *pid != now {
                    left.push(format!("the {name} is another process than before"));
                    continue;
                }
                let (held, holds) = (&before.descriptors, &after.descriptors);
                let count = |all: &Option<Vec<String>>| all.as_ref().map_or(0, Vec::len);
                if count(holds) > count(held) {
                    left.push(format!("the {name} has more descriptors: {held:?} {holds:?}"));
                }
                // The agent's and the broker's runtime keeps idle threads for a while.
                let idle = if name.contains("worker") { 0 } else { 8 };
                if after.threads > before.threads + idle {
                    left.push(format!("the {name} has {} threads", after.threads));
                }
                if after.own_kib > before.own_kib + GROWTH {
                    let (now, then) = (after.own_kib, before.own_kib);
                    left.push(format!("the {name} has {now} KiB where it had {then}"));
                }
            }
            left
        }

        fn the_neighbour_is_untouched(&mut self, attack: &str) {
            if !self.neighbour.runs().unwrap() {
                let said = self.neighbour.stderr();
                self.says(attack, format!("the neighbour ended: {said}"));
            }
            let lease = self.node.leases().unwrap().remove(0);
            let of = |lease: &Lease| {
                let trouble = lease.0["trouble"].as_str().unwrap_or_default().to_owned();
                let refused = lease.0["counters"]["refused_allocations"].clone();
                (lease.id().to_owned(), lease.worker(), lease.state().to_owned(), trouble, refused)
            };
            let (before, after) = (of(&self.lease), of(&lease));
            if before != after {
                self.says(attack, format!("the neighbour's lease changed: {before:?} {after:?}"));
            }
            let launches = |lease: &Lease| lease.0["counters"]["launches"].as_u64().unwrap();
            if launches(&lease) <= launches(&self.lease) {
                self.says(attack, "the neighbour got nothing done".to_owned());
            }
            self.lease = lease;
        }
    }

    #[test]
    fn a_hostile_tenant_leaves_nothing_and_its_neighbour_does_not_notice() {
        let zones = has_zones();
        let mut field = Field::new();
        for attack in attacks() {
            let name = attack["name"].as_str().unwrap();
            if attack["zone"] == true && !zones {
                println!("{name}: skipped, for this host makes no zones");
                continue;
            }
            let begin = Instant::now();
            let finished = field.attack(name, attack["seconds"].as_f64().unwrap());
            let said = finished.stdout.lines().last().unwrap_or_default();
            let said: String = said.chars().filter(|c| !c.is_control()).take(200).collect();
            println!("{said} ({:.1?})", begin.elapsed());
            if finished.code() != Some(0) {
                field.says(name, format!("{}: {}", finished.status, finished.stderr));
            }
            field.nothing_is_left(name);
            field.the_neighbour_is_untouched(name);
        }
        assert!(field.problems.is_empty(), "{:#?}", field.problems);
        let Field { mut node, neighbour, .. } = field;
        let finished = neighbour.finish(LIMIT).unwrap().ok().unwrap();
        assert!(finished.number("iterations").unwrap() > 0);
        node.stop_agent().unwrap();
        assert_eq!(node.leftovers(), Vec::<String>::new());
    }
}
