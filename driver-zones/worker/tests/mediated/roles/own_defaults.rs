//! Variants of functions whose default stream is the thread's own.

use std::ffi::c_void;
use std::sync::atomic::{AtomicU32, Ordering};

use cudarc::driver::sys::{self, CUresult};

use super::streams::count;
use super::{context, get, kernel, ok, read};

const DEFAULT: sys::CUstream = std::ptr::null_mut();
/// The thread's own stream, by its number.
const OWN: sys::CUstream = std::ptr::without_provenance_mut(2);

type Id = unsafe extern "C" fn(sys::CUstream, *mut u64) -> CUresult;
type OfStream = unsafe extern "C" fn(sys::CUstream) -> CUresult;
type Begin = unsafe extern "C" fn(sys::CUstream, u32) -> CUresult;
type End = unsafe extern "C" fn(sys::CUstream, *mut sys::CUgraph) -> CUresult;
type Set = unsafe extern "C" fn(u64, u32, usize, sys::CUstream) -> CUresult;
type SetNow = unsafe extern "C" fn(u64, u32, usize) -> CUresult;
type ToHost = unsafe extern "C" fn(*mut c_void, u64, usize, sys::CUstream) -> CUresult;
type ToDeviceNow = unsafe extern "C" fn(u64, *const c_void, usize) -> CUresult;
type HostFunction = unsafe extern "C" fn(
    sys::CUstream,
    Option<unsafe extern "C" fn(*mut c_void)>,
    *mut c_void,
) -> CUresult;
type Launch = unsafe extern "C" fn(
    sys::CUfunction,
    u32,
    u32,
    u32,
    u32,
    u32,
    u32,
    u32,
    sys::CUstream,
    *mut *mut c_void,
    *mut *mut c_void,
) -> CUresult;
type GraphLaunch = unsafe extern "C" fn(sys::CUgraphExec, sys::CUstream) -> CUresult;
type InstantiateWith = unsafe extern "C" fn(
    *mut sys::CUgraphExec,
    sys::CUgraph,
    *mut sys::CUDA_GRAPH_INSTANTIATE_PARAMS,
) -> CUresult;
type Allocate = unsafe extern "C" fn(*mut u64, usize, sys::CUstream) -> CUresult;

/// What is recorded on the stream that NULL means to the variants is recorded on the thread's own.
pub(super) fn own_defaults() {
    context();
    let function = kernel(c"add_one");
    let counter = AtomicU32::new(0);
    let data = (&raw const counter).cast_mut().cast::<c_void>();
    let mut back = [0u32; 16];
    // SAFETY: functions of the types that their names say, memory of 64 bytes.
    unsafe {
        let library = libloading::Library::new("libcuda.so.1").expect("the shim");
        macro_rules! variant {
            ($name:literal: $type:ty) => {
                *library.get::<$type>($name.as_bytes()).expect($name)
            };
        }
        let id = |stream| get(|place| sys::cuStreamGetId(stream, place));
        let of_null = get(|place| variant!("cuStreamGetId_ptsz": Id)(DEFAULT, place));
        assert_eq!(of_null, id(OWN));
        assert_ne!(of_null, id(DEFAULT), "the plain function means the other one");

        let allocate = variant!("cuMemAllocAsync_ptsz": Allocate);
        let memory = get(|place| allocate(place, 64, DEFAULT));
        ok(variant!("cuMemsetD32_v2_ptds": SetNow)(memory, 5, 16));
        assert_eq!(read(memory, 16), [5; 16]);
        let words = [6u32; 16];
        ok(variant!("cuMemcpyHtoD_v2_ptds": ToDeviceNow)(memory, words.as_ptr().cast(), 64));

        ok(variant!("cuStreamBeginCapture_v2_ptsz": Begin)(DEFAULT, 2));
        ok(variant!("cuMemsetD32Async_ptsz": Set)(memory, 1, 8, DEFAULT));
        let (mut at, mut n) = (memory, 16u32);
        let mut list: [*mut c_void; 2] = [(&raw mut at).cast(), (&raw mut n).cast()];
        let (list, none) = (list.as_mut_ptr(), std::ptr::null_mut());
        let launch = variant!("cuLaunchKernel_ptsz": Launch);
        ok(launch(function, 1, 1, 1, 16, 1, 1, 0, DEFAULT, list, none));
        let to_host = variant!("cuMemcpyDtoHAsync_v2_ptsz": ToHost);
        ok(to_host(back.as_mut_ptr().cast(), memory, 64, DEFAULT));
        ok(variant!("cuLaunchHostFunc_ptsz": HostFunction)(DEFAULT, Some(count), data));
        let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        ok(sys::cuStreamIsCapturing(OWN, &raw mut status));
        assert_eq!(status, sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE);
        let graph = get(|place| variant!("cuStreamEndCapture_ptsz": End)(DEFAULT, place));
        let mut nodes = 0;
        ok(sys::cuGraphGetNodes(graph, std::ptr::null_mut(), &raw mut nodes));
        assert_eq!(nodes, 4, "all were recorded");
        assert_eq!(read(memory, 16), [6; 16], "and nothing has run");

        let mut wanted: sys::CUDA_GRAPH_INSTANTIATE_PARAMS = std::mem::zeroed();
        wanted.flags = 2;
        let instantiate = variant!("cuGraphInstantiateWithParams_ptsz": InstantiateWith);
        let executable = get(|place| instantiate(place, graph, &raw mut wanted));
        ok(variant!("cuGraphLaunch_ptsz": GraphLaunch)(executable, DEFAULT));
        ok(variant!("cuStreamSynchronize_ptsz": OfStream)(DEFAULT));
        let expected: Vec<u32> = [[2; 8], [7; 8]].concat();
        assert_eq!(
            (std::ptr::read_volatile(&raw const back).to_vec(), read(memory, 16)),
            (expected.clone(), expected)
        );
        assert_eq!(counter.load(Ordering::SeqCst), 1);
        ok(variant!("cuStreamQuery_ptsz": OfStream)(DEFAULT));
        ok(sys::cuGraphExecDestroy(executable));
        ok(sys::cuGraphDestroy(graph));
        ok(sys::cuMemFree_v2(memory));
    }
}
