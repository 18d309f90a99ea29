//! MIG: the mode, GPU instances and compute instances, and the devices that they are. Each GPU
//! instance has one compute instance. Nothing can be changed: the configuration says what there is.

use gpuzone_sim_device::MigConfig;
use nvml_wrapper_sys::bindings::*;

use crate::Answer;
use crate::abi::{INVALID, Out, Return, TOO_SMALL, entry_points};
use crate::device::NOT_SUPPORTED;
use crate::state::{Device, Handle};

const NOT_FOUND: Return = Return(nvmlReturn_enum_NVML_ERROR_NOT_FOUND);
/// What a GPU can have at most.
const MOST_INSTANCES: u32 = 7;
/// A compute instance's number within its GPU instance.
const COMPUTE_INSTANCE: u32 = 0;
/// A GPU instance's handle is its device's, and a compute instance's as well, apart by these.
const GPU_INSTANCE: Handle = 1;
const COMPUTE: Handle = 2;

/// A GPU, and its instances, where it is in MIG mode.
fn in_mig_mode(device: Handle) -> Answer<Device> {
    let device = Device::of(device)?;
    let whole = device.instance().is_none();
    if !whole || !device.gpu().config().mig_capable {
        return Err(NOT_SUPPORTED);
    }
    device.gpu().config().mig.as_ref().ok_or(NOT_FOUND)?;
    Ok(device)
}

fn instances(device: &Device) -> impl Iterator<Item = (usize, &MigConfig)> {
    device.gpu().config().mig.iter().flatten().enumerate()
}

/// NVML's number of the profile with so many slices.
fn profile_id(slices: u32) -> u32 {
    match slices {
        1 => NVML_GPU_INSTANCE_PROFILE_1_SLICE,
        2 => NVML_GPU_INSTANCE_PROFILE_2_SLICE,
        3 => NVML_GPU_INSTANCE_PROFILE_3_SLICE,
        4 => NVML_GPU_INSTANCE_PROFILE_4_SLICE,
        6 => NVML_GPU_INSTANCE_PROFILE_6_SLICE,
        7 => NVML_GPU_INSTANCE_PROFILE_7_SLICE,
        _ => NVML_GPU_INSTANCE_PROFILE_8_SLICE,
    }
}

/// The MIG device whose handle, and `kind`, this is.
fn instance_of(handle: Handle, kind: Handle) -> Answer<Device> {
    let device = Device::of(handle.checked_sub(kind).ok_or(INVALID)?)?;
    device.instance().ok_or(INVALID)?;
    Ok(device)
}

fn mig(device: &Device) -> Answer<&MigConfig> {
    device.instance().map(|(_, mig)| mig).ok_or(INVALID)
}

const fn megabytes(bytes: u64) -> u64 {
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
        let device = in_mig_mode(device)?;
        let index = usize::try_from(index).map_err(|_| INVALID)?;
        instances(&device).nth(index).ok_or(NOT_FOUND)?;
        instance.put(device.instance_handle(index))
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

    fn nvmlDeviceGetGpuInstanceProfileInfo(
        device: Handle,
        profile: u32,
        info: Out<nvmlGpuInstanceProfileInfo_t>,
    ) {
        let device = in_mig_mode(device)?;
        let config = device.gpu().config();
        let slices = (1..=MOST_INSTANCES).find(|slices| profile_id(*slices) == profile);
        let slices = slices.ok_or(NOT_SUPPORTED)?;
        let memory = config.memory.get() / 8 * u64::from(slices.next_power_of_two());
        info.put(nvmlGpuInstanceProfileInfo_t {
            id: profile,
            isP2pSupported: 0,
            sliceCount: slices,
            instanceCount: MOST_INSTANCES / slices,
            multiprocessorCount: (config.multiprocessors * slices / MOST_INSTANCES).max(1),
            copyEngineCount: 1,
            decoderCount: 0,
            encoderCount: 0,
            jpegCount: 0,
            ofaCount: 0,
            memorySizeMB: megabytes(memory),
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
        let of_profile = instances(&device).filter(|(_, mig)| profile_id(mig.slices) == profile);
        let mut found = 0;
        for (index, _) in of_profile {
            list.put_at(found, device.instance_handle(index) + GPU_INSTANCE)?;
            found += 1;
        }
        count.put(u32::try_from(found).map_err(|_| INVALID)?)
    }

    fn nvmlDeviceGetGpuInstanceById(device: Handle, id: u32, instance: Out<Handle>) {
        let device = in_mig_mode(device)?;
        let found = instances(&device).find(|(_, mig)| mig.gpu_instance == id);
        let (index, _) = found.ok_or(NOT_FOUND)?;
        instance.put(device.instance_handle(index) + GPU_INSTANCE)
    }

    fn nvmlGpuInstanceGetInfo(instance: Handle, info: Out<nvmlGpuInstanceInfo_t>) {
        let device = instance_of(instance, GPU_INSTANCE)?;
        let mig = mig(&device)?;
        let (start, size) = mig.placement;
        info.put(nvmlGpuInstanceInfo_t {
            device: device.whole_handle() as nvmlDevice_t,
            id: mig.gpu_instance,
            profileId: profile_id(mig.slices),
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
        let (index, mig) = device.instance().ok_or(INVALID)?;
        if profile_id(mig.compute_slices) != profile {
            return count.put(0);
        }
        if list.is_null() {
            return Err(TOO_SMALL);
        }
        list.put(device.instance_handle(index) + COMPUTE)?;
        count.put(1)
    }

    fn nvmlGpuInstanceGetComputeInstanceById(instance: Handle, id: u32, compute: Out<Handle>) {
        let device = instance_of(instance, GPU_INSTANCE)?;
        let (index, _) = device.instance().ok_or(INVALID)?;
        if id != COMPUTE_INSTANCE {
            return Err(NOT_FOUND);
        }
        compute.put(device.instance_handle(index) + COMPUTE)
    }

    fn nvmlComputeInstanceGetInfo_v2(compute: Handle, info: Out<nvmlComputeInstanceInfo_t>) {
        let device = instance_of(compute, COMPUTE)?;
        let (index, mig) = device.instance().ok_or(INVALID)?;
        info.put(nvmlComputeInstanceInfo_t {
            device: device.whole_handle() as nvmlDevice_t,
            gpuInstance: (device.instance_handle(index) + GPU_INSTANCE) as nvmlGpuInstance_t,
            id: COMPUTE_INSTANCE,
            profileId: profile_id(mig.compute_slices),
            placement: nvmlComputeInstancePlacement_t { start: 0, size: mig.compute_slices },
        })
    }
}
