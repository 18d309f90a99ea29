//! Real sandboxes whose owner is killed with SIGKILL, in every state of a zone: the next owner
//! keeps what ran and ends the rest, and nothing is left that nobody owns.
#[cfg(test)]
mod support;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::{BufRead, BufReader};
    use std::os::unix::fs::PermissionsExt;
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Stdio};
    use std::time::Duration;

    use gpuzone_zone::sandbox::{Launch, Mount, Order, Sandboxes, Spec};
    use gpuzone_zone::{Zone, ZoneState, Zones};

    use crate::support::{eventually, launcher, null, spec};

    const FOLDER: &str = "GPUZONE_TEST_OWNER_FOLDER";
    const STATE: &str = "GPUZONE_TEST_OWNER_STATE";

    /// A zone that runs `script`; `own_pids` as for a workload, without as for a worker.
    fn order(launcher: PathBuf, script: &str, own_pids: bool, written: Option<&Path>) -> Order {
        let plain = spec();
        let spec = Spec {
            zone: String::new(),
            mounts: plain.mounts.iter().cloned().chain(written.map(Mount::write)).collect(),
            private: Vec::new(),
            own_pids,
            users: None,
            ..plain
        };
        let launch = Launch {
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
            environment: BTreeMap::from([("PATH".into(), "/usr/bin:/bin".into())]),
            stdin: null(),
            stdout: null(),
            stderr: null(),
            inherit: Vec::new(),
        };
        Order::Program { launcher, spec, launch }
    }

    /// The launcher, but it takes its time when it has its orders.
    fn slow_launcher(folder: &Path) -> PathBuf {
        let path = folder.join("slow");
        let launcher = launcher().display().to_string();
        std::fs::write(&path, format!("#!/bin/sh\nsleep 2\nexec {launcher} \"$@\"\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        path
    }

    /// Not a test of its own: the process that the tests below start and kill. It brings a zone
    /// to a state, says so, and waits.
    #[tokio::test]
    async fn owner() {
        let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
        let state = std::env::var(STATE).unwrap();
        let (zones, _) = Zones::open(Sandboxes, &folder.join("zones")).await.unwrap();
        let launcher = if state == "starting" { slow_launcher(&folder) } else { launcher() };
        let ready = folder.join("ready");
        let script = match state.as_str() {
            // It is asked to end, and does not.
            "ending" => {
                format!("trap '' TERM; : > {}; while :; do sleep 0.05; done", ready.display())
            }
            _ => "exec sleep 600".to_owned(),
        };
        let own_pids = std::env::var_os("GPUZONE_TEST_OWN_PIDS").is_some();
        let zone = zones.create("zone", order(launcher, &script, own_pids, Some(&folder))).unwrap();
        reach(&zone, &state, &ready).await;
        println!("{state}");
        std::future::pending().await
    }

    async fn reach(zone: &Zone<Sandboxes>, state: &str, ready: &Path) {
        let begin = |zone: Zone<Sandboxes>| async move { zone.start().await.map(drop) };
        match state {
            "made" => {}
            "starting" => drop(tokio::spawn(begin(zone.clone()))),
            "running" | "ending" => begin(zone.clone()).await.unwrap(),
            other => panic!("no state {other}"),
        }
        if state == "ending" {
            // Before that it would end at once.
            while !ready.exists() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let ending = zone.clone();
            tokio::spawn(async move { ending.end(Some(Duration::from_secs(600))).await });
        }
        while serde_json::to_value(zone.state()).unwrap() != state {
            assert_ne!(zone.state(), ZoneState::Ended, "it never was {state}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn spawn_owner(folder: &Path, state: &str, own_pids: bool) -> Child {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "tests::owner", "--nocapture"]);
        command.env(FOLDER, folder).env(STATE, state).stdout(Stdio::piped());
        if own_pids {
            command.env("GPUZONE_TEST_OWN_PIDS", "1");
        }
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let said = lines.map_while(Result::ok).any(|line| line.trim_end().ends_with(state));
        assert!(said, "the owner never got to '{state}'");
        child
    }

    /// Processes that stand for the zone, by the launcher's or the program's command line.
    fn left(folder: &Path) -> Option<u32> {
        let text = std::fs::read(folder.join("zones/zone.zone")).ok()?;
        let record: serde_json::Value = serde_json::from_slice(&text).ok()?;
        u32::try_from(record["process"]["pid"].as_u64()?).ok()
    }

    fn is_gone(pid: u32) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
    }

    fn children(pid: u32) -> Vec<u32> {
        let path = format!("/proc/{pid}/task/{pid}/children");
        let children = std::fs::read_to_string(path).unwrap_or_default();
        children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
    }

    async fn is_killed_in(state: &str, own_pids: bool) {
        let folder = tempfile::tempdir().unwrap();
        let mut owner = spawn_owner(folder.path(), state, own_pids);
        let pid = left(folder.path()).unwrap();
        assert!(!is_gone(pid), "{state}");
        let row: Vec<u32> = [vec![pid], children(pid)].concat();
        owner.kill().unwrap();
        owner.wait().unwrap();
        if state == "made" {
            assert!(eventually(|| is_gone(pid)), "what is held back ends with its owner");
        }
        let opened = Zones::open(Sandboxes, &folder.path().join("zones")).await.unwrap();
        let (zones, unreadable) = opened;
        assert!(unreadable.is_empty());
        let kept = zones.list();
        if state == "running" {
            let [zone] = &kept[..] else { panic!("{kept:?}") };
            assert_eq!((zone.state(), zone.process().pid), (ZoneState::Running, pid));
            assert!(zone.stats().unwrap().processes >= 1);
            zone.end(None).await.unwrap();
        }
        assert!(zones.list().is_empty(), "{state}");
        for pid in row {
            assert!(eventually(|| is_gone(pid)), "the zone is gone");
        }
        assert_eq!(left(folder.path()), None, "{state}");
    }

    #[tokio::test]
    async fn a_zone_outlives_no_owner_but_for_the_next() {
        for state in ["made", "starting", "running", "ending"] {
            for own_pids in [false, true] {
                is_killed_in(state, own_pids).await;
            }
        }
    }

    /// Killed at any moment on the way from nothing to nothing.
    #[tokio::test]
    async fn no_moment_is_a_bad_one_for_the_owners_death() {
        for step in 0..24 {
            let folder = tempfile::tempdir().unwrap();
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", "tests::owner", "--nocapture"]);
            command.env(FOLDER, folder.path()).env(STATE, "running").stdout(Stdio::null());
            let mut owner = command.spawn().unwrap();
            let zones = folder.path().join("zones");
            // Its start takes a few milliseconds; before that it has not even a folder.
            assert!(eventually(|| zones.is_dir()), "it starts");
            std::thread::sleep(Duration::from_micros(step * 400));
            let before = children(owner.id());
            owner.kill().unwrap();
            owner.wait().unwrap();
            let (zones, _) = Zones::open(Sandboxes, &zones).await.unwrap();
            for zone in zones.list() {
                assert!(before.is_empty() || before.contains(&zone.process().pid));
                zone.end(None).await.unwrap();
            }
            for pid in before {
                assert!(eventually(|| is_gone(pid)), "nothing of the zone is left");
            }
            assert_eq!(left(folder.path()), None);
        }
    }
}
