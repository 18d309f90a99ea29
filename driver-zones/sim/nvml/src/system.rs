use std::collections::BTreeMap;
use std::ffi::{CString, c_char};
use std::sync::LazyLock;

use gpuzone_sim_device::SimulatedGpu;
use nvml_wrapper_sys::bindings::*;

use crate::abi::{INVALID, Out, Text, entry_points};
use crate::state::{self, Handle, handle, node};

/// CUDA's version as the simulated driver has it.
const CUDA_VERSION: i32 = 13_000;

/// NVML's words for its results.
static ERRORS: LazyLock<BTreeMap<nvmlReturn_t, CString>> = LazyLock::new(|| {
    let texts = [
        (nvmlReturn_enum_NVML_SUCCESS, "Success"),
        (nvmlReturn_enum_NVML_ERROR_UNINITIALIZED, "Uninitialized"),
        (nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT, "Invalid Argument"),
        (nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED, "Not Supported"),
        (nvmlReturn_enum_NVML_ERROR_NO_PERMISSION, "Insufficient Permissions"),
        (nvmlReturn_enum_NVML_ERROR_NOT_FOUND, "Not Found"),
        (nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE, "Insufficient Size"),
        (nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED, "Driver Not Loaded"),
        (nvmlReturn_enum_NVML_ERROR_TIMEOUT, "Timeout"),
        (nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST, "GPU is lost"),
        (nvmlReturn_enum_NVML_ERROR_UNKNOWN, "Unknown Error"),
    ];
    texts.into_iter().filter_map(|(code, text)| Some((code, CString::new(text).ok()?))).collect()
});

/// The text of a result.
#[unsafe(no_mangle)]
#[allow(non_snake_case, reason = "the name is NVML's")]
pub(crate) extern "C" fn nvmlErrorString(result: nvmlReturn_t) -> *const c_char {
    let unknown = nvmlReturn_enum_NVML_ERROR_UNKNOWN;
    let text = ERRORS.get(&result).or_else(|| ERRORS.get(&unknown));
    text.map_or(std::ptr::null(), |text| text.as_ptr())
}

fn by_uuid(uuid: &str) -> crate::Answer<Handle> {
    let node = node()?;
    for index in 0..node.gpus().len() {
        let device = state::Device::at(index)?;
        let is = |gpu: &SimulatedGpu| gpu.config().uuid.to_string() == uuid;
        if is(device.whole()) {
            return Ok(device.whole_handle());
        }
        if let Some(instance) = device.whole().instances().iter().position(is) {
            return Ok(device.instance_handle(instance));
        }
    }
    Err(crate::abi::Return(nvmlReturn_enum_NVML_ERROR_NOT_FOUND))
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
        let not_found = crate::abi::Return(nvmlReturn_enum_NVML_ERROR_NOT_FOUND);
        device.put(handle(found.ok_or(not_found)?))
    }
}
