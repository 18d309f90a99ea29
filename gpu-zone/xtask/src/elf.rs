//! What a program's file says of how it was linked.

use std::path::Path;

use anyhow::{Context, bail};

/// Program headers of this type name the loader; what has none is static.
const PT_INTERP: u32 = 3;

/// Reads the program's headers: a 64-bit ELF file that asks for no loader.
pub(crate) fn is_static(program: &Path) -> anyhow::Result<()> {
    let bytes =
        std::fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    let headers = headers(&bytes).context("the program is no 64-bit ELF file")?;
    if headers.contains(&PT_INTERP) {
        bail!("{} asks for a loader: it is not static", program.display());
    }
    Ok(())
}

/// The types of an ELF file's program headers.
fn headers(bytes: &[u8]) -> Option<Vec<u32>> {
    if bytes.get(..5)? != b"\x7fELF\x02" {
        return None;
    }
    let half =
        |at: usize| Some(usize::from(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?)));
    let start = u64::from_le_bytes(bytes.get(32..40)?.try_into().ok()?);
    let (start, size, count) = (usize::try_from(start).ok()?, half(54)?, half(56)?);
    let kind = |n: usize| {
        let at = start.checked_add(n.checked_mul(size)?)?;
        Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
    };
    (0..count).map(kind).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_with_a_loader_is_seen() {
        // This one is linked as the toolchain does by default.
        let own = std::fs::read(std::env::current_exe().expect("a path")).expect("readable");
        assert!(headers(&own).expect("an ELF file").contains(&PT_INTERP));
        assert_eq!(headers(b"#!/bin/sh\n"), None);
        assert_eq!(headers(own.get(..60).expect("longer")), None);
    }
}
