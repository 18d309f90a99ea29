//! Types, numbers and names of the CUDA driver API that both sides of the mediated path share.
//!
//! Facts only: no function is called and nothing is loaded here. The numbers are those of
//! CUDA 13.0, and CUDA never changes one that it has given out.
#![forbid(unsafe_code)]

mod functions;
pub mod image;
mod numbers;
mod result;
pub mod rows;
mod types;

pub use functions::{FUNCTIONS, FunctionIndex};
pub use numbers::{
    DeviceAttribute, FunctionAttribute, JitOption, LaunchAttribute, Limit, PointerAttribute,
    ctx_flags, event_flags, mem_host_flags, memory_type, module_loading, pool_attribute,
    proc_address, stream_flags,
};
pub use result::CuResult;
pub use types::{
    CUcontext, CUdevice, CUdeviceptr, CUevent, CUfunction, CUmodule, CUstream, CUuuid,
    INVALID_DEVICE, LaunchAttributeValue, LaunchConfig, MemoryAccess, MemoryLocation,
    PhysicalProperties, launch_param, link_input, stream_handle,
};

/// The version of the driver API whose names and numbers these are, as `cuDriverGetVersion` has it.
pub const API_VERSION: i32 = 13_000;
