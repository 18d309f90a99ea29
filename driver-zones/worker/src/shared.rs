//! Host memory that a tenant and its worker both map: the driver copies to and from it where it
//! lies.

use std::ffi::c_void;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use gpuzone_cuda_abi::CuResult;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

/// Zeros at first. Sealed: no tenant makes it shorter under the driver's feet.
#[derive(Debug)]
pub(crate) struct SharedMemory {
    file: OwnedFd,
    address: NonNull<c_void>,
    bytes: usize,
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
        let null = std::ptr::null_mut();
        // SAFETY: a new mapping, where the kernel likes.
        let address = unsafe { mmap(null, bytes, protection, MapFlags::SHARED, &file, 0) }?;
        let address = NonNull::new(address).ok_or(rustix::io::Errno::NOMEM)?;
        Ok(Self { file, address, bytes })
    }

    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
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
        let memory = SharedMemory::create(5000).expect("memory");
        let base = memory.address().addr();
        assert_eq!(memory.part(4999, 1).map(|at| at.addr() - base), Ok(4999));
        assert_eq!(memory.part(5000, 0).map(|at| at.addr() - base), Ok(5000));
        for (offset, bytes) in [(5000, 1), (0, 5001), (u64::MAX, 2), (1, u64::MAX)] {
            assert_eq!(memory.part(offset, bytes), Err(CuResult::INVALID_VALUE));
        }
        // SAFETY: the memory's own first byte.
        unsafe { memory.address().cast::<u8>().write(7) };
        let kept = memory.file.try_clone().expect("a tenant's copy");
        assert!(rustix::fs::ftruncate(&kept, 0).is_err(), "sealed");
        drop(memory);
        assert_eq!(rustix::fs::fstat(&kept).expect("a file").st_blocks, 0);
    }
}
