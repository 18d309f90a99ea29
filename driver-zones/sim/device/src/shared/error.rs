use std::io;
use std::path::PathBuf;

use gpuzone_core::MemoryBytes;

/// Why the state of the simulated node cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The folder cannot be made or looked at.
    #[error(
        "cannot use {} for the simulated node's state; set state_dir in its configuration to a folder that you may write",
        path.display()
    )]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The default folder's name is known to everybody on the machine.
    #[error(
        "{} belongs to another user or is no folder; remove it, or set state_dir in the simulated node's configuration",
        path.display()
    )]
    ForeignFolder {
        /// The folder.
        path: PathBuf,
    },
    /// A file cannot be opened, read or written.
    #[error("cannot use the simulated GPU's file {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not ours, or of another version, or damaged.
    #[error(
        "{} is no state of this version of the simulated GPU ({reason}); stop the programs that use it and remove the file",
        path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What was found.
        reason: &'static str,
    },
    /// The configuration changed under live processes.
    #[error(
        "{} was made for a GPU of {found}, the configuration says {configured}, and a program still uses it; stop that program first",
        path.display()
    )]
    MemoryChanged {
        /// The file.
        path: PathBuf,
        /// What the file says.
        found: MemoryBytes,
        /// What the configuration says.
        configured: MemoryBytes,
    },
    /// The table of processes is full.
    #[error("{0} processes use the simulated GPU already, and its table holds no more; stop some")]
    TooManyProcesses(u16),
    /// This process has no room for the GPU's memory in its address space.
    #[error(
        "cannot map {bytes} of simulated device memory; raise this process's limit of virtual memory (ulimit -v)"
    )]
    Map {
        /// How much.
        bytes: MemoryBytes,
        /// Why.
        source: io::Error,
    },
}

/// Why device memory was not given.
#[derive(Debug, thiserror::Error)]
pub enum AllocateError {
    /// Nothing was asked for.
    #[error("an allocation of 0 bytes was asked for; ask for at least one")]
    Zero,
    /// The GPU has not got it, or not in one piece.
    #[error(
        "{requested} were asked for; the simulated GPU has {free} free, {largest} in one piece"
    )]
    OutOfMemory {
        /// What was asked for, in bytes.
        requested: u64,
        /// What is free.
        free: MemoryBytes,
        /// The largest free piece.
        largest: MemoryBytes,
    },
    /// The table of allocations is full.
    #[error("the simulated GPU holds {0} allocations, and its table holds no more; free some")]
    TooMany(u32),
    /// The host could not back it.
    #[error(
        "{requested} bytes of simulated device memory were asked for, but its folder's file system has room for {available} only; free some there or set state_dir to a larger one"
    )]
    HostFull {
        /// What was asked for, in bytes.
        requested: u64,
        /// What the host can back.
        available: MemoryBytes,
    },
    /// The shared state cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
}
