//! Functions that are not supported, and all functions by name.

use gpuzone_wire::ring::Payload;
use gpuzone_wire::spec::{ContextId, Unsupported};

use std::sync::Once;

use gpuzone_cuda_abi::{CuResult, FUNCTIONS, FunctionIndex};

/// Counts the call and answers "not supported".
pub(crate) fn refuse(function: u32) -> u32 {
    if FUNCTIONS.get(function as usize) == Some(&"cuGetExportTable") {
        tell_of_the_runtime();
    }
    let refused = crate::ffi::guard(|| {
        crate::state::with(|state| {
            let request = Unsupported { function };
            state.client.post(ContextId(0), &request, Payload::NONE)
        })
    });
    if refused == CuResult::SUCCESS || refused == CuResult::NOT_INITIALIZED {
        return CuResult::NOT_SUPPORTED.0;
    }
    refused.0
}

/// What the CUDA runtime makes of the answer tells nobody anything.
fn tell_of_the_runtime() {
    static TOLD: Once = Once::new();
    TOLD.call_once(|| {
        eprintln!(
            "gpu-zone: this program asks for tables that NVIDIA's driver has for the CUDA runtime alone; a mediated GPU serves programs of the driver API, and others need a MIG instance or a whole GPU (docs/cuda-support.md)"
        );
    });
}

/// The function of this library with this name.
pub(crate) fn address(name: &str) -> Option<*const ()> {
    let index = FunctionIndex::of(name)?;
    let (_, address) = listed::SYMBOLS.0.get(usize::from(index.get()))?;
    Some(*address)
}

#[allow(
    non_snake_case,
    clippy::undocumented_unsafe_blocks,
    reason = "written by build.rs: CUDA's names, and nothing but them"
)]
mod listed {
    include!(concat!(env!("OUT_DIR"), "/stubs.rs"));

    // SAFETY: addresses of functions, which are the same for every thread.
    unsafe impl Sync for Symbols {}
}
