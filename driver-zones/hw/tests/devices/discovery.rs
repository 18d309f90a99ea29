use std::fs;
use std::os::unix::fs::symlink;

use gpuzone_hw::SysfsRoot;
use gpuzone_hw::pci::FunctionKind;

use super::kernel::{AUDIO, CARD, GPU, Node, PARENT, VGPU, address};

#[test]
fn a_node_is_seen_whole() {
    let node = Node::new();
    let functions = SysfsRoot(node.sys()).functions().unwrap();
    let at = |of: &str| functions.iter().find(|found| found.address == address(of)).unwrap();
    assert_eq!(functions.len(), 5);
    let gpu = at(GPU);
    assert_eq!(gpu.kind, FunctionKind::Gpu);
    assert!(gpu.name().starts_with("NVIDIA GH100"), "{}", gpu.name());
    assert_eq!(gpu.companions, [address(AUDIO)]);
    let group = gpu.group.as_ref().unwrap();
    assert_eq!((group.number, group.members.len()), (12, 2));
    assert_eq!((gpu.numa_node, gpu.bars[0].size), (Some(1), 1 << 20));
    assert_eq!(gpu.driver.as_deref(), Some("nvidia"));
    assert_eq!(gpu.driver_override, None);
    assert_eq!(at(AUDIO).kind, FunctionKind::Audio);
    let sriov = at(CARD).sriov.as_ref().unwrap();
    assert_eq!((sriov.total, sriov.enabled, sriov.autoprobe), (4, 0, true));
    let vgpu = at(VGPU).vgpu.as_ref().unwrap();
    assert_eq!((vgpu.current, vgpu.creatable.len()), (None, 2));
    let kind = &at(PARENT).mdev_types[0];
    assert_eq!((kind.id.as_str(), kind.available), ("i915-GVTg_V5_4", 2));
}

#[test]
fn intels_and_amds_cards_and_switches_are_known_for_what_they_are() {
    let node = Node::new();
    let card = "0000:03:00.0";
    node.function(card, 0xe20b, "0x030000", "xe", 60);
    fs::write(node.device(card).join("vendor"), "0x8086\n").unwrap();
    for (file, text) in [
        ("sriov_totalvfs", "24"),
        ("sriov_numvfs", "2"),
        ("sriov_admin/vf1/profile/exec_quantum_ms", "10"),
        ("sriov_admin/vf1/profile/preempt_timeout_us", "20000"),
        ("sriov_admin/vf1/profile/sched_priority", "[low] normal high"),
        ("sriov_admin/vf1/profile/vram_quota", "4294967296"),
        ("sriov_admin/vf2/profile/exec_quantum_ms", "0"),
        ("sriov_admin/pf/profile/exec_quantum_ms", "0"),
    ] {
        let path = node.device(card).join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
    }
    // Two of them, of which the kernel shows the higher number first.
    for (link, vf) in [("virtfn1", "0000:03:00.2"), ("virtfn0", "0000:03:00.1")] {
        node.function(vf, 0xe20b, "0x030000", "xe", 61);
        symlink(node.device(vf), node.device(card).join(link)).unwrap();
        symlink(node.device(card), node.device(vf).join("physfn")).unwrap();
    }
    node.function("0000:c1:00.0", 0x74a1, "0x120000", "amdgpu", 62);
    fs::write(node.device("0000:c1:00.0").join("vendor"), "0x1002\n").unwrap();
    fs::write(node.device("0000:c1:00.0").join("sriov_totalvfs"), "8\n").unwrap();
    node.function("0000:c2:00.0", 0x22a3, "0x068000", "nvidia-nvswitch", 63);
    let sysfs = SysfsRoot(node.sys());
    let of = |at: &str| sysfs.pci_function(address(at)).unwrap().unwrap();
    let sriov = of(card).sriov.unwrap();
    assert_eq!(sriov.functions, [address("0000:03:00.1"), address("0000:03:00.2")]);
    let profile = &sriov.profiles[0];
    assert_eq!((profile.vf, sriov.profiles.len()), (1, 2));
    assert_eq!((profile.exec_quantum_ms, profile.preempt_timeout_us), (Some(10), Some(20_000)));
    assert_eq!(profile.priority.as_deref(), Some("low"));
    assert_eq!(profile.memory.unwrap().get(), 4 << 30);
    assert_eq!(of("0000:03:00.2").physical, Some(address(card)));
    let amd = of("0000:c1:00.0");
    assert_eq!((amd.kind, amd.sriov.unwrap().total), (FunctionKind::Gpu, 8));
    assert_eq!(of("0000:c2:00.0").kind, FunctionKind::NvSwitch);
}

#[test]
fn what_is_gone_is_left_out_and_what_is_strange_is_named() {
    let node = Node::new();
    let gone = node.sys().join("bus/pci/devices/0000:99:00.0");
    symlink("../../../devices/gone", &gone).unwrap();
    fs::create_dir(node.sys().join("bus/pci/devices/no-address")).unwrap();
    let sysfs = SysfsRoot(node.sys());
    assert_eq!(sysfs.functions().unwrap().len(), 5);
    fs::write(node.device(CARD).join("sriov_totalvfs"), "many\n").unwrap();
    let said = sysfs.functions().unwrap_err().to_string();
    assert!(said.contains("sriov_totalvfs says 'many', and should say a count"), "{said}");
    let empty = SysfsRoot(node.folder.path().join("nothing"));
    assert_eq!(empty.functions().unwrap(), []);
}
