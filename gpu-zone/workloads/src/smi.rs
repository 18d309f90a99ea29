//! A listing of GPUs and processes by NVML, as `nvidia-smi` makes one: a client of NVML that
//! knows nothing of gpu-zone.

use anyhow::Context;
use gpuzone_core::MemoryBytes;
use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use serde_json::{Value, json};

use crate::device::Device;

/// A value, or what NVML says in its place.
fn shown<T: Into<Value>>(answer: Result<T, NvmlError>) -> Value {
    answer.map_or_else(|error| json!({ "error": error.to_string() }), Into::into)
}

fn processes(device: &nvml_wrapper::Device<'_>) -> Value {
    let listed = device.running_compute_processes().map(|processes| {
        let process = |process: &nvml_wrapper::struct_wrappers::device::ProcessInfo| {
            let used = match process.used_gpu_memory {
                UsedGpuMemory::Used(used) => json!(used),
                UsedGpuMemory::Unavailable => Value::Null,
            };
            json!({ "pid": process.pid, "used": used })
        };
        processes.iter().map(process).collect::<Vec<Value>>()
    });
    shown(listed)
}

fn gpu(nvml: &Nvml, index: u32) -> anyhow::Result<Value> {
    let mut device = nvml.device_by_index(index).context("no such GPU")?;
    let memory = device.memory_info().context("its memory is not told")?;
    Ok(json!({
        "index": index,
        "name": shown(device.name()),
        "uuid": shown(device.uuid()),
        "pci": shown(device.pci_info().map(|pci| pci.bus_id)),
        "total": memory.total,
        "used": memory.used,
        "free": memory.free,
        "utilisation": shown(device.utilization_rates().map(|rates| rates.gpu)),
        "temperature": shown(device.temperature(TemperatureSensor::Gpu)),
        "processes": processes(&device),
        // Changes nothing where it is allowed: it is what drivers start with.
        "set_persistent": shown(device.set_persistent(false).map(|()| true)),
    }))
}

/// Everything that a listing shows, as JSON; with a device, after it has `memory` in use there.
pub(crate) fn smi(device: Option<&Device>, memory: Option<MemoryBytes>) -> anyhow::Result<String> {
    let bytes = memory.map_or(0, MemoryBytes::get);
    let held = device
        .map(|device| device.stream.alloc_zeros::<u8>(usize::try_from(bytes)?).context("no memory"))
        .transpose()?;
    let nvml = Nvml::init().context("there is no libnvidia-ml.so here")?;
    let count = nvml.device_count().context("the GPUs are not counted")?;
    let gpus = (0..count).map(|index| gpu(&nvml, index)).collect::<anyhow::Result<Vec<_>>>()?;
    let listing = json!({
        "driver": shown(nvml.sys_driver_version()),
        "nvml": shown(nvml.sys_nvml_version()),
        "cuda": shown(nvml.sys_cuda_driver_version()),
        "pid": std::process::id(),
        "gpus": gpus,
    });
    drop(held);
    Ok(listing.to_string())
}
