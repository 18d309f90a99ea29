//! The simulated GPU's processor: parses PTX as nvcc emits it and executes it
//! on the CPU.
//!
//! ```text
//! text ──lexer──► statements ──lower──► Kernel { code, slots, layout } ──execute──► memory
//!                     └─ unknown? PtxError with its line      └─ Fault
//! ```
//!
//! The crate knows nothing of CUDA's API, of processes or of files. Its caller
//! owns device memory and shows it through [`DeviceMemory`]; a kernel can reach
//! nothing else. Whatever the parser does not know is an error at parse time,
//! never a wrong answer at run time.
//!
//! A warp is 32 lanes that execute one instruction at a time over registers
//! stored as arrays of lanes. Diverged lanes form groups; the group with the
//! lowest program counter runs first, and groups that meet become one again.

mod exec;
mod ir;
mod lower;
mod memory;
mod parse;

pub use exec::{Fault, Launch, LaunchReport, PrintBuffer, execute, execute_within};
pub use ir::{GlobalVariable, Kernel, Module, Param};
pub use memory::{DeviceMemory, Region};
pub use parse::PtxError;

/// Extent of a grid (in blocks) or of a block (in threads).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dim3 {
    /// Extent along x.
    pub x: u32,
    /// Extent along y.
    pub y: u32,
    /// Extent along z.
    pub z: u32,
}

impl Dim3 {
    /// An extent; one that has a zero holds nothing and cannot be launched.
    #[must_use]
    pub const fn new(x: u32, y: u32, z: u32) -> Self {
        Self { x, y, z }
    }

    /// How many positions the extent holds, or `None` when that is beyond `u64`.
    #[must_use]
    pub fn count(self) -> Option<u64> {
        u64::from(self.x).checked_mul(u64::from(self.y))?.checked_mul(u64::from(self.z))
    }
}
