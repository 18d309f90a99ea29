use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, OFlags};

/// What a workload sees: its files below a root, and its environment. Tests give a folder.
#[derive(Clone, Debug)]
pub struct Host {
    root: PathBuf,
    environment: BTreeMap<String, OsString>,
}

impl Host {
    /// The workload that this process is in.
    #[must_use]
    pub fn here() -> Self {
        let texts = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v)));
        Self { root: PathBuf::from("/"), environment: texts.collect() }
    }

    /// Files below `root`, and this environment.
    #[must_use]
    pub fn new(root: PathBuf, environment: BTreeMap<String, OsString>) -> Self {
        Self { root, environment }
    }

    /// The file that the workload calls `path`.
    #[must_use]
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// `path` as the workload calls it.
    pub(crate) fn shown(&self, path: &Path) -> String {
        let inner = path.strip_prefix(&self.root).unwrap_or(path);
        format!("/{}", inner.display()).replace("//", "/")
    }

    /// A variable that is set to something.
    pub(crate) fn variable(&self, name: &str) -> Option<String> {
        let value = self.environment.get(name)?.to_string_lossy().into_owned();
        (!value.is_empty()).then_some(value)
    }

    /// All variables.
    pub(crate) fn variables(&self) -> &BTreeMap<String, OsString> {
        &self.environment
    }

    /// A file's text without the white space around it; nothing when it cannot be read.
    pub(crate) fn text(&self, path: &str) -> Option<String> {
        let bytes = std::fs::read(self.path(path)).ok()?;
        Some(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// What a folder holds, sorted; nothing when it cannot be listed.
    pub(crate) fn entries(&self, folder: &str) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.path(folder)).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        paths.sort();
        paths
    }

    /// Whether this process may read a file, by what the kernel says and without opening it.
    pub(crate) fn readable(&self, path: &str) -> bool {
        rustix::fs::access(self.path(path), Access::READ_OK).is_ok()
    }

    /// Whether this process may write a file, by what the kernel says and without opening it.
    pub(crate) fn writable(path: &Path) -> bool {
        rustix::fs::access(path, Access::WRITE_OK).is_ok()
    }
}

/// Opens a node as far as needed to know that it can be opened.
pub(crate) fn opens(path: &Path, write: bool) -> io::Result<std::os::fd::OwnedFd> {
    let way = if write { OFlags::RDWR } else { OFlags::RDONLY };
    let flags = way | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    Ok(rustix::fs::open(path, flags, rustix::fs::Mode::empty())?)
}

/// The last part of a path.
pub(crate) fn name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
