//! Zones of one program each: they are listed while they live, and nothing of them is left, whoever
//! is killed and when.

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::process::Command;
    use std::time::Duration;

    use gpuzone_testkit::{Node, Options, Role, Running};
    use rustix::process::{Pid, Signal, kill_process};

    const LIMIT: Duration = Duration::from_secs(60);

    fn node() -> Node {
        Node::start(&Options::default()).unwrap()
    }

    /// Whether zones can be had here at all.
    fn can(node: &Node, test: &str) -> bool {
        let probe = node.artifacts().file("gpu-zone-sandbox").unwrap();
        let said = Command::new(probe).arg("--probe").output().unwrap();
        let missing = String::from_utf8(said.stdout).unwrap();
        let lacks =
            ["mount", "pid", "proc"].into_iter().find(|f| missing.contains(&format!("\"{f}\"")));
        if let Some(lacks) = lacks {
            println!("skipped: {test}: this host lacks {lacks}");
        }
        lacks.is_none()
    }

    fn run(node: &Node, script: &str) -> Running {
        let words = ["run", "--tenant", "acme", "--memory", "1Gi", "--share", "20", "--"];
        Running::start(node.cli(words.iter().chain(&["sh", "-c", script])).unwrap()).unwrap()
    }

    /// A program that waits in its zone, with a child that would outlive it.
    fn waiting(node: &Node) -> Running {
        let mut running = run(node, "setsid sleep 610 & echo ready; wait");
        running.wait_for("ready", LIMIT).unwrap();
        running
    }

    fn kill(pid: u32) {
        // It may just have ended.
        let _ = kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), Signal::KILL);
    }

    fn children(pid: u32) -> Vec<u32> {
        let path = format!("/proc/{pid}/task/{pid}/children");
        let children = std::fs::read_to_string(path).unwrap_or_default();
        children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
    }

    fn is_gone(pid: u32) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
    }

    fn is_janitor(pid: u32) -> bool {
        std::fs::read_to_string(format!("/proc/{pid}/comm"))
            .is_ok_and(|n| n.trim() == "zone-janitor")
    }

    /// The zone's processes by what they are for: launcher, janitor, process 1, program.
    struct Row {
        launcher: u32,
        janitor: Option<u32>,
        first: u32,
        program: u32,
    }

    impl Row {
        fn of(node: &Node) -> Self {
            let listed = node.json(&["ps"]).unwrap();
            let launcher = u32::try_from(listed["zones"][0]["pid"].as_u64().unwrap()).unwrap();
            let (janitors, zone): (Vec<u32>, Vec<u32>) =
                children(launcher).into_iter().partition(|pid| is_janitor(*pid));
            let janitor = janitors.first().copied();
            Self { launcher, janitor, first: zone[0], program: children(zone[0])[0] }
        }

        fn all(&self) -> Vec<u32> {
            let one_more = children(self.program);
            let row = [self.launcher, self.first, self.program].into_iter();
            row.chain(self.janitor).chain(one_more).collect()
        }
    }

    fn records(node: &Node) -> Vec<String> {
        let entries = std::fs::read_dir(node.run_dir().join("programs")).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// Control groups of zones of leases, wherever they are.
    fn groups(leases: &[String]) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![PathBuf::from("/sys/fs/cgroup")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if leases.iter().any(|lease| name.starts_with(&format!("gpu-zone-{lease}-"))) {
                    found.push(entry.path());
                } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    folders.push(entry.path());
                }
            }
        }
        found
    }

    fn leases(node: &Node) -> Vec<String> {
        node.leases().unwrap().iter().map(|lease| lease.id().to_owned()).collect()
    }

    fn mounts() -> usize {
        std::fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count()
    }

    /// No lease, no process, no record, no control group.
    fn all_is_gone(node: &Node, pids: &[u32], of: &[String]) {
        let nothing = |node: &Node| {
            let of_zones = |role| matches!(role, Role::Program | Role::Sandbox | Role::Worker);
            Ok(node.leases()?.is_empty()
                && pids.iter().all(|pid| is_gone(*pid))
                && records(node).is_empty()
                && groups(of).is_empty()
                && !node.processes().iter().any(|process| of_zones(process.role)))
        };
        node.until("the zone's end", LIMIT, nothing)
            .unwrap_or_else(|error| panic!("{error}: {:?} {:?}", records(node), groups(of)));
    }

    #[test]
    fn a_programs_zone_is_listed_with_what_it_uses() {
        let node = node();
        if !can(&node, "a_programs_zone_is_listed_with_what_it_uses") {
            return;
        }
        let running = waiting(&node);
        let listed = node.json(&["ps"]).unwrap();
        let (zone, lease) = (&listed["zones"][0], leases(&node).remove(0));
        assert_eq!(zone["lease"], lease.as_str());
        assert_eq!((&zone["kind"], &zone["state"]), (&"sandbox".into(), &"running".into()));
        assert_eq!(zone["terms"]["tenant"], "acme");
        // The launcher, its janitor, process 1, the shell and what it started.
        assert!(zone["processes"].as_u64().unwrap() >= 4, "{zone}");
        assert!(zone["memory_bytes"].as_u64().unwrap() > 0, "{zone}");
        let table = node.command(["ps"]).unwrap().ok().unwrap().stdout;
        assert!(table.contains("PROGRAMS") && table.contains("running"), "{table}");
        drop(running);
        all_is_gone(&node, &[], &[lease]);
        assert_eq!(node.json(&["ps"]).unwrap()["zones"], serde_json::json!([]));
    }

    #[test]
    fn whoever_of_a_programs_zone_is_killed_nothing_of_it_is_left() {
        let node = node();
        if !can(&node, "whoever_of_a_programs_zone_is_killed_nothing_of_it_is_left") {
            return;
        }
        let before = mounts();
        for victim in ["gpu-zone run", "launcher", "process 1", "program", "janitor", "all"] {
            let running = waiting(&node);
            let (row, of) = (Row::of(&node), leases(&node));
            let all = row.all();
            match victim {
                "gpu-zone run" => kill(running.pid()),
                "launcher" => kill(row.launcher),
                "process 1" => kill(row.first),
                "program" => kill(row.program),
                "janitor" => {
                    // Whoever would clean up behind it first.
                    row.janitor.into_iter().for_each(kill);
                    kill(row.launcher);
                }
                _ => {
                    row.janitor.into_iter().for_each(kill);
                    [running.pid(), row.launcher].into_iter().for_each(kill);
                }
            }
            let finished = running.finish(LIMIT).unwrap();
            let killed = matches!(victim, "gpu-zone run" | "all");
            assert_eq!(finished.code(), (!killed).then_some(137), "{victim}: {}", finished.text());
            all_is_gone(&node, &all, &of);
        }
        assert_eq!(mounts(), before);
    }

    #[test]
    fn a_killed_agent_changes_nothing_for_a_program_and_the_next_one_lists_it() {
        let mut node = node();
        if !can(&node, "a_killed_agent_changes_nothing_for_a_program_and_the_next_one_lists_it") {
            return;
        }
        let script = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done";
        let mut running = run(&node, script);
        running.wait_for("ready", LIMIT).unwrap();
        let (owner, of) = (node.json(&["ps"]).unwrap()["zones"][0]["pid"].clone(), leases(&node));
        node.kill_agent().unwrap();
        node.start_agent().unwrap();
        let listed = node.json(&["ps"]).unwrap();
        assert_eq!(listed["zones"][0]["pid"], owner);
        assert_eq!(listed["zones"][0]["lease"], of[0].as_str());
        let told = Pid::from_raw(running.pid().try_into().unwrap()).unwrap();
        kill_process(told, Signal::TERM).unwrap();
        let finished = running.finish(LIMIT).unwrap();
        assert_eq!(finished.code(), Some(9), "{}", finished.text());
        all_is_gone(&node, &[], &of);
    }

    #[test]
    fn what_is_killed_while_no_agent_runs_is_settled_by_the_next_one() {
        let mut node = node();
        if !can(&node, "what_is_killed_while_no_agent_runs_is_settled_by_the_next_one") {
            return;
        }
        let running = waiting(&node);
        let (row, of) = (Row::of(&node), leases(&node));
        let all = row.all();
        node.kill_agent().unwrap();
        row.janitor.into_iter().for_each(kill);
        [running.pid(), row.launcher].into_iter().for_each(kill);
        running.finish(LIMIT).unwrap();
        assert_eq!(records(&node).len(), 1, "there is nobody to take it away");
        node.start_agent().unwrap();
        all_is_gone(&node, &all, &of);
    }

    #[test]
    fn no_moment_of_a_start_is_a_bad_one_for_a_death() {
        let mut node = node();
        if !can(&node, "no_moment_of_a_start_is_a_bad_one_for_a_death") {
            return;
        }
        for (round, milliseconds) in (0..).zip([0, 2, 4, 6, 8, 10, 12, 15, 20, 25, 30, 40, 60]) {
            let running = run(&node, "exec sleep 611");
            std::thread::sleep(Duration::from_millis(milliseconds));
            let of = node.leases().map(|_| leases(&node)).unwrap_or_default();
            if round % 3 == 0 {
                node.kill_agent().unwrap();
            }
            if round % 2 == 0 {
                node.kill(Role::Sandbox);
            }
            kill(running.pid());
            running.finish(LIMIT).unwrap();
            if round % 3 == 0 {
                node.start_agent().unwrap();
            }
            all_is_gone(&node, &[], &of);
        }
        let finished = run(&node, "echo fine").finish(LIMIT).unwrap().ok().unwrap();
        assert_eq!(finished.stdout, "fine\n");
        node.stop_agent().unwrap();
        assert_eq!(node.leftovers(), Vec::<String>::new());
    }
}
