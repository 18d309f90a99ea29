//! Modules, launches, queries, and what is answered to calls that make no sense.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "this whole file is a test"
)]

mod support;

use std::ffi::{CStr, CString, c_void};
use std::ptr::null_mut;

use cudarc::driver::sys::{self, CUjit_option, CUresult};
use support::{allocate, context, get, isolated, kernel, launch, ok, read};

const FAULTS: &str = include_str!("../../kernels/ptx/faults.ptx");
const VECTOR_ADD: &str = include_str!("../../kernels/ptx/vector_add.ptx");
const GLOBALS: &str = r"
.version 8.0
.target sm_70
.address_size 64
.global .align 4 .u32 counter = 5;
.const .align 4 .u32 step = 3;
.visible .entry bump()
{
	.reg .b32 %r<4>;
	ld.global.u32 %r1, [counter];
	ld.const.u32 %r2, [step];
	add.u32 %r3, %r1, %r2;
	st.global.u32 [counter], %r3;
	ret;
}
";

/// Loads `text` with a log buffer of `room` bytes.
fn load_with_log(text: &str, room: usize) -> (CUresult, String, usize) {
    let text = CString::new(text).unwrap();
    let mut log = vec![0x55u8; room];
    let mut options =
        [CUjit_option::CU_JIT_ERROR_LOG_BUFFER, CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    let mut values: [*mut c_void; 2] =
        [log.as_mut_ptr().cast(), std::ptr::without_provenance_mut(room)];
    let mut module = null_mut();
    // SAFETY: all buffers outlive the call and have the lengths that are given.
    let result = unsafe {
        let image = text.as_ptr().cast();
        let (options, values) = (options.as_mut_ptr(), values.as_mut_ptr());
        sys::cuModuleLoadDataEx(&raw mut module, image, 2, options, values)
    };
    let message = CStr::from_bytes_until_nul(&log).unwrap().to_str().unwrap().to_owned();
    (result, message, values[1].addr())
}

#[test]
fn the_error_log_names_the_line() {
    isolated("the_error_log_names_the_line", || {
        context(0);
        let text = VECTOR_ADD.replace("add.f32", "frobnicate.f32");
        let line = text.lines().position(|line| line.contains("frobnicate")).unwrap() + 1;
        let (result, log, size) = load_with_log(&text, 500);
        assert_eq!(result, CUresult::CUDA_ERROR_INVALID_PTX);
        assert!(log.starts_with(&format!("line {line}: ")), "{log}");
        assert_eq!(size, log.len());
        let (_, cut, size) = load_with_log(&text, 8);
        assert_eq!((cut.as_str(), size), (&log[..7], 7));
        let (result, log, _) = load_with_log(VECTOR_ADD, 100);
        assert_eq!((result, log.as_str()), (CUresult::CUDA_SUCCESS, ""));
    });
}

#[test]
fn only_ptx_for_this_gpu_is_loaded() {
    isolated("only_ptx_for_this_gpu_is_loaded", || {
        context(1);
        let no_binary = CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU;
        let (result, log, _) = load_with_log("\x7fELF...", 200);
        assert_eq!(result, no_binary);
        assert!(log.contains("runs PTX only"), "{log}");
        let (result, log, _) = load_with_log(VECTOR_ADD, 200);
        assert_eq!(result, no_binary, "sm_75 on a GPU of 7.0");
        assert!(log.contains("sm_75"), "{log}");
        let (result, log, _) = load_with_log("hello", 200);
        assert_eq!(result, CUresult::CUDA_ERROR_INVALID_IMAGE);
        assert!(log.contains("no PTX"), "{log}");
    });
}

#[test]
fn a_modules_variables_are_in_device_memory() {
    isolated("a_modules_variables_are_in_device_memory", || {
        context(0);
        let before = support::free_memory();
        let text = CString::new(GLOBALS).unwrap();
        // SAFETY: texts and places for results outlive the calls.
        unsafe {
            let module = get(|out| sys::cuModuleLoadData(out, text.as_ptr().cast()));
            assert_eq!(support::free_memory(), before - 1024, "they are charged");
            let mut size = 0;
            let counter = get(|out| {
                sys::cuModuleGetGlobal_v2(out, &raw mut size, module, c"counter".as_ptr())
            });
            assert_eq!((size, read(counter, 1).1), (4, vec![5]));
            let bump = get(|out| sys::cuModuleGetFunction(out, module, c"bump".as_ptr()));
            ok(launch(bump, 1, 1, &mut []));
            assert_eq!(read(counter, 1).1, vec![8]);
            let missing = sys::cuModuleGetFunction(&mut null_mut(), module, c"nope".as_ptr());
            assert_eq!(missing, CUresult::CUDA_ERROR_NOT_FOUND);
            ok(sys::cuModuleUnload(module));
            assert_eq!(support::free_memory(), before);
            assert_eq!(launch(bump, 1, 1, &mut []), CUresult::CUDA_ERROR_INVALID_HANDLE);
        }
    });
}

#[test]
fn launches_that_cannot_be_are_refused_at_once() {
    isolated("launches_that_cannot_be_are_refused_at_once", || {
        context(0);
        let fill = kernel(FAULTS, "fill");
        let data = allocate(64);
        let mut params = [data, 1, 16];
        let invalid = CUresult::CUDA_ERROR_INVALID_VALUE;
        assert_eq!(launch(fill, 0, 32, &mut params), invalid);
        assert_eq!(launch(fill, 1, 0, &mut params), invalid);
        assert_eq!(launch(fill, 1, 1025, &mut params), invalid);
        let bogus = std::ptr::without_provenance_mut(0x1234);
        assert_eq!(launch(bogus, 1, 1, &mut params), CUresult::CUDA_ERROR_INVALID_HANDLE);
        let mut pointers = params.each_mut().map(|p| std::ptr::from_mut(p).cast::<c_void>());
        // SAFETY: one pointer per parameter; the buffer of `extra` has the size it says.
        unsafe {
            let run = |shared, params: *mut *mut c_void, extra: *mut *mut c_void| {
                sys::cuLaunchKernel(fill, 1, 1, 1, 1, 1, 1, shared, null_mut(), params, extra)
            };
            assert_eq!(
                run(49 << 10, pointers.as_mut_ptr(), null_mut()),
                invalid,
                "too much shared"
            );
            assert_eq!(run(0, null_mut(), null_mut()), invalid, "no parameters");
            pointers[1] = null_mut();
            assert_eq!(run(0, pointers.as_mut_ptr(), null_mut()), invalid, "a parameter at NULL");

            let mut buffer: [u64; 3] = [data, 9, 16];
            let mut size: usize = 24;
            let mut extra: [*mut c_void; 5] = [
                std::ptr::without_provenance_mut(1),
                buffer.as_mut_ptr().cast(),
                std::ptr::without_provenance_mut(2),
                (&raw mut size).cast(),
                null_mut(),
            ];
            ok(run(0, null_mut(), extra.as_mut_ptr()));
            assert_eq!(read(data, 16).1, vec![9; 16]);
            (&raw mut size).write(16);
            assert_eq!(run(0, null_mut(), extra.as_mut_ptr()), invalid, "a short buffer");
        }
        // SAFETY: no pointers. Nothing of the above has stuck.
        ok(unsafe { sys::cuCtxSynchronize() });
    });
}

#[test]
fn functions_tell_their_parameters_and_attributes() {
    isolated("functions_tell_their_parameters_and_attributes", || {
        context(0);
        let fill = kernel(FAULTS, "fill");
        // SAFETY: places for results outlive the calls.
        unsafe {
            let mut seen = Vec::new();
            let (mut offset, mut size) = (0, 0);
            while sys::cuFuncGetParamInfo(fill, seen.len(), &raw mut offset, &raw mut size)
                == CUresult::CUDA_SUCCESS
            {
                seen.push((offset, size));
            }
            assert_eq!(seen, [(0, 8), (8, 4), (16, 8)]);
            let threads = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK;
            assert_eq!(get(|out| sys::cuFuncGetAttribute(out, threads, fill)), 1024);
            let blocks =
                get(|out| sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(out, fill, 256, 0));
            assert!((1..=8).contains(&blocks), "{blocks}");
        }
    });
}

#[test]
fn pointers_tell_what_they_are() {
    isolated("pointers_tell_what_they_are", || {
        let current = context(0);
        let data = allocate(1000);
        use sys::CUpointer_attribute as Attribute;
        // SAFETY: places for results are as large as the attributes are.
        unsafe {
            let ask =
                |attribute, out: *mut c_void, at| sys::cuPointerGetAttribute(out, attribute, at);
            let kind: u32 = get(|out: *mut u32| {
                ask(Attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE, out.cast(), data + 999)
            });
            assert_eq!(kind, 2);
            let owner: sys::CUcontext = get(|out: *mut sys::CUcontext| {
                ask(Attribute::CU_POINTER_ATTRIBUTE_CONTEXT, out.cast(), data)
            });
            assert_eq!(owner, current);
            let host = [0u8; 4];
            let result = ask(
                Attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE,
                (&mut 0u32 as *mut u32).cast(),
                host.as_ptr().addr() as u64,
            );
            assert_eq!(result, CUresult::CUDA_ERROR_INVALID_VALUE);
            let (mut base, mut size) = (0, 0);
            ok(sys::cuMemGetAddressRange_v2(&raw mut base, &raw mut size, data + 500));
            assert_eq!((base, size), (data, 1000));
        }
    });
}

#[test]
fn functions_are_found_by_name_and_version() {
    isolated("functions_are_found_by_name_and_version", || {
        let find = |name: &CStr, version| {
            let (mut function, mut status) =
                (null_mut(), sys::CUdriverProcAddressQueryResult::CU_GET_PROC_ADDRESS_SUCCESS);
            // SAFETY: text and places for results outlive the call.
            ok(unsafe {
                sys::cuGetProcAddress_v2(
                    name.as_ptr(),
                    &raw mut function,
                    version,
                    0,
                    &raw mut status,
                )
            });
            (function.addr(), status)
        };
        let alloc = find(c"cuMemAlloc", 13_000);
        assert_ne!(alloc.0, 0);
        assert_eq!(alloc, find(c"cuMemAlloc_v2", 13_000));
        assert_ne!(find(c"cuCtxCreate", 13_000), find(c"cuCtxCreate", 12_000));
        assert_ne!(find(c"cuInit", 2000).0, 0);
        let missing = sys::CUdriverProcAddressQueryResult::CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
        assert_eq!(find(c"cuGraphCreate", 13_000), (0, missing));
    });
}

#[test]
fn calls_without_a_driver_a_context_or_a_pointer_are_refused() {
    isolated("calls_without_a_driver_a_context_or_a_pointer_are_refused", || {
        let mut count = 0;
        let mut address = 0;
        // SAFETY: places for results outlive the calls; NULL is what is tested.
        unsafe {
            let count_of = |out| sys::cuDeviceGetCount(out);
            assert_eq!(count_of(&raw mut count), CUresult::CUDA_ERROR_NOT_INITIALIZED);
            assert_eq!(sys::cuInit(1), CUresult::CUDA_ERROR_INVALID_VALUE);
            ok(sys::cuInit(0));
            ok(count_of(&raw mut count));
            assert_eq!(count, 2);
            let invalid = CUresult::CUDA_ERROR_INVALID_VALUE;
            assert_eq!(count_of(null_mut()), invalid);
            assert_eq!(sys::cuDeviceGet(&mut 0, 2), CUresult::CUDA_ERROR_INVALID_DEVICE);
            assert_eq!(sys::cuDeviceGet(&mut 0, -1), CUresult::CUDA_ERROR_INVALID_DEVICE);
            let alloc = sys::cuMemAlloc_v2(&raw mut address, 1);
            assert_eq!(alloc, CUresult::CUDA_ERROR_INVALID_CONTEXT);
            context(0);
            assert_eq!(sys::cuMemAlloc_v2(null_mut(), 1), invalid);
            assert_eq!(sys::cuModuleLoadData(&mut null_mut(), std::ptr::null()), invalid);
            let bogus: *mut c_void = std::ptr::without_provenance_mut(0xdead_beef);
            assert_eq!(sys::cuStreamDestroy_v2(bogus.cast()), CUresult::CUDA_ERROR_INVALID_HANDLE);
            assert_eq!(sys::cuModuleUnload(bogus.cast()), CUresult::CUDA_ERROR_INVALID_HANDLE);
            assert_eq!(sys::cuCtxDestroy_v2(bogus.cast()), CUresult::CUDA_ERROR_INVALID_CONTEXT);
            let copied = sys::cuMemcpyDtoH_v2(null_mut(), allocate(4), 4);
            assert_eq!(copied, invalid);
        }
    });
}

#[test]
fn primary_contexts_are_counted() {
    isolated("primary_contexts_are_counted", || {
        // SAFETY: places for results outlive the calls.
        unsafe {
            ok(sys::cuInit(0));
            let active = || {
                let mut flags = 0;
                get(|active| sys::cuDevicePrimaryCtxGetState(0, &raw mut flags, active))
            };
            assert_eq!(active(), 0);
            let first: sys::CUcontext = get(|out| sys::cuDevicePrimaryCtxRetain(out, 0));
            let second: sys::CUcontext = get(|out| sys::cuDevicePrimaryCtxRetain(out, 0));
            assert_eq!((first, active()), (second, 1));
            ok(sys::cuCtxSetCurrent(first));
            allocate(4096);
            ok(sys::cuDevicePrimaryCtxRelease_v2(0));
            assert_eq!(active(), 1);
            ok(sys::cuDevicePrimaryCtxRelease_v2(0));
            assert_eq!(active(), 0);
            let gone = CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED;
            assert_eq!(sys::cuMemAlloc_v2(&mut 0, 1), gone);
            let again = sys::cuDevicePrimaryCtxRelease_v2(0);
            assert_eq!(again, CUresult::CUDA_ERROR_INVALID_CONTEXT);
        }
    });
}
