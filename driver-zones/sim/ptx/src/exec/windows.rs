//! Where generic addresses reach memory that is not global.
//!
//! The four highest bits of a generic address name its window; device memory
//! has none of them set, see [`DeviceMemory`](crate::DeviceMemory).

/// Position of the window's number in an address.
pub(crate) const SHIFT: u32 = 60;
pub(crate) const SHARED: u64 = 1 << SHIFT;
pub(crate) const LOCAL: u64 = 2 << SHIFT;
pub(crate) const PARAM: u64 = 3 << SHIFT;
