//! Who uses a GPU.

use std::time::{SystemTime, UNIX_EPOCH};

use gpuzone_sim_device::GpuProcess;
use nvml_wrapper_sys::bindings::*;

use crate::state::{Device, Handle, known};
use gpuzone_nvml_abi::Answer;
use gpuzone_nvml_abi::{Out, entry_points, put_list};

/// No MIG instance.
const NO_INSTANCE: u32 = u32::MAX;

/// The processes with a context; a program that only looks at devices is not one.
fn users(device: Handle) -> Answer<Vec<GpuProcess>> {
    let mut processes = known(Device::of(device)?.gpu().processes())?;
    processes.retain(|process| process.contexts > 0 || !process.used.is_zero());
    Ok(processes)
}

fn microseconds_now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

entry_points! {
    fn nvmlDeviceGetComputeRunningProcesses_v3(
        device: Handle,
        count: Out<u32>,
        infos: Out<nvmlProcessInfo_t>,
    ) {
        let info = |process: GpuProcess| nvmlProcessInfo_t {
            pid: process.pid,
            usedGpuMemory: process.used.get(),
            gpuInstanceId: NO_INSTANCE,
            computeInstanceId: NO_INSTANCE,
        };
        put_list(count, infos, users(device)?.into_iter().map(info).collect())
    }

    /// Nothing is drawn.
    fn nvmlDeviceGetGraphicsRunningProcesses_v3(
        device: Handle,
        count: Out<u32>,
        _infos: Out<nvmlProcessInfo_t>,
    ) {
        Device::of(device)?;
        count.put(0)
    }

    fn nvmlDeviceGetProcessUtilization(
        device: Handle,
        samples: Out<nvmlProcessUtilizationSample_t>,
        count: Out<u32>,
        _since: u64,
    ) {
        let now = microseconds_now();
        let sample = |process: GpuProcess| nvmlProcessUtilizationSample_t {
            pid: process.pid,
            timeStamp: now,
            smUtil: process.utilization_percent,
            memUtil: 0,
            encUtil: 0,
            decUtil: 0,
        };
        put_list(count, samples, users(device)?.into_iter().map(sample).collect())
    }
}
