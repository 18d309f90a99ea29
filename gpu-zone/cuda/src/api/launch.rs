use std::ffi::c_void;

use gpuzone_cuda_abi::{
    CUfunction, CUstream, CuResult, DeviceAttribute, FunctionAttribute, LaunchAttribute,
    LaunchAttributeValue, LaunchConfig, launch_param,
};
use gpuzone_wire::spec::{ContextId, FunctionId, Launch, LaunchSetting, ParamInfo, StreamId};

use super::function::{function_of, known};
use super::occupancy::at_once;
use crate::ffi::{Answer, api};
use crate::graphs::{KernelWork, Work};
use crate::state::{State, with};
use crate::tables::Function;

struct Shape {
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    settings: Vec<LaunchSetting>,
}

/// What an attribute asks for, if it asks for something.
fn setting(attribute: &LaunchAttributeValue) -> Answer<Option<LaunchSetting>> {
    use LaunchAttribute as L;
    let value = attribute.words();
    let asked = match (L(attribute.id), value) {
        // Hints to caches and to who waits, which change nothing that a program sees.
        (L::IGNORE | L::ACCESS_POLICY_WINDOW | L::SYNCHRONIZATION_POLICY, _)
        | (L::MEM_SYNC_DOMAIN_MAP | L::MEM_SYNC_DOMAIN, _) => None,
        // Switched off, or what every launch is.
        (L::COOPERATIVE | L::PROGRAMMATIC_STREAM_SERIALIZATION, [0, _, _])
        | (L::CLUSTER_DIMENSION, [1, 1, 1] | [0, 0, 0])
        | (L::CLUSTER_SCHEDULING_POLICY_PREFERENCE | L::PRIORITY, [0, _, _]) => None,
        (L::COOPERATIVE | L::PROGRAMMATIC_STREAM_SERIALIZATION | L::PRIORITY, [value, _, _])
        | (L::CLUSTER_SCHEDULING_POLICY_PREFERENCE, [value, _, _])
        | (L::PREFERRED_SHARED_MEMORY_CARVEOUT, [value, _, _]) => Some([value, 0, 0]),
        (L::CLUSTER_DIMENSION, value) => Some(value),
        _ => return Err(CuResult::NOT_SUPPORTED),
    };
    Ok(asked.map(|value| LaunchSetting { attribute: attribute.id, value }))
}

/// What the driver would refuse at once is refused at once: later it would surface at some
/// other call.
fn check(state: &State, function: &Function, shape: &Shape) -> Answer {
    use DeviceAttribute as A;
    let context = state.contexts.get(&function.context).ok_or(CuResult::INVALID_CONTEXT)?;
    let limit = |attribute| {
        let value = state.attribute(context.device, attribute)?;
        Ok::<u64, CuResult>(u64::try_from(value).unwrap_or(0))
    };
    let of_function = |attribute: FunctionAttribute| {
        let value = usize::try_from(attribute.0).ok().and_then(|at| function.attributes.get(at));
        value.and_then(|value| u64::try_from(*value).ok()).unwrap_or(0)
    };
    let dimensions = [
        (shape.grid, [A::MAX_GRID_DIM_X, A::MAX_GRID_DIM_Y, A::MAX_GRID_DIM_Z]),
        (shape.block, [A::MAX_BLOCK_DIM_X, A::MAX_BLOCK_DIM_Y, A::MAX_BLOCK_DIM_Z]),
    ];
    for (sizes, limits) in dimensions {
        for (size, attribute) in sizes.into_iter().zip(limits) {
            if size == 0 || u64::from(size) > limit(attribute)? {
                return Err(CuResult::INVALID_VALUE);
            }
        }
    }
    let threads: u64 = shape.block.iter().map(|size| u64::from(*size)).product();
    if threads > limit(A::MAX_THREADS_PER_BLOCK)? {
        return Err(CuResult::INVALID_VALUE);
    }
    if threads > of_function(FunctionAttribute::MAX_THREADS_PER_BLOCK) {
        return Err(CuResult::LAUNCH_OUT_OF_RESOURCES);
    }
    for setting in &shape.settings {
        let needed = match LaunchAttribute(setting.attribute) {
            LaunchAttribute::COOPERATIVE => A::COOPERATIVE_LAUNCH,
            LaunchAttribute::CLUSTER_DIMENSION => A::CLUSTER_LAUNCH,
            _ => continue,
        };
        if limit(needed)? == 0 {
            return Err(CuResult::NOT_SUPPORTED);
        }
    }
    if u64::from(shape.shared) > of_function(FunctionAttribute::MAX_DYNAMIC_SHARED_SIZE_BYTES) {
        return Err(CuResult::INVALID_VALUE);
    }
    Ok(())
}

/// A grid whose blocks wait for each other must fit the GPU at once; only the worker's driver knows.
fn check_together(state: &mut State, function: FunctionId, shape: &Shape) -> Answer {
    let cooperative = |setting: &LaunchSetting| {
        LaunchAttribute(setting.attribute) == LaunchAttribute::COOPERATIVE
    };
    if !shape.settings.iter().any(cooperative) {
        return Ok(());
    }
    let product = |sizes: [u32; 3]| {
        sizes.into_iter().try_fold(1u64, |all, size| all.checked_mul(u64::from(size)))
    };
    let threads = product(shape.block).ok_or(CuResult::INVALID_VALUE)?;
    let most = at_once(state, function, threads, shape.shared)?;
    if product(shape.grid).is_none_or(|blocks| blocks > most) {
        return Err(CuResult::COOPERATIVE_LAUNCH_TOO_LARGE);
    }
    Ok(())
}

/// All arguments in one piece, each at its offset.
///
/// # Safety
/// The driver API's contract: a pointer for each parameter, or a list of markers.
unsafe fn pack(
    layout: &[ParamInfo],
    parameters: *const *const c_void,
    extra: *const *const c_void,
    mut blob: Vec<u8>,
) -> Answer<Vec<u8>> {
    let total = layout.iter().map(|p| p.offset as usize + p.size as usize).max().unwrap_or(0);
    blob.clear();
    blob.resize(total, 0);
    match (parameters.is_null(), extra.is_null()) {
        (false, false) => return Err(CuResult::INVALID_VALUE),
        (true, true) if total > 0 => return Err(CuResult::INVALID_VALUE),
        (true, true) => {}
        (false, true) => {
            for (index, parameter) in layout.iter().enumerate() {
                // SAFETY: by the contract there are as many pointers as parameters.
                let from = unsafe { parameters.add(index).read_unaligned() };
                let (offset, size) = (parameter.offset as usize, parameter.size as usize);
                let place = blob.get_mut(offset..offset + size);
                let place = place.filter(|_| !from.is_null()).ok_or(CuResult::INVALID_VALUE)?;
                // SAFETY: by the contract the pointer points at an argument of this size.
                unsafe {
                    std::ptr::copy_nonoverlapping(from.cast(), place.as_mut_ptr(), size);
                }
            }
        }
        // SAFETY: the caller's contract is the callee's.
        (true, false) => unsafe { unpack_extra(&mut blob, extra) }?,
    }
    Ok(blob)
}

/// # Safety
/// As [`pack`].
unsafe fn unpack_extra(blob: &mut [u8], extra: *const *const c_void) -> Answer {
    let (mut buffer, mut size) = (std::ptr::null::<u8>(), 0usize);
    // Two settings and the end: a longer list has no meaning.
    for index in 0..3 {
        // SAFETY: by the contract the list ends with its marker, and each other marker is
        // followed by its value.
        let (marker, value) = unsafe {
            let marker = extra.add(2 * index).read_unaligned().addr();
            if marker == launch_param::END {
                break;
            }
            (marker, extra.add(2 * index + 1).read_unaligned())
        };
        match marker {
            launch_param::BUFFER_POINTER => buffer = value.cast(),
            launch_param::BUFFER_SIZE if !value.is_null() => {
                // SAFETY: by the contract it points at the buffer's size.
                size = unsafe { value.cast::<usize>().read_unaligned() };
            }
            _ => return Err(CuResult::INVALID_VALUE),
        }
    }
    if size < blob.len() || (buffer.is_null() && !blob.is_empty()) {
        return Err(CuResult::INVALID_VALUE);
    }
    if !blob.is_empty() {
        // SAFETY: by the contract the buffer has `size` bytes, and the blob has no more.
        unsafe { std::ptr::copy_nonoverlapping(buffer, blob.as_mut_ptr(), blob.len()) };
    }
    Ok(())
}

/// Starts a kernel, or records it.
fn start(state: &mut State, context: ContextId, stream: StreamId, work: KernelWork) -> Answer {
    if state.graphs.is_capturing(stream) {
        return state.captures(stream, || Work::Kernel(work)).map(drop);
    }
    let KernelWork { function, grid, block, shared, settings, arguments } = work;
    let launch = Launch { function, stream, grid, block, shared, settings, arguments };
    let posted = state.post(context, &launch);
    state.spare = launch.arguments;
    posted
}

/// Starts a kernel of a graph.
pub(super) fn start_again(work: KernelWork, stream: CUstream) -> Answer {
    with(|state| {
        let (stream, context) = state.stream(stream)?;
        // Its module may have gone since.
        if known(state, work.function)?.context != context {
            return Err(CuResult::INVALID_HANDLE);
        }
        start(state, context, stream, work)
    })
}

/// A kernel as a node has it.
pub(super) fn kernel_work(
    state: &mut State,
    function: CUfunction,
    (grid, block, shared): ([u32; 3], [u32; 3], u32),
    parameters: *const *const c_void,
    extra: *const *const c_void,
) -> Answer<KernelWork> {
    let id = function_of(state, function)?;
    let known = known(state, id)?;
    let shape = Shape { grid, block, shared, settings: Vec::new() };
    check(state, known, &shape)?;
    // SAFETY: the driver API's contract is `pack`'s.
    let arguments = unsafe { pack(&known.parameters, parameters, extra, Vec::new()) }?;
    let settings = shape.settings;
    Ok(KernelWork { function: id, grid, block, shared, settings, arguments })
}

fn launch(
    function: CUfunction,
    shape: Shape,
    stream: CUstream,
    parameters: *const *const c_void,
    extra: *const *const c_void,
) -> Answer {
    with(|state| {
        let id = function_of(state, function)?;
        let (stream, context) = state.stream(stream)?;
        let spare = std::mem::take(&mut state.spare);
        let known = known(state, id)?;
        check(state, known, &shape)?;
        // SAFETY: the driver API's contract is `pack`'s.
        let arguments = unsafe { pack(&known.parameters, parameters, extra, spare) }?;
        if context != known.context {
            return Err(CuResult::INVALID_HANDLE);
        }
        check_together(state, id, &shape)?;
        let Shape { grid, block, shared, settings } = shape;
        let work = KernelWork { function: id, grid, block, shared, settings, arguments };
        start(state, context, stream, work)
    })
}

api! {
    fn cuLaunchKernel | cuLaunchKernel_ptsz(
        function: CUfunction,
        grid_x: u32, grid_y: u32, grid_z: u32,
        block_x: u32, block_y: u32, block_z: u32,
        shared: u32, stream: CUstream,
        parameters: *const *const c_void, extra: *const *const c_void,
    ) {
        let grid = [grid_x, grid_y, grid_z];
        let block = [block_x, block_y, block_z];
        let settings = Vec::new();
        launch(function, Shape { grid, block, shared, settings }, stream, parameters, extra)
    }

    fn cuLaunchKernelEx | cuLaunchKernelEx_ptsz(
        config: *const LaunchConfig, function: CUfunction,
        parameters: *const *const c_void, extra: *const *const c_void,
    ) {
        if config.is_null() {
            return Err(CuResult::INVALID_VALUE);
        }
        // SAFETY: the driver API's contract: a configuration, left alone during the call.
        let config = unsafe { config.read_unaligned() };
        let mut settings = Vec::new();
        for index in 0..config.attribute_count as usize {
            if config.attributes.is_null() {
                return Err(CuResult::INVALID_VALUE);
            }
            // SAFETY: the driver API's contract: the list has as many elements as it says.
            let attribute = unsafe { config.attributes.add(index).read_unaligned() };
            settings.extend(setting(&attribute)?);
        }
        let (grid, block, shared) = (config.grid, config.block, config.shared);
        let shape = Shape { grid, block, shared, settings };
        launch(function, shape, config.stream, parameters, extra)
    }

    fn cuLaunchCooperativeKernel | cuLaunchCooperativeKernel_ptsz(
        function: CUfunction,
        grid_x: u32, grid_y: u32, grid_z: u32,
        block_x: u32, block_y: u32, block_z: u32,
        shared: u32, stream: CUstream, parameters: *const *const c_void,
    ) {
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        let settings = vec![LaunchSetting {
            attribute: LaunchAttribute::COOPERATIVE.0,
            value: [1, 0, 0],
        }];
        let shape = Shape { grid, block, shared, settings };
        launch(function, shape, stream, parameters, std::ptr::null())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: [ParamInfo; 2] =
        [ParamInfo { offset: 0, size: 4 }, ParamInfo { offset: 8, size: 8 }];

    #[test]
    fn packs_arguments_at_their_offsets() {
        let (a, b) = (7u32, 9u64);
        let list = [(&raw const a).cast::<c_void>(), (&raw const b).cast()];
        // SAFETY: a pointer for each parameter.
        let blob =
            unsafe { pack(&LAYOUT, list.as_ptr(), std::ptr::null(), vec![1; 99]) }.expect("packed");
        assert_eq!(blob, [7, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
        // SAFETY: nothing is read.
        let none = unsafe { pack(&LAYOUT, std::ptr::null(), std::ptr::null(), Vec::new()) };
        assert_eq!(none, Err(CuResult::INVALID_VALUE));
    }

    #[test]
    fn takes_arguments_from_a_buffer_that_is_large_enough() {
        let buffer = [3u8; 20];
        for (size, fits) in [(20usize, true), (16, true), (15, false)] {
            let marker = std::ptr::without_provenance::<c_void>;
            let extra = [
                marker(launch_param::BUFFER_POINTER),
                buffer.as_ptr().cast(),
                marker(launch_param::BUFFER_SIZE),
                (&raw const size).cast(),
                marker(launch_param::END),
            ];
            // SAFETY: a list of markers with its end.
            let blob = unsafe { pack(&LAYOUT, std::ptr::null(), extra.as_ptr(), Vec::new()) };
            assert_eq!(blob.is_ok_and(|blob| blob == [3; 16]), fits);
        }
    }
}
