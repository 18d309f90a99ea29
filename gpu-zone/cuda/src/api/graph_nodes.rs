//! Nodes of graphs, each from its structure of parameters.

use std::ffi::c_void;

use gpuzone_cuda_abi::rows::{Rows, WORDS_3D};
use gpuzone_cuda_abi::{CUcontext, CUevent, CUfunction, CuResult};

use super::graph::{executable_of, graph_of, node_handle, node_of, nodes_in};
use super::host_function::{self, Function};
use super::launch::kernel_work;
use crate::ffi::{Answer, api, put};
use crate::graphs::{FillWork, Work};
use crate::state::{State, with};

/// `CUDA_KERNEL_NODE_PARAMS`, as far as both versions have it.
#[repr(C)]
pub(super) struct KernelParameters {
    pub(super) function: CUfunction,
    pub(super) grid: [u32; 3],
    pub(super) block: [u32; 3],
    pub(super) shared: u32,
    pub(super) parameters: *const *const c_void,
    pub(super) extra: *const *const c_void,
}

/// What the second version has more.
#[repr(C)]
pub(super) struct KernelParametersV2 {
    pub(super) common: KernelParameters,
    pub(super) kernel: CUfunction,
    pub(super) context: CUcontext,
}

/// `CUDA_MEMSET_NODE_PARAMS`.
#[repr(C)]
pub(super) struct FillParameters {
    pub(super) target: u64,
    pub(super) pitch: usize,
    pub(super) value: u32,
    pub(super) element: u32,
    pub(super) width: usize,
    pub(super) height: usize,
}

/// `CUDA_HOST_NODE_PARAMS`.
#[repr(C)]
pub(super) struct HostParameters {
    pub(super) function: Option<unsafe extern "C" fn(*mut c_void)>,
    pub(super) data: *mut c_void,
}

fn read<T>(from: *const T) -> Answer<T> {
    if from.is_null() {
        return Err(CuResult::INVALID_VALUE);
    }
    // SAFETY: the driver API's contract: such a structure.
    Ok(unsafe { from.read_unaligned() })
}

fn kernel(state: &mut State, wanted: &KernelParameters) -> Answer<Work> {
    let shape = (wanted.grid, wanted.block, wanted.shared);
    let (parameters, extra) = (wanted.parameters, wanted.extra);
    kernel_work(state, wanted.function, shape, parameters, extra).map(Work::Kernel)
}

fn kernel_v1(state: &mut State, from: *const c_void) -> Answer<Work> {
    kernel(state, &read(from.cast::<KernelParameters>())?)
}

fn kernel_v2(state: &mut State, from: *const c_void) -> Answer<Work> {
    let KernelParametersV2 { mut common, kernel: library_kernel, context } =
        read(from.cast::<KernelParametersV2>())?;
    if !context.is_null() {
        let (wanted, current) = (state.context_of(context)?, state.context()?);
        if wanted != current {
            return Err(CuResult::INVALID_CONTEXT);
        }
    }
    if common.function.is_null() {
        common.function = library_kernel;
    }
    kernel(state, &common)
}

fn copy(_: &mut State, from: *const c_void) -> Answer<Work> {
    Rows::of_3d(&read(from.cast::<[u64; WORDS_3D]>())?).map(Work::Rows)
}

fn fill(_: &mut State, from: *const c_void) -> Answer<Work> {
    let FillParameters { target, pitch, value, element, width, height } =
        read(from.cast::<FillParameters>())?;
    if !matches!(element, 1 | 2 | 4) {
        return Err(CuResult::INVALID_VALUE);
    }
    let work = FillWork { target, pitch, value, width: element, count: width, rows: height };
    Ok(Work::Fill(work))
}

fn host(state: &mut State, from: *const c_void) -> Answer<Work> {
    let wanted = read(from.cast::<HostParameters>())?;
    let function = wanted.function.ok_or(CuResult::INVALID_VALUE)?;
    host_function::open(state)?;
    let data = wanted.data.expose_provenance();
    Ok(Work::Host(host_function::enter(Function::Plain { function, data }, true)))
}

type Read = fn(&mut State, *const c_void) -> Answer<Work>;

/// Where a node goes: its place, its graph, and what it comes after.
struct Place {
    node: *mut *mut c_void,
    graph: *mut c_void,
    after: *const *mut c_void,
    count: usize,
}

fn add(place: &Place, work: impl FnOnce(&mut State) -> Answer<Work>) -> Answer {
    if place.node.is_null() {
        return Err(CuResult::INVALID_VALUE);
    }
    with(|state| {
        let graph = graph_of(state, place.graph)?;
        let after = nodes_in(state, place.after, place.count)?;
        let work = work(state)?;
        let id = state.new_number();
        state.graphs.add(id, graph, after, work)?;
        put(place.node, node_handle(id))
    })
}

fn change(node: *mut c_void, from: *const c_void, read: Read) -> Answer {
    change_to(node, |state| read(state, from))
}

/// Gives a node other parameters; they are of the same kind.
pub(super) fn change_to(
    node: *mut c_void,
    work: impl FnOnce(&mut State) -> Answer<Work>,
) -> Answer {
    with(|state| {
        let id = node_of(state, node)?;
        let work = work(state)?;
        let node = state.graphs.nodes.get_mut(&id).ok_or(CuResult::INVALID_VALUE)?;
        if node.work.kind() != work.kind() {
            return Err(CuResult::INVALID_VALUE);
        }
        node.work = work;
        Ok(())
    })
}

fn change_in(
    executable: *mut c_void,
    node: *mut c_void,
    from: *const c_void,
    read: Read,
) -> Answer {
    change_in_to(executable, node, |state| read(state, from))
}

/// The same in a graph that was instantiated.
pub(super) fn change_in_to(
    executable: *mut c_void,
    node: *mut c_void,
    work: impl FnOnce(&mut State) -> Answer<Work>,
) -> Answer {
    with(|state| {
        let executable = executable_of(state, executable)?;
        let id = node_of(state, node)?;
        let new = work(state)?;
        let all = state.graphs.executable.get_mut(&executable).ok_or(CuResult::INVALID_VALUE)?;
        let found = all.work.iter_mut().find(|(of, work)| *of == id && work.kind() == new.kind());
        found.ok_or(CuResult::INVALID_VALUE)?.1 = new;
        Ok(())
    })
}

api! {
    fn cuGraphAddKernelNode(
        node: *mut *mut c_void, graph: *mut c_void, after: *const *mut c_void, count: usize,
        wanted: *const c_void,
    ) {
        add(&Place { node, graph, after, count }, |state| kernel_v1(state, wanted))
    }

    fn cuGraphAddKernelNode_v2(
        node: *mut *mut c_void, graph: *mut c_void, after: *const *mut c_void, count: usize,
        wanted: *const c_void,
    ) {
        add(&Place { node, graph, after, count }, |state| kernel_v2(state, wanted))
    }

    fn cuGraphAddMemcpyNode(
        node: *mut *mut c_void, graph: *mut c_void, after: *const *mut c_void, count: usize,
        wanted: *const c_void, _context: CUcontext,
    ) {
        add(&Place { node, graph, after, count }, |state| copy(state, wanted))
    }

    fn cuGraphAddMemsetNode(
        node: *mut *mut c_void, graph: *mut c_void, after: *const *mut c_void, count: usize,
        wanted: *const c_void, _context: CUcontext,
    ) {
        add(&Place { node, graph, after, count }, |state| fill(state, wanted))
    }

    fn cuGraphAddHostNode(
        node: *mut *mut c_void, graph: *mut c_void, after: *const *mut c_void, count: usize,
        wanted: *const c_void,
    ) {
        add(&Place { node, graph, after, count }, |state| host(state, wanted))
    }

    fn cuGraphAddEmptyNode(
        node: *mut *mut c_void, graph: *mut c_void, after: *const *mut c_void, count: usize,
    ) {
        add(&Place { node, graph, after, count }, |_| Ok(Work::Empty))
    }

    fn cuGraphAddEventRecordNode(
        node: *mut *mut c_void, graph: *mut c_void, after: *const *mut c_void, count: usize,
        event: CUevent,
    ) {
        let place = Place { node, graph, after, count };
        add(&place, |state| Ok(Work::Record(state.event(event)?.0)))
    }

    fn cuGraphAddEventWaitNode(
        node: *mut *mut c_void, graph: *mut c_void, after: *const *mut c_void, count: usize,
        event: CUevent,
    ) {
        let place = Place { node, graph, after, count };
        add(&place, |state| Ok(Work::Wait(state.event(event)?.0)))
    }

    fn cuGraphAddChildGraphNode(
        node: *mut *mut c_void, graph: *mut c_void, after: *const *mut c_void, count: usize,
        child: *mut c_void,
    ) {
        add(&Place { node, graph, after, count }, |state| {
            let child = graph_of(state, child)?;
            Ok(Work::Child(state.graphs.work_of(child)?))
        })
    }

    fn cuGraphKernelNodeSetParams(node: *mut c_void, wanted: *const c_void) {
        change(node, wanted, kernel_v1)
    }

    fn cuGraphKernelNodeSetParams_v2(node: *mut c_void, wanted: *const c_void) {
        change(node, wanted, kernel_v2)
    }

    fn cuGraphMemcpyNodeSetParams(node: *mut c_void, wanted: *const c_void) {
        change(node, wanted, copy)
    }

    fn cuGraphMemsetNodeSetParams(node: *mut c_void, wanted: *const c_void) {
        change(node, wanted, fill)
    }

    fn cuGraphHostNodeSetParams(node: *mut c_void, wanted: *const c_void) {
        change(node, wanted, host)
    }

    fn cuGraphExecKernelNodeSetParams(
        executable: *mut c_void, node: *mut c_void, wanted: *const c_void,
    ) {
        change_in(executable, node, wanted, kernel_v1)
    }

    fn cuGraphExecKernelNodeSetParams_v2(
        executable: *mut c_void, node: *mut c_void, wanted: *const c_void,
    ) {
        change_in(executable, node, wanted, kernel_v2)
    }

    fn cuGraphExecMemcpyNodeSetParams(
        executable: *mut c_void, node: *mut c_void, wanted: *const c_void, _context: CUcontext,
    ) {
        change_in(executable, node, wanted, copy)
    }

    fn cuGraphExecMemsetNodeSetParams(
        executable: *mut c_void, node: *mut c_void, wanted: *const c_void, _context: CUcontext,
    ) {
        change_in(executable, node, wanted, fill)
    }

    fn cuGraphExecHostNodeSetParams(
        executable: *mut c_void, node: *mut c_void, wanted: *const c_void,
    ) {
        change_in(executable, node, wanted, host)
    }
}
