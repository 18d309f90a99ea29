//! Graphs: what they are made of, and how they run.

use std::collections::BTreeSet;
use std::ffi::c_void;

use gpuzone_cuda_abi::{CUstream, CuResult};

use super::copy::{Plane, either, set};
use super::event::record;
use super::launch::start_again;
use super::{host_function, rows};
use crate::ffi::{Answer, api, put, put_if_wanted};
use crate::graphs::{Executable, FillWork, Work};
use crate::handles::{Kind, handle, number};
use crate::state::{State, with};

/// `CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED`.
const TOPOLOGY_CHANGED: u32 = 2;

/// `CUDA_GRAPH_INSTANTIATE_FLAG_UPLOAD`: on the stream that is given.
const UPLOAD: u64 = 2;

/// `CUgraphInstantiateResult`.
mod instantiated {
    pub(super) const SUCCESS: u32 = 0;
    pub(super) const ERROR: u32 = 1;
    pub(super) const INVALID_STRUCTURE: u32 = 2;
}

/// `CUDA_GRAPH_INSTANTIATE_PARAMS`.
#[repr(C)]
struct InstantiateParameters {
    flags: u64,
    upload: CUstream,
    error_node: *mut c_void,
    result: u32,
}

pub(super) fn graph_handle(id: u32) -> *mut c_void {
    handle(Kind::Graph, id)
}

pub(super) fn node_handle(id: u32) -> *mut c_void {
    handle(Kind::Node, id)
}

pub(super) fn graph_of(state: &State, graph: *mut c_void) -> Answer<u32> {
    let id = number(Kind::Graph, graph).ok_or(CuResult::INVALID_VALUE)?;
    state.graphs.graph(id).map(|_| id)
}

pub(super) fn node_of(state: &State, node: *mut c_void) -> Answer<u32> {
    let id = number(Kind::Node, node).ok_or(CuResult::INVALID_VALUE)?;
    state.graphs.node(id).map(|_| id)
}

pub(super) fn executable_of(state: &State, executable: *mut c_void) -> Answer<u32> {
    let id = number(Kind::Executable, executable);
    let id = id.filter(|id| state.graphs.executable.contains_key(id));
    id.ok_or(CuResult::INVALID_VALUE)
}

/// A list of nodes of the program's.
pub(super) fn nodes_in(
    state: &State,
    list: *const *mut c_void,
    count: usize,
) -> Answer<BTreeSet<u32>> {
    if count > 0 && list.is_null() {
        return Err(CuResult::INVALID_VALUE);
    }
    // SAFETY: the driver API's contract: the list has `count` elements.
    (0..count).map(|index| node_of(state, unsafe { list.add(index).read_unaligned() })).collect()
}

/// Writes a list, or how long it is: what is beyond its end is null.
fn put_list(
    items: impl ExactSizeIterator<Item = *mut c_void>,
    places: *mut *mut c_void,
    count: *mut usize,
) -> Answer {
    if count.is_null() {
        return Err(CuResult::INVALID_VALUE);
    }
    let found = items.len();
    if places.is_null() {
        return put(count, found);
    }
    // SAFETY: the driver API's contract: a place that says how many places there are.
    let room = unsafe { count.read_unaligned() };
    let padded = items.chain(std::iter::repeat(std::ptr::null_mut())).take(room);
    for (index, item) in padded.enumerate() {
        // SAFETY: as above.
        put(unsafe { places.add(index) }, item)?;
    }
    put(count, found.min(room))
}

fn instantiate(place: *mut *mut c_void, graph: *mut c_void, flags: u64) -> Answer {
    // To free on launch what a graph allocates (no graph does), to upload, by priorities of nodes.
    if place.is_null() || flags & !0b1011 != 0 {
        return Err(CuResult::INVALID_VALUE);
    }
    with(|state| {
        let graph = graph_of(state, graph)?;
        let work = state.graphs.work_of(graph)?;
        let id = state.new_number();
        // Whether it was uploaded is not told later.
        let (flags, disabled) = (flags & !UPLOAD, BTreeSet::new());
        state.graphs.executable.insert(id, Executable { flags, work, disabled });
        put(place, handle(Kind::Executable, id))
    })
}

/// The same, and the parameters are told how it went.
fn instantiate_with(
    place: *mut *mut c_void,
    graph: *mut c_void,
    parameters: *mut InstantiateParameters,
) -> Answer {
    if parameters.is_null() {
        return Err(CuResult::INVALID_VALUE);
    }
    // SAFETY: the driver API's contract: such a structure.
    let wanted = unsafe { parameters.read_unaligned() };
    let made = if wanted.flags & UPLOAD == 0 {
        Ok(())
    } else {
        // There is nothing to carry over, but to a stream that is there.
        with(|state| state.stream(wanted.upload).map(drop))
    };
    let made = made.and_then(|()| instantiate(place, graph, wanted.flags));
    let has_no_order = || with(|state| Ok(state.graphs.sorted(graph_of(state, graph)?).is_err()));
    let result = match made {
        Ok(()) => instantiated::SUCCESS,
        Err(_) if has_no_order() == Ok(true) => instantiated::INVALID_STRUCTURE,
        Err(_) => instantiated::ERROR,
    };
    put(parameters, InstantiateParameters { error_node: std::ptr::null_mut(), result, ..wanted })?;
    made
}

/// Does what a node does, on a stream.
fn perform(work: Work, stream: CUstream) -> Answer {
    match work {
        Work::Kernel(kernel) => start_again(kernel, stream),
        Work::Copy { target, source, bytes } => either(target, source, bytes, stream, false),
        Work::Rows(copied) => rows::copy(Ok(copied), stream, false),
        Work::Fill(FillWork { target, pitch, value, width, count, rows }) => {
            set(&Plane { target, pitch, count, rows }, value, width, stream)
        }
        Work::Host(number) => host_function::run_again(number, stream),
        Work::Empty => Ok(()),
        Work::Record(event) => record(handle(Kind::Event, event.0), stream),
        Work::Wait(event) => super::stream::wait_event(stream, handle(Kind::Event, event.0)),
        Work::Child(nodes) => nodes.into_iter().try_for_each(|(_, work)| perform(work, stream)),
    }
}

/// Puts the work of a graph in the place of an instantiated one's, if it is of the same kinds in
/// the same order.
fn update(state: &mut State, executable: *mut c_void, graph: *mut c_void) -> Answer {
    let executable = executable_of(state, executable)?;
    let graph = graph_of(state, graph)?;
    let new = state.graphs.work_of(graph)?;
    let old = state.graphs.executable.get_mut(&executable).ok_or(CuResult::INVALID_VALUE)?;
    let kinds = |work: &[(u32, Work)]| work.iter().map(|(_, w)| w.kind()).collect::<Vec<_>>();
    if kinds(&old.work) != kinds(&new) {
        return Err(CuResult::GRAPH_EXEC_UPDATE_FAILURE);
    }
    // Nodes of the graph that was instantiated still name their work.
    for ((_, old), (_, new)) in old.work.iter_mut().zip(new) {
        *old = new;
    }
    Ok(())
}

type Edge = (*mut c_void, *mut c_void);

fn edges(state: &State, graph: *mut c_void) -> Answer<Vec<Edge>> {
    let graph = graph_of(state, graph)?;
    let mut found = Vec::new();
    for id in state.graphs.graph(graph)? {
        let before = state.graphs.node(*id)?.after.iter();
        found.extend(before.map(|before| (node_handle(*before), node_handle(*id))));
    }
    Ok(found)
}

fn put_edges(
    graph: *mut c_void,
    from: *mut *mut c_void,
    to: *mut *mut c_void,
    count: *mut usize,
) -> Answer {
    if count.is_null() {
        return Err(CuResult::INVALID_VALUE);
    }
    with(|state| {
        let found = edges(state, graph)?;
        // SAFETY: the driver API's contract: a place that says how many places there are.
        let mut room = unsafe { count.read_unaligned() };
        put_list(found.iter().map(|edge| edge.1), to, count)?;
        let same = if from.is_null() { count } else { &raw mut room };
        put_list(found.iter().map(|edge| edge.0), from, same)
    })
}

fn put_before(node: *mut c_void, places: *mut *mut c_void, count: *mut usize) -> Answer {
    with(|state| {
        let node = node_of(state, node)?;
        let before: Vec<u32> = state.graphs.node(node)?.after.iter().copied().collect();
        put_list(before.into_iter().map(node_handle), places, count)
    })
}

fn put_behind(node: *mut c_void, places: *mut *mut c_void, count: *mut usize) -> Answer {
    with(|state| {
        let node = node_of(state, node)?;
        let all = state.graphs.graph(state.graphs.node(node)?.graph)?;
        let follows =
            |id: &&u32| state.graphs.node(**id).is_ok_and(|other| other.after.contains(&node));
        let behind: Vec<u32> = all.iter().filter(follows).copied().collect();
        put_list(behind.into_iter().map(node_handle), places, count)
    })
}

/// Adds or removes edges.
fn change_edges(
    graph: *mut c_void,
    from: *const *mut c_void,
    to: *const *mut c_void,
    count: usize,
    add: bool,
) -> Answer {
    with(|state| {
        let graph = graph_of(state, graph)?;
        if count > 0 && (from.is_null() || to.is_null()) {
            return Err(CuResult::INVALID_VALUE);
        }
        for index in 0..count {
            // SAFETY: the driver API's contract: both lists have `count` elements.
            let (from, to) =
                unsafe { (from.add(index).read_unaligned(), to.add(index).read_unaligned()) };
            let (from, to) = (node_of(state, from)?, node_of(state, to)?);
            let node = state.graphs.nodes.get_mut(&to).ok_or(CuResult::INVALID_VALUE)?;
            if node.graph != graph || from == to {
                return Err(CuResult::INVALID_VALUE);
            }
            let changed = if add { node.after.insert(from) } else { node.after.remove(&from) };
            if !changed {
                return Err(CuResult::INVALID_VALUE);
            }
        }
        Ok(())
    })
}

api! {
    fn cuGraphCreate(place: *mut *mut c_void, flags: u32) {
        if place.is_null() || flags != 0 {
            return Err(CuResult::INVALID_VALUE);
        }
        with(|state| {
            let id = state.new_number();
            state.graphs.graphs.insert(id, Vec::new());
            put(place, graph_handle(id))
        })
    }

    fn cuGraphDestroy(graph: *mut c_void) {
        with(|state| {
            let id = graph_of(state, graph)?;
            state.graphs.remove_graph(id)
        })
    }

    fn cuGraphDestroyNode(node: *mut c_void) {
        with(|state| {
            let id = node_of(state, node)?;
            state.graphs.remove_node(id)
        })
    }

    fn cuGraphClone(place: *mut *mut c_void, graph: *mut c_void) {
        with(|state| {
            let graph = graph_of(state, graph)?;
            let sorted = state.graphs.sorted(graph)?;
            let clone = state.new_number();
            state.graphs.graphs.insert(clone, Vec::new());
            let mut copies = std::collections::HashMap::new();
            for id in sorted {
                let node = state.graphs.node(id)?;
                let after = node.after.iter().filter_map(|before| copies.get(before).copied());
                let (after, work) = (after.collect(), node.work.clone());
                let copy = state.new_number();
                state.graphs.add(copy, clone, after, work)?;
                state.graphs.nodes.entry(copy).and_modify(|node| node.origin = Some(id));
                copies.insert(id, copy);
            }
            put(place, graph_handle(clone))
        })
    }

    fn cuGraphGetNodes(graph: *mut c_void, places: *mut *mut c_void, count: *mut usize) {
        with(|state| {
            let graph = graph_of(state, graph)?;
            let nodes = state.graphs.graph(graph)?;
            put_list(nodes.iter().copied().map(node_handle), places, count)
        })
    }

    fn cuGraphGetRootNodes(graph: *mut c_void, places: *mut *mut c_void, count: *mut usize) {
        with(|state| {
            let graph = graph_of(state, graph)?;
            let is_root = |id: &&u32| {
                state.graphs.node(**id).is_ok_and(|node| node.after.is_empty())
            };
            let roots: Vec<u32> =
                state.graphs.graph(graph)?.iter().filter(is_root).copied().collect();
            put_list(roots.into_iter().map(node_handle), places, count)
        })
    }

    fn cuGraphGetEdges(
        graph: *mut c_void, from: *mut *mut c_void, to: *mut *mut c_void, count: *mut usize,
    ) {
        put_edges(graph, from, to, count)
    }

    fn cuGraphGetEdges_v2(
        graph: *mut c_void, from: *mut *mut c_void, to: *mut *mut c_void,
        data: *mut [u8; 8], count: *mut usize,
    ) {
        put_edges(graph, from, to, count)?;
        if !data.is_null() && !from.is_null() {
            // SAFETY: the driver API's contract: as many places as edges were written.
            for index in 0..unsafe { count.read_unaligned() } {
                // SAFETY: as above. All edges are plain ones.
                put(unsafe { data.add(index) }, [0; 8])?;
            }
        }
        Ok(())
    }

    fn cuGraphNodeGetType(node: *mut c_void, kind: *mut u32) {
        with(|state| {
            let node = node_of(state, node)?;
            put(kind, state.graphs.node(node)?.work.kind())
        })
    }

    fn cuGraphNodeGetDependencies(
        node: *mut c_void, places: *mut *mut c_void, count: *mut usize,
    ) {
        put_before(node, places, count)
    }

    fn cuGraphNodeGetDependencies_v2(
        node: *mut c_void, places: *mut *mut c_void, _data: *mut [u8; 8], count: *mut usize,
    ) {
        put_before(node, places, count)
    }

    fn cuGraphNodeGetDependentNodes(
        node: *mut c_void, places: *mut *mut c_void, count: *mut usize,
    ) {
        put_behind(node, places, count)
    }

    fn cuGraphNodeGetDependentNodes_v2(
        node: *mut c_void, places: *mut *mut c_void, _data: *mut [u8; 8], count: *mut usize,
    ) {
        put_behind(node, places, count)
    }

    fn cuGraphAddDependencies(
        graph: *mut c_void, from: *const *mut c_void, to: *const *mut c_void, count: usize,
    ) {
        change_edges(graph, from, to, count, true)
    }

    fn cuGraphAddDependencies_v2(
        graph: *mut c_void, from: *const *mut c_void, to: *const *mut c_void,
        _data: *const [u8; 8], count: usize,
    ) {
        change_edges(graph, from, to, count, true)
    }

    fn cuGraphRemoveDependencies(
        graph: *mut c_void, from: *const *mut c_void, to: *const *mut c_void, count: usize,
    ) {
        change_edges(graph, from, to, count, false)
    }

    fn cuGraphRemoveDependencies_v2(
        graph: *mut c_void, from: *const *mut c_void, to: *const *mut c_void,
        _data: *const [u8; 8], count: usize,
    ) {
        change_edges(graph, from, to, count, false)
    }

    fn cuGraphInstantiateWithFlags(place: *mut *mut c_void, graph: *mut c_void, flags: u64) {
        instantiate(place, graph, flags)
    }

    fn cuGraphInstantiate(
        place: *mut *mut c_void, graph: *mut c_void, error_node: *mut *mut c_void,
        _log: *mut std::ffi::c_char, _size: usize,
    ) {
        put_if_wanted(error_node, std::ptr::null_mut());
        instantiate(place, graph, 0)
    }

    fn cuGraphInstantiate_v2(
        place: *mut *mut c_void, graph: *mut c_void, error_node: *mut *mut c_void,
        _log: *mut std::ffi::c_char, _size: usize,
    ) {
        put_if_wanted(error_node, std::ptr::null_mut());
        instantiate(place, graph, 0)
    }

    fn cuGraphInstantiateWithParams | cuGraphInstantiateWithParams_ptsz(
        place: *mut *mut c_void, graph: *mut c_void, parameters: *mut InstantiateParameters,
    ) {
        instantiate_with(place, graph, parameters)
    }

    fn cuGraphExecDestroy(executable: *mut c_void) {
        with(|state| {
            let id = executable_of(state, executable)?;
            state.graphs.executable.remove(&id);
            Ok(())
        })
    }

    fn cuGraphExecGetFlags(executable: *mut c_void, flags: *mut u64) {
        with(|state| {
            let id = executable_of(state, executable)?;
            let executable = state.graphs.executable.get(&id).ok_or(CuResult::INVALID_VALUE)?;
            put(flags, executable.flags)
        })
    }

    fn cuGraphExecUpdate(
        executable: *mut c_void, graph: *mut c_void, error_node: *mut *mut c_void,
        result: *mut u32,
    ) {
        put_if_wanted(error_node, std::ptr::null_mut());
        let updated = with(|state| update(state, executable, graph));
        put_if_wanted(result, if updated.is_ok() { 0 } else { TOPOLOGY_CHANGED });
        updated
    }

    fn cuGraphExecUpdate_v2(
        executable: *mut c_void, graph: *mut c_void, info: *mut [usize; 3],
    ) {
        let updated = with(|state| update(state, executable, graph));
        // The result, and the nodes between which it went wrong.
        let result = if updated.is_ok() { 0 } else { TOPOLOGY_CHANGED as usize };
        put_if_wanted(info, [result, 0, 0]);
        updated
    }

    fn cuGraphUpload | cuGraphUpload_ptsz(executable: *mut c_void, stream: CUstream) {
        // There is nothing to carry over.
        with(|state| executable_of(state, executable).and_then(|_| state.stream(stream)).map(drop))
    }

    fn cuGraphLaunch | cuGraphLaunch_ptsz(executable: *mut c_void, stream: CUstream) {
        let work = with(|state| {
            let id = executable_of(state, executable)?;
            state.stream(stream)?;
            let executable = state.graphs.executable.get(&id).ok_or(CuResult::INVALID_VALUE)?;
            let is_enabled = |node: &&(u32, Work)| !executable.disabled.contains(&node.0);
            Ok(executable.work.iter().filter(is_enabled).cloned().collect::<Vec<_>>())
        })?;
        work.into_iter().try_for_each(|(_, work)| perform(work, stream))
    }
}
