//! What the processes of the simulated node share.

mod activity;
mod attachment;
mod error;
mod faults;
mod file;
mod instances;
mod map;
mod node;
mod processes;
mod space;
mod visible;

pub use attachment::{Attachment, BusyGuard};
pub use error::{AllocateError, StateError};
pub use faults::{Condition, FaultEvent, FaultWatch};
pub use instances::CutError;
pub use map::DeviceMap;
pub use node::{GpuProcess, MemoryUse, SimulatedGpu, SimulatedNode};
pub use space::DeviceRange;

/// Device memory is given out in multiples of this many bytes, and begins at multiples of it.
pub const GRANULE: u64 = 512;

/// The device address at which the memory of GPU 0 begins. The room of all GPUs together, up to
/// 0x5000_0000_0000, is where Linux puts neither programs nor heaps nor maps, so that a host
/// pointer given by mistake is no device address.
const FIRST_BASE: u64 = 0x1000_0000_0000;

/// Room for one GPU's addresses; the configuration allows no larger memory.
const BASE_SHIFT: u32 = 40;

/// Device address of the first byte of GPU `index`.
fn base_address(index: usize) -> u64 {
    // Indices are below `MAX_GPUS`, so neither conversion nor shift loses anything.
    FIRST_BASE + (u64::try_from(index).unwrap_or(0) << BASE_SHIFT)
}
