//! The worker's own `ioctl`, which the driver's library finds before the C library's: it asks
//! the kernel module to keep HMM out of this process.
//!
//! With HMM (heterogeneous memory management) kernels reach all memory of the process that runs
//! them, and here kernels are a tenant's. The module takes the wish per process, when its node
//! `/dev/nvidia-uvm` is initialised; CUDA has no call for it. Should a driver ask otherwise one day, HMM stays on
//! and the worker refuses the GPU, for it looks at what the driver then says
//! (`DeviceError::HostInReach`).
//!
//! Source: open-gpu-kernel-modules 595.45.04, `uvm_linux_ioctl.h`, `uvm_types.h` and
//! `uvm_hmm_is_enabled` in `uvm_hmm.c`.

use std::ffi::{c_int, c_ulong};

/// `UVM_INITIALIZE`.
const INITIALIZE: c_ulong = 0x3000_0001;
/// `UVM_INIT_FLAGS_DISABLE_HMM`.
const DISABLE_HMM: u64 = 1;

/// `UVM_INITIALIZE_PARAMS`.
#[repr(C)]
struct Initialize {
    flags: u64,
    status: u32,
}

/// `ioctl(2)`, with HMM declined.
///
/// # Safety
/// As for `ioctl(2)`; no request that this process makes takes more than one argument.
#[unsafe(no_mangle)]
unsafe extern "C" fn ioctl(file: c_int, request: c_ulong, argument: *mut Initialize) -> c_int {
    if request == INITIALIZE && !argument.is_null() {
        // SAFETY: the request's argument is this structure.
        unsafe { (*argument).flags |= DISABLE_HMM };
    }
    // SAFETY: what the caller asks for; the kernel checks it.
    let answer = unsafe { libc::syscall(libc::SYS_ioctl, file, request, argument) };
    // It is -1, with the reason in errno, or a number of an int's size.
    c_int::try_from(answer).unwrap_or(-1)
}
