//! What the owner of zones writes down about each, for the owner after it.
//!
//! A record names a process of this boot, so it need not outlive a power failure, and is not
//! synced to disk; it does outlive its writer.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{ProcessId, ZoneState};

const SUFFIX: &str = ".zone";
/// In front of the name of a record that could not be read and was put aside.
const UNREADABLE: &str = ".unreadable-";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    pub(super) kind: String,
    pub(super) state: ZoneState,
    pub(super) process: ProcessId,
}

/// Why a record is not one.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Read(#[from] io::Error),
    /// It is not what an owner writes.
    #[error("it is not what an owner writes: {0}")]
    Json(#[from] serde_json::Error),
    /// It is about a zone of another kind.
    #[error("it is about a zone of the kind '{0}'")]
    Kind(String),
}

pub(super) fn path(folder: &Path, zone: &str) -> PathBuf {
    folder.join(format!("{zone}{SUFFIX}"))
}

/// Replaces the record; whatever happens, it is the old one or the new one.
pub(super) fn write(path: &Path, record: &Record) -> io::Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, serde_json::to_vec(record)?)?;
    std::fs::rename(&new, path)
}

/// The records in a folder, by the name of their zone.
pub(super) fn all(folder: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        match name.strip_suffix(SUFFIX) {
            Some(zone) if crate::sandbox::is_name(zone) => found.push((zone.to_owned(), path)),
            Some(_) => {}
            // Half of one: its zone was held back, and has ended by itself.
            None if name.ends_with(".new") => crate::files::remove(&path)?,
            None => {}
        }
    }
    Ok(found)
}

pub(super) fn read(path: &Path, kind: &str) -> Result<Record, RecordError> {
    let record: Record = serde_json::from_slice(&std::fs::read(path)?)?;
    if record.kind != kind {
        return Err(RecordError::Kind(record.kind));
    }
    Ok(record)
}

/// Keeps what cannot be read, out of the way.
pub(super) fn put_aside(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let free = (0u32..1000)
        .map(|n| path.with_file_name(format!("{UNREADABLE}{n}-{name}")))
        .find(|aside| !aside.exists())
        .ok_or(io::ErrorKind::AlreadyExists)?;
    std::fs::rename(path, &free)?;
    Ok(free)
}
