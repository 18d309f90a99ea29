//! MIG: the mode, GPU instances and compute instances, and the devices that they are. A GPU instance
//! has one compute instance at most. What is made and ended is in `cut`.

use gpuzone_nvml_abi::{Answer, INVALID, NOT_FOUND, NOT_SUPPORTED, Out, TOO_SMALL, entry_points};
use gpuzone_sim_device::MigConfig;
use nvml_wrapper_sys::bindings::*;

use crate::state::{Device, Handle};

/// What a GPU can have at most.
const MOST_INSTANCES: u32 = 7;
/// A compute instance's number within its GPU instance.
const COMPUTE_INSTANCE: u32 = 0;
/// A GPU instance's handle is its device's, and a compute instance's as well, apart by these.
pub(crate) const GPU_INSTANCE: Handle = 1;
pub(crate) const COMPUTE: Handle = 2;

/// A GPU that can be cut.
pub(crate) fn capable(device: Handle) -> Answer<Device> {
    let device = Device::of(device)?;
    let whole = device.instance().is_none();
    if whole && device.gpu().config().mig_capable { Ok(device) } else { Err(NOT_SUPPORTED) }
}

/// A GPU in MIG mode.
pub(crate) fn in_mig_mode(device: Handle) -> Answer<Device> {
    let device = capable(device)?;
    device.gpu().config().mig.as_ref().ok_or(NOT_SUPPORTED)?;
    Ok(device)
}

fn instances(device: &Device) -> impl Iterator<Item = &MigConfig> {
    device.gpu().config().mig.iter().flatten()
}

/// NVML's number, and the GPU's, of the compute instance with so many slices.
pub(crate) const fn compute_profile(slices: u32) -> u32 {
    match slices {
        1 => NVML_COMPUTE_INSTANCE_PROFILE_1_SLICE,
        2 => NVML_COMPUTE_INSTANCE_PROFILE_2_SLICE,
        3 => NVML_COMPUTE_INSTANCE_PROFILE_3_SLICE,
        4 => NVML_COMPUTE_INSTANCE_PROFILE_4_SLICE,
        6 => NVML_COMPUTE_INSTANCE_PROFILE_6_SLICE,
        7 => NVML_COMPUTE_INSTANCE_PROFILE_7_SLICE,
        _ => NVML_COMPUTE_INSTANCE_PROFILE_8_SLICE,
    }
}

/// The GPU instance whose handle, and `kind`, this is.
pub(crate) fn instance_of(handle: Handle, kind: Handle) -> Answer<Device> {
    let handle = handle.checked_sub(kind).ok_or(INVALID)?;
    let device = if kind == COMPUTE { Device::of(handle)? } else { Device::part(handle)? };
    device.instance().ok_or(INVALID)?;
    Ok(device)
}

pub(crate) fn mig(device: &Device) -> Answer<&MigConfig> {
    device.instance().map(|(_, mig)| mig).ok_or(INVALID)
}

pub(crate) const fn megabytes(bytes: u64) -> u64 {
    bytes >> 20
}

entry_points! {
    fn nvmlDeviceGetMigMode(device: Handle, current: Out<u32>, pending: Out<u32>) {
        let device = Device::of(device)?;
        let config = device.gpu().config();
        if !config.mig_capable || device.instance().is_some() {
            return Err(NOT_SUPPORTED);
        }
        let mode = match config.mig {
            Some(_) => NVML_DEVICE_MIG_ENABLE,
            None => NVML_DEVICE_MIG_DISABLE,
        };
        current.put(mode)?;
        pending.put(mode)
    }

    fn nvmlDeviceGetMaxMigDeviceCount(device: Handle, count: Out<u32>) {
        let device = Device::of(device)?;
        count.put(if device.whole().config().mig_capable { MOST_INSTANCES } else { 0 })
    }

    fn nvmlDeviceGetMigDeviceHandleByIndex(device: Handle, index: u32, instance: Out<Handle>) {
        let device = in_mig_mode(device).map_err(|_| NOT_FOUND)?;
        let index = usize::try_from(index).map_err(|_| INVALID)?;
        let mut devices = instances(&device).filter(|mig| mig.compute_slices > 0);
        let found = devices.nth(index).ok_or(NOT_FOUND)?;
        instance.put(device.instance_handle(found.gpu_instance)?)
    }

    fn nvmlDeviceIsMigDeviceHandle(device: Handle, is: Out<u32>) {
        is.put(u32::from(Device::of(device)?.instance().is_some()))
    }

    fn nvmlDeviceGetDeviceHandleFromMigDeviceHandle(instance: Handle, device: Out<Handle>) {
        let instance = Device::of(instance)?;
        mig(&instance)?;
        device.put(instance.whole_handle())
    }

    fn nvmlDeviceGetGpuInstanceId(instance: Handle, id: Out<u32>) {
        id.put(mig(&Device::of(instance)?)?.gpu_instance)
    }

    fn nvmlDeviceGetComputeInstanceId(instance: Handle, id: Out<u32>) {
        mig(&Device::of(instance)?)?;
        id.put(COMPUTE_INSTANCE)
    }

    fn nvmlDeviceGetAttributes_v2(device: Handle, attributes: Out<nvmlDeviceAttributes_t>) {
        let device = Device::of(device)?;
        let config = device.gpu().config();
        let (gpu, compute) = match device.instance() {
            Some((_, mig)) => (mig.slices, mig.compute_slices),
            None => return Err(NOT_SUPPORTED),
        };
        attributes.put(nvmlDeviceAttributes_t {
            multiprocessorCount: config.multiprocessors,
            sharedCopyEngineCount: 1,
            sharedDecoderCount: 0,
            sharedEncoderCount: 0,
            sharedJpegCount: 0,
            sharedOfaCount: 0,
            gpuInstanceSliceCount: gpu,
            computeInstanceSliceCount: compute,
            memorySizeMB: megabytes(config.memory.get()),
        })
    }

    /// Unlike with other lists, the caller has room for as many as the profile allows.
    fn nvmlDeviceGetGpuInstances(
        device: Handle,
        profile: u32,
        list: Out<Handle>,
        count: Out<u32>,
    ) {
        let device = in_mig_mode(device)?;
        let mut found = 0;
        for mig in instances(&device).filter(|mig| mig.kind == profile) {
            list.put_at(found, device.instance_handle(mig.gpu_instance)? + GPU_INSTANCE)?;
            found += 1;
        }
        count.put(u32::try_from(found).map_err(|_| INVALID)?)
    }

    fn nvmlDeviceGetGpuInstanceById(device: Handle, id: u32, instance: Out<Handle>) {
        let device = in_mig_mode(device)?;
        let found = instances(&device).find(|mig| mig.gpu_instance == id);
        found.ok_or(NOT_FOUND)?;
        instance.put(device.instance_handle(id)? + GPU_INSTANCE)
    }

    fn nvmlGpuInstanceGetInfo(instance: Handle, info: Out<nvmlGpuInstanceInfo_t>) {
        let device = instance_of(instance, GPU_INSTANCE)?;
        let mig = mig(&device)?;
        let (start, size) = mig.placement;
        info.put(nvmlGpuInstanceInfo_t {
            device: device.whole_handle() as nvmlDevice_t,
            id: mig.gpu_instance,
            profileId: mig.kind,
            placement: nvmlGpuInstancePlacement_t { start, size },
        })
    }

    /// One, at most.
    fn nvmlGpuInstanceGetComputeInstances(
        instance: Handle,
        profile: u32,
        list: Out<Handle>,
        count: Out<u32>,
    ) {
        let device = instance_of(instance, GPU_INSTANCE)?;
        let mig = mig(&device)?;
        if mig.compute_slices == 0 || compute_profile(mig.compute_slices) != profile {
            return count.put(0);
        }
        if list.is_null() {
            return Err(TOO_SMALL);
        }
        list.put(device.instance_handle(mig.gpu_instance)? + COMPUTE)?;
        count.put(1)
    }

    fn nvmlGpuInstanceGetComputeInstanceById(instance: Handle, id: u32, compute: Out<Handle>) {
        let device = instance_of(instance, GPU_INSTANCE)?;
        let mig = mig(&device)?;
        if id != COMPUTE_INSTANCE || mig.compute_slices == 0 {
            return Err(NOT_FOUND);
        }
        compute.put(device.instance_handle(mig.gpu_instance)? + COMPUTE)
    }

    fn nvmlComputeInstanceGetInfo_v2(compute: Handle, info: Out<nvmlComputeInstanceInfo_t>) {
        let device = instance_of(compute, COMPUTE)?;
        let mig = mig(&device)?;
        let instance = device.instance_handle(mig.gpu_instance)? + GPU_INSTANCE;
        info.put(nvmlComputeInstanceInfo_t {
            device: device.whole_handle() as nvmlDevice_t,
            gpuInstance: instance as nvmlGpuInstance_t,
            id: COMPUTE_INSTANCE,
            profileId: compute_profile(mig.compute_slices),
            placement: nvmlComputeInstancePlacement_t { start: 0, size: mig.compute_slices },
        })
    }
}
