//! Copies between host and device, from and to memory of both kinds.

use std::time::Instant;

use anyhow::{Context, ensure};
use cudarc::driver::{DevicePtr, result};

use super::median;
use crate::device::{Device, named};

/// Page-locked memory of the host.
struct Pinned {
    at: *mut u8,
    bytes: usize,
}

impl Pinned {
    fn new(bytes: usize) -> anyhow::Result<Self> {
        // SAFETY: freed once, in `drop`; its bytes are written before they are read.
        let at = unsafe { result::malloc_host(bytes, 0) }.map_err(named)?.cast::<u8>();
        // SAFETY: so many bytes were just allocated there.
        unsafe { std::ptr::write_bytes(at, 0x17, bytes) };
        Ok(Self { at, bytes })
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: allocated with this length and initialised in `new`; borrowed as `self` is.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: what `new` allocated; nobody can have a slice of it any more.
        let _ = unsafe { result::free_host(self.at.cast()) };
    }
}

/// What [`rates`] answers, in this order.
pub(super) const NAMES: [&str; 4] = [
    "pageable_to_device_gb_s",
    "pageable_to_host_gb_s",
    "pinned_to_device_gb_s",
    "pinned_to_host_gb_s",
];

/// Gigabytes a second of each way.
pub(super) fn rates(device: &Device, bytes: usize, rounds: u32) -> anyhow::Result<[f64; 4]> {
    let memory = device.allocate(bytes).map_err(named).context("no memory for copies")?;
    let (at, _recorded) = memory.device_ptr(&device.stream);
    let mut pageable = vec![0x17_u8; bytes];
    let mut pinned = Pinned::new(bytes)?;
    let stream = device.stream.cu_stream();
    let rate = |copy: &mut dyn FnMut() -> anyhow::Result<()>| -> anyhow::Result<f64> {
        let mut rates = Vec::new();
        // The first one touches what was never touched before.
        for round in 0..=rounds.max(1) {
            let began = Instant::now();
            copy()?;
            // SAFETY: the device's own stream.
            unsafe { result::stream::synchronize(stream) }.map_err(named)?;
            let bytes = f64::from(u32::try_from(bytes)?);
            rates.extend((round > 0).then(|| bytes / began.elapsed().as_secs_f64() / 1e9));
        }
        Ok(median(rates))
    };
    let to_device = rate(&mut || {
        // SAFETY: both sides have so many bytes, and live until the copy was waited for.
        unsafe { result::memcpy_htod_sync(at, &pageable) }.map_err(named)
    })?;
    let to_host = rate(&mut || {
        // SAFETY: both sides have so many bytes, and live until the copy was waited for.
        unsafe { result::memcpy_dtoh_sync(&mut pageable, at) }.map_err(named)
    })?;
    let pinned_to_device = rate(&mut || {
        // SAFETY: both sides have so many bytes, and live until the copy was waited for.
        unsafe { result::memcpy_htod_async(at, pinned.bytes(), stream) }.map_err(named)
    })?;
    let pinned_to_host = rate(&mut || {
        // SAFETY: both sides have so many bytes, and live until the copy was waited for.
        unsafe { result::memcpy_dtoh_async(pinned.bytes(), at, stream) }.map_err(named)
    })?;
    ensure!(pageable == pinned.bytes(), "copies to and fro changed bytes");
    Ok([to_device, to_host, pinned_to_device, pinned_to_host])
}
