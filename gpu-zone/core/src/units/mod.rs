//! Quantities that cannot be mistaken for one another.

mod memory;
mod share;
mod time;

pub use memory::{InvalidMemory, MemoryBytes};
pub use share::{ComputeShare, InvalidShare};
pub use time::Timestamp;
