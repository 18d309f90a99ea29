//! A hostile tenant beside an honest one: the honest one's results are right, nothing of its
//! lease changes, and nothing of the hostile one is left. The short set.
//!
//! How much the honest one gets done meanwhile is measured by `cargo xtask hostile`.

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use gpuzone_testkit::hostile::{self, Attack, Made, Manner};
    use gpuzone_testkit::{Holdings, Lease, Node, Options, Role, Running, Traces, processes_of};

    const LIMIT: Duration = Duration::from_secs(60);
    const CONFIGURATION: &str = "[usage]\nflush_seconds = 0.2\n[tenants.default]\n\
                                 [fair_time]\nwatchdog_milliseconds = 1000\n";
    /// Own memory that the agent and the broker, and the neighbour's worker, may have more at
    /// the end than at the beginning, in KiB: buffers grow to what was needed once.
    const GROWTH: u64 = 12 << 10;
    /// What an attacker's own worker may have at most: a socket for each of 64 sessions and one
    /// for who is refused, a thread for each of them, and what belongs to the worker itself.
    const DESCRIPTORS: u64 = 256;
    const THREADS: u64 = 80;
    const MEMORY: u64 = 256 << 10;
    /// By how much the node's files may grow in one attack, in KiB: the journal, the ledger and
    /// the audit log do for each lease, and what workers say must not for each thing sent.
    const FILES: u64 = 480;

    struct Field {
        node: Node,
        neighbour: Running,
        lease: Lease,
        traces: Traces,
        daemons: Vec<(&'static str, u32, Holdings)>,
        problems: Vec<String>,
    }

    impl Field {
        fn new() -> Self {
            let options = Options { gpus: vec!["2Gi".into()], configuration: CONFIGURATION.into() };
            let node = Node::start(&options).unwrap();
            let neighbour = hostile::neighbour(&node, LIMIT).unwrap();
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
            let calm = Attack::all().unwrap().remove(0);
            let first = calm.make(&field.node, &field.manner(0.1)).unwrap();
            first.finished.ok().unwrap();
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

        fn manner(&self, seconds: f64) -> Manner {
            let neighbour = self.lease.worker();
            Manner { seconds, long: false, limit: LIMIT, neighbour, processor: None }
        }

        fn is_over(&self) {
            let over = |node: &Node| Ok(node.leases()?.len() == 1);
            self.node.until("the attacker's lease's end", LIMIT, over).unwrap();
        }

        fn says(&mut self, attack: &str, what: String) {
            println!("{attack}: {what}");
            self.problems.push(format!("{attack}: {what}"));
        }

        /// The attack found nothing open, and its own worker kept to its limits.
        fn was_bounded(&mut self, attack: &str, made: &Made) {
            let said = made.finished.stdout.lines().last().unwrap_or_default();
            let said: String = said.chars().filter(|c| !c.is_control()).take(200).collect();
            let held = made.worker.descriptors.as_ref().map_or(0, Vec::len);
            let (threads, own) = (made.worker.threads, made.worker.own_kib);
            let folders = made.growth >> 10;
            println!("{said}");
            println!(
                "  worker: {held} descriptors, {threads} threads, {own} KiB; files: +{folders} KiB"
            );
            if made.finished.code() != Some(0) {
                let (status, said) = (made.finished.status, &made.finished.stderr);
                self.says(attack, format!("{status}: {}", said.trim()));
            }
            let bounds = [
                ("descriptors", held as u64, DESCRIPTORS),
                ("threads", threads as u64, THREADS),
                ("KiB of memory", own, MEMORY),
                ("KiB of files", folders, FILES),
            ];
            for (what, most, bound) in bounds.into_iter().filter(|(_, most, bound)| most > bound) {
                self.says(attack, format!("it had {most} {what} where {bound} are enough"));
            }
        }

        fn nothing_is_left(&mut self, attack: &str) {
            self.is_over();
            let program = self.node.artifacts().file("gpuzone-hostile").unwrap();
            let end = Instant::now() + Duration::from_secs(60);
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
        let zones = hostile::host_has_zones().unwrap();
        let mut field = Field::new();
        for attack in Attack::all().unwrap() {
            let name = attack.name.as_str();
            if attack.zone && !zones {
                println!("{name}: skipped, for this host makes no zones");
                continue;
            }
            let made = attack.make(&field.node, &field.manner(attack.seconds)).unwrap();
            field.was_bounded(name, &made);
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

    /// Control characters that a terminal acts upon, and letters that turn the line around.
    fn tricks(text: &str) -> Vec<char> {
        let plain = |c: char| c == '\n' || c == '\t';
        let turns = |c: char| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        text.chars().filter(|c| (c.is_control() && !plain(*c)) || turns(*c)).collect()
    }

    fn names_are_shown_and_not_acted_upon(node: &Node) {
        let folder = node.folder().join("work");
        std::fs::create_dir_all(&folder).unwrap();
        let name = "\x1b]0;owned\x07\x1b[2J\r\u{202e}\nlease gone\u{9b}31m";
        let program = folder.join(name);
        std::fs::copy(node.artifacts().file("gpuzone-hostile").unwrap(), &program).unwrap();
        let mut command = node.cli(["run", "--tenant", "mallory", "--memory", "64Mi"]).unwrap();
        command.current_dir(&folder).args(["--share", "10", "--"]).arg(&program);
        command.args(["attack", "calm", "--seconds", "30"]);
        let running = Running::start(command).unwrap();
        let active = |node: &Node| Ok(node.leases()?.iter().any(|lease| lease.state() == "active"));
        node.until("its lease", LIMIT, active).unwrap();
        let shown = node.command(["ps"]).unwrap().ok().unwrap().text();
        assert!(shown.contains("owned"), "{shown:?}");
        drop(running);
        let over = |node: &Node| Ok(node.leases()?.is_empty());
        node.until("its lease's end", LIMIT, over).unwrap();
        let listings: [&[&str]; 6] = [
            &["ps", "--format", "json"],
            &["report", "--by", "lease"],
            &["report", "--by", "lease", "--format", "csv"],
            &["audit", "export", "--format", "csv"],
            &["audit", "export", "--format", "json"],
            &["gpus"],
        ];
        let listings = listings.map(|listing| node.command(listing).unwrap().ok().unwrap().text());
        for text in listings.iter().chain([&shown, &node.agent_log()]) {
            assert_eq!(tricks(text), Vec::<char>::new(), "{text:?}");
        }
    }

    fn an_endless_kernel_is_named(node: &Node) {
        let program = node.artifacts().file("gpuzone-hostile").unwrap().to_owned();
        let mut neighbour = hostile::neighbour(node, LIMIT).unwrap();
        let lease = ["run", "--tenant", "mallory", "--memory", "64Mi", "--share", "10", "--"];
        let mut command = node.cli(lease).unwrap();
        // Its worker is ended, and the shell stays until that was seen.
        let script = format!("'{}' attack endless; sleep 60", program.display());
        command.args(["bash", "-c", &script]);
        let running = Running::start(command).unwrap();
        let named = |node: &Node| {
            let leases = node.leases()?;
            let trouble = leases.iter().filter(|lease| lease.tenant() == "mallory");
            let mut trouble = trouble.filter_map(|lease| lease.0["trouble"].as_str());
            Ok(trouble.any(|trouble| trouble.contains("kept a GPU")))
        };
        node.until("the trouble's name", LIMIT, named).unwrap();
        assert!(neighbour.runs().unwrap(), "{}", neighbour.stderr());
        drop(running);
        neighbour.finish(LIMIT).unwrap().ok().unwrap();
    }

    #[test]
    fn what_happened_is_told_and_a_terminal_is_not_tricked() {
        let options = Options { gpus: vec!["2Gi".into()], configuration: CONFIGURATION.into() };
        let mut node = Node::start(&options).unwrap();
        names_are_shown_and_not_acted_upon(&node);
        an_endless_kernel_is_named(&node);
        let over = |node: &Node| Ok(node.leases()?.is_empty());
        node.until("the leases' end", LIMIT, over).unwrap();
        assert_eq!(node.json(&["audit", "verify"]).unwrap()["whole"], true);
        let events = node.json(&["audit", "export"]).unwrap();
        let events = events["events"].as_array().unwrap();
        let of = |kind: &str| events.iter().filter(|event| event["kind"] == kind).count();
        assert_eq!((of("grant"), of("release"), of("quarantine")), (3, 3, 0), "{events:#?}");
        // A zone's end bears no tenant.
        let told: Vec<String> = events.iter().map(ToString::to_string).collect();
        assert!(told.iter().any(|event| event.contains("kept a GPU")), "{told:#?}");
        node.stop_agent().unwrap();
        assert_eq!(node.leftovers(), Vec::<String>::new());
    }
}
