//! Whether kernels reach this process's memory, as NVIDIA's driver finds out: it initialises the
//! node of unified memory for the process, and whoever stands between the two may decline.

use std::sync::OnceLock;

/// `UVM_INITIALIZE`, and the flag by which a process declines HMM.
///
/// Source: open-gpu-kernel-modules 595.45.04, `uvm_linux_ioctl.h` and `uvm_types.h`.
const INITIALIZE: libc::c_ulong = 0x3000_0001;
const DISABLE_HMM: u64 = 1;

#[repr(C)]
struct Initialize {
    flags: u64,
    status: u32,
}

/// Whether the process declines, asked once.
pub(crate) fn declined() -> bool {
    static DECLINED: OnceLock<bool> = OnceLock::new();
    *DECLINED.get_or_init(|| {
        let mut asked = Initialize { flags: 0, status: 0 };
        // SAFETY: the argument is what the request takes. There is no such file, so that the
        // kernel does nothing; what stands before it has seen the request.
        unsafe { libc::ioctl(-1, INITIALIZE, &raw mut asked) };
        asked.flags & DISABLE_HMM != 0
    })
}
