use std::ffi::{c_char, c_void};
use std::path::{Path, PathBuf};

use gpuzone_cuda_abi::rows::WORDS_2D;
use gpuzone_cuda_abi::{
    CUcontext, CUdevice, CUdeviceptr, CUevent, CUfunction, CUmodule, CUstream, CUuuid, CuResult,
    LaunchConfig, MemoryAccess, PhysicalProperties,
};

/// Why the driver's library is not usable.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It could not be opened.
    #[error(
        "cannot open the driver library {path}: {reason}; name the right file as `cuda_library` in the configuration"
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// What the loader said.
        reason: String,
    },
    /// It is something else, or too old.
    #[error(
        "{path} has no {symbol}, so it is no CUDA driver library of version 12.4 or later; name the right file as `cuda_library` in the configuration"
    )]
    Symbol {
        /// The file.
        path: PathBuf,
        /// What it lacks.
        symbol: &'static str,
    },
}

macro_rules! driver {
    ($($field:ident: [$($symbol:literal),+] ($($argument:ty),*);)*) => {
        /// The functions of the driver that the worker calls.
        #[allow(missing_docs, reason = "they bear the names of CUDA's functions")]
        #[derive(Debug)]
        pub struct Driver {
            $(pub $field: unsafe extern "C" fn($($argument),*) -> CuResult,)*
            /// Keeps the functions where they are.
            pub library: Option<libloading::Library>,
        }

        impl Driver {
            fn look_up(library: libloading::Library, path: &Path) -> Result<Self, LoadError> {
                $(
                    let symbols = [$($symbol),+];
                    // SAFETY: the signature is that of the driver API, which never changes the
                    // meaning of a name.
                    let found = symbols.iter().find_map(|symbol| unsafe {
                        library
                            .get::<unsafe extern "C" fn($($argument),*) -> CuResult>(*symbol)
                            .ok()
                    });
                    let symbol = symbols[0];
                    let missing = || LoadError::Symbol { path: path.to_owned(), symbol };
                    let $field = *found.ok_or_else(missing)?;
                )*
                Ok(Self { $($field,)* library: Some(library) })
            }

            /// A driver that does nothing and says that it was done.
            #[cfg(any(test, feature = "fuzzing"))]
            pub(crate) fn idle() -> Self {
                Self {
                    $($field: {
                        unsafe extern "C" fn idle($(_: $argument),*) -> CuResult {
                            CuResult::SUCCESS
                        }
                        idle
                    },)*
                    library: None,
                }
            }
        }
    };
}

impl Driver {
    /// Opens the library at `path`.
    ///
    /// # Errors
    /// When there is none, or it is not the driver's.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        // SAFETY: loading runs the library's initialisers. The path comes from the node's
        // configuration, and running that library is what this process is for.
        let library = unsafe { libloading::Library::new(path) };
        let library = library.map_err(|error| LoadError::Open {
            path: path.to_owned(),
            reason: std::error::Error::source(&error)
                .map_or_else(|| error.to_string(), ToString::to_string),
        })?;
        Self::look_up(library, path)
    }
}

driver! {
    init: ["cuInit"] (u32);
    version: ["cuDriverGetVersion"] (*mut i32);
    device_count: ["cuDeviceGetCount"] (*mut i32);
    device_get: ["cuDeviceGet"] (*mut CUdevice, i32);
    device_name: ["cuDeviceGetName"] (*mut c_char, i32, CUdevice);
    device_uuid: ["cuDeviceGetUuid_v2", "cuDeviceGetUuid"] (*mut CUuuid, CUdevice);
    device_memory: ["cuDeviceTotalMem_v2"] (*mut usize, CUdevice);
    device_attribute: ["cuDeviceGetAttribute"] (*mut i32, i32, CUdevice);
    context_create: ["cuCtxCreate_v2"] (*mut CUcontext, u32, CUdevice);
    context_destroy: ["cuCtxDestroy_v2"] (CUcontext);
    context_set_current: ["cuCtxSetCurrent"] (CUcontext);
    context_synchronize: ["cuCtxSynchronize"] ();
    context_limit: ["cuCtxGetLimit"] (*mut usize, u32);
    context_set_limit: ["cuCtxSetLimit"] (u32, usize);
    context_priorities: ["cuCtxGetStreamPriorityRange"] (*mut i32, *mut i32);
    memory_allocate: ["cuMemAlloc_v2"] (*mut CUdeviceptr, usize);
    memory_free: ["cuMemFree_v2"] (CUdeviceptr);
    memory_info: ["cuMemGetInfo_v2"] (*mut usize, *mut usize);
    copy_to_device: ["cuMemcpyHtoDAsync_v2"] (CUdeviceptr, *const c_void, usize, CUstream);
    copy_to_host: ["cuMemcpyDtoHAsync_v2"] (*mut c_void, CUdeviceptr, usize, CUstream);
    copy_on_device: ["cuMemcpyDtoDAsync_v2"] (CUdeviceptr, CUdeviceptr, usize, CUstream);
    set_8: ["cuMemsetD8Async"] (CUdeviceptr, u8, usize, CUstream);
    set_16: ["cuMemsetD16Async"] (CUdeviceptr, u16, usize, CUstream);
    set_32: ["cuMemsetD32Async"] (CUdeviceptr, u32, usize, CUstream);
    set_rows_8: ["cuMemsetD2D8Async"] (CUdeviceptr, usize, u8, usize, usize, CUstream);
    set_rows_16: ["cuMemsetD2D16Async"] (CUdeviceptr, usize, u16, usize, usize, CUstream);
    set_rows_32: ["cuMemsetD2D32Async"] (CUdeviceptr, usize, u32, usize, usize, CUstream);
    copy_rows: ["cuMemcpy2DAsync_v2"] (*const [u64; WORDS_2D], CUstream);
    host_register: ["cuMemHostRegister_v2"] (*mut c_void, usize, u32);
    host_device_pointer: ["cuMemHostGetDevicePointer_v2"] (*mut CUdeviceptr, *mut c_void, u32);
    host_unregister: ["cuMemHostUnregister"] (*mut c_void);
    granularity: ["cuMemGetAllocationGranularity"] (*mut usize, *const PhysicalProperties, u32);
    address_reserve: ["cuMemAddressReserve"] (*mut CUdeviceptr, usize, usize, CUdeviceptr, u64);
    address_free: ["cuMemAddressFree"] (CUdeviceptr, usize);
    physical_create: ["cuMemCreate"] (*mut u64, usize, *const PhysicalProperties, u64);
    physical_release: ["cuMemRelease"] (u64);
    physical_map: ["cuMemMap"] (CUdeviceptr, usize, usize, u64, u64);
    physical_unmap: ["cuMemUnmap"] (CUdeviceptr, usize);
    physical_access: ["cuMemSetAccess"] (CUdeviceptr, usize, *const MemoryAccess, usize);
    module_load: ["cuModuleLoadDataEx"]
        (*mut CUmodule, *const c_void, u32, *mut u32, *mut *mut c_void);
    module_unload: ["cuModuleUnload"] (CUmodule);
    module_kernel_count: ["cuModuleGetFunctionCount"] (*mut u32, CUmodule);
    module_kernels: ["cuModuleEnumerateFunctions"] (*mut CUfunction, u32, CUmodule);
    function_name: ["cuFuncGetName"] (*mut *const c_char, CUfunction);
    link_create: ["cuLinkCreate_v2"] (u32, *mut u32, *mut *mut c_void, *mut *mut c_void);
    link_add: ["cuLinkAddData_v2"]
        (*mut c_void, u32, *mut c_void, usize, *const c_char, u32, *mut u32, *mut *mut c_void);
    link_complete: ["cuLinkComplete"] (*mut c_void, *mut *mut c_void, *mut usize);
    link_destroy: ["cuLinkDestroy"] (*mut c_void);
    module_function: ["cuModuleGetFunction"] (*mut CUfunction, CUmodule, *const c_char);
    module_global: ["cuModuleGetGlobal_v2"]
        (*mut CUdeviceptr, *mut usize, CUmodule, *const c_char);
    function_attribute: ["cuFuncGetAttribute"] (*mut i32, i32, CUfunction);
    function_set_attribute: ["cuFuncSetAttribute"] (CUfunction, i32, i32);
    function_parameter: ["cuFuncGetParamInfo"] (CUfunction, usize, *mut usize, *mut usize);
    occupancy: ["cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags"]
        (*mut i32, CUfunction, i32, usize, u32);
    occupancy_shared: ["cuOccupancyAvailableDynamicSMemPerBlock"]
        (*mut usize, CUfunction, i32, i32);
    launch_host_function: ["cuLaunchHostFunc"]
        (CUstream, Option<unsafe extern "C" fn(*mut c_void)>, *mut c_void);
    launch_with: ["cuLaunchKernelEx"]
        (*const LaunchConfig, CUfunction, *mut *mut c_void, *mut *mut c_void);
    launch: ["cuLaunchKernel"]
        (CUfunction, u32, u32, u32, u32, u32, u32, u32, CUstream, *mut *mut c_void,
         *mut *mut c_void);
    stream_create: ["cuStreamCreateWithPriority"] (*mut CUstream, u32, i32);
    stream_destroy: ["cuStreamDestroy_v2"] (CUstream);
    stream_synchronize: ["cuStreamSynchronize"] (CUstream);
    stream_query: ["cuStreamQuery"] (CUstream);
    stream_wait_event: ["cuStreamWaitEvent"] (CUstream, CUevent, u32);
    event_create: ["cuEventCreate"] (*mut CUevent, u32);
    event_destroy: ["cuEventDestroy_v2"] (CUevent);
    event_record: ["cuEventRecord"] (CUevent, CUstream);
    event_synchronize: ["cuEventSynchronize"] (CUevent);
    event_query: ["cuEventQuery"] (CUevent);
    event_elapsed: ["cuEventElapsedTime_v2", "cuEventElapsedTime"] (*mut f32, CUevent, CUevent);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(path: &Path) -> String {
        Driver::open(path).expect_err("no driver").to_string()
    }

    #[test]
    fn says_what_is_wrong_with_a_library() {
        let missing = reason(Path::new("/nonexistent/libcuda.so.1"));
        assert!(missing.contains("/nonexistent/libcuda.so.1"), "{missing}");
        let file = tempfile::NamedTempFile::new().expect("a file");
        let text = reason(file.path());
        assert!(text.starts_with("cannot open the driver library"), "{text}");
        let other = reason(Path::new("libc.so.6"));
        assert!(other.contains("has no cuInit"), "{other}");
    }
}
