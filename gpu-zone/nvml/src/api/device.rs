//! What a GPU of the lease is like.

use std::ffi::{c_char, c_uint};

use gpuzone_nvml_abi::bindings::*;
use gpuzone_nvml_abi::{
    Answer, INVALID, NOT_SUPPORTED, Out, VERSION_MISMATCH, entry_points, structure_version,
};

use crate::state::{Device, Handle};

const MEMORY_V2: c_uint = structure_version(size_of::<nvmlMemory_v2_t>(), 2);

/// The lease's memory, and what of it is in use.
fn memory(device: Handle) -> Answer<(u64, u64)> {
    let device = Device::of(device)?;
    let gpu = device.gpu();
    Ok((gpu.memory, gpu.used.min(gpu.memory)))
}

entry_points! {
    fn nvmlDeviceGetName(device: Handle, text: Out<c_char>, len: u32) {
        text.put_text(&Device::of(device)?.gpu().name, len)
    }

    fn nvmlDeviceGetMemoryInfo(device: Handle, info: Out<nvmlMemory_t>) {
        let (total, used) = memory(device)?;
        info.put(nvmlMemory_t { total, free: total - used, used })
    }

    fn nvmlDeviceGetMemoryInfo_v2(device: Handle, info: Out<nvmlMemory_v2_t>) {
        let (total, used) = memory(device)?;
        if info.get()?.version != MEMORY_V2 {
            return Err(VERSION_MISMATCH);
        }
        let (free, reserved, version) = (total - used, 0, MEMORY_V2);
        info.put(nvmlMemory_v2_t { version, total, reserved, free, used })
    }

    fn nvmlDeviceGetCudaComputeCapability(device: Handle, major: Out<i32>, minor: Out<i32>) {
        let (of_major, of_minor) = Device::of(device)?.gpu().capability.ok_or(NOT_SUPPORTED)?;
        major.put(of_major)?;
        minor.put(of_minor)
    }

    /// How much of the time memory was read or written is not measured, and shown as 0.
    fn nvmlDeviceGetUtilizationRates(device: Handle, rates: Out<nvmlUtilization_t>) {
        let gpu = Device::of(device)?.gpu().busy.ok_or(NOT_SUPPORTED)?;
        rates.put(nvmlUtilization_t { gpu, memory: 0 })
    }

    /// As CUDA tells it: the lease's processes may all have contexts.
    fn nvmlDeviceGetComputeMode(device: Handle, mode: Out<nvmlComputeMode_t>) {
        Device::of(device)?;
        mode.put(nvmlComputeMode_enum_NVML_COMPUTEMODE_DEFAULT)
    }

    /// What a lease has is one device each, whatever it is on the card.
    fn nvmlDeviceIsMigDeviceHandle(device: Handle, is: Out<c_uint>) {
        Device::of(device)?;
        is.put(0)
    }

    /// None: what happens to the card is the operator's to know.
    fn nvmlDeviceGetSupportedEventTypes(device: Handle, types: Out<u64>) {
        Device::of(device)?;
        types.put(0)
    }

    /// All of them are the card's.
    fn nvmlDeviceGetFieldValues(device: Handle, count: i32, values: Out<nvmlFieldValue_t>) {
        Device::of(device)?;
        for index in 0..usize::try_from(count).map_err(|_| INVALID)? {
            let mut field = values.get_at(index)?;
            field.nvmlReturn = NOT_SUPPORTED.0;
            values.put_at(index, field)?;
        }
        Ok(())
    }
}
