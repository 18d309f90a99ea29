//! Where generic addresses reach memory that is not global.
//!
//! The four highest bits of a generic address name its window; device memory
//! has none of them set, see [`DeviceMemory`](crate::DeviceMemory).

/// Position of the window's number in an address.
pub(crate) const SHIFT: u32 = 60;
pub(crate) const SHARED: u64 = 1 << SHIFT;
pub(crate) const LOCAL: u64 = 2 << SHIFT;
pub(crate) const PARAM: u64 = 3 << SHIFT;
/// Addresses of functions, which only calls understand.
const CODE: u64 = 4 << SHIFT;

/// What a pointer to a module's function of that number holds.
pub(crate) fn function_address(number: u32) -> u64 {
    CODE + ((u64::from(number) + 1) << 4)
}

/// The number of the function that a pointer points to.
pub(crate) fn function_at(address: u64) -> Option<u32> {
    let place = address.checked_sub(CODE)?;
    if place & 15 != 0 {
        return None;
    }
    u32::try_from(place >> 4).ok()?.checked_sub(1)
}
