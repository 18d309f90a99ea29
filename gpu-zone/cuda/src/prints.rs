//! What this process's kernels printed, on its own standard output: where the driver's own library
//! writes it, and when, which is whenever the program waits for its work.

use gpuzone_wire::spec::{ContextId, Prints};

use crate::state::State;

unsafe extern "C" {
    /// The C library's standard output: what the program wrote there before stays before.
    static stdout: *mut libc::FILE;
}

fn write(text: &[u8]) {
    // SAFETY: the C library's own stream, which it locks, and as many bytes as there are. What is
    // not written is lost, as it is for the driver.
    unsafe {
        libc::fwrite(text.as_ptr().cast(), 1, text.len(), stdout);
        libc::fflush(stdout);
    }
}

impl State {
    /// Writes what kernels printed, if some may. To be called after each call with which a program
    /// waits for its work, however that went.
    pub(crate) fn write_prints(&mut self) {
        if !self.prints {
            return;
        }
        let mut lost = 0_u64;
        while let Ok(printed) = self.call(ContextId(0), &Prints {}) {
            lost = lost.saturating_add(printed.lost);
            if printed.text.is_empty() {
                break;
            }
            write(&printed.text);
        }
        if lost > 0 {
            eprintln!(
                "gpu-zone: {lost} bytes that kernels printed are lost: there was no room for them; \
                 wait for kernels more often, or have them print less"
            );
        }
    }
}
