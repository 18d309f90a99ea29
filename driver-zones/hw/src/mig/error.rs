use gpuzone_core::GpuUuid;

use super::{MigKind, MigPlacement, MigStep};
use crate::OpenError;

/// Why it is not known how a GPU is cut, or why it is not cut.
#[derive(Debug, thiserror::Error)]
pub enum MigError {
    /// Nobody said where NVML is.
    #[error("GPU {0} is cut through its driver's NVML, and none is configured here")]
    NoLibrary(GpuUuid),
    /// NVML cannot be opened.
    #[error("how GPU {gpu} is cut is not known: {source}")]
    Open {
        /// Which.
        gpu: GpuUuid,
        /// Why.
        source: OpenError,
    },
    /// NVML knows no such GPU.
    #[error(
        "GPU {0} is not one of its driver's now; see whether nvidia-smi -L lists it, for one on VFIO is not"
    )]
    UnknownGpu(GpuUuid),
    /// It cannot be cut.
    #[error("GPU {0} has no MIG, so it cannot be cut into instances")]
    NoMig(GpuUuid),
    /// It could be, and is not in the mode.
    #[error(
        "GPU {0} is not in MIG mode; end what uses it and turn that on (nvidia-smi -i {0} -mig 1)"
    )]
    ModeOff(GpuUuid),
    /// NVML does not say.
    #[error("the {what} of GPU {gpu} is not known: {reason}")]
    Query {
        /// What was asked for.
        what: &'static str,
        /// Of which.
        gpu: GpuUuid,
        /// What NVML says.
        reason: String,
    },
    /// No such profile.
    #[error("GPU {gpu} makes no '{profile}'; it makes {}", names(.offers))]
    NoKind {
        /// Which.
        gpu: GpuUuid,
        /// Asked for.
        profile: String,
        /// What there can be.
        offers: Vec<MigKind>,
    },
    /// Not at that place.
    #[error("an instance {} of GPU {gpu} cannot begin at memory slice {start}; it can at {}", .kind.name, starts(.kind))]
    NoPlace {
        /// Which.
        gpu: GpuUuid,
        /// Asked for.
        kind: Box<MigKind>,
        /// Asked for.
        start: u32,
    },
    /// Something else is there.
    #[error(
        "{asked} of GPU {gpu} are not free: GPU instance {number} ({name}) has {taken}, and {}; end that one first, or take another place", holder(.owner.as_deref())
    )]
    Overlaps {
        /// Which.
        gpu: GpuUuid,
        /// Asked for.
        asked: MigPlacement,
        /// The number of what is there.
        number: u32,
        /// What that is called by size.
        name: String,
        /// Its place.
        taken: MigPlacement,
        /// For whom it was made here.
        owner: Option<String>,
    },
    /// There is an instance, and it is not that one's who asks.
    #[error(
        "the instance at {place} of GPU {gpu} is not that of {asked}: {}; it is left as it is", holder(.owner.as_deref())
    )]
    Foreign {
        /// Which.
        gpu: GpuUuid,
        /// Where.
        place: MigPlacement,
        /// Who asks.
        asked: String,
        /// For whom it was made here.
        owner: Option<String>,
    },
    /// Somebody made compute instances in it that are not ours.
    #[error(
        "GPU instance {number} of GPU {gpu} has {found} compute instances that were not made by gpu-zone; end those first (nvidia-smi mig -dci)"
    )]
    Others {
        /// Which.
        gpu: GpuUuid,
        /// Its number.
        number: u32,
        /// So many.
        found: usize,
    },
    /// The driver refused: nothing was done.
    #[error("{step} was refused: {reason}")]
    Refused {
        /// What was to be done.
        step: MigStep,
        /// What NVML says.
        reason: String,
    },
    /// The driver failed, and it is not known what was done.
    #[error("{step} failed: {reason}; the kernel's log may say why")]
    Failed {
        /// What was to be done.
        step: MigStep,
        /// What NVML says.
        reason: String,
    },
    /// The driver said that it did, and did not.
    #[error("the driver took it to {step} and did not; the kernel's log may say why")]
    Ignored {
        /// What was to be done.
        step: MigStep,
    },
}

fn names(kinds: &[MigKind]) -> String {
    let all: Vec<&str> = kinds.iter().map(|kind| kind.name.as_str()).collect();
    if all.is_empty() { "nothing".to_owned() } else { all.join(", ") }
}

fn starts(kind: &MigKind) -> String {
    let all = kind.placements.iter().map(|place| place.start.to_string());
    let all: Vec<String> = all.collect();
    if all.is_empty() { "none".to_owned() } else { all.join(", ") }
}

fn holder(owner: Option<&str>) -> String {
    owner.map_or_else(
        || "it was not made by gpu-zone".to_owned(),
        |owner| format!("it was made for {owner}"),
    )
}
