//! However a lease ends, nothing of it is left in the GPU's memory; and a GPU of which that is
//! not shown serves nobody until an operator clears it.
//!
//! The simulated GPU's memory is a file, so it is looked at there: no worker that clears what it
//! gives out stands between the residue and the look.

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::time::Duration;

    use gpuzone_testkit::{Lease, Node, Options, Role, Running};
    use rustix::process::Signal;

    const LIMIT: Duration = Duration::from_secs(30);
    /// What `hold` fills its memory with.
    const PATTERN: u8 = 0xA5;

    fn options() -> Options {
        Options { gpus: vec!["512Mi".into()], ..Options::default() }
    }

    /// How many bytes of GPU 0 are the pattern, and how many are anything else but zero.
    fn residue(node: &Node) -> (usize, usize) {
        let mut file = std::fs::File::open(node.simulated_state().join("gpu-0.memory")).unwrap();
        let (zeros, mut block) = (vec![0; 1 << 20], vec![0; 1 << 20]);
        let (mut pattern, mut other) = (0, 0);
        loop {
            let read = file.read(&mut block).unwrap();
            if read == 0 {
                return (pattern, other);
            }
            if block[..read] != zeros[..read] {
                pattern += block[..read].iter().filter(|byte| **byte == PATTERN).count();
                other += block[..read].iter().filter(|byte| ![0, PATTERN].contains(byte)).count();
            }
        }
    }

    fn filled(node: &Node) -> Running {
        let mut running = node
            .spawn("acme", "256Mi", "20", &["hold", "--memory", "200Mi", "--seconds", "60"])
            .unwrap();
        running.wait_for("hold: holding", LIMIT).unwrap();
        assert_eq!(residue(node), (200 << 20, 0), "the test would find what is left");
        running
    }

    fn nothing_is_left(node: &Node, after: &str) {
        node.until("the lease's end", LIMIT, |node| Ok(node.leases()?.is_empty())).unwrap();
        assert_eq!(residue(node), (0, 0), "after {after}");
    }

    fn the_lease(node: &Node) -> Lease {
        node.leases().unwrap().into_iter().next().unwrap()
    }

    fn kill(node: &Node, pid: u32) {
        let process = node.processes().into_iter().find(|process| process.pid == pid).unwrap();
        assert!(process.send(Signal::KILL));
    }

    fn every_end_leaves_nothing(node: &mut Node) {
        let hold = ["hold", "--memory", "200Mi", "--seconds", "0"];
        node.run("acme", "256Mi", "20", &hold).unwrap().ok().unwrap();
        nothing_is_left(node, "an exit");

        let crash = ["crash", "--memory", "200Mi"];
        assert_eq!(node.run("acme", "256Mi", "20", &crash).unwrap().code(), Some(42));
        nothing_is_left(node, "a crash");

        let running = filled(node);
        assert_eq!(node.kill(Role::Program), 1);
        assert_eq!(running.finish(LIMIT).unwrap().code(), Some(137));
        nothing_is_left(node, "a kill of the program");

        let running = filled(node);
        kill(node, running.pid());
        nothing_is_left(node, "a kill of the holder");

        let running = filled(node);
        kill(node, the_lease(node).worker().unwrap());
        kill(node, running.pid());
        nothing_is_left(node, "a kill of the worker");

        let running = filled(node);
        node.kill_agent().unwrap();
        drop(running);
        assert_ne!(residue(node), (0, 0));
        node.start_agent().unwrap();
        nothing_is_left(node, "a kill of the agent");

        let running = filled(node);
        assert_eq!(node.kill(Role::Broker), 1);
        kill(node, running.pid());
        nothing_is_left(node, "a kill of the broker");
    }

    fn a_neighbour_goes_on(node: &Node) {
        let mut neighbour = node.spawn("globex", "64Mi", "20", &["loop"]).unwrap();
        neighbour.wait_for("loop: running", LIMIT).unwrap();
        for _ in 0..3 {
            let hold = ["hold", "--memory", "200Mi", "--seconds", "0"];
            node.run("acme", "256Mi", "20", &hold).unwrap().ok().unwrap();
        }
        // It checks each of its results.
        neighbour.finish(LIMIT).unwrap().ok().unwrap();
    }

    /// Another's scrub never takes what a lease may ask for, not for a moment.
    fn a_neighbour_gets_all_of_its_own_at_any_time(node: &Node) {
        let hog = ["hog", "--step", "16Mi", "--expect", "128Mi", "--rounds", "400"];
        let mut neighbour = node.spawn("globex", "128Mi", "20", &hog).unwrap();
        node.until("its lease", LIMIT, |node| Ok(node.leases()?.len() == 1)).unwrap();
        let mut ends = 0;
        while neighbour.runs().unwrap() {
            let hold = ["hold", "--memory", "200Mi", "--seconds", "0"];
            node.run("acme", "256Mi", "20", &hold).unwrap().ok().unwrap();
            ends += 1;
        }
        assert!(ends >= 2, "only {ends} leases ended meanwhile");
        neighbour.finish(LIMIT).unwrap().ok().unwrap();
    }

    fn an_end_of_a_lease_in_use_leaves_nothing(node: &Node) {
        // What was scrubbed beside a neighbour is cleared with that one's end.
        nothing_is_left(node, "neighbours");
        let running = filled(node);
        node.command(["stop", the_lease(node).id()]).unwrap().ok().unwrap();
        drop(running);
        assert_eq!(residue(node), (0, 0));
    }

    fn all_of_it_is_in_the_audit_log(node: &Node) {
        let verified = node.json(&["audit", "verify"]).unwrap();
        assert_eq!(verified["whole"], true, "{verified}");
        let events = node.json(&["audit", "export"]).unwrap();
        let events = events["events"].as_array().unwrap();
        let of = |kind: &str| events.iter().filter(|event| event["kind"] == kind).count();
        assert_eq!(of("grant"), of("release"), "{events:#?}");
        assert_eq!((of("scrub"), of("quarantine")), (of("release"), 0));
        assert_eq!((of("agent_start"), of("limits")), (2, 1));
        // Every lease's worker, and the brokers.
        assert!(of("zone_start") > of("grant"));
        let scrub = events.iter().find(|event| event["kind"] == "scrub").unwrap();
        assert_eq!(scrub["tenant"], "acme");
        assert_eq!(scrub["detail"]["result"], "clear");
        assert_eq!(scrub["detail"]["bytes"], 512 << 20);
        let left = |event: &&serde_json::Value| {
            event["detail"]["left_to_other_leases_bytes"].as_u64().is_some_and(|left| left > 0)
        };
        assert!(events.iter().any(|event| left(&event)), "beside a neighbour not all is cleared");
        let globex = node.command(["audit", "export", "--tenant", "globex", "--format", "csv"]);
        let globex = globex.unwrap().ok().unwrap().text();
        assert!(globex.contains(",globex,") && !globex.contains(",acme,"), "{globex}");
    }

    fn an_altered_log_is_named(node: &Node) {
        let path = node.state_dir().join("audit.log");
        let text = std::fs::read_to_string(&path).unwrap();
        let line = text.lines().position(|line| line.contains("\"kind\":\"grant\"")).unwrap() + 1;
        std::fs::write(&path, text.replacen("\"tenant\":\"acme\"", "\"tenant\":\"evil\"", 1))
            .unwrap();
        let finished = node.command(["audit", "verify"]).unwrap();
        assert_eq!(finished.code(), Some(65));
        let said = finished.text();
        assert!(said.contains(&format!("line {line} was altered")), "{said}");
        std::fs::write(&path, text).unwrap();
        assert_eq!(node.command(["audit", "verify"]).unwrap().code(), Some(0));
    }

    #[test]
    fn nothing_is_left_behind() {
        let mut node = Node::start(&options()).unwrap();
        every_end_leaves_nothing(&mut node);
        a_neighbour_goes_on(&node);
        a_neighbour_gets_all_of_its_own_at_any_time(&node);
        an_end_of_a_lease_in_use_leaves_nothing(&node);
        node.run("globex", "512Mi", "100", &["leak-check"]).unwrap().ok().unwrap();
        all_of_it_is_in_the_audit_log(&node);
        node.stop_agent().unwrap();
        assert_eq!(node.leftovers(), Vec::<String>::new());
        an_altered_log_is_named(&node);
    }

    fn a_driver_that_lies(fault: &str) {
        let node = Node::prepare(&options()).unwrap();
        let simulated = node.folder().join("simulated.toml");
        let honest = std::fs::read_to_string(&simulated).unwrap();
        let mut node = node;
        node.start_agent().unwrap();
        let running = filled(&node);
        // From here on its memory is not overwritten; the next process that opens the driver,
        // the scrub's, has such a one.
        std::fs::write(&simulated, format!("{honest}\n[fault]\nmemset = \"{fault}\"\n")).unwrap();
        drop(running);
        node.until("quarantine", LIMIT, |node| {
            Ok(node.json(&["gpus"])?["gpus"][0]["quarantine"].is_string())
        })
        .unwrap();
        node.until("failed", LIMIT, |node| Ok(node.leases()?[0].state() == "failed")).unwrap();
        assert_ne!(residue(&node), (0, 0));
        let shown = node.command(["gpus"]).unwrap().ok().unwrap().text();
        assert!(shown.contains("is in quarantine"), "{shown}");
        let refused = node.run("globex", "64Mi", "10", &["info"]).unwrap();
        assert_eq!(refused.code(), Some(75), "{}", refused.text());
        assert!(refused.text().contains("in quarantine"), "{}", refused.text());
        let still = node.command(["gpus", "--clear-quarantine", "0"]).unwrap();
        assert_eq!(still.code(), Some(76), "{}", still.text());
        // Also not after a new start.
        node.kill_agent().unwrap();
        node.start_agent().unwrap();
        assert!(node.json(&["gpus"]).unwrap()["gpus"][0]["quarantine"].is_string());
        std::fs::write(&simulated, honest).unwrap();
        let cleared = node.json(&["gpus", "--clear-quarantine", "0"]).unwrap();
        assert_eq!(cleared["overwritten_bytes"], 512 << 20, "{cleared}");
        nothing_is_left(&node, "clearing");
        node.run("globex", "512Mi", "100", &["leak-check"]).unwrap().ok().unwrap();
        let events = node.json(&["audit", "export"]).unwrap();
        let kinds: Vec<&str> = events["events"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|e| e["kind"].as_str())
            .collect();
        for kind in ["scrub", "failure", "quarantine", "refusal", "quarantine_cleared", "release"] {
            assert!(kinds.contains(&kind), "{kind}: {kinds:?}");
        }
        assert_eq!(node.json(&["audit", "verify"]).unwrap()["whole"], true);
    }

    #[test]
    fn a_driver_that_ignores_the_scrub_is_found_out() {
        a_driver_that_lies("ignored");
    }

    #[test]
    fn a_driver_that_scrubs_one_half_is_found_out() {
        a_driver_that_lies("half");
    }
}
