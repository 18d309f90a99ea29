//! What a module's image is, how long it is, and what a fat binary holds. Headers come from
//! tenants: lengths are checked, nothing is allocated on their word.

/// The first bytes of machine code.
pub const ELF: [u8; 4] = [0x7f, b'E', b'L', b'F'];
/// The first number of a fat binary.
pub const FAT_BINARY: u32 = 0xba55_ed50;
/// The first number of what points at a fat binary.
pub const FAT_BINARY_WRAPPER: u32 = 0x4662_43b1;
/// Bytes of a fat binary's header.
pub const FAT_HEADER: usize = 16;

/// What kernels call to print, in PTX and among the symbols of machine code.
const PRINT: &[u8] = b"vprintf";

/// Sections without bytes in the file: `SHT_NOBITS`, and CUDA's for global, local and shared memory.
const NOT_IN_FILE: [u64; 4] = [8, 0x7000_0007, 0x7000_0009, 0x7000_000a];

/// Tables of symbols: `SHT_SYMTAB`, and CUDA's for code that is finished when it is loaded.
const SYMBOLS: [u32; 2] = [2, 0x7000_0085];
/// `STT_OBJECT`.
const OBJECT: u8 = 1;
/// In a symbol's `st_other`.
const MANAGED: u8 = 4;

const ENTRY_HEADER: usize = 64;
const LZ4: u64 = 0x2000;
const ZSTD: u64 = 0x8000;

/// The first bytes of a library of objects.
const ARCHIVE: &[u8] = b"!<arch>\n";

/// What is wrong with an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// It is neither text, nor machine code, nor a fat binary.
    #[error("the image is neither a text of PTX, nor machine code, nor a fat binary")]
    Unknown,
    /// Its headers tell of something behind its end.
    #[error("the machine code's headers tell of bytes that it does not have")]
    MachineCode,
    /// It is not what a fat binary is.
    #[error(transparent)]
    Fat(#[from] FatError),
}

/// What is wrong with a fat binary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FatError {
    /// It does not begin as one.
    #[error("the image does not begin as a fat binary does")]
    Header,
    /// It ends within an entry, or an entry is longer than it.
    #[error("entry {0} of the fat binary does not fit into it")]
    Entry(usize),
}

/// How an entry is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// Not at all.
    Plain,
    /// As an LZ4 block.
    Lz4,
    /// As a Zstandard frame.
    Zstd,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// PTX.
    Ptx,
    /// Machine code.
    Elf,
    /// Something else, by its number.
    Other(u16),
}

/// One image of a fat binary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// What it is.
    pub kind: EntryKind,
    /// For which compute capability: 90 for 9.0.
    pub architecture: u32,
    /// How it is packed.
    pub packing: Packing,
    /// Its bytes, as they are packed.
    pub payload: &'a [u8],
    /// How many bytes it says that it is unpacked.
    pub unpacked: u64,
}

/// How long a fat binary with this header is, with the header.
///
/// # Errors
/// When it is none, or longer than anything.
pub fn fat_length(header: &[u8; FAT_HEADER]) -> Result<usize, FatError> {
    let [a, b, c, d, _, _, e, f, size @ ..] = *header;
    if u32::from_le_bytes([a, b, c, d]) != FAT_BINARY {
        return Err(FatError::Header);
    }
    let length = u64::from_le_bytes(size).checked_add(u16::from_le_bytes([e, f]).into());
    let length = length.and_then(|length| usize::try_from(length).ok());
    length.filter(|length| isize::try_from(*length).is_ok()).ok_or(FatError::Header)
}

/// The entries of a fat binary, which may be followed by other bytes.
///
/// # Errors
/// When a length is impossible.
pub fn entries(image: &[u8]) -> Result<Vec<Entry<'_>>, FatError> {
    let header = image.first_chunk().ok_or(FatError::Header)?;
    let length = fat_length(header)?;
    let begin = usize::from(u16::from_le_bytes([header[6], header[7]]));
    let body = image.get(begin..length).ok_or(FatError::Header)?;
    let mut found = Vec::new();
    let mut rest = body;
    // What is left may be padding that is no entry.
    while rest.len() >= ENTRY_HEADER {
        let number = found.len();
        let (entry, after) = entry(rest).ok_or(FatError::Entry(number))?;
        found.push(entry);
        rest = after;
    }
    Ok(found)
}

fn entry(bytes: &[u8]) -> Option<(Entry<'_>, &[u8])> {
    let word = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let wide = |at: usize| Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let kind = u16::from_le_bytes(*bytes.first_chunk()?);
    let header = usize::try_from(word(4)?).ok().filter(|header| *header >= ENTRY_HEADER)?;
    let padded = usize::try_from(wide(8)?).ok()?;
    let packed = usize::try_from(word(16)?).ok()?;
    let (architecture, flags, unpacked) = (word(28)?, wide(40)?, wide(56)?);
    let packing = match (flags & LZ4 != 0, flags & ZSTD != 0) {
        (false, false) => Packing::Plain,
        (true, _) => Packing::Lz4,
        (false, true) => Packing::Zstd,
    };
    let body = bytes.get(header..)?;
    let whole = body.get(..padded)?;
    let payload = match packing {
        Packing::Plain => whole,
        Packing::Lz4 | Packing::Zstd => whole.get(..packed)?,
    };
    let unpacked = if packing == Packing::Plain { padded as u64 } else { unpacked };
    let kind = match kind {
        1 => EntryKind::Ptx,
        2 => EntryKind::Elf,
        other => EntryKind::Other(other),
    };
    Some((Entry { kind, architecture, packing, payload, unpacked }, body.get(padded..)?))
}

/// A fat binary of one text of PTX, as it is or packed; `unpacked` is the text's length.
pub fn fat_binary_of_ptx(payload: &[u8], packing: Packing, unpacked: u64) -> Vec<u8> {
    let padded = payload.len().next_multiple_of(8);
    let flags = match packing {
        Packing::Plain => 0,
        Packing::Lz4 => LZ4,
        Packing::Zstd => ZSTD,
    };
    let mut bytes = Vec::with_capacity(FAT_HEADER + ENTRY_HEADER + padded);
    bytes.extend(FAT_BINARY.to_le_bytes());
    bytes.extend([1, 0, 16, 0]);
    bytes.extend(((ENTRY_HEADER + padded) as u64).to_le_bytes());
    bytes.extend([1, 0, 1, 1]);
    bytes.extend(64u32.to_le_bytes());
    bytes.extend((padded as u64).to_le_bytes());
    let packed = if packing == Packing::Plain { 0 } else { payload.len() };
    bytes.extend(u32::try_from(packed).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend([0; 8]);
    bytes.extend(0u32.to_le_bytes());
    bytes.extend([0; 8]);
    bytes.extend(flags.to_le_bytes());
    bytes.extend([0; 8]);
    let unpacked = if packing == Packing::Plain { 0 } else { unpacked };
    bytes.extend(unpacked.to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes.resize(FAT_HEADER + ENTRY_HEADER + padded, 0);
    bytes
}

/// Bytes that a module's image is unpacked: of a fat binary all its entries, of anything else its
/// own. Whoever loads it reads as far as its headers say, and nothing of them leads out of it: what
/// points at a fat binary elsewhere ([`FAT_BINARY_WRAPPER`]) is no image here.
///
/// # Errors
/// When it is no image, or not as long as it says.
pub fn unpacked_bytes(image: &[u8]) -> Result<u64, ImageError> {
    if image.starts_with(&FAT_BINARY.to_le_bytes()) {
        let entries = entries(image)?;
        for entry in &entries {
            if entry.packing == Packing::Plain && entry.payload.starts_with(&ELF) {
                check_machine_code(entry.payload)?;
            }
        }
        let add = |sum: u64, entry: &Entry<'_>| sum.saturating_add(entry.unpacked);
        return Ok(entries.iter().fold(0, add));
    }
    if image.starts_with(&ELF) {
        check_machine_code(image)?;
    } else if !is_text(image) {
        return Err(ImageError::Unknown);
    }
    Ok(image.len() as u64)
}

/// Whether a linker's input is a library of objects.
pub fn is_archive(input: &[u8]) -> bool {
    input.starts_with(ARCHIVE)
}

/// Whether machine code has a managed variable. Of what is not whole nothing is found.
///
/// Source: what ptxas 13.0 makes of `.attribute(.managed)` for sm_75 to sm_100.
pub fn has_managed(code: &[u8]) -> bool {
    const SYMBOL: usize = 24;
    let word = |at: usize| Some(u32::from_le_bytes(*code.get(at..)?.first_chunk()?));
    let wide =
        |at: usize| usize::try_from(u64::from_le_bytes(*code.get(at..)?.first_chunk()?)).ok();
    let half = |at: usize| Some(usize::from(u16::from_le_bytes(*code.get(at..)?.first_chunk()?)));
    let symbols = |header: usize| {
        let is_table = word(header + 4).is_some_and(|kind| SYMBOLS.contains(&kind));
        let (begin, bytes) = (wide(header + 24)?, wide(header + 32)?);
        if is_table { code.get(begin..begin.checked_add(bytes)?) } else { None }
    };
    let tables = || {
        let (begin, size, count) = (wide(40)?, half(58)?, half(60)?);
        Some((0..count).filter_map(move |index| begin.checked_add(index * size)))
    };
    let is_managed = |symbol: &[u8]| match symbol {
        [_, _, _, _, info, other, ..] => info & 0xf == OBJECT && other & MANAGED != 0,
        _ => false,
    };
    let mut symbols = tables().into_iter().flatten().filter_map(symbols);
    symbols.any(|table| table.chunks(SYMBOL).any(is_managed))
}

/// A text begins with what can be read, has none of the numbers that binary formats begin with, and
/// ends at its first zero.
fn is_text(image: &[u8]) -> bool {
    let end = image.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let can_be_read = |byte: &u8| *byte >= b' ' || matches!(byte, 0x09..=0x0d);
    let (text, begin) = (image.get(..end).unwrap_or_default(), image.first());
    begin.is_none_or(u8::is_ascii) && text.iter().all(can_be_read)
}

fn check_machine_code(image: &[u8]) -> Result<(), ImageError> {
    let at = |offset: u64| {
        let bytes = image.get(usize::try_from(offset).ok()?..)?;
        // What is read as eight bytes may be less at the end.
        let mut word = [0; 8];
        let there = bytes.len().min(8);
        word.get_mut(..there)?.copy_from_slice(bytes.get(..there)?);
        (there > 0).then_some(word)
    };
    // Of 64 bits, the least significant byte first.
    let fits = image.get(4..6) == Some(&[2, 1])
        && elf_length(&at).is_some_and(|length| length <= image.len() as u64);
    if fits { Ok(()) } else { Err(ImageError::MachineCode) }
}

/// Where the last of an ELF image's headers, segments and sections ends. `at` reads eight bytes from
/// an offset on, if there are some.
pub fn elf_length(at: &dyn Fn(u64) -> Option<[u8; 8]>) -> Option<u64> {
    let word = |offset| at(offset).map(u64::from_le_bytes);
    let half = |offset| word(offset).map(|word| word & 0xffff);
    let (programs, sections) = (word(32)?, word(40)?);
    let (program_size, program_count) = (half(54)?, half(56)?);
    let (section_size, section_count) = (half(58)?, half(60)?);
    let mut end = programs.checked_add(program_size * program_count)?;
    end = end.max(sections.checked_add(section_size * section_count)?);
    for index in 0..program_count {
        let header = programs.checked_add(index * program_size)?;
        end = end.max(word(header + 8)?.checked_add(word(header + 32)?)?);
    }
    for index in 0..section_count {
        let header = sections.checked_add(index * section_size)?;
        let kind = word(header.checked_add(4)?)? & 0xffff_ffff;
        if !NOT_IN_FILE.contains(&kind) {
            end = end.max(word(header + 24)?.checked_add(word(header + 32)?)?);
        }
    }
    Some(end)
}

/// Whether kernels of this text or machine code may print: they can where it names the function that
/// does.
pub fn may_print(code: &[u8]) -> bool {
    memchr::memmem::find(code, PRINT).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_is_read() {
        for packing in [Packing::Plain, Packing::Lz4, Packing::Zstd] {
            let image = fat_binary_of_ptx(b".version 8.0\n", packing, 999);
            assert_eq!(fat_length(image.first_chunk().expect("long")), Ok(image.len()));
            let read = entries(&image).expect("entries");
            let [only] = read.as_slice() else { panic!("{read:?}") };
            assert_eq!((only.kind, only.packing), (EntryKind::Ptx, packing));
            assert!(only.payload.starts_with(b".version 8.0\n"));
            let expected = if packing == Packing::Plain { 16 } else { 999 };
            assert_eq!(unpacked_bytes(&image), Ok(expected));
        }
        assert_eq!(unpacked_bytes(b".version"), Ok(8));
    }

    #[test]
    fn what_leads_out_of_an_image_is_none() {
        // What points at a fat binary, wherever that is.
        let mut wrapper = FAT_BINARY_WRAPPER.to_le_bytes().to_vec();
        wrapper.extend([1, 0, 0, 0]);
        wrapper.extend(0xdead_beef_u64.to_le_bytes());
        assert_eq!(unpacked_bytes(&wrapper), Err(ImageError::Unknown));
        assert!(!is_archive(&wrapper));
        for other in
            [&[0x01, 0x5a, 0xe5, 0x1e][..], b"BC\xc0\xde\x00\x01", b".ver\0sion", b"\xff\xff"]
        {
            assert_eq!(unpacked_bytes(other), Err(ImageError::Unknown), "{other:?}");
        }
        assert_eq!(unpacked_bytes(b"// \xc3\xa4\n.version 8.0\n\0\0"), Ok(21));
        assert!(unpacked_bytes(ARCHIVE).is_ok(), "a text, if no good one");
        assert!(is_archive(b"!<arch>\n\x01\0"));
    }

    /// Machine code of one section of eight bytes, and one that is not in the file.
    fn machine_code() -> Vec<u8> {
        let mut image = vec![0; 64 + 8 + 2 * 64];
        image[..4].copy_from_slice(&ELF);
        image[4..6].copy_from_slice(&[2, 1]);
        image[40..48].copy_from_slice(&72u64.to_le_bytes());
        image[58..60].copy_from_slice(&64u16.to_le_bytes());
        image[60..62].copy_from_slice(&2u16.to_le_bytes());
        let (bytes, none) = (72, 72 + 64);
        image[bytes + 4] = 1;
        image[bytes + 24..bytes + 32].copy_from_slice(&64u64.to_le_bytes());
        image[bytes + 32..bytes + 40].copy_from_slice(&8u64.to_le_bytes());
        image[none + 4] = 8;
        image[none + 32..none + 40].copy_from_slice(&u64::MAX.to_le_bytes());
        image
    }

    #[test]
    fn a_managed_variable_is_found_among_the_symbols() {
        let mut image = machine_code();
        // The section is a table of one symbol behind the headers.
        let at = image.len();
        image.extend([0; 24]);
        image[72 + 4] = 2;
        image[72 + 24..72 + 32].copy_from_slice(&(at as u64).to_le_bytes());
        image[72 + 32..72 + 40].copy_from_slice(&24u64.to_le_bytes());
        for (info, other, managed) in [(0x11, 4, true), (0x11, 0, false), (0x12, 0x14, false)] {
            (image[at + 4], image[at + 5]) = (info, other);
            assert_eq!(has_managed(&image), managed, "{info} {other}");
        }
        image[at + 4] = 0x11;
        for cut in 0..image.len() {
            has_managed(&image[..cut]);
        }
    }

    #[test]
    fn machine_code_has_all_that_its_headers_tell_of() {
        let image = machine_code();
        assert_eq!(unpacked_bytes(&image), Ok(image.len() as u64));
        for cut in 4..image.len() {
            assert!(unpacked_bytes(&image[..cut]).is_err(), "cut at {cut}");
        }
        // The class, the order, where sections are, how many, where one is and how long.
        for (at, what) in
            [(4, 1), (5, 2), (41, 1), (47, 255), (60, 3), (72 + 25, 1), (72 + 39, 255)]
        {
            let mut broken = image.clone();
            broken[at] = what;
            assert_eq!(unpacked_bytes(&broken), Err(ImageError::MachineCode), "byte {at}");
            let fat = fat_binary_of_ptx(&broken, Packing::Plain, 0);
            assert_eq!(unpacked_bytes(&fat), Err(ImageError::MachineCode), "byte {at}");
        }
    }

    #[test]
    fn what_may_print_names_it() {
        assert!(may_print(b"\x7fELF..\0vprintf\0") && !may_print(b"\x7fELF..\0printf\0"));
    }

    #[test]
    fn impossible_lengths_are_refused() {
        let image = fat_binary_of_ptx(b".version 8.0\n", Packing::Lz4, 13);
        for cut in 0..image.len() {
            assert!(entries(&image[..cut]).is_err(), "cut at {cut}");
        }
        for (at, what) in [(20, 63u8), (24, 255), (31, 255), (35, 255), (8, 255), (15, 255)] {
            let mut broken = image.clone();
            broken[at] = what;
            assert!(entries(&broken).is_err(), "byte {at}");
        }
        assert_eq!(entries(b"nonsense that is long enough"), Err(FatError::Header));
    }
}
