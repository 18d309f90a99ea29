//! MicroVMs: the image of a driver zone's guest, and the suite that boots it.

mod cpio;
mod image;
mod suite;

pub(crate) use image::{Contents, build};
pub(crate) use suite::{Wanted, run};
