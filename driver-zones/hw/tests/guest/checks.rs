//! What is shown, one after another.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use gpuzone_core::devices::{Condemned, Reset, ResetMethod, ResetPolicy, ResetScope};
use gpuzone_core::{PciAddress, VfToken};
use gpuzone_hw::actions::{ActionError, Devices, MdevParent};
use gpuzone_hw::turnover::{Between, between_tenants};
use gpuzone_hw::vfio::{
    DevRoot, DmaMemory, Interface, Opening, VfioDevice, VfioError, open_when_free,
};
use rustix::event::{EventfdFlags, eventfd};
use uuid::Uuid;

use crate::machine::{devices, found, function, sysfs};

pub(crate) enum Outcome {
    Shown,
    Skipped(&'static str),
}

type Check = fn() -> Outcome;

pub(crate) const ALL: [(&str, Check); 10] = [
    ("discovery sees groups, BARs, SR-IOV and resets", discovery),
    ("a function goes to vfio-pci and comes back, twice", bind_and_release),
    ("a group with a driver of the host is refused, and taken whole", viability),
    ("a second owner is refused, and a release while it is open", second_owner),
    ("DMA reaches what is mapped and nothing after it is unmapped", dma),
    ("an interrupt arrives", interrupt),
    ("virtual functions come, want their token, and go", virtual_functions),
    ("resets by function and by slot, and a device that keeps its memory is caught", resets),
    ("mediated devices are made, opened and taken away", mediated),
    ("iommufd is used where it is there, and named where it is not", iommufd),
];

const EDU: (u16, u16) = (0x1234, 0x11e8);
const IGB: (u16, u16) = (0x8086, 0x10c9);
const IVSHMEM: (u16, u16) = (0x1af4, 0x1110);
/// Of an emulated machine on a busy host.
const LONG: Duration = Duration::from_secs(60);

fn the(id: (u16, u16)) -> PciAddress {
    found(id.0, id.1).first().unwrap().address
}

/// The edu device that is alone in its group.
fn edu() -> PciAddress {
    let alone = |at: &&gpuzone_hw::pci::PciFunction| at.group.as_ref().unwrap().members.len() == 1;
    found(EDU.0, EDU.1).iter().find(alone).unwrap().address
}

/// The one that shares a group with an NVMe controller, and that.
fn shared() -> (PciAddress, PciAddress) {
    let all = found(EDU.0, EDU.1);
    let shared = all.iter().find(|at| at.group.as_ref().unwrap().members.len() > 1).unwrap();
    let other = PciAddress::new(0, shared.address.bus(), 0, 1).unwrap();
    (shared.address, other)
}

fn open(address: PciAddress, token: Option<&VfToken>) -> Result<VfioDevice, VfioError> {
    open_by(Interface::Group, address, token)
}

fn open_by(
    interface: Interface,
    address: PciAddress,
    token: Option<&VfToken>,
) -> Result<VfioDevice, VfioError> {
    let opening = Opening { address, interface, token: token.cloned() };
    VfioDevice::open(&sysfs(), &DevRoot::default(), &opening)
}

fn none() -> BTreeSet<PciAddress> {
    BTreeSet::new()
}

fn says<T>(answer: Result<T, impl std::fmt::Display>, part: &str) {
    match answer {
        Ok(_) => panic!("it was done, and should say {part}"),
        Err(error) => assert!(error.to_string().contains(part), "{error} lacks {part}"),
    }
}

fn discovery() -> Outcome {
    let edu = function(edu());
    assert_eq!((edu.bars[0].size, edu.driver.as_deref()), (1 << 20, None));
    let igb = function(the(IGB));
    assert_eq!(igb.sriov.as_ref().unwrap().total, 8);
    assert!(igb.reset_methods.contains(&ResetMethod::Flr), "{:?}", igb.reset_methods);
    assert!(igb.name().contains("82576"), "{}", igb.name());
    let (first, second) = shared();
    let group = function(first).group.unwrap();
    assert!(group.members.contains(&second), "{group:?}");
    assert_eq!(function(second).driver.as_deref(), Some("nvme"));
    Outcome::Shown
}

fn bind_and_release() -> Outcome {
    let mut devices = devices("bind");
    let address = edu();
    for _ in 0..2 {
        let bound = devices.bind(address, &none()).unwrap();
        assert_eq!((bound.driver.as_str(), bound.changed), ("vfio-pci", true));
        assert!(!devices.bind(address, &none()).unwrap().changed);
        let now = function(address);
        assert_eq!(now.driver_override.as_deref(), Some("vfio-pci"));
        drop(open(address, None).unwrap());
        devices.release(address).unwrap();
        let now = function(address);
        assert_eq!((now.driver, now.driver_override), (None, None));
        says(open(address, None), "bound to no driver");
    }
    Outcome::Shown
}

fn viability() -> Outcome {
    let mut devices = devices("viability");
    let (first, second) = shared();
    says(devices.bind(first, &none()), &format!("{second} (on nvme)"));
    // Somebody else does it all the same: the kernel does not let it be opened.
    for (file, text) in [
        (format!("/sys/bus/pci/devices/{first}/driver_override"), "vfio-pci".to_owned()),
        ("/sys/bus/pci/drivers_probe".to_owned(), first.to_string()),
    ] {
        fs::write(file, text).unwrap();
    }
    says(open(first, None), &format!("{second}, which is bound to nvme"));
    fs::write("/sys/bus/pci/drivers/vfio-pci/unbind", first.to_string()).unwrap();
    fs::write(format!("/sys/bus/pci/devices/{first}/driver_override"), "\n").unwrap();
    let bound = devices.bind(first, &[second].into()).unwrap();
    assert_eq!(bound.with, [second]);
    let device = open(first, None).unwrap();
    assert_eq!(device.slot_scope().unwrap(), ResetScope::Own);
    drop(device);
    devices.release(first).unwrap();
    // The host's driver has it back, and it works there.
    assert_eq!(function(second).driver.as_deref(), Some("nvme"));
    Outcome::Shown
}

fn second_owner() -> Outcome {
    let mut devices = devices("owner");
    let address = edu();
    devices.bind(address, &none()).unwrap();
    let device = open(address, None).unwrap();
    assert!(matches!(open(address, None), Err(VfioError::Busy { .. })));
    says(devices.release(address), "process 1 (init) has /dev/vfio/");
    says(devices.reset(address, &ResetPolicy::default()), "cannot be reset");
    drop(device);
    drop(open(address, None).unwrap());
    devices.release(address).unwrap();
    Outcome::Shown
}

/// Registers of edu.
const RAISE: u64 = 0x60;
const SOURCE: u64 = 0x80;
const DESTINATION: u64 = 0x88;
const COUNT: u64 = 0x90;
const COMMAND: u64 = 0x98;
/// Its buffer, as its DMA knows it.
const BUFFER: u64 = 0x4_0000;

fn transfer(device: &VfioDevice, from: u64, to: u64, outwards: bool) {
    let put = |at: u64, value: u64| device.write_bar(0, at, &value.to_le_bytes()).unwrap();
    put(SOURCE, from);
    put(DESTINATION, to);
    put(COUNT, 64);
    put(COMMAND, if outwards { 0b11 } else { 0b01 });
    let began = Instant::now();
    loop {
        let mut command = [0; 8];
        device.read_bar(0, COMMAND, &mut command).unwrap();
        if command[0] & 1 == 0 {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "the transfer does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn dma() -> Outcome {
    let mut devices = devices("dma");
    let address = edu();
    devices.bind(address, &none()).unwrap();
    check_dma(&open(address, None).unwrap());
    devices.release(address).unwrap();
    Outcome::Shown
}

fn check_dma(device: &VfioDevice) {
    device.enable(true).unwrap();
    let (mut source, mut sink) = (DmaMemory::new(4096).unwrap(), DmaMemory::new(4096).unwrap());
    let pattern: Vec<u8> = (0..64).map(|byte| byte ^ 0x5a).collect();
    source.write(0, &pattern);
    device.map(0x10_0000, &source).unwrap();
    device.map(0x20_0000, &sink).unwrap();
    transfer(device, 0x10_0000, BUFFER, false);
    transfer(device, BUFFER, 0x20_0000, true);
    let mut got = [0; 64];
    sink.read(0, &mut got);
    assert_eq!(got[..], pattern[..], "the device did not reach what is mapped");
    // After it is unmapped the device writes to nothing, wherever that was.
    sink.write(0, &[0; 64]);
    assert_eq!(device.unmap(0x20_0000, 4096).unwrap(), 4096);
    transfer(device, BUFFER, 0x20_0000, true);
    sink.read(0, &mut got);
    assert_eq!(got, [0; 64], "the device reached memory that was taken from it");
    // And the machine's own addresses are none of its business.
    source.read(0, &mut got);
    assert_eq!(got[..], pattern[..]);
    assert_eq!(device.unmap(0x10_0000, 4096).unwrap(), 4096);
}

fn interrupt() -> Outcome {
    let mut devices = devices("interrupt");
    let address = edu();
    devices.bind(address, &none()).unwrap();
    let device = open(address, None).unwrap();
    device.enable(true).unwrap();
    let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    device.set_interrupt(event.as_fd()).unwrap();
    device.write_bar(0, RAISE, &1_u32.to_le_bytes()).unwrap();
    let began = Instant::now();
    let mut count = [0; 8];
    while rustix::io::read(&event, &mut count).is_err() {
        assert!(began.elapsed() < Duration::from_secs(30), "no interrupt");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(u64::from_ne_bytes(count), 1);
    drop(device);
    devices.release(address).unwrap();
    Outcome::Shown
}

fn virtual_functions() -> Outcome {
    let mut devices = devices("functions");
    let card = the(IGB);
    devices.bind(card, &none()).unwrap();
    says(devices.set_functions(card, 2), "enable_sriov=1");
    fs::write("/sys/module/vfio_pci/parameters/enable_sriov", "Y").unwrap();
    says(devices.set_functions(card, 9), "can have 8");
    devices.set_functions(card, 2).unwrap();
    let functions = function(card).sriov.unwrap().functions;
    assert_eq!(functions.len(), 2);
    let vf = functions[0];
    assert_eq!(function(vf).physical, Some(card));
    // Its physical function is on VFIO, so the kernel lets it go nowhere else.
    assert_eq!(function(vf).driver_override.as_deref(), Some("vfio-pci"));
    assert!(!devices.bind(vf, &none()).unwrap().changed);

    let physical = open(card, None).unwrap();
    let token = VfToken::new(Uuid::from_u128(0x1234_5678));
    physical.set_token(&token).unwrap();
    assert!(matches!(open(vf, None), Err(VfioError::Token { given: false, .. })));
    let other = VfToken::new(Uuid::from_u128(9));
    assert!(matches!(open(vf, Some(&other)), Err(VfioError::Token { given: true, .. })));
    // A reset of its slot would hit its virtual functions, which are others'.
    assert!(matches!(physical.slot_scope().unwrap(), ResetScope::Beyond(_)));
    says(physical.reset_slot(), "is not handed over with it");
    let device = open(vf, Some(&token)).unwrap();
    // A virtual function does not have the numbers of its own; where it is, the kernel says.
    assert_eq!(device.address(), vf);
    // While somebody has it, the physical one is not opened by whoever does not know it.
    drop(physical);
    assert!(matches!(open(card, None), Err(VfioError::Token { given: false, .. })));
    drop(open(card, Some(&token)).unwrap());
    says(devices.set_functions(card, 0), "process 1 (init) has /dev/vfio/");
    says(devices.release(card), "has 2 virtual functions");
    drop(device);
    devices.set_functions(card, 0).unwrap();
    devices.release(card).unwrap();
    assert_eq!(function(card).sriov.unwrap().enabled, 0);
    Outcome::Shown
}

fn resets() -> Outcome {
    let mut devices = devices("resets");
    let (card, memory) = (the(IGB), the(IVSHMEM));
    let before = function(card).reset_methods;
    let flr = ResetPolicy { preferred: vec![Reset::Function(ResetMethod::Flr)] };
    assert_eq!(devices.reset(card, &flr).unwrap(), ResetMethod::Flr);
    assert_eq!(function(card).reset_methods, before);
    let sole = ResetPolicy { preferred: vec![Reset::Function(ResetMethod::Acpi)] };
    assert!(matches!(devices.reset(card, &sole), Err(ActionError::NoReset { .. })));

    devices.bind(card, &none()).unwrap();
    let device = open(card, None).unwrap();
    assert!(device.can_reset().unwrap());
    device.reset().unwrap();
    assert_eq!(device.slot_scope().unwrap(), ResetScope::Own);
    device.reset_slot().unwrap();
    drop(device);
    devices.release(card).unwrap();

    // Its memory is the host's, which no reset of the device clears.
    devices.bind(memory, &none()).unwrap();
    let turn = |devices: &mut Devices, preferred: Vec<Reset>| {
        let opening = Opening { address: memory, interface: Interface::Group, token: None };
        let terms = Between { policy: ResetPolicy { preferred }, ..Between::default() };
        // Whoever had it lets go of it a moment later.
        let had = open(memory, None).unwrap();
        let going = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            drop(had);
        });
        let free = open_when_free(&sysfs(), &DevRoot::default(), &opening, LONG);
        going.join().unwrap();
        let record = between_tenants(devices, free.unwrap(), &terms, 77).unwrap();
        assert!(matches!(record.condemned, Some(Condemned::Kept { .. })), "{record:?}");
        assert_eq!(record.seen_bytes, 1 << 20);
        println!("         {}", record.sentence());
        record.reset
    };
    assert_eq!(turn(&mut devices, ResetPolicy::default().preferred), Reset::Slot);
    let bus = Reset::Function(ResetMethod::Bus);
    let before = function(memory).reset_methods;
    assert_eq!(turn(&mut devices, vec![bus]), bus);
    assert_eq!(function(memory).reset_methods, before);
    devices.release(memory).unwrap();
    Outcome::Shown
}

/// The kernel's sample of a driver that makes mediated devices: serial ports.
fn mediated() -> Outcome {
    if !Path::new("/sys/class/mdev_bus/mtty").exists() {
        return Outcome::Skipped("this kernel has no mtty, the sample of such a driver");
    }
    let (mut devices, uuid) = (devices("mediated"), Uuid::from_u128(0x77));
    let parent = MdevParent::try_from("mtty".to_owned()).unwrap();
    says(devices.create_mdev(&parent, "mtty-9", uuid, "acme"), "mtty-1 (");
    devices.create_mdev(&parent, "mtty-1", uuid, "acme").unwrap();
    devices.create_mdev(&parent, "mtty-1", uuid, "acme").unwrap();
    says(devices.create_mdev(&parent, "mtty-1", uuid, "globex"), "is there already");
    let device = Path::new("/sys/bus/mdev/devices").join(uuid.to_string());
    let group = fs::read_link(device.join("iommu_group")).unwrap();
    let node = Path::new("/dev/vfio").join(group.file_name().unwrap());
    let held = fs::File::options().read(true).write(true).open(&node).unwrap();
    says(devices.remove_mdev(uuid), "process 1 (init) has /dev/vfio/");
    drop(held);
    devices.remove_mdev(uuid).unwrap();
    assert!(!device.exists());
    devices.remove_mdev(uuid).unwrap();
    Outcome::Shown
}

fn iommufd() -> Outcome {
    let mut devices = devices("iommufd");
    let (address, card) = (edu(), the(IGB));
    devices.bind(address, &none()).unwrap();
    let opened = open_by(Interface::Iommufd, address, None);
    if !Interface::Iommufd.is_offered(&DevRoot::default()) {
        says(opened, "nothing else is used in its place");
        devices.release(address).unwrap();
        return Outcome::Skipped(
            "this kernel has none; that it is named, and not replaced, is shown",
        );
    }
    let device = opened.unwrap();
    assert_eq!(device.interface(), Interface::Iommufd);
    check_dma(&device);
    assert!(matches!(open_by(Interface::Iommufd, address, None), Err(VfioError::Busy { .. })));
    says(devices.release(address), "process 1 (init) has /dev/vfio/devices/vfio");
    drop(device);
    devices.release(address).unwrap();

    devices.bind(card, &none()).unwrap();
    let device = open_by(Interface::Iommufd, card, None).unwrap();
    assert_eq!(device.slot_scope().unwrap(), ResetScope::Own);
    device.reset_slot().unwrap();
    drop(device);
    devices.release(card).unwrap();
    Outcome::Shown
}
