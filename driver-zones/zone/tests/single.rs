//! Zones of one program: what their owner writes down, and what is left when it is killed.
#[cfg(test)]
mod support;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use gpuzone_zone::sandbox::{Feature, Spec};
    use gpuzone_zone::{Exit, ZoneState, list, settle};

    use crate::support::written::{
        files, is_gone, janitors_of, kill, mounts, nothing_is_left, written,
    };
    use crate::support::{begun, descendants, eventually, groups_of, host_has, shell, start};

    const NEEDED: [Feature; 3] = [Feature::Mount, Feature::Pid, Feature::Proc];

    #[tokio::test]
    async fn a_zone_is_written_down_and_listed_while_it_lives() {
        if !host_has("a_zone_is_written_down_and_listed_while_it_lives", &NEEDED) {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let zone = begun(written(folder.path(), "one"), "exec sleep 600");
        let running = || list(folder.path()).unwrap()[0].state == ZoneState::Running;
        assert!(eventually(running));
        let listed = list(folder.path()).unwrap();
        let [one] = &listed[..] else { panic!("{listed:?}") };
        assert_eq!((one.name.as_str(), one.pid), ("one", zone.pid()));
        assert!(one.processes >= 3 && one.memory_bytes > 0, "{one:?}");
        // Nobody else's zone is settled while its owner lives, and nobody takes its name.
        assert_eq!(settle(folder.path()).unwrap(), Vec::<String>::new());
        let out = tempfile::tempfile().unwrap();
        let second = start(written(folder.path(), "one"), "/bin/true", &[], &out);
        assert!(second.unwrap_err().to_string().contains("there is a zone 'one' already"));
        let (launcher, row) = (zone.pid(), descendants(zone.pid()));
        zone.end(Some(Duration::from_secs(10))).await.unwrap();
        nothing_is_left(folder.path(), launcher, &row, "ended");
    }

    #[tokio::test]
    async fn the_exit_is_the_programs_and_no_record_stays() {
        if !host_has("the_exit_is_the_programs_and_no_record_stays", &NEEDED) {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        for code in [0, 7] {
            let (exit, _) = shell(written(folder.path(), "one"), &format!("exit {code}")).await;
            assert_eq!(exit, Exit::Code(code));
            assert_eq!(files(folder.path()), Vec::<String>::new());
        }
        let out = tempfile::tempfile().unwrap();
        let absent = start(written(folder.path(), "one"), "/bin/nothing", &[], &out);
        assert!(absent.unwrap_err().to_string().contains("/bin/nothing"));
        let nowhere = Spec { directory: "/nowhere".into(), ..written(folder.path(), "one") };
        assert!(start(nowhere, "/bin/true", &[], &out).is_err());
        assert!(eventually(|| files(folder.path()).is_empty()), "{:?}", files(folder.path()));
    }

    #[test]
    fn what_cannot_be_written_down_is_not_started() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let out = tempfile::tempfile().unwrap();
        let refused = start(written(&file, "one"), "/bin/echo", &["started"], &out);
        assert!(refused.unwrap_err().to_string().contains("cannot write down the zone"));
        let bare = Spec { own_pids: false, ..written(folder.path(), "one") };
        assert!(start(bare, "/bin/echo", &["started"], &out).is_err());
        assert_eq!(out.metadata().unwrap().len(), 0);
    }

    #[tokio::test]
    async fn whoever_of_a_zone_is_killed_nothing_of_it_is_left() {
        if !host_has("whoever_of_a_zone_is_killed_nothing_of_it_is_left", &NEEDED) {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let before = mounts();
        // The owner; its janitor and then the owner; both at once with nobody left to clean up.
        for (with_janitor, settled) in [(false, false), (true, true)] {
            let zone = begun(written(folder.path(), "one"), "setsid sleep 600 & exec sleep 600");
            let launcher = zone.pid();
            let row = descendants(launcher);
            assert!(!groups_of(launcher).is_empty() || !host_has("groups", &[Feature::Pids]));
            if with_janitor {
                janitors_of(launcher).into_iter().for_each(kill);
            }
            zone.end(None).await.unwrap();
            if settled {
                assert_eq!(files(folder.path()), ["one.zone"]);
                assert_eq!(list(folder.path()).unwrap(), []);
                assert!(eventually(|| row.iter().all(|pid| is_gone(*pid))));
                assert_eq!(settle(folder.path()).unwrap(), ["one"]);
            }
            nothing_is_left(folder.path(), launcher, &row, "killed");
        }
        assert_eq!(mounts(), before);
    }
}
