//! The MIG instances of a simulated GPU.

use gpuzone_core::{GpuUuid, MemoryBytes, MigProfile};
use serde::Deserialize;

use super::error::Problem;
use super::raw::memory;
use super::{GpuConfig, MigKind};

/// A GPU's memory is cut into so many slices, as on NVIDIA's.
pub(super) const MEMORY_SLICES: u64 = 8;
/// And its compute.
const COMPUTE_SLICES: u32 = 7;
/// NVML's name field has room for the GPU's name, " MIG " and a profile.
const MAX_NAME: usize = 60;

/// A simulated GPU instance, and the one compute instance in it, which is all of it or a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigConfig {
    /// Identifier: configured, or derived from the GPU's and its place.
    pub uuid: GpuUuid,
    /// What it is called by size.
    pub profile: MigProfile,
    /// Its memory.
    pub memory: MemoryBytes,
    /// How many compute slices its GPU instance has.
    pub slices: u32,
    /// How many of those its compute instance has; fewer mean that it shares its GPU instance's
    /// memory, and 0 that there is none, and so no MIG device.
    pub compute_slices: u32,
    /// The first memory slice that it takes, and how many.
    pub placement: (u32, u32),
    /// Number of its GPU instance.
    pub gpu_instance: u32,
    /// Which kind it is ([`MigKind::id`]).
    pub kind: u32,
}

impl MigConfig {
    /// A GPU instance of `gpu` with a number, and without a compute instance yet.
    pub(crate) fn made(gpu: &GpuConfig, kind: &MigKind, start: u32, number: u32) -> Option<Self> {
        let last = u8::try_from(number.checked_sub(1)?).ok()?;
        Some(Self {
            uuid: derived(gpu.uuid, last),
            profile: kind.name(gpu).parse().ok()?,
            memory: kind.memory(gpu),
            slices: kind.slices,
            compute_slices: 0,
            placement: (start, kind.size),
            gpu_instance: number,
            kind: kind.id,
        })
    }
}

#[derive(Deserialize)]
pub(super) struct RawInstance {
    profile: String,
    memory: Option<String>,
    uuid: Option<String>,
    compute_slices: Option<u32>,
}

/// The instances of `gpu`, as far as it has room for them.
pub(super) fn instances(
    gpu: &GpuConfig,
    raw: &[RawInstance],
) -> Result<Vec<MigConfig>, (&'static str, Problem)> {
    if !gpu.mig_capable {
        return Err(("mig", Problem::NotMigCapable));
    }
    if gpu.name.len() > MAX_NAME {
        return Err(("name", Problem::Text(MAX_NAME)));
    }
    let (mut made, mut start, mut compute) = (Vec::<MigConfig>::new(), 0, 0);
    for (number, raw) in (0..).zip(raw) {
        let instance = instance(gpu, raw, number, start).map_err(|problem| ("mig", problem))?;
        if made.iter().any(|other| other.uuid == instance.uuid) {
            return Err(("mig", Problem::DuplicateUuid));
        }
        start += instance.placement.1;
        compute += instance.slices;
        if u64::from(start) > MEMORY_SLICES || compute > COMPUTE_SLICES {
            return Err(("mig", Problem::Overfull));
        }
        made.push(instance);
    }
    Ok(made)
}

fn instance(
    gpu: &GpuConfig,
    raw: &RawInstance,
    number: u8,
    start: u32,
) -> Result<MigConfig, Problem> {
    let profile: MigProfile = raw.profile.parse()?;
    let slices = profile.slices();
    let slice = gpu.memory.get() / MEMORY_SLICES;
    let memory = match &raw.memory {
        Some(text) => memory(text)?,
        // As many slices of memory as of compute: of a whole GPU, all.
        None if slices >= COMPUTE_SLICES => gpu.memory,
        None => MemoryBytes::saturating(slice / 4096 * 4096 * u64::from(slices)),
    };
    let size = memory.get().div_ceil(slice.max(1));
    let size = u32::try_from(size).map_err(|_| Problem::Overfull)?;
    let compute_slices = raw.compute_slices.unwrap_or(slices);
    if !(1..=slices).contains(&compute_slices) {
        return Err(Problem::ComputeSlices(slices));
    }
    let uuid = match &raw.uuid {
        Some(text) => {
            let uuid: GpuUuid = text.parse()?;
            Some(uuid).filter(|uuid| uuid.is_mig()).ok_or(Problem::NotMigUuid)?
        }
        None => derived(gpu.uuid, number),
    };
    let placement = (start, size);
    let gpu_instance = u32::from(number) + 1;
    let kind = MigKind::nearest(&profile, size).id;
    Ok(MigConfig { uuid, profile, memory, slices, compute_slices, placement, gpu_instance, kind })
}

/// The GPU's, with the instance's number in the last byte.
fn derived(gpu: GpuUuid, number: u8) -> GpuUuid {
    let mut bytes = *gpu.as_bytes();
    bytes[15] = bytes[15].wrapping_add(number).wrapping_add(1);
    GpuUuid::mig_from_bytes(bytes)
}

impl GpuConfig {
    /// The instance as a GPU by itself, which is what a program on it sees.
    pub(crate) fn instance(&self, mig: &MigConfig) -> Self {
        let part = |whole: u32| (whole * mig.compute_slices / COMPUTE_SLICES).max(1);
        Self {
            name: format!("{} MIG {}", self.name, mig.profile),
            uuid: mig.uuid,
            memory: mig.memory,
            multiprocessors: part(self.multiprocessors),
            nvlink_peers: Default::default(),
            mig: None,
            ..self.clone()
        }
    }
}
