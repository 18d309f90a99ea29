use std::io;
use std::path::PathBuf;

/// Why an image cannot be used. Nothing of it is left in the cache then.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file cannot be read or written.
    #[error("{}: {source}", .path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no image layout, or not one of a kind that is known.
    #[error("{} is no usable image layout: {reason}", .path.display())]
    Layout {
        /// The layout's folder, or a file in it.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// It holds no image of that name for this machine.
    #[error("{} holds no image {wanted}; it holds {held}", .layout.display())]
    NoImage {
        /// The layout's folder.
        layout: PathBuf,
        /// What was asked for.
        wanted: String,
        /// What there is.
        held: String,
    },
    /// A blob is not what its digest says.
    #[error("the blob {digest} is not what its digest says, so the image is damaged or forged")]
    Digest {
        /// Which.
        digest: String,
    },
    /// A layer holds something that no image may do.
    #[error("layer {number}: {entry:?}: {reason}")]
    Entry {
        /// Of the layers, from 1.
        number: usize,
        /// Its path in the layer.
        entry: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A layer cannot be read.
    #[error("layer {number} cannot be read: {source}")]
    Layer {
        /// Of the layers, from 1.
        number: usize,
        /// Why.
        source: io::Error,
    },
}
