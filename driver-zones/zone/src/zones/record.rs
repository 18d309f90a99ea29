//! What the owner of zones writes down about each, for the owner after it.
//!
//! A record names a process of this boot, so it need not outlive a power failure, and is not
//! synced to disk; it does outlive its writer.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::{ProcessId, WrongEvent, ZoneEvent, ZoneState};

const SUFFIX: &str = ".zone";
/// Behind the process's number in the name of a record that is being written.
const HALF: &str = ".new";
/// In front of the name of a record that could not be read and was put aside.
const UNREADABLE: &str = ".unreadable-";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    pub(super) kind: String,
    pub(super) state: ZoneState,
    pub(super) process: ProcessId,
}

/// Why a zone does not take on a state.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnterError {
    #[error(transparent)]
    Wrong(#[from] WrongEvent),
    #[error("cannot write down the zone: {0}")]
    Record(#[from] io::Error),
}

/// Has the state after `event` written down, then takes it on; whether it is another one.
pub(super) fn enter(
    record: &mut Record,
    event: ZoneEvent,
    write: impl FnOnce(&Record) -> io::Result<()>,
) -> Result<bool, EnterError> {
    let state = record.state.after(event)?;
    let differs = state != record.state;
    if differs {
        let next = Record { state, ..record.clone() };
        write(&next)?;
        *record = next;
    }
    Ok(differs)
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
    let name = path.file_name().unwrap_or_default();
    let folder = open(path.parent().unwrap_or(Path::new(".")))?;
    write_at(&folder, name, &Path::new(name).with_extension("new"), record)
}

/// A folder of records, for [`write_at`] and [`remove_at`].
pub(super) fn open(folder: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(folder, flags, Mode::empty())?)
}

/// By way of `new` in the same folder.
pub(super) fn write_at(
    folder: &OwnedFd,
    name: &OsStr,
    new: &Path,
    record: &Record,
) -> io::Result<()> {
    remove_at(folder, new.as_os_str())?;
    // Made anew, so that nobody's link is written through.
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mut file = File::from(openat(folder, new, flags, Mode::from_raw_mode(0o644))?);
    file.write_all(&serde_json::to_vec(record)?)?;
    Ok(renameat(folder, new, folder, name)?)
}

/// Where a launcher writes a record before it takes the place of the one at `path`.
pub(super) fn half(path: &Path, process: ProcessId) -> PathBuf {
    path.with_extension(format!("{}{HALF}", process.pid))
}

/// One that is not there is no error.
pub(super) fn remove_at(folder: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What is in a folder of records.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Records, by the name of their zone.
    pub(super) records: Vec<(String, PathBuf)>,
    /// Records that are being written, or were when their writer was killed, by the number of
    /// the process that they are about where its launcher owns the zone.
    pub(super) halves: Vec<(Option<u32>, PathBuf)>,
}

pub(super) fn all(folder: &Path) -> io::Result<Found> {
    let mut found = Found::default();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let zone = name.strip_suffix(SUFFIX).filter(|zone| crate::sandbox::is_name(zone));
        let half = name.strip_suffix(HALF).map(|name| name.rsplit('.').next()?.parse().ok());
        match (zone, half) {
            (Some(zone), _) => found.records.push((zone.to_owned(), path)),
            (None, Some(pid)) => found.halves.push((pid, path)),
            (None, None) => {}
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
