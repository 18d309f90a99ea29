//! What nodes of graphs are told to do, and which of them a launch leaves out.

use std::ffi::c_void;

use gpuzone_cuda_abi::rows::{End, Place, Rows, WORDS_3D};
use gpuzone_cuda_abi::{CUevent, CuResult};
use gpuzone_wire::spec::ParamInfo;

use super::function::known;
use super::graph::{executable_of, graph_of, node_handle, node_of};
use super::graph_nodes::{
    FillParameters, HostParameters, KernelParameters, KernelParametersV2, change_in_to, change_to,
};
use super::host_function::{Function, entered};
use crate::ffi::{Answer, api, put};
use crate::graphs::{FillWork, KernelWork, Work};
use crate::handles::{Kind, handle};
use crate::state::with;

/// Writes what a node is told, if it is of the kind that is asked about.
fn told<T>(node: *mut c_void, place: *mut T, tell: impl FnOnce(&Work) -> Option<T>) -> Answer {
    with(|state| {
        let id = node_of(state, node)?;
        put(place, tell(&state.graphs.node(id)?.work).ok_or(CuResult::INVALID_VALUE)?)
    })
}

/// A copy of bytes in a row, as it was captured.
fn row(target: u64, source: u64, bytes: usize) -> Rows {
    let width = bytes as u64;
    let end = |address| End { place: Place::Either, address, pitch: width, slice: width };
    Rows { source: end(source), target: end(target), width, height: 1, depth: 1 }
}

/// What a kernel's node is told. The arguments are the program's to read until it asks again, or changes
/// the node or ends it.
fn kernel_of(node: *mut c_void) -> Answer<KernelParameters> {
    with(|state| {
        let id = node_of(state, node)?;
        let Work::Kernel(kernel) = &state.graphs.node(id)?.work else {
            return Err(CuResult::INVALID_VALUE);
        };
        let KernelWork { function, grid, block, shared, ref arguments, .. } = *kernel;
        let arguments = arguments.clone();
        let at = |parameter: &ParamInfo| {
            arguments.as_ptr().wrapping_add(parameter.offset as usize).expose_provenance()
        };
        let places: Vec<usize> = known(state, function)?.parameters.iter().map(at).collect();
        let parameters = places.as_ptr().cast();
        let node = state.graphs.nodes.get_mut(&id).ok_or(CuResult::INVALID_VALUE)?;
        node.told = (arguments, places);
        let (function, extra) = (handle(Kind::Function, function.0), std::ptr::null());
        Ok(KernelParameters { function, grid, block, shared, parameters, extra })
    })
}

/// Whether a node can be left out of a launch: a kernel, a copy or a fill.
fn can_be_disabled(work: &Work) -> bool {
    match work {
        Work::Kernel(_) | Work::Copy { .. } | Work::Rows(_) | Work::Fill(_) => true,
        Work::Host(_) | Work::Empty | Work::Record(_) | Work::Wait(_) | Work::Child(_) => false,
    }
}

/// Does something with the nodes that a graph which was instantiated leaves out.
fn with_disabled<T>(
    executable: *mut c_void,
    node: *mut c_void,
    act: impl FnOnce(&mut std::collections::BTreeSet<u32>, u32) -> T,
) -> Answer<T> {
    with(|state| {
        let executable = executable_of(state, executable)?;
        let node = node_of(state, node)?;
        let all = state.graphs.executable.get_mut(&executable).ok_or(CuResult::INVALID_VALUE)?;
        let found = all.work.iter().find(|(id, work)| *id == node && can_be_disabled(work));
        found.ok_or(CuResult::INVALID_VALUE)?;
        Ok(act(&mut all.disabled, node))
    })
}

/// The kinds of work, in order.
fn kinds(work: &[(u32, Work)]) -> Vec<u32> {
    work.iter().map(|(_, work)| work.kind()).collect()
}

fn change_child(executable: *mut c_void, node: *mut c_void, graph: *mut c_void) -> Answer {
    let same = with(|state| {
        let (id, executable) = (node_of(state, node)?, executable_of(state, executable)?);
        let new = state.graphs.work_of(graph_of(state, graph)?)?;
        let all = state.graphs.executable.get(&executable).ok_or(CuResult::INVALID_VALUE)?;
        let old = all.work.iter().find(|(of, _)| *of == id).map(|(_, work)| work);
        Ok(matches!(old, Some(Work::Child(old)) if kinds(old) == kinds(&new)))
    })?;
    if !same {
        return Err(CuResult::INVALID_VALUE);
    }
    change_in_to(executable, node, |state| {
        Ok(Work::Child(state.graphs.work_of(graph_of(state, graph)?)?))
    })
}

api! {
    fn cuGraphKernelNodeGetParams(node: *mut c_void, place: *mut c_void) {
        put(place.cast(), kernel_of(node)?)
    }

    fn cuGraphKernelNodeGetParams_v2(node: *mut c_void, place: *mut c_void) {
        let (kernel, context) = (std::ptr::null_mut(), std::ptr::null_mut());
        put(place.cast(), KernelParametersV2 { common: kernel_of(node)?, kernel, context })
    }

    fn cuGraphMemcpyNodeGetParams(node: *mut c_void, place: *mut [u64; WORDS_3D]) {
        told(node, place, |work| match work {
            Work::Rows(rows) => Some(rows.to_3d()),
            Work::Copy { target, source, bytes } => Some(row(*target, *source, *bytes).to_3d()),
            _ => None,
        })
    }

    fn cuGraphMemsetNodeGetParams(node: *mut c_void, place: *mut c_void) {
        told(node, place.cast::<FillParameters>(), |work| match *work {
            Work::Fill(FillWork { target, pitch, value, width, count, rows }) => {
                let (element, width, height) = (width, count, rows);
                Some(FillParameters { target, pitch, value, element, width, height })
            }
            _ => None,
        })
    }

    fn cuGraphHostNodeGetParams(node: *mut c_void, place: *mut c_void) {
        told(node, place.cast::<HostParameters>(), |work| {
            let Work::Host(number) = work else { return None };
            match entered(*number)? {
                Function::Plain { function, data } => {
                    let data = std::ptr::with_exposed_provenance_mut(data);
                    Some(HostParameters { function: Some(function), data })
                }
                // A stream's callback is no function that a node could be given.
                Function::OfStream { .. } => None,
            }
        })
    }

    fn cuGraphEventRecordNodeGetEvent(node: *mut c_void, place: *mut CUevent) {
        told(node, place, |work| match work {
            Work::Record(event) => Some(handle(Kind::Event, event.0)),
            _ => None,
        })
    }

    fn cuGraphEventWaitNodeGetEvent(node: *mut c_void, place: *mut CUevent) {
        told(node, place, |work| match work {
            Work::Wait(event) => Some(handle(Kind::Event, event.0)),
            _ => None,
        })
    }

    fn cuGraphEventRecordNodeSetEvent(node: *mut c_void, event: CUevent) {
        change_to(node, |state| Ok(Work::Record(state.event(event)?.0)))
    }

    fn cuGraphEventWaitNodeSetEvent(node: *mut c_void, event: CUevent) {
        change_to(node, |state| Ok(Work::Wait(state.event(event)?.0)))
    }

    fn cuGraphExecEventRecordNodeSetEvent(
        executable: *mut c_void, node: *mut c_void, event: CUevent,
    ) {
        change_in_to(executable, node, |state| Ok(Work::Record(state.event(event)?.0)))
    }

    fn cuGraphExecEventWaitNodeSetEvent(
        executable: *mut c_void, node: *mut c_void, event: CUevent,
    ) {
        change_in_to(executable, node, |state| Ok(Work::Wait(state.event(event)?.0)))
    }

    fn cuGraphExecChildGraphNodeSetParams(
        executable: *mut c_void, node: *mut c_void, graph: *mut c_void,
    ) {
        change_child(executable, node, graph)
    }

    fn cuGraphNodeFindInClone(
        place: *mut *mut c_void, original: *mut c_void, clone: *mut c_void,
    ) {
        with(|state| {
            let (original, clone) = (node_of(state, original)?, graph_of(state, clone)?);
            let is_it = |id: &&u32| {
                state.graphs.node(**id).is_ok_and(|node| node.origin == Some(original))
            };
            let found = state.graphs.graph(clone)?.iter().find(is_it);
            put(place, node_handle(*found.ok_or(CuResult::INVALID_VALUE)?))
        })
    }

    fn cuGraphNodeSetEnabled(executable: *mut c_void, node: *mut c_void, enabled: u32) {
        with_disabled(executable, node, |disabled, node| match enabled {
            0 => drop(disabled.insert(node)),
            _ => drop(disabled.remove(&node)),
        })
    }

    fn cuGraphNodeGetEnabled(executable: *mut c_void, node: *mut c_void, place: *mut u32) {
        put(place, with_disabled(executable, node, |off, node| u32::from(!off.contains(&node)))?)
    }
}
