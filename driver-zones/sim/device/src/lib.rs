//! The simulated node: its configuration and the state its processes share.
//!
//! ```text
//! TOML ──Config──▶ SimulatedNode ──▶ SimulatedGpu ──attach──▶ Attachment
//!                  (one process)      looks (NVML)             allocates, runs (CUDA)
//!                                         │                       │
//!                        <state_dir>/gpu-N.state        <state_dir>/gpu-N.memory
//!                        who holds what, who is busy     what is in the memory
//!                        <state_dir>/gpu-N.faults
//!                        what went wrong, for NVML's events; testers append to it
//!                        <state_dir>/gpu-N.mig-I.{state,memory} of MIG instance I
//!                        <state_dir>/gpu-N.instances
//!                        the MIG instances, once one was made or ended
//! ```
//!
//! Every process of the node opens the same files. A process is there as long as it
//! holds a lock on its row of the state file; the kernel drops that lock when it dies, and
//! whoever takes the file's lock next gives the dead process's memory back. Nothing in
//! the state file is believed: what is out of bounds or overlaps is an error.
//!
//! Architecture invariant: nothing clears device memory but writes. What a process left
//! in it is what the next one finds, as on hardware without scrubbing.
//!
//! Limit: device memory is a sparse file, and a host that cannot back it with pages when
//! they are written (a full tmpfs) ends the writing process with `SIGBUS`. Allocations of
//! 1 GiB and more are refused when the file system plainly lacks the room.

mod config;
mod shared;

pub use config::{
    Config, ConfigError, GpuConfig, MAX_GPUS, MIG_KINDS, MemsetFault, MigConfig, MigKind,
};
pub use shared::{
    AllocateError, Attachment, BusyGuard, Condition, CutError, DeviceMap, DeviceRange, FaultEvent,
    FaultWatch, GRANULE, GpuProcess, MemoryUse, SimulatedGpu, SimulatedNode, StateError,
};
