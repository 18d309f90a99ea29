//! The part of CUDA's driver API that the probe calls.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::path::Path;

use gpuzone_cuda_abi::CuResult;
use libloading::{Library, Symbol};

use super::Api;

const ADDRESS_SPACE_PAGE: u64 = 2 << 20;
/// Rows of what is allocated in rows, in bytes.
const ROW: u64 = 1 << 20;

/// Why a call did not work.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    #[error("{0} is not in the library")]
    Missing(String),
    #[error("{0}")]
    Cuda(CuResult),
    #[error("the size is out of range")]
    Size,
}

/// An open driver library whose `cuInit` worked.
pub(super) struct Cuda {
    library: Library,
}

/// `CUmemAllocationProp`.
#[repr(C)]
#[derive(Default)]
struct Properties {
    kind: u32,
    handle_types: u32,
    location_kind: u32,
    location: i32,
    windows: usize,
    flags: [u8; 8],
}

/// `CUDA_ARRAY_DESCRIPTOR`.
#[repr(C)]
struct ArrayDescriptor {
    width: usize,
    height: usize,
    format: u32,
    channels: u32,
}

/// `CUarray_format`: `CU_AD_FORMAT_UNSIGNED_INT32`.
const UNSIGNED_INT32: u32 = 3;
/// `CU_MEM_ALLOCATION_TYPE_PINNED` and `CU_MEM_LOCATION_TYPE_DEVICE`.
const PINNED_ON_DEVICE: (u32, u32) = (1, 1);
/// `CU_MEM_ATTACH_GLOBAL`.
const ATTACH_GLOBAL: c_uint = 1;

/// Calls a function of the library by its C signature. The signature is CUDA's own of that name
/// (cuda.h, CUDA 13.0), which every `SAFETY` in this file leans on.
macro_rules! call {
    ($cuda:expr, $name:literal ($($argument:expr => $type:ty),* $(,)?)) => {{
        let name = concat!($name, "\0");
        // SAFETY: the type is the function's own; pointers are to live values of this frame.
        unsafe {
            let found: Result<Symbol<'_, unsafe extern "C" fn($($type),*) -> CuResult>, _> =
                $cuda.library.get(name.as_bytes());
            match found {
                Ok(function) => function($($argument),*).ok().map_err(CallError::Cuda),
                Err(_) => Err(CallError::Missing($name.to_owned())),
            }
        }
    }};
}

impl Cuda {
    /// Opens the library and initialises it. `Err(None)`: there is none.
    pub(super) fn open(path: Option<&Path>) -> Result<Self, Option<CallError>> {
        let path = path.unwrap_or_else(|| Path::new("libcuda.so.1"));
        // SAFETY: the library's initialisers run in this process, which is there for nothing
        // else and whose crash is an answer.
        let library = unsafe { Library::new(path) }.map_err(|_| None)?;
        let cuda = Self { library };
        call!(cuda, "cuInit"(0 => c_uint)).map_err(Some)?;
        Ok(cuda)
    }

    pub(super) fn count(&self) -> Result<u16, CallError> {
        let mut count = 0;
        call!(self, "cuDeviceGetCount"(&raw mut count => *mut c_int))?;
        u16::try_from(count).map_err(|_| CallError::Size)
    }

    pub(super) fn device(&self, ordinal: u16) -> Result<c_int, CallError> {
        let mut device = 0;
        call!(self, "cuDeviceGet"(&raw mut device => *mut c_int, c_int::from(ordinal) => c_int))?;
        Ok(device)
    }

    pub(super) fn name(&self, device: c_int) -> Result<String, CallError> {
        let mut name: [c_char; 256] = [0; 256];
        call!(self, "cuDeviceGetName"(
            name.as_mut_ptr() => *mut c_char, 255 => c_int, device => c_int,
        ))?;
        // SAFETY: the last byte is zero: the library was told of one less.
        let text = unsafe { CStr::from_ptr(name.as_ptr()) };
        Ok(text.to_string_lossy().into_owned())
    }

    pub(super) fn total(&self, device: c_int) -> Result<u64, CallError> {
        let mut bytes = 0_usize;
        call!(self, "cuDeviceTotalMem_v2"(&raw mut bytes => *mut usize, device => c_int))?;
        u64::try_from(bytes).map_err(|_| CallError::Size)
    }

    /// Makes the device's primary context current; it ends with the process.
    pub(super) fn enter(&self, device: c_int) -> Result<(), CallError> {
        let mut context: *mut c_void = std::ptr::null_mut();
        call!(self, "cuDevicePrimaryCtxRetain"(
            &raw mut context => *mut *mut c_void, device => c_int,
        ))?;
        call!(self, "cuCtxSetCurrent"(context => *mut c_void))
    }

    pub(super) fn free_bytes(&self) -> Result<u64, CallError> {
        let (mut free, mut total) = (0_usize, 0_usize);
        call!(self, "cuMemGetInfo_v2"(
            &raw mut free => *mut usize, &raw mut total => *mut usize,
        ))?;
        u64::try_from(free).map_err(|_| CallError::Size)
    }

    pub(super) fn alloc(&self, bytes: u64) -> Result<u64, CallError> {
        let mut address = 0_u64;
        let bytes = usize::try_from(bytes).map_err(|_| CallError::Size)?;
        call!(self, "cuMemAlloc_v2"(&raw mut address => *mut u64, bytes => usize))?;
        Ok(address)
    }

    pub(super) fn read(&self, address: u64, to: &mut [u8]) -> Result<(), CallError> {
        call!(self, "cuMemcpyDtoH_v2"(
            to.as_mut_ptr().cast() => *mut c_void, address => u64, to.len() => usize,
        ))
    }

    pub(super) fn can_reach(&self, device: c_int, peer: c_int) -> Result<bool, CallError> {
        let mut can = 0;
        call!(self, "cuDeviceCanAccessPeer"(
            &raw mut can => *mut c_int, device => c_int, peer => c_int,
        ))?;
        Ok(can != 0)
    }

    /// Whether an allocation can be exported; the handle goes nowhere.
    pub(super) fn exports(&self, address: u64) -> bool {
        let mut handle = [0_u8; 64];
        call!(self, "cuIpcGetMemHandle"(handle.as_mut_ptr() => *mut u8, address => u64)).is_ok()
    }

    /// Takes memory that ends with the process; how much it was.
    pub(super) fn take(&self, api: Api, device: c_int, bytes: u64) -> Result<u64, CallError> {
        let size = usize::try_from(bytes).map_err(|_| CallError::Size)?;
        let mut out = 0_u64;
        let out = &raw mut out;
        match api {
            Api::Alloc => self.alloc(bytes).map(|_| bytes),
            Api::Pitch => self.take_rows(bytes),
            Api::Async => {
                call!(self, "cuMemAllocAsync"(
                    out => *mut u64, size => usize, std::ptr::null_mut() => *mut c_void,
                ))?;
                call!(self, "cuCtxSynchronize"())?;
                Ok(bytes)
            }
            Api::Vmm => self.take_pages(device, bytes),
            Api::Managed => {
                call!(self, "cuMemAllocManaged"(
                    out => *mut u64, size => usize, ATTACH_GLOBAL => c_uint,
                ))?;
                Ok(bytes)
            }
            Api::Globals => self.take_globals(bytes),
            Api::Array => self.take_array(bytes),
        }
    }

    fn take_rows(&self, bytes: u64) -> Result<u64, CallError> {
        let rows = bytes.div_ceil(ROW);
        let (mut address, mut pitch) = (0_u64, 0_usize);
        let size = |value: u64| usize::try_from(value).map_err(|_| CallError::Size);
        call!(self, "cuMemAllocPitch_v2"(
            &raw mut address => *mut u64, &raw mut pitch => *mut usize,
            size(ROW)? => usize, size(rows)? => usize, 16 => c_uint,
        ))?;
        Ok(rows.saturating_mul(ROW))
    }

    fn take_pages(&self, device: c_int, bytes: u64) -> Result<u64, CallError> {
        let whole = bytes.div_ceil(ADDRESS_SPACE_PAGE).saturating_mul(ADDRESS_SPACE_PAGE);
        let (kind, location_kind) = PINNED_ON_DEVICE;
        let properties =
            Properties { kind, location_kind, location: device, ..Properties::default() };
        let mut handle = 0_u64;
        let size = usize::try_from(whole).map_err(|_| CallError::Size)?;
        call!(self, "cuMemCreate"(
            &raw mut handle => *mut u64, size => usize,
            &raw const properties => *const Properties, 0 => u64,
        ))?;
        Ok(whole)
    }

    fn take_globals(&self, bytes: u64) -> Result<u64, CallError> {
        let text = format!(
            ".version 7.0\n.target sm_52\n.address_size 64\n.visible .global .align 16 .b8 probe[{bytes}];\n"
        );
        let image = CString::new(text).map_err(|_| CallError::Size)?;
        let mut module: *mut c_void = std::ptr::null_mut();
        call!(self, "cuModuleLoadData"(
            &raw mut module => *mut *mut c_void, image.as_ptr().cast() => *const c_void,
        ))?;
        // A lazy driver takes the memory when somebody asks where it is.
        let (mut address, mut size) = (0_u64, 0_usize);
        call!(self, "cuModuleGetGlobal_v2"(
            &raw mut address => *mut u64, &raw mut size => *mut usize,
            module => *mut c_void, c"probe".as_ptr() => *const c_char,
        ))?;
        Ok(bytes)
    }

    fn take_array(&self, bytes: u64) -> Result<u64, CallError> {
        let rows = bytes.div_ceil(ROW);
        let height = usize::try_from(rows).map_err(|_| CallError::Size)?;
        let width = usize::try_from(ROW / 16).map_err(|_| CallError::Size)?;
        let descriptor = ArrayDescriptor { width, height, format: UNSIGNED_INT32, channels: 4 };
        let mut array: *mut c_void = std::ptr::null_mut();
        call!(self, "cuArrayCreate_v2"(
            &raw mut array => *mut *mut c_void, &raw const descriptor => *const ArrayDescriptor,
        ))?;
        Ok(rows.saturating_mul(ROW))
    }
}
