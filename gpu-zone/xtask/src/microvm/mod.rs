//! MicroVMs: images of guests, and what boots them.

mod bench;
mod image;
mod suite;
mod workloads;

pub(crate) use bench::bench;
pub(crate) use image::{Contents, For, build};
pub(crate) use suite::{Wanted, run};
pub(crate) use workloads::run as run_workloads;
