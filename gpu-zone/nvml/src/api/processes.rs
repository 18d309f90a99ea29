//! Who uses a GPU: the lease's own processes.

use gpuzone_nvml_abi::bindings::*;
use gpuzone_nvml_abi::{
    Answer, NO_INSTANCE, NOT_SUPPORTED, Out, entry_points, microseconds_now, put_list,
};

use crate::state::{Device, Handle};

/// The processes that have memory on the GPU, and how much: with a context each has some.
fn users(device: Handle) -> Answer<Vec<(u32, u64, Option<u32>)>> {
    let device = Device::of(device)?;
    let of_gpu = device.view.processes.iter().filter_map(|process| {
        let used = process.used.get(device.index).copied().filter(|used| *used > 0)?;
        let busy = process.busy.get(device.index).copied().flatten();
        Some((process.pid, used, busy))
    });
    Ok(of_gpu.collect())
}

fn compute(device: Handle, count: Out<u32>, infos: Out<nvmlProcessInfo_t>) -> Answer {
    let info = |(pid, used, _): (u32, u64, Option<u32>)| nvmlProcessInfo_t {
        pid,
        usedGpuMemory: used,
        gpuInstanceId: NO_INSTANCE,
        computeInstanceId: NO_INSTANCE,
    };
    put_list(count, infos, users(device)?.into_iter().map(info).collect())
}

fn none(device: Handle, count: Out<u32>) -> Answer {
    Device::of(device)?;
    count.put(0)
}

entry_points! {
    fn nvmlDeviceGetComputeRunningProcesses_v3(
        device: Handle,
        count: Out<u32>,
        infos: Out<nvmlProcessInfo_t>,
    ) {
        compute(device, count, infos)
    }

    /// Its structure is that of the third version.
    fn nvmlDeviceGetComputeRunningProcesses_v2(
        device: Handle,
        count: Out<u32>,
        infos: Out<nvmlProcessInfo_t>,
    ) {
        compute(device, count, infos)
    }

    /// A lease draws nothing.
    fn nvmlDeviceGetGraphicsRunningProcesses_v3(
        device: Handle,
        count: Out<u32>,
        _infos: Out<nvmlProcessInfo_t>,
    ) {
        none(device, count)
    }

    fn nvmlDeviceGetGraphicsRunningProcesses_v2(
        device: Handle,
        count: Out<u32>,
        _infos: Out<nvmlProcessInfo_t>,
    ) {
        none(device, count)
    }

    /// No lease's process is a client of MPS.
    fn nvmlDeviceGetMPSComputeRunningProcesses_v3(
        device: Handle,
        count: Out<u32>,
        _infos: Out<nvmlProcessInfo_t>,
    ) {
        none(device, count)
    }

    /// What is not measured (memory, encoder, decoder) is shown as 0.
    fn nvmlDeviceGetProcessUtilization(
        device: Handle,
        samples: Out<nvmlProcessUtilizationSample_t>,
        count: Out<u32>,
        _since: u64,
    ) {
        let now = microseconds_now();
        let sample = |(pid, _, busy): (u32, u64, Option<u32>)| {
            Ok(nvmlProcessUtilizationSample_t {
                pid,
                timeStamp: now,
                smUtil: busy.ok_or(NOT_SUPPORTED)?,
                memUtil: 0,
                encUtil: 0,
                decUtil: 0,
            })
        };
        let samples_now = users(device)?.into_iter().map(sample).collect::<Answer<Vec<_>>>()?;
        put_list(count, samples, samples_now)
    }
}
