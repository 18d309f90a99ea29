//! The placement engine beside published schedulers, on the trace openb: `cargo bench -p
//! gpuzone-bench-placement` with `OPENB_DIR`. `docs/placement.md` says what is measured.
#![forbid(unsafe_code)]

mod baseline;
mod desk;
mod openb;
mod reference;
mod statistics;

pub use baseline::{Baseline, Cell, Class, Need, frequent, unusable};
pub use desk::Desk;
pub use openb::{Arrivals, Openb};
pub use reference::Reference;
pub use statistics::{Bins, Series, paired};
