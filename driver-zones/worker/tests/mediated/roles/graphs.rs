//! Graphs are the shim's own: the simulated library has none to compare with.

use std::ffi::c_void;
use std::sync::atomic::{AtomicU32, Ordering};

use cudarc::driver::sys::{self, CUresult};

use super::streams::count;
use super::{add_one, allocate, context, get, kernel, ok, read, write};

const RELAXED: sys::CUstreamCaptureMode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;

pub(super) fn captured() {
    context();
    let function = kernel(c"add_one");
    let (memory, other) = (allocate(64), allocate(64));
    let counter = AtomicU32::new(0);
    let data = (&raw const counter).cast_mut().cast::<c_void>();
    let mut back = [0u32; 16];
    // SAFETY: a stream, memory of 64 bytes each, places for the answers.
    unsafe {
        let stream = get(|place| sys::cuStreamCreate(place, 1));
        let side = get(|place| sys::cuStreamCreate(place, 1));
        let event = get(|place| sys::cuEventCreate(place, 0));
        ok(sys::cuStreamBeginCapture_v2(stream, RELAXED));
        ok(add_one(function, stream, memory, 16));
        ok(sys::cuEventRecord(event, stream));
        ok(sys::cuStreamWaitEvent(side, event, 0));
        ok(sys::cuMemsetD32Async(other, 5, 16, side));
        let waited = sys::cuStreamSynchronize(stream);
        assert_eq!(waited, CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        ok(sys::cuEventRecord(event, side));
        ok(sys::cuStreamWaitEvent(stream, event, 0));
        ok(add_one(function, stream, other, 16));
        ok(sys::cuMemcpyDtoHAsync_v2(back.as_mut_ptr().cast(), other, 64, stream));
        ok(sys::cuLaunchHostFunc(stream, Some(count), data));
        let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        ok(sys::cuStreamIsCapturing(side, &raw mut status));
        assert_eq!(status, sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE);
        let graph = get(|place| sys::cuStreamEndCapture(stream, place));
        assert_eq!(read(memory, 16), [0; 16], "nothing has run");
        let mut nodes = 0;
        ok(sys::cuGraphGetNodes(graph, std::ptr::null_mut(), &raw mut nodes));
        assert_eq!(nodes, 5);
        let executable = get(|place| sys::cuGraphInstantiateWithFlags(place, graph, 0));
        ok(sys::cuGraphDestroy(graph));
        for _ in 0..3 {
            ok(sys::cuGraphLaunch(executable, stream));
        }
        ok(sys::cuStreamSynchronize(stream));
        assert_eq!((read(memory, 16), read(other, 16)), (vec![3; 16], vec![6; 16]));
        assert_eq!((back, counter.load(Ordering::SeqCst)), ([6; 16], 3));
        ok(sys::cuGraphExecDestroy(executable));
    }
}

pub(super) fn built() {
    context();
    let function = kernel(c"add_one");
    let memory = allocate(64);
    write(memory, &[1; 16]);
    let (mut at, mut n) = (memory, 16u32);
    let mut list = [(&raw mut at).cast::<c_void>(), (&raw mut n).cast()];
    // SAFETY: structures of numbers and addresses; lists of the lengths that are given.
    unsafe {
        let graph = get(|place| sys::cuGraphCreate(place, 0));
        let mut wanted: sys::CUDA_KERNEL_NODE_PARAMS = std::mem::zeroed();
        (wanted.func, wanted.kernelParams) = (function, list.as_mut_ptr());
        (wanted.gridDimX, wanted.gridDimY, wanted.gridDimZ) = (1, 1, 1);
        (wanted.blockDimX, wanted.blockDimY, wanted.blockDimZ) = (16, 1, 1);
        let none = std::ptr::null();
        let mut fill: sys::CUDA_MEMSET_NODE_PARAMS = std::mem::zeroed();
        (fill.dst, fill.value, fill.elementSize) = (memory, 10, 4);
        (fill.width, fill.height) = (8, 1);
        let current = get(|place| sys::cuCtxGetCurrent(place));
        let first =
            get(|place| sys::cuGraphAddMemsetNode(place, graph, none, 0, &raw const fill, current));
        let second = get(|place| {
            sys::cuGraphAddKernelNode_v2(place, graph, &raw const first, 1, &raw const wanted)
        });
        let last = get(|place| sys::cuGraphAddEmptyNode(place, graph, &raw const second, 1));
        let mut kind = sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_EMPTY;
        ok(sys::cuGraphNodeGetType(second, &raw mut kind));
        assert_eq!(kind, sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_KERNEL);
        let (mut roots, mut room) = ([std::ptr::null_mut(); 4], 4);
        ok(sys::cuGraphGetRootNodes(graph, roots.as_mut_ptr(), &raw mut room));
        assert_eq!((room, roots[0], roots[1]), (1, first, std::ptr::null_mut()));
        let executable = get(|place| sys::cuGraphInstantiateWithFlags(place, graph, 0));
        let stream = get(|place| sys::cuStreamCreate(place, 1));
        ok(sys::cuGraphLaunch(executable, stream));
        ok(sys::cuStreamSynchronize(stream));
        assert_eq!(read(memory, 16), [vec![11; 8], vec![2; 8]].concat());
        // Another value, in what runs already.
        fill.value = 20;
        ok(sys::cuGraphExecMemsetNodeSetParams(executable, first, &raw const fill, current));
        ok(sys::cuGraphLaunch(executable, stream));
        assert_eq!(read(memory, 9), [vec![21; 8], vec![3]].concat());
        let clone = get(|place| sys::cuGraphClone(place, graph));
        let mut info: sys::CUgraphExecUpdateResultInfo = std::mem::zeroed();
        ok(sys::cuGraphExecUpdate_v2(executable, clone, &raw mut info));
        ok(sys::cuGraphDestroyNode(last));
        let changed = sys::cuGraphExecUpdate_v2(executable, graph, &raw mut info);
        assert_eq!(changed, CUresult::CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE);
        ok(sys::cuGraphLaunch(executable, stream));
        assert_eq!(read(memory, 9), [vec![11; 8], vec![4]].concat());
        // What was freed since is an error, and nothing worse.
        ok(sys::cuMemFree_v2(memory));
        assert!(sys::cuGraphLaunch(executable, stream).result().is_err());
        ok(sys::cuGraphExecDestroy(executable));
        ok(sys::cuGraphDestroy(clone));
        ok(sys::cuGraphDestroy(graph));
        assert!(sys::cuGraphDestroy(graph).result().is_err(), "destroyed twice");
    }
}

/// With parameters, as `cuda.core` completes what it has built.
pub(super) fn instantiated() {
    use sys::CUgraphInstantiateResult as R;

    context();
    let function = kernel(c"add_one");
    let memory = allocate(64);
    // SAFETY: a stream, memory of 64 bytes, structures, and places for the answers.
    unsafe {
        let stream = get(|place| sys::cuStreamCreate(place, 1));
        ok(sys::cuStreamBeginCapture_v2(stream, RELAXED));
        ok(add_one(function, stream, memory, 16));
        let graph = get(|place| sys::cuStreamEndCapture(stream, place));
        let mut wanted: sys::CUDA_GRAPH_INSTANTIATE_PARAMS = std::mem::zeroed();
        // To upload, by priorities of nodes; a bad node is to be overwritten.
        (wanted.flags, wanted.hUploadStream) = (0b1010, stream);
        (wanted.hErrNode_out, wanted.result_out) = (graph.cast(), R::CUDA_GRAPH_INSTANTIATE_ERROR);
        let executable =
            get(|place| sys::cuGraphInstantiateWithParams(place, graph, &raw mut wanted));
        assert_eq!(wanted.result_out, R::CUDA_GRAPH_INSTANTIATE_SUCCESS);
        assert_eq!((wanted.hErrNode_out, wanted.flags), (std::ptr::null_mut(), 0b1010));
        assert_eq!(get(|place| sys::cuGraphExecGetFlags(executable, place)), 0b1000);
        ok(sys::cuGraphLaunch(executable, stream));
        ok(sys::cuStreamSynchronize(stream));
        assert_eq!(read(memory, 16), [1; 16]);

        let mut place = std::ptr::null_mut();
        let mut refused = |graph, wanted: &mut sys::CUDA_GRAPH_INSTANTIATE_PARAMS| {
            sys::cuGraphInstantiateWithParams(&raw mut place, graph, &raw mut *wanted)
        };
        // For launches from the device.
        wanted.flags = 0b100;
        assert_eq!(refused(graph, &mut wanted), CUresult::CUDA_ERROR_INVALID_VALUE);
        assert_eq!(wanted.result_out, R::CUDA_GRAPH_INSTANTIATE_ERROR);
        // To upload where no stream is; without that, nobody looks at it.
        (wanted.flags, wanted.hUploadStream) = (0b10, graph.cast());
        assert_eq!(refused(graph, &mut wanted), CUresult::CUDA_ERROR_INVALID_HANDLE);
        wanted.flags = 0;
        ok(refused(graph, &mut wanted));
        // A circle.
        let circle = get(|place| sys::cuGraphCreate(place, 0));
        let empty = |after: &[sys::CUgraphNode]| {
            get(|place| sys::cuGraphAddEmptyNode(place, circle, after.as_ptr(), after.len()))
        };
        let first = empty(&[]);
        let second = empty(&[first]);
        let (from, to) = (&raw const second, &raw const first);
        ok(sys::cuGraphAddDependencies_v2(circle, from, to, std::ptr::null(), 1));
        assert_eq!(refused(circle, &mut wanted), CUresult::CUDA_ERROR_INVALID_VALUE);
        assert_eq!(wanted.result_out, R::CUDA_GRAPH_INSTANTIATE_INVALID_STRUCTURE);
        let nothing =
            sys::cuGraphInstantiateWithParams(&raw mut place, graph, std::ptr::null_mut());
        assert_eq!(nothing, CUresult::CUDA_ERROR_INVALID_VALUE);
    }
}

/// Nodes that copy, that call the host, and that are graphs of their own, added by hand.
pub(super) fn assembled() {
    use sys::CUgraphNodeType as Kind;

    context();
    let (memory, other) = (allocate(64), allocate(64));
    let source: [u32; 16] = std::array::from_fn(|index| u32::try_from(index).expect("small"));
    let mut back = [0u32; 16];
    let counter = AtomicU32::new(0);
    let none = std::ptr::null();
    let at = |list: *const u32| list.expose_provenance() as u64;
    // Ends of copies of 64 bytes, by their words; 1 is the host, 2 the device.
    let host = |list| [0, 0, 0, 0, 1, at(list), 0, 0, 0, 64, 1];
    let device = |pointer| [0, 0, 0, 0, 2, 0, pointer, 0, 0, 64, 1];
    let copy = |from: [u64; 11], to: [u64; 11]| [&from[..], &to, &[64, 1, 1]].concat();
    // SAFETY: structures by their words, lists of the lengths that are given, places for answers.
    unsafe {
        let current = get(|place| sys::cuCtxGetCurrent(place));
        let add_copy = |graph, after: &[sys::CUgraphNode], words: &[u64]| {
            let (list, count) = (after.as_ptr(), after.len());
            let wanted = words.as_ptr().cast();
            get(|place| sys::cuGraphAddMemcpyNode(place, graph, list, count, wanted, current))
        };
        let inner = get(|place| sys::cuGraphCreate(place, 0));
        let there = add_copy(inner, &[], &copy(host(source.as_ptr()), device(memory)));
        add_copy(inner, &[there], &copy(device(memory), device(other)));
        let graph = get(|place| sys::cuGraphCreate(place, 0));
        let child = get(|place| sys::cuGraphAddChildGraphNode(place, graph, none, 0, inner));
        // The child is a copy of what it was made of.
        ok(sys::cuGraphDestroy(inner));
        let home = add_copy(graph, &[child], &copy(device(other), host(back.as_mut_ptr())));
        let mut called: sys::CUDA_HOST_NODE_PARAMS = std::mem::zeroed();
        called.fn_ = Some(count);
        called.userData = (&raw const counter).cast_mut().cast();
        let last = get(|place| {
            sys::cuGraphAddHostNode(place, graph, &raw const home, 1, &raw const called)
        });
        for (node, expected) in [
            (child, Kind::CU_GRAPH_NODE_TYPE_GRAPH),
            (home, Kind::CU_GRAPH_NODE_TYPE_MEMCPY),
            (last, Kind::CU_GRAPH_NODE_TYPE_HOST),
        ] {
            let mut kind = Kind::CU_GRAPH_NODE_TYPE_EMPTY;
            ok(sys::cuGraphNodeGetType(node, &raw mut kind));
            assert_eq!(kind, expected);
        }
        let executable = get(|place| sys::cuGraphInstantiateWithFlags(place, graph, 0));
        let stream = get(|place| sys::cuStreamCreate(place, 1));
        ok(sys::cuGraphLaunch(executable, stream));
        ok(sys::cuGraphLaunch(executable, stream));
        ok(sys::cuStreamSynchronize(stream));
        assert_eq!(std::ptr::read_volatile(&raw const back), source);
        assert_eq!((read(other, 16), counter.load(Ordering::SeqCst)), (source.to_vec(), 2));
        // Another function and another target, in what runs already.
        let second = AtomicU32::new(0);
        called.userData = (&raw const second).cast_mut().cast();
        ok(sys::cuGraphExecHostNodeSetParams(executable, last, &raw const called));
        let words = copy(device(other), device(memory));
        ok(sys::cuMemsetD32_v2(memory, 9, 16));
        let wanted = words.as_ptr().cast();
        ok(sys::cuGraphExecMemcpyNodeSetParams(executable, home, wanted, current));
        back.fill(0);
        ok(sys::cuGraphLaunch(executable, stream));
        ok(sys::cuStreamSynchronize(stream));
        assert_eq!((counter.load(Ordering::SeqCst), second.load(Ordering::SeqCst)), (2, 1));
        assert_eq!(
            (std::ptr::read_volatile(&raw const back), read(memory, 16)),
            ([0; 16], source.to_vec())
        );
        // A node that calls nothing, one of no graph, and a child that is none.
        let mut node = std::ptr::null_mut();
        called.fn_ = None;
        for refused in [
            sys::cuGraphAddHostNode(&raw mut node, graph, none, 0, &raw const called),
            sys::cuGraphAddMemcpyNode(&raw mut node, inner, none, 0, wanted, current),
            sys::cuGraphAddMemcpyNode(&raw mut node, graph, none, 0, std::ptr::null(), current),
            sys::cuGraphAddChildGraphNode(&raw mut node, graph, none, 0, inner),
        ] {
            assert_eq!(refused, CUresult::CUDA_ERROR_INVALID_VALUE);
        }
    }
}
