use gpuzone_cuda_abi::{CUfunction, CuResult, DeviceAttribute, FunctionAttribute};
use gpuzone_wire::spec::{FunctionId, Occupancy, OccupancyShared};

use super::function::{function_of, known};
use crate::ffi::{Answer, api, put};
use crate::state::{State, with};

/// What a program passes to say how much shared memory a block of some size needs.
type SharedForBlock = Option<unsafe extern "C" fn(i32) -> usize>;

fn occupancy(
    blocks: *mut i32,
    function: CUfunction,
    block: i32,
    shared: usize,
    flags: u32,
) -> Answer {
    with(|state| put(blocks, ask(state, function, block, shared, flags)?))
}

/// How many blocks of this kernel run on the whole GPU at once.
pub(super) fn at_once(
    state: &mut State,
    function: FunctionId,
    threads: u64,
    shared: u32,
) -> Answer<u64> {
    let known = known(state, function)?;
    let context = known.context;
    let device = state.contexts.get(&context).ok_or(CuResult::INVALID_CONTEXT)?.device;
    let processors = state.attribute(device, DeviceAttribute::MULTIPROCESSOR_COUNT)?;
    let block = i32::try_from(threads).map_err(|_| CuResult::INVALID_VALUE)?;
    let request = Occupancy { function, block, dynamic_shared: shared.into(), flags: 0 };
    let each = state.call(context, &request)?.blocks;
    let number = |value: i32| u64::try_from(value).unwrap_or(0);
    Ok(number(each) * number(processors))
}

fn ask(
    state: &mut State,
    function: CUfunction,
    block: i32,
    shared: usize,
    flags: u32,
) -> Answer<i32> {
    let id = function_of(state, function)?;
    let context = known(state, id)?.context;
    let request = Occupancy { function: id, block, dynamic_shared: shared as u64, flags };
    Ok(state.call(context, &request)?.blocks)
}

/// A kernel's most threads, those of a warp, and the GPU's multiprocessors.
fn bounds(state: &mut State, function: CUfunction) -> Answer<[i32; 3]> {
    let id = function_of(state, function)?;
    let known = known(state, id)?;
    let at = usize::try_from(FunctionAttribute::MAX_THREADS_PER_BLOCK.0).unwrap_or(0);
    let most = *known.attributes.get(at).ok_or(CuResult::INVALID_VALUE)?;
    let context = state.contexts.get(&known.context).ok_or(CuResult::INVALID_CONTEXT)?;
    let warp = state.attribute(context.device, DeviceAttribute::WARP_SIZE)?.max(1);
    let processors = state.attribute(context.device, DeviceAttribute::MULTIPROCESSOR_COUNT)?;
    Ok([most, warp, processors])
}

/// The block size with which most threads run at once, the largest of them, and how many blocks
/// fill the GPU then.
fn best(
    function: CUfunction,
    shared_for_block: SharedForBlock,
    shared: usize,
    limit: i32,
    flags: u32,
) -> Answer<(i32, i32)> {
    if limit < 0 || flags > 1 {
        return Err(CuResult::INVALID_VALUE);
    }
    let [most, warp, processors] = with(|state| bounds(state, function))?;
    let most = if limit == 0 { most } else { limit.min(most) };
    let (mut found, mut threads) = ((0, 0, 0), most);
    while threads > 0 {
        // SAFETY: the program's own function, as it gave it, called without our lock.
        let shared = shared_for_block.map_or(shared, |ask| unsafe { ask(threads) });
        let blocks = with(|state| ask(state, function, threads, shared, flags))?;
        if blocks.saturating_mul(threads) > found.0 {
            found = (blocks.saturating_mul(threads), blocks, threads);
        }
        // From large to small, in whole warps.
        threads = (threads - 1) / warp * warp;
    }
    let (_, blocks, threads) = found;
    Ok((blocks.saturating_mul(processors), threads))
}

api! {
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

    fn cuOccupancyMaxPotentialBlockSize(
        grid: *mut i32, block: *mut i32, function: CUfunction,
        shared_for_block: SharedForBlock, shared: usize, limit: i32,
    ) {
        let (blocks, threads) = best(function, shared_for_block, shared, limit, 0)?;
        put(grid, blocks)?;
        put(block, threads)
    }

    fn cuOccupancyMaxPotentialBlockSizeWithFlags(
        grid: *mut i32, block: *mut i32, function: CUfunction,
        shared_for_block: SharedForBlock, shared: usize, limit: i32, flags: u32,
    ) {
        let (blocks, threads) = best(function, shared_for_block, shared, limit, flags)?;
        put(grid, blocks)?;
        put(block, threads)
    }

    fn cuOccupancyAvailableDynamicSMemPerBlock(
        bytes: *mut usize, function: CUfunction, blocks: i32, block: i32,
    ) {
        with(|state| {
            let id = function_of(state, function)?;
            let context = known(state, id)?.context;
            let request = OccupancyShared { function: id, blocks, block };
            let reply = state.call(context, &request)?;
            put(bytes, usize::try_from(reply.bytes).unwrap_or(usize::MAX))
        })
    }
}
