//! Launches with all that can be said of them, and what kernels are asked.

use std::ffi::{CStr, CString, c_void};

use cudarc::driver::sys::{self, CUfunction_attribute as A, CUresult};
use gpuzone_cuda_abi::{LaunchAttribute as L, LaunchAttributeValue, LaunchConfig, launch_param};

use super::{allocate, context, get, kernel, kernels, module, ok, read, write};

const REFUSED: CUresult = CUresult::CUDA_ERROR_INVALID_VALUE;

/// One block of 16 threads.
fn launch(
    function: sys::CUfunction,
    attributes: &[LaunchAttributeValue],
    parameters: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> CUresult {
    let config = LaunchConfig {
        grid: [1; 3],
        block: [16, 1, 1],
        shared: 0,
        stream: std::ptr::null_mut(),
        attributes: attributes.as_ptr(),
        attribute_count: u32::try_from(attributes.len()).expect("few"),
    };
    // SAFETY: a configuration with its list, and the kernel's arguments.
    unsafe { sys::cuLaunchKernelEx((&raw const config).cast(), function, parameters, extra) }
}

pub(super) fn launches() {
    context();
    let function = kernel(c"add_one");
    let memory = allocate(64);
    let (mut at, mut n) = (memory, 16u32);
    let mut list: [*mut c_void; 2] = [(&raw mut at).cast(), (&raw mut n).cast()];
    let list = list.as_mut_ptr();
    let none = std::ptr::null_mut();
    let of = |attribute: L, words| LaunchAttributeValue::of(attribute.0, words);
    ok(launch(function, &[], list, none));
    let plain = [
        of(L::IGNORE, [9, 9, 9]),
        of(L::COOPERATIVE, [0; 3]),
        of(L::CLUSTER_DIMENSION, [1; 3]),
        of(L::PRIORITY, [0; 3]),
        of(L::MEM_SYNC_DOMAIN, [1, 0, 0]),
        of(L::PREFERRED_SHARED_MEMORY_CARVEOUT, [50, 0, 0]),
    ];
    ok(launch(function, &plain, list, none));
    assert_eq!(read(memory, 16), [2; 16]);
    for attribute in [L::PROGRAMMATIC_EVENT, L::DEVICE_UPDATABLE_KERNEL_NODE, L(99)] {
        let attributes = [of(L::IGNORE, [0; 3]), of(attribute, [1, 0, 0])];
        let refused = launch(function, &attributes, list, none);
        assert_eq!(refused, CUresult::CUDA_ERROR_NOT_SUPPORTED, "{attribute:?}");
    }
    // The arguments in one buffer.
    let mut buffer = [at, n.into()];
    for (mut size, expected) in
        [(12_usize, CUresult::CUDA_SUCCESS), (16, CUresult::CUDA_SUCCESS), (11, REFUSED)]
    {
        let mut extra: [*mut c_void; 5] = [
            std::ptr::without_provenance_mut(launch_param::BUFFER_POINTER),
            buffer.as_mut_ptr().cast(),
            std::ptr::without_provenance_mut(launch_param::BUFFER_SIZE),
            (&raw mut size).cast(),
            std::ptr::without_provenance_mut(launch_param::END),
        ];
        let extra = extra.as_mut_ptr();
        assert_eq!(launch(function, &plain, none, extra), expected, "{size} bytes");
        assert_eq!(launch(function, &[], list, extra), REFUSED, "both ways at once");
    }
    assert_eq!(launch(function, &[], none, none), REFUSED, "no arguments");
    assert_eq!(read(memory, 16), [4; 16]);
}

const COOPERATIVE: &str = include_str!("../../../../sim/kernels/ptx/cooperative.ptx");

/// Grids whose blocks meet, launched in both ways; and one that does not fit the GPU at once.
pub(super) fn cooperative() {
    context();
    let module = module(&CString::new(COOPERATIVE).expect("no zero within"));
    // SAFETY: a name with its zero, and a place for the answer.
    let function =
        get(|place| unsafe { sys::cuModuleGetFunction(place, module, c"ring_steps".as_ptr()) });
    let ring = allocate(4 * 600);
    let start: Vec<u32> = (0..600).collect();
    write(ring, &start);
    let rounds = 3u32;
    let (mut at, mut n, mut times) = (ring, 600u32, rounds);
    let mut list: [*mut c_void; 3] =
        [(&raw mut at).cast(), (&raw mut n).cast(), (&raw mut times).cast()];
    let (list, none) = (list.as_mut_ptr(), std::ptr::null_mut::<c_void>());
    let grid = |blocks: u32| {
        // SAFETY: the kernel's three arguments.
        unsafe {
            sys::cuLaunchCooperativeKernel(function, blocks, 1, 1, 64, 1, 1, 0, none.cast(), list)
        }
    };
    ok(grid(10));
    let attribute = LaunchAttributeValue::of(L::COOPERATIVE.0, [1, 0, 0]);
    let config = |blocks| LaunchConfig {
        grid: [blocks, 1, 1],
        block: [64, 1, 1],
        shared: 0,
        stream: std::ptr::null_mut(),
        attributes: &raw const attribute,
        attribute_count: 1,
    };
    let with = |config: LaunchConfig| {
        // SAFETY: a configuration with its list, and the kernel's arguments.
        unsafe {
            sys::cuLaunchKernelEx((&raw const config).cast(), function, list, std::ptr::null_mut())
        }
    };
    ok(with(config(10)));
    let mut expected = start;
    for _ in 0..2 * rounds {
        let sum = |i: usize| expected[(i + 1) % 600].wrapping_add(expected[(i + 599) % 600]);
        expected = (0..600).map(sum).collect();
    }
    assert_eq!(read(ring, 600), expected);
    // SAFETY: a kernel and a place for the answer.
    let each = get(|place| unsafe {
        sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(place, function, 64, 0)
    });
    let processors = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
    // SAFETY: a place for the answer.
    let processors = get(|place| unsafe { sys::cuDeviceGetAttribute(place, processors, 0) });
    let most = u32::try_from(each * processors).expect("some");
    let too_large = CUresult::CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE;
    assert_eq!((grid(most + 1), with(config(most + 1))), (too_large, too_large));
    // No error is left behind, and the most that fit do run.
    ok(grid(most));
    // SAFETY: a plain call.
    ok(unsafe { sys::cuCtxSynchronize() });
}

/// Launches `empty` with so many bytes of dynamic shared memory.
fn with_shared(function: sys::CUfunction, bytes: u32) -> CUresult {
    let none = std::ptr::null_mut();
    // SAFETY: a kernel without arguments.
    unsafe {
        sys::cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, bytes, std::ptr::null_mut(), none, none)
    }
}

pub(super) fn attributes() {
    context();
    let dynamic = A::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    let bytes = 60 << 10;
    let image = kernels();
    // SAFETY: texts with their zeros, no options, places for the answers.
    unsafe {
        let function = kernel(c"empty");
        assert_eq!(with_shared(function, bytes), REFUSED);
        ok(sys::cuFuncSetAttribute(function, dynamic, 60 << 10));
        assert_eq!(get(|place| sys::cuFuncGetAttribute(place, dynamic, function)), 60 << 10);
        ok(with_shared(function, bytes));
        for (attribute, value) in
            [(dynamic, -1), (dynamic, 1 << 30), (A::CU_FUNC_ATTRIBUTE_NUM_REGS, 8)]
        {
            let refused = sys::cuFuncSetAttribute(function, attribute, value);
            assert_eq!(refused, REFUSED, "{attribute:?} {value}");
        }
        assert_eq!(get(|place| sys::cuFuncGetAttribute(place, dynamic, function)), 60 << 10);

        let library = get(|place| {
            let (names, values) = (std::ptr::null_mut(), std::ptr::null_mut());
            let (options, of_them) = (std::ptr::null_mut(), std::ptr::null_mut());
            let code = image.as_ptr().cast();
            sys::cuLibraryLoadData(place, code, names, values, 0, options, of_them, 0)
        });
        let kernel = get(|place| sys::cuLibraryGetKernel(place, library, c"empty".as_ptr()));
        assert_eq!(with_shared(kernel.cast(), bytes), REFUSED, "another module's");
        ok(sys::cuKernelSetAttribute(dynamic, 60 << 10, kernel, 0));
        assert_eq!(get(|place| sys::cuKernelGetAttribute(place, dynamic, kernel, 0)), 60 << 10);
        let of_it = get(|place| sys::cuKernelGetFunction(place, kernel));
        assert_eq!(get(|place| sys::cuFuncGetAttribute(place, dynamic, of_it)), 60 << 10);
        ok(with_shared(kernel.cast(), bytes));
        assert_eq!(sys::cuKernelSetAttribute(dynamic, -1, kernel, 0), REFUSED);
        let elsewhere = sys::cuKernelSetAttribute(dynamic, 0, kernel, 7);
        assert_eq!(elsewhere, CUresult::CUDA_ERROR_INVALID_DEVICE);
        ok(sys::cuCtxSynchronize());
    }
}

pub(super) fn enumerated() {
    context();
    let module = module(&kernels());
    // SAFETY: lists of the lengths that are given, places for the answers.
    unsafe {
        assert_eq!(get(|place| sys::cuModuleGetFunctionCount(place, module)), 2u32);
        let none = std::ptr::null_mut();
        let mut all = [none; 3];
        ok(sys::cuModuleEnumerateFunctions(all.as_mut_ptr(), 3, module));
        assert_eq!(all[2], none, "there are two");
        let name =
            |function| CStr::from_ptr(get(|place| sys::cuFuncGetName(place, function))).to_owned();
        let mut names = [name(all[0]), name(all[1])];
        names.sort_unstable();
        assert_eq!(names, [c"add_one".to_owned(), c"empty".to_owned()]);
        let by_name = get(|place| sys::cuModuleGetFunction(place, module, c"empty".as_ptr()));
        assert!(all.contains(&by_name), "the same handles");
        let mut first = [none; 2];
        ok(sys::cuModuleEnumerateFunctions(first.as_mut_ptr(), 1, module));
        assert_eq!(first, [all[0], none]);
        assert_eq!(sys::cuModuleEnumerateFunctions(none.cast(), 1, module), REFUSED);
    }
}
