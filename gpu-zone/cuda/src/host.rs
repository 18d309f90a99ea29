//! Host memory that copies know: shared with the worker, so that the driver copies from and to it
//! where it lies, or the program's own that it has registered.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use gpuzone_cuda_abi::CuResult;
use gpuzone_wire::spec::{ContextId, HostId};

use crate::ffi::Answer;

/// A piece of it.
#[derive(Clone, Copy)]
pub(crate) struct Host {
    pub(crate) start: usize,
    pub(crate) bytes: usize,
    pub(crate) flags: u32,
    pub(crate) context: ContextId,
    /// Where kernels find it; 0 where they do not.
    pub(crate) device: u64,
    /// Its number where it is shared; what is registered is copied as any other memory is.
    pub(crate) shared: Option<HostId>,
}

/// All of it, by address.
#[derive(Default)]
pub(crate) struct Hosts(BTreeMap<usize, Host>);

impl Hosts {
    pub(crate) fn add(&mut self, host: Host) -> Answer {
        let end = host.start.checked_add(host.bytes).ok_or(CuResult::INVALID_VALUE)?;
        let before = self.0.range(..end).next_back();
        if before.is_some_and(|(_, other)| other.start + other.bytes > host.start) {
            return Err(CuResult::HOST_MEMORY_ALREADY_REGISTERED);
        }
        self.0.insert(host.start, host);
        Ok(())
    }

    /// The piece that begins at `start`, if it is shared or is not, as wanted.
    pub(crate) fn take(&mut self, start: usize, shared: bool) -> Option<Host> {
        let found = self.0.get(&start).filter(|host| host.shared.is_some() == shared)?;
        let start = found.start;
        self.0.remove(&start)
    }

    pub(crate) fn around(&self, address: usize) -> Option<Host> {
        let (_, host) = self.0.range(..=address).next_back()?;
        (address - host.start < host.bytes).then_some(*host)
    }

    /// The shared memory that `bytes` from `address` on lie in, and how far from its beginning.
    pub(crate) fn shared(&self, address: usize, bytes: usize) -> Option<(HostId, u64)> {
        let host = self.around(address)?;
        let offset = address - host.start;
        (bytes <= host.bytes - offset).then_some((host.shared?, offset as u64))
    }

    /// Whether `bytes` from an address of the device's on are of one piece.
    pub(crate) fn cover_device(&self, at: u64, bytes: u64) -> bool {
        let end = at.checked_add(bytes);
        let within = |host: &Host| {
            let last = host.device.saturating_add(host.bytes as u64);
            host.device != 0 && host.device <= at && end.is_some_and(|end| end <= last)
        };
        // Rarely asked, and there are few of them.
        self.0.values().any(within)
    }
}

/// Maps memory that the worker shares: where kernels find it, too, if that place is free here.
pub(crate) fn map(file: &OwnedFd, bytes: usize, device: u64) -> Answer<usize> {
    use std::os::fd::AsRawFd;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let map_at = |place: usize, flags| {
        let (place, file) = (std::ptr::without_provenance_mut(place), file.as_raw_fd());
        // SAFETY: a new mapping, which replaces none; the worker has sealed the file's size.
        unsafe { libc::mmap(place, bytes, protection, flags, file, 0) }
    };
    let there = usize::try_from(device).ok().filter(|device| *device != 0);
    let tried = there.map(|at| map_at(at, libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE));
    let tried = tried.filter(|mapped| *mapped != libc::MAP_FAILED);
    let mapped = tried.unwrap_or_else(|| map_at(0, libc::MAP_SHARED));
    if mapped == libc::MAP_FAILED {
        return Err(CuResult::OUT_OF_MEMORY);
    }
    Ok(mapped.expose_provenance())
}

/// Unmaps it.
pub(crate) fn unmap(host: &Host) {
    let start = std::ptr::with_exposed_provenance_mut(host.start);
    // SAFETY: a mapping of `map`'s, in no table any more.
    unsafe { libc::munmap(start, host.bytes) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shared_is_found_whole_or_not_at_all() {
        let mut hosts = Hosts::default();
        let host = |start, bytes, shared: Option<u32>| {
            let shared = shared.map(HostId);
            let device = shared.map_or(0, |_| 0x6000_0000);
            Host { start, bytes, flags: 0, context: ContextId(1), device, shared }
        };
        hosts.add(host(4096, 100, Some(7))).expect("added");
        hosts.add(host(8192, 100, None)).expect("added");
        assert_eq!(hosts.shared(4100, 96), Some((HostId(7), 4)));
        assert_eq!(hosts.shared(4100, 97), None);
        assert_eq!(hosts.shared(8192, 1), None, "registered only");
        assert!(hosts.cover_device(0x6000_0004, 96) && !hosts.cover_device(0x6000_0004, 97));
        assert!(!hosts.cover_device(0x6000_0000, u64::MAX) && !hosts.cover_device(0, 1));
        let overlap = hosts.add(host(4000, 97, None));
        assert_eq!(overlap, Err(CuResult::HOST_MEMORY_ALREADY_REGISTERED));
        assert!(hosts.take(4096, false).is_none() && hosts.take(4096, true).is_some());
    }
}
