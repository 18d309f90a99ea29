use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use crate::error::{CliError, Kind};

/// A program that is there and may be run, and its arguments.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) file: PathBuf,
    /// As it was written.
    pub(crate) name: OsString,
    pub(crate) arguments: Vec<OsString>,
}

impl Program {
    /// Finds the program as a shell does: a name with a slash is a path, any other is looked
    /// for in `PATH`.
    pub(crate) fn find(command: &[OsString]) -> Result<Self, CliError> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let Some((name, arguments)) = command.split_first() else {
            return Err(CliError::new(Kind::Usage, "there is no program to run"));
        };
        let file = find(name, &path)?;
        Ok(Self { file, name: name.clone(), arguments: arguments.to_vec() })
    }
}

fn find(name: &OsStr, path: &OsStr) -> Result<PathBuf, CliError> {
    let shown = gpuzone_ledger::printable(&name.to_string_lossy());
    let candidates: Vec<PathBuf> = if name.as_encoded_bytes().contains(&b'/') {
        vec![PathBuf::from(name)]
    } else if name.is_empty() {
        Vec::new()
    } else {
        std::env::split_paths(path).map(|folder| folder.join(name)).collect()
    };
    if let Some(file) = candidates.iter().find(|file| runs(file)) {
        return Ok(file.clone());
    }
    if candidates.iter().any(|file| file.exists()) {
        let message = format!("'{shown}' is there, but it is no program that you may run");
        let hint = "make the file executable with `chmod +x`, or run it with its interpreter";
        return Err(CliError::new(Kind::NotExecutable, message).hint(hint));
    }
    let message = format!("there is no program '{shown}'; nothing was started and no lease made");
    let hint = "look for a typing error, or write the program's whole path";
    Err(CliError::new(Kind::NoProgram, message).hint(hint))
}

fn runs(file: &Path) -> bool {
    file.is_file() && access(file, Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_a_shell_finds() {
        let folder = tempfile::tempdir().unwrap();
        let empty = tempfile::tempdir().unwrap();
        let path = std::env::join_paths([empty.path(), folder.path()]).unwrap();
        let file = folder.path().join("tool");
        let kind = |name: &OsStr| find(name, &path).map_err(|error| error.kind);
        assert_eq!(kind("tool".as_ref()), Err(Kind::NoProgram));
        std::fs::write(&file, "#!/bin/sh\n").unwrap();
        assert_eq!(kind("tool".as_ref()), Err(Kind::NotExecutable));
        assert_eq!(kind(folder.path().as_os_str()), Err(Kind::NotExecutable));
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&file, mode).unwrap();
        assert_eq!(kind("tool".as_ref()), Ok(file.clone()));
        assert_eq!(kind(file.as_os_str()), Ok(file.clone()));
        assert_eq!(kind("./tool".as_ref()), Err(Kind::NoProgram));
        assert_eq!(kind("".as_ref()), Err(Kind::NoProgram));
    }
}
