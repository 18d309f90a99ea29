//! What of a module's image is run: its PTX, out of a fat binary if need be.

use std::borrow::Cow;
use std::io::Read;

use gpuzone_cuda_abi::CuResult;
use gpuzone_cuda_abi::image::{ELF, Entry, EntryKind, FAT_BINARY, Packing, entries};

use crate::module::{Refusal, refuse};

/// As much PTX as is unpacked; a text beyond it is no module.
const MAX_UNPACKED: usize = 32 << 20;

/// The PTX in `image` that a GPU of this capability (90 for 9.0) runs.
pub(crate) fn ptx_of(image: &[u8], capability: u32) -> Result<Cow<'_, str>, Refusal> {
    if image.starts_with(&ELF) {
        return Err(machine_code("machine code (a cubin)"));
    }
    let text = if image.starts_with(&FAT_BINARY.to_le_bytes()) {
        Cow::Owned(from_fat_binary(image, capability)?)
    } else {
        Cow::Borrowed(image)
    };
    let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
    let text = match text {
        Cow::Borrowed(text) => str::from_utf8(&text[..end]).map(Cow::Borrowed).ok(),
        Cow::Owned(mut text) => {
            text.truncate(end);
            String::from_utf8(text).map(Cow::Owned).ok()
        }
    };
    let text = text.filter(|text| text.contains(".version"));
    text.ok_or_else(|| {
        refuse(CuResult::INVALID_IMAGE, "the image is no PTX; the simulated GPU runs PTX only")
    })
}

fn machine_code(what: &str) -> Refusal {
    let log = format!("the image is {what}; the simulated GPU runs PTX only");
    refuse(CuResult::NO_BINARY_FOR_GPU, log)
}

/// The newest PTX of a fat binary that is not newer than the GPU.
fn from_fat_binary(image: &[u8], capability: u32) -> Result<Vec<u8>, Refusal> {
    let entries =
        entries(image).map_err(|error| refuse(CuResult::INVALID_IMAGE, error.to_string()))?;
    let ptx = entries.iter().filter(|entry| entry.kind == EntryKind::Ptx);
    let fitting = ptx.filter(|entry| entry.architecture <= capability);
    let best = fitting.max_by_key(|entry| entry.architecture);
    unpack(best.ok_or_else(|| machine_code("a fat binary without PTX for this GPU"))?)
}

fn unpack(entry: &Entry<'_>) -> Result<Vec<u8>, Refusal> {
    let size = usize::try_from(entry.unpacked).ok().filter(|size| *size <= MAX_UNPACKED);
    let size = size.ok_or_else(|| {
        let log = format!("the fat binary's PTX has more than {MAX_UNPACKED} bytes");
        refuse(CuResult::INVALID_IMAGE, log)
    })?;
    let damaged = |error: &dyn std::fmt::Display| {
        refuse(CuResult::INVALID_IMAGE, format!("the fat binary's PTX is damaged: {error}"))
    };
    match entry.packing {
        Packing::Plain => Ok(entry.payload.to_vec()),
        Packing::Lz4 => {
            lz4_flex::block::decompress(entry.payload, size).map_err(|error| damaged(&error))
        }
        Packing::Zstd => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(entry.payload);
            let mut decoder = decoder.map_err(|error| damaged(&error))?.take(size as u64);
            let mut text = Vec::new();
            decoder.read_to_end(&mut text).map_err(|error| damaged(&error))?;
            Ok(text)
        }
    }
}

#[cfg(test)]
mod tests {
    use gpuzone_cuda_abi::image::fat_binary_of_ptx;

    use super::*;

    const PTX: &[u8] = b".version 8.0\n.target sm_75\n.address_size 64\n";

    fn result(image: &[u8]) -> Result<String, CuResult> {
        ptx_of(image, 90).map(Cow::into_owned).map_err(|refusal| refusal.result)
    }

    #[test]
    fn packed_ptx_is_unpacked() {
        let text = String::from_utf8(PTX.to_vec()).unwrap();
        assert_eq!(result(PTX), Ok(text.clone()));
        let length = PTX.len() as u64;
        let lz4 = lz4_flex::block::compress(PTX);
        let zstd =
            ruzstd::encoding::compress_to_vec(PTX, ruzstd::encoding::CompressionLevel::Fastest);
        for (payload, packing) in
            [(PTX, Packing::Plain), (&lz4, Packing::Lz4), (&zstd, Packing::Zstd)]
        {
            let image = fat_binary_of_ptx(payload, packing, length);
            assert_eq!(result(&image), Ok(text.clone()), "{packing:?}");
        }
    }

    #[test]
    fn what_is_said_to_be_huge_or_is_damaged_is_refused() {
        let lz4 = lz4_flex::block::compress(PTX);
        let huge = fat_binary_of_ptx(&lz4, Packing::Lz4, u64::MAX);
        assert_eq!(result(&huge), Err(CuResult::INVALID_IMAGE));
        // A bomb: it says that it is small and is not. What it says is what there is room for.
        let zeros = vec![b' '; 1 << 20];
        let bomb = fat_binary_of_ptx(&lz4_flex::block::compress(&zeros), Packing::Lz4, 64);
        assert_eq!(result(&bomb), Err(CuResult::INVALID_IMAGE));
        assert_eq!(result(b"\x7fELF\x02\x01"), Err(CuResult::NO_BINARY_FOR_GPU));
        assert_eq!(result(b"nonsense"), Err(CuResult::INVALID_IMAGE));
    }
}
