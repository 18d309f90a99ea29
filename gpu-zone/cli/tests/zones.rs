//! Several programs in one workload zone: who shares what, who may join, and what is left when
//! anything is killed.

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::process::Command;
    use std::time::Duration;

    use gpuzone_testkit::{Finished, Node, Options, Role, Running};
    use rustix::process::{Pid, Signal, kill_process};

    const LIMIT: Duration = Duration::from_secs(60);
    const TERMS: [&str; 6] = ["--tenant", "acme", "--memory", "1Gi", "--share", "20"];

    fn node() -> Node {
        Node::start(&Options::default()).unwrap()
    }

    /// Whether zones for several programs can be had here at all.
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

    fn run_in(node: &Node, zone: &str, command: &[&str]) -> Command {
        let named = ["--zone", zone, "--"];
        let words = ["run"].iter().chain(&TERMS).chain(&named).chain(command);
        node.cli(words).unwrap()
    }

    fn exec_in(node: &Node, zone: &str, command: &[&str]) -> Command {
        node.cli(["exec", zone, "--"].iter().chain(command)).unwrap()
    }

    fn start(command: Command) -> Running {
        Running::start(command).unwrap()
    }

    fn finish(command: Command) -> Finished {
        start(command).finish(LIMIT).unwrap()
    }

    fn workload(node: &Node) -> String {
        node.artifacts().file("gpuzone-workload").unwrap().display().to_string()
    }

    /// A program that waits in the zone until it is killed; the zone is there when this returns.
    fn waiting(node: &Node, zone: &str) -> Running {
        let mut running = start(run_in(node, zone, &["sh", "-c", "echo ready; exec sleep 600"]));
        running.wait_for("ready", LIMIT).unwrap();
        running
    }

    fn keeper(node: &Node) -> u32 {
        let keepers =
            node.processes().into_iter().filter(|process| process.command.contains("--keep "));
        let keepers: Vec<u32> = keepers.map(|process| process.pid).collect();
        assert_eq!(keepers.len(), 1, "{keepers:?}");
        keepers[0]
    }

    fn children(pid: u32) -> Vec<u32> {
        let path = format!("/proc/{pid}/task/{pid}/children");
        let children = std::fs::read_to_string(path).unwrap();
        children.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
    }

    /// The zone's process 1: that has this number in it.
    fn first_of_zone(launcher: u32) -> u32 {
        let is_first = |pid: &u32| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap();
            let numbers: Vec<&str> = numbers.split_whitespace().collect();
            numbers.len() > 1 && numbers.last() == Some(&"1")
        };
        children(launcher).into_iter().find(is_first).unwrap()
    }

    fn kill(pid: u32, signal: Signal) {
        kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), signal).unwrap();
    }

    fn is_gone(pid: u32) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
    }

    /// No lease, no process, no file of any zone.
    fn all_is_gone(node: &Node, pids: &[u32]) {
        let nothing = |node: &Node| {
            let of_zones = |role| matches!(role, Role::Program | Role::Sandbox | Role::Worker);
            Ok(node.leases()?.is_empty()
                && pids.iter().all(|pid| is_gone(*pid))
                && !node.processes().iter().any(|process| of_zones(process.role)))
        };
        node.until("the zone's end", LIMIT, nothing).unwrap();
    }

    fn folder(node: &Node, zone: &str) -> PathBuf {
        node.run_dir().join("zones").join(zone)
    }

    #[test]
    fn programs_of_a_zone_see_each_other_and_share_the_leases_memory() {
        let node = node();
        if !can(&node, "programs_of_a_zone_see_each_other_and_share_the_leases_memory") {
            return;
        }
        let program = workload(&node);
        let hold = ["hold", "--memory", "512Mi", "--seconds", "600"];
        let hold: Vec<&str> = [program.as_str()].into_iter().chain(hold).collect();
        let mut first = start(run_in(&node, "train", &hold));
        first.wait_for("holding", LIMIT).unwrap();
        let hog = exec_in(&node, "train", &[&program, "hog", "--expect", "512Mi"]);
        finish(hog).ok().unwrap();
        let list = "for p in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $p; echo; done";
        let seen = finish(exec_in(&node, "train", &["sh", "-c", list])).ok().unwrap();
        assert!(seen.stdout.contains("hold --memory"), "{}", seen.text());
        let other = finish(run_in(&node, "other", &["sh", "-c", list])).ok().unwrap();
        assert!(!other.stdout.contains("hold --memory"), "{}", other.text());
        // The same program under the same terms joins, and one lease serves both.
        let joined = run_in(&node, "train", &[&program, "hog", "--expect", "512Mi"]);
        finish(joined).ok().unwrap();
        let listed = node.json(&["ps"]).unwrap();
        assert_eq!(listed["zones"][0]["name"], "train");
        assert_eq!(listed["zones"][0]["programs"], 1);
        assert_eq!(listed["leases"][0]["zone_name"], "train");
        drop(first);
        all_is_gone(&node, &[]);
    }

    #[test]
    fn the_control_channel_is_nowhere_in_the_zone() {
        let node = node();
        if !can(&node, "the_control_channel_is_nowhere_in_the_zone") {
            return;
        }
        let _first = waiting(&node, "train");
        let script = "ls /proc/self/fd | wc -l; readlink /proc/1/fd/* | wc -l; \
                      cat /proc/1/environ | wc -c; head -c1 /proc/1/mem | wc -c; \
                      find / -xdev -name 'zone.sock' -o -name '*.zone' 2>/dev/null | wc -l; \
                      ls -A $(dirname $(dirname $GPUZONE_SLOT))/zones 2>/dev/null | wc -l; \
                      kill -9 1; kill -TERM 1; echo lives";
        let seen = finish(exec_in(&node, "train", &["sh", "-c", script])).ok().unwrap();
        // 0, 1, 2, and the listing's own.
        let expected = ["4", "0", "0", "0", "0", "0", "lives"];
        assert_eq!(seen.stdout.split_whitespace().collect::<Vec<_>>(), expected, "{}", seen.text());
    }

    #[test]
    fn whoever_comes_while_it_starts_joins_and_none_is_doubled() {
        let node = node();
        if !can(&node, "whoever_comes_while_it_starts_joins_and_none_is_doubled") {
            return;
        }
        let script = |n: usize| format!("echo p{n}; sleep 1; exit {n}");
        let all: Vec<Running> =
            (1..=8).map(|n| start(run_in(&node, "train", &["sh", "-c", &script(n)]))).collect();
        for (n, running) in (1..).zip(all) {
            let finished = running.finish(LIMIT).unwrap();
            assert_eq!(finished.code(), Some(n), "{}", finished.text());
            assert_eq!(finished.stdout, format!("p{n}\n"));
        }
        let log = node.command(["audit", "export", "--format", "json"]).unwrap().ok().unwrap();
        assert_eq!(log.stdout.matches("\"grant\"").count(), 1, "{}", log.stdout);
        all_is_gone(&node, &[]);
    }

    #[test]
    fn twenty_programs_at_once_each_get_their_own_end() {
        let node = node();
        if !can(&node, "twenty_programs_at_once_each_get_their_own_end") {
            return;
        }
        let first = waiting(&node, "train");
        let script = |n: usize| format!("read line; echo $line-{n}; exit {n}");
        let all: Vec<Running> =
            (0..20).map(|n| start(exec_in(&node, "train", &["sh", "-c", &script(n)]))).collect();
        for (n, running) in (0..).zip(all) {
            let finished = running.finish(LIMIT).unwrap();
            assert_eq!(finished.code(), Some(n), "{}", finished.text());
            assert_eq!(finished.stdout, format!("-{n}\n"));
        }
        assert_eq!(node.json(&["ps"]).unwrap()["zones"][0]["programs"], 1);
        drop(first);
        all_is_gone(&node, &[]);
    }

    #[test]
    fn who_joins_asks_for_the_same_or_is_told_what_differs() {
        let node = node();
        if !can(&node, "who_joins_asks_for_the_same_or_is_told_what_differs") {
            return;
        }
        let _first = waiting(&node, "train");
        for (terms, said) in [
            (&["--tenant", "globex", "--memory", "1Gi", "--share", "20"][..], "tenant is acme"),
            (&["--tenant", "acme", "--memory", "2Gi", "--share", "20"], "memory is 1Gi"),
            (&["--tenant", "acme", "--memory", "1Gi", "--share", "30"], "share is 20"),
            (&["--tenant", "acme", "--memory", "1Gi"], "share is 20"),
        ] {
            let words = ["run"].iter().chain(terms).chain(&["--zone", "train", "--", "echo", "in"]);
            let refused = node.command(words).unwrap();
            assert_eq!(
                (refused.code(), refused.stdout.as_str()),
                (Some(64), ""),
                "{}",
                refused.text()
            );
            assert!(refused.stderr.contains(said), "{}", refused.stderr);
        }
        for name in ["../train", "a/b", "", "Train", "."] {
            let refused = finish(run_in(&node, name, &["true"]));
            assert_eq!(refused.code(), Some(64), "{name}: {}", refused.text());
        }
        let absent = finish(exec_in(&node, "nowhere", &["true"]));
        assert_eq!(absent.code(), Some(66), "{}", absent.text());
        let off = ["--sandbox", "off", "--zone", "bare", "--", "true"];
        let off = node.command(["run"].iter().chain(&TERMS).chain(&off)).unwrap();
        assert_eq!(off.code(), Some(64), "{}", off.text());
        assert_eq!(node.leases().unwrap().len(), 1, "the refused cost no lease");
    }

    #[test]
    fn what_fails_in_a_zone_says_so_as_without_one() {
        let node = node();
        if !can(&node, "what_fails_in_a_zone_says_so_as_without_one") {
            return;
        }
        let poor = ["run", "--tenant", "acme", "--memory", "64Gi", "--zone", "big", "--", "true"];
        let refused = node.command(poor).unwrap();
        assert_eq!(refused.code(), Some(75), "{}", refused.text());
        let _first = waiting(&node, "train");
        let hidden = node.folder().join("script");
        std::fs::write(&hidden, "#!/bin/sh\n").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&hidden, mode).unwrap();
        let absent = finish(exec_in(&node, "train", &[hidden.to_str().unwrap()]));
        assert_eq!(absent.code(), Some(127), "the zone's /tmp is its own: {}", absent.text());
        let killed = finish(exec_in(&node, "train", &["sh", "-c", "kill -9 $$"]));
        assert_eq!(killed.code(), Some(137), "{}", killed.text());
    }

    #[test]
    fn signals_and_the_callers_death_reach_the_program_and_no_other() {
        let node = node();
        if !can(&node, "signals_and_the_callers_death_reach_the_program_and_no_other") {
            return;
        }
        let first = waiting(&node, "train");
        let script = "trap 'echo got; exit 9' TERM; echo ready; while :; do sleep 0.05; done";
        let mut told = start(exec_in(&node, "train", &["sh", "-c", script]));
        told.wait_for("ready", LIMIT).unwrap();
        kill(told.pid(), Signal::TERM);
        let told = told.finish(LIMIT).unwrap();
        assert_eq!((told.code(), told.stdout.as_str()), (Some(9), "ready\ngot\n"));
        let mut orphan =
            start(exec_in(&node, "train", &["sh", "-c", "echo ready; exec sleep 601"]));
        orphan.wait_for("ready", LIMIT).unwrap();
        kill(orphan.pid(), Signal::KILL);
        let sleeps = |node: &Node| {
            Ok(!node.processes().iter().any(|process| process.command == "sleep 601"))
        };
        node.until("the program's end", LIMIT, sleeps).unwrap();
        assert_eq!(node.json(&["ps"]).unwrap()["zones"][0]["programs"], 1);
        drop(first);
        all_is_gone(&node, &[]);
    }

    #[test]
    fn a_zone_is_stopped_by_its_name_and_takes_nobody_meanwhile() {
        let node = node();
        if !can(&node, "a_zone_is_stopped_by_its_name_and_takes_nobody_meanwhile") {
            return;
        }
        let script = "trap 'echo asked' TERM; echo ready; while :; do sleep 0.05; done";
        let mut stubborn = start(run_in(&node, "train", &["sh", "-c", script]));
        stubborn.wait_for("ready", LIMIT).unwrap();
        let stop = start(node.cli(["stop", "--zone", "train"]).unwrap());
        stubborn.wait_for("asked", LIMIT).unwrap();
        let late = finish(exec_in(&node, "train", &["echo", "in"]));
        assert_eq!((late.code(), late.stdout.as_str()), (Some(69), ""), "{}", late.text());
        assert!(late.stderr.contains("is ending"), "{}", late.stderr);
        // A new one of that name waits for the old one's end.
        let again = finish(run_in(&node, "train", &["echo", "again"])).ok().unwrap();
        assert_eq!(again.stdout, "again\n");
        stop.finish(LIMIT).unwrap().ok().unwrap();
        assert_eq!(stubborn.finish(LIMIT).unwrap().code(), Some(137));
        all_is_gone(&node, &[]);
        let absent = node.command(["stop", "--zone", "train"]).unwrap();
        assert_eq!(absent.code(), Some(66), "{}", absent.text());
    }

    #[test]
    fn whoever_of_a_zone_is_killed_nothing_of_it_is_left() {
        let node = node();
        if !can(&node, "whoever_of_a_zone_is_killed_nothing_of_it_is_left") {
            return;
        }
        // The keeper, the launcher that waits for the zone, and its process 1.
        for victim in 0..3 {
            let first = waiting(&node, "train");
            let mut second =
                start(exec_in(&node, "train", &["sh", "-c", "echo ready; exec sleep 602"]));
            second.wait_for("ready", LIMIT).unwrap();
            // It may say so before its starter was told that it runs: that comes before this one's end.
            finish(exec_in(&node, "train", &["true"])).ok().unwrap();
            let keeper = keeper(&node);
            let launcher = children(keeper)[0];
            let row = [keeper, launcher, first_of_zone(launcher)];
            kill(row[victim], Signal::KILL);
            for program in [first, second] {
                let finished = program.finish(LIMIT).unwrap();
                assert_eq!(finished.code(), Some(137), "{victim}: {}", finished.text());
                assert!(finished.stderr.contains("zone 'train' ended"), "{}", finished.stderr);
            }
            all_is_gone(&node, &row);
            // The name is free again, whatever the killed one left.
            finish(run_in(&node, "train", &["true"])).ok().unwrap();
            all_is_gone(&node, &[]);
        }
        assert!(!folder(&node, "train").exists());
    }

    #[test]
    fn a_killed_agent_finds_a_zones_lease_again() {
        let mut node = node();
        if !can(&node, "a_killed_agent_finds_a_zones_lease_again") {
            return;
        }
        let first = waiting(&node, "train");
        let before = node.leases().unwrap().remove(0).id().to_owned();
        node.kill_agent().unwrap();
        let program = workload(&node);
        let without = finish(exec_in(&node, "train", &[&program, "hog", "--expect", "1Gi"]));
        without.ok().unwrap();
        node.start_agent().unwrap();
        let after = node.leases().unwrap().remove(0);
        assert_eq!((after.id(), after.state()), (before.as_str(), "active"));
        finish(exec_in(&node, "train", &[&program, "matmul"])).ok().unwrap();
        drop(first);
        all_is_gone(&node, &[]);
        node.stop_agent().unwrap();
        assert_eq!(node.leftovers(), Vec::<String>::new());
    }

    #[test]
    fn a_keeper_that_is_killed_while_it_starts_leaves_nothing() {
        let node = node();
        if !can(&node, "a_keeper_that_is_killed_while_it_starts_leaves_nothing") {
            return;
        }
        for milliseconds in [0, 5, 10, 20, 30, 40, 60, 80] {
            let mut running = start(run_in(&node, "train", &["sleep", "603"]));
            std::thread::sleep(Duration::from_millis(milliseconds));
            let keepers = node.processes().into_iter().filter(|p| p.command.contains("--keep"));
            keepers.for_each(|process| {
                let _ = process.send(Signal::KILL);
            });
            kill(running.pid(), Signal::KILL);
            assert!(!running.runs().unwrap() || running.finish(LIMIT).is_ok());
            all_is_gone(&node, &[]);
        }
        finish(run_in(&node, "train", &["true"])).ok().unwrap();
    }

    #[test]
    fn the_policy_says_who_shares_a_zone() {
        let with = |policy: &str| {
            let open = "[usage]\nflush_seconds = 0.2\n[tenants.default]\n";
            let configuration = format!("[zone]\nworkload = \"{policy}\"\n{open}");
            Node::start(&Options { configuration, ..Options::default() }).unwrap()
        };
        let node = with("program");
        let refused = finish(run_in(&node, "train", &["echo", "in"]));
        assert_eq!((refused.code(), refused.stdout.as_str()), (Some(64), ""), "{}", refused.text());
        assert!(refused.stderr.contains("leave --zone out"), "{}", refused.stderr);
        let node = with("tenant");
        if !can(&node, "the_policy_says_who_shares_a_zone") {
            return;
        }
        let words =
            ["run"].iter().chain(&TERMS).chain(&["--", "sh", "-c", "echo ready; sleep 604"]);
        let mut first = start(node.cli(words).unwrap());
        first.wait_for("ready", LIMIT).unwrap();
        let words = ["run"].iter().chain(&TERMS).chain(&["--", "sh", "-c", "cat /proc/*/cmdline"]);
        let second = node.command(words).unwrap().ok().unwrap();
        assert!(second.stdout.contains("sleep 604"), "{}", second.text());
        let named = finish(run_in(&node, "train", &["true"]));
        assert!(named.stderr.contains("share the zone 'acme'"), "{}", named.stderr);
        assert_eq!(node.leases().unwrap().len(), 1);
    }

    #[test]
    fn the_audit_log_has_each_workload_zones_start_and_end() {
        let node = node();
        if can(&node, "the_audit_log_has_each_workload_zones_start_and_end") {
            finish(run_in(&node, "train", &["true"])).ok().unwrap();
            all_is_gone(&node, &[]);
        }
        node.run("globex", "1Gi", "20", &["info"]).unwrap().ok().unwrap();
        let log = node.command(["audit", "export", "--format", "json"]).unwrap().ok().unwrap();
        let log: serde_json::Value = log.json().unwrap();
        let events = log["events"].as_array().unwrap();
        let of = |kind: &str, what: &str| {
            let all = events.iter().filter(|event| event["kind"] == kind);
            all.filter(|event| event["detail"]["kind"] == what).cloned().collect::<Vec<_>>()
        };
        let (started, ended) = (of("zone_start", "workload"), of("zone_end", "workload"));
        assert_eq!(started.len(), ended.len(), "{events:?}");
        let last = started.last().unwrap();
        assert_eq!(last["tenant"], "globex");
        assert_eq!(last["detail"]["name"], serde_json::Value::Null);
        assert!(last["detail"]["lease"].as_str().unwrap().starts_with("lease-"));
        assert_eq!(last["subject"], ended.last().unwrap()["subject"]);
        if started.len() == 2 {
            assert_eq!(started[0]["detail"]["name"], "train");
            assert_eq!(ended[0]["detail"]["name"], "train");
            assert_eq!(ended[0]["tenant"], "acme");
        }
        let workers = of("zone_start", "worker");
        assert_eq!(workers.last().unwrap()["tenant"], "globex", "{workers:?}");
        node.command(["audit", "verify"]).unwrap().ok().unwrap();
    }
}
