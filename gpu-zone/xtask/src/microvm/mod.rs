//! MicroVMs: the image of a driver zone's guest.

mod cpio;
mod image;

pub(crate) use image::{Contents, build};
