//! A kernel as it is before it is packed: QEMU starts it at its PVH entry, and nothing unpacks it in each
//! machine anew.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};

/// `XEN_ELFNOTE_PHYS32_ENTRY`: where a kernel is entered by PVH.
const PVH_ENTRY: u32 = 18;
const NOTES: u32 = 4;

/// Writes what is packed in the bzImage `kernel`.
///
/// # Errors
/// When it is none, or cannot be entered unpacked.
#[allow(clippy::print_stdout, reason = "a command of the project tells what it does")]
pub(crate) fn unpack(kernel: &Path, output: &Path) -> anyhow::Result<()> {
    let image = std::fs::read(kernel).with_context(|| kernel.display().to_string())?;
    let packed = payload(&image).with_context(|| kernel.display().to_string())?;
    let whole = unpacked(packed)?;
    ensure!(
        has_pvh_entry(&whole),
        "{} has no PVH entry (CONFIG_PVH), so that it starts as a bzImage only",
        kernel.display()
    );
    let folder = output.parent().context("the output has a folder")?;
    std::fs::create_dir_all(folder)?;
    std::fs::write(output, &whole).with_context(|| output.display().to_string())?;
    println!("kernel     {} ({} KiB)", output.display(), whole.len() >> 10);
    Ok(())
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The packed kernel in a bzImage, by its header (Documentation/arch/x86/boot.rst).
fn payload(image: &[u8]) -> anyhow::Result<&[u8]> {
    let none = "it is no bzImage of protocol 2.08 or later";
    ensure!(image.get(0x202..0x206) == Some(b"HdrS"), none);
    let sectors = usize::from(*image.get(0x1f1).context(none)?);
    let begins = (if sectors == 0 { 4 } else { sectors } + 1) * 512;
    let offset = number(image, 0x248).context(none)? as usize;
    let length = number(image, 0x24c).context(none)? as usize;
    image.get(begins + offset..).and_then(|rest| rest.get(..length)).context(none)
}

/// By the program that unpacks it, which the kernel's build used to pack it.
fn unpacked(packed: &[u8]) -> anyhow::Result<Vec<u8>> {
    let (program, own_length) = match packed {
        [0x1f, 0x8b, ..] => ("gzip", true),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => ("zstd", false),
        [0xfd, b'7', b'z', b'X', ..] => ("xz", false),
        [0x02, 0x21, 0x4c, 0x18, ..] => ("lz4", false),
        [b'B', b'Z', b'h', ..] => ("bzip2", false),
        _ => bail!("it is packed in a way that is not known here"),
    };
    // Behind it the build puts its length, unless the format has it.
    let end = packed.len().saturating_sub(if own_length { 0 } else { 4 });
    let stream = packed.get(..end).unwrap_or_default().to_vec();
    let mut child = Command::new(program)
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {program}, which unpacks this kernel"))?;
    let mut input = child.stdin.take().context("no input")?;
    let writer = std::thread::spawn(move || input.write_all(&stream));
    let output = child.wait_with_output()?;
    let written = writer.join().unwrap_or(Ok(()));
    ensure!(output.status.success(), "{program} cannot unpack it: {}", output.status);
    written.context(program)?;
    let length = number(packed, packed.len().saturating_sub(4));
    ensure!(
        length.map(|length| length as usize) == Some(output.stdout.len()),
        "{program} unpacked {} bytes, and the kernel says another number",
        output.stdout.len()
    );
    Ok(output.stdout)
}

/// Whether a 64-bit ELF file has a note on where PVH enters it.
fn has_pvh_entry(file: &[u8]) -> bool {
    let long = |at: usize| Some(u64::from_le_bytes(file.get(at..at + 8)?.try_into().ok()?));
    let short = |at: usize| Some(u16::from_le_bytes(file.get(at..at + 2)?.try_into().ok()?));
    let (Some(table), Some(size), Some(count)) = (long(0x20), short(0x36), short(0x38)) else {
        return false;
    };
    let segments = (0..usize::from(count)).filter_map(|n| {
        let at = usize::try_from(table).ok()?.checked_add(n * usize::from(size))?;
        let begins = usize::try_from(long(at + 8)?).ok()?;
        let length = usize::try_from(long(at + 32)?).ok()?;
        (number(file, at)? == NOTES).then(|| file.get(begins..)?.get(..length)).flatten()
    });
    file.starts_with(b"\x7fELF\x02") && segments.into_iter().any(is_among)
}

fn is_among(mut notes: &[u8]) -> bool {
    while let (Some(name), Some(length), Some(kind)) =
        (number(notes, 0), number(notes, 4), number(notes, 8))
    {
        let padded = |length: u32| (length as usize).next_multiple_of(4);
        if kind == PVH_ENTRY && notes.get(12..16) == Some(b"Xen\0") {
            return true;
        }
        let next = 12 + padded(name) + padded(length);
        notes = notes.get(next..).unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As much of an ELF file as has these notes.
    fn elf(notes: &[u8]) -> Vec<u8> {
        let mut file = vec![0; 64 + 56];
        file[..5].copy_from_slice(b"\x7fELF\x02");
        file[0x20] = 64;
        (file[0x36], file[0x38]) = (56, 1);
        file[64] = 4;
        file[64 + 8] = 120;
        file[64 + 32] = u8::try_from(notes.len()).unwrap();
        file.extend(notes);
        file
    }

    fn note(kind: u8) -> Vec<u8> {
        let mut note = vec![4, 0, 0, 0, 4, 0, 0, 0, kind, 0, 0, 0];
        note.extend(b"Xen\0\x01\0\0\0");
        note
    }

    #[test]
    fn a_kernel_with_a_pvh_entry_is_told_from_one_without() {
        assert!(has_pvh_entry(&elf(&[note(6), note(18)].concat())));
        for without in [elf(&note(6)), elf(&[]), Vec::new(), vec![0xff; 200], note(18)] {
            assert!(!has_pvh_entry(&without));
        }
    }

    #[test]
    fn what_is_packed_is_found_and_unpacked_whole() {
        let text = b"a kernel".repeat(100);
        let mut gzip = Command::new("gzip");
        gzip.arg("-c").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = gzip.spawn().unwrap();
        child.stdin.take().unwrap().write_all(&text).unwrap();
        let packed = child.wait_with_output().unwrap().stdout;
        let mut image = vec![0; 1024];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x1f1] = 1;
        image[0x248] = 16;
        image[0x24c..0x250].copy_from_slice(&u32::try_from(packed.len()).unwrap().to_le_bytes());
        image.extend([0; 16]);
        image.extend(&packed);
        assert_eq!(unpacked(payload(&image).unwrap()).unwrap(), text);
        assert!(payload(&image[..1100.min(image.len() - 1)]).is_err());
        assert!(payload(b"no kernel").is_err() && unpacked(b"????").is_err());
    }
}
