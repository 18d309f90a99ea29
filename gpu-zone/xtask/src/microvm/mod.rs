//! MicroVMs: the image of a driver zone's guest, and what boots it.

mod bench;
mod cpio;
mod image;
mod suite;

pub(crate) use bench::bench;
pub(crate) use image::{Contents, build};
pub(crate) use suite::{Wanted, run};
