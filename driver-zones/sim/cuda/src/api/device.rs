use std::ffi::c_char;

use gpuzone_core::PciAddress;
use gpuzone_cuda_abi::{CUuuid, CuResult, DeviceAttribute};

use super::attributes::attribute;
use crate::abi::{Out, Text, entry_points};
use crate::driver::{driver, gpu};

fn uuid(ordinal: i32) -> crate::Answer<CUuuid> {
    Ok(CUuuid { bytes: *gpu(ordinal)?.config().uuid.as_bytes() })
}

entry_points! {
    fn cuDeviceGetCount(count: Out<i32>) {
        let gpus = driver()?.gpus().len();
        count.put(i32::try_from(gpus).map_err(|_| CuResult::UNKNOWN)?)
    }

    fn cuDeviceGet(device: Out<i32>, ordinal: i32) {
        device.put(gpu(ordinal)?.ordinal)
    }

    fn cuDeviceGetName(name: Out<c_char>, len: i32, device: i32) {
        name.put_text(&gpu(device)?.config().name, len)
    }

    fn cuDeviceGetUuid(id: Out<CUuuid>, device: i32) {
        id.put(uuid(device)?)
    }

    fn cuDeviceGetUuid_v2(id: Out<CUuuid>, device: i32) {
        id.put(uuid(device)?)
    }

    fn cuDeviceTotalMem_v2(bytes: Out<usize>, device: i32) {
        let memory = gpu(device)?.config().memory.get();
        bytes.put(usize::try_from(memory).map_err(|_| CuResult::UNKNOWN)?)
    }

    fn cuDeviceGetAttribute(value: Out<i32>, which: i32, device: i32) {
        value.put(attribute(gpu(device)?.config(), DeviceAttribute(which))?)
    }

    fn cuDeviceComputeCapability(major: Out<i32>, minor: Out<i32>, device: i32) {
        let config = gpu(device)?.config();
        major.put(attribute(config, DeviceAttribute::COMPUTE_CAPABILITY_MAJOR)?)?;
        minor.put(attribute(config, DeviceAttribute::COMPUTE_CAPABILITY_MINOR)?)
    }

    fn cuDeviceGetPCIBusId(text: Out<c_char>, len: i32, device: i32) {
        text.put_text(&gpu(device)?.config().pci.to_string(), len)
    }

    fn cuDeviceGetByPCIBusId(device: Out<i32>, text: Text) {
        device.check()?;
        let pci: PciAddress = text.read()?.parse().map_err(|_| CuResult::INVALID_VALUE)?;
        let found = driver()?.gpus().iter().find(|gpu| gpu.config().pci == pci);
        device.put(found.ok_or(CuResult::INVALID_DEVICE)?.ordinal)
    }

    fn cuDeviceCanAccessPeer(can: Out<i32>, device: i32, peer: i32) {
        gpu(device)?;
        gpu(peer)?;
        // Kernels reach the memory of their own context only, whatever links are simulated.
        can.put(0)
    }
}
