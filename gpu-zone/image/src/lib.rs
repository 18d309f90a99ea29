//! OCI image layouts as roots of zones.
//!
//! A layout is a folder with `oci-layout`, `index.json` and `blobs/sha256`. [`Image::unpack`]
//! checks every digest and unpacks its layers, once for each manifest, into a cache. Layouts are
//! hostile: nothing is written or removed outside the folder that the image is unpacked into,
//! whatever paths and links its layers name, and nothing is kept of one that is wrong.

#![forbid(unsafe_code)]

mod blob;
pub mod cpio;
mod error;
mod image;
mod layer;
mod layout;
mod tree;

pub use error::ImageError;
pub use image::{Image, find_program};
pub use layer::Limits;
pub use layout::{Layout, Reference};
