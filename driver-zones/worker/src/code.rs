//! What is looked at in a tenant's code before the driver sees it.
//!
//! The driver takes an image without its length and trusts what it says of itself; and two things
//! that code can ask for would pass the lease by: managed variables, whose pages the driver moves
//! between host and device uncharged, and files that a text includes.

use std::borrow::Cow;
use std::io::Read;

use gpuzone_cuda_abi::CuResult;
use gpuzone_cuda_abi::image::{
    self, ELF, Entry, EntryKind, FAT_BINARY, ImageError, Packing, has_managed, may_print,
};

/// Why code is not loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CodeError {
    /// It is no image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A part is not packed as it says.
    #[error("a part of the fat binary is not packed as it says")]
    Packed,
    /// It would not stay small.
    #[error("the image has more bytes unpacked than one may have")]
    Large,
    /// A part is neither PTX nor machine code, so that nobody could look into it.
    #[error("a part of the fat binary is neither PTX nor machine code")]
    Closed,
    /// It has a managed variable.
    #[error("the code has a managed variable")]
    Managed,
    /// It has a line for a preprocessor.
    #[error("the text of PTX has a line for a preprocessor")]
    Preprocessor,
}

impl From<CodeError> for CuResult {
    fn from(error: CodeError) -> Self {
        match error {
            CodeError::Image(_) | CodeError::Packed => Self::INVALID_IMAGE,
            CodeError::Large => Self::OUT_OF_MEMORY,
            CodeError::Closed | CodeError::Managed => Self::NOT_SUPPORTED,
            CodeError::Preprocessor => Self::INVALID_PTX,
        }
    }
}

/// What is known of code that may be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Code {
    /// Whether its kernels may print.
    pub(crate) prints: bool,
}

/// Looks at an image, which may have `most` bytes when it is unpacked.
///
/// # Errors
/// When it is not to be loaded.
pub(crate) fn look(image: &[u8], most: u64) -> Result<Code, CodeError> {
    if image::unpacked_bytes(image)? > most {
        return Err(CodeError::Large);
    }
    if !image.starts_with(&FAT_BINARY.to_le_bytes()) {
        return look_at_piece(image);
    }
    let mut prints = false;
    for entry in image::entries(image).map_err(ImageError::from)? {
        if let EntryKind::Other(_) = entry.kind {
            return Err(CodeError::Closed);
        }
        prints |= look_at_piece(&unpacked(&entry)?)?.prints;
    }
    Ok(Code { prints })
}

/// The same of a linker's input. What is made of it is looked at again when it is loaded, so that
/// libraries of objects may pass.
///
/// # Errors
/// When it is not to be linked.
pub(crate) fn look_at_input(input: &[u8], most: u64) -> Result<(), CodeError> {
    match image::is_archive(input) {
        true if input.len() as u64 <= most => Ok(()),
        true => Err(CodeError::Large),
        false => look(input, most).map(drop),
    }
}

fn look_at_piece(piece: &[u8]) -> Result<Code, CodeError> {
    // What was packed was not looked at before.
    image::unpacked_bytes(piece)?;
    if piece.starts_with(&ELF) {
        if has_managed(piece) {
            return Err(CodeError::Managed);
        }
    } else {
        if memchr::memmem::find(piece, b".managed").is_some() {
            return Err(CodeError::Managed);
        }
        let is_for_preprocessor =
            |line: &[u8]| line.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'#');
        if piece.split(|byte| matches!(byte, b'\n' | b'\r')).any(is_for_preprocessor) {
            return Err(CodeError::Preprocessor);
        }
    }
    Ok(Code { prints: may_print(piece) })
}

/// A part's bytes. All parts together have no more than was found to be room for.
fn unpacked<'a>(entry: &Entry<'a>) -> Result<Cow<'a, [u8]>, CodeError> {
    let size = usize::try_from(entry.unpacked).map_err(|_| CodeError::Large)?;
    match entry.packing {
        Packing::Plain => Ok(entry.payload.into()),
        Packing::Lz4 => lz4_flex::block::decompress(entry.payload, size)
            .map(Cow::from)
            .map_err(|_| CodeError::Packed),
        Packing::Zstd => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(entry.payload);
            let mut bytes = Vec::new();
            let read = decoder
                .map_err(|_| CodeError::Packed)?
                .take(entry.unpacked.saturating_add(1))
                .read_to_end(&mut bytes);
            let fits = read.is_ok_and(|read| read <= size);
            if fits { Ok(bytes.into()) } else { Err(CodeError::Packed) }
        }
    }
}

#[cfg(test)]
mod tests {
    use gpuzone_cuda_abi::image::fat_binary_of_ptx;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    const MOST: u64 = 1 << 20;
    const PLAIN: &[u8] = b".version 8.0\n.target sm_75\n.global .align 4 .u32 x;\n";
    const MANAGED: &[u8] = b".version 8.0\n.global .attribute(.managed) .align 4 .u32 x;\n";
    const PRINTS: &[u8] = b".version 8.0\n.extern .func vprintf;\n";
    const INCLUDES: &[u8] = b".version 8.0\n \t#include \"/etc/passwd\"\n";

    /// A text as it is, and in each way that fat binaries have.
    fn all(text: &[u8]) -> [Vec<u8>; 4] {
        let unpacked = text.len() as u64;
        let packed = |payload: &[u8], packing| fat_binary_of_ptx(payload, packing, unpacked);
        let zstd = compress_to_vec(text, CompressionLevel::Fastest);
        [
            text.to_vec(),
            packed(text, Packing::Plain),
            packed(&lz4_flex::block::compress(text), Packing::Lz4),
            packed(&zstd, Packing::Zstd),
        ]
    }

    #[test]
    fn what_code_asks_for_is_found_however_it_is_packed() {
        for (text, found) in [
            (PLAIN, Ok(Code { prints: false })),
            (PRINTS, Ok(Code { prints: true })),
            (MANAGED, Err(CodeError::Managed)),
            (INCLUDES, Err(CodeError::Preprocessor)),
            (b"// # is no line of its own\n\0\0", Ok(Code { prints: false })),
        ] {
            for image in all(text) {
                assert_eq!(look(&image, MOST), found);
                assert_eq!(look_at_input(&image, MOST), found.map(drop));
            }
        }
    }

    #[test]
    fn what_says_that_it_is_small_and_is_not_goes_no_further() {
        let zeros = vec![b' '; 1 << 20];
        let zstd = compress_to_vec(zeros.as_slice(), CompressionLevel::Fastest);
        for (payload, packing) in
            [(lz4_flex::block::compress(&zeros), Packing::Lz4), (zstd, Packing::Zstd)]
        {
            let bomb = fat_binary_of_ptx(&payload, packing, 64);
            assert_eq!(look(&bomb, MOST), Err(CodeError::Packed), "{packing:?}");
            let huge = fat_binary_of_ptx(&payload, packing, MOST + 1);
            assert_eq!(look(&huge, MOST), Err(CodeError::Large), "{packing:?}");
            let damaged = fat_binary_of_ptx(&payload[..payload.len() / 2], packing, 1 << 20);
            assert_eq!(look(&damaged, MOST), Err(CodeError::Packed), "{packing:?}");
        }
        let mut closed = fat_binary_of_ptx(PLAIN, Packing::Plain, 0);
        closed[16] = 8;
        assert_eq!(look(&closed, MOST), Err(CodeError::Closed));
        assert_eq!(look_at_input(b"!<arch>\n\0", 4), Err(CodeError::Large));
        assert_eq!(look_at_input(b"!<arch>\n\0", 9), Ok(()));
    }
}
