//! NVML's functions about GPU instances and compute instances, which its safe binding has not, or
//! has wrong (its list of placements is always empty).
#![allow(unsafe_code, reason = "NVML is a C library")]
#![allow(non_upper_case_globals, reason = "the names are NVML's")]

use std::ffi::{CStr, c_char};
use std::path::Path;

use nvml_wrapper::Device;
use nvml_wrapper_sys::bindings::*;

use super::MigPlacement;

/// Entries in lists whose length the caller has to know: no GPU has as many instances.
const ROOM: usize = 64;
/// More placements than any profile has.
const MOST_PLACEMENTS: u32 = 256;
const PROFILE_V2: u32 = {
    #[allow(clippy::cast_possible_truncation, reason = "it has some hundred bytes")]
    let size = size_of::<nvmlGpuInstanceProfileInfo_v2_t>() as u32;
    size | (2 << 24)
};

/// Why a call came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RawError {
    /// The library is older than the function.
    Missing(&'static str),
    /// NVML's own number.
    Code(nvmlReturn_t),
}

impl RawError {
    /// Whether the GPU does not know what was asked about.
    pub(super) const fn is_unsupported(self) -> bool {
        match self {
            Self::Missing(_) => false,
            Self::Code(code) => matches!(
                code,
                nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED
                    | nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT
            ),
        }
    }

    /// Whether it says for sure that nothing was done.
    pub(super) const fn is_refusal(self) -> bool {
        match self {
            Self::Missing(_) => true,
            Self::Code(code) => matches!(
                code,
                nvmlReturn_enum_NVML_ERROR_UNINITIALIZED
                    | nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT
                    | nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED
                    | nvmlReturn_enum_NVML_ERROR_NO_PERMISSION
                    | nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_RESOURCES
                    | nvmlReturn_enum_NVML_ERROR_IN_USE
            ),
        }
    }
}

impl std::fmt::Display for RawError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let code = match self {
            Self::Missing(name) => {
                return write!(f, "this driver's NVML has no {name}; use R450 or later");
            }
            Self::Code(code) => *code,
        };
        f.write_str(match code {
            nvmlReturn_enum_NVML_ERROR_NO_PERMISSION => {
                "the caller may not (root may, and who may open /dev/nvidia-caps' MIG nodes)"
            }
            nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_RESOURCES => {
                "there is no room for it, or something else is there"
            }
            nvmlReturn_enum_NVML_ERROR_IN_USE => {
                "it is in use, by a process or by compute instances in it"
            }
            nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED => {
                "not supported; it may not be in MIG mode any more"
            }
            nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT => "the GPU knows no such thing",
            nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST => "the GPU is lost",
            other => return write!(f, "error {other}"),
        })
    }
}

/// A GPU instance, as long as its library is open.
#[derive(Clone, Copy)]
pub(super) struct GpuInstanceHandle(nvmlGpuInstance_t);

/// A compute instance, the same.
#[derive(Clone, Copy)]
pub(super) struct ComputeInstanceHandle(nvmlComputeInstance_t);

/// What a GPU instance, or a compute instance, can be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RawKind {
    pub(super) id: u32,
    pub(super) slices: u32,
    pub(super) most: u32,
    pub(super) megabytes: u64,
    /// As NVML calls it, where it does.
    pub(super) name: Option<String>,
}

/// What an instance is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RawInstance {
    pub(super) number: u32,
    pub(super) kind: u32,
    pub(super) placement: MigPlacement,
}

/// The library once more: the same one that its safe binding has open and has initialised.
pub(crate) struct Raw(NvmlLib);

impl std::fmt::Debug for Raw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NVML")
    }
}

macro_rules! call {
    ($raw:expr, $name:ident($($argument:expr),* $(,)?)) => {{
        let function = ($raw.0).$name.as_ref().map_err(|_| RawError::Missing(stringify!($name)));
        // SAFETY: the function is NVML's of that name, whose contract is that handles are the
        // library's own (or are refused by it), and that pointers lead to what the type says; the
        // caller passes places of its own that live as long as the call.
        function.and_then(|function| match unsafe { function($($argument),*) } {
            nvmlReturn_enum_NVML_SUCCESS => Ok(()),
            code => Err(RawError::Code(code)),
        })
    }};
}

fn handle(device: &Device<'_>) -> nvmlDevice_t {
    // SAFETY: it is only passed to the library that gave it out, while that is open.
    unsafe { device.handle() }
}

fn text(field: &[c_char]) -> Option<String> {
    let bytes: Vec<u8> = field.iter().map(|c| c.cast_unsigned()).collect();
    let text = CStr::from_bytes_until_nul(&bytes).ok()?.to_str().ok()?;
    Some(text.to_owned()).filter(|text| !text.is_empty())
}

/// A plain structure of NVML's numbers, all zero.
macro_rules! zeroed {
    ($type:ty) => {{
        // SAFETY: it has integers, arrays of such and pointers only, for which zero is a value.
        unsafe { std::mem::zeroed::<$type>() }
    }};
}

impl Raw {
    /// Opens the library that is open at `path` already.
    pub(crate) fn open(path: &Path) -> Result<Self, String> {
        // SAFETY: the library is loaded, so no code of it runs now; its functions' types are NVML's.
        unsafe { NvmlLib::new(path.as_os_str()) }.map(Self).map_err(|error| error.to_string())
    }

    /// What GPU instances with NVML's number can be; `None` where the GPU has none of those.
    pub(super) fn kind(&self, of: &Device<'_>, number: u32) -> Result<Option<RawKind>, RawError> {
        let mut info = zeroed!(nvmlGpuInstanceProfileInfo_v2_t);
        info.version = PROFILE_V2;
        match call!(self, nvmlDeviceGetGpuInstanceProfileInfoV(handle(of), number, &raw mut info)) {
            Ok(()) => Ok(Some(RawKind {
                id: info.id,
                slices: info.sliceCount,
                most: info.instanceCount,
                megabytes: info.memorySizeMB,
                name: text(&info.name),
            })),
            Err(error) if error.is_unsupported() => Ok(None),
            // R450 to R465 have the older function alone.
            Err(RawError::Missing(_)) => self.nameless_kind(of, number),
            Err(error) => Err(error),
        }
    }

    fn nameless_kind(&self, of: &Device<'_>, number: u32) -> Result<Option<RawKind>, RawError> {
        let mut info = zeroed!(nvmlGpuInstanceProfileInfo_t);
        match call!(self, nvmlDeviceGetGpuInstanceProfileInfo(handle(of), number, &raw mut info)) {
            Ok(()) => Ok(Some(RawKind {
                id: info.id,
                slices: info.sliceCount,
                most: info.instanceCount,
                megabytes: info.memorySizeMB,
                name: None,
            })),
            Err(error) if error.is_unsupported() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Where instances of a kind may lie; nowhere, where the GPU does not say.
    pub(super) fn placements(
        &self,
        of: &Device<'_>,
        kind: u32,
    ) -> Result<Vec<MigPlacement>, RawError> {
        let ask = |list: *mut nvmlGpuInstancePlacement_t, count: &mut u32| {
            let (device, count) = (handle(of), &raw mut *count);
            call!(self, nvmlDeviceGetGpuInstancePossiblePlacements_v2(device, kind, list, count))
        };
        let mut count = 0;
        match ask(std::ptr::null_mut(), &mut count) {
            Ok(()) => {}
            Err(error) if error.is_unsupported() => return Ok(Vec::new()),
            Err(error) => return Err(error),
        }
        if count == 0 || count > MOST_PLACEMENTS {
            return Ok(Vec::new());
        }
        let mut list = vec![nvmlGpuInstancePlacement_t { start: 0, size: 0 }; count as usize];
        ask(list.as_mut_ptr(), &mut count)?;
        list.truncate(count as usize);
        Ok(list.iter().map(|of| MigPlacement { start: of.start, size: of.size }).collect())
    }

    /// The GPU instances of a kind.
    pub(super) fn instances(
        &self,
        of: &Device<'_>,
        kind: u32,
    ) -> Result<Vec<GpuInstanceHandle>, RawError> {
        let mut list = [std::ptr::null_mut(); ROOM];
        let (places, mut count) = (list.as_mut_ptr(), 0);
        call!(self, nvmlDeviceGetGpuInstances(handle(of), kind, places, &raw mut count))?;
        Ok(list.into_iter().take(count as usize).map(GpuInstanceHandle).collect())
    }

    pub(super) fn instance(&self, of: GpuInstanceHandle) -> Result<RawInstance, RawError> {
        let mut info = zeroed!(nvmlGpuInstanceInfo_t);
        call!(self, nvmlGpuInstanceGetInfo(of.0, &raw mut info))?;
        let placement = MigPlacement { start: info.placement.start, size: info.placement.size };
        Ok(RawInstance { number: info.id, kind: info.profileId, placement })
    }

    /// The kinds of compute instances that a GPU instance can have.
    pub(super) fn compute_kinds(&self, of: GpuInstanceHandle) -> Result<Vec<RawKind>, RawError> {
        let mut kinds = Vec::new();
        for number in 0..NVML_COMPUTE_INSTANCE_PROFILE_COUNT {
            let mut info = zeroed!(nvmlComputeInstanceProfileInfo_t);
            let engines = NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED;
            let into = &raw mut info;
            match call!(
                self,
                nvmlGpuInstanceGetComputeInstanceProfileInfo(of.0, number, engines, into)
            ) {
                Ok(()) => kinds.push(RawKind {
                    id: info.id,
                    slices: info.sliceCount,
                    most: info.instanceCount,
                    megabytes: 0,
                    name: None,
                }),
                Err(error) if error.is_unsupported() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(kinds)
    }

    /// The compute instances of a kind.
    pub(super) fn computes(
        &self,
        of: GpuInstanceHandle,
        kind: u32,
    ) -> Result<Vec<ComputeInstanceHandle>, RawError> {
        let mut list = [std::ptr::null_mut(); ROOM];
        let (places, mut count) = (list.as_mut_ptr(), 0);
        call!(self, nvmlGpuInstanceGetComputeInstances(of.0, kind, places, &raw mut count))?;
        Ok(list.into_iter().take(count as usize).map(ComputeInstanceHandle).collect())
    }

    pub(super) fn compute(&self, of: ComputeInstanceHandle) -> Result<RawInstance, RawError> {
        let mut info = zeroed!(nvmlComputeInstanceInfo_t);
        call!(self, nvmlComputeInstanceGetInfo_v2(of.0, &raw mut info))?;
        let placement = MigPlacement { start: info.placement.start, size: info.placement.size };
        Ok(RawInstance { number: info.id, kind: info.profileId, placement })
    }

    /// The numbers of a MIG device's GPU instance and compute instance.
    pub(super) fn numbers(&self, of: &Device<'_>) -> Result<(u32, u32), RawError> {
        let (mut instance, mut compute) = (0, 0);
        call!(self, nvmlDeviceGetGpuInstanceId(handle(of), &raw mut instance))?;
        call!(self, nvmlDeviceGetComputeInstanceId(handle(of), &raw mut compute))?;
        Ok((instance, compute))
    }

    pub(super) fn make_instance(
        &self,
        of: &Device<'_>,
        kind: u32,
        at: MigPlacement,
    ) -> Result<(), RawError> {
        let place = nvmlGpuInstancePlacement_t { start: at.start, size: at.size };
        let mut made = std::ptr::null_mut();
        let (at, into) = (&raw const place, &raw mut made);
        call!(self, nvmlDeviceCreateGpuInstanceWithPlacement(handle(of), kind, at, into))
    }

    pub(super) fn make_compute(&self, of: GpuInstanceHandle, kind: u32) -> Result<(), RawError> {
        let mut made = std::ptr::null_mut();
        call!(self, nvmlGpuInstanceCreateComputeInstance(of.0, kind, &raw mut made))
    }

    pub(super) fn end_compute(&self, of: ComputeInstanceHandle) -> Result<(), RawError> {
        call!(self, nvmlComputeInstanceDestroy(of.0))
    }

    pub(super) fn end_instance(&self, of: GpuInstanceHandle) -> Result<(), RawError> {
        call!(self, nvmlGpuInstanceDestroy(of.0))
    }
}
