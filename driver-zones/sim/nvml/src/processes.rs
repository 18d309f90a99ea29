//! Who uses a GPU.

use gpuzone_sim_device::{GpuProcess, MigConfig, SimulatedGpu};
use nvml_wrapper_sys::bindings::*;

use crate::state::{Device, Handle, known};
use gpuzone_nvml_abi::{Answer, NO_INSTANCE, Out, entry_points, microseconds_now, put_list};

/// The processes with a context, and the GPU instance that it is on; a program that only looks at
/// devices is not one.
fn users(device: Handle) -> Answer<Vec<(GpuProcess, u32)>> {
    let device = Device::of(device)?;
    let number = |mig: &MigConfig| mig.gpu_instance;
    let own = device.instance().map_or(NO_INSTANCE, |(_, mig)| number(mig));
    let mut of: Vec<(&SimulatedGpu, u32)> = vec![(device.gpu(), own)];
    let parts = device.gpu().config().mig.iter().flatten().map(number);
    of.extend(device.gpu().instances().iter().zip(parts));
    let mut found = Vec::new();
    for (gpu, instance) in of {
        let processes = known(gpu.processes())?.into_iter();
        let uses = |process: &GpuProcess| process.contexts > 0 || !process.used.is_zero();
        found.extend(processes.filter(uses).map(|process| (process, instance)));
    }
    Ok(found)
}

entry_points! {
    fn nvmlDeviceGetComputeRunningProcesses_v3(
        device: Handle,
        count: Out<u32>,
        infos: Out<nvmlProcessInfo_t>,
    ) {
        let info = |(process, instance): (GpuProcess, u32)| nvmlProcessInfo_t {
            pid: process.pid,
            usedGpuMemory: process.used.get(),
            gpuInstanceId: instance,
            computeInstanceId: if instance == NO_INSTANCE { NO_INSTANCE } else { 0 },
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
        let sample = |(process, _): (GpuProcess, u32)| nvmlProcessUtilizationSample_t {
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
