//! The edge between C and the rest.
//!
//! The wrappers are made only by the caller of an exported function, whose contract (NVML's
//! documentation of that function) is that each pointer is NULL or good for what its name says.
//! That contract is what every `SAFETY` in this file leans on.

use std::ffi::{CStr, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use nvml_wrapper_sys::bindings::{
    nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
    nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE, nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT,
    nvmlReturn_enum_NVML_ERROR_NO_PERMISSION, nvmlReturn_enum_NVML_ERROR_NOT_FOUND,
    nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED, nvmlReturn_enum_NVML_ERROR_UNINITIALIZED,
    nvmlReturn_enum_NVML_ERROR_UNKNOWN, nvmlReturn_enum_NVML_SUCCESS, nvmlReturn_t,
};

use crate::Answer;

/// A result other than success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Return(pub nvmlReturn_t);

macro_rules! results {
    ($($(#[$meta:meta])* $name:ident = $value:ident;)*) => {$(
        $(#[$meta])*
        pub const $name: Return = Return($value);
    )*};
}

results! {
    /// An argument is NULL, or no handle of this library's.
    INVALID = nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT;
    /// The caller's buffer is too small.
    TOO_SMALL = nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE;
    /// There is no such thing, or it is not known.
    NOT_SUPPORTED = nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED;
    /// The caller may not.
    NO_PERMISSION = nvmlReturn_enum_NVML_ERROR_NO_PERMISSION;
    /// No device is called that.
    NOT_FOUND = nvmlReturn_enum_NVML_ERROR_NOT_FOUND;
    /// `nvmlInit` comes first.
    UNINITIALIZED = nvmlReturn_enum_NVML_ERROR_UNINITIALIZED;
    /// The caller's structure is of another version.
    VERSION_MISMATCH = nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    /// Something else.
    UNKNOWN = nvmlReturn_enum_NVML_ERROR_UNKNOWN;
}

/// Runs an exported function's body. A panic must not unwind into C.
pub fn answer(body: impl FnOnce() -> Answer) -> nvmlReturn_t {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => nvmlReturn_enum_NVML_SUCCESS,
        Ok(Err(Return(result))) => result,
        Err(_) => nvmlReturn_enum_NVML_ERROR_UNKNOWN,
    }
}

/// Where a result goes, or a list of results; NULL is an invalid argument.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Out<T>(*mut T);

impl<T> Out<T> {
    /// Whether the caller gave none.
    pub fn is_null(&self) -> bool {
        self.0.is_null()
    }

    /// Writes the result.
    ///
    /// # Errors
    /// When the caller gave no place for it.
    pub fn put(self, value: T) -> Answer {
        self.put_at(0, value)
    }

    /// Writes element `index`, which must be below the length that the caller gave.
    ///
    /// # Errors
    /// As [`Out::put`].
    pub fn put_at(self, index: usize, value: T) -> Answer {
        if self.0.is_null() {
            return Err(INVALID);
        }
        // SAFETY: not NULL, hence good for writing as many `T` as the caller says (see above);
        // no alignment is assumed.
        unsafe { self.0.add(index).write_unaligned(value) };
        Ok(())
    }
}

impl<T: Copy> Out<T> {
    /// Reads what the caller put in before.
    ///
    /// # Errors
    /// As [`Out::put`].
    pub fn get(self) -> Answer<T> {
        self.get_at(0)
    }

    /// Reads element `index`, which must be below the length that the caller gave.
    ///
    /// # Errors
    /// As [`Out::put`].
    pub fn get_at(self, index: usize) -> Answer<T> {
        if self.0.is_null() {
            return Err(INVALID);
        }
        // SAFETY: as in `put_at`; the function's contract says that it is filled in.
        Ok(unsafe { self.0.add(index).read_unaligned() })
    }
}

impl Out<c_char> {
    /// Writes `text` and a NUL into a buffer of `len` bytes.
    ///
    /// # Errors
    /// When there is no buffer, or it is too small.
    pub fn put_text(self, text: &str, len: u32) -> Answer {
        if self.0.is_null() {
            return Err(INVALID);
        }
        let room = usize::try_from(len).map_err(|_| INVALID)?;
        if text.len() >= room {
            return Err(TOO_SMALL);
        }
        // SAFETY: not NULL, hence good for writing `len` bytes, of which these are fewer.
        unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), self.0.cast(), text.len()) };
        // SAFETY: as above; this is the last of them at most.
        unsafe { self.0.add(text.len()).write(0) };
        Ok(())
    }
}

/// A text of the caller's.
#[repr(transparent)]
pub struct Text(*const c_char);

impl Text {
    /// The text.
    ///
    /// # Errors
    /// When it is NULL, or no UTF-8.
    pub fn read(&self) -> Answer<&str> {
        if self.0.is_null() {
            return Err(INVALID);
        }
        // SAFETY: not NULL, hence NUL-terminated; borrowed for the call only.
        unsafe { CStr::from_ptr(self.0) }.to_str().map_err(|_| INVALID)
    }
}

/// `text` in a field of `N` characters, NUL-terminated.
pub fn field<const N: usize>(text: &str) -> [c_char; N] {
    let mut field = [0; N];
    for (to, from) in field.iter_mut().take(N.saturating_sub(1)).zip(text.bytes()) {
        *to = c_char::from_ne_bytes([from]);
    }
    field
}

/// Answers with a list, as NVML does: the caller says in `count` how many fit, and learns how
/// many there are.
///
/// # Errors
/// When they do not fit, or there is no `count`.
pub fn put_list<T: Copy>(count: Out<u32>, list: Out<T>, items: Vec<T>) -> Answer {
    let room = usize::try_from(count.get()?).map_err(|_| INVALID)?;
    count.put(u32::try_from(items.len()).map_err(|_| INVALID)?)?;
    if items.is_empty() {
        return Ok(());
    }
    if list.is_null() || room < items.len() {
        return Err(TOO_SMALL);
    }
    items.into_iter().enumerate().try_for_each(|(index, item)| list.put_at(index, item))
}

/// NVML's version of a structure: its size, and its number in the upper byte.
pub const fn structure_version(size: usize, number: u32) -> u32 {
    #[allow(clippy::cast_possible_truncation, reason = "NVML's structures have some bytes only")]
    let size = size as u32;
    size | (number << 24)
}

/// Defines exported functions.
#[macro_export]
macro_rules! entry_points {
    ($($(#[$meta:meta])* fn $name:ident($($arg:ident: $type:ty),* $(,)?) $body:block)*) => {$(
        $(#[$meta])*
        #[unsafe(no_mangle)]
        #[allow(non_snake_case, reason = "the name is NVML's")]
        pub(crate) extern "C" fn $name(
            $($arg: $type),*
        ) -> $crate::bindings::nvmlReturn_t {
            $crate::answer(move || $body)
        }
    )*};
}
