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

/// `CUlaunchConfig`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct LaunchConfig {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// Where it is launched.
    pub stream: CUstream,
    /// How, see [`LaunchAttributeValue`].
    pub attributes: *const LaunchAttributeValue,
    /// How many attributes there are.
    pub attribute_count: u32,
}

/// `CUlaunchAttribute`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct LaunchAttributeValue {
    /// Which.
    pub id: u32,
    /// Nothing.
    pub padding: u32,
    /// Its value.
    pub value: [u64; 8],
}

impl LaunchAttributeValue {
    /// The first three numbers of 32 bits.
    pub fn words(&self) -> [u32; 3] {
        let [first, second, ..] = self.value;
        let [a, b, c, d, e, f, g, h] = first.to_ne_bytes();
        let [i, j, k, l, ..] = second.to_ne_bytes();
        [[a, b, c, d], [e, f, g, h], [i, j, k, l]].map(u32::from_ne_bytes)
    }

    /// An attribute whose value has up to three numbers of 32 bits.
    pub fn of(id: u32, words: [u32; 3]) -> Self {
        let [[a, b, c, d], [e, f, g, h], [i, j, k, l]] = words.map(u32::to_ne_bytes);
        let first = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
        let second = u64::from_ne_bytes([i, j, k, l, 0, 0, 0, 0]);
        Self { id, padding: 0, value: [first, second, 0, 0, 0, 0, 0, 0] }
    }
}
