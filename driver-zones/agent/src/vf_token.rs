//! Tokens of virtual functions whose physical one is on VFIO: secrets, read from files when they are
//! needed, and shown by nothing.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use gpuzone_core::VfToken;

/// A UUID and a line's end take less; a longer file is not read to its end.
const LONGEST: u64 = 64;
/// Anybody but the file's owner.
const OTHERS: u32 = 0o077;

/// Why a token is not used. What the file says is in none of these.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    /// The file cannot be read.
    #[error("its token cannot be read from {}: {source}", .path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others may read it.
    #[error(
        "its token's file {} is not a file of root's or the agent's own that nobody else may read; give it to root, with mode 0400", .path.display()
    )]
    Open {
        /// Which.
        path: PathBuf,
    },
    /// It is none.
    #[error(
        "its token's file {} holds no UUID alone; write the one that the owner of its physical function has set", .path.display()
    )]
    NoToken {
        /// Which.
        path: PathBuf,
    },
}

/// Reads the token in the file at `path`.
pub(crate) fn read(path: &Path) -> Result<VfToken, TokenError> {
    let io = |source| TokenError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    let found = file.metadata().map_err(io)?;
    let own = rustix::process::geteuid().as_raw();
    let alone = found.mode() & OTHERS == 0 && (found.uid() == 0 || found.uid() == own);
    if !found.is_file() || !alone {
        return Err(TokenError::Open { path: path.to_owned() });
    }
    let mut text = String::new();
    let none = || TokenError::NoToken { path: path.to_owned() };
    match file.take(LONGEST).read_to_string(&mut text) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(none()),
        Err(error) => return Err(io(error)),
    }
    text.trim().parse().map_err(|_| none())
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const TOKEN: &str = "00112233-4455-6677-8899-aabbccddeeff";

    #[test]
    fn a_token_is_a_uuid_in_a_file_that_is_its_owners_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let put = |text: &[u8], mode| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            read(&path)
        };
        assert_eq!(put(format!("{TOKEN}\n").as_bytes(), 0o600).unwrap(), TOKEN.parse().unwrap());
        for mode in [0o640, 0o604, 0o660, 0o620] {
            let said = put(TOKEN.as_bytes(), mode).unwrap_err().to_string();
            assert!(said.contains("mode 0400") && !said.contains(TOKEN), "{mode:o}: {said}");
        }
        let long = format!("{TOKEN}\n{TOKEN}\n");
        for wrong in [&b"sekret"[..], b"", b"\xff\xfe", long.as_bytes(), &TOKEN.as_bytes()[1..]] {
            let said = put(wrong, 0o600).unwrap_err().to_string();
            assert!(said.contains("holds no UUID") && !said.contains("sekret"), "{said}");
        }
        assert!(matches!(read(folder.path()), Err(TokenError::Open { .. })));
        assert!(matches!(read(&folder.path().join("none")), Err(TokenError::Io { .. })));
    }
}
