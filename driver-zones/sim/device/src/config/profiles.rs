//! What GPU instances there can be, and where: as NVIDIA's MIG User Guide lists it for A100 and H100
//! (`nvidia-smi mig -lgip`, `-lgipp`).

use gpuzone_core::{MemoryBytes, MigProfile};

use super::GpuConfig;
use super::mig::MEMORY_SLICES;

const GIB: u64 = 1 << 30;
const PAGE: u64 = 4096;

/// A kind of GPU instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MigKind {
    /// NVML's `NVML_GPU_INSTANCE_PROFILE_…`, by which it is asked for.
    pub number: u32,
    /// The GPU's own identifier of it, by which it is made.
    pub id: u32,
    /// Compute slices, of seven.
    pub slices: u32,
    /// Memory slices, of eight.
    pub size: u32,
    /// The memory slices at which it may begin.
    pub starts: &'static [u32],
    /// The most of one GPU.
    pub most: u32,
    /// Whether it has the engines for video of which a GPU has one set to give.
    pub media: bool,
}

const fn kind(number: u32, id: u32, slices: u32, size: u32, starts: &'static [u32]) -> MigKind {
    let most = match starts.len() {
        1 => 1,
        2 => 2,
        3 => 3,
        4 => 4,
        _ => 7,
    };
    MigKind { number, id, slices, size, starts, most, media: false }
}

/// All kinds, by NVML's number.
pub const MIG_KINDS: &[MigKind] = &[
    kind(0, 19, 1, 1, &[0, 1, 2, 3, 4, 5, 6]),
    kind(1, 14, 2, 2, &[0, 2, 4]),
    kind(2, 9, 3, 4, &[0, 4]),
    kind(3, 5, 4, 4, &[0]),
    kind(4, 0, 7, 8, &[0]),
    MigKind { most: 1, media: true, ..kind(7, 20, 1, 1, &[0, 1, 2, 3, 4, 5, 6]) },
    kind(9, 15, 1, 2, &[0, 2, 4, 6]),
];

impl MigKind {
    /// The kind with this identifier of the GPU's.
    pub fn by_id(id: u32) -> Option<&'static Self> {
        MIG_KINDS.iter().find(|kind| kind.id == id)
    }

    /// The kind with this number of NVML's.
    pub fn by_number(number: u32) -> Option<&'static Self> {
        MIG_KINDS.iter().find(|kind| kind.number == number)
    }

    /// The kind that a configured instance comes next to.
    pub(super) fn nearest(profile: &MigProfile, size: u32) -> &'static Self {
        let alike = |kind: &&Self| kind.slices == profile.slices();
        let media = profile.as_str().ends_with(".me");
        let exact = |kind: &&Self| alike(kind) && kind.size == size && kind.media == media;
        let of = MIG_KINDS.iter();
        of.clone().find(exact).or_else(|| of.clone().find(alike)).unwrap_or(&MIG_KINDS[4])
    }

    /// What one of a GPU has.
    pub fn memory(&self, gpu: &GpuConfig) -> MemoryBytes {
        let slice = gpu.memory.get() / MEMORY_SLICES / PAGE * PAGE;
        let part = MemoryBytes::saturating(slice * u64::from(self.size));
        if u64::from(self.size) == MEMORY_SLICES { gpu.memory } else { part }
    }

    /// What one of a GPU is called, without `MIG`, as NVML calls it.
    pub fn name(&self, gpu: &GpuConfig) -> String {
        let gigabytes = ((self.memory(gpu).get() + GIB / 2) / GIB).max(1);
        let media = if self.media { "+me" } else { "" };
        format!("{}g.{gigabytes}gb{media}", self.slices)
    }
}
