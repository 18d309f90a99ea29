//! Code that lies in files, and options of the compiler that no tenant gets.

use std::ffi::{CString, c_void};
use std::path::Path;

use cudarc::driver::sys::{self, CUresult};
use gpuzone_cuda_abi::image::{Packing, fat_binary_of_ptx};

use super::{KERNELS, add_one, allocate, context, get, kernels, ok, read};

const DEFAULT: sys::CUstream = std::ptr::null_mut();

fn text(path: &Path) -> CString {
    CString::new(path.to_str().expect("a text")).expect("no zero within")
}

/// The library in a file.
fn library(path: &CString, place: *mut sys::CUlibrary) -> CUresult {
    let (none, nothing) = (std::ptr::null_mut(), std::ptr::null_mut());
    let (options, values) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: a text with its zero, no options, and a place for the answer.
    unsafe {
        sys::cuLibraryLoadFromFile(place, path.as_ptr(), options, values, 0, none, nothing, 0)
    }
}

pub(super) fn files() {
    context();
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).expect("written");
        text(&path)
    };
    // Nothing stands behind a file's end, no zero either.
    let ptx = file("kernels.ptx", KERNELS.as_bytes());
    let packed = lz4_flex::block::compress(KERNELS.as_bytes());
    let packed = fat_binary_of_ptx(&packed, Packing::Lz4, KERNELS.len() as u64);
    let fat = file("kernels.fatbin", &packed);
    let nonsense = file("nonsense.ptx", b"nonsense");
    let missing = text(&folder.path().join("missing"));
    let memory = allocate(64);
    // SAFETY: texts with their zeros, places for the answers.
    unsafe {
        for path in [&ptx, &fat] {
            let module = get(|place| sys::cuModuleLoad(place, path.as_ptr()));
            let function =
                get(|place| sys::cuModuleGetFunction(place, module, c"add_one".as_ptr()));
            ok(add_one(function, DEFAULT, memory, 16));
            let library = get(|place| library(path, place));
            let kernel = get(|place| sys::cuLibraryGetKernel(place, library, c"add_one".as_ptr()));
            ok(add_one(kernel.cast(), DEFAULT, memory, 16));
        }
        assert_eq!(read(memory, 16), [4; 16]);
        let link = |path: &CString| {
            let (options, values) = (std::ptr::null_mut(), std::ptr::null_mut());
            let state = get(|place| sys::cuLinkCreate_v2(0, options, values, place));
            let (kind, path) = (sys::CUjitInputType::CU_JIT_INPUT_PTX, path.as_ptr());
            (state, sys::cuLinkAddFile_v2(state, kind, path, 0, options, values))
        };
        let (state, added) = link(&ptx);
        ok(added);
        let (mut code, mut size) = (std::ptr::null_mut(), 0);
        ok(sys::cuLinkComplete(state, &raw mut code, &raw mut size));
        let module = get(|place| sys::cuModuleLoadData(place, code));
        ok(sys::cuLinkDestroy(state));
        let function = get(|place| sys::cuModuleGetFunction(place, module, c"add_one".as_ptr()));
        ok(add_one(function, DEFAULT, memory, 16));
        assert_eq!(read(memory, 16), [5; 16]);

        let mut module = std::ptr::null_mut();
        let mut place = std::ptr::null_mut();
        let broken = sys::cuModuleLoad(&raw mut module, nonsense.as_ptr());
        assert_eq!(broken, CUresult::CUDA_ERROR_INVALID_IMAGE);
        assert_eq!(library(&nonsense, &raw mut place), CUresult::CUDA_ERROR_INVALID_IMAGE);
        let absent = CUresult::CUDA_ERROR_FILE_NOT_FOUND;
        assert_eq!(sys::cuModuleLoad(&raw mut module, missing.as_ptr()), absent);
        assert_eq!(library(&missing, &raw mut place), absent);
        assert_eq!(link(&missing).1, absent);
        let nowhere = sys::cuModuleLoad(&raw mut module, std::ptr::null());
        assert_eq!(nowhere, CUresult::CUDA_ERROR_INVALID_VALUE);
    }
}

/// Options that would have the driver's compiler follow pointers, or that nobody has judged.
pub(super) fn options() {
    use sys::CUjit_option as O;

    context();
    let image = kernels();
    let refused = CUresult::CUDA_ERROR_NOT_SUPPORTED;
    let mut word = 1u64;
    for option in [
        O::CU_JIT_GLOBAL_SYMBOL_NAMES,
        O::CU_JIT_GLOBAL_SYMBOL_ADDRESSES,
        O::CU_JIT_REFERENCED_KERNEL_NAMES,
        O::CU_JIT_LTO,
        O::CU_JIT_SPLIT_COMPILE,
    ] {
        // One that is allowed does not take the other along.
        let mut names = [O::CU_JIT_MAX_REGISTERS, option];
        let mut values: [*mut c_void; 2] =
            [std::ptr::without_provenance_mut(32), (&raw mut word).cast()];
        let (names, values) = (names.as_mut_ptr(), values.as_mut_ptr());
        let mut module = std::ptr::null_mut();
        let (mut linker, mut library) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: a text with its zero, lists of two, places for the answers.
        unsafe {
            let code = image.as_ptr().cast();
            let loaded = sys::cuModuleLoadDataEx(&raw mut module, code, 2, names, values);
            assert_eq!(loaded, refused, "{option:?}");
            let linked = sys::cuLinkCreate_v2(2, names, values, &raw mut linker);
            assert_eq!(linked, refused, "{option:?}");
            let (none, nothing) = (std::ptr::null_mut(), std::ptr::null_mut());
            let loaded =
                sys::cuLibraryLoadData(&raw mut library, code, names, values, 2, none, nothing, 0);
            assert_eq!(loaded, refused, "{option:?}");
            // Alone, the first is a good one.
            ok(sys::cuModuleLoadDataEx(&raw mut module, code, 1, names, values));
        }
    }
}
