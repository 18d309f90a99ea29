//! What a zone may have of the host, and that what it had is given back.
#[cfg(test)]
mod support;

#[cfg(test)]
mod tests {
    use gpuzone_zone::Exit;
    use gpuzone_zone::sandbox::{Feature, Limits, Spec};

    use crate::support::{begun, descendants, eventually, groups_of, host_has, shell, spec};

    #[tokio::test]
    async fn a_limit_on_processes_holds() {
        if !host_has("a_limit_on_processes_holds", &[Feature::Pids, Feature::Pid]) {
            return;
        }
        let limits = Limits { pids: Some(16), ..Limits::default() };
        let script = "i=0; while [ $i -lt 40 ]; do sleep 1 & i=$((i+1)); done; echo all";
        let (_, said) = shell(Spec { limits, ..spec() }, script).await;
        assert!(!said.contains("all"), "{said}");
    }

    #[tokio::test]
    async fn a_limit_on_memory_holds() {
        if !host_has("a_limit_on_memory_holds", &[Feature::Memory, Feature::Pid]) {
            return;
        }
        let limits = Limits { memory: Some(64 << 20), ..Limits::default() };
        let script = "x=x; i=0; while [ $i -lt 28 ]; do x=$x$x; i=$((i+1)); done; echo all";
        let (_, said) = shell(Spec { limits, ..spec() }, script).await;
        assert!(!said.contains("all"), "{said}");
    }

    #[tokio::test]
    async fn a_fork_bomb_hits_its_own_zones_limit_and_ends_with_it() {
        let test = "a_fork_bomb_hits_its_own_zones_limit_and_ends_with_it";
        if !host_has(test, &[Feature::Pids, Feature::Pid]) {
            return;
        }
        let limits = Limits { pids: Some(32), ..Limits::default() };
        let bomb = begun(Spec { limits, ..spec() }, "b() { b | b & }; b; while :; do :; done");
        let groups = groups_of(bomb.pid());
        let counted = || {
            let events = groups
                .iter()
                .filter_map(|group| std::fs::read_to_string(group.join("pids.events")).ok());
            events.into_iter().any(|events| !events.trim_end().ends_with("max 0"))
        };
        assert!(eventually(counted), "the limit was never hit: {groups:?}");
        let most = groups.iter().filter_map(|group| {
            std::fs::read_to_string(group.join("pids.current")).ok()?.trim().parse::<u64>().ok()
        });
        assert!(most.max().unwrap() <= 32);
        let (exit, said) = shell(spec(), "sleep 0 & wait; echo a neighbour forks").await;
        assert_eq!((exit, said.as_str()), (Exit::Code(0), "a neighbour forks\n"));
        let launcher = bomb.pid();
        assert_eq!(bomb.end(None).await.unwrap(), Exit::Signal(9));
        assert!(eventually(|| groups_of(launcher).is_empty()), "{:?}", groups_of(launcher));
    }

    #[tokio::test]
    async fn a_memory_bomb_ends_in_its_own_zone() {
        if !host_has("a_memory_bomb_ends_in_its_own_zone", &[Feature::Memory, Feature::Pid]) {
            return;
        }
        let neighbour = begun(spec(), "while :; do sleep 0.01; done");
        let limits = Limits { memory: Some(32 << 20), ..Limits::default() };
        let bomb = "sh -c 'x=x; while :; do x=$x$x; done'; echo $?";
        let (_, said) = shell(Spec { limits: limits.clone(), ..spec() }, bomb).await;
        assert!(said.is_empty() || said.trim_end().ends_with("137"), "{said}");
        // What is in the private folders is memory, too.
        let fill = "cat /dev/zero > /tmp/x; echo all";
        let (_, said) = shell(Spec { limits, ..spec() }, fill).await;
        assert!(!said.contains("No space"), "{said}");
        assert!(!neighbour.is_gone().unwrap());
        neighbour.end(None).await.unwrap();
    }

    #[tokio::test]
    async fn private_folders_are_full_at_their_limit_together() {
        let test = "private_folders_are_full_at_their_limit_together";
        if !host_has(test, &[Feature::Mount, Feature::Pid]) {
            return;
        }
        let limits = Limits { scratch: Some(4 << 20), ..Limits::default() };
        let private = vec!["/tmp".into(), "/run".into()];
        let fill = "head -c 3145728 /dev/zero > /tmp/x && echo three; \
                    head -c 3145728 /dev/zero > /dev/shm/x || echo full; \
                    head -c 1048576 /dev/zero > /run/x || echo full; \
                    rm /tmp/x; head -c 3145728 /dev/zero > /run/x && echo again";
        let (exit, said) = shell(Spec { limits, private, ..spec() }, fill).await;
        assert_eq!(exit, Exit::Code(0), "{said}");
        let words: Vec<&str> = said.lines().filter(|line| !line.contains(' ')).collect();
        assert_eq!(words, ["three", "full", "full", "again"], "{said}");
    }

    #[tokio::test]
    async fn no_group_outlives_its_zone_however_that_ends() {
        if !host_has("no_group_outlives_its_zone_however_that_ends", &[Feature::Pids]) {
            return;
        }
        let limited = || {
            let limits = Limits { pids: Some(64), memory: Some(1 << 30), ..Limits::default() };
            Spec { limits, ..spec() }
        };
        let ended = begun(limited(), "read -r nothing; exit 3");
        let launcher = ended.pid();
        assert_eq!(ended.exited().await.unwrap(), Exit::Code(3));
        assert!(eventually(|| groups_of(launcher).is_empty()), "{:?}", groups_of(launcher));
        for own_pids in [true, false] {
            let killed = begun(Spec { own_pids, ..limited() }, "sleep 1000 & wait");
            let launcher = killed.pid();
            assert!(!groups_of(launcher).is_empty());
            killed.end(None).await.unwrap();
            let left = || groups_of(launcher);
            assert!(eventually(|| left().is_empty()), "{own_pids}: {:?}", left());
        }
        // A janitor that is killed itself: the next zone sweeps.
        let zone = begun(limited(), "sleep 1000 & wait");
        let launcher = zone.pid();
        for pid in descendants(launcher) {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            if name.trim() == "zone-janitor" {
                let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).unwrap();
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            }
        }
        zone.end(None).await.unwrap();
        assert!(!groups_of(launcher).is_empty());
        let swept = || {
            // Its last processes may take a moment to go.
            let next = begun(limited(), "exit 0");
            let _ = next.is_gone();
            groups_of(launcher).is_empty()
        };
        assert!(eventually(swept), "{:?}", groups_of(launcher));
    }
}
