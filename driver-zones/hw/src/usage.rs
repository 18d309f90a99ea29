use gpuzone_core::{GpuUuid, MemoryBytes};
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;

use crate::{NvmlLibrary, UseError};

/// How a GPU is used at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuUse {
    /// Memory that is taken, by whomever.
    pub used: MemoryBytes,
    /// The part of the last second or so in which kernels ran, in per cent; `None` where the
    /// driver does not measure it.
    pub utilization_percent: Option<u32>,
    /// Processes with a compute context.
    pub processes: Vec<ProcessUse>,
}

/// What one process takes of a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessUse {
    /// Its identifier, as the driver sees it.
    pub pid: u32,
    /// Memory it takes; `None` where the driver does not tell.
    pub used: Option<MemoryBytes>,
}

impl NvmlLibrary {
    /// How a GPU is used now.
    ///
    /// # Errors
    /// When the GPU is not there, or NVML does not say what its memory holds.
    pub fn gpu_use(&self, gpu: GpuUuid) -> Result<GpuUse, UseError> {
        let query = |what| move |e: NvmlError| UseError::Query { what, gpu, source: e.into() };
        let device = self.nvml.device_by_uuid(gpu.to_string()).map_err(|error| match error {
            NvmlError::NotFound | NvmlError::InvalidArg | NvmlError::GpuLost => {
                UseError::UnknownGpu(gpu)
            }
            other => query("handle")(other),
        })?;
        let memory = device.memory_info().map_err(query("memory"))?;
        let processes = device.running_compute_processes().map_err(query("list of processes"))?;
        let utilization_percent = match device.utilization_rates() {
            Ok(rates) => Some(rates.gpu.min(100)),
            Err(NvmlError::NotSupported | NvmlError::FailedToLoadSymbol(_)) => None,
            Err(error) => return Err(query("utilisation")(error)),
        };
        let process = |info: nvml_wrapper::struct_wrappers::device::ProcessInfo| ProcessUse {
            pid: info.pid,
            used: match info.used_gpu_memory {
                UsedGpuMemory::Used(bytes) => Some(MemoryBytes::saturating(bytes)),
                UsedGpuMemory::Unavailable => None,
            },
        };
        Ok(GpuUse {
            used: MemoryBytes::saturating(memory.used),
            utilization_percent,
            processes: processes.into_iter().map(process).collect(),
        })
    }
}
