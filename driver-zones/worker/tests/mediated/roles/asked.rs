//! What a program asks of the driver, its devices and its memory.

use std::ffi::{CStr, c_char, c_void};

use cudarc::driver::sys::{self, CUdevice_attribute as D, CUpointer_attribute as P, CUresult};

use super::{add_one, allocate, context, get, kernel, ok, read};

const REFUSED: CUresult = CUresult::CUDA_ERROR_INVALID_VALUE;

/// The five attributes that are asked for of each address, in their order here.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    kind: u32,
    device: i32,
    start: u64,
    bytes: u64,
    host: u64,
}

fn seen(pointer: u64) -> Seen {
    let mut seen = Seen { kind: 77, device: 77, start: 77, bytes: 77, host: 77 };
    let mut wanted = [
        P::CU_POINTER_ATTRIBUTE_MEMORY_TYPE,
        P::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
        P::CU_POINTER_ATTRIBUTE_RANGE_START_ADDR,
        P::CU_POINTER_ATTRIBUTE_RANGE_SIZE,
        P::CU_POINTER_ATTRIBUTE_HOST_POINTER,
    ];
    let mut places: [*mut c_void; 5] = [
        (&raw mut seen.kind).cast(),
        (&raw mut seen.device).cast(),
        (&raw mut seen.start).cast(),
        (&raw mut seen.bytes).cast(),
        (&raw mut seen.host).cast(),
    ];
    // SAFETY: lists of five, with places for what is asked for.
    ok(unsafe {
        sys::cuPointerGetAttributes(5, wanted.as_mut_ptr(), places.as_mut_ptr(), pointer)
    });
    seen
}

pub(super) fn pointers() {
    context();
    let memory = allocate(256);
    // SAFETY: places for the answers.
    unsafe {
        let host = get(|place| sys::cuMemHostAlloc(place, 4096, 0));
        let at = host.expose_provenance() as u64;
        let of_device = Seen { kind: 2, device: 0, start: memory, bytes: 256, host: 0 };
        assert_eq!(seen(memory + 100), of_device);
        let of_host = Seen { kind: 1, device: 0, start: at, bytes: 4096, host: at + 100 };
        assert_eq!(seen(at + 100), of_host);
        // Addresses that the driver knows nothing of are no error, and of no device.
        let own = 0u64;
        let unknown = Seen { device: -2, ..Seen::default() };
        assert_eq!(seen((&raw const own).expose_provenance() as u64), unknown);
        ok(sys::cuMemFree_v2(memory));
        assert_eq!(seen(memory + 100), unknown, "freed");
        ok(sys::cuMemFreeHost(host));
        let (mut wanted, mut place) = (P::CU_POINTER_ATTRIBUTE_CONTEXT, std::ptr::null_mut());
        let (wanted, place) = (&raw mut wanted, &raw mut place);
        assert_eq!(sys::cuPointerGetAttributes(1, wanted, place, at), REFUSED, "no place");
    }
}

pub(super) fn reset() {
    let first = context();
    let memory = allocate(64);
    // SAFETY: places for the answers.
    unsafe {
        let state = || {
            let (mut flags, mut active) = (9, 9);
            ok(sys::cuDevicePrimaryCtxGetState(0, &raw mut flags, &raw mut active));
            active
        };
        // Held twice: a reset asks nobody.
        assert_eq!(get(|place| sys::cuDevicePrimaryCtxRetain(place, 0)), first);
        assert_eq!(state(), 1);
        ok(sys::cuDevicePrimaryCtxReset_v2(0));
        assert_eq!(state(), 0);
        assert!(sys::cuCtxSynchronize().result().is_err(), "its context is gone");
        let released = sys::cuDevicePrimaryCtxRelease_v2(0);
        assert_eq!(released, CUresult::CUDA_ERROR_INVALID_CONTEXT, "nobody holds it");
        // Once more, where there is nothing to reset.
        ok(sys::cuDevicePrimaryCtxReset_v2(0));
        context();
        assert_eq!(sys::cuMemFree_v2(memory), REFUSED, "its memory is gone");
        let again = allocate(64);
        ok(add_one(kernel(c"add_one"), std::ptr::null_mut(), again, 16));
        assert_eq!(read(again, 16), [1; 16]);
        let elsewhere = sys::cuDevicePrimaryCtxReset_v2(7);
        assert_eq!(elsewhere, CUresult::CUDA_ERROR_INVALID_DEVICE);
    }
}

type ProcAddress = unsafe extern "C" fn(*const c_char, *mut *mut c_void, i32, u64) -> CUresult;

pub(super) fn asked() {
    context();
    // SAFETY: texts with their zeros, places for the answers.
    unsafe {
        let mut address = [0; 32];
        ok(sys::cuDeviceGetPCIBusId(address.as_mut_ptr(), 32, 0));
        assert_eq!(CStr::from_ptr(address.as_ptr()), c"0000:01:00.0");
        assert_eq!(get(|place| sys::cuDeviceGetByPCIBusId(place, address.as_ptr())), 0);
        let mut device = 7;
        let find = |place, text: &CStr| sys::cuDeviceGetByPCIBusId(place, text.as_ptr());
        let other = find(&raw mut device, c"0000:77:00.0");
        assert_eq!(other, CUresult::CUDA_ERROR_INVALID_DEVICE);
        assert_eq!(find(&raw mut device, c"nonsense"), REFUSED);
        assert_eq!((find(std::ptr::null_mut(), c"0000:01:00.0"), device), (REFUSED, 7));

        let text = |error, of: unsafe fn(CUresult, *mut *const c_char) -> CUresult| {
            CStr::from_ptr(get(|place| of(error, place))).to_str().expect("a text").to_owned()
        };
        let out = CUresult::CUDA_ERROR_OUT_OF_MEMORY;
        assert_eq!(text(out, sys::cuGetErrorName), "CUDA_ERROR_OUT_OF_MEMORY");
        assert_eq!(text(out, sys::cuGetErrorString), "out of memory");
        assert_eq!(text(CUresult::CUDA_SUCCESS, sys::cuGetErrorName), "CUDA_SUCCESS");
        assert_eq!(text(CUresult::CUDA_SUCCESS, sys::cuGetErrorString), "no error");

        let event = get(|place| sys::cuEventCreate(place, 0));
        ok(sys::cuEventRecordWithFlags(event, std::ptr::null_mut(), 0));
        ok(sys::cuEventSynchronize(event));
        let library = libloading::Library::new("libcuda.so.1").expect("the library");
        unknown_errors(&library);
        looked_up(*library.get::<ProcAddress>(b"cuGetProcAddress").expect("there"));
    }
}

/// Numbers that are no error have no name.
fn unknown_errors(library: &libloading::Library) {
    type Text = unsafe extern "C" fn(u32, *mut *const c_char) -> CUresult;
    for name in [&b"cuGetErrorName"[..], b"cuGetErrorString"] {
        let mut place = c"before".as_ptr();
        // SAFETY: functions of that kind, a place for the answer.
        unsafe {
            let text = library.get::<Text>(name).expect("there");
            assert_eq!(text(12_345, &raw mut place), REFUSED);
            assert!(place.is_null());
            assert_eq!(text(0, std::ptr::null_mut()), REFUSED);
        }
    }
}

/// The first version of the look-up, which has no place for a status.
fn looked_up(find: ProcAddress) {
    let mut found = std::ptr::null_mut();
    // SAFETY: texts with their zeros, a place for the answer, and functions of the types that
    // their names say.
    unsafe {
        ok(find(c"cuMemAlloc".as_ptr(), &raw mut found, 11_030, 0));
        type Allocate = unsafe extern "C" fn(*mut u64, usize) -> CUresult;
        let allocate = std::mem::transmute::<*mut c_void, Allocate>(found);
        let memory = get(|place| allocate(place, 64));
        ok(find(c"cuMemFree".as_ptr(), &raw mut found, 11_030, 0));
        type Free = unsafe extern "C" fn(u64) -> CUresult;
        ok(std::mem::transmute::<*mut c_void, Free>(found)(memory));
        let missing = find(c"cuNoSuchFunction".as_ptr(), &raw mut found, 11_030, 0);
        assert_eq!(missing, CUresult::CUDA_ERROR_NOT_FOUND);
        assert!(found.is_null());
        assert_eq!(find(c"cuInit".as_ptr(), std::ptr::null_mut(), 11_030, 0), REFUSED);
    }
}

/// The old structure of properties, which the simulated library does not have.
pub(super) fn properties() {
    context();
    // SAFETY: a place for the answer.
    let ask = |wanted, place| unsafe { sys::cuDeviceGetAttribute(place, wanted, 0) };
    let attribute = |wanted| get(|place| ask(wanted, place));
    // SAFETY: places for the answers.
    unsafe {
        let seen: sys::CUdevprop = get(|place| sys::cuDeviceGetProperties(place, 0));
        let most = |attributes: [D; 3]| attributes.map(attribute);
        assert_eq!(seen.maxThreadsPerBlock, 1024);
        let block = [
            D::CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X,
            D::CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y,
            D::CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z,
        ];
        assert_eq!(seen.maxThreadsDim, most(block));
        let grid = [
            D::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X,
            D::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y,
            D::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z,
        ];
        assert_eq!(seen.maxGridSize, most(grid));
        assert_eq!(seen.SIMDWidth, 32);
        let others = [
            (seen.sharedMemPerBlock, D::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK),
            (seen.totalConstantMemory, D::CU_DEVICE_ATTRIBUTE_TOTAL_CONSTANT_MEMORY),
            (seen.memPitch, D::CU_DEVICE_ATTRIBUTE_MAX_PITCH),
            (seen.regsPerBlock, D::CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK),
            (seen.clockRate, D::CU_DEVICE_ATTRIBUTE_CLOCK_RATE),
            (seen.textureAlign, D::CU_DEVICE_ATTRIBUTE_TEXTURE_ALIGNMENT),
        ];
        for (value, wanted) in others {
            assert_eq!(value, attribute(wanted), "{wanted:?}");
        }
        let mut nowhere = std::mem::zeroed();
        let refused = sys::cuDeviceGetProperties(&raw mut nowhere, 7);
        assert_eq!(refused, CUresult::CUDA_ERROR_INVALID_DEVICE);
    }
}
