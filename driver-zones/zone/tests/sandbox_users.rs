//! Zones' own users: what somebody who got out of a zone could do, which is nothing.
#[cfg(test)]
mod support;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use gpuzone_zone::Exit;
    use gpuzone_zone::sandbox::{Demand, Feature, Mount, Root, Spec};

    use crate::support::{begun, denied, descendants, eventually, host_has, shell, spec, status};

    const IDLE: &str = "while :; do sleep 0.01; done";

    /// The user of the zone's processes, seen from the host.
    fn user_of(launcher: u32) -> u32 {
        let numbers: Vec<u32> = descendants(launcher)
            .into_iter()
            .filter(|pid| status(*pid, "Name").is_some_and(|name| name == "sh"))
            .filter_map(|pid| status(pid, "Uid")?.split_whitespace().next()?.parse().ok())
            .collect();
        assert!(!numbers.is_empty());
        numbers[0]
    }

    fn may_raise_locked() -> bool {
        let limit = |hard: u64| format!("ulimit -H -l {hard}");
        let script = format!("{} && {}", limit(1 << 21), limit(1 << 20));
        Command::new("/bin/sh").args(["-c", &script]).status().unwrap().success()
    }

    fn shell_of(launcher: u32) -> u32 {
        let is_shell = |pid: &u32| status(*pid, "Name").is_some_and(|name| name == "sh");
        descendants(launcher).into_iter().find(is_shell).unwrap()
    }

    /// Whether a command succeeds for somebody with that number and nothing of a zone around.
    fn escaped(user: u32, script: &str) -> bool {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).uid(user).gid(user).stderr(std::process::Stdio::null());
        command.status().unwrap().success()
    }

    #[tokio::test]
    async fn who_gets_out_of_a_zone_is_nobody_where_root_started_it() {
        let test = "who_gets_out_of_a_zone_is_nobody_where_root_started_it";
        if !host_has(test, &[Feature::Users, Feature::Mount, Feature::Pid]) {
            return;
        }
        let (one, other) = (begun(spec(), IDLE), begun(spec(), IDLE));
        let (first, second) = (user_of(one.pid()), user_of(other.pid()));
        assert!(first >= 1 << 16 && second >= 1 << 16, "{first} {second}");
        assert!(first.abs_diff(second) >= 1 << 16, "{first} {second}");
        let secret = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
        std::fs::write(secret.path(), "secret").unwrap();
        let victim = shell_of(other.pid());
        // Its own processes it could signal, so what follows shows something.
        assert!(escaped(first, &format!("kill -0 {}", shell_of(one.pid()))));
        for attempt in [
            format!("kill -0 {victim}"),
            format!("kill -9 {victim}"),
            format!("perl -e 'exit(syscall(101, 16, {victim}, 0, 0) == 0 ? 0 : 1)'"), // ptrace
            format!("cat /proc/{victim}/environ"),
            format!("ls /proc/{victim}/root/"),
            format!("kill -0 {}", std::process::id()),
            format!("kill -0 {}", other.pid()),
            format!("cat {}", secret.path().display()),
            format!("echo x >> {}", secret.path().display()),
            "cat /etc/shadow".to_owned(),
            "ls /run/gpu-zone-users".to_owned(),
        ] {
            assert!(!escaped(first, &attempt), "{attempt}");
        }
        for zone in [one, other] {
            zone.end(None).await.unwrap();
        }
    }

    /// A node that is closed on the host is the zone's own in the zone; one that it is not handed is not
    /// there. Memory that is not moved is as much as was said.
    #[tokio::test]
    async fn a_device_that_only_root_may_open_is_opened_by_the_zone_that_is_handed_it() {
        let test = "a_device_that_only_root_may_open_is_opened_by_the_zone_that_is_handed_it";
        if !host_has(test, &[Feature::Users, Feature::Mount]) {
            return;
        }
        // Where devices are, as a zone's rules for files have it.
        let Ok(folder) = tempfile::tempdir_in("/dev") else {
            println!("skipped: {test}: nothing can be made in /dev here");
            return;
        };
        let node = folder.path().join("zero");
        let (mode, number) = (rustix::fs::Mode::RUSR, rustix::fs::makedev(1, 5));
        let kind = rustix::fs::FileType::CharacterDevice;
        if let Err(error) = rustix::fs::mknodat(rustix::fs::CWD, &node, kind, mode, number) {
            println!("skipped: {test}: no device node can be made here: {error}");
            return;
        }
        let mut wanted = Spec { devices: vec![node.clone()], ..spec() };
        // Only who may raise the limit can say so.
        let may = may_raise_locked();
        wanted.limits.locked = may.then_some(1 << 30);
        wanted.policy.features.insert(Feature::Users, Demand::Require);
        let read = format!(
            "head -c 3 {0} | wc -c; stat -c '%u %a' {0}; ulimit -l; ls /dev/shm | wc -l",
            node.display()
        );
        let (exit, said) = shell(wanted, &read).await;
        assert_eq!(exit, Exit::Code(0), "{said}");
        let said: Vec<&str> = said.split_whitespace().collect();
        assert_eq!((&said[..3], said[4]), (&["3", "0", "600"][..], "0"), "{said:?}");
        assert!(!may || said[3] == "1048576" || said[3] == "unlimited", "{said:?}");
    }

    #[tokio::test]
    async fn a_process_of_another_zone_is_not_reached_by_its_number() {
        let test = "a_process_of_another_zone_is_not_reached_by_its_number";
        if !host_has(test, &[Feature::Users, Feature::Landlock]) {
            return;
        }
        let other = begun(spec(), IDLE);
        let victim = shell_of(other.pid());
        // With the host's numbers, as a worker has them.
        let numbered = Spec { own_pids: false, ..spec() };
        let kill = format!("kill -9 {victim}");
        let trace = format!("perl -e 'exit(syscall(101, 16, {victim}, 0, 0) == 0 ? 0 : 1)'");
        denied(numbered, &[&kill, &trace]).await;
        assert!(!other.is_gone().unwrap());
        other.end(None).await.unwrap();
    }

    #[tokio::test]
    async fn files_that_are_handed_over_keep_their_owners() {
        let test = "files_that_are_handed_over_keep_their_owners";
        if !host_has(test, &[Feature::Users, Feature::Mount, Feature::Pid]) {
            return;
        }
        let closed = tempfile::tempdir_in("/var/tmp").unwrap();
        std::fs::write(closed.path().join("secret"), "").unwrap();
        let work = closed.path().join("a/work");
        std::fs::create_dir_all(&work).unwrap();
        std::fs::write(work.join("mine"), "read").unwrap();
        let mode = |path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode));
        mode(work.join("mine"), 0o600).unwrap();
        mode(closed.path().to_owned(), 0o700).unwrap();
        let shown = Spec {
            root: Root::Host,
            mounts: vec![Mount::write(&work)],
            directory: work.clone(),
            private: Vec::new(),
            ..spec()
        };
        let script = "cat mine && echo x > new && mkdir folder && stat -c %u new mine && id -u";
        let (exit, said) = shell(shown.clone(), script).await;
        assert_eq!((exit, said.as_str()), (Exit::Code(0), "read0\n0\n0\n"));
        assert_eq!(std::fs::metadata(work.join("new")).unwrap().uid(), 0);
        assert_eq!(std::fs::metadata(work.join("folder")).unwrap().uid(), 0);
        let secret = format!("ls {}/secret", closed.path().display());
        let shadow = "test -r /etc/shadow";
        let list = "ls /root";
        denied(shown, &[&secret, shadow, &format!("{list} | grep -q .")]).await;
    }

    #[tokio::test]
    async fn a_range_is_free_again_when_its_zone_was_killed() {
        let test = "a_range_is_free_again_when_its_zone_was_killed";
        if !host_has(test, &[Feature::Users, Feature::Pid]) {
            return;
        }
        let zone = begun(spec(), IDLE);
        let user = user_of(zone.pid());
        let claimed = || {
            let claims = std::fs::read_dir("/run/gpu-zone-users").unwrap().flatten();
            let name = format!("{user}-");
            claims.into_iter().any(|claim| claim.file_name().to_string_lossy().starts_with(&name))
        };
        assert!(claimed());
        zone.end(None).await.unwrap();
        assert!(eventually(|| !claimed()));
    }
}
