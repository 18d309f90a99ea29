use std::ffi::c_void;

/// An opaque context handle.
pub type CUcontext = *mut c_void;
/// An opaque module handle.
pub type CUmodule = *mut c_void;
/// An opaque kernel handle.
pub type CUfunction = *mut c_void;
/// An opaque stream handle; three values are fixed, see [`stream_handle`].
pub type CUstream = *mut c_void;
/// An opaque event handle.
pub type CUevent = *mut c_void;
/// A GPU, counted from 0.
pub type CUdevice = i32;
/// An address in device memory.
pub type CUdeviceptr = u64;

/// 16 bytes that name a GPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CUuuid {
    /// In the order in which they are written.
    pub bytes: [u8; 16],
}

/// Stream handles that stand for no object.
pub mod stream_handle {
    /// The default stream.
    pub const DEFAULT: usize = 0;
    /// The default stream that waits for all others.
    pub const LEGACY: usize = 1;
    /// The default stream of a thread.
    pub const PER_THREAD: usize = 2;
}

/// Markers in `cuLaunchKernel`'s `extra`.
pub mod launch_param {
    /// Ends the list.
    pub const END: usize = 0;
    /// The next element points at all arguments in one buffer.
    pub const BUFFER_POINTER: usize = 1;
    /// The next element points at the buffer's size.
    pub const BUFFER_SIZE: usize = 2;
}

/// `CUjitInputType`.
pub mod link_input {
    /// Machine code.
    pub const CUBIN: u32 = 0;
    /// PTX.
    pub const PTX: u32 = 1;
    /// A fat binary.
    pub const FATBINARY: u32 = 2;
    /// An object of the host's with device code in it.
    pub const OBJECT: u32 = 3;
    /// An archive of such objects.
    pub const LIBRARY: u32 = 4;
}
