//! `gpu-zone run` behaves like the program that it runs, and its lease ends with it.

#[cfg(test)]
mod fake;

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::Command;
    use std::time::{Duration, Instant};

    use gpuzone_api::{AgentError, ErrorKind};
    use gpuzone_testkit::{Finished, Process, Role, Running};
    use rustix::process::{Pid, Signal, kill_process};

    use crate::fake::{Fake, LEASE};

    const LIMIT: Duration = Duration::from_secs(30);

    fn command(fake: &Fake, script: &str) -> Command {
        let words = ["run", "--tenant", "acme", "--memory", "1Gi", "--share", "10", "--"];
        let words: Vec<&str> = words.into_iter().chain(["bash", "-c", script]).collect();
        fake.cli(&words)
    }

    fn start(fake: &Fake, script: &str) -> Running {
        Running::start(command(fake, script)).unwrap()
    }

    /// Whether this process, and so what it starts, ignores a signal.
    fn is_ignored(signal: Signal) -> bool {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
        let ignored = u64::from_str_radix(ignored.trim(), 16).unwrap();
        ignored & (1 << (signal.as_raw() - 1)) != 0
    }

    fn program_of(fake: &Fake) -> u32 {
        let mut programs = Process::of(fake.folder()).into_iter();
        programs.find(|process| process.role == Role::Program).unwrap().pid
    }

    fn is_stopped(pid: u32) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        status.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
    }

    fn shell(fake: &Fake, script: &str) -> Finished {
        start(fake, script).finish(LIMIT).unwrap()
    }

    fn run(fake: &Fake, words: &[&str]) -> Finished {
        Running::start(fake.cli(words)).unwrap().finish(LIMIT).unwrap()
    }

    fn send(running: &Running, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(running.pid()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    fn ended() -> String {
        format!("end {LEASE}")
    }

    #[test]
    fn output_environment_and_exit_code_are_the_programs() {
        let fake = Fake::start();
        let finished = shell(&fake, "echo out; echo err >&2; exit 7");
        assert_eq!(finished.code(), Some(7));
        assert_eq!((finished.stdout.as_str(), finished.stderr.as_str()), ("out\n", "err\n"));
        assert_eq!(shell(&fake, "kill -KILL $$").code(), Some(137));
        assert_eq!(shell(&fake, "kill -SEGV $$").code(), Some(139));
        let mut command = fake.cli(&[
            "run",
            "--tenant",
            "acme",
            "--",
            "sh",
            "-c",
            "echo $LD_LIBRARY_PATH $GPUZONE_SLOT",
        ]);
        command.env("LD_LIBRARY_PATH", "/mine");
        let environment = Running::start(command).unwrap().finish(LIMIT).unwrap();
        assert_eq!(environment.stdout, "/the/shim:/mine /the/slot\n");
        let asked = fake.asked();
        assert_eq!(asked[0], "create acme Some(1073741824) Some(10) 1 None bash");
        assert_eq!(asked[6], "create acme None None 1 None sh");
        assert_eq!(asked.iter().filter(|asked| **asked == ended()).count(), 4);
    }

    #[test]
    fn signals_reach_the_program() {
        let fake = Fake::start();
        for (signal, name) in [
            (Signal::TERM, "TERM"),
            (Signal::INT, "INT"),
            (Signal::HUP, "HUP"),
            (Signal::USR1, "USR1"),
        ] {
            if is_ignored(signal) {
                // A shell cannot trap what was ignored when it started.
                eprintln!("skipped: {name} is ignored where these tests run, as under nohup");
                continue;
            }
            let trap = format!("trap 'echo got {name}; exit 9' {name}");
            let mut running =
                start(&fake, &format!("{trap}; echo ready; while :; do sleep 0.02; done"));
            running.wait_for("ready", LIMIT).unwrap();
            send(&running, signal);
            let finished = running.finish(LIMIT).unwrap();
            assert_eq!(
                (finished.code(), finished.stdout.contains("got")),
                (Some(9), true),
                "{name}"
            );
        }
        let mut running = start(&fake, "echo ready; exec sleep 60");
        running.wait_for("ready", LIMIT).unwrap();
        send(&running, Signal::TERM);
        assert_eq!(running.finish(LIMIT).unwrap().code(), Some(128 + 15));
        assert_eq!(fake.asked().last(), Some(&ended()));
    }

    #[test]
    fn stopping_stops_both_and_continuing_wakes_both() {
        let fake = Fake::start();
        let mut command = command(&fake, "echo ready; exec sleep 1");
        // As a shell with job control does it. In the tests' own group, which may have no shell
        // that looks after it, the kernel would stop nothing.
        command.process_group(0);
        let mut running = Running::start(command).unwrap();
        running.wait_for("ready", LIMIT).unwrap();
        send(&running, Signal::TSTP);
        let program = program_of(&fake);
        let end = Instant::now() + LIMIT;
        while !(is_stopped(running.pid()) && is_stopped(program)) {
            assert!(Instant::now() < end, "they do not stop");
            std::thread::sleep(Duration::from_millis(5));
        }
        send(&running, Signal::CONT);
        assert_eq!(running.finish(LIMIT).unwrap().code(), Some(0));
    }

    #[test]
    fn a_program_that_does_not_stop_is_not_left_alone() {
        let fake = Fake::start();
        let script = "trap 'echo no' TSTP; echo ready; for i in 1 2 3 4 5; do sleep 0.05; done";
        let mut running = start(&fake, script);
        running.wait_for("ready", LIMIT).unwrap();
        send(&running, Signal::TSTP);
        let finished = running.finish(LIMIT).unwrap();
        assert_eq!((finished.code(), finished.stdout.as_str()), (Some(0), "ready\nno\n"));
    }

    #[test]
    fn a_killed_holder_takes_its_program_along() {
        let fake = Fake::start();
        let mut running = start(&fake, "echo ready; exec sleep 61");
        running.wait_for("ready", LIMIT).unwrap();
        send(&running, Signal::KILL);
        assert_eq!(running.finish(LIMIT).unwrap().signal(), Some(9));
        let end = Instant::now() + LIMIT;
        while !Process::of(fake.folder()).is_empty() {
            assert!(Instant::now() < end, "{:?}", Process::of(fake.folder()));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_lease_that_is_being_made_can_be_interrupted() {
        let fake = Fake::start();
        fake.never_answer();
        let running = start(&fake, "echo started");
        fake.wait_for("create acme Some(1073741824) Some(10) 1 None bash");
        send(&running, Signal::INT);
        let finished = running.finish(LIMIT).unwrap();
        assert_eq!((finished.code(), finished.stdout.as_str()), (Some(130), ""));
    }

    #[test]
    fn a_program_that_cannot_run_costs_no_lease() {
        let fake = Fake::start();
        let words = |program| ["run", "--tenant", "acme", "--", program];
        for (program, code) in [("no-such-program", 127), ("/etc/passwd", 126), ("/", 126)] {
            let finished = run(&fake, &words(program));
            assert_eq!(finished.code(), Some(code), "{}", finished.text());
            assert!(finished.stderr.contains(program), "{}", finished.stderr);
        }
        assert_eq!(fake.asked(), Vec::<String>::new());
        let script = fake.folder().join("script");
        std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&script, mode).unwrap();
        let finished = run(&fake, &words(script.to_str().unwrap()));
        assert_eq!(finished.code(), Some(127), "{}", finished.text());
        assert_eq!(fake.asked().last(), Some(&ended()), "its lease was ended");
    }

    #[test]
    fn exit_codes_follow_the_kind_of_error() {
        let fake = Fake::start();
        for (kind, code) in [
            (ErrorKind::InvalidRequest, 64),
            (ErrorKind::NotFound, 66),
            (ErrorKind::Unavailable, 69),
            (ErrorKind::Internal, 70),
            (ErrorKind::NoRoom, 75),
            (ErrorKind::Driver, 76),
            (ErrorKind::Quota, 77),
        ] {
            fake.refuse(AgentError { kind, message: format!("because of {kind}") });
            let finished = run(&fake, &["run", "--tenant", "acme", "--", "true"]);
            assert_eq!(finished.code(), Some(code), "{}", finished.text());
            assert_eq!(finished.stderr, format!("error: because of {kind}\n"));
        }
        let words = ["run", "--format", "json", "--tenant", "acme", "--", "true"];
        let json: serde_json::Value = serde_json::from_str(&run(&fake, &words).stderr).unwrap();
        assert_eq!(json["error"]["kind"], "quota");
        assert_eq!(json["error"]["message"], "because of quota");
    }

    #[test]
    fn without_an_agent_nothing_starts() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Fake::start().cli(&["run", "--tenant", "acme", "--", "echo", "started"]);
        command.env("GPUZONE_RUN_DIR", folder.path());
        let finished = Running::start(command).unwrap().finish(LIMIT).unwrap();
        assert_eq!((finished.code(), finished.stdout.as_str()), (Some(69), ""));
        assert!(finished.stderr.contains("gpu-zone up"), "{}", finished.stderr);
    }

    #[test]
    fn a_listing_cannot_be_used_to_steer_a_terminal() {
        let fake = Fake::start();
        let listed = run(&fake, &["ps"]);
        assert!(listed.stdout.contains("evil") && !listed.stdout.contains('\u{1b}'), "{listed:?}");
        let json: serde_json::Value = run(&fake, &["ps", "--format", "json"]).json().unwrap();
        assert_eq!(json["leases"][0]["program"], "evil \u{1b}[2J");
        assert_eq!(run(&fake, &["ps", "--format", "csv"]).code(), Some(64));
    }
}
