//! How the caller shows device memory to the machine.

/// One live allocation.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    /// Device address of the first byte.
    pub base: u64,
    /// Length in bytes.
    pub len: u64,
    /// Where the first byte lies in this process. Must be aligned to 16 bytes
    /// wherever `base` is.
    pub host: *mut u8,
    /// Whether kernels may write to it.
    pub writable: bool,
}

// SAFETY: a region is an address and a length. What is behind it may be used
// from any thread because `DeviceMemory` promises so, and the machine touches it
// with atomic operations only.
unsafe impl Send for Region {}
// SAFETY: as above; sharing the description shares nothing that can change.
unsafe impl Sync for Region {}

/// Device memory as the machine sees it. Every access of a kernel is checked by
/// asking for the live region that holds it; answers are cached during a launch.
///
/// Device addresses are below 2^60: the machine keeps the windows through which
/// generic addresses reach shared, local and parameter memory above that.
///
/// # Safety
///
/// A region that was returned must stay mapped for reading, and for writing when
/// `writable` says so, for its whole `len`, until the call of
/// [`execute`](crate::execute) it was returned to has come back. Until then
/// others may touch its bytes with atomic operations only, or from outside this
/// process.
pub unsafe trait DeviceMemory: Sync {
    /// The live allocation containing `address`, if any.
    fn region(&self, address: u64) -> Option<Region>;
}
