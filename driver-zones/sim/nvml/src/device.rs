use std::ffi::{c_char, c_uint};

use gpuzone_core::PciAddress;
use nvml_wrapper_sys::bindings::*;

use crate::Answer;
use crate::abi::{INVALID, Out, Return, entry_points, field};
use crate::state::{Device, Handle, known};

pub(crate) const NOT_SUPPORTED: Return = Return(nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED);
/// NVML's version of a structure: its size, and its number in the upper byte.
const MEMORY_V2: c_uint = structure_version(size_of::<nvmlMemory_v2_t>(), 2);

const fn structure_version(size: usize, number: c_uint) -> c_uint {
    #[allow(clippy::cast_possible_truncation, reason = "NVML's structures have some bytes only")]
    let size = size as c_uint;
    size | (number << 24)
}

/// `address` as NVML shows it: with eight digits of the domain.
pub(crate) fn pci_info(address: PciAddress) -> nvmlPciInfo_t {
    let (domain, bus, device) = (address.domain(), address.bus(), address.device());
    nvmlPciInfo_t {
        busIdLegacy: field(&format!("{domain:04X}:{bus:02X}:{device:02X}.0")),
        domain,
        bus: bus.into(),
        device: device.into(),
        // No vendor gave the simulated GPU a number.
        pciDeviceId: 0,
        pciSubSystemId: 0,
        busId: field(&format!("{domain:08X}:{bus:02X}:{device:02X}.{:X}", address.function())),
    }
}

fn memory(device: Handle) -> Answer<(u64, u64)> {
    let memory = known(Device::of(device)?.gpu().memory_use())?;
    Ok((memory.total.get(), memory.used.get()))
}

entry_points! {
    fn nvmlDeviceGetName(device: Handle, text: Out<c_char>, len: u32) {
        text.put_text(&Device::of(device)?.gpu().config().name, len)
    }

    fn nvmlDeviceGetUUID(device: Handle, text: Out<c_char>, len: u32) {
        text.put_text(&Device::of(device)?.gpu().config().uuid.to_string(), len)
    }

    fn nvmlDeviceGetIndex(device: Handle, index: Out<u32>) {
        index.put(Device::of(device)?.index()?)
    }

    fn nvmlDeviceGetMinorNumber(device: Handle, minor: Out<u32>) {
        minor.put(Device::of(device)?.index()?)
    }

    fn nvmlDeviceGetPciInfo_v3(device: Handle, info: Out<nvmlPciInfo_t>) {
        info.put(pci_info(Device::of(device)?.gpu().config().pci))
    }

    fn nvmlDeviceGetMemoryInfo(device: Handle, info: Out<nvmlMemory_t>) {
        let (total, used) = memory(device)?;
        info.put(nvmlMemory_t { total, free: total - used, used })
    }

    fn nvmlDeviceGetMemoryInfo_v2(device: Handle, info: Out<nvmlMemory_v2_t>) {
        if info.get()?.version != MEMORY_V2 {
            return Err(Return(nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH));
        }
        let (total, used) = memory(device)?;
        let (free, reserved, version) = (total - used, 0, MEMORY_V2);
        info.put(nvmlMemory_v2_t { version, total, reserved, free, used })
    }

    fn nvmlDeviceGetCudaComputeCapability(device: Handle, major: Out<i32>, minor: Out<i32>) {
        let capability = Device::of(device)?.gpu().config().compute_capability;
        major.put(i32::try_from(capability.major).map_err(|_| INVALID)?)?;
        minor.put(i32::try_from(capability.minor).map_err(|_| INVALID)?)
    }

    fn nvmlDeviceGetUtilizationRates(device: Handle, rates: Out<nvmlUtilization_t>) {
        let device = Device::of(device)?;
        // As on NVIDIA's: nothing measures the instances of a GPU.
        if device.whole().config().mig.is_some() {
            return Err(NOT_SUPPORTED);
        }
        let gpu = known(device.gpu().utilization_percent())?;
        // How much of the time memory was read or written is not measured.
        rates.put(nvmlUtilization_t { gpu, memory: 0 })
    }

    fn nvmlDeviceGetNumaNodeId(device: Handle, node: Out<u32>) {
        node.put(Device::of(device)?.gpu().config().numa_node.ok_or(NOT_SUPPORTED)?)
    }

    fn nvmlDeviceGetPersistenceMode(device: Handle, mode: Out<nvmlEnableState_t>) {
        Device::of(device)?;
        mode.put(nvmlEnableState_enum_NVML_FEATURE_DISABLED)
    }

    /// There is nothing that could get warm.
    fn nvmlDeviceGetTemperature(device: Handle, _sensor: u32, _degrees: Out<u32>) {
        Device::of(device)?;
        Err(NOT_SUPPORTED)
    }

    /// There is nothing that could be measured.
    fn nvmlDeviceGetPowerUsage(device: Handle, _milliwatts: Out<u32>) {
        Device::of(device)?;
        Err(NOT_SUPPORTED)
    }
}
