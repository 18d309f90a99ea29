use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

use crate::mig::Raw;
use crate::{DiscoverError, OpenError};

/// An open NVML library.
#[derive(Debug)]
pub struct NvmlLibrary {
    path: PathBuf,
    /// What its binding has not.
    pub(crate) raw: Raw,
    pub(crate) nvml: Nvml,
}

impl NvmlLibrary {
    /// Opens the library at `path` and initialises it. A name without a slash is looked for
    /// where the loader looks for libraries.
    ///
    /// # Errors
    /// When there is no such library, it is not NVML, or its driver does not work.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let is_name = path.components().count() == 1 && !path.is_absolute();
        if !is_name {
            check_file(path)?;
        }
        match Nvml::builder().lib_path(path.as_os_str()).init() {
            Ok(nvml) => match Raw::open(path) {
                Ok(raw) => Ok(Self { path: path.to_owned(), raw, nvml }),
                Err(reason) => Err(OpenError::NotALibrary { path: path.to_owned(), reason }),
            },
            Err(error) => Err(explain(path, is_name, error)),
        }
    }

    /// Where it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Version of the GPUs' driver, as people know it.
    ///
    /// # Errors
    /// When NVML does not say.
    pub fn driver_version(&self) -> Result<String, DiscoverError> {
        self.nvml
            .sys_driver_version()
            .map_err(|error| DiscoverError::Node { what: "driver's version", source: error.into() })
    }
}

/// The loader has one error for everything; a look at the file tells them apart.
fn check_file(path: &Path) -> Result<(), OpenError> {
    let metadata = File::open(path).and_then(|file| file.metadata());
    match metadata {
        Ok(metadata) if metadata.is_file() => Ok(()),
        Ok(_) => Err(OpenError::NotALibrary {
            path: path.to_owned(),
            reason: "it is not a file".to_owned(),
        }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(OpenError::Missing(path.to_owned())),
        Err(source) => Err(OpenError::Unreadable { path: path.to_owned(), source }),
    }
}

fn explain(path: &Path, is_name: bool, error: NvmlError) -> OpenError {
    let path = path.to_owned();
    match error {
        NvmlError::LibloadingError(_) if is_name => OpenError::Missing(path),
        NvmlError::LibloadingError(error) => {
            OpenError::NotALibrary { path, reason: error.to_string() }
        }
        NvmlError::FailedToLoadSymbol(_) => OpenError::NotNvml(path),
        NvmlError::DriverNotLoaded => OpenError::DriverNotLoaded(path),
        NvmlError::LibRmVersionMismatch => OpenError::VersionMismatch(path),
        NvmlError::NoPermission => OpenError::NoPermission(path),
        other => OpenError::Failed { path, source: other.into() },
    }
}
