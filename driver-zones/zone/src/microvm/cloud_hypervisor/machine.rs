//! A machine as Cloud Hypervisor is told of it.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::PORTS;
use crate::microvm::command::{CommandError, is_address};
use crate::microvm::{Accelerator, Machine as Kind, Passthrough, VmSpec};

/// Slots of the guest's bus 0: those below are its own.
pub(super) const FIRST_DEVICE: u8 = 8;
pub(super) const FIRST_WINDOW: u8 = 16;
const SLOTS: u8 = 32;
/// As the guest's vsock has it. It is one among its own only: on the host there is a socket in its place.
const CID: u32 = 3;
/// The first port of [`PORTS`]; below are those that only root may listen at.
const FIRST_PORT: u32 = 1024;
/// Where sysfs has functions by address.
const FUNCTIONS: &str = "/sys/bus/pci/devices";
/// What a kernel is told: see QEMU's. There is no console, for nobody would keep what is said on it.
const WORDS: &str = "quiet panic=-1 reboot=t cryptomgr.notests rdinit=/init gpuzone.ports=vsock";

/// `VmConfig`, as far as it is not as usual.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Machine {
    cpus: Cpus,
    memory: Memory,
    payload: Payload,
    serial: Console,
    console: Console,
    vsock: Vsock,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    devices: Vec<Device>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Cpus {
    boot_vcpus: u32,
    max_vcpus: u32,
    nested: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Memory {
    size: u64,
    shared: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Payload {
    kernel: PathBuf,
    initramfs: PathBuf,
    cmdline: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Console {
    mode: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Vsock {
    cid: u32,
    socket: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Device {
    path: PathBuf,
    pci_device_id: u8,
}

const OFF: Console = Console { mode: "Off" };

/// The machine, whose ports are at `vsock`.
///
/// # Errors
/// When it is none that Cloud Hypervisor can run.
pub(super) fn describe(vm: &VmSpec, vsock: &Path) -> Result<Machine, CommandError> {
    let windows = match vm.machine {
        Kind::Q35 { windows, iommu: false } => windows,
        Kind::Q35 { iommu: true, .. } | Kind::MicroVm => return Err(CommandError::QemusMachine),
    };
    if vm.accelerator == Accelerator::Tcg {
        return Err(CommandError::NoEmulation);
    }
    let places = u16::from(SLOTS - FIRST_WINDOW);
    if windows > places {
        return Err(CommandError::FewWindows { most: places, wanted: windows });
    }
    let places = usize::from(FIRST_WINDOW - FIRST_DEVICE);
    if vm.devices.len() > places {
        return Err(CommandError::FewDevices { most: places, wanted: vm.devices.len() });
    }
    if let Some(port) = vm.ports.iter().find(|port| port_number(port).is_none()) {
        return Err(CommandError::Port(port.clone()));
    }
    for path in [&vm.kernel, &vm.image] {
        path.to_str().ok_or_else(|| CommandError::NoText(path.display().to_string()))?;
    }
    let devices = (FIRST_DEVICE..).zip(&vm.devices).map(|(slot, device)| passed(slot, device));
    let more = if vm.append.is_empty() { String::new() } else { format!(" {}", vm.append) };
    Ok(Machine {
        cpus: Cpus { boot_vcpus: vm.processors, max_vcpus: vm.processors, nested: false },
        // A vfio-user device's server is told of all memory, and told of none that is not shared.
        memory: Memory { size: vm.memory >> 20 << 20, shared: true },
        payload: Payload {
            kernel: vm.kernel.clone(),
            initramfs: vm.image.clone(),
            cmdline: format!("{WORDS}{more}"),
        },
        serial: OFF,
        console: OFF,
        vsock: Vsock { cid: CID, socket: vsock.to_owned() },
        devices: devices.collect::<Result<_, _>>()?,
    })
}

fn passed(slot: u8, device: &Passthrough) -> Result<Device, CommandError> {
    let Passthrough { address, vf_token } = device;
    if !is_address(address) {
        return Err(CommandError::Address(address.clone()));
    }
    if vf_token.is_some() {
        return Err(CommandError::NoTokens(address.clone()));
    }
    Ok(Device { path: Path::new(FUNCTIONS).join(address), pci_device_id: slot })
}

/// The number of a port of the guest's.
pub(super) fn port_number(name: &str) -> Option<u32> {
    let number = (FIRST_PORT..).zip(PORTS).find(|(_, port)| *port == name);
    number.map(|(number, _)| number)
}
