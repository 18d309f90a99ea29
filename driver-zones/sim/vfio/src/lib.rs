//! A GPU that is none, behind vfio-user: registers, memory, an interrupt, DMA, a reset and a
//! scrub. It misbehaves on request, so that whoever is to notice can be shown to.
//!
//! ```text
//! BAR 0: registers (4 KiB)    BAR 1: its memory    configuration: 256 bytes    one MSI
//! ```
#![forbid(unsafe_code)]

mod device;
mod serve;

pub use device::{Misbehaviour, registers};
pub use serve::{FakeGpu, Probe, ServeError};
