//! What nodes are told, changed and left out, and captures that go on where the program says.

use std::sync::atomic::{AtomicU32, Ordering};

use cudarc::driver::sys::{self, CUresult};

use super::streams::count;
use super::{add_one, allocate, context, get, kernel, ok, read, write};

const REFUSED: CUresult = CUresult::CUDA_ERROR_INVALID_VALUE;

/// Nodes tell what they were given, are found in a clone, and can be left out of a launch.
pub(super) fn told() {
    context();
    let (memory, other) = (allocate(64), allocate(64));
    let counter = AtomicU32::new(0);
    let none = std::ptr::null();
    // SAFETY: structures of numbers and addresses, places for the answers.
    unsafe {
        let graph = get(|place| sys::cuGraphCreate(place, 0));
        let current = get(|place| sys::cuCtxGetCurrent(place));
        let mut fill: sys::CUDA_MEMSET_NODE_PARAMS = std::mem::zeroed();
        (fill.dst, fill.value, fill.elementSize) = (memory, 10, 4);
        (fill.width, fill.height) = (16, 1);
        let first =
            get(|place| sys::cuGraphAddMemsetNode(place, graph, none, 0, &raw const fill, current));
        // By its words: device to device.
        let mut copy = [0u64; 25];
        (copy[4], copy[6], copy[15], copy[17]) = (2, memory, 2, other);
        (copy[22], copy[23], copy[24]) = (64, 1, 1);
        let copy = copy.as_ptr().cast::<sys::CUDA_MEMCPY3D>();
        let second = get(|place| {
            sys::cuGraphAddMemcpyNode(place, graph, &raw const first, 1, copy, current)
        });
        let mut called: sys::CUDA_HOST_NODE_PARAMS = std::mem::zeroed();
        called.fn_ = Some(count);
        called.userData = (&raw const counter).cast_mut().cast();
        let last = get(|place| {
            sys::cuGraphAddHostNode(place, graph, &raw const second, 1, &raw const called)
        });

        let filled = get(|place| sys::cuGraphMemsetNodeGetParams(first, place));
        assert_eq!((filled.dst, filled.value, filled.elementSize), (memory, 10, 4));
        assert_eq!((filled.width, filled.height), (16, 1));
        let copied = get(|place| sys::cuGraphMemcpyNodeGetParams(second, place));
        assert_eq!((copied.srcDevice, copied.dstDevice), (memory, other));
        assert_eq!((copied.WidthInBytes, copied.Height, copied.Depth), (64, 1, 1));
        assert_eq!(copied.dstMemoryType, sys::CUmemorytype::CU_MEMORYTYPE_DEVICE);
        let calls = get(|place| sys::cuGraphHostNodeGetParams(last, place));
        assert!(calls.fn_.is_some() && calls.userData == called.userData);
        let mut filled = filled;
        assert_eq!(sys::cuGraphMemsetNodeGetParams(second, &raw mut filled), REFUSED);
        // What was told can be given back.
        ok(sys::cuGraphMemcpyNodeSetParams(second, &raw const copied));

        let executable = get(|place| sys::cuGraphInstantiateWithFlags(place, graph, 0));
        let stream = get(|place| sys::cuStreamCreate(place, 1));
        ok(sys::cuGraphNodeSetEnabled(executable, first, 0));
        assert_eq!(get(|place| sys::cuGraphNodeGetEnabled(executable, first, place)), 0);
        assert_eq!(get(|place| sys::cuGraphNodeGetEnabled(executable, second, place)), 1);
        assert_eq!(sys::cuGraphNodeSetEnabled(executable, last, 0), REFUSED, "a host node");
        write(memory, &[4; 16]);
        ok(sys::cuGraphLaunch(executable, stream));
        ok(sys::cuStreamSynchronize(stream));
        assert_eq!((read(memory, 1), read(other, 1)), (vec![4], vec![4]));
        ok(sys::cuGraphNodeSetEnabled(executable, first, 1));
        ok(sys::cuGraphLaunch(executable, stream));
        ok(sys::cuStreamSynchronize(stream));
        assert_eq!((read(memory, 1), read(other, 1)), (vec![10], vec![10]));
        assert_eq!(counter.load(Ordering::SeqCst), 2);

        // A kernel, with its arguments.
        let function = kernel(c"add_one");
        let side = get(|place| sys::cuStreamCreate(place, 1));
        ok(sys::cuStreamBeginCapture_v2(
            side,
            sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED,
        ));
        ok(add_one(function, side, memory, 16));
        let adding = get(|place| sys::cuStreamEndCapture(side, place));
        let (mut node, mut found) = (std::ptr::null_mut(), 1);
        ok(sys::cuGraphGetNodes(adding, &raw mut node, &raw mut found));
        let added = get(|place| sys::cuGraphKernelNodeGetParams_v2(node, place));
        assert_eq!((added.func, added.gridDimX, added.blockDimX), (function, 1, 16));
        let argument = added.kernelParams.read().cast::<u64>();
        assert_eq!(
            (argument.read(), added.kernelParams.add(1).read().cast::<u32>().read()),
            (memory, 16)
        );
        // Told of other memory by what was told, it adds there.
        let mut other_memory = other;
        let mut list = [(&raw mut other_memory).cast(), added.kernelParams.add(1).read()];
        let mut changed = added;
        changed.kernelParams = list.as_mut_ptr();
        ok(sys::cuGraphKernelNodeSetParams_v2(node, &raw const changed));
        let adds = get(|place| sys::cuGraphInstantiateWithFlags(place, adding, 0));
        ok(sys::cuGraphLaunch(adds, stream));
        ok(sys::cuStreamSynchronize(stream));
        assert_eq!((read(memory, 1), read(other, 16)), (vec![10], vec![11; 16]));

        let clone = get(|place| sys::cuGraphClone(place, graph));
        let found = get(|place| sys::cuGraphNodeFindInClone(place, second, clone));
        assert_ne!(found, second);
        let copied = get(|place| sys::cuGraphMemcpyNodeGetParams(found, place));
        assert_eq!((copied.srcDevice, copied.dstDevice), (memory, other));
        let mut place = std::ptr::null_mut();
        assert_eq!(sys::cuGraphNodeFindInClone(&raw mut place, second, graph), REFUSED);
    }
}

/// Nodes of events and of graphs are changed, before and after a graph is instantiated.
pub(super) fn replaced() {
    context();
    let memory = allocate(64);
    let none = std::ptr::null();
    // SAFETY: structures of numbers and addresses, places for the answers.
    unsafe {
        let current = get(|place| sys::cuCtxGetCurrent(place));
        let [one, two] = [(); 2].map(|()| get(|place| sys::cuEventCreate(place, 0)));
        let graph = get(|place| sys::cuGraphCreate(place, 0));
        let record = get(|place| sys::cuGraphAddEventRecordNode(place, graph, none, 0, one));
        let wait =
            get(|place| sys::cuGraphAddEventWaitNode(place, graph, &raw const record, 1, one));
        assert_eq!(get(|place| sys::cuGraphEventRecordNodeGetEvent(record, place)), one);
        assert_eq!(get(|place| sys::cuGraphEventWaitNodeGetEvent(wait, place)), one);
        ok(sys::cuGraphEventRecordNodeSetEvent(record, two));
        ok(sys::cuGraphEventWaitNodeSetEvent(wait, two));
        assert_eq!(get(|place| sys::cuGraphEventRecordNodeGetEvent(record, place)), two);
        assert_eq!(sys::cuGraphEventWaitNodeSetEvent(record, one), REFUSED, "it records");
        let fill = |value| {
            let child = get(|place| sys::cuGraphCreate(place, 0));
            let mut fill: sys::CUDA_MEMSET_NODE_PARAMS = std::mem::zeroed();
            (fill.dst, fill.value, fill.elementSize) = (memory, value, 4);
            (fill.width, fill.height) = (16, 1);
            let fill = &raw const fill;
            get(|place| sys::cuGraphAddMemsetNode(place, child, none, 0, fill, current));
            child
        };
        let (first, second, empty) = (fill(3), fill(8), get(|place| sys::cuGraphCreate(place, 0)));
        let child =
            get(|place| sys::cuGraphAddChildGraphNode(place, graph, &raw const wait, 1, first));
        let executable = get(|place| sys::cuGraphInstantiateWithFlags(place, graph, 0));
        let stream = get(|place| sys::cuStreamCreate(place, 1));
        let launch = || {
            ok(sys::cuGraphLaunch(executable, stream));
            ok(sys::cuStreamSynchronize(stream));
            read(memory, 1)
        };
        assert_eq!(launch(), [3]);
        // Recorded since, and so it has a time; the other one has none.
        let mut time = 0.0;
        ok(sys::cuEventElapsedTime_v2(&raw mut time, two, two));
        assert!(sys::cuEventElapsedTime_v2(&raw mut time, one, one).result().is_err());
        ok(sys::cuGraphExecEventRecordNodeSetEvent(executable, record, one));
        ok(sys::cuGraphExecEventWaitNodeSetEvent(executable, wait, one));
        ok(sys::cuGraphExecChildGraphNodeSetParams(executable, child, second));
        assert_eq!(launch(), [8]);
        ok(sys::cuEventElapsedTime_v2(&raw mut time, one, one));
        let refused = sys::cuGraphExecChildGraphNodeSetParams(executable, child, empty);
        assert_eq!(refused, REFUSED, "of another kind");
    }
}

/// Captures into a graph that is there, and nodes that a stream is told to go on from.
pub(super) fn led() {
    const RELAXED: sys::CUstreamCaptureMode =
        sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
    context();
    let function = kernel(c"add_one");
    let memory = allocate(64);
    let none = std::ptr::null();
    // SAFETY: a stream, memory of 64 bytes, lists of the lengths that are given.
    unsafe {
        let stream = get(|place| sys::cuStreamCreate(place, 1));
        let graph = get(|place| sys::cuGraphCreate(place, 0));
        let root = get(|place| sys::cuGraphAddEmptyNode(place, graph, none, 0));
        let (list, plain) = (&raw const root, std::ptr::null());
        ok(sys::cuStreamBeginCaptureToGraph(stream, graph, list, plain, 1, RELAXED));
        ok(add_one(function, stream, memory, 16));
        // The next one beside the first, and one more behind both.
        ok(sys::cuStreamUpdateCaptureDependencies_v2(stream, list.cast_mut(), plain, 1, 1));
        ok(sys::cuMemsetD32Async(allocate(64), 1, 16, stream));
        let mut nodes = [std::ptr::null_mut(); 4];
        let mut found = 4;
        ok(sys::cuGraphGetNodes(graph, nodes.as_mut_ptr(), &raw mut found));
        let first = &raw mut nodes[1];
        ok(sys::cuStreamUpdateCaptureDependencies_v2(stream, first, plain, 1, 0));
        ok(add_one(function, stream, memory, 16));
        assert_eq!(get(|place| sys::cuStreamEndCapture(stream, place)), graph);
        found = 4;
        ok(sys::cuGraphGetNodes(graph, nodes.as_mut_ptr(), &raw mut found));
        assert_eq!((found, nodes[0]), (4, root));
        let before = |node: sys::CUgraphNode| {
            let (mut before, mut found) = ([std::ptr::null_mut(); 4], 4);
            let (places, plain) = (before.as_mut_ptr(), std::ptr::null_mut());
            ok(sys::cuGraphNodeGetDependencies_v2(node, places, plain, &raw mut found));
            before[..found].to_vec()
        };
        assert_eq!((before(nodes[1]), before(nodes[2])), (vec![root], vec![root]));
        assert_eq!(before(nodes[3]), [nodes[1], nodes[2]]);
        let executable = get(|place| sys::cuGraphInstantiateWithFlags(place, graph, 0));
        ok(sys::cuGraphLaunch(executable, stream));
        ok(sys::cuStreamSynchronize(stream));
        assert_eq!(read(memory, 16), [2; 16]);
        // Nodes of another graph, and a stream that does not capture.
        let other = get(|place| sys::cuGraphCreate(place, 0));
        let refused = sys::cuStreamBeginCaptureToGraph(stream, other, list, plain, 1, RELAXED);
        assert_eq!(refused, REFUSED);
        let late = sys::cuStreamUpdateCaptureDependencies_v2(stream, first, plain, 1, 0);
        assert_eq!(late, CUresult::CUDA_ERROR_ILLEGAL_STATE);
    }
}
