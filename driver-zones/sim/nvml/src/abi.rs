//! The edge between C and the rest.
//!
//! The wrappers are made only by the caller of an exported function, whose contract (NVML's
//! documentation of that function) is that each pointer is NULL or good for what its name says.
//! That contract is what every `SAFETY` in this file leans on.

use std::ffi::{CStr, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use nvml_wrapper_sys::bindings::{
    nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE, nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT,
    nvmlReturn_enum_NVML_ERROR_UNKNOWN, nvmlReturn_enum_NVML_SUCCESS, nvmlReturn_t,
};

use crate::Answer;

/// A result other than success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Return(pub(crate) nvmlReturn_t);

pub(crate) const INVALID: Return = Return(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT);
pub(crate) const TOO_SMALL: Return = Return(nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE);

/// Runs an exported function's body. A panic must not unwind into C.
pub(crate) fn answer(body: impl FnOnce() -> Answer) -> nvmlReturn_t {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => nvmlReturn_enum_NVML_SUCCESS,
        Ok(Err(Return(result))) => result,
        Err(_) => nvmlReturn_enum_NVML_ERROR_UNKNOWN,
    }
}

/// Where a result goes, or a list of results; NULL is an invalid argument.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(crate) struct Out<T>(*mut T);

impl<T> Out<T> {
    pub(crate) fn is_null(&self) -> bool {
        self.0.is_null()
    }

    pub(crate) fn put(self, value: T) -> Answer {
        self.put_at(0, value)
    }

    /// Writes element `index`, which must be below the length that the caller gave.
    pub(crate) fn put_at(self, index: usize, value: T) -> Answer {
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
    pub(crate) fn get(self) -> Answer<T> {
        self.get_at(0)
    }

    /// Reads element `index`, which must be below the length that the caller gave.
    pub(crate) fn get_at(self, index: usize) -> Answer<T> {
        if self.0.is_null() {
            return Err(INVALID);
        }
        // SAFETY: as in `put_at`; the function's contract says that it is filled in.
        Ok(unsafe { self.0.add(index).read_unaligned() })
    }
}

impl Out<c_char> {
    /// Writes `text` and a NUL into a buffer of `len` bytes.
    pub(crate) fn put_text(self, text: &str, len: u32) -> Answer {
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
pub(crate) struct Text(*const c_char);

impl Text {
    pub(crate) fn read(&self) -> Answer<&str> {
        if self.0.is_null() {
            return Err(INVALID);
        }
        // SAFETY: not NULL, hence NUL-terminated; borrowed for the call only.
        unsafe { CStr::from_ptr(self.0) }.to_str().map_err(|_| INVALID)
    }
}

/// `text` in a field of `N` characters, NUL-terminated.
pub(crate) fn field<const N: usize>(text: &str) -> [c_char; N] {
    let mut field = [0; N];
    for (to, from) in field.iter_mut().take(N.saturating_sub(1)).zip(text.bytes()) {
        *to = c_char::from_ne_bytes([from]);
    }
    field
}

/// Defines exported functions.
macro_rules! entry_points {
    ($($(#[$meta:meta])* fn $name:ident($($arg:ident: $type:ty),* $(,)?) $body:block)*) => {$(
        $(#[$meta])*
        #[unsafe(no_mangle)]
        #[allow(non_snake_case, reason = "the name is NVML's")]
        pub(crate) extern "C" fn $name(
            $($arg: $type),*
        ) -> nvml_wrapper_sys::bindings::nvmlReturn_t {
            $crate::abi::answer(move || $body)
        }
    )*};
}
pub(crate) use entry_points;
