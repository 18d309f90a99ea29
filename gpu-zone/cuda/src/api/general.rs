use std::collections::HashMap;
use std::ffi::{CString, c_char, c_void};
use std::sync::OnceLock;

use gpuzone_cuda_abi::{API_VERSION, CuResult, module_loading, proc_address};

use crate::ffi::{Answer, api, put, put_if_wanted, text};
use crate::state::{initialise, with};
use crate::stubs;

/// Names that mean another function from some version on; the oldest version first.
const RENAMED: [(&str, i32, &str); 57] = [
    ("cuGraphAddKernelNode", 12000, "cuGraphAddKernelNode_v2"),
    ("cuGraphKernelNodeGetParams", 12000, "cuGraphKernelNodeGetParams_v2"),
    ("cuGraphKernelNodeSetParams", 12000, "cuGraphKernelNodeSetParams_v2"),
    ("cuGraphExecKernelNodeSetParams", 12000, "cuGraphExecKernelNodeSetParams_v2"),
    ("cuGraphExecUpdate", 12000, "cuGraphExecUpdate_v2"),
    ("cuGraphInstantiate", 11000, "cuGraphInstantiate_v2"),
    ("cuGraphInstantiate", 12000, "cuGraphInstantiateWithFlags"),
    ("cuStreamBeginCapture", 10010, "cuStreamBeginCapture_v2"),
    ("cuStreamGetCaptureInfo", 11030, "cuStreamGetCaptureInfo_v2"),
    ("cuStreamGetCaptureInfo", 13000, "cuStreamGetCaptureInfo_v3"),
    ("cuGraphGetEdges", 13000, "cuGraphGetEdges_v2"),
    ("cuGraphNodeGetDependencies", 13000, "cuGraphNodeGetDependencies_v2"),
    ("cuGraphNodeGetDependentNodes", 13000, "cuGraphNodeGetDependentNodes_v2"),
    ("cuGraphAddDependencies", 13000, "cuGraphAddDependencies_v2"),
    ("cuGraphRemoveDependencies", 13000, "cuGraphRemoveDependencies_v2"),
    ("cuGraphAddNode", 13000, "cuGraphAddNode_v2"),
    ("cuLinkCreate", 6050, "cuLinkCreate_v2"),
    ("cuLinkAddData", 6050, "cuLinkAddData_v2"),
    ("cuLinkAddFile", 6050, "cuLinkAddFile_v2"),
    ("cuDeviceTotalMem", 3020, "cuDeviceTotalMem_v2"),
    ("cuDeviceGetUuid", 11040, "cuDeviceGetUuid_v2"),
    ("cuDevicePrimaryCtxRelease", 11000, "cuDevicePrimaryCtxRelease_v2"),
    ("cuDevicePrimaryCtxReset", 11000, "cuDevicePrimaryCtxReset_v2"),
    ("cuDevicePrimaryCtxSetFlags", 11000, "cuDevicePrimaryCtxSetFlags_v2"),
    ("cuCtxCreate", 3020, "cuCtxCreate_v2"),
    ("cuCtxCreate", 11040, "cuCtxCreate_v3"),
    ("cuCtxCreate", 12050, "cuCtxCreate_v4"),
    ("cuCtxDestroy", 4000, "cuCtxDestroy_v2"),
    ("cuCtxPopCurrent", 4000, "cuCtxPopCurrent_v2"),
    ("cuCtxPushCurrent", 4000, "cuCtxPushCurrent_v2"),
    ("cuGetProcAddress", 12000, "cuGetProcAddress_v2"),
    ("cuModuleGetGlobal", 3020, "cuModuleGetGlobal_v2"),
    ("cuMemGetInfo", 3020, "cuMemGetInfo_v2"),
    ("cuMemAlloc", 3020, "cuMemAlloc_v2"),
    ("cuMemAllocPitch", 3020, "cuMemAllocPitch_v2"),
    ("cuMemFree", 3020, "cuMemFree_v2"),
    ("cuMemGetAddressRange", 3020, "cuMemGetAddressRange_v2"),
    ("cuMemAllocHost", 3020, "cuMemAllocHost_v2"),
    ("cuMemHostGetDevicePointer", 3020, "cuMemHostGetDevicePointer_v2"),
    ("cuMemHostRegister", 6050, "cuMemHostRegister_v2"),
    ("cuMemcpyHtoD", 3020, "cuMemcpyHtoD_v2"),
    ("cuMemcpyDtoH", 3020, "cuMemcpyDtoH_v2"),
    ("cuMemcpyDtoD", 3020, "cuMemcpyDtoD_v2"),
    ("cuMemcpyHtoDAsync", 3020, "cuMemcpyHtoDAsync_v2"),
    ("cuMemcpyDtoHAsync", 3020, "cuMemcpyDtoHAsync_v2"),
    ("cuMemcpyDtoDAsync", 3020, "cuMemcpyDtoDAsync_v2"),
    ("cuMemcpy2D", 3020, "cuMemcpy2D_v2"),
    ("cuMemcpy2DUnaligned", 3020, "cuMemcpy2DUnaligned_v2"),
    ("cuMemcpy2DAsync", 3020, "cuMemcpy2DAsync_v2"),
    ("cuMemcpy3D", 3020, "cuMemcpy3D_v2"),
    ("cuMemcpy3DAsync", 3020, "cuMemcpy3DAsync_v2"),
    ("cuMemsetD8", 3020, "cuMemsetD8_v2"),
    ("cuMemsetD16", 3020, "cuMemsetD16_v2"),
    ("cuMemsetD32", 3020, "cuMemsetD32_v2"),
    ("cuStreamDestroy", 4000, "cuStreamDestroy_v2"),
    ("cuEventDestroy", 4000, "cuEventDestroy_v2"),
    ("cuEventElapsedTime", 12080, "cuEventElapsedTime_v2"),
];

/// `CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM`.
const PER_THREAD: u64 = 2;

/// The function that `name` means to a program of this version.
fn look_up(name: &str, version: i32, flags: u64) -> Option<*const ()> {
    let renamed = RENAMED.iter().rev().find(|(old, from, _)| *old == name && *from <= version);
    let symbol = renamed.map_or(name, |(_, _, new)| new);
    if flags & PER_THREAD != 0 {
        let variants = ["_ptsz", "_ptds"].map(|suffix| format!("{symbol}{suffix}"));
        if let Some(found) = variants.iter().find_map(|variant| stubs::address(variant)) {
            return Some(found);
        }
    }
    stubs::address(symbol).or_else(|| {
        // What is not in the list above has its newest meaning.
        (2..=4).rev().find_map(|number| stubs::address(&format!("{name}_v{number}")))
    })
}

fn proc_address(
    symbol: *const c_char,
    place: *mut *mut c_void,
    version: i32,
    flags: u64,
    status: *mut u32,
) -> Answer {
    let name = text(symbol)?;
    let found = look_up(name, version, flags);
    let address = found.map_or(std::ptr::null_mut(), |found| found.cast_mut().cast());
    put(place, address)?;
    let told = if found.is_some() { proc_address::SUCCESS } else { proc_address::SYMBOL_NOT_FOUND };
    put_if_wanted(status, told);
    if found.is_some() || !status.is_null() { Ok(()) } else { Err(CuResult::NOT_FOUND) }
}

fn error_texts(result: u32) -> Option<&'static (CString, CString)> {
    static TEXTS: OnceLock<HashMap<u32, (CString, CString)>> = OnceLock::new();
    let texts = TEXTS.get_or_init(|| {
        let both = |result: &CuResult| {
            let name = CString::new(result.name()?).ok()?;
            let description = CString::new(result.description()?).ok()?;
            Some((result.0, (name, description)))
        };
        CuResult::ALL.iter().filter_map(both).collect()
    });
    texts.get(&result)
}

api! {
    fn cuInit(flags: u32) {
        if flags == 0 { initialise() } else { Err(CuResult::INVALID_VALUE) }
    }

    fn cuDriverGetVersion(version: *mut i32) {
        // Programs ask before they initialise.
        put(version, with(|state| Ok(state.driver_version)).unwrap_or(API_VERSION))
    }

    fn cuGetErrorName(error: u32, name: *mut *const c_char) {
        let texts = error_texts(error);
        put(name, texts.map_or(std::ptr::null(), |(name, _)| name.as_ptr()))?;
        texts.map(|_| ()).ok_or(CuResult::INVALID_VALUE)
    }

    fn cuGetErrorString(error: u32, description: *mut *const c_char) {
        let texts = error_texts(error);
        put(description, texts.map_or(std::ptr::null(), |(_, text)| text.as_ptr()))?;
        texts.map(|_| ()).ok_or(CuResult::INVALID_VALUE)
    }

    fn cuGetProcAddress(
        symbol: *const c_char, place: *mut *mut c_void, version: i32, flags: u64,
    ) {
        proc_address(symbol, place, version, flags, std::ptr::null_mut())
    }

    fn cuGetProcAddress_v2(
        symbol: *const c_char, place: *mut *mut c_void, version: i32, flags: u64,
        status: *mut u32,
    ) {
        proc_address(symbol, place, version, flags, status)
    }

    fn cuModuleGetLoadingMode(mode: *mut u32) {
        put(mode, module_loading::EAGER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_mean_what_they_meant_to_the_programs_version() {
        assert_eq!(look_up("cuCtxCreate", 11040, 0), stubs::address("cuCtxCreate_v3"));
        assert_eq!(look_up("cuCtxCreate", 13000, 0), stubs::address("cuCtxCreate_v4"));
        assert_eq!(look_up("cuMemAlloc", 13000, 0), stubs::address("cuMemAlloc_v2"));
        assert_eq!(look_up("cuCtxGetDevice", 13000, 0), stubs::address("cuCtxGetDevice"));
        assert!(look_up("cuMemAllocManaged", 13000, 0).is_some(), "unsupported, but there");
        let instantiate = |version| look_up("cuGraphInstantiate", version, 0);
        assert_eq!(instantiate(11040), stubs::address("cuGraphInstantiate_v2"));
        assert_eq!(instantiate(12000), stubs::address("cuGraphInstantiateWithFlags"));
        assert_eq!(look_up("cuNoSuchFunction", 13000, 0), None);
        let own = |name| look_up(name, 13000, PER_THREAD);
        assert_eq!(own("cuLaunchKernel"), stubs::address("cuLaunchKernel_ptsz"));
        assert_eq!(own("cuMemcpyHtoD"), stubs::address("cuMemcpyHtoD_v2_ptds"));
        assert_eq!(own("cuMemAlloc"), stubs::address("cuMemAlloc_v2"), "no stream, no variant");
        for (_, _, new) in RENAMED {
            assert!(stubs::address(new).is_some(), "{new}");
        }
    }

    #[test]
    fn calls_before_initialising_say_so() {
        let mut count = 0;
        let refused = with(|state| {
            count = state.devices.len();
            Ok(())
        });
        assert_eq!(refused, Err(CuResult::NOT_INITIALIZED));
    }
}
