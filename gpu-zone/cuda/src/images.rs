//! How long a module's image is: the driver API is only told where it begins.

use std::ffi::{CStr, c_void};

use gpuzone_cuda_abi::CuResult;
use gpuzone_cuda_abi::image::{
    ELF, FAT_BINARY, FAT_BINARY_WRAPPER, FAT_HEADER, elf_length, fat_length,
};

use crate::ffi::Answer;

/// The image's bytes.
///
/// # Safety
/// The driver API's contract: `image` is a text of PTX with a zero at its end, an ELF image, a
/// fat binary or its wrapper, and stays so during the call.
pub(crate) unsafe fn bytes<'a>(image: *const c_void) -> Answer<&'a [u8]> {
    if image.is_null() {
        return Err(CuResult::INVALID_VALUE);
    }
    let start = image.cast::<u8>();
    // SAFETY: by the contract the image has at least the bytes that tell what it is; a text may
    // be shorter and is read up to its zero only.
    let text = unsafe { CStr::from_ptr(start.cast()) }.to_bytes();
    // A wrapper and a fat binary have no zero in their first four bytes, nor has an ELF image.
    let Some(magic) = text.first_chunk::<4>() else { return Ok(text) };
    let at = |offset: u64| {
        let offset = usize::try_from(offset).ok()?;
        // SAFETY: by the contract headers of this kind have these bytes.
        Some(unsafe { start.wrapping_add(offset).cast::<[u8; 8]>().read_unaligned() })
    };
    let length = match (u32::from_le_bytes(*magic), *magic) {
        (FAT_BINARY_WRAPPER, _) => {
            let inner = at(8).map(u64::from_le_bytes).and_then(|inner| usize::try_from(inner).ok());
            let inner = inner.ok_or(CuResult::INVALID_IMAGE)?;
            let inner = std::ptr::with_exposed_provenance::<c_void>(inner);
            // SAFETY: by the contract the wrapper points at a fat binary.
            return unsafe { fat_binary(inner) };
        }
        // SAFETY: by the contract it is what its first bytes say.
        (FAT_BINARY, _) => return unsafe { fat_binary(image) },
        (_, ELF) => {
            let length = elf_length(&at).and_then(|length| usize::try_from(length).ok());
            let length = length.filter(|length| isize::try_from(*length).is_ok());
            length.ok_or(CuResult::INVALID_IMAGE)?
        }
        _ => return Ok(text),
    };
    // SAFETY: by the contract the image is as long as its header says.
    Ok(unsafe { std::slice::from_raw_parts(start, length) })
}

/// # Safety
/// As [`bytes`], of a fat binary.
unsafe fn fat_binary<'a>(image: *const c_void) -> Answer<&'a [u8]> {
    if image.is_null() {
        return Err(CuResult::INVALID_IMAGE);
    }
    let start = image.cast::<u8>();
    // SAFETY: by the contract there is a header.
    let header = unsafe { start.cast::<[u8; FAT_HEADER]>().read() };
    let length = fat_length(&header).map_err(|_| CuResult::INVALID_IMAGE)?;
    // SAFETY: by the contract the image is as long as its header says.
    Ok(unsafe { std::slice::from_raw_parts(start, length) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_ends_at_its_zero() {
        let text = c".version 8.0";
        // SAFETY: a text with its zero.
        let found = unsafe { bytes(text.as_ptr().cast()) };
        assert_eq!(found, Ok(text.to_bytes()));
        // SAFETY: as above, a text of no bytes.
        assert_eq!(unsafe { bytes(c"".as_ptr().cast()) }, Ok(&[][..]));
        // SAFETY: null is answered.
        assert_eq!(unsafe { bytes(std::ptr::null()) }, Err(CuResult::INVALID_VALUE));
    }

    #[test]
    fn a_fat_binary_says_how_long_it_is() {
        let mut image = [0u8; 64];
        image[..4].copy_from_slice(&FAT_BINARY.to_le_bytes());
        image[4..8].copy_from_slice(&[1, 0, 16, 0]);
        image[8..16].copy_from_slice(&40u64.to_le_bytes());
        // SAFETY: a fat binary of 56 bytes.
        assert_eq!(unsafe { bytes(image.as_ptr().cast()) }.map(<[u8]>::len), Ok(56));
    }
}
