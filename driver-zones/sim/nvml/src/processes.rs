//! Who uses a GPU.

use std::time::{SystemTime, UNIX_EPOCH};

use gpuzone_sim_device::{GpuProcess, MigConfig, SimulatedGpu};
use nvml_wrapper_sys::bindings::*;

use crate::Answer;
use crate::abi::{INVALID, Out, TOO_SMALL, entry_points};
use crate::state::{Device, Handle, known};

/// No MIG instance.
const NO_INSTANCE: u32 = u32::MAX;

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

/// Answers with a list, as NVML does: the caller says in `count` how many fit, and learns how
/// many there are.
fn put_list<T: Copy>(count: Out<u32>, list: Out<T>, items: Vec<T>) -> Answer {
    let room = usize::try_from(count.get()?).map_err(|_| INVALID)?;
    count.put(u32::try_from(items.len()).map_err(|_| INVALID)?)?;
    if items.is_empty() {
        return Ok(());
    }
    if list.is_null() || room < items.len() {
        return Err(TOO_SMALL);
    }
    items.into_iter().enumerate().try_for_each(|(index, item)| list.put_at(index, item))
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
