//! MicroVMs: images of guests, and what boots them.

mod bench;
mod cloud;
mod image;
mod kernel;
mod layout;
mod nested;
mod node;
mod suite;
mod window;
mod workloads;

pub(crate) use bench::bench;
pub(crate) use cloud::run as run_cloud_hypervisor;
pub(crate) use image::{Contents, For, build};
pub(crate) use kernel::unpack;
pub(crate) use nested::run as run_nested;
pub(crate) use suite::{Wanted, run};
pub(crate) use workloads::run as run_workloads;
