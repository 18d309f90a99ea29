//! The MIG instances of a simulated GPU.

use gpuzone_core::{GpuUuid, MemoryBytes, MigProfile};
use serde::Deserialize;

use super::GpuConfig;
use super::error::Problem;
use super::raw::memory;

/// A GPU's memory is cut into so many slices, as on NVIDIA's.
const MEMORY_SLICES: u64 = 8;
/// And its compute.
const COMPUTE_SLICES: u32 = 7;
/// NVML's name field has room for the GPU's name, " MIG " and a profile.
const MAX_NAME: usize = 60;

/// A simulated MIG instance: a GPU instance that is one compute instance, or a part of one.
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
    /// How many of those are its own; fewer mean that it shares its GPU instance's memory.
    pub compute_slices: u32,
    /// The first memory slice that it takes, and how many.
    pub placement: (u32, u32),
    /// Number of its GPU instance.
    pub gpu_instance: u32,
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
    Ok(MigConfig { uuid, profile, memory, slices, compute_slices, placement, gpu_instance })
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
