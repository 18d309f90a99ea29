//! What stands between C and the rest.

use std::panic::{AssertUnwindSafe, catch_unwind};

use gpuzone_cuda_abi::CuResult;

pub(crate) type Answer<T = ()> = Result<T, CuResult>;

/// Runs a call; a fault of this library is an error to the program and not its end.
pub(crate) fn guard(call: impl FnOnce() -> Answer) -> CuResult {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(())) => CuResult::SUCCESS,
        Ok(Err(error)) => error,
        Err(_) => CuResult::UNKNOWN,
    }
}

/// Declares functions of the driver API: exported under their names, answering a `CUresult`. What
/// stands behind a `|` is the variant whose default stream is the thread's own.
macro_rules! api {
    ($(
        fn $name:ident $(| $variant:ident)? ($($argument:ident: $type:ty),* $(,)?) $body:block
    )*) => {$(
        $crate::ffi::api!(@plain $name ($($argument: $type),*) $body);
        $crate::ffi::api!(@variant $name [$($variant)?] ($($argument: $type),*));
    )*};
    (@plain $name:ident ($($argument:ident: $type:ty),*) $body:block) => {
        // SAFETY: the name is CUDA's own, with CUDA's own signature.
        #[unsafe(no_mangle)]
        #[allow(non_snake_case, reason = "CUDA's name")]
        unsafe extern "C" fn $name($($argument: $type),*) -> ::gpuzone_cuda_abi::CuResult {
            $crate::ffi::guard(move || $body)
        }
    };
    (@variant $name:ident [] ($($argument:ident: $type:ty),*)) => {};
    (@variant $name:ident [$variant:ident] ($($argument:ident: $type:ty),*)) => {
        // SAFETY: as above.
        #[unsafe(no_mangle)]
        #[allow(non_snake_case, reason = "CUDA's name")]
        unsafe extern "C" fn $variant($($argument: $type),*) -> ::gpuzone_cuda_abi::CuResult {
            // SAFETY: the same contract as the caller's.
            $crate::threads::with_own_stream(|| unsafe { $name($($argument),*) })
        }
    };
}
pub(crate) use api;

/// Writes an answer where the program wants it.
pub(crate) fn put<T>(place: *mut T, value: T) -> Answer {
    if place.is_null() {
        return Err(CuResult::INVALID_VALUE);
    }
    // SAFETY: the driver API's contract: a pointer that is not null has room for the answer.
    // It need not be aligned.
    unsafe { place.write_unaligned(value) };
    Ok(())
}

/// Writes an answer that the program need not want.
pub(crate) fn put_if_wanted<T>(place: *mut T, value: T) {
    if !place.is_null() {
        // SAFETY: as in `put`.
        unsafe { place.write_unaligned(value) };
    }
}

/// Reads a C string.
pub(crate) fn text<'a>(from: *const std::ffi::c_char) -> Answer<&'a str> {
    if from.is_null() {
        return Err(CuResult::INVALID_VALUE);
    }
    // SAFETY: the driver API's contract: a string that ends with a zero, left alone during the
    // call.
    let text = unsafe { std::ffi::CStr::from_ptr(from) };
    text.to_str().map_err(|_| CuResult::NOT_FOUND)
}
