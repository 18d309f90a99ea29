//! Programs of the raw driver API. Each runs through the shim and on the simulated library itself,
//! and finds the same.

mod asked;
mod caps;
mod code;
mod files;
mod graph_params;
mod graphs;
mod launches;
mod memory;
mod own_defaults;
mod planes;
mod prints;
mod streams;

use std::ffi::{CStr, CString};

use cudarc::driver::sys::{self, CUresult};

pub(crate) const KERNELS: &str = concat!(
    ".version 8.0\n.target sm_75\n.address_size 64\n",
    ".visible .global .align 4 .u32 counter;\n",
    ".visible .entry add_one(.param .u64 p, .param .u32 n)\n{\n",
    ".reg .pred %p<2>;\n.reg .b32 %r<6>;\n.reg .b64 %d<4>;\n",
    "ld.param.u64 %d1, [p];\nld.param.u32 %r1, [n];\nmov.u32 %r2, %tid.x;\n",
    "setp.ge.u32 %p1, %r2, %r1;\n@%p1 bra DONE;\n",
    "cvta.to.global.u64 %d1, %d1;\nmul.wide.u32 %d2, %r2, 4;\nadd.s64 %d3, %d1, %d2;\n",
    "ld.global.u32 %r3, [%d3];\nadd.u32 %r4, %r3, 1;\nst.global.u32 [%d3], %r4;\n",
    "DONE:\nret;\n}\n",
    ".visible .entry empty()\n{\nret;\n}\n",
);

/// Runs the role if it is one of these.
pub(crate) fn play(role: &str) -> bool {
    match role {
        "libraries" => code::libraries(),
        "fat_binaries" => code::fat_binaries(),
        "linking" => code::linking(),
        "occupancy" => code::occupancy(),
        "rows" => memory::rows(),
        "pinned" => memory::pinned(),
        "streamed" => memory::streamed(),
        "pools" => memory::pools(),
        "mapped" => memory::mapped(),
        "registered" => memory::registered(),
        "beside_pinned" => memory::beside_pinned(),
        "prints" => prints::prints(),
        "prints_often" => prints::prints_often(),
        "prints_too_much" => prints::prints_too_much(),
        "unified" => memory::unified(),
        "caps" => caps::caps(),
        "reserved" => caps::reserved(),
        "captured" => graphs::captured(),
        "built" => graphs::built(),
        "instantiated" => graphs::instantiated(),
        "assembled" => graphs::assembled(),
        "told" => graph_params::told(),
        "replaced" => graph_params::replaced(),
        "led" => graph_params::led(),
        "files" => files::files(),
        "options" => files::options(),
        "launches" => launches::launches(),
        "cooperative" => launches::cooperative(),
        "attributes" => launches::attributes(),
        "enumerated" => launches::enumerated(),
        "halves" => planes::halves(),
        "boxes" => planes::boxes(),
        "pointers" => asked::pointers(),
        "reset" => asked::reset(),
        "asked" => asked::asked(),
        "properties" => asked::properties(),
        "own_defaults" => own_defaults::own_defaults(),
        "host_functions" => streams::host_functions(),
        "own_streams" => streams::own_streams(),
        "contexts" => streams::contexts(),
        _ => return false,
    }
    true
}

/// Fails unless the call succeeded.
#[track_caller]
pub(crate) fn ok(result: CUresult) {
    assert_eq!(result, CUresult::CUDA_SUCCESS);
}

/// What a call wrote.
#[track_caller]
pub(crate) fn get<T: Copy>(call: impl FnOnce(*mut T) -> CUresult) -> T {
    let mut value = std::mem::MaybeUninit::<T>::zeroed();
    ok(call(value.as_mut_ptr()));
    // SAFETY: the call succeeded, so it wrote the value; the types used here allow zeros anyway.
    unsafe { value.assume_init() }
}

/// A context that is current.
pub(crate) fn context() -> sys::CUcontext {
    // SAFETY: places for the answers.
    unsafe {
        ok(sys::cuInit(0));
        let context = get(|place| sys::cuDevicePrimaryCtxRetain(place, 0));
        ok(sys::cuCtxSetCurrent(context));
        context
    }
}

pub(crate) fn allocate(bytes: usize) -> u64 {
    // SAFETY: a place for the answer.
    get(|place| unsafe { sys::cuMemAlloc_v2(place, bytes) })
}

pub(crate) fn read(at: u64, words: usize) -> Vec<u32> {
    let mut data = vec![0u32; words];
    // SAFETY: room for as many bytes.
    ok(unsafe { sys::cuMemcpyDtoH_v2(data.as_mut_ptr().cast(), at, words * 4) });
    data
}

pub(crate) fn write(at: u64, data: &[u32]) {
    // SAFETY: as many bytes.
    ok(unsafe { sys::cuMemcpyHtoD_v2(at, data.as_ptr().cast(), size_of_val(data)) });
}

pub(crate) fn module(image: &CStr) -> sys::CUmodule {
    // SAFETY: a text with its zero, and a place for the answer.
    get(|place| unsafe { sys::cuModuleLoadData(place, image.as_ptr().cast()) })
}

pub(crate) fn kernels() -> CString {
    CString::new(KERNELS).expect("no zero within")
}

pub(crate) fn kernel(name: &CStr) -> sys::CUfunction {
    let module = module(&kernels());
    // SAFETY: a name with its zero, and a place for the answer.
    get(|place| unsafe { sys::cuModuleGetFunction(place, module, name.as_ptr()) })
}

/// Launches `add_one` on so many words.
pub(crate) fn add_one(
    function: sys::CUfunction,
    stream: sys::CUstream,
    at: u64,
    n: u32,
) -> CUresult {
    let (mut at, mut n) = (at, n);
    let mut list = [(&raw mut at).cast(), (&raw mut n).cast()];
    let none = std::ptr::null_mut();
    // SAFETY: the kernel's two arguments.
    unsafe { sys::cuLaunchKernel(function, 1, 1, 1, n, 1, 1, 0, stream, list.as_mut_ptr(), none) }
}
