use std::collections::BTreeMap;

use super::*;
use crate::patience::at_last;

/// A tree that looks like the kernel's and keeps every write, in the order of writing.
struct Tree(tempfile::TempDir);

/// Each file of a group that the tests' kernel has.
const FILES: [&str; 13] = [
    "cgroup.procs",
    "cgroup.subtree_control",
    "cpu.max",
    "cpu.shares",
    "cpu.weight",
    "dmem.max",
    "memory.max",
    "memory.oom.group",
    "pids.max",
    "tasks",
    "cpu.cfs_period_us",
    "cpu.cfs_quota_us",
    "memory.limit_in_bytes",
];

fn create(path: &Path) -> io::Result<()> {
    fs::create_dir(path)?;
    FILES.iter().try_for_each(|file| fs::write(path.join(file), ""))
}

impl Tree {
    fn with(groups: &[&str], passed_down: &[(&str, &str)]) -> Self {
        let tree = tempfile::tempdir().unwrap();
        for group in groups {
            create(&tree.path().join(group)).unwrap();
        }
        for (group, controllers) in passed_down {
            let file = tree.path().join(group).join("cgroup.subtree_control");
            fs::write(file, format!("{controllers}\n")).unwrap();
        }
        Self(tree)
    }

    fn unified(groups: &[&str], passed_down: &[(&str, &str)]) -> Self {
        let tree = Self::with(groups, passed_down);
        fs::write(tree.0.path().join("cgroup.controllers"), "cpu memory pids dmem\n").unwrap();
        tree
    }

    fn make(&self, own: &str, limits: &Limits) -> (Groups, Vec<Unset>) {
        let name = "gpu-zone-test-7".to_owned();
        Site { mounted: self.0.path(), own, name, create: &create }.make(limits)
    }

    fn written(&self, file: &str) -> String {
        fs::read_to_string(self.0.path().join(file)).unwrap()
    }
}

fn limits() -> Limits {
    Limits {
        memory: Some(1 << 30),
        pids: Some(100),
        cpu: Some(150),
        cpu_weight: Some(100),
        device_memory: BTreeMap::from([("drm/0000:03:00.0/vram0".to_owned(), 1 << 20)]),
        ..Limits::default()
    }
}

fn features(unset: &[Unset]) -> Vec<Feature> {
    unset.iter().map(|(feature, _)| *feature).collect()
}

#[test]
fn a_name_is_a_file_name_and_a_host_name() {
    for good in ["a", "lease-0193", "A_b"] {
        assert!(is_name(good), "{good}");
    }
    for bad in ["", "../x", "a/b", "a.b", "ü", &"x".repeat(65)] {
        assert!(!is_name(bad), "{bad}");
    }
}

#[test]
fn the_own_group_is_found_in_both_versions() {
    let own = "4:memory:/a/b\n1:cpu,cpuacct:/c\n0::/d\n";
    assert_eq!(path_of(own, "memory"), Some("/a/b"));
    assert_eq!(path_of(own, "cpu"), Some("/c"));
    assert_eq!(path_of(own, ""), Some("/d"));
    assert_eq!(path_of(own, "pids"), None);
    let inside = Path::new("/sys/fs/cgroup/x/gpu-zone-a/y");
    assert_eq!(outside_of_zones(inside), Path::new("/sys/fs/cgroup/x"));
}

#[test]
fn what_is_not_there_is_named() {
    let nowhere = Tree::with(&[], &[]);
    let (groups, unset) = nowhere.make("", &limits());
    assert!(groups.is_empty());
    assert_eq!(features(&unset), [Feature::Memory, Feature::Pids, Feature::Cpu, Feature::Dmem]);
    assert!(nowhere.make("", &Limits::default()).1.is_empty());
}

#[test]
fn version_2_gets_every_limit_in_one_group_before_anybody_joins() {
    let tree = Tree::unified(&["a", "a/own"], &[("a", "cpu memory pids dmem")]);
    let (groups, unset) = tree.make("0::/a/own\n", &limits());
    assert_eq!(unset, []);
    let group = "a/gpu-zone-test-7";
    for (file, written) in [
        ("memory.max", "1073741824\n"),
        ("memory.oom.group", "1\n"),
        ("pids.max", "100\n"),
        ("cpu.weight", "100\n"),
        ("cpu.max", "150000 100000\n"),
        ("dmem.max", "drm/0000:03:00.0/vram0 1048576\n"),
        ("cgroup.procs", ""),
    ] {
        assert_eq!(tree.written(&format!("{group}/{file}")), written, "{file}");
    }
    assert_eq!(groups.join(), []);
    assert_eq!(tree.written(&format!("{group}/cgroup.procs")), "0\n");
    // A kernel without swap has no such file, and none was made.
    assert!(!tree.0.path().join(group).join("memory.swap.max").exists());
}

#[test]
fn version_2_turns_controllers_on_where_it_may() {
    let tree = Tree::unified(&["a", "a/own"], &[]);
    let (_, unset) = tree.make("0::/a/own\n", &limits());
    assert_eq!(unset, []);
    assert_eq!(tree.written("a/cgroup.subtree_control"), "+memory\n+pids\n+cpu\n+dmem\n");
}

#[test]
fn version_2_names_what_is_not_delegated_and_still_has_a_group_to_end() {
    let tree = Tree::unified(&["a", "a/own"], &[]);
    for group in ["a", "a/own"] {
        // A file that cannot be written, whoever tries.
        let file = tree.0.path().join(group).join("cgroup.subtree_control");
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
    }
    let (groups, unset) = tree.make("0::/a/own\n", &limits());
    assert_eq!(features(&unset), [Feature::Memory, Feature::Pids, Feature::Cpu, Feature::Dmem]);
    assert_eq!(groups.join(), []);
    assert_eq!(tree.written("a/gpu-zone-test-7/cgroup.procs"), "0\n");
    assert_eq!(tree.written("a/gpu-zone-test-7/memory.max"), "");
}

#[test]
fn version_1_gets_a_group_for_each_controller() {
    let tree = Tree::with(&["memory", "memory/x", "pids", "cpu"], &[]);
    let own = "4:memory:/x\n3:pids:/\n2:cpu:/gpu-zone-other-3\n";
    let (groups, unset) = tree.make(own, &limits());
    assert_eq!(features(&unset), [Feature::Dmem]);
    assert_eq!(groups.join(), []);
    for (file, written) in [
        ("memory/x/gpu-zone-test-7/memory.limit_in_bytes", "1073741824\n"),
        ("pids/gpu-zone-test-7/pids.max", "100\n"),
        ("cpu/gpu-zone-test-7/cpu.shares", "1024\n"),
        ("cpu/gpu-zone-test-7/cpu.cfs_period_us", "100000\n"),
        ("cpu/gpu-zone-test-7/cpu.cfs_quota_us", "150000\n"),
        ("cpu/gpu-zone-test-7/tasks", "0\n"),
        ("pids/gpu-zone-test-7/cgroup.procs", ""),
    ] {
        assert_eq!(tree.written(file), written, "{file}");
    }
}

#[test]
fn a_group_that_is_held_is_not_swept() {
    let tree = tempfile::tempdir().unwrap();
    let path = tree.path().join("gpu-zone-a-1");
    fs::create_dir(&path).unwrap();
    let held = fs::File::open(&path).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockShared).unwrap();
    fs::create_dir(tree.path().join("gpu-zone-b-2")).unwrap();
    fs::create_dir(tree.path().join("else")).unwrap();
    group::sweep(tree.path());
    assert!(path.exists() && tree.path().join("else").exists());
    assert!(!tree.path().join("gpu-zone-b-2").exists());
    drop(held);
    at_last(|| {
        group::sweep(tree.path());
        (!path.exists()).then_some(())
    });
}
