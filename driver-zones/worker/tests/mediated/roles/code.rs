use cudarc::driver::sys::{self, CUresult};
use gpuzone_cuda_abi::image::{Packing, fat_binary_of_ptx};

use super::{KERNELS, add_one, allocate, context, get, kernel, kernels, ok, read, write};

const DEFAULT: sys::CUstream = std::ptr::null_mut();

pub(super) fn libraries() {
    context();
    let image = kernels();
    let none = std::ptr::null_mut::<std::ffi::c_void>;
    // SAFETY: texts with their zeros, no options, places for the answers.
    unsafe {
        let library = get(|place| {
            let (a, b, c, d) = (none().cast(), none().cast(), none().cast(), none().cast());
            sys::cuLibraryLoadData(place, image.as_ptr().cast(), a, b, 0, c, d, 0)
        });
        assert_eq!(get(|place| sys::cuLibraryGetKernelCount(place, library)), 2u32);
        let kernel = get(|place| sys::cuLibraryGetKernel(place, library, c"add_one".as_ptr()));
        let again = get(|place| sys::cuLibraryGetKernel(place, library, c"add_one".as_ptr()));
        assert_eq!(kernel, again);
        let mut offset = 0;
        let mut size = 0;
        ok(sys::cuKernelGetParamInfo(kernel, 1, &raw mut offset, &raw mut size));
        assert_eq!((offset, size), (8, 4));
        let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK;
        assert_eq!(get(|place| sys::cuKernelGetAttribute(place, most, kernel, 0)), 1024);
        // The runtime passes a kernel where a function is expected.
        let memory = allocate(64);
        write(memory, &[7; 16]);
        ok(add_one(kernel.cast(), DEFAULT, memory, 16));
        let function = get(|place| sys::cuKernelGetFunction(place, kernel));
        ok(add_one(function, DEFAULT, memory, 16));
        assert_eq!(read(memory, 16), [9; 16]);
        let (mut at, mut bytes) = (0, 0);
        ok(sys::cuLibraryGetGlobal(&raw mut at, &raw mut bytes, library, c"counter".as_ptr()));
        write(at, &[3]);
        assert_eq!((read(at, 1), bytes), (vec![3], 4));
        let missing = get_error(|place| sys::cuLibraryGetKernel(place, library, c"no".as_ptr()));
        assert_eq!(missing, CUresult::CUDA_ERROR_NOT_FOUND);
        // In another context it is another module.
        let primary = get(|place| sys::cuCtxGetCurrent(place));
        let other = get(|place| sys::cuCtxCreate_v4(place, none().cast(), 0, 0));
        let there = allocate(64);
        ok(add_one(kernel.cast(), DEFAULT, there, 16));
        assert_eq!(read(there, 16), [1; 16]);
        ok(sys::cuCtxDestroy_v2(other));
        ok(sys::cuCtxSetCurrent(primary));
        ok(add_one(kernel.cast(), DEFAULT, memory, 16));
        ok(sys::cuLibraryUnload(library));
        let gone = add_one(kernel.cast(), DEFAULT, memory, 16);
        assert_eq!(gone, CUresult::CUDA_ERROR_INVALID_HANDLE);
        assert_eq!(read(memory, 16), [10; 16]);
    }
}

fn get_error<T>(call: impl FnOnce(*mut T) -> CUresult) -> CUresult {
    let mut value = std::mem::MaybeUninit::<T>::zeroed();
    call(value.as_mut_ptr())
}

pub(super) fn fat_binaries() {
    context();
    let text = KERNELS.as_bytes();
    let length = text.len() as u64;
    let lz4 = lz4_flex::block::compress(text);
    let zstd = ruzstd::encoding::compress_to_vec(text, ruzstd::encoding::CompressionLevel::Fastest);
    let memory = allocate(64);
    for (payload, packing) in [(text, Packing::Plain), (&lz4, Packing::Lz4), (&zstd, Packing::Zstd)]
    {
        let image = fat_binary_of_ptx(payload, packing, length);
        let wrapper = [0x0000_0001_4662_43b1u64, image.as_ptr().expose_provenance() as u64, 0];
        // SAFETY: a fat binary, with and without what points at it, and places for the answers.
        unsafe {
            let module = get(|place| sys::cuModuleLoadFatBinary(place, image.as_ptr().cast()));
            ok(sys::cuModuleUnload(module));
            let module = get(|place| sys::cuModuleLoadData(place, wrapper.as_ptr().cast()));
            let function =
                get(|place| sys::cuModuleGetFunction(place, module, c"add_one".as_ptr()));
            ok(add_one(function, DEFAULT, memory, 16));
        }
    }
    assert_eq!(read(memory, 16), [3; 16]);
    // What says that it unpacks to more than anybody takes.
    let bomb = fat_binary_of_ptx(&lz4, Packing::Lz4, 1 << 40);
    let mut module = std::ptr::null_mut();
    // SAFETY: a fat binary and a place for the answer.
    let refused = unsafe { sys::cuModuleLoadData(&raw mut module, bomb.as_ptr().cast()) };
    assert_ne!(refused, CUresult::CUDA_SUCCESS);
    // Machine code is for a real GPU.
    let mut elf = [0u8; 128];
    elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    // One section's header, behind the file's.
    (elf[40], elf[58], elf[60]) = (64, 64, 1);
    // SAFETY: a header of machine code, and a place for the answer.
    let refused = unsafe { sys::cuModuleLoadData(&raw mut module, elf.as_ptr().cast()) };
    assert_eq!(refused, CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
}

pub(super) fn linking() {
    context();
    let image = kernels();
    let (none, mut log) = (std::ptr::null_mut::<std::ffi::c_void>(), [0u8; 256]);
    let mut options = [
        sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
        sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
    ];
    let mut values = [log.as_mut_ptr().cast(), std::ptr::without_provenance_mut(log.len())];
    let ptx = sys::CUjitInputType::CU_JIT_INPUT_PTX;
    // SAFETY: lists of two, texts of the sizes that are given, places for the answers.
    unsafe {
        let mut link = || {
            get(|place| sys::cuLinkCreate_v2(2, options.as_mut_ptr(), values.as_mut_ptr(), place))
        };
        let add = |state, text: &std::ffi::CStr| {
            let (data, size) = (text.as_ptr().cast_mut().cast(), text.to_bytes_with_nul().len());
            let name = c"kernels".as_ptr();
            sys::cuLinkAddData_v2(state, ptx, data, size, name, 0, none.cast(), none.cast())
        };
        let state = link();
        ok(add(state, &image));
        let (mut code, mut size) = (std::ptr::null_mut(), 0);
        ok(sys::cuLinkComplete(state, &raw mut code, &raw mut size));
        assert!(size > 0);
        let module = get(|place| sys::cuModuleLoadData(place, code));
        ok(sys::cuLinkDestroy(state));
        let function = get(|place| sys::cuModuleGetFunction(place, module, c"add_one".as_ptr()));
        let memory = allocate(64);
        ok(add_one(function, DEFAULT, memory, 16));
        assert_eq!(read(memory, 16), [1; 16]);
        // What is wrong is said, when it is added or when all is linked.
        let state = link();
        let added = add(state, c".version 8.0\n.target sm_75\n.address_size 64\nnonsense").result();
        let mut complete = || sys::cuLinkComplete(state, &raw mut code, &raw mut size).result();
        assert!(added.and_then(|()| complete()).is_err());
        ok(sys::cuLinkDestroy(state));
    }
    let said = String::from_utf8_lossy(&log);
    assert!(said.contains("line 4"), "{said}");
}

unsafe extern "C" fn no_shared(_block: i32) -> usize {
    0
}

pub(super) fn occupancy() {
    context();
    let function = kernel(c"add_one");
    // SAFETY: a kernel and places for the answers.
    unsafe {
        let (mut grid, mut block) = (0, 0);
        for shared in [None, Some(no_shared as unsafe extern "C" fn(i32) -> usize)] {
            ok(sys::cuOccupancyMaxPotentialBlockSize(
                &raw mut grid,
                &raw mut block,
                function,
                shared,
                0,
                0,
            ));
            assert_eq!(block, 1024);
            assert!(grid >= 2, "{grid}");
        }
        let at_once =
            get(|place| sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(place, function, 1024, 0));
        assert_eq!(at_once, 2);
        let bytes =
            get(|place| sys::cuOccupancyAvailableDynamicSMemPerBlock(place, function, 2, 1024));
        assert_eq!(bytes, 48 << 10);
    }
}
