//! Kernels and images are the files that were meant, or nothing is booted from them.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// Why a file is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum DigestError {
    /// It cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is another file.
    #[error(
        "{} is {found} and not {wanted}, which the configuration names; put the right file there, or its digest into the configuration", .path.display()
    )]
    Other {
        /// Where.
        path: PathBuf,
        /// As it should be.
        wanted: String,
        /// As it is.
        found: String,
    },
}

/// Fails unless the file is the one that was meant.
///
/// # Errors
/// When it is another, or cannot be read.
pub fn check_digest(path: &Path, wanted: &str) -> Result<(), DigestError> {
    let found = digest_of(path)?;
    if found == wanted {
        return Ok(());
    }
    Err(DigestError::Other { path: path.to_owned(), wanted: wanted.to_owned(), found })
}

/// A file's digest: `sha256:` and 64 hexadecimal digits.
///
/// # Errors
/// When it cannot be read.
pub fn digest_of(path: &Path) -> Result<String, DigestError> {
    let unreadable = |source| DigestError::File { path: path.to_owned(), source };
    let mut file = std::fs::File::open(path).map_err(unreadable)?;
    let mut hash = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        match file.read(&mut piece).map_err(unreadable)? {
            0 => break,
            length => hash.update(piece.get(..length).unwrap_or_default()),
        }
    }
    let digits =
        hash.finalize().iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    Ok(format!("sha256:{digits}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_file_is_named_with_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, "abc").unwrap();
        let abc = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        check_digest(&path, abc).unwrap();
        std::fs::write(&path, "abd").unwrap();
        let error = check_digest(&path, abc).unwrap_err();
        assert!(matches!(&error, DigestError::Other { wanted, .. } if wanted == abc), "{error}");
        assert!(check_digest(&dir.path().join("none"), abc).is_err());
    }
}
