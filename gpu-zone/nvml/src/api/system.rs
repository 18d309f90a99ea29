//! Initialising, versions, words.

use std::ffi::c_char;

use gpuzone_nvml_abi::bindings::nvmlReturn_t;
use gpuzone_nvml_abi::{NOT_FOUND, NOT_SUPPORTED, Out, entry_points, error_text};

use crate::state::{self, view};

/// The text of a result.
// SAFETY: the name is NVML's, and so is the signature.
#[unsafe(no_mangle)]
#[allow(non_snake_case, reason = "the name is NVML's")]
pub(crate) extern "C" fn nvmlErrorString(result: nvmlReturn_t) -> *const c_char {
    error_text(result).as_ptr()
}

entry_points! {
    fn nvmlInit() { state::initialise() }
    fn nvmlInit_v2() { state::initialise() }
    fn nvmlInitWithFlags(_flags: u32) { state::initialise() }
    fn nvmlShutdown() { state::shut_down() }

    fn nvmlSystemGetDriverVersion(text: Out<c_char>, len: u32) {
        text.put_text(view()?.driver.as_deref().ok_or(NOT_SUPPORTED)?, len)
    }

    fn nvmlSystemGetNVMLVersion(text: Out<c_char>, len: u32) {
        text.put_text(view()?.nvml.as_deref().ok_or(NOT_SUPPORTED)?, len)
    }

    fn nvmlSystemGetCudaDriverVersion(version: Out<i32>) {
        version.put(view()?.cuda)
    }

    fn nvmlSystemGetCudaDriverVersion_v2(version: Out<i32>) {
        version.put(view()?.cuda)
    }

    /// Of the lease's own processes, and of those that its zone shows.
    fn nvmlSystemGetProcessName(pid: u32, text: Out<c_char>, len: u32) {
        let own = view()?.processes.iter().any(|process| process.pid == pid);
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok().filter(|_| own);
        let line = line.ok_or(NOT_FOUND)?;
        let name = line.split(|byte| *byte == 0).next().unwrap_or(&[]);
        // NVML cuts a name that is too long.
        let room = usize::try_from(len).unwrap_or(usize::MAX).saturating_sub(1);
        let mut name = String::from_utf8_lossy(name).into_owned();
        while name.len() > room {
            name.pop();
        }
        text.put_text(&name, len)
    }
}
