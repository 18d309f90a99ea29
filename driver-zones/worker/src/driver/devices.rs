use gpuzone_core::{GpuUuid, Grant};
use gpuzone_cuda_abi::{CUdevice, CUuuid, CuResult, DeviceAttribute};
use gpuzone_wire::hello::DeviceInfo;

use super::{Driver, LaunchBounds};

/// A GPU of the lease.
#[derive(Clone, Debug)]
pub struct Device {
    /// The driver's number of it.
    pub ordinal: CUdevice,
    /// What tenants are told of it.
    pub info: DeviceInfo,
    /// Whether the driver copies straight from the host's page tables, so that a copy may still
    /// read its source after the call.
    pub copies_lazily: bool,
    /// What may be launched on it.
    pub bounds: LaunchBounds,
}

/// Why the lease's GPUs are not there.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The driver failed.
    #[error("the driver cannot {action}: {result}")]
    Driver {
        /// What was asked.
        action: &'static str,
        /// Its answer.
        result: CuResult,
    },
    /// A GPU is missing.
    #[error(
        "GPU {0} of the lease is not among those that the driver shows; it may have fallen off the bus, or the CUDA and the NVML library are of two drivers"
    )]
    Missing(GpuUuid),
    /// Its kernels reach all memory of whoever runs them.
    #[error(
        "GPU {0} lets kernels reach all memory of the process that runs them, so that a tenant's kernel would reach the worker's own; load the module nvidia_uvm with uvm_disable_hmm=1, and where the GPU shares the host's page tables give it out whole"
    )]
    HostInReach(GpuUuid),
}

fn ask(action: &'static str, result: CuResult) -> Result<(), DeviceError> {
    result.ok().map_err(|result| DeviceError::Driver { action, result })
}

/// Initialises the driver and finds the GPUs of `grants`; also tells the driver's version.
///
/// # Errors
/// When the driver fails or lacks one of them.
pub fn devices(driver: &Driver, grants: &[Grant]) -> Result<(i32, Vec<Device>), DeviceError> {
    let (mut version, mut count) = (0, 0);
    // SAFETY: the driver's functions, with valid places for what they answer.
    unsafe {
        ask("initialise", (driver.init)(0))?;
        ask("tell its version", (driver.version)(&raw mut version))?;
        ask("count its GPUs", (driver.device_count)(&raw mut count))?;
    }
    let mut present = Vec::new();
    for index in 0..count {
        let (mut ordinal, mut uuid) = (0, CUuuid::default());
        // SAFETY: as above.
        unsafe {
            ask("name a GPU", (driver.device_get)(&raw mut ordinal, index))?;
            ask("tell a GPU's UUID", (driver.device_uuid)(&raw mut uuid, ordinal))?;
        }
        present.push((uuid.bytes, ordinal));
    }
    let of_grant = |grant: &Grant| {
        let found = present.iter().find(|(uuid, _)| uuid == grant.gpu.as_bytes());
        let (_, ordinal) = found.ok_or(DeviceError::Missing(grant.gpu))?;
        device(driver, *ordinal, grant)
    };
    let devices = grants.iter().map(of_grant).collect::<Result<_, _>>()?;
    Ok((version, devices))
}

fn device(driver: &Driver, ordinal: CUdevice, grant: &Grant) -> Result<Device, DeviceError> {
    let mut name = [0u8; 256];
    let mut memory = 0;
    // SAFETY: as above; the name's length leaves room for its end.
    unsafe {
        let named = (driver.device_name)(name.as_mut_ptr().cast(), 255, ordinal);
        ask("tell a GPU's name", named)?;
        ask("tell a GPU's memory", (driver.device_memory)(&raw mut memory, ordinal))?;
    }
    let name = name.split(|byte| *byte == 0).next().unwrap_or(&[]);
    let attributes: Vec<(i32, i32)> = DeviceAttribute::ALL
        .iter()
        .filter_map(|attribute| {
            let mut value = 0;
            // SAFETY: as above. An attribute that this driver does not know is left out.
            let asked = unsafe { (driver.device_attribute)(&raw mut value, attribute.0, ordinal) };
            asked.is_success().then_some((attribute.0, value))
        })
        .collect();
    // Kernels are the tenant's, and the process is this one.
    if attributes.contains(&(DeviceAttribute::PAGEABLE_MEMORY_ACCESS.0, 1)) {
        return Err(DeviceError::HostInReach(grant.gpu));
    }
    let lazy = DeviceAttribute::PAGEABLE_MEMORY_ACCESS_USES_HOST_PAGE_TABLES.0;
    Ok(Device {
        ordinal,
        copies_lazily: attributes.contains(&(lazy, 1)),
        bounds: LaunchBounds::of(&attributes),
        info: DeviceInfo {
            name: String::from_utf8_lossy(name).into_owned(),
            uuid: *grant.gpu.as_bytes(),
            memory: grant.memory.get().min(memory as u64),
            attributes: attributes.into_iter().map(shown).collect(),
        },
    })
}

/// What a tenant is told: abilities that the mediated path does not carry are absent, so that
/// programs take the road that it does carry.
fn shown((number, value): (i32, i32)) -> (i32, i32) {
    use DeviceAttribute as A;
    let absent = [
        A::UNIFIED_ADDRESSING,
        A::COMPUTE_MODE,
        A::MANAGED_MEMORY,
        A::HOST_NATIVE_ATOMIC_SUPPORTED,
        A::PAGEABLE_MEMORY_ACCESS,
        A::CONCURRENT_MANAGED_ACCESS,
        A::CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM,
        A::CAN_USE_STREAM_MEM_OPS_V1,
        A::CAN_USE_64_BIT_STREAM_MEM_OPS_V1,
        A::CAN_USE_STREAM_WAIT_VALUE_NOR_V1,
        A::COOPERATIVE_MULTI_DEVICE_LAUNCH,
        A::CAN_FLUSH_REMOTE_WRITES,
        A::PAGEABLE_MEMORY_ACCESS_USES_HOST_PAGE_TABLES,
        A::DIRECT_MANAGED_MEM_ACCESS_FROM_HOST,
        A::HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED,
        A::GENERIC_COMPRESSION_SUPPORTED,
        A::GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED,
        A::SPARSE_CUDA_ARRAY_SUPPORTED,
        A::READ_ONLY_HOST_REGISTER_SUPPORTED,
        A::TIMELINE_SEMAPHORE_INTEROP_SUPPORTED,
        A::GPU_DIRECT_RDMA_SUPPORTED,
        A::GPU_DIRECT_RDMA_FLUSH_WRITES_OPTIONS,
        A::GPU_DIRECT_RDMA_WRITES_ORDERING,
        A::MEMPOOL_SUPPORTED_HANDLE_TYPES,
        A::DEFERRED_MAPPING_CUDA_ARRAY_SUPPORTED,
        A::CAN_USE_64_BIT_STREAM_MEM_OPS,
        A::CAN_USE_STREAM_WAIT_VALUE_NOR,
        A::DMA_BUF_SUPPORTED,
        A::IPC_EVENT_SUPPORTED,
        A::HANDLE_TYPE_FABRIC_SUPPORTED,
        A::UNIFIED_FUNCTION_POINTERS,
        A::NUMA_CONFIG,
        A::MULTICAST_SUPPORTED,
        A::MPS_ENABLED,
        A::D3D12_CIG_SUPPORTED,
        A::MEM_DECOMPRESS_ALGORITHM_MASK,
        A::MEM_DECOMPRESS_MAXIMUM_LENGTH,
        A::VULKAN_CIG_SUPPORTED,
        A::HOST_NUMA_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED,
        A::HOST_NUMA_MEMORY_POOLS_SUPPORTED,
        A::HOST_NUMA_MULTINODE_IPC_SUPPORTED,
        A::HOST_MEMORY_POOLS_SUPPORTED,
        A::HOST_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED,
        A::HOST_ALLOC_DMA_BUF_SUPPORTED,
    ];
    if absent.contains(&DeviceAttribute(number)) { (number, 0) } else { (number, value) }
}

#[cfg(test)]
mod tests {
    use gpuzone_core::{ComputeShare, MemoryBytes};

    use super::*;

    unsafe extern "C" fn one(place: *mut i32) -> CuResult {
        // SAFETY: the worker gives a place for the answer.
        unsafe { *place = 1 };
        CuResult::SUCCESS
    }

    unsafe extern "C" fn reaches(place: *mut i32, which: i32, _: CUdevice) -> CuResult {
        // SAFETY: as above.
        unsafe { *place = i32::from(which == DeviceAttribute::PAGEABLE_MEMORY_ACCESS.0) };
        CuResult::SUCCESS
    }

    #[test]
    fn a_gpu_whose_kernels_reach_the_worker_serves_nobody() {
        let share = ComputeShare::new(50).expect("a share");
        let (gpu, memory) = (GpuUuid::from_bytes([0; 16]), MemoryBytes::gib(1));
        let grants = [Grant { gpu, memory, share }];
        let fine = Driver { device_count: one, ..Driver::idle() };
        assert_eq!(devices(&fine, &grants).expect("one").1.len(), 1);
        let reaching = Driver { device_attribute: reaches, device_count: one, ..Driver::idle() };
        let refused = devices(&reaching, &grants).expect_err("refused").to_string();
        assert!(refused.contains("uvm_disable_hmm=1"), "{refused}");
    }
}
