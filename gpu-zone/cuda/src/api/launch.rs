use std::ffi::c_void;

use gpuzone_cuda_abi::{
    CUfunction, CUstream, CuResult, DeviceAttribute, FunctionAttribute, LaunchAttribute,
    launch_param,
};
use gpuzone_wire::spec::{Launch, Occupancy, ParamInfo};

use super::function::{function_of, known};
use crate::ffi::{Answer, api, put};
use crate::state::{State, with};
use crate::tables::Function;

/// `CUlaunchConfig`.
#[repr(C)]
struct LaunchConfig {
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    stream: CUstream,
    attributes: *const Attribute,
    attribute_count: u32,
}

/// `CUlaunchAttribute`.
#[repr(C)]
struct Attribute {
    id: u32,
    padding: u32,
    value: [u64; 8],
}

struct Shape {
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
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
    if u64::from(shape.shared) > of_function(FunctionAttribute::MAX_DYNAMIC_SHARED_SIZE_BYTES) {
        return Err(CuResult::INVALID_VALUE);
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
) -> Answer<Vec<u8>> {
    let total = layout.iter().map(|p| p.offset as usize + p.size as usize).max().unwrap_or(0);
    match (parameters.is_null(), extra.is_null()) {
        (false, false) => Err(CuResult::INVALID_VALUE),
        (true, true) if total > 0 => Err(CuResult::INVALID_VALUE),
        (true, true) => Ok(Vec::new()),
        (false, true) => {
            let mut blob = vec![0u8; total];
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
            Ok(blob)
        }
        // SAFETY: the caller's contract is the callee's.
        (true, false) => unsafe { unpack_extra(total, extra) },
    }
}

/// # Safety
/// As [`pack`].
unsafe fn unpack_extra(total: usize, extra: *const *const c_void) -> Answer<Vec<u8>> {
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
    if size < total || (buffer.is_null() && total > 0) {
        return Err(CuResult::INVALID_VALUE);
    }
    let mut blob = vec![0u8; total];
    if total > 0 {
        // SAFETY: by the contract the buffer has `size` bytes, and `total` is no more.
        unsafe { std::ptr::copy_nonoverlapping(buffer, blob.as_mut_ptr(), total) };
    }
    Ok(blob)
}

fn launch(
    function: CUfunction,
    shape: &Shape,
    stream: CUstream,
    parameters: *const *const c_void,
    extra: *const *const c_void,
) -> Answer {
    with(|state| {
        let id = function_of(state, function)?;
        let known = known(state, id)?;
        check(state, known, shape)?;
        // SAFETY: the driver API's contract is `pack`'s.
        let arguments = unsafe { pack(&known.parameters, parameters, extra) }?;
        let (stream, context) = state.stream(stream)?;
        if context != known.context {
            return Err(CuResult::INVALID_HANDLE);
        }
        let Shape { grid, block, shared } = *shape;
        state.post(context, &Launch { function: id, stream, grid, block, shared, arguments })
    })
}

fn occupancy(
    blocks: *mut i32,
    function: CUfunction,
    block: i32,
    shared: usize,
    flags: u32,
) -> Answer {
    with(|state| {
        let id = function_of(state, function)?;
        let context = known(state, id)?.context;
        let dynamic_shared = shared as u64;
        let request = Occupancy { function: id, block, dynamic_shared, flags };
        put(blocks, state.call(context, &request)?.blocks)
    })
}

api! {
    fn cuLaunchKernel(
        function: CUfunction,
        grid_x: u32, grid_y: u32, grid_z: u32,
        block_x: u32, block_y: u32, block_z: u32,
        shared: u32, stream: CUstream,
        parameters: *const *const c_void, extra: *const *const c_void,
    ) {
        let grid = [grid_x, grid_y, grid_z];
        let block = [block_x, block_y, block_z];
        launch(function, &Shape { grid, block, shared }, stream, parameters, extra)
    }

    fn cuLaunchKernelEx(
        config: *const LaunchConfig, function: CUfunction,
        parameters: *const *const c_void, extra: *const *const c_void,
    ) {
        if config.is_null() {
            return Err(CuResult::INVALID_VALUE);
        }
        // SAFETY: the driver API's contract: a configuration, left alone during the call.
        let config = unsafe { config.read_unaligned() };
        for index in 0..config.attribute_count as usize {
            if config.attributes.is_null() {
                return Err(CuResult::INVALID_VALUE);
            }
            // SAFETY: the driver API's contract: the list has as many elements as it says.
            let attribute = unsafe { config.attributes.add(index).read_unaligned() };
            let id = LaunchAttribute(attribute.id);
            let off = attribute.value.first().is_none_or(|value| value & 0xffff_ffff == 0);
            // A property that is switched off asks for nothing.
            if id != LaunchAttribute::IGNORE && !(id == LaunchAttribute::COOPERATIVE && off) {
                return Err(CuResult::NOT_SUPPORTED);
            }
        }
        let shape = Shape { grid: config.grid, block: config.block, shared: config.shared };
        launch(function, &shape, config.stream, parameters, extra)
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
        blocks: *mut i32, function: CUfunction, block: i32, shared: usize,
    ) {
        occupancy(blocks, function, block, shared, 0)
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        blocks: *mut i32, function: CUfunction, block: i32, shared: usize, flags: u32,
    ) {
        occupancy(blocks, function, block, shared, flags)
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
        let blob = unsafe { pack(&LAYOUT, list.as_ptr(), std::ptr::null()) }.expect("packed");
        assert_eq!(blob, [7, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
        // SAFETY: nothing is read.
        let none = unsafe { pack(&LAYOUT, std::ptr::null(), std::ptr::null()) };
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
            let blob = unsafe { pack(&LAYOUT, std::ptr::null(), extra.as_ptr()) };
            assert_eq!(blob.is_ok_and(|blob| blob == [3; 16]), fits);
        }
    }
}
