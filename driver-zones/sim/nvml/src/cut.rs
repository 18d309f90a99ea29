//! What a GPU can be cut into, and the cutting: GPU instances and compute instances, as NVML's
//! documentation has it. Profiles and their places are known whether or not MIG mode is on.

use gpuzone_nvml_abi::{
    Answer, INVALID, NOT_FOUND, NOT_SUPPORTED, Out, Return, UNKNOWN, VERSION_MISMATCH,
    entry_points, field, structure_version,
};
use gpuzone_sim_device::{CutError, MigKind};
use nvml_wrapper_sys::bindings::*;

use crate::mig::{
    COMPUTE, GPU_INSTANCE, capable, compute_profile, in_mig_mode, instance_of, megabytes, mig,
};
use crate::state::{Device, Handle};

const IN_USE: Return = Return(nvmlReturn_enum_NVML_ERROR_IN_USE);
const NO_ROOM: Return = Return(nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_RESOURCES);
const GPU_PROFILE_V2: u32 = structure_version(size_of::<nvmlGpuInstanceProfileInfo_v2_t>(), 2);
/// The compute slices of a GPU.
const SLICES: u32 = 7;

fn done<T>(result: Result<T, CutError>) -> Answer<T> {
    result.map_err(|error| match error {
        CutError::State(_) => UNKNOWN,
        CutError::Whole => NOT_SUPPORTED,
        CutError::Missing => NOT_FOUND,
        CutError::Place => INVALID,
        CutError::NoRoom => NO_ROOM,
        CutError::InUse => IN_USE,
    })
}

fn by_number(number: u32) -> Answer<&'static MigKind> {
    if number >= NVML_GPU_INSTANCE_PROFILE_COUNT {
        return Err(INVALID);
    }
    MigKind::by_number(number).ok_or(NOT_SUPPORTED)
}

fn by_id(id: u32) -> Answer<&'static MigKind> {
    MigKind::by_id(id).ok_or(INVALID)
}

fn profile(device: &Device, kind: &MigKind) -> nvmlGpuInstanceProfileInfo_t {
    let config = device.gpu().config();
    let media = u32::from(kind.media);
    nvmlGpuInstanceProfileInfo_t {
        id: kind.id,
        isP2pSupported: 0,
        sliceCount: kind.slices,
        instanceCount: kind.most,
        multiprocessorCount: (config.multiprocessors * kind.slices / SLICES).max(1),
        copyEngineCount: kind.slices,
        decoderCount: media,
        encoderCount: 0,
        jpegCount: media,
        ofaCount: media,
        memorySizeMB: megabytes(kind.memory(config).get()),
    }
}

fn make(device: &Device, id: u32, start: Option<u32>, instance: Out<Handle>) -> Answer {
    if instance.is_null() {
        return Err(INVALID);
    }
    let (kind, index) = (by_id(id)?, device.whole_index());
    let number = done(device.node().make_instance(index, kind, start))?;
    instance.put(device.instance_handle(number)? + GPU_INSTANCE)
}

/// The slices of the compute instance with this number of NVML's, or identifier: they are the same.
fn compute_slices(device: &Device, profile: u32) -> Answer<u32> {
    if profile >= NVML_COMPUTE_INSTANCE_PROFILE_COUNT {
        return Err(INVALID);
    }
    let slices = (1..=mig(device)?.slices).find(|slices| compute_profile(*slices) == profile);
    slices.ok_or(NOT_SUPPORTED)
}

entry_points! {
    fn nvmlDeviceGetGpuInstanceProfileInfo(
        device: Handle,
        number: u32,
        info: Out<nvmlGpuInstanceProfileInfo_t>,
    ) {
        let device = capable(device)?;
        info.put(profile(&device, by_number(number)?))
    }

    fn nvmlDeviceGetGpuInstanceProfileInfoV(
        device: Handle,
        number: u32,
        info: Out<nvmlGpuInstanceProfileInfo_v2_t>,
    ) {
        if info.get()?.version != GPU_PROFILE_V2 {
            return Err(VERSION_MISMATCH);
        }
        let (device, kind) = (capable(device)?, by_number(number)?);
        let of = profile(&device, kind);
        info.put(nvmlGpuInstanceProfileInfo_v2_t {
            version: GPU_PROFILE_V2,
            id: of.id,
            isP2pSupported: of.isP2pSupported,
            sliceCount: of.sliceCount,
            instanceCount: of.instanceCount,
            multiprocessorCount: of.multiprocessorCount,
            copyEngineCount: of.copyEngineCount,
            decoderCount: of.decoderCount,
            encoderCount: of.encoderCount,
            jpegCount: of.jpegCount,
            ofaCount: of.ofaCount,
            memorySizeMB: of.memorySizeMB,
            name: field(&format!("MIG {}", kind.name(device.gpu().config()))),
        })
    }

    /// Without a list, only how many there are. A list has to have room for all.
    fn nvmlDeviceGetGpuInstancePossiblePlacements_v2(
        device: Handle,
        id: u32,
        placements: Out<nvmlGpuInstancePlacement_t>,
        count: Out<u32>,
    ) {
        capable(device)?;
        let kind = by_id(id)?;
        count.put(u32::try_from(kind.starts.len()).map_err(|_| INVALID)?)?;
        if placements.is_null() {
            return Ok(());
        }
        let places = kind.starts.iter().map(|start| (*start, kind.size)).enumerate();
        for (index, (start, size)) in places {
            placements.put_at(index, nvmlGpuInstancePlacement_t { start, size })?;
        }
        Ok(())
    }

    fn nvmlDeviceGetGpuInstanceRemainingCapacity(device: Handle, id: u32, count: Out<u32>) {
        let device = in_mig_mode(device)?;
        count.put(done(device.node().remaining(device.whole_index(), by_id(id)?))?)
    }

    fn nvmlDeviceCreateGpuInstance(device: Handle, id: u32, instance: Out<Handle>) {
        make(&in_mig_mode(device)?, id, None, instance)
    }

    fn nvmlDeviceCreateGpuInstanceWithPlacement(
        device: Handle,
        id: u32,
        placement: Out<nvmlGpuInstancePlacement_t>,
        instance: Out<Handle>,
    ) {
        let (device, at) = (in_mig_mode(device)?, placement.get()?);
        if by_id(id)?.size != at.size {
            return Err(INVALID);
        }
        make(&device, id, Some(at.start), instance)
    }

    fn nvmlGpuInstanceDestroy(instance: Handle) {
        let device = instance_of(instance, GPU_INSTANCE)?;
        let number = mig(&device)?.gpu_instance;
        done(device.node().end_instance(device.whole_index(), number))
    }

    fn nvmlGpuInstanceGetComputeInstanceProfileInfo(
        instance: Handle,
        number: u32,
        engines: u32,
        info: Out<nvmlComputeInstanceProfileInfo_t>,
    ) {
        let device = instance_of(instance, GPU_INSTANCE)?;
        if engines != NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED {
            return Err(INVALID);
        }
        let slices = compute_slices(&device, number)?;
        let multiprocessors = device.whole().config().multiprocessors;
        info.put(nvmlComputeInstanceProfileInfo_t {
            id: number,
            sliceCount: slices,
            // As the head of this file says.
            instanceCount: 1,
            multiprocessorCount: (multiprocessors * slices / SLICES).max(1),
            sharedCopyEngineCount: slices,
            sharedDecoderCount: 0,
            sharedEncoderCount: 0,
            sharedJpegCount: 0,
            sharedOfaCount: 0,
        })
    }

    fn nvmlGpuInstanceCreateComputeInstance(instance: Handle, id: u32, compute: Out<Handle>) {
        let device = instance_of(instance, GPU_INSTANCE)?;
        if compute.is_null() {
            return Err(INVALID);
        }
        let (number, slices) = (mig(&device)?.gpu_instance, compute_slices(&device, id)?);
        done(device.node().make_compute(device.whole_index(), number, slices))?;
        compute.put(device.instance_handle(number)? + COMPUTE)
    }

    fn nvmlComputeInstanceDestroy(compute: Handle) {
        let device = instance_of(compute, COMPUTE)?;
        let number = mig(&device)?.gpu_instance;
        done(device.node().end_compute(device.whole_index(), number))
    }
}
