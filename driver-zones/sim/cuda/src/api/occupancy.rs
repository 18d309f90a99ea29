use gpuzone_cuda_abi::CuResult;

use crate::Answer;
use crate::abi::{Out, Word, entry_points};
use crate::driver::current;
use crate::handles;

/// What a program passes to say how much shared memory a block of some size needs.
type SharedForBlock = Option<extern "C" fn(i32) -> usize>;

fn blocks(
    out: Out<i32>,
    function: Word,
    threads: i32,
    dynamic_shared: usize,
    flags: u32,
) -> Answer {
    out.check()?;
    current()?;
    if flags > 1 {
        return Err(CuResult::INVALID_VALUE);
    }
    let threads = u32::try_from(threads).map_err(|_| CuResult::INVALID_VALUE)?;
    let shared = u64::try_from(dynamic_shared).map_err(|_| CuResult::INVALID_VALUE)?;
    let blocks = handles::function(function)?.blocks_per_multiprocessor(threads, shared)?;
    out.put(i32::try_from(blocks).map_err(|_| CuResult::UNKNOWN)?)
}

fn best(
    min_grid: Out<i32>,
    block: Out<i32>,
    function: Word,
    shared_for_block: SharedForBlock,
    dynamic_shared: usize,
    limit: i32,
) -> Answer {
    min_grid.check()?;
    block.check()?;
    let context = current()?;
    let function = handles::function(function)?;
    let most = function.kernel()?.max_threads_per_block();
    let limit = u32::try_from(limit).map_err(|_| CuResult::INVALID_VALUE)?;
    let most = if limit == 0 { most } else { limit.min(most) };
    let mut found = (0, 0, 0);
    // From large to small, so that of equals the largest block stays.
    for threads in (1..=most).rev().filter(|n| n.is_multiple_of(32) || *n == most) {
        let as_int = i32::try_from(threads).map_err(|_| CuResult::UNKNOWN)?;
        let shared = shared_for_block.map_or(dynamic_shared, |shared| shared(as_int));
        let shared = u64::try_from(shared).map_err(|_| CuResult::INVALID_VALUE)?;
        let blocks = function.blocks_per_multiprocessor(threads, shared)?;
        if blocks * threads > found.0 {
            found = (blocks * threads, blocks, threads);
        }
    }
    let grid = found.1.saturating_mul(context.gpu().config().multiprocessors);
    min_grid.put(i32::try_from(grid).map_err(|_| CuResult::UNKNOWN)?)?;
    block.put(i32::try_from(found.2).map_err(|_| CuResult::UNKNOWN)?)
}

entry_points! {
    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
        count: Out<i32>,
        function: Word,
        threads: i32,
        dynamic_shared: usize,
    ) {
        blocks(count, function, threads, dynamic_shared, 0)
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        count: Out<i32>,
        function: Word,
        threads: i32,
        dynamic_shared: usize,
        flags: u32,
    ) {
        blocks(count, function, threads, dynamic_shared, flags)
    }

    fn cuOccupancyAvailableDynamicSMemPerBlock(
        bytes: Out<usize>,
        function: Word,
        blocks: i32,
        threads: i32,
    ) {
        bytes.check()?;
        current()?;
        let blocks = u32::try_from(blocks).map_err(|_| CuResult::INVALID_VALUE)?;
        let threads = u32::try_from(threads).map_err(|_| CuResult::INVALID_VALUE)?;
        let shared = handles::function(function)?.dynamic_shared_for(blocks, threads)?;
        bytes.put(usize::try_from(shared).map_err(|_| CuResult::UNKNOWN)?)
    }

    fn cuOccupancyMaxPotentialBlockSize(
        min_grid: Out<i32>,
        block: Out<i32>,
        function: Word,
        shared_for_block: SharedForBlock,
        dynamic_shared: usize,
        limit: i32,
    ) {
        best(min_grid, block, function, shared_for_block, dynamic_shared, limit)
    }

    fn cuOccupancyMaxPotentialBlockSizeWithFlags(
        min_grid: Out<i32>,
        block: Out<i32>,
        function: Word,
        shared_for_block: SharedForBlock,
        dynamic_shared: usize,
        limit: i32,
        flags: u32,
    ) {
        if flags > 1 {
            return Err(CuResult::INVALID_VALUE);
        }
        best(min_grid, block, function, shared_for_block, dynamic_shared, limit)
    }
}
