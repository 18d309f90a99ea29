//! The edge between C and the rest: pointers of the caller become values here, and nowhere else.
//!
//! The wrappers are made only by the caller of an exported function, whose contract (CUDA's
//! documentation of that function) is that each pointer is NULL or good for what its name says.
//! That contract is what every `SAFETY` in this file leans on.

use std::ffi::{CStr, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use gpuzone_cuda_abi::CuResult;
use gpuzone_cuda_abi::image::{FAT_BINARY, FAT_BINARY_WRAPPER, FAT_HEADER, fat_length};

use crate::Answer;

/// A handle or a host address as the caller gives it: a number until it is looked up.
pub(crate) type Word = usize;

/// Runs an exported function's body. A panic must not unwind into C.
pub(crate) fn answer(body: impl FnOnce() -> Answer) -> CuResult {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => CuResult::SUCCESS,
        Ok(Err(result)) => result,
        Err(_) => CuResult::UNKNOWN,
    }
}

/// Where a result goes; NULL is `INVALID_VALUE`.
#[repr(transparent)]
pub(crate) struct Out<T>(*mut T);

impl<T> Out<T> {
    /// Refuses NULL, before anything is done that would be lost.
    pub(crate) fn check(&self) -> Answer {
        if self.0.is_null() { Err(CuResult::INVALID_VALUE) } else { Ok(()) }
    }

    pub(crate) fn put(self, value: T) -> Answer {
        self.check()?;
        // SAFETY: not NULL, hence good for writing one `T` (see above); no alignment is assumed.
        unsafe { self.0.write_unaligned(value) };
        Ok(())
    }

    /// For results that the caller may leave out.
    pub(crate) fn put_if_wanted(self, value: T) {
        if !self.0.is_null() {
            let _ = self.put(value);
        }
    }
}

impl Out<c_char> {
    /// Writes `text` and a NUL into `len` bytes, cutting what does not fit.
    pub(crate) fn put_text(self, text: &str, len: i32) -> Answer {
        let room = usize::try_from(len).ok().and_then(|len| len.checked_sub(1));
        let room = room.ok_or(CuResult::INVALID_VALUE)?;
        self.check()?;
        let text = &text.as_bytes()[..text.len().min(room)];
        // SAFETY: not NULL, hence good for writing `len` bytes, of which this is at most one less.
        unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), self.0.cast(), text.len()) };
        // SAFETY: as above; this is the last of them at most.
        unsafe { self.0.add(text.len()).write(0) };
        Ok(())
    }
}

/// A text of the caller's.
#[repr(transparent)]
pub(crate) struct Text(*const c_char);

impl Text {
    pub(crate) fn read(&self) -> Answer<&str> {
        if self.0.is_null() {
            return Err(CuResult::INVALID_VALUE);
        }
        // SAFETY: not NULL, hence NUL-terminated; borrowed for the call only.
        let text = unsafe { CStr::from_ptr(self.0) };
        text.to_str().map_err(|_| CuResult::INVALID_VALUE)
    }
}

/// A module's image: PTX ends at its NUL, a fat binary says itself how long it is. Of machine
/// code the beginning is enough to know it by.
#[repr(transparent)]
pub(crate) struct Image(*const c_char);

impl Image {
    pub(crate) fn bytes(&self) -> Answer<&[u8]> {
        if self.0.is_null() {
            return Err(CuResult::INVALID_VALUE);
        }
        // SAFETY: not NULL, hence an image; PTX ends with NUL, and binary images have one within
        // their header (a version number whose upper bytes are zero).
        let text = unsafe { CStr::from_ptr(self.0) }.to_bytes();
        match text.first_chunk().map(|magic| u32::from_le_bytes(*magic)) {
            Some(FAT_BINARY_WRAPPER) => {
                // SAFETY: a wrapper has two numbers and then an address of a fat binary.
                let inner = unsafe { self.0.cast::<[u64; 2]>().read_unaligned() }[1];
                let inner = Word::try_from(inner).map_err(|_| CuResult::INVALID_IMAGE)?;
                fat_binary(std::ptr::with_exposed_provenance(inner))
            }
            Some(FAT_BINARY) => fat_binary(self.0.cast()),
            _ => Ok(text),
        }
    }
}

fn fat_binary<'a>(start: *const u8) -> Answer<&'a [u8]> {
    if start.is_null() {
        return Err(CuResult::INVALID_IMAGE);
    }
    // SAFETY: not NULL, hence a fat binary, which has a header.
    let header = unsafe { start.cast::<[u8; FAT_HEADER]>().read_unaligned() };
    let length = fat_length(&header).map_err(|_| CuResult::INVALID_IMAGE)?;
    // SAFETY: a fat binary is as long as its header says.
    Ok(unsafe { std::slice::from_raw_parts(start, length) })
}

/// An array of the caller's, whose length comes separately.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(crate) struct Array<T>(*mut T);

impl<T: Copy> Array<T> {
    /// None at all.
    pub(crate) fn none() -> Self {
        Self(std::ptr::null_mut())
    }

    pub(crate) fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// Element `index`, which must be below the length that the caller gave.
    pub(crate) fn get(self, index: usize) -> Answer<T> {
        if self.0.is_null() {
            return Err(CuResult::INVALID_VALUE);
        }
        // SAFETY: not NULL, hence as long as the caller says; no alignment is assumed.
        Ok(unsafe { self.0.add(index).read_unaligned() })
    }

    /// Replaces element `index`, which must be below the length that the caller gave.
    pub(crate) fn set(self, index: usize, value: T) -> Answer {
        if self.0.is_null() {
            return Err(CuResult::INVALID_VALUE);
        }
        // SAFETY: as in `get`, and the caller lets this array be written.
        unsafe { self.0.add(index).write_unaligned(value) };
        Ok(())
    }
}

/// Bytes of host memory that a copy reads or writes, now or when its turn comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HostBytes {
    pub(crate) address: Word,
    pub(crate) len: usize,
}

impl HostBytes {
    pub(crate) fn new(address: Word, len: usize) -> Answer<Self> {
        let fits = address.checked_add(len).is_some();
        if address == 0 || !fits { Err(CuResult::INVALID_VALUE) } else { Ok(Self { address, len }) }
    }

    pub(crate) fn as_ptr(self) -> *const u8 {
        std::ptr::with_exposed_provenance(self.address)
    }

    pub(crate) fn as_mut_ptr(self) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(self.address)
    }

    /// A copy of the bytes, for a program that may change them as soon as the call is back.
    pub(crate) fn to_vec(self) -> Vec<u8> {
        // SAFETY: the caller gave this address and length of a buffer to read from.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.len) }.to_vec()
    }

    /// Writes `bytes` to the beginning; no more than fits.
    pub(crate) fn write(self, bytes: &[u8]) {
        let len = bytes.len().min(self.len);
        // SAFETY: the caller gave this address and length of a buffer to write to.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.as_mut_ptr(), len) };
    }
}

/// A function of the caller's that runs when its turn comes.
#[derive(Clone, Copy)]
pub(crate) struct HostFunction {
    pub(crate) function: extern "C" fn(*mut c_void),
    pub(crate) data: Word,
}

impl HostFunction {
    pub(crate) fn call(self) {
        (self.function)(std::ptr::with_exposed_provenance_mut(self.data));
    }
}

/// Defines exported functions, and a table of them for `cuGetProcAddress`.
macro_rules! entry_points {
    ($($(#[$meta:meta])* fn $name:ident($($arg:ident: $type:ty),* $(,)?) $body:block)*) => {
        $(
            $(#[$meta])*
            #[unsafe(no_mangle)]
            #[allow(non_snake_case, reason = "the name is CUDA's")]
            pub(crate) extern "C" fn $name($($arg: $type),*) -> gpuzone_cuda_abi::CuResult {
                $crate::abi::answer(move || $body)
            }
        )*

        /// The address of one of this file's functions.
        pub(super) fn symbol(name: &str) -> Option<*const std::ffi::c_void> {
            match name {
                $(stringify!($name) => Some($name as *const std::ffi::c_void),)*
                _ => None,
            }
        }
    };
}
pub(crate) use entry_points;
