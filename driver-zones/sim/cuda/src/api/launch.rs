use std::sync::Arc;

use gpuzone_cuda_abi::{CuResult, LaunchAttribute, launch_param};
use gpuzone_sim_ptx::Dim3;

use super::lane::Lane;
use crate::Answer;
use crate::abi::{Array, HostBytes, Word, entry_points};
use crate::function::Function;
use crate::handles;
use crate::work::{LaunchWork, Work};

/// `CUlaunchConfig`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct LaunchConfig {
    grid: [u32; 3],
    block: [u32; 3],
    dynamic_shared_bytes: u32,
    stream: Word,
    attributes: Array<RawAttribute>,
    attribute_count: u32,
}

/// `CUlaunchAttribute`: a number, padding, and 64 bytes that depend on it.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct RawAttribute {
    id: u32,
    padding: u32,
    value: [u32; 16],
}

const MAX_ATTRIBUTES: u32 = 64;
/// More elements than a well-formed `extra` has.
const MAX_EXTRA: usize = 16;
/// A caller's buffer may be rounded up to this alignment.
const BUFFER_SLACK: usize = 16;

struct Shape {
    grid: Dim3,
    block: Dim3,
    dynamic_shared_bytes: u32,
    /// Whether all blocks run at once.
    cooperative: bool,
}

fn launch(
    handle: Word,
    shape: &Shape,
    stream: Word,
    params: Array<Word>,
    extra: Array<Word>,
) -> Answer {
    let lane = Lane::of(stream)?;
    let function = handles::function(handle)?;
    if !Arc::ptr_eq(function.module().context(), &lane.context) {
        return Err(CuResult::INVALID_HANDLE);
    }
    function.check_launch(shape.grid, shape.block, shape.dynamic_shared_bytes)?;
    if shape.cooperative {
        function.check_together(shape.grid, shape.block, shape.dynamic_shared_bytes)?;
    }
    let params = match (params.is_null(), extra.is_null()) {
        (false, true) => from_pointers(&function, params)?,
        (true, false) => from_buffer(&function, extra)?,
        (true, true) if function.param_bytes()? == 0 => Vec::new(),
        (true, true) | (false, false) => return Err(CuResult::INVALID_VALUE),
    };
    let &Shape { grid, block, dynamic_shared_bytes, cooperative } = shape;
    let work = LaunchWork { function, grid, block, dynamic_shared_bytes, cooperative, params };
    lane.submit(Work::Launch(work)).map(drop)
}

/// One pointer per parameter.
fn from_pointers(function: &Function, pointers: Array<Word>) -> Answer<Vec<u8>> {
    let mut buffer = vec![0; function.param_bytes()?];
    for (index, param) in function.kernel()?.params().iter().enumerate() {
        let wide = |value: u32| usize::try_from(value).map_err(|_| CuResult::INVALID_VALUE);
        let (offset, size) = (wide(param.offset)?, wide(param.size)?);
        let bytes = HostBytes::new(pointers.get(index)?, size)?.to_vec();
        buffer[offset..offset + size].copy_from_slice(&bytes);
    }
    Ok(buffer)
}

/// All parameters in one buffer, described by a list of markers.
fn from_buffer(function: &Function, extra: Array<Word>) -> Answer<Vec<u8>> {
    let (mut buffer, mut size) = (None, None);
    let mut at = 0;
    while at < MAX_EXTRA {
        match extra.get(at)? {
            launch_param::END => break,
            launch_param::BUFFER_POINTER => buffer = Some(extra.get(at + 1)?),
            launch_param::BUFFER_SIZE => {
                let bytes = HostBytes::new(extra.get(at + 1)?, size_of::<usize>())?.to_vec();
                let bytes = bytes.try_into().map_err(|_| CuResult::INVALID_VALUE)?;
                size = Some(usize::from_ne_bytes(bytes));
            }
            _ => return Err(CuResult::INVALID_VALUE),
        }
        at += 2;
    }
    let (Some(buffer), Some(size)) = (buffer, size) else { return Err(CuResult::INVALID_VALUE) };
    let needed = function.param_bytes()?;
    if size < needed || size > needed.next_multiple_of(BUFFER_SLACK) {
        return Err(CuResult::INVALID_VALUE);
    }
    if needed == 0 {
        return Ok(Vec::new());
    }
    Ok(HostBytes::new(buffer, needed)?.to_vec())
}

/// Hints are taken and change nothing; what would change results is refused, but for whether the
/// launch is cooperative, which is the answer.
fn check_attribute(attribute: &RawAttribute) -> Answer<bool> {
    let [x, y, z, ..] = attribute.value;
    match LaunchAttribute(attribute.id) {
        LaunchAttribute::IGNORE
        | LaunchAttribute::ACCESS_POLICY_WINDOW
        | LaunchAttribute::SYNCHRONIZATION_POLICY
        | LaunchAttribute::CLUSTER_SCHEDULING_POLICY_PREFERENCE
        | LaunchAttribute::PROGRAMMATIC_STREAM_SERIALIZATION
        | LaunchAttribute::PRIORITY
        | LaunchAttribute::MEM_SYNC_DOMAIN_MAP
        | LaunchAttribute::MEM_SYNC_DOMAIN
        | LaunchAttribute::PREFERRED_SHARED_MEMORY_CARVEOUT => Ok(false),
        LaunchAttribute::COOPERATIVE => Ok(x != 0),
        LaunchAttribute::CLUSTER_DIMENSION if (x, y, z) == (1, 1, 1) => Ok(false),
        _ => Err(CuResult::NOT_SUPPORTED),
    }
}

entry_points! {
    fn cuLaunchKernel(
        function: Word,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        block_x: u32,
        block_y: u32,
        block_z: u32,
        dynamic_shared_bytes: u32,
        stream: Word,
        params: Array<Word>,
        extra: Array<Word>,
    ) {
        let shape = Shape {
            grid: Dim3::new(grid_x, grid_y, grid_z),
            block: Dim3::new(block_x, block_y, block_z),
            dynamic_shared_bytes,
            cooperative: false,
        };
        launch(function, &shape, stream, params, extra)
    }

    fn cuLaunchCooperativeKernel(
        function: Word,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        block_x: u32,
        block_y: u32,
        block_z: u32,
        dynamic_shared_bytes: u32,
        stream: Word,
        params: Array<Word>,
    ) {
        let shape = Shape {
            grid: Dim3::new(grid_x, grid_y, grid_z),
            block: Dim3::new(block_x, block_y, block_z),
            dynamic_shared_bytes,
            cooperative: true,
        };
        launch(function, &shape, stream, params, Array::none())
    }

    fn cuLaunchKernelEx(
        config: Array<LaunchConfig>,
        function: Word,
        params: Array<Word>,
        extra: Array<Word>,
    ) {
        let config = config.get(0)?;
        if config.attribute_count > MAX_ATTRIBUTES {
            return Err(CuResult::INVALID_VALUE);
        }
        let mut cooperative = false;
        for index in 0..usize::try_from(config.attribute_count).unwrap_or(0) {
            cooperative |= check_attribute(&config.attributes.get(index)?)?;
        }
        let ([gx, gy, gz], [bx, by, bz]) = (config.grid, config.block);
        let shape = Shape {
            grid: Dim3::new(gx, gy, gz),
            block: Dim3::new(bx, by, bz),
            dynamic_shared_bytes: config.dynamic_shared_bytes,
            cooperative,
        };
        launch(function, &shape, config.stream, params, extra)
    }
}
