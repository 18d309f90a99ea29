use std::io;
use std::path::PathBuf;

use gpuzone_core::{InvalidId, InvalidMemory, InvalidMigProfile, PciAddress};

use super::MAX_GPUS;

/// Why a configuration of the simulated node is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error(
        "cannot read the simulated node's configuration {}; check GPUZONE_SIM_CONFIG",
        path.display()
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The text is no TOML, or a value has the wrong type.
    #[error("{} is not a valid configuration of the simulated node", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: toml::de::Error,
    },
    /// A key that nothing reads.
    #[error("{}: unknown key '{key}' in {place}{}", path.display(), hint(.nearest.as_deref()))]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The table it stands in.
        place: String,
        /// The known key that is most like it.
        nearest: Option<&'static str>,
    },
    /// A value that cannot be.
    #[error("{}: {place}: {problem}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// Key and table.
        place: String,
        /// What is wrong with it.
        problem: Problem,
    },
}

fn hint(nearest: Option<&str>) -> String {
    nearest.map(|key| format!("; did you mean '{key}'?")).unwrap_or_default()
}

/// What is wrong with a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// No GPU at all.
    #[error("the node has no GPU; add a [[gpu]] table")]
    NoGpu,
    /// Too many of them.
    #[error("there are {0} GPUs; a simulated node has at most {MAX_GPUS}")]
    TooManyGpus(usize),
    /// No amount of memory.
    #[error(transparent)]
    Memory(#[from] InvalidMemory),
    /// No identifier.
    #[error(transparent)]
    Id(#[from] InvalidId),
    /// No profile.
    #[error(transparent)]
    MigProfile(#[from] InvalidMigProfile),
    /// A GPU that cannot be cut.
    #[error("the GPU has MIG instances and is not mig_capable; write mig_capable = true")]
    NotMigCapable,
    /// More instances than fit.
    #[error(
        "the MIG instances take more than the GPU's 8 slices of memory or 7 of compute; leave one out"
    )]
    Overfull,
    /// A part that cannot be.
    #[error("a MIG instance has 1 to {0} of its GPU instance's compute slices")]
    ComputeSlices(u32),
    /// A GPU's.
    #[error("a MIG instance's UUID begins with MIG-")]
    NotMigUuid,
    /// Nothing.
    #[error("it is zero; write a number above zero")]
    Zero,
    /// More than device addresses reach.
    #[error("it is more than a simulated GPU's memory can be (1Ti)")]
    TooMuchMemory,
    /// Not whole pages.
    #[error("it is not a multiple of 4Ki; round it, memory comes in whole pages")]
    Unaligned,
    /// Every context would take more than there is.
    #[error("it is more than the GPU's memory; lower it")]
    OverheadAboveMemory,
    /// Not `major.minor`.
    #[error("'{0}' is no compute capability; write it like \"9.0\"")]
    ComputeCapability(String),
    /// Two GPUs in one place.
    #[error("{0} is the address of an earlier GPU too; give each its own")]
    DuplicatePci(PciAddress),
    /// Two GPUs with one identifier.
    #[error("an earlier GPU has the same one; give each its own or leave it out")]
    DuplicateUuid,
    /// A peer that is not there.
    #[error("there is no GPU '{0}'; name others by their index (from 0) or UUID")]
    UnknownPeer(String),
    /// Itself.
    #[error("a GPU is not its own peer; remove it")]
    OwnPeer,
    /// An empty text or one that does not fit NVML's fields.
    #[error("it must have 1 to {0} printable ASCII characters")]
    Text(usize),
    /// Not an absolute path.
    #[error("'{}' is not an absolute path; write one that begins with '/'", .0.display())]
    RelativePath(PathBuf),
}
