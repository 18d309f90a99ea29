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
/// `CU_DEVICE_INVALID`: no GPU.
pub const INVALID_DEVICE: CUdevice = -2;
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

/// `CUmemLocation`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryLocation {
    /// What holds the memory: 1 is a device.
    pub kind: u32,
    /// Which of them.
    pub id: i32,
}

/// `CUmemAccessDesc`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryAccess {
    /// For whom.
    pub location: MemoryLocation,
    /// 0 is nothing, 1 reading, 3 writing too.
    pub flags: u32,
}

/// `CUmemAllocationProp`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhysicalProperties {
    /// 1: memory that stays where it is.
    pub kind: u32,
    /// Kinds of handles for other processes; 0 is none.
    pub handle_types: u32,
    /// Where it is.
    pub location: MemoryLocation,
    /// A pointer that has no meaning here.
    pub metadata: usize,
    /// Compression, remote access, usage, and what is reserved.
    pub flags: [u8; 8],
}

impl PhysicalProperties {
    /// Memory of a device, for this process alone.
    pub fn of_device(device: CUdevice) -> Self {
        let location = MemoryLocation { kind: 1, id: device };
        Self { kind: 1, location, ..Self::default() }
    }

    /// Whether it is such memory.
    pub fn is_of_device(&self) -> bool {
        *self == Self { metadata: self.metadata, ..Self::of_device(self.location.id) }
    }
}
