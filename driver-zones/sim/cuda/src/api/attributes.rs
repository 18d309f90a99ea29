//! What `cuDeviceGetAttribute` answers.

use gpuzone_cuda_abi::{CuResult, DeviceAttribute as A};
use gpuzone_sim_device::GpuConfig;

use crate::Answer;
use crate::function::{
    BLOCKS_PER_MULTIPROCESSOR, MAX_BLOCK, MAX_GRID, REGISTERS, SHARED_PER_BLOCK,
    SHARED_PER_BLOCK_OPT_IN, SHARED_PER_MULTIPROCESSOR, SHARED_RESERVED, THREADS_PER_BLOCK,
    THREADS_PER_MULTIPROCESSOR,
};

/// The value of an attribute; 0 means that the simulated GPU cannot or has not got it.
pub(super) fn attribute(config: &GpuConfig, which: A) -> Answer<i32> {
    if which.0 < 1 || which.name().is_none() {
        return Err(CuResult::INVALID_VALUE);
    }
    let value = launch_limit(which).or_else(|| of_this_gpu(config, which)).unwrap_or(0);
    i32::try_from(value).map_err(|_| CuResult::UNKNOWN)
}

fn launch_limit(which: A) -> Option<u32> {
    Some(match which {
        A::MAX_THREADS_PER_BLOCK => THREADS_PER_BLOCK,
        A::MAX_BLOCK_DIM_X => MAX_BLOCK.x,
        A::MAX_BLOCK_DIM_Y => MAX_BLOCK.y,
        A::MAX_BLOCK_DIM_Z => MAX_BLOCK.z,
        A::MAX_GRID_DIM_X => MAX_GRID.x,
        A::MAX_GRID_DIM_Y => MAX_GRID.y,
        A::MAX_GRID_DIM_Z => MAX_GRID.z,
        A::MAX_SHARED_MEMORY_PER_BLOCK => SHARED_PER_BLOCK,
        A::MAX_SHARED_MEMORY_PER_BLOCK_OPTIN => SHARED_PER_BLOCK_OPT_IN,
        A::MAX_SHARED_MEMORY_PER_MULTIPROCESSOR => SHARED_PER_MULTIPROCESSOR,
        A::RESERVED_SHARED_MEMORY_PER_BLOCK => SHARED_RESERVED,
        A::TOTAL_CONSTANT_MEMORY => 64 << 10,
        A::WARP_SIZE => 32,
        A::MAX_PITCH => 0x7fff_ffff,
        A::MAX_REGISTERS_PER_BLOCK | A::MAX_REGISTERS_PER_MULTIPROCESSOR => REGISTERS,
        A::MAX_THREADS_PER_MULTIPROCESSOR => THREADS_PER_MULTIPROCESSOR,
        A::MAX_BLOCKS_PER_MULTIPROCESSOR => BLOCKS_PER_MULTIPROCESSOR,
        A::TEXTURE_ALIGNMENT => 512,
        A::TEXTURE_PITCH_ALIGNMENT => 32,
        A::GPU_OVERLAP | A::ASYNC_ENGINE_COUNT => 1,
        A::STREAM_PRIORITIES_SUPPORTED
        | A::GLOBAL_L1_CACHE_SUPPORTED
        | A::LOCAL_L1_CACHE_SUPPORTED
        | A::UNIFIED_ADDRESSING
        | A::CAN_MAP_HOST_MEMORY
        | A::UNIFIED_FUNCTION_POINTERS
        | A::COMPUTE_PREEMPTION_SUPPORTED
        | A::MEMORY_POOLS_SUPPORTED
        | A::VIRTUAL_ADDRESS_MANAGEMENT_SUPPORTED
        | A::HOST_REGISTER_SUPPORTED
        | A::COOPERATIVE_LAUNCH => 1,
        A::SINGLE_TO_DOUBLE_PRECISION_PERF_RATIO => 2,
        _ => return None,
    })
}

fn of_this_gpu(config: &GpuConfig, which: A) -> Option<u32> {
    Some(match which {
        A::CLOCK_RATE | A::MEMORY_CLOCK_RATE => config.clock_mhz.saturating_mul(1000),
        A::MULTIPROCESSOR_COUNT => config.multiprocessors,
        A::COMPUTE_CAPABILITY_MAJOR => config.compute_capability.major,
        A::COMPUTE_CAPABILITY_MINOR => config.compute_capability.minor,
        A::PCI_BUS_ID => config.pci.bus().into(),
        A::PCI_DEVICE_ID => config.pci.device().into(),
        A::PCI_DOMAIN_ID => config.pci.domain(),
        A::HOST_NUMA_ID => config.numa_node.unwrap_or(0),
        A::GLOBAL_MEMORY_BUS_WIDTH => 64,
        A::L2_CACHE_SIZE => 8 << 20,
        A::PAGEABLE_MEMORY_ACCESS => u32::from(config.hmm && !crate::hmm::declined()),
        _ => return None,
    })
}
