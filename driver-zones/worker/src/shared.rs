//! Host memory that a tenant and its worker both map: the driver copies to and from it where it
//! lies.

use std::collections::hash_map::RandomState;
use std::ffi::c_void;
use std::hash::{BuildHasher, Hasher};
use std::os::fd::OwnedFd;
use std::ptr::NonNull;

use gpuzone_cuda_abi::CuResult;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

/// Zeros at first. Sealed: no tenant makes it shorter under the driver's feet.
#[derive(Debug)]
pub(crate) struct SharedMemory {
    /// Until it is handed over.
    file: Option<OwnedFd>,
    address: NonNull<c_void>,
    bytes: usize,
    is_apart: bool,
}

/// Where such memory lies: where neither this process nor a tenant's has anything else, as a rule,
/// so that both may have it at one address. Drawn anew for each: who is told where one lies learns
/// nothing of where the worker has its own.
const PLACES: std::ops::Range<usize> = 0x6000_0000_0000..0x7000_0000_0000;
const STEP: usize = 2 << 20;
/// How often another place is drawn before the kernel is asked for one.
const TRIES: usize = 8;

fn some_place() -> *mut c_void {
    // Keyed by the kernel's random numbers.
    let drawn = RandomState::new().build_hasher().finish();
    let places = (PLACES.len() / STEP) as u64;
    let step = usize::try_from(drawn % places).unwrap_or(0);
    std::ptr::without_provenance_mut(PLACES.start + step * STEP)
}

// SAFETY: the mapping is this value's own; what stands in it is the tenant's to change at any
// time, and nothing here reads it.
unsafe impl Send for SharedMemory {}

impl SharedMemory {
    pub(crate) fn create(bytes: usize) -> Result<Self, CuResult> {
        Self::map(bytes).map_err(|_| CuResult::OUT_OF_MEMORY)
    }

    fn map(bytes: usize) -> rustix::io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("gpu-zone pinned", flags)?;
        rustix::fs::ftruncate(&file, bytes as u64)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&file, seals)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let map_at = |place, flags| {
            // SAFETY: a new mapping, which replaces none.
            unsafe { mmap(place, bytes, protection, flags, &file, 0) }
        };
        let apart = MapFlags::SHARED | MapFlags::FIXED_NOREPLACE;
        let found = (0..TRIES).find_map(|_| map_at(some_place(), apart).ok());
        let address = match found {
            Some(address) => address,
            None => map_at(std::ptr::null_mut(), MapFlags::SHARED)?,
        };
        // A kernel that is older than the flag takes the place for a hint.
        let is_apart = PLACES.contains(&address.addr());
        let address = NonNull::new(address).ok_or(rustix::io::Errno::NOMEM)?;
        Ok(Self { file: Some(file), address, bytes, is_apart })
    }

    /// Its file, once: none stays open for it.
    pub(crate) fn take_file(&mut self) -> Option<OwnedFd> {
        self.file.take()
    }

    /// Whether its address tells nothing of any other.
    pub(crate) fn is_apart(&self) -> bool {
        self.is_apart
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    pub(crate) fn address(&self) -> *mut c_void {
        self.address.as_ptr()
    }

    /// Where `bytes` from `offset` on lie, if they do.
    pub(crate) fn part(&self, offset: u64, bytes: u64) -> Result<*mut c_void, CuResult> {
        let end = offset.checked_add(bytes).filter(|end| *end <= self.bytes as u64);
        let offset = end.and_then(|_| usize::try_from(offset).ok());
        let offset = offset.ok_or(CuResult::INVALID_VALUE)?;
        // SAFETY: within the mapping, or at its end.
        Ok(unsafe { self.address().cast::<u8>().add(offset) }.cast())
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: this value's own mapping, which nobody uses any more. A tenant that keeps the
        // file keeps no memory of ours: its pages go first.
        unsafe {
            let _ = madvise(self.address(), self.bytes, Advice::LinuxRemove);
            let _ = munmap(self.address(), self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_lies_within_and_what_is_given_back_is_gone() {
        let mut memory = SharedMemory::create(5000).expect("memory");
        assert!(memory.is_apart() && memory.address().addr().is_multiple_of(STEP));
        let base = memory.address().addr();
        assert_eq!(memory.part(4999, 1).map(|at| at.addr() - base), Ok(4999));
        assert_eq!(memory.part(5000, 0).map(|at| at.addr() - base), Ok(5000));
        for (offset, bytes) in [(5000, 1), (0, 5001), (u64::MAX, 2), (1, u64::MAX)] {
            assert_eq!(memory.part(offset, bytes), Err(CuResult::INVALID_VALUE));
        }
        // SAFETY: the memory's own first byte.
        unsafe { memory.address().cast::<u8>().write(7) };
        let kept = memory.take_file().expect("for a tenant");
        assert!(memory.take_file().is_none());
        assert!(rustix::fs::ftruncate(&kept, 0).is_err(), "sealed");
        drop(memory);
        assert_eq!(rustix::fs::fstat(&kept).expect("a file").st_blocks, 0);
    }
}
