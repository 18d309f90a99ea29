//! Streams that record instead of working.

use std::collections::BTreeSet;
use std::ffi::c_void;

use gpuzone_cuda_abi::{CUstream, CuResult};

use super::graph::{graph_handle, graph_of, node_handle, nodes_in};
use crate::ffi::{Answer, api, put, put_if_wanted};
use crate::state::{State, with};

/// `CU_STREAM_CAPTURE_STATUS_ACTIVE`.
const ACTIVE: u32 = 1;

/// A stream begins to record, into the graph and behind the nodes that `place` says.
fn begin(
    stream: CUstream,
    mode: u32,
    place: impl FnOnce(&mut State) -> Answer<(u32, BTreeSet<u32>)>,
) -> Answer {
    if mode > 2 {
        return Err(CuResult::INVALID_VALUE);
    }
    with(|state| {
        let (id, context) = state.stream(stream)?;
        if !state.streams.contains_key(&id) {
            // The default stream cannot.
            return Err(CuResult::STREAM_CAPTURE_UNSUPPORTED);
        }
        let (graph, tips) = place(state)?;
        state.graphs.begin(id, context, graph, tips)
    })
}

/// Into a graph of its own.
fn anew(state: &mut State) -> Answer<(u32, BTreeSet<u32>)> {
    Ok((state.new_number(), BTreeSet::new()))
}

/// A list of nodes, of whose edges nobody says that they are other than plain ones.
struct Nodes {
    list: *const *mut c_void,
    edges: *const c_void,
    count: usize,
}

impl Nodes {
    fn read(&self, state: &State) -> Answer<BTreeSet<u32>> {
        // An edge that is not plain is between kernels that start each other, which no graph has.
        let plain = self.edges.is_null() || self.count == 0;
        if plain { nodes_in(state, self.list, self.count) } else { Err(CuResult::NOT_SUPPORTED) }
    }
}

/// `CU_STREAM_SET_CAPTURE_DEPENDENCIES`; 0 is to add them.
const SET_DEPENDENCIES: u32 = 1;

fn update(stream: CUstream, nodes: &Nodes, flags: u32) -> Answer {
    if flags > SET_DEPENDENCIES {
        return Err(CuResult::INVALID_VALUE);
    }
    with(|state| {
        let (stream, _) = state.stream(stream)?;
        let tips = nodes.read(state)?;
        state.graphs.set_tips(stream, tips, flags != SET_DEPENDENCIES)
    })
}

/// Where the program wants to know of a capture.
struct Places {
    status: *mut u32,
    id: *mut u64,
    graph: *mut *mut c_void,
    dependencies: *mut *const *mut c_void,
    count: *mut usize,
}

fn info(stream: CUstream, places: &Places) -> Answer {
    with(|state| {
        let (stream, _) = state.stream(stream)?;
        let Some((id, graph, tips)) = state.graphs.capture(stream) else {
            return put(places.status, 0);
        };
        put(places.status, ACTIVE)?;
        put_if_wanted(places.id, id);
        put_if_wanted(places.graph, graph_handle(graph));
        // Good until the stream records more, as with the driver.
        state.told_tips = tips.into_iter().map(node_handle).map(|node| node.addr()).collect();
        put_if_wanted(places.dependencies, state.told_tips.as_ptr().cast());
        put_if_wanted(places.count, state.told_tips.len());
        Ok(())
    })
}

api! {
    fn cuStreamBeginCapture | cuStreamBeginCapture_ptsz(stream: CUstream) {
        begin(stream, 0, anew)
    }

    fn cuStreamBeginCapture_v2 | cuStreamBeginCapture_v2_ptsz(stream: CUstream, mode: u32) {
        begin(stream, mode, anew)
    }

    fn cuStreamBeginCaptureToGraph | cuStreamBeginCaptureToGraph_ptsz(
        stream: CUstream, graph: *mut c_void, list: *const *mut c_void, edges: *const c_void,
        count: usize, mode: u32,
    ) {
        let after = Nodes { list, edges, count };
        begin(stream, mode, |state| Ok((graph_of(state, graph)?, after.read(state)?)))
    }

    fn cuStreamUpdateCaptureDependencies | cuStreamUpdateCaptureDependencies_ptsz(
        stream: CUstream, list: *const *mut c_void, count: usize, flags: u32,
    ) {
        update(stream, &Nodes { list, edges: std::ptr::null(), count }, flags)
    }

    fn cuStreamUpdateCaptureDependencies_v2 | cuStreamUpdateCaptureDependencies_v2_ptsz(
        stream: CUstream, list: *const *mut c_void, edges: *const c_void, count: usize, flags: u32,
    ) {
        update(stream, &Nodes { list, edges, count }, flags)
    }

    fn cuStreamGetCaptureInfo | cuStreamGetCaptureInfo_ptsz(
        stream: CUstream, status: *mut u32, id: *mut u64,
    ) {
        let (graph, dependencies) = (std::ptr::null_mut(), std::ptr::null_mut());
        info(stream, &Places { status, id, graph, dependencies, count: std::ptr::null_mut() })
    }

    fn cuStreamEndCapture | cuStreamEndCapture_ptsz(stream: CUstream, graph: *mut *mut c_void) {
        with(|state| {
            let (stream, _) = state.stream(stream)?;
            let ended = state.graphs.end(stream);
            put_if_wanted(graph, std::ptr::null_mut());
            put_if_wanted(graph, graph_handle(ended?));
            Ok(())
        })
    }

    fn cuStreamIsCapturing | cuStreamIsCapturing_ptsz(stream: CUstream, status: *mut u32) {
        with(|state| {
            let (stream, _) = state.stream(stream)?;
            put(status, u32::from(state.graphs.is_capturing(stream)))
        })
    }

    fn cuStreamGetCaptureInfo_v2 | cuStreamGetCaptureInfo_v2_ptsz(
        stream: CUstream, status: *mut u32, id: *mut u64, graph: *mut *mut c_void,
        dependencies: *mut *const *mut c_void, count: *mut usize,
    ) {
        info(stream, &Places { status, id, graph, dependencies, count })
    }

    fn cuStreamGetCaptureInfo_v3 | cuStreamGetCaptureInfo_v3_ptsz(
        stream: CUstream, status: *mut u32, id: *mut u64, graph: *mut *mut c_void,
        dependencies: *mut *const *mut c_void, edges: *mut *const c_void, count: *mut usize,
    ) {
        // All edges are plain ones.
        put_if_wanted(edges, std::ptr::null());
        info(stream, &Places { status, id, graph, dependencies, count })
    }

    fn cuThreadExchangeStreamCaptureMode(mode: *mut u32) {
        if mode.is_null() {
            return Err(CuResult::INVALID_VALUE);
        }
        // What a mode forbids is what this library never does behind a capture's back.
        // SAFETY: the driver API's contract: a place that holds a mode.
        let wanted = unsafe { mode.read_unaligned() };
        if wanted > 2 { Err(CuResult::INVALID_VALUE) } else { put(mode, 0) }
    }
}
