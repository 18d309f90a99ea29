use std::collections::BTreeSet;
use std::fs;

use gpuzone_core::devices::{ResetMethod, ResetPolicy};
use gpuzone_hw::actions::{ActionError, Devices, MdevParent, Recovery};
use uuid::Uuid;

use super::kernel::{AUDIO, CARD, Fault, GPU, Kernel, Node, PARENT, VGPU, address};

fn open(node: &Node) -> Devices<Recorder<'_>> {
    opened(node, Fault::None).0
}

/// A kernel whose log outlives the devices.
struct Recorder<'a>(&'a std::cell::RefCell<Kernel>);

impl gpuzone_hw::actions::Writes for Recorder<'_> {
    fn write(&mut self, write: &gpuzone_hw::actions::Write) -> std::io::Result<()> {
        self.0.borrow_mut().write(write)
    }
}

fn opened(node: &Node, fault: Fault) -> (Devices<Recorder<'_>>, Vec<Recovery>) {
    let kernel = Box::leak(Box::new(std::cell::RefCell::new(node.kernel(fault))));
    let opened = node.open(|| Recorder(kernel));
    LOG.with(|log| *log.borrow_mut() = Some(kernel));
    opened
}

thread_local! {
    static LOG: std::cell::RefCell<Option<&'static std::cell::RefCell<Kernel>>> =
        const { std::cell::RefCell::new(None) };
}

/// What was written since the last look, `path=text`.
fn written() -> Vec<String> {
    let kernel = LOG.with(|log| log.borrow().unwrap());
    let log = std::mem::take(&mut kernel.borrow_mut().log);
    log.into_iter().map(|(path, text)| format!("{path}={text}")).collect()
}

fn none() -> BTreeSet<gpuzone_core::PciAddress> {
    BTreeSet::new()
}

fn says<T: std::fmt::Debug>(answer: Result<T, ActionError>, part: &str) {
    let said = answer.unwrap_err().to_string();
    assert!(said.contains(part), "{said} lacks {part}");
}

#[test]
fn a_gpu_goes_to_vfio_with_its_sound_and_comes_back_in_this_order() {
    let node = Node::new();
    let before = node.state();
    let mut devices = open(&node);
    let bound = devices.bind(address(GPU), &none()).unwrap();
    assert_eq!((bound.driver.as_str(), bound.changed), ("vfio-pci", true));
    assert_eq!(bound.with, [address(AUDIO)]);
    let one = |of: &str, driver: &str| {
        [
            format!("bus/pci/devices/{of}/driver_override=vfio-pci"),
            format!("bus/pci/drivers/{driver}/unbind={of}"),
            format!("bus/pci/drivers_probe={of}"),
        ]
    };
    let expected: Vec<String> =
        one(GPU, "nvidia").into_iter().chain(one(AUDIO, "snd_hda_intel")).collect();
    assert_eq!(written(), expected);

    // Again, and by another process: nothing is to be done.
    assert!(!devices.bind(address(GPU), &none()).unwrap().changed);
    drop(devices);
    let mut devices = open(&node);
    assert!(!devices.bind(address(GPU), &none()).unwrap().changed);
    assert_eq!(written(), [""; 0]);

    devices.release(address(GPU)).unwrap();
    let back = |of: &str, driver: &str| {
        [
            format!("bus/pci/devices/{of}/driver_override="),
            format!("bus/pci/drivers/vfio-pci/unbind={of}"),
            format!("bus/pci/drivers/{driver}/bind={of}"),
        ]
    };
    let expected: Vec<String> =
        back(AUDIO, "snd_hda_intel").into_iter().chain(back(GPU, "nvidia")).collect();
    assert_eq!(written(), expected);
    assert_eq!(node.state(), before);
    says(devices.release(address(GPU)), "was not changed by gpu-zone");
}

#[test]
fn a_vendors_driver_is_taken_and_one_that_is_not_loaded_is_named() {
    let node = Node::new();
    node.function("0000:70:00.0", 0x2342, "0x030200", "nvidia", 50);
    let mut devices = open(&node);
    let bound = devices.bind(address("0000:70:00.0"), &none()).unwrap();
    assert_eq!(bound.driver, "nvgrace-gpu-vfio-pci");
    devices.release(address("0000:70:00.0")).unwrap();
    fs::remove_dir_all(node.sys().join("module/nvgrace_gpu_vfio_pci")).unwrap();
    fs::remove_dir(node.sys().join("bus/pci/drivers/nvgrace-gpu-vfio-pci")).unwrap();
    says(devices.bind(address("0000:70:00.0"), &none()), "modprobe nvgrace_gpu_vfio_pci");
    fs::remove_dir_all(node.sys().join("module/vfio_pci/drivers")).unwrap();
    fs::remove_dir(node.sys().join("bus/pci/drivers/vfio-pci")).unwrap();
    says(devices.bind(address(GPU), &none()), "CONFIG_VFIO_PCI");
}

#[test]
fn a_refusal_names_who_is_in_the_way_and_nothing_is_written() {
    let node = Node::new();
    let mut devices = open(&node);
    says(devices.bind(address("0000:99:00.0"), &none()), "there is no PCI function");
    let dev = "driver/nvidia/gpus/0000:3b:00.0/information";
    fs::create_dir_all(node.proc().join(dev).parent().unwrap()).unwrap();
    fs::write(node.proc().join(dev), "Model: x\nDevice Minor: \t 3\n").unwrap();
    node.holds(4711, "dcgm-exporter", "/dev/nvidia3");
    node.holds(4712, "other", "/dev/nvidia33");
    says(devices.bind(address(GPU), &none()), "process 4711 (dcgm-exporter) has /dev/nvidia3 open");
    node.ends(4711);
    node.holds(12, "pipewire", "/dev/snd/pcmC1D3p");
    fs::create_dir_all(node.device(AUDIO).join("sound/card1/pcmC1D3p")).unwrap();
    says(devices.bind(address(GPU), &none()), "0000:3b:00.1 is in use: process 12 (pipewire)");
    node.ends(12);
    node.function("0000:3b:00.2", 0x1ad8, "0x0c0330", "nvidia", 12);
    says(devices.bind(address(GPU), &none()), "0000:3b:00.2 (on nvidia)");
    let with = [address("0000:3b:00.2")].into();
    assert_eq!(devices.bind(address(GPU), &with).unwrap().with.len(), 2);
    node.holds(77, "qemu-system-x86", "/dev/vfio/12");
    written();
    says(devices.release(address(GPU)), "process 77 (qemu-system-x86) has /dev/vfio/12 open");
    let alone = node.device(CARD).join("iommu_group");
    fs::remove_file(alone).unwrap();
    says(devices.bind(address(CARD), &none()), "intel_iommu=on");
    assert_eq!(written(), [""; 0]);
}

#[test]
fn virtual_functions_come_without_drivers_and_go_when_nobody_has_them() {
    let node = Node::new();
    let before = node.state();
    let mut devices = open(&node);
    says(devices.set_functions(address(GPU), 1), "CONFIG_PCI_IOV");
    says(devices.set_functions(address(CARD), 5), "can have 4 virtual functions");
    devices.set_functions(address(CARD), 3).unwrap();
    devices.set_functions(address(CARD), 3).unwrap();
    let folder = format!("bus/pci/devices/{CARD}");
    let expected =
        [format!("{folder}/sriov_drivers_autoprobe=0"), format!("{folder}/sriov_numvfs=3")];
    assert_eq!(written(), expected);
    says(devices.set_functions(address(CARD), 2), "has 3 virtual functions");
    says(devices.bind(address(CARD), &none()), "has 3 virtual functions");
    let vf = address("0000:5e:10.1");
    devices.bind(vf, &none()).unwrap();
    says(devices.set_functions(address(CARD), 0), "is still 'bind 0000:5e:10.1 to vfio-pci'");
    devices.release(vf).unwrap();
    node.holds(5, "qemu", "/dev/vfio/41");
    says(devices.set_functions(address(CARD), 0), "process 5 (qemu)");
    node.ends(5);
    devices.set_functions(address(CARD), 0).unwrap();
    assert_eq!(node.state(), before);
    devices.bind(address(CARD), &none()).unwrap();
    says(devices.set_functions(address(CARD), 1), "enable_sriov=1");
    fs::write(node.sys().join("module/vfio_pci/parameters/enable_sriov"), "Y\n").unwrap();
    devices.set_functions(address(CARD), 1).unwrap();
}

#[test]
fn mediated_devices_have_owners() {
    let node = Node::new();
    let mut devices = open(&node);
    let (parent, kind) = (&address(PARENT).into(), "i915-GVTg_V5_4");
    let uuid = Uuid::from_u128;
    says(devices.create_mdev(parent, "nvidia-1", uuid(1), "acme"), "i915-GVTg_V5_4 (2 left)");
    devices.create_mdev(parent, kind, uuid(1), "acme").unwrap();
    devices.create_mdev(parent, kind, uuid(1), "acme").unwrap();
    says(devices.create_mdev(parent, kind, uuid(1), "globex"), "is there already");
    devices.create_mdev(parent, kind, uuid(2), "globex").unwrap();
    says(devices.create_mdev(parent, kind, uuid(3), "globex"), "nothing now");
    let found = node.places().sysfs.pci_function(address(PARENT)).unwrap().unwrap();
    assert_eq!(found.mdevs, [uuid(1), uuid(2)]);
    devices.remove_mdev(uuid(1)).unwrap();
    devices.remove_mdev(uuid(1)).unwrap();
    for name in ["", "..", "a/b", "../../x", "."] {
        assert!(MdevParent::try_from(name.to_owned()).is_err(), "{name}");
    }
    // By either of the kernel's interfaces.
    for (pid, node_of_it) in [(9, "/dev/vfio/41"), (10, "/dev/vfio/devices/vfio41")] {
        node.holds(pid, "qemu", node_of_it);
        let held = format!("process {pid} (qemu) has {node_of_it} open");
        says(devices.remove_mdev(uuid(2)), &held);
        node.ends(pid);
    }
    fs::create_dir_all(node.sys().join("bus/mdev/devices").join(uuid(8).to_string())).unwrap();
    says(devices.remove_mdev(uuid(8)), "was not changed by gpu-zone");
}

#[test]
fn a_vendors_vgpu_is_freed_by_its_owner_when_nobody_has_it_open() {
    let node = Node::new();
    let mut devices = open(&node);
    let vf = address(VGPU);
    says(devices.create_vgpu(address(GPU), 1147, "acme"), "sriov-manage -e");
    says(devices.create_vgpu(vf, 5, "acme"), "1147 (NVIDIA L40S-1B), 1148 (NVIDIA L40S-2B)");
    devices.create_vgpu(vf, 1147, "acme").unwrap();
    devices.create_vgpu(vf, 1147, "acme").unwrap();
    says(devices.create_vgpu(vf, 1147, "globex"), "that of acme");
    says(devices.create_vgpu(vf, 1148, "acme"), "that of acme");
    says(devices.free_vgpu(vf, "globex"), "that of acme");
    node.holds(8, "qemu", "/dev/vfio/31");
    says(devices.free_vgpu(vf, "acme"), "process 8 (qemu)");
    // The next owner does not get a place that the last one still has open.
    node.ends(8);
    drop(devices);
    let mut devices = open(&node);
    assert_eq!(devices.vgpu_owner(vf).as_deref(), Some("acme"));
    devices.free_vgpu(vf, "acme").unwrap();
    devices.free_vgpu(vf, "acme").unwrap();
    node.holds(8, "qemu", "/dev/vfio/31");
    says(devices.create_vgpu(vf, 1147, "globex"), "process 8 (qemu)");
    fs::write(node.device(VGPU).join("nvidia/current_vgpu_type"), "1148\n").unwrap();
    says(devices.free_vgpu(vf, "globex"), "nobody's that is known here");
}

#[test]
fn a_reset_goes_the_best_way_and_leaves_the_order_as_it_was() {
    let node = Node::new();
    let mut devices = open(&node);
    let policy = ResetPolicy::default();
    assert_eq!(devices.reset(address(GPU), &policy).unwrap(), ResetMethod::Bus);
    let folder = format!("bus/pci/devices/{GPU}");
    let expected = [
        format!("{folder}/reset_method=bus"),
        format!("{folder}/reset=1"),
        format!("{folder}/reset_method=flr bus"),
    ];
    assert_eq!(written(), expected);
    assert!(devices.kept().is_empty());
    says(devices.reset(address(CARD), &policy), "can be reset by nothing");
    fs::write(node.device(GPU).join("reset_method"), "pm\n").unwrap();
    says(devices.reset(address(GPU), &policy), "can be reset by pm");
}

#[test]
fn another_boot_begins_with_all_as_the_machine_has_it() {
    let node = Node::new();
    let boot = node.proc().join("sys/kernel/random/boot_id");
    fs::create_dir_all(boot.parent().unwrap()).unwrap();
    fs::write(&boot, "one\n").unwrap();
    let mut devices = open(&node);
    devices.bind(address(GPU), &none()).unwrap();
    devices.set_functions(address(CARD), 2).unwrap();
    devices.bind(address("0000:5e:10.0"), &none()).unwrap();
    drop(devices);
    assert_eq!(open(&node).kept().len(), 3);
    // The machine starts anew: its devices are on their own drivers.
    let fresh = Node::new();
    fs::copy(node.journal(), fresh.journal()).unwrap();
    let boot = fresh.proc().join("sys/kernel/random/boot_id");
    fs::create_dir_all(boot.parent().unwrap()).unwrap();
    fs::write(&boot, "two\n").unwrap();
    let before = fresh.state();
    let mut devices = open(&fresh);
    assert!(devices.kept().is_empty());
    says(devices.release(address(GPU)), "was not changed by gpu-zone");
    devices.bind(address(GPU), &none()).unwrap();
    devices.release(address(GPU)).unwrap();
    assert_eq!(fresh.state(), before);
}

#[test]
fn a_function_that_was_pulled_out_has_nothing_to_give_back() {
    let node = Node::new();
    let mut devices = open(&node);
    devices.bind(address(CARD), &none()).unwrap();
    fs::remove_dir_all(node.device(CARD)).unwrap();
    devices.release(address(CARD)).unwrap();
    assert!(devices.kept().is_empty());
}

#[test]
fn a_holder_is_known_by_the_devices_number_whatever_it_calls_it() {
    let node = Node::new();
    // `/dev/null` stands for a node: this machine has it.
    node.holds(5, "renamed", "/dev/null");
    let proc = node.places().proc;
    let holders = proc.holders(&["/dev/null".into()].into()).unwrap();
    assert_eq!(holders.len(), 1);
    let copy = node.folder.path().join("other-name");
    std::os::unix::fs::symlink("/dev/null", &copy).unwrap();
    node.ends(5);
    node.holds(5, "renamed", copy.to_str().unwrap());
    let holders = proc.holders(&["/dev/null".into()].into()).unwrap();
    assert_eq!(holders[0].to_string(), "process 5 (renamed) has /dev/null open");
}

#[test]
fn what_can_be_neither_done_nor_undone_serves_nobody_until_it_can() {
    let node = Node::new();
    let before = node.state();
    // The old driver is gone, and nothing can be written any more.
    let (mut devices, _) = opened(&node, Fault::RefuseFrom(2));
    says(devices.bind(address(GPU), &none()), "could not be undone");
    says(devices.bind(address(GPU), &none()), "is not as it should be since 'bind");
    says(devices.reset(address(GPU), &ResetPolicy::default()), "put that right");
    drop(devices);
    let (mut devices, recovered) = opened(&node, Fault::RefuseFrom(0));
    assert!(matches!(&recovered[..], [Recovery::Stuck(_)]), "{recovered:?}");
    says(devices.bind(address(GPU), &none()), "is not as it should be");
    drop(devices);
    let (mut devices, recovered) = opened(&node, Fault::None);
    assert_eq!(recovered, [Recovery::Undone]);
    assert_eq!(node.state(), before);
    devices.bind(address(GPU), &none()).unwrap();
}

#[test]
fn a_driver_that_does_not_come_is_noticed() {
    let node = Node::new();
    let before = node.state();
    // The module is there, and its driver takes nothing.
    fs::remove_dir(node.sys().join("bus/pci/drivers/vfio-pci")).unwrap();
    let mut devices = open(&node);
    says(devices.bind(address(GPU), &none()), "did not do it");
    assert_eq!(node.state(), before);
}
