use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn slot(n: u16) -> SlotId {
    SlotId::new(n).unwrap()
}

fn pod(n: u8) -> PodUid {
    format!("pod-{n}").parse().unwrap()
}

#[test]
fn a_folder_is_one_pods_for_all_time() {
    let dir = tempfile::tempdir().unwrap();
    let slots = Slots::open(dir.path()).unwrap();
    assert!(matches!(slots.claim(slot(3), &pod(1)), Err(FolderError::NotHandedOut(_))));
    let first = slots.hand_out(slot(3), 100).unwrap();
    // An init container and the app container that takes its slot over.
    assert_eq!(slots.hand_out(slot(3), 200).unwrap(), first);
    assert_eq!(slots.claim(slot(3), &pod(1)).unwrap(), (first, true));
    assert_eq!(slots.claim(slot(3), &pod(1)).unwrap(), (first, false));
    let error = slots.claim(slot(3), &pod(2)).unwrap_err();
    assert!(error.to_string().contains("last handed to the pod pod-1"), "{error}");
    // The clock goes back; the number does not.
    let second = slots.hand_out(slot(3), 7).unwrap();
    assert!(second > first);
    assert_eq!(slots.claim(slot(3), &pod(2)).unwrap(), (second, true));
    assert!(matches!(slots.claim(slot(3), &pod(1)), Err(FolderError::AnotherPods { .. })));
    slots.unclaim(slot(3), second).unwrap();
    assert_eq!(slots.claim(slot(3), &pod(4)).unwrap(), (second, true));
    slots.remove(slot(3), first).unwrap();
    slots.remove(slot(3), first).unwrap();
    assert_eq!(slots.owned().unwrap(), [(slot(3), second, pod(4))]);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&slots.path(slot(3), second)), 0o755);
    assert_eq!(mode(&slots.slot_dir(slot(3))), 0o700);
}

#[test]
fn what_is_on_disk_is_known_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let slots = Slots::open(dir.path()).unwrap();
    let locked = Slots::open(dir.path()).unwrap_err();
    assert!(locked.to_string().contains("another device plugin"), "{locked}");
    let folder = slots.hand_out(slot(1), 1).unwrap();
    slots.claim(slot(1), &pod(1)).unwrap();
    drop(slots);
    let slots = Slots::open(dir.path()).unwrap();
    assert_eq!(slots.claim(slot(1), &pod(1)).unwrap(), (folder, false));
    // The folder of a slot whose mount is gone is still known to be taken.
    std::fs::remove_dir(slots.path(slot(1), folder)).unwrap();
    assert!(slots.hand_out(slot(1), 0).unwrap() > folder);
}

#[test]
fn a_folder_that_others_may_change_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("slots");
    drop(Slots::open(dir.path()).unwrap());
    for mode in [0o750, 0o702, 0o1777] {
        std::fs::set_permissions(&root, PermissionsExt::from_mode(mode)).unwrap();
        let said = Slots::open(dir.path()).unwrap_err().to_string();
        let parts = [format!("mode {mode:04o}"), "chmod 700".into(), root.display().to_string()];
        assert!(parts.iter().all(|part| said.contains(part)), "{said}");
    }
    std::fs::set_permissions(&root, PermissionsExt::from_mode(0o700)).unwrap();
    drop(Slots::open(dir.path()).unwrap());
    // Only root can give a folder away.
    if std::os::unix::fs::chown(&root, Some(12_345), None).is_ok() {
        let said = Slots::open(dir.path()).unwrap_err().to_string();
        assert!(said.contains("belongs to user 12345"), "{said}");
    }
}

/// A container may have started without PreStartContainer while we were not registered.
#[test]
fn what_may_have_been_seen_is_not_handed_out_again() {
    let dir = tempfile::tempdir().unwrap();
    let slots = Slots::open(dir.path()).unwrap();
    let first = slots.hand_out(slot(1), 1).unwrap();
    slots.registering(|_| true);
    // Its pod may still hold the slot.
    assert_eq!(slots.claim(slot(1), &pod(1)).unwrap(), (first, true));
    slots.unclaim(slot(1), first).unwrap();
    let second = slots.hand_out(slot(1), 1).unwrap();
    assert!(second > first && !slots.path(slot(1), first).exists());
}

#[test]
fn damage_lets_nothing_appear() {
    let dir = tempfile::tempdir().unwrap();
    let slots = Slots::open(dir.path()).unwrap();
    let folder = slots.hand_out(slot(1), 1).unwrap();
    for damage in [&b""[..], b"../../etc", b"\xff\xfe", b"pod-1\npod-2"] {
        std::fs::write(slots.owner_file(slot(1), folder), damage).unwrap();
        assert!(matches!(slots.claim(slot(1), &pod(1)), Err(FolderError::Unreadable(..))));
    }
    assert!(slots.hand_out(slot(1), 0).unwrap() > folder, "a fresh one is handed out");
    std::fs::write(dir.path().join("slots/slot-1/strange"), "").unwrap();
    std::fs::create_dir(dir.path().join("slots/elsewhere")).unwrap();
    assert_eq!(slots.owned().unwrap(), []);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the kubelet does: no folder that one pod was given is ever another's.
    #[test]
    fn no_folder_has_two_pods(steps in prop::collection::vec((0u8..3, 0u16..3, 0u8..6), 1..60)) {
        let dir = tempfile::tempdir().unwrap();
        let mut slots = Slots::open(dir.path()).unwrap();
        let mut owners: BTreeMap<(SlotId, SlotFolder), PodUid> = BTreeMap::new();
        for (step, (what, number, who)) in (0u64..).zip(steps) {
            let (slot, pod) = (slot(number), pod(who));
            match what {
                0 => {
                    let folder = slots.hand_out(slot, step % 4).unwrap();
                    prop_assert!(!owners.contains_key(&(slot, folder)), "handed out twice");
                    prop_assert!(slots.path(slot, folder).is_dir());
                }
                1 => if let Ok((folder, fresh)) = slots.claim(slot, &pod) {
                    let before = owners.insert((slot, folder), pod.clone());
                    prop_assert_eq!(before.is_none(), fresh);
                    prop_assert!(before.is_none_or(|before| before == pod));
                },
                _ => {
                    drop(slots);
                    slots = Slots::open(dir.path()).unwrap();
                }
            }
        }
    }
}
