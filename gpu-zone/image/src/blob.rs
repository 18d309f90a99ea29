//! Blobs, which are what their digests say or are refused.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use sha2::{Digest as _, Sha256};

use crate::ImageError;

/// A manifest and its like are not longer.
const LONGEST_DOCUMENT: u64 = 4 << 20;

/// The SHA-256 of a blob, as 64 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sum(String);

impl Sum {
    /// From `sha256:` and 64 digits; nothing else names a file.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("sha256:")?;
        let hexadecimal = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let fits = digits.len() == 64 && digits.bytes().all(hexadecimal);
        fits.then(|| Self(digits.to_owned()))
    }

    pub(crate) fn digits(&self) -> &str {
        &self.0
    }

    pub(crate) fn named(&self) -> String {
        format!("sha256:{}", self.0)
    }

    pub(crate) fn open(&self, layout: &Path) -> Result<File, ImageError> {
        let path = layout.join("blobs/sha256").join(&self.0);
        let failed = |source: io::Error| ImageError::Io { path: path.clone(), source };
        // Neither a link out of the layout nor a pipe that nobody writes to.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::open(&path, flags, Mode::empty());
        let file = File::from(file.map_err(|error| failed(error.into()))?);
        if !file.metadata().map_err(failed)?.is_file() {
            let reason = "it is no file".to_owned();
            return Err(ImageError::Layout { path, reason });
        }
        Ok(file)
    }

    /// The whole of a short blob.
    pub(crate) fn read(&self, layout: &Path) -> Result<Vec<u8>, ImageError> {
        let mut bytes = Vec::new();
        let read = self.open(layout)?.take(LONGEST_DOCUMENT).read_to_end(&mut bytes);
        read.map_err(|source| ImageError::Io { path: layout.to_owned(), source })?;
        self.check(Sha256::digest(&bytes).as_slice())?;
        Ok(bytes)
    }

    pub(crate) fn check(&self, sum: &[u8]) -> Result<(), ImageError> {
        if hexadecimal(sum) == self.0 {
            return Ok(());
        }
        Err(ImageError::Digest { digest: self.named() })
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Passes on what it reads, and sums it up.
pub(crate) struct Summed<R> {
    inner: R,
    sum: Sha256,
}

impl<R: Read> Summed<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, sum: Sha256::new() }
    }

    /// Reads what is left; whether all of it was what `sum` says.
    pub(crate) fn finish(mut self, sum: &Sum) -> io::Result<Result<R, ImageError>> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(sum.check(self.sum.finalize().as_slice()).map(|()| self.inner))
    }
}

impl<R: Read> Read for Summed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.sum.update(&buffer[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_names_a_blob_and_no_other_file() {
        let digits = "0a".repeat(32);
        assert_eq!(Sum::parse(&format!("sha256:{digits}")).unwrap().digits(), digits);
        let up = format!("sha256:{}{}", "../".repeat(21), "a");
        for wrong in ["sha256:", "sha512:00", &digits, &up, &format!("sha256:{digits}0")] {
            assert_eq!(Sum::parse(wrong), None, "{wrong}");
        }
        assert_eq!(Sum::parse(&format!("sha256:{}", "0A".repeat(32))), None);
    }
}
