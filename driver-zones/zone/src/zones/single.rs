//! Zones of one program, each owned by its launcher: the task is that process's only thread.
//!
//! ```text
//! orders read ─▶ record: starting ─▶ groups, users, namespaces ─▶ program begins ─▶ record: running
//!                                         │ fails, or is late            │ its program ends
//!                                         └▶ record: ending ─▶ gone ─▶ record removed ◀┘
//! ```
//!
//! The launcher is there exactly as long as the zone, with its starter's rights and no others, and
//! the kernel ends the zone when it is killed. So such a zone never runs without its owner, and
//! there is nothing of it to adopt: what a killed launcher left is a record and control groups,
//! which the zone's janitor takes away, and [`settle`] where that was killed, too.

use std::fs::DirBuilder;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::record::{self, EnterError, Found, Record};
use super::{RecordError, START_LIMIT};
use crate::backend::Backend;
use crate::sandbox::{Sandboxes, end_groups, stats_of, sweep_claims};
use crate::{ProcessId, ZoneEvent, ZoneState};

/// How long a program may take to begin.
pub(crate) const LIMIT: Duration = START_LIMIT;

/// This process's zone, and its record.
#[derive(Debug)]
pub(crate) struct Single {
    path: PathBuf,
    /// Of the record. The zone's root takes the place of this process's, too, so that paths lead
    /// elsewhere then.
    folder: OwnedFd,
    record: Record,
}

/// A zone of one program, for those who look.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// What kind of zone it is.
    pub kind: &'static str,
    /// Where it is in its life.
    pub state: ZoneState,
    /// The number of the process that owns it.
    pub pid: u32,
    /// Its processes, with those that only keep the zone.
    pub processes: u64,
    /// Bytes of the host's memory that they have in use.
    pub memory_bytes: u64,
    /// Processor time that they took.
    pub cpu_nanoseconds: u64,
}

impl Single {
    /// Writes down in `folder` that this process starts the zone, before anything of it is made.
    pub(crate) fn start(folder: &Path, zone: &str) -> Result<Self, EnterError> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let path = record::path(folder, zone);
        if let Ok(found) = record::read(&path, Sandboxes::KIND)
            && found.process.is_alive()?
        {
            let message = format!("there is a zone '{zone}' already, and it has not ended");
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, message).into());
        }
        let (kind, process) = (Sandboxes::KIND.to_owned(), ProcessId::own()?);
        let record = Record { kind, state: ZoneState::Made, process };
        let mut single = Self { path, folder: record::open(folder)?, record };
        single.enter(ZoneEvent::Start)?;
        Ok(single)
    }

    /// The files that are left of it when this process is killed: the record, and half of one.
    pub(crate) fn files(&self) -> [PathBuf; 2] {
        [self.path.clone(), record::half(&self.path, self.record.process)]
    }

    /// Takes on the state after `event`, written down first. On an error the zone is to be ended.
    pub(crate) fn enter(&mut self, event: ZoneEvent) -> Result<(), EnterError> {
        let (name, folder) = (self.path.file_name().unwrap_or_default(), &self.folder);
        let half = record::half(Path::new(name), self.record.process);
        let write = |record: &Record| record::write_at(folder, name, &half, record);
        record::enter(&mut self.record, event, write).map(drop)
    }

    /// To be called when nothing of the zone is left.
    pub(crate) fn gone(mut self) {
        self.record.state = self.record.state.after(ZoneEvent::Gone).unwrap_or(ZoneState::Ended);
        // One that stays names a process that is about to be gone, and is settled.
        let _ = record::remove_at(&self.folder, self.path.file_name().unwrap_or_default());
    }
}

/// The zones in `folder` whose owners live, with what they use.
///
/// # Errors
/// When the folder cannot be read, or a process cannot be looked at.
pub fn list(folder: &Path) -> io::Result<Vec<Listed>> {
    let mut listed = Vec::new();
    for (name, path) in found(folder)?.records {
        let Ok(record) = record::read(&path, Sandboxes::KIND) else { continue };
        if !record.process.is_alive()? {
            continue;
        }
        let pid = record.process.pid;
        let used = stats_of(pid)?;
        listed.push(Listed {
            name,
            kind: Sandboxes::KIND,
            state: record.state,
            pid,
            processes: used.processes,
            memory_bytes: used.memory,
            cpu_nanoseconds: u64::try_from(used.cpu.as_nanos()).unwrap_or(u64::MAX),
        });
    }
    Ok(listed)
}

/// Takes away what killed owners left in `folder`, and of their zones on this host; the zones'
/// names. Those whose owners live are left alone. What cannot be read is put aside.
///
/// # Errors
/// When the folder cannot be used, or a process cannot be looked at.
pub fn settle(folder: &Path) -> io::Result<Vec<String>> {
    let Found { records, halves } = found(folder)?;
    for (pid, half) in halves {
        if pid.is_some_and(|pid| ProcessId::of(pid).is_ok_and(|alive| alive.is_none())) {
            crate::files::remove(&half)?;
        }
    }
    let mut settled = Vec::new();
    for (name, path) in records {
        if settle_one(&name, &path)? {
            settled.push(name);
        }
    }
    if !settled.is_empty() {
        sweep_claims();
    }
    Ok(settled)
}

/// Whether its owner was gone.
fn settle_one(name: &str, path: &Path) -> io::Result<bool> {
    let record = match record::read(path, Sandboxes::KIND) {
        Ok(record) => record,
        // Its owner has ended meanwhile.
        Err(RecordError::Read(error)) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(false);
        }
        Err(RecordError::Read(_) | RecordError::Json(_) | RecordError::Kind(_)) => {
            return record::put_aside(path).map(|_| false);
        }
    };
    if record.process.is_alive()? {
        return Ok(false);
    }
    end_groups(name, record.process.pid);
    crate::files::remove(path)?;
    Ok(true)
}

fn found(folder: &Path) -> io::Result<Found> {
    match record::all(folder) {
        // No program had a zone yet.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Found::default()),
        other => other,
    }
}
