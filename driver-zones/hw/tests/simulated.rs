//! Discovery through the simulated library, and libraries that are none.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "this whole file is a test"
)]

mod child;

use std::path::{Path, PathBuf};
use std::process::Output;

use child::{LIBRARY, child, library};
use gpuzone_core::{GpuBacking, GpuUuid, Inventory, MemoryBytes, Xid};
use gpuzone_hw::{
    Condition, DeviceEvent, DiscoverError, EventsError, NvmlLibrary, OpenError, RecoveryAction,
    SysfsRoot, UseError,
};
use gpuzone_sim_device::{Config, SimulatedNode};

const NODE: &str = r#"
[[gpu]]
name = "Simulated A"
memory = "64Mi"
pci = "0001:3b:00.0"
numa_node = 1
nvlink_peers = [1]
mig_capable = true
[[gpu]]
name = "Simulated B"
memory = "32Mi"
compute_capability = "8.6"
"#;

fn in_child(name: &str, library: &Path, folder: &Path, config: &str) -> Output {
    child(name, library, folder, config).output().unwrap()
}

fn in_child_library() -> Option<PathBuf> {
    std::env::var_os(LIBRARY).map(PathBuf::from)
}

fn discover(library: &NvmlLibrary, backing: GpuBacking) -> Result<Inventory, DiscoverError> {
    library.inventory(&SysfsRoot::default(), backing).map(|found| found.inventory)
}

#[test]
fn child_discovers() {
    let Some(path) = in_child_library() else { return };
    let library = NvmlLibrary::open(&path).unwrap();
    assert!(library.driver_version().unwrap().contains("simulated"));
    let error = discover(&library, GpuBacking::Physical).unwrap_err();
    assert!(matches!(error, DiscoverError::UnexpectedlySimulated { .. }), "{error}");

    let inventory = discover(&library, GpuBacking::Simulated).unwrap();
    let [a, b] = inventory.gpus() else { panic!("two GPUs") };
    assert_eq!((a.name.as_str(), a.index, a.backing), ("Simulated A", 0, GpuBacking::Simulated));
    assert_eq!((a.pci.to_string().as_str(), a.numa_node), ("0001:3b:00.0", Some(1)));
    assert_eq!((a.memory, b.memory), (MemoryBytes::mib(64), MemoryBytes::mib(32)));
    assert_eq!(b.compute_capability.to_string(), "8.6");
    assert_eq!((a.mig_capable, b.mig_capable), (true, false));
    assert!(a.nvlink_peers.contains(&b.uuid) && b.nvlink_peers.contains(&a.uuid));

    let before = library.gpu_use(a.uuid).unwrap();
    assert_eq!((before.used, before.processes.as_slice()), (MemoryBytes::ZERO, [].as_slice()));
    let node = SimulatedNode::open(Config::from_env().unwrap()).unwrap();
    let user = node.gpus()[0].attach().unwrap();
    user.add_context().unwrap();
    user.allocate(3 << 20).unwrap();
    let now = library.gpu_use(a.uuid).unwrap();
    assert_eq!((now.used, now.processes.len()), (MemoryBytes::mib(3), 1));
    assert_eq!(now.processes[0].pid, std::process::id());
    assert_eq!(now.processes[0].used, Some(MemoryBytes::mib(3)));
    assert!(now.utilization_percent.is_some());
    let unknown = GpuUuid::from_bytes([7; 16]);
    assert!(matches!(library.gpu_use(unknown), Err(UseError::UnknownGpu(gpu)) if gpu == unknown));
    println!("child saw it all");
}

/// What a tester appends to a GPU's file.
fn goes_wrong(gpu: usize, what: &str) {
    let folder = Config::from_env().unwrap().state_dir;
    let path = folder.join(format!("gpu-{gpu}.faults"));
    let mut file = std::fs::File::options().append(true).open(path).unwrap();
    std::io::Write::write_all(&mut file, format!("{what}\n").as_bytes()).unwrap();
}

#[test]
fn child_is_told_what_goes_wrong() {
    let Some(path) = in_child_library() else { return };
    let library = NvmlLibrary::open(&path).unwrap();
    let inventory = discover(&library, GpuBacking::Simulated).unwrap();
    let [a, b] = [inventory.gpus()[0].uuid, inventory.gpus()[1].uuid];
    let well = Condition::Reached { remap_failed: false, action: None };
    assert_eq!((library.condition(a), library.condition(b)), (well.clone(), well.clone()));
    goes_wrong(0, "xid 13");
    let (of_a, of_b) = (library.events(a).unwrap(), library.events(b).unwrap());
    let long = std::time::Duration::from_secs(20);
    let none = std::time::Duration::from_millis(50);
    assert_eq!(of_a.next(none).unwrap(), None, "it happened before anybody asked");
    goes_wrong(0, "no line of ours\nxid 79");
    goes_wrong(1, "ecc");
    goes_wrong(1, "action 1");
    assert_eq!(of_a.next(long).unwrap(), Some(DeviceEvent::Xid(Xid::new(79))));
    assert_eq!(of_b.next(long).unwrap(), Some(DeviceEvent::UncorrectableEcc));
    assert_eq!(of_a.next(none).unwrap(), None);
    let asks = Condition::Reached { remap_failed: false, action: Some(RecoveryAction::Reset) };
    assert_eq!((library.condition(a), library.condition(b)), (well, asks));
    // One that comes while it is waited for.
    let late = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(none);
            goes_wrong(1, "xid 31");
        });
        of_b.next(long).unwrap()
    });
    assert_eq!(late, Some(DeviceEvent::Xid(Xid::new(31))));

    goes_wrong(0, "lost");
    goes_wrong(1, "remap-failed");
    assert_eq!(library.condition(a), Condition::Lost);
    assert!(matches!(library.condition(b), Condition::Reached { remap_failed: true, .. }));
    assert!(matches!(library.events(a), Err(EventsError::Lost(gpu)) if gpu == a));
    let found = library.inventory(&SysfsRoot::default(), GpuBacking::Simulated).unwrap();
    assert_eq!((found.inventory.gpus().len(), found.lost), (1, vec![0]));
    goes_wrong(0, "found");
    assert!(matches!(library.condition(a), Condition::Reached { .. }));
    println!("child was told");
}

#[test]
fn child_is_told_nothing() {
    let Some(path) = in_child_library() else { return };
    let library = NvmlLibrary::open(&path).unwrap();
    let inventory = discover(&library, GpuBacking::Simulated).unwrap();
    let gpu = inventory.gpus()[0].uuid;
    assert!(matches!(library.events(gpu), Err(EventsError::Unsupported(of)) if of == gpu));
    assert!(matches!(library.condition(gpu), Condition::Reached { .. }));
    println!("child was told so");
}

#[test]
fn what_goes_wrong_is_told_if_the_driver_tells_it() {
    let folder = tempfile::tempdir().unwrap();
    let library = library();
    for (name, config, said) in [
        ("child_is_told_what_goes_wrong", NODE.to_owned(), "child was told"),
        (
            "child_is_told_nothing",
            format!("{NODE}[fault]\nevents = \"unsupported\"\n"),
            "child was told so",
        ),
    ] {
        let output = in_child(name, &library, folder.path(), &config);
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(said), "{text}\n{errors}");
    }
}

#[test]
fn child_has_no_driver() {
    let Some(path) = in_child_library() else { return };
    let error = NvmlLibrary::open(&path).unwrap_err();
    assert!(matches!(error, OpenError::DriverNotLoaded(_)), "{error}");
    println!("child saw the error");
}

#[test]
fn the_simulated_node_is_discovered_and_said_to_be_simulated() {
    let folder = tempfile::tempdir().unwrap();
    let library = library();
    let output = in_child("child_discovers", &library, folder.path(), NODE);
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("child saw it all"), "{text}\n{errors}");
    let output = in_child("child_has_no_driver", &library, folder.path(), "nonsense = 1\n");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("child saw the error"), "{text}");
}

#[test]
fn libraries_that_are_none_are_told_apart() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("libnvidia-ml.so.1");
    let open = |path: &Path| NvmlLibrary::open(path).unwrap_err();

    assert!(matches!(open(&file), OpenError::Missing(path) if path == file));
    assert!(matches!(open(Path::new("libgpuzone-is-not-there.so")), OpenError::Missing(_)));
    std::fs::write(&file, "no library").unwrap();
    let error = open(&file);
    assert!(matches!(error, OpenError::NotALibrary { .. }), "{error}");
    assert!(error.to_string().contains("libnvidia-ml.so.1"), "{error}");
    assert!(matches!(open(folder.path()), OpenError::NotALibrary { .. }));
    let other = Path::new("libc.so.6");
    assert!(matches!(open(other), OpenError::NotNvml(path) if path == other));

    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o000)).unwrap();
    if std::fs::File::open(&file).is_ok() {
        println!("skipped: this user reads files whatever their permissions say");
    } else {
        assert!(matches!(open(&file), OpenError::Unreadable { .. }));
    }
}

#[test]
fn child_finds_instances() {
    let Some(path) = in_child_library() else { return };
    let library = NvmlLibrary::open(&path).unwrap();
    let found = library.inventory(&SysfsRoot::default(), GpuBacking::Simulated).unwrap();
    let [a, b] = found.inventory.gpus() else { panic!("two GPUs") };
    let mig = found.mig;
    assert_eq!(mig.gpus.iter().collect::<Vec<_>>(), [&a.uuid], "the other is not cut");
    let told: Vec<_> =
        mig.instances.iter().map(|i| (i.profile.as_str(), i.share.percent())).collect();
    assert_eq!(told, [("1g.8gb", 14), ("2g.16gb.me", 28)]);
    assert!(mig.instances.iter().all(|instance| instance.gpu == a.uuid));
    assert_eq!(mig.instances[0].memory, MemoryBytes::mib(8));
    // One that shares its GPU instance's memory with others keeps no tenants apart.
    let [out] = &mig.left_out[..] else { panic!("one is left out") };
    assert!(out.index == 2 && out.why.contains("shares that one's memory"), "{}", out.why);
    let node = SimulatedNode::open(Config::from_env().unwrap()).unwrap();
    let user = node.gpus()[0].instances()[1].attach().unwrap();
    user.add_context().unwrap();
    user.allocate(3 << 20).unwrap();
    for (gpu, used) in [(a.uuid, 3), (mig.instances[0].uuid, 0), (mig.instances[1].uuid, 3)] {
        let now = library.gpu_use(gpu).unwrap();
        assert_eq!((now.used, now.utilization_percent), (MemoryBytes::mib(used), None));
        assert_eq!(now.processes.len(), usize::from(used > 0));
    }
    assert!(library.gpu_use(b.uuid).unwrap().utilization_percent.is_some());
    println!("child saw it all");
}

#[test]
fn mig_instances_are_found_and_used() {
    let folder = tempfile::tempdir().unwrap();
    let mig = "mig_capable = true\nmig = [{ profile = \"1g.8gb\" }, { profile = \"2g.16gb+me\" }, \
               { profile = \"3g.24gb\", compute_slices = 1 }]";
    let config = NODE.replace("mig_capable = true", mig);
    let output = in_child("child_finds_instances", &library(), folder.path(), &config);
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("child saw it all"), "{text}{errors}");
}
