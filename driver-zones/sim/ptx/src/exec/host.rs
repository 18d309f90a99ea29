//! Reaching into device memory. Everything that touches a region's bytes is
//! here, and all of it is atomic: other blocks, and other processes, do the same.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::Fault;
use crate::{DeviceMemory, Region};

/// How many regions are remembered: a kernel's arrays, most of the time.
const CACHED: usize = 4;

/// Device memory during a launch, with the regions that were used last.
pub(crate) struct Host<'a> {
    memory: &'a dyn DeviceMemory,
    cached: [Option<Region>; CACHED],
    next: usize,
}

/// Bytes of a live region, aligned to their number, writable if that was asked for.
#[derive(Clone, Copy)]
pub(crate) struct HostBytes {
    place: *mut u8,
    bytes: u32,
}

impl<'a> Host<'a> {
    pub(crate) fn new(memory: &'a dyn DeviceMemory) -> Self {
        Self { memory, cached: [None; CACHED], next: 0 }
    }

    /// The region that holds `bytes` bytes at `address`.
    fn region(&mut self, address: u64, bytes: u32, write: bool) -> Result<Region, Fault> {
        let holds = |region: &Region| {
            let offset = address.wrapping_sub(region.base);
            offset < region.len
                && region.len - offset >= u64::from(bytes)
                && (region.writable || !write)
        };
        if let Some(region) = self.cached.iter().flatten().find(|region| holds(region)) {
            return Ok(*region);
        }
        let region = self.memory.region(address).filter(holds);
        let Some(region) = region else {
            return Err(Fault::IllegalAddress { address, bytes, write });
        };
        if (region.host.addr() as u64 ^ region.base) & 15 != 0 {
            return Err(Fault::InvalidLaunch("a region of device memory is not aligned"));
        }
        self.cached[self.next] = Some(region);
        self.next = (self.next + 1) % CACHED;
        Ok(region)
    }

    /// Checks an access of `bytes` (a power of two) and finds its place.
    pub(crate) fn find(
        &mut self,
        address: u64,
        bytes: u32,
        write: bool,
    ) -> Result<HostBytes, Fault> {
        if address & u64::from(bytes - 1) != 0 {
            return Err(Fault::MisalignedAddress { address, bytes });
        }
        let region = self.region(address, bytes, write)?;
        let offset = address - region.base;
        // SAFETY: `region` saw that offset + bytes is within the region, which the
        // implementer of `DeviceMemory` promises to be mapped for this call.
        #[expect(clippy::cast_possible_truncation, reason = "the region is mapped here")]
        let place = unsafe { region.host.add(offset as usize) };
        Ok(HostBytes { place, bytes })
    }

    /// The one region that holds a word at each of the addresses, all aligned.
    #[inline(always)]
    pub(crate) fn find_words<'w>(
        &mut self,
        addresses: &'w [u64; 32],
        write: bool,
    ) -> Option<Words<'w>> {
        if addresses[0] >> super::windows::SHIFT != 0 {
            return None;
        }
        let region = self.region(addresses[0], 4, write).ok()?;
        let mut bad = 0;
        for address in addresses {
            let offset = address.wrapping_sub(region.base);
            bad |= u64::from(offset > region.len - 4) | (address & 3);
        }
        (bad == 0).then_some(Words { region, addresses })
    }
}

/// A region that was seen to hold an aligned word at each of 32 addresses.
pub(crate) struct Words<'w> {
    region: Region,
    addresses: &'w [u64; 32],
}

impl Words<'_> {
    #[inline(always)]
    fn word(&self, lane: usize) -> &AtomicU32 {
        #[expect(clippy::cast_possible_truncation, reason = "the region is mapped here")]
        let offset = (self.addresses[lane] - self.region.base) as usize;
        // SAFETY: `find_words` saw that each of the addresses lies within the
        // region with room for a word, and is aligned (the region's own alignment
        // was checked when it was cached). The bytes are mapped for this call, as
        // `DeviceMemory` promises, and accessed atomically only.
        unsafe { AtomicU32::from_ptr(self.region.host.add(offset).cast()) }
    }

    #[inline(always)]
    pub(crate) fn read(&self, into: &mut [u32; 32]) {
        for (lane, value) in into.iter_mut().enumerate() {
            *value = self.word(lane).load(Ordering::Relaxed);
        }
    }

    /// For words that were found with `write`.
    #[inline(always)]
    pub(crate) fn write(&self, values: &[u32; 32]) {
        for (lane, value) in values.iter().enumerate() {
            self.word(lane).store(*value, Ordering::Relaxed);
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a value is cut to its size")]
impl HostBytes {
    /// Element `index` of `bytes` bytes each, if the access holds it.
    fn element(self, index: usize, bytes: u8) -> Option<*mut u8> {
        let start = index * usize::from(bytes);
        (start + usize::from(bytes) <= self.bytes as usize).then(|| self.place.wrapping_add(start))
    }

    pub(crate) fn read(self, index: usize, bytes: u8) -> u64 {
        let Some(place) = self.element(index, bytes) else { return 0 };
        // SAFETY: `element` saw that the bytes are within the access, which `find`
        // checked to lie in a mapped region and to be aligned to its whole size,
        // hence to each element's; all access is atomic.
        unsafe {
            match bytes {
                1 => u64::from(AtomicU8::from_ptr(place).load(Ordering::Relaxed)),
                2 => u64::from(AtomicU16::from_ptr(place.cast()).load(Ordering::Relaxed)),
                4 => u64::from(AtomicU32::from_ptr(place.cast()).load(Ordering::Relaxed)),
                _ => AtomicU64::from_ptr(place.cast()).load(Ordering::Relaxed),
            }
        }
    }

    /// For bytes that were found with `write`.
    pub(crate) fn write(self, index: usize, bytes: u8, value: u64) {
        let Some(place) = self.element(index, bytes) else { return };
        // SAFETY: as in `read`; `find` was asked for a writable region.
        unsafe {
            match bytes {
                1 => AtomicU8::from_ptr(place).store(value as u8, Ordering::Relaxed),
                2 => AtomicU16::from_ptr(place.cast()).store(value as u16, Ordering::Relaxed),
                4 => AtomicU32::from_ptr(place.cast()).store(value as u32, Ordering::Relaxed),
                _ => AtomicU64::from_ptr(place.cast()).store(value, Ordering::Relaxed),
            }
        }
    }

    /// One element of `bytes` bytes, as a value of its own.
    pub(crate) fn part(self, index: usize, bytes: u8) -> Self {
        match self.element(index, bytes) {
            Some(place) => Self { place, bytes: bytes.into() },
            // Nothing is read or written of no bytes.
            None => Self { bytes: 0, ..self },
        }
    }

    /// Replaces 16 bytes, if they are those of `compare`; returns the old ones. For bytes that were
    /// found with `write`.
    pub(crate) fn exchange(self, compare: Option<u128>, new: u128) -> Result<u128, Fault> {
        if self.bytes != 16 {
            return Err(Fault::InvalidProgram("an exchange of other than 16 bytes"));
        }
        // SAFETY: `find` checked that the bytes are aligned and within a writable mapped region;
        // all access is atomic.
        unsafe { exchange_wide(self.place.cast(), compare, new) }
    }

    /// Replaces the value, of 8, 4 or 2 bytes, by what `change` makes of it; returns
    /// the old one. For bytes that were found with `write`.
    pub(crate) fn update(self, change: impl Fn(u64) -> u64) -> u64 {
        /// The closure always has a new value, so the update cannot fail.
        macro_rules! update {
            ($atomic:ty, $value:ty) => {{
                // SAFETY: `find` checked that the value's bytes are aligned and within
                // a writable mapped region; all access is atomic.
                let place = unsafe { <$atomic>::from_ptr(self.place.cast()) };
                let change = |old| Some(change(u64::from(old)) as $value);
                let old = place.fetch_update(Ordering::SeqCst, Ordering::SeqCst, change);
                u64::from(old.unwrap_or_else(|old| old))
            }};
        }
        match self.bytes {
            8 => update!(AtomicU64, u64),
            4 => update!(AtomicU32, u32),
            2 => update!(AtomicU16, u16),
            _ => 0,
        }
    }
}

/// Replaces a number, if it is `compare`; returns the old one.
///
/// # Safety
/// It must be mapped for writing, aligned, and accessed atomically only.
#[cfg(target_arch = "x86_64")]
unsafe fn exchange_wide(place: *mut u128, compare: Option<u128>, new: u128) -> Result<u128, Fault> {
    if !is_x86_feature_detected!("cmpxchg16b") {
        return Err(NO_WIDE);
    }
    let mut guess = compare.unwrap_or(0);
    loop {
        // SAFETY: as the caller says, and the host has the instruction.
        let old = unsafe { compare_and_swap(place, guess, new) };
        if compare.is_some() || old == guess {
            return Ok(old);
        }
        guess = old;
    }
}

/// The instruction itself: the compiler's own is linked only into what is compiled for hosts that
/// all have it.
///
/// # Safety
/// As [`exchange_wide`], on a host that has it.
#[cfg(target_arch = "x86_64")]
#[expect(clippy::cast_possible_truncation, reason = "numbers are taken apart")]
unsafe fn compare_and_swap(place: *mut u128, old: u128, new: u128) -> u128 {
    let (mut low, mut high) = (old as u64, (old >> 64) as u64);
    // SAFETY: the place is the caller's. The compiler keeps `rbx` for itself, so it is put back.
    unsafe {
        std::arch::asm!(
            "xchg {new}, rbx",
            "lock cmpxchg16b xmmword ptr [rdi]",
            "mov rbx, {new}",
            new = inout(reg) new as u64 => _,
            in("rcx") (new >> 64) as u64,
            inout("rax") low,
            inout("rdx") high,
            in("rdi") place,
            options(nostack),
        );
    }
    u128::from(low) | u128::from(high) << 64
}

/// As on x86-64, where the host has what it takes.
///
/// # Safety
/// None is needed: nothing is done.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn exchange_wide(_: *mut u128, _: Option<u128>, _: u128) -> Result<u128, Fault> {
    Err(NO_WIDE)
}

const NO_WIDE: Fault = Fault::InvalidProgram("the host has no atomic operations of 128 bits");
