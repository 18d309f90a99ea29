use std::ffi::c_char;

use gpuzone_sim_device::SimulatedGpu;
use nvml_wrapper_sys::bindings::*;

use crate::state::{self, Handle, handle, node};
use gpuzone_nvml_abi::{INVALID, NOT_FOUND, Out, Text, entry_points, error_text};

/// CUDA's version as the simulated driver has it.
const CUDA_VERSION: i32 = 13_000;

/// The text of a result.
#[unsafe(no_mangle)]
#[allow(non_snake_case, reason = "the name is NVML's")]
pub(crate) extern "C" fn nvmlErrorString(result: nvmlReturn_t) -> *const c_char {
    error_text(result).as_ptr()
}

fn by_uuid(uuid: &str) -> gpuzone_nvml_abi::Answer<Handle> {
    let node = node()?;
    let is = |gpu: &SimulatedGpu| gpu.config().uuid.to_string() == uuid;
    // Of a GPU that is lost, the handle is known all the same.
    for (index, gpu) in node.gpus().iter().enumerate() {
        if is(gpu) {
            return Ok(handle(index));
        }
        let devices = gpu.config().mig.iter().flatten().filter(|mig| mig.compute_slices > 0);
        if let Some(of) = devices.into_iter().find(|mig| mig.uuid.to_string() == uuid) {
            return state::instance_handle(index, of.gpu_instance);
        }
    }
    Err(NOT_FOUND)
}

entry_points! {
    fn nvmlInit() { state::initialise() }
    fn nvmlInit_v2() { state::initialise() }
    fn nvmlInitWithFlags(_flags: u32) { state::initialise() }
    fn nvmlShutdown() { state::shut_down() }

    fn nvmlSystemGetDriverVersion(text: Out<c_char>, len: u32) {
        text.put_text(&node()?.config().shown_driver_version(), len)
    }

    fn nvmlSystemGetNVMLVersion(text: Out<c_char>, len: u32) {
        text.put_text(&format!("13.{}", node()?.config().shown_driver_version()), len)
    }

    fn nvmlSystemGetCudaDriverVersion(version: Out<i32>) {
        node()?;
        version.put(CUDA_VERSION)
    }

    fn nvmlSystemGetCudaDriverVersion_v2(version: Out<i32>) {
        node()?;
        version.put(CUDA_VERSION)
    }

    fn nvmlDeviceGetCount(count: Out<u32>) {
        count.put(u32::try_from(node()?.gpus().len()).map_err(|_| INVALID)?)
    }

    fn nvmlDeviceGetCount_v2(count: Out<u32>) {
        count.put(u32::try_from(node()?.gpus().len()).map_err(|_| INVALID)?)
    }

    fn nvmlDeviceGetHandleByIndex_v2(index: u32, device: Out<Handle>) {
        let index = usize::try_from(index).map_err(|_| INVALID)?;
        state::Device::at(index)?;
        device.put(handle(index))
    }

    fn nvmlDeviceGetHandleByUUID(uuid: Text, device: Out<Handle>) {
        device.put(by_uuid(uuid.read()?)?)
    }

    fn nvmlDeviceGetHandleByPciBusId_v2(pci: Text, device: Out<Handle>) {
        let node = node()?;
        let pci: gpuzone_core::PciAddress = pci.read()?.parse().map_err(|_| INVALID)?;
        let found = node.gpus().iter().position(|gpu| gpu.config().pci == pci);
        device.put(handle(found.ok_or(NOT_FOUND)?))
    }
}
