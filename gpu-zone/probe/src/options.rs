use std::path::PathBuf;

use gpuzone_core::MemoryBytes;

use crate::baseline::Baseline;

/// How to probe.
#[derive(Clone, Debug)]
pub struct Options {
    /// The announced limit of each device's memory, instead of what CUDA and the environment say.
    pub limit: Option<MemoryBytes>,
    /// Limits above this are not tried: trying takes as much memory for a moment.
    pub most: MemoryBytes,
    /// How much fresh memory is read on each device.
    pub residue: MemoryBytes,
    /// Whether to make calls that change something.
    pub destructive: bool,
    /// The program to start for opening driver libraries, which has to begin its `main` with
    /// [`crate::serve_as_child`]; none for this one.
    pub child: Option<PathBuf>,
    /// What is accepted.
    pub baseline: Baseline,
}

/// `bytes` for people.
pub(crate) fn shown(bytes: u64) -> String {
    MemoryBytes::new(bytes).map_or_else(|| format!("{bytes} bytes"), |memory| memory.to_string())
}
