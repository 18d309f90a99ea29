//! MIG instances made and ended through the simulated GPU's NVML, by processes that are killed on the
//! way.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "this whole file is a test"
)]

mod child;

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use child::{LIBRARY, child, library};
use gpuzone_core::{GpuUuid, MemoryBytes};
use gpuzone_hw::actions::{ActionError, Devices, Places, Recovered, Recovery, Write, Writes};
use gpuzone_hw::{
    MigDriver, MigError, MigLayout, MigPlacement, MigStep, NvmlLibrary, ProcRoot, SysfsRoot,
};
use gpuzone_sim_device::{Config, SimulatedNode};

const FOLDER: &str = "GPUZONE_TEST_FOLDER";
const ORDER: &str = "GPUZONE_TEST_ORDER";

/// The first instance is of the configuration: somebody else's.
const NODE: &str = r#"
[[gpu]]
name = "Simulated A"
uuid = "GPU-00000000-0000-0000-0000-00000000000a"
memory = "80Gi"
pci = "0001:3b:00.0"
mig_capable = true
mig = [{ profile = "1g.10gb" }]
[[gpu]]
name = "Simulated B"
uuid = "GPU-00000000-0000-0000-0000-00000000000b"
memory = "80Gi"
nvlink_peers = [0]
mig_capable = true
[[gpu]]
name = "Simulated C"
uuid = "GPU-00000000-0000-0000-0000-00000000000c"
memory = "80Gi"
"#;

fn gpu(letter: char) -> GpuUuid {
    format!("GPU-00000000-0000-0000-0000-00000000000{letter}").parse().unwrap()
}

fn in_child(name: &str, library: &Path, folder: &Path, order: &str) -> Output {
    let mut child = child(name, library, folder, NODE);
    child.env(FOLDER, folder).env(ORDER, order).output().unwrap()
}

/// The driver, for a process that is killed before or after so many calls of it.
struct Driver {
    driver: MigDriver,
    calls: usize,
    before: Option<usize>,
    after: Option<usize>,
}

impl Driver {
    fn die_if(&self, at: Option<usize>) {
        if at == Some(self.calls) {
            let own = rustix::process::getpid();
            rustix::process::kill_process(own, rustix::process::Signal::KILL).unwrap();
        }
    }
}

impl Writes for Driver {
    fn write(&mut self, write: &Write) -> io::Result<()> {
        Err(io::Error::other(format!("{write:?} is no cut")))
    }

    fn layout(&mut self, gpu: GpuUuid) -> Result<MigLayout, MigError> {
        self.driver.layout(gpu)
    }

    fn cut(&mut self, step: &MigStep) -> Result<(), MigError> {
        self.die_if(self.before);
        let done = self.driver.cut(step);
        self.die_if(self.after);
        self.calls += 1;
        done
    }
}

/// In a child: the devices of its node, and what became of what was left open.
fn opened(before: Option<usize>, after: Option<usize>) -> (Devices<Driver>, Vec<Recovered>) {
    let folder = PathBuf::from(std::env::var_os(FOLDER).unwrap());
    let driver = MigDriver(std::env::var_os(LIBRARY).unwrap().into());
    let places = Places {
        sysfs: SysfsRoot(folder.join("sys")),
        proc: ProcRoot::default(),
        ..Places::default()
    };
    let driver = Driver { driver, calls: 0, before, after };
    Devices::open(places, &folder.join("devices"), driver).unwrap()
}

fn act(devices: &mut Devices<Driver>, what: &str) -> Result<(), ActionError> {
    let profile = "3g.40gb".parse().unwrap();
    match what {
        "make" => devices.make_instance(gpu('a'), &profile, 4, "acme").map(drop),
        _ => devices.end_instance(gpu('a'), 4, "acme"),
    }
}

fn layout(letter: char) -> MigLayout {
    MigDriver(std::env::var_os(LIBRARY).unwrap().into()).layout(gpu(letter)).unwrap()
}

/// Where instances are, and whether each is a device.
fn places(layout: &MigLayout) -> Vec<(u32, u32, bool)> {
    let place = |of: &gpuzone_hw::GpuInstance| {
        (of.placement.start, of.placement.size, of.is_whole() && of.computes[0].uuid.is_some())
    };
    layout.instances.iter().map(place).collect()
}

const OTHERS: (u32, u32, bool) = (0, 1, true);
const OURS: (u32, u32, bool) = (4, 4, true);

#[test]
fn child_dies() {
    let Ok(order) = std::env::var(ORDER) else { return };
    let words: Vec<&str> = order.split(' ').collect();
    let at = words.get(2).map(|number| number.parse().unwrap());
    let (before, after) = if words[1] == "before" { (at, None) } else { (None, at) };
    let (mut devices, recovered) = opened(before, after);
    assert!(recovered.is_empty());
    act(&mut devices, words[0]).unwrap();
    println!("child lives");
}

#[test]
fn child_goes_on() {
    let Ok(order) = std::env::var(ORDER) else { return };
    let (mut devices, recovered) = opened(None, None);
    assert!(recovered.iter().all(|of| !matches!(of.now, Recovery::Stuck(_))), "{recovered:?}");
    let now = places(&layout('a'));
    assert!(now == [OTHERS] || now == [OTHERS, OURS], "half done: {now:?}");
    let kept = devices.kept().len();
    assert_eq!(kept, now.len() - 1, "what is kept is there");
    act(&mut devices, &order).unwrap();
    let expected = if order == "make" { vec![OTHERS, OURS] } else { vec![OTHERS] };
    assert_eq!(places(&layout('a')), expected);
    println!("child saw it all");
}

#[test]
fn whoever_is_killed_between_two_calls_leaves_nothing_half_cut() {
    let library = library();
    for what in ["make", "end"] {
        for (call, moment) in [(0, "before"), (0, "after"), (1, "before"), (1, "after")] {
            let folder = tempfile::tempdir().unwrap();
            let at = format!("{what} {moment} {call}");
            if what == "end" {
                let made = in_child("child_dies", &library, folder.path(), "make never");
                let said = String::from_utf8_lossy(&made.stdout);
                assert!(said.contains("child lives"), "{said}");
            }
            let died = in_child("child_dies", &library, folder.path(), &at);
            assert_eq!(died.status.signal(), Some(9), "{at}: {died:?}");
            let next = in_child("child_goes_on", &library, folder.path(), what);
            let said = String::from_utf8_lossy(&next.stdout);
            let errors = String::from_utf8_lossy(&next.stderr);
            assert!(said.contains("child saw it all"), "{at}: {said}{errors}");
        }
    }
}

#[test]
fn child_looks_and_cuts() {
    if std::env::var(ORDER).is_err() {
        return;
    }
    let now = layout('a');
    let kind = |name: &str| now.kinds.iter().find(|kind| kind.name == name).unwrap();
    let starts = |name: &str| {
        let starts = kind(name).placements.iter().map(|place| place.start);
        starts.collect::<Vec<_>>()
    };
    let names: Vec<&str> = now.kinds.iter().map(|kind| kind.name.as_str()).collect();
    let all = ["1g.10gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb", "1g.10gb+me", "1g.20gb"];
    assert_eq!(names, all);
    // As NVIDIA's guide lists them for an H100 of 80 GB.
    assert_eq!((kind("1g.10gb").id, kind("3g.40gb").id, kind("7g.80gb").id), (19, 9, 0));
    assert_eq!((kind("3g.40gb").memory, kind("3g.40gb").most), (MemoryBytes::gib(40), 2));
    assert_eq!((starts("2g.20gb"), starts("1g.20gb")), (vec![0, 2, 4], vec![0, 2, 4, 6]));
    assert_eq!((starts("3g.40gb"), starts("4g.40gb")), (vec![0, 4], vec![0]));
    assert_eq!(kind("7g.80gb").placements, [MigPlacement { start: 0, size: 8 }]);
    assert!(now.enabled && places(&now) == [OTHERS]);
    let off = layout('b');
    assert!(!off.enabled && off.instances.is_empty() && off.kinds == now.kinds);

    let path = PathBuf::from(std::env::var_os(LIBRARY).unwrap());
    let library = NvmlLibrary::open(&path).unwrap();
    assert_eq!(library.mig_layout(gpu('c')).unwrap(), None);
    let links = library.links(gpu('b')).unwrap();
    assert_eq!(links.len(), 1);
    assert_eq!(links[0].remote.unwrap().to_string(), "0001:3b:00.0");

    let (mut devices, _) = opened(None, None);
    let say = |error: ActionError| error.to_string();
    let three = "3g.40gb".parse().unwrap();
    for (letter, part) in [('b', "not in MIG mode"), ('c', "has no MIG"), ('d', "not one of its")] {
        let said = say(devices.make_instance(gpu(letter), &three, 0, "acme").unwrap_err());
        assert!(said.contains(part), "{said}");
    }
    let said = say(devices.make_instance(gpu('a'), &three, 0, "acme").unwrap_err());
    assert!(said.contains("GPU instance 1 (1g.10gb) has memory slice 0"), "{said}");
    let made = devices.make_instance(gpu('a'), &three, 4, "acme").unwrap();
    let uuid = made.computes[0].uuid.unwrap();
    // The listing of what can be leased has it, as does another process' driver.
    let found = library.inventory(&SysfsRoot::default(), gpuzone_core::GpuBacking::Simulated);
    let found = found.unwrap().mig.instances;
    assert!(found.iter().any(|of| of.uuid == uuid && of.memory == MemoryBytes::gib(40)));
    let node = SimulatedNode::open(Config::from_env().unwrap()).unwrap();
    let visible = node.visible(Some(&uuid.to_string()));
    let user = visible[0].attach().unwrap();
    user.add_context().unwrap();
    let said = say(devices.end_instance(gpu('a'), 4, "acme").unwrap_err());
    let named = format!("process {}", std::process::id());
    assert!(said.contains(&named) && said.contains(&uuid.to_string()), "{said}");
    // The driver itself would not have done it, either.
    let step = MigStep::EndCompute(gpuzone_hw::MigPlace {
        gpu: gpu('a'),
        kind: made.kind,
        at: made.placement,
    });
    let refused = library.cut(&step).unwrap_err().to_string();
    assert!(refused.contains("it is in use"), "{refused}");
    drop(user);
    devices.end_instance(gpu('a'), 4, "acme").unwrap();
    assert_eq!(places(&layout('a')), [OTHERS]);
    println!("child saw it all");
}

#[test]
fn a_gpu_is_looked_at_and_cut_through_its_driver() {
    let folder = tempfile::tempdir().unwrap();
    let output = in_child("child_looks_and_cuts", &library(), folder.path(), "look");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("child saw it all"), "{text}{errors}");
}
