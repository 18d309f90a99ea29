//! The workload's own driver libraries, asked in processes of their own: a library that crashes
//! takes no report along, a fresh process has no memory of its own past, a changed environment
//! is what a tenant would change, and two processes are two processes.

mod carrier;
pub(crate) mod child;
mod cuda;
pub(crate) mod launch;
mod nvml;
pub(crate) mod raw;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A path of CUDA's driver API on which device memory is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Api {
    Alloc,
    Pitch,
    Async,
    Vmm,
    Managed,
    Globals,
    Array,
}

impl Api {
    pub(crate) const ALL: [Self; 7] = [
        Self::Alloc,
        Self::Pitch,
        Self::Async,
        Self::Vmm,
        Self::Managed,
        Self::Globals,
        Self::Array,
    ];

    /// CUDA's name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Alloc => "cuMemAlloc",
            Self::Pitch => "cuMemAllocPitch",
            Self::Async => "cuMemAllocAsync",
            Self::Vmm => "cuMemCreate",
            Self::Managed => "cuMemAllocManaged",
            Self::Globals => "variables of modules (cuModuleLoadData)",
            Self::Array => "cuArrayCreate",
        }
    }
}

/// What a child is to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    /// The library; none for what the loader finds.
    pub(crate) library: Option<PathBuf>,
    pub(crate) task: Task,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Task {
    /// List the devices as CUDA shows them.
    Devices,
    /// Take memory on one path until it is more than `bytes`, or refused.
    Take { api: Api, device: u16, bytes: u64 },
    /// Take so much, say so, and keep it until standard input ends.
    Hold { device: u16, bytes: u64 },
    /// Read so much fresh memory.
    Residue { device: u16, bytes: u64 },
    /// Which devices reach which, and whether memory can be exported.
    Peers,
    /// What NVML shows.
    Nvml,
    /// Try NVML's administrative calls with the values that are set already. The destructive
    /// ones change something, though not for long.
    Administer { destructive: bool },
}

/// What it found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answer {
    Devices(Vec<Device>),
    Taken(Taken),
    Residue(Residue),
    Peers {
        reachable: Vec<(u16, u16)>,
        exports: bool,
    },
    Nvml(Vec<NvmlGpu>),
    Administered(Vec<Attempt>),
    /// There is no such library.
    NoLibrary(String),
    /// It is there and does not do it.
    Failed(String),
}

/// A device as CUDA shows it. Memory in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Device {
    pub(crate) name: String,
    pub(crate) total: u64,
    /// None when no context can be made.
    pub(crate) free: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Taken {
    /// Bytes.
    pub(crate) taken: u64,
    /// Why there was no more, in CUDA's words.
    pub(crate) refused: Option<String>,
}

/// Bytes; their values are looked at and never kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Residue {
    pub(crate) read: u64,
    pub(crate) nonzero: u64,
}

/// A GPU as NVML shows it. Memory in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NvmlGpu {
    pub(crate) name: String,
    pub(crate) total: u64,
    pub(crate) used: u64,
    /// Process and what it holds; `u64::MAX` where the driver does not say.
    pub(crate) processes: Vec<(u32, u64)>,
}

/// One administrative call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attempt {
    pub(crate) gpu: u32,
    pub(crate) call: String,
    pub(crate) permitted: bool,
}
