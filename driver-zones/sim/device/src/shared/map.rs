//! A GPU's memory in this process's address space.

use std::fs::File;
use std::io;
use std::ptr::NonNull;

use gpuzone_core::MemoryBytes;
use rustix::fs::FallocateFlags;
use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::StateError;

const PAGE: u64 = 4096;
/// Below this, writing zeros is cheaper than telling the file system.
const PUNCH_FROM: u64 = 64 << 10;

/// A GPU's whole memory. Mapped until the process ends or the last user drops it; which of
/// its bytes a caller may touch is what [`Attachment`](super::Attachment) gave it.
pub struct DeviceMap {
    file: File,
    host: NonNull<u8>,
    base: u64,
    bytes: u64,
}

// SAFETY: the map is an address and a length; the bytes behind it are only ever reached through
// raw pointers, whose users say why they may.
unsafe impl Send for DeviceMap {}
// SAFETY: as above; no method changes the map itself.
unsafe impl Sync for DeviceMap {}

impl DeviceMap {
    pub(super) fn new(file: File, base: u64, memory: MemoryBytes) -> Result<Self, StateError> {
        let failed = |source: io::Error| StateError::Map { bytes: memory, source };
        let bytes = memory.get();
        let len = usize::try_from(bytes)
            .map_err(|_| failed(io::Error::from(io::ErrorKind::OutOfMemory)))?;
        let (protection, flags) =
            (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::NORESERVE);
        // SAFETY: the kernel picks the place, so nothing that exists is replaced; the file is
        // as long as the map, and is never made shorter by this project.
        let mapped =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, protection, flags, &file, 0) };
        let host = mapped.map_err(|errno| failed(errno.into()))?;
        let host = NonNull::<u8>::new(host.cast())
            .ok_or_else(|| failed(io::Error::from(io::ErrorKind::AddrNotAvailable)))?;
        // A read of one page on a disk would have the kernel make many pages of zeros around it.
        // SAFETY: the mapping from above, whose bytes this does not change.
        let _ = unsafe { rustix::mm::madvise(host.as_ptr().cast(), len, Advice::Random) };
        Ok(Self { file, host, base, bytes })
    }

    /// Device address of the first byte.
    #[must_use]
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Where `len` bytes at device address `address` lie in this process, when the GPU has
    /// them. Whether the caller may touch them is not asked here.
    #[must_use]
    pub fn host(&self, address: u64, len: u64) -> Option<*mut u8> {
        let offset = address.checked_sub(self.base)?;
        let end = offset.checked_add(len)?;
        if end > self.bytes {
            return None;
        }
        Some(self.host.as_ptr().wrapping_add(usize::try_from(offset).ok()?))
    }

    /// Maps `len` bytes at device address `address` once more, over what is mapped at `place`.
    ///
    /// # Errors
    /// When the GPU has not got these bytes, or the kernel refuses.
    ///
    /// # Safety
    /// `place` begins `len` bytes of a mapping of the caller's own, which nothing uses.
    pub unsafe fn map_again(&self, place: *mut u8, address: u64, len: u64) -> io::Result<()> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        self.host(address, len).ok_or_else(invalid)?;
        let bytes = usize::try_from(len).map_err(|_| invalid())?;
        let (protection, flags) =
            (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::FIXED);
        let offset = address - self.base;
        // SAFETY: the caller's promise; the file has these bytes.
        unsafe { rustix::mm::mmap(place.cast(), bytes, protection, flags, &self.file, offset) }?;
        Ok(())
    }

    /// Makes `len` bytes at device address `address` zero. Whole pages go back to the host,
    /// because a hole in the file reads as zero; so zeroing costs no memory. False when the
    /// GPU has not got these bytes, or the file system cannot make holes: write zeros then.
    #[must_use]
    pub fn punch(&self, address: u64, len: u64) -> bool {
        let Some(offset) = address.checked_sub(self.base) else { return false };
        let whole = offset.is_multiple_of(PAGE) && len.is_multiple_of(PAGE);
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.bytes);
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        whole && inside && rustix::fs::fallocate(&self.file, flags, offset, len).is_ok()
    }

    /// The part of a range that [`DeviceMap::punch`] can take: address and length in bytes,
    /// or `None` when there is too little of it to be worth a system call.
    #[must_use]
    pub fn punchable(address: u64, len: u64) -> Option<(u64, u64)> {
        // Bases are multiples of the page's size, so addresses and offsets agree on pages.
        let start = address.checked_next_multiple_of(PAGE)?;
        let end = address.checked_add(len)? / PAGE * PAGE;
        let bytes = end.checked_sub(start)?;
        (bytes >= PUNCH_FROM).then_some((start, bytes))
    }

    /// How many bytes the host could still back, counting the pages that it backs already.
    pub(super) fn host_room(&self) -> io::Result<u64> {
        use std::os::unix::fs::MetadataExt;
        let room = rustix::fs::fstatvfs(&self.file)?;
        let backed = self.file.metadata()?.blocks().saturating_mul(512);
        Ok(room.f_bavail.saturating_mul(room.f_frsize).saturating_add(backed))
    }
}

impl Drop for DeviceMap {
    fn drop(&mut self) {
        let Ok(len) = usize::try_from(self.bytes) else { return };
        // SAFETY: this is the place and the length that the kernel gave; whoever still had a
        // pointer into it held this map alive. An error would leave it mapped, which harms nobody.
        let _ = unsafe { rustix::mm::munmap(self.host.as_ptr().cast(), len) };
    }
}
