//! What a hostile program tries in a sandbox, and that each attempt is denied.
#[cfg(test)]
mod support;

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use gpuzone_zone::Exit;
    use gpuzone_zone::sandbox::{
        Demand, Feature, Filter, Missing, Mount, Policy, Root, Spec, probe,
    };

    use crate::support::{denied, eventually, host_has, launcher, null, shell, spec, start};

    #[tokio::test]
    async fn a_program_runs_with_a_root_and_numbers_of_its_own() {
        if !host_has("a_program_runs_with_a_root_and_numbers_of_its_own", &Feature::ALL[..9]) {
            return;
        }
        let script = "ls /; ls /dev; cat /proc/sys/kernel/hostname; echo /proc/[0-9]*; \
                      cat /proc/net/dev | wc -l; grep -E 'CapEff|CapBnd|NoNewPrivs' /proc/self/status; \
                      echo x > /tmp/x && echo wrote";
        let (exit, said) = shell(spec(), script).await;
        assert_eq!(exit, Exit::Code(0), "{said}");
        let words: Vec<&str> = said.split_whitespace().collect();
        for absent in ["home", "root", "etc/shadow", "sys", "nvidia0", "kvm", "sda"] {
            assert!(!words.contains(&absent), "{absent}: {said}");
        }
        assert!(said.contains(&spec().zone), "{said}");
        assert!(said.contains("/proc/1 /proc/2"), "{said}");
        assert!(!said.contains("/proc/9"), "{said}");
        assert!(said.contains("CapEff:\t0000000000000000"), "{said}");
        assert!(said.contains("CapBnd:\t0000000000000000"), "{said}");
        assert!(said.contains("NoNewPrivs:\t1"), "{said}");
        assert!(said.contains("wrote"), "{said}");
    }

    #[tokio::test]
    async fn a_worker_names_its_threads_and_changes_nothing_else_in_proc() {
        const NAME: &str = "a_worker_names_its_threads_and_changes_nothing_else_in_proc";
        if !host_has(NAME, &[Feature::Mount, Feature::Seccomp]) {
            return;
        }
        let own = Mount { unmapped: true, ..Mount::write("/proc/self/task") };
        let mounts = spec().mounts.into_iter().chain([Mount::read("/proc"), own]).collect();
        let worker =
            Spec { own_pids: false, private: Vec::new(), filter: Filter::Worker, mounts, ..spec() };
        // A worker starts nothing, so that the shell does it all itself.
        let script = "echo driver > /proc/self/task/$$/comm; read name < /proc/$$/comm; echo $name; \
                      echo zone > /proc/sys/kernel/hostname; echo other > /proc/$$/comm; \
                      echo other > /proc/1/task/1/comm; read name < /proc/$$/comm; echo $name";
        let (exit, said) = shell(worker, script).await;
        let names: Vec<&str> = said.lines().filter(|line| !line.contains("cannot")).collect();
        assert_eq!((exit, names), (Exit::Code(0), vec!["driver", "driver"]), "{said}");
    }

    #[tokio::test]
    async fn files_of_the_host_are_out_of_reach() {
        if !host_has("files_of_the_host_are_out_of_reach", &[Feature::Mount, Feature::Proc]) {
            return;
        }
        let secret = tempfile::tempdir().unwrap();
        let path = secret.path().join("other-slot");
        std::fs::write(&path, "secret").unwrap();
        let read = format!("cat {}", path.display());
        let climb = format!("cat /tmp/../../../../{}", path.display());
        let through = format!("cat /proc/1/root{0} || cat /proc/1/cwd{0}", path.display());
        denied(
            spec(),
            &[
                &read,
                &climb,
                &through,
                "cat /etc/shadow",
                "echo x > /usr/x",
                "echo x > /x",
                "mknod /tmp/mem c 1 1 && cat /tmp/mem",
                "cat /dev/kmsg",
                "cat /proc/sys/kernel/hostname > /proc/sys/kernel/hostname",
            ],
        )
        .await;
    }

    #[tokio::test]
    async fn privileges_cannot_be_had() {
        if !host_has("privileges_cannot_be_had", &[Feature::User, Feature::Mount, Feature::Pid]) {
            return;
        }
        denied(
            spec(),
            &[
                "unshare -Ur true",
                "unshare -m true",
                "mount -t tmpfs none /tmp",
                "nsenter -t 1 -m true",
                "chroot /tmp",
                "hostname other",
                "perl -e 'exit(syscall(101, 16, 1, 0, 0) == 0 ? 0 : 1)'", // ptrace
                "perl -e 'exit(syscall(321, 0, 0, 0) == -1 && $!{EPERM} ? 1 : 0)'", // bpf
                "perl -e 'exit(syscall(425, 1, 0) == -1 && $!{EPERM} ? 1 : 0)'", // io_uring_setup
            ],
        )
        .await;
    }

    #[tokio::test]
    async fn nobody_outside_is_seen_or_signalled() {
        if !host_has("nobody_outside_is_seen_or_signalled", &[Feature::Pid, Feature::Proc]) {
            return;
        }
        let own = format!("kill -0 {}", std::process::id());
        denied(spec(), &[&own, "ps ax | grep -v grep | grep -q sandbox--probe"]).await;
    }

    #[tokio::test]
    async fn the_network_is_its_own_unless_it_is_shared() {
        if !host_has("the_network_is_its_own_unless_it_is_shared", &[Feature::Net, Feature::Proc]) {
            return;
        }
        let lines = "tail -n +3 /proc/net/dev | wc -l";
        let (_, own) = shell(spec(), lines).await;
        assert_eq!(own.trim(), "1", "the loopback device only");
        let (_, shared) = shell(Spec { network: true, ..spec() }, lines).await;
        let host = std::fs::read_to_string("/proc/net/dev").unwrap().lines().count() - 2;
        assert_eq!(shared.trim(), host.to_string());
    }

    #[tokio::test]
    async fn descriptors_are_those_that_were_handed_over() {
        if !host_has("descriptors_are_those_that_were_handed_over", &[Feature::Proc]) {
            return;
        }
        let leak = rustix::io::fcntl_dupfd_cloexec(null(), 70).unwrap();
        rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
        // `ls` itself holds one more: the folder that it lists.
        let (_, said) = shell(spec(), "exec ls /proc/self/fd").await;
        let numbers: Vec<&str> = said.split_whitespace().collect();
        assert_eq!(numbers, ["0", "1", "2", "3"], "{said}");
    }

    #[tokio::test]
    async fn the_zone_ends_with_its_launcher_and_with_its_program() {
        if !host_has("the_zone_ends_with_its_launcher_and_with_its_program", &[Feature::Pid]) {
            return;
        }
        let mark = format!("86{}", std::process::id());
        let is_alive = || {
            let all = std::fs::read_dir("/proc").unwrap().flatten();
            all.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
                .any(|line| line == format!("sleep\0{mark}\0").as_bytes())
        };
        let out = tempfile::tempfile().unwrap();
        let script = format!("setsid sleep {mark} & while :; do wait; done");
        let (process, _) = start(spec(), "/bin/sh", &["-c", &script], &out).unwrap();
        assert!(eventually(is_alive));
        assert_eq!(process.end(None).await.unwrap(), Exit::Signal(9));
        assert!(eventually(|| !is_alive()), "killed with the launcher");
        let script = format!("setsid sleep {mark} & exit 7");
        let (exit, _) = shell(spec(), &script).await;
        assert_eq!(exit, Exit::Code(7));
        assert!(eventually(|| !is_alive()), "ended with the program");
        let (exit, _) = shell(spec(), "kill -SEGV $$").await;
        assert_eq!(exit, Exit::Code(128 + 11));
    }

    #[tokio::test]
    async fn signals_reach_the_program() {
        if !host_has("signals_reach_the_program", &[Feature::Pid]) {
            return;
        }
        let mut out = tempfile::tempfile().unwrap();
        let script = "trap 'echo got; exit 3' TERM; echo ready; while :; do sleep 0.01; done";
        let (process, _) = start(spec(), "/bin/sh", &["-c", script], &out).unwrap();
        assert!(eventually(|| out.metadata().unwrap().len() > 0));
        process.signal(rustix::process::Signal::TERM).unwrap();
        assert_eq!(process.exited().await.unwrap(), Exit::Code(3));
        out.rewind().unwrap();
        let mut said = String::new();
        out.read_to_string(&mut said).unwrap();
        assert_eq!(said, "ready\ngot\n");
    }

    #[tokio::test]
    async fn the_hosts_files_can_be_shown_without_being_given() {
        let test = "the_hosts_files_can_be_shown_without_being_given";
        if !host_has(test, &[Feature::Mount, Feature::Proc]) {
            return;
        }
        let work = tempfile::tempdir().unwrap();
        let hidden = tempfile::tempdir_in("/var/tmp").unwrap();
        std::fs::write(hidden.path().join("secret"), "").unwrap();
        std::fs::write(work.path().join("own"), "").unwrap();
        let shown = Spec {
            root: Root::Host,
            mounts: vec![Mount::write(work.path())],
            hidden: vec![hidden.path().to_owned()],
            directory: work.path().to_owned(),
            ..spec()
        };
        let script = "cat own && echo x > new && ls /usr >/dev/null && echo fine";
        let (exit, said) = shell(shown.clone(), script).await;
        assert_eq!((exit, said.as_str()), (Exit::Code(0), "fine\n"));
        assert!(work.path().join("new").exists());
        let secret = format!("ls {}/secret", hidden.path().display());
        denied(shown, &[&secret, "touch /usr/x", "touch /etc/x", "ls /dev/nvidia0"]).await;
    }

    #[test]
    fn what_is_required_and_missing_is_refused_by_name() {
        let out = tempfile::tempfile().unwrap();
        let missing = start(
            Spec { mounts: vec![Mount::read("/nowhere/lib")], ..spec() },
            "/bin/true",
            &[],
            &out,
        );
        let error = missing.unwrap_err().to_string();
        assert!(error.contains("/nowhere/lib"), "{error}");
        let error = start(spec(), "/nowhere/program", &[], &out).unwrap_err().to_string();
        assert!(error.contains("/nowhere/program"), "{error}");
        let policy = Policy { default: Demand::Require, ..Policy::default() };
        let strict = Spec { policy, ..spec() };
        match start(strict, "/bin/true", &[], &out) {
            // What a probe misses and this zone does not ask for stays unnoticed.
            Ok((_, missing)) => assert_eq!(missing, []),
            Err(error) => {
                let (missing, error) = (probe(&launcher()).unwrap(), error.to_string());
                let names = |missing: &Missing| error.contains(missing.feature.as_str());
                assert!(missing.iter().any(names), "{error}");
            }
        }
    }
}
