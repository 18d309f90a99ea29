//! The leases, on disk before anything is done about them.
//!
//! Lines of JSON, each with a number and a checksum. An append is on disk when it returns. A line
//! that a crash cut off is dropped: what it was written for was not begun. Anything else that is
//! wrong stops the agent, for guessing at leases would hand out memory twice.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use gpuzone_api::{HolderName, SlotFolder, SlotId};
use gpuzone_core::{
    Exposure, GpuUuid, GpuWatch, Lease, LeaseId, LeaseState, Placement, Timestamp, Under, ZoneName,
};
use gpuzone_hw::line;
use gpuzone_zone::files::write_atomically;
use gpuzone_zone::{BootId, ProcessId};
use serde::{Deserialize, Serialize};

/// After so many lines a journal is rewritten if most of it is about leases that are over.
const COMPACT_AFTER: u64 = 10_000;

/// What is known of a lease beyond what it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Whose end is the lease's end.
    #[serde(flatten)]
    pub by: HeldBy,
    /// What runs, for listings.
    pub program: String,
    /// When the lease was reserved.
    pub created: Timestamp,
    /// Why it failed, empty if it did not.
    pub trouble: String,
    /// The zone that several programs share, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<ZoneName>,
}

/// Who holds a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeldBy {
    /// A process.
    Process(ProcessId),
    /// A process that has whole GPUs itself, by passthrough, in a VM of its own.
    Owner(ProcessId),
    /// Somebody whom whoever placed the lease knows: it lasts until that one ends it.
    Placed(PlacedHolder),
}

/// Who holds a placed lease, and where it appears.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacedHolder {
    /// Whom whoever placed it knows.
    pub name: HolderName,
    /// Where its GPUs are to be had.
    #[serde(flatten)]
    pub at: At,
    /// In which boot it was placed: it ends with that.
    pub boot: BootId,
    /// What quotas of the cluster count it under.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub under: Option<Under>,
}

/// Where whoever holds a placed lease has its GPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum At {
    /// In a slot: a worker serves it there.
    Slot {
        /// Which.
        slot: SlotId,
        /// The folder in it.
        folder: SlotFolder,
    },
    /// It has the devices themselves.
    Device {
        /// In which way.
        exposure: Exposure,
    },
}

impl At {
    /// How what a lease has there is handed over.
    pub fn exposure(self, placement: &Placement) -> Exposure {
        match self {
            Self::Slot { .. } if placement.is_mig() => Exposure::Mig,
            Self::Slot { .. } => Exposure::Mediated,
            Self::Device { exposure } => exposure,
        }
    }
}

impl HeldBy {
    /// A process that is handed its GPUs in this way.
    pub fn process(process: ProcessId, exposure: Exposure) -> Self {
        if exposure.has_worker() { Self::Process(process) } else { Self::Owner(process) }
    }
}

impl HeldLease {
    /// How its GPUs are handed over.
    pub fn exposure(&self) -> Exposure {
        match &self.holder.by {
            HeldBy::Process(_) => Exposure::Mediated,
            HeldBy::Owner(_) => Exposure::Passthrough,
            HeldBy::Placed(placed) => placed.at.exposure(&self.lease.placement),
        }
    }
}

impl Holder {
    /// The process that holds the lease, if one does.
    pub fn process(&self) -> Option<ProcessId> {
        match &self.by {
            HeldBy::Process(process) | HeldBy::Owner(process) => Some(*process),
            HeldBy::Placed(_) => None,
        }
    }

    /// Who holds it, if that is no process.
    pub fn placed(&self) -> Option<&PlacedHolder> {
        match &self.by {
            HeldBy::Process(_) | HeldBy::Owner(_) => None,
            HeldBy::Placed(placed) => Some(placed),
        }
    }

    /// In which boot it came to be; it is over in the next one.
    pub fn boot(&self) -> BootId {
        match &self.by {
            HeldBy::Process(process) | HeldBy::Owner(process) => process.boot,
            HeldBy::Placed(placed) => placed.boot,
        }
    }
}

/// A lease and its holder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldLease {
    /// What is held.
    pub lease: Lease,
    /// By whom.
    pub holder: Holder,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "record")]
pub enum Record {
    /// A lease is there; its state is in it.
    Lease(HeldLease),
    /// A lease moved on.
    Moved {
        /// Which.
        lease: LeaseId,
        /// To where.
        state: LeaseState,
        /// Why it failed, empty if it did not.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        trouble: String,
    },
    /// What is known of a GPU's health is this from now on.
    Health {
        /// Which.
        gpu: GpuUuid,
        /// What.
        watch: GpuWatch,
    },
    /// A GPU serves nobody new from now on: as versions before 0.2 wrote it.
    Quarantined {
        /// Which.
        gpu: GpuUuid,
        /// Why.
        reason: String,
    },
    /// A GPU serves again: as versions before 0.2 wrote it.
    QuarantineCleared {
        /// Which.
        gpu: GpuUuid,
    },
}

/// What a journal says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// The leases that hold something, in the order in which they came.
    pub leases: Vec<HeldLease>,
    /// What is known of GPUs' health.
    pub watches: BTreeMap<GpuUuid, GpuWatch>,
}

/// Why a journal cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The file cannot be read.
    #[error("cannot read the journal {}; check its permissions and its disk", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line is not what was written.
    #[error(
        "the journal {} is damaged in line {line}: {reason}. Nothing was changed. If the disk can be trusted again, end all gpu-zone processes, move the journal away and start anew: its leases are over then", .path.display()
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// From 1.
        line: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// It cannot be rewritten.
    #[error("cannot write the journal {}; check its permissions, and free space on its disk", .path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A record was not written. What it was about must not be done.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the journal {}; free space on its disk", .path.display())]
pub struct AppendError {
    path: PathBuf,
    source: io::Error,
}

/// The journal, open for writing.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    /// The number of the last line.
    sequence: u64,
    /// Bytes of whole lines.
    length: u64,
    /// Lines since it was rewritten.
    lines: u64,
}

/// Reads a journal; a file that is not there has no leases.
///
/// # Errors
/// When the file cannot be read or is damaged.
pub fn replay(path: &Path) -> Result<Replayed, ReplayError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Replayed::default()),
        Err(source) => return Err(ReplayError::Read { path: path.to_owned(), source }),
    };
    let damaged = |line, reason| ReplayError::Damaged { path: path.to_owned(), line, reason };
    let mut leases = Leases::default();
    let mut next = None;
    let mut lines = bytes.split_inclusive(|byte| *byte == b'\n').peekable();
    let mut number = 0;
    while let Some(line) = lines.next() {
        number += 1;
        if lines.peek().is_none() && line::is_torn(line) {
            tracing::warn!(journal = %path.display(), line = number, "a line was cut off by a crash; dropped");
            break;
        }
        let (sequence, record) =
            line::read(line).map_err(|error| damaged(number, error.to_string()))?;
        if next.is_some_and(|next| next != sequence) {
            return Err(damaged(number, format!("it is number {sequence}, out of order")));
        }
        next = Some(sequence + 1);
        leases.take(record).map_err(|reason| damaged(number, reason))?;
    }
    Ok(leases.in_order())
}

impl Journal {
    /// Replaces the journal at `path` by one with just `leases` and `watches`, and opens it.
    ///
    /// # Errors
    /// When it cannot be written; the old one is still there then.
    pub fn rewrite<'a>(
        path: &Path,
        leases: impl Iterator<Item = &'a HeldLease>,
        watches: impl Iterator<Item = (GpuUuid, &'a GpuWatch)>,
    ) -> Result<Self, ReplayError> {
        let rewritten = || -> io::Result<Self> {
            let (mut bytes, mut sequence) = (Vec::new(), 0);
            let watches = watches.filter(|(_, watch)| !watch.is_blank());
            let watches = watches.map(|(gpu, watch)| Record::Health { gpu, watch: watch.clone() });
            for record in leases.cloned().map(Record::Lease).chain(watches) {
                sequence += 1;
                line::write(&mut bytes, sequence, &record)?;
            }
            write_atomically(path, &bytes)?;
            let mut file = OpenOptions::new().write(true).mode(0o600).open(path)?;
            let length = file.seek(SeekFrom::End(0))?;
            Ok(Self { path: path.to_owned(), file, sequence, length, lines: 0 })
        };
        rewritten().map_err(|source| ReplayError::Write { path: path.to_owned(), source })
    }

    /// Writes a record; it is on disk when this returns.
    ///
    /// # Errors
    /// When it is not on disk. The journal is as it was before.
    pub fn append(&mut self, record: &Record) -> Result<(), AppendError> {
        let mut bytes = Vec::new();
        let written = line::write(&mut bytes, self.sequence + 1, record)
            .and_then(|()| self.file.write_all(&bytes))
            .and_then(|()| self.file.sync_data());
        if let Err(source) = written {
            // The half of a line would be damage once another follows it.
            if let Err(error) = self
                .file
                .set_len(self.length)
                .and_then(|()| self.file.seek(SeekFrom::Start(self.length)))
            {
                tracing::error!(journal = %self.path.display(), %error, "cannot take back half a line");
            }
            return Err(AppendError { path: self.path.clone(), source });
        }
        self.sequence += 1;
        self.lines += 1;
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Whether so much of it is about leases that are over that it should be rewritten.
    pub fn is_long(&self, leases: usize) -> bool {
        self.lines > COMPACT_AFTER && self.lines > 10 * leases as u64
    }

    /// A journal that writes to this file.
    #[cfg(test)]
    pub(crate) fn on(file: File) -> Self {
        Self { path: PathBuf::from("/dev/full"), file, sequence: 0, length: 0, lines: 0 }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The leases that a journal tells of, in the order in which they came.
#[derive(Default)]
struct Leases {
    leases: BTreeMap<LeaseId, (usize, HeldLease)>,
    count: usize,
    watches: BTreeMap<GpuUuid, GpuWatch>,
}

impl Leases {
    fn take(&mut self, record: Record) -> Result<(), String> {
        match record {
            Record::Lease(lease) => {
                let id = lease.lease.id;
                self.count += 1;
                match self.leases.insert(id, (self.count, lease)) {
                    None => Ok(()),
                    Some(_) => Err(format!("{id} is there already")),
                }
            }
            Record::Moved { lease: id, state, trouble } => {
                let Some((_, lease)) = self.leases.get_mut(&id) else {
                    return Err(format!("it moves {id}, which is not there"));
                };
                lease.lease.state = state;
                lease.holder.trouble = trouble;
                if !state.holds() {
                    self.leases.remove(&id);
                }
                Ok(())
            }
            Record::Health { gpu, watch } => {
                self.watches.insert(gpu, watch);
                Ok(())
            }
            Record::Quarantined { gpu, reason } => {
                // When it was is not in the record.
                let condemned = GpuWatch::condemned(&reason, Timestamp::from_nanoseconds(0));
                self.watches.entry(gpu).or_insert(condemned);
                Ok(())
            }
            Record::QuarantineCleared { gpu } => match self.watches.remove(&gpu) {
                Some(_) => Ok(()),
                None => Err(format!("it clears {gpu}, which is not in quarantine")),
            },
        }
    }

    fn in_order(self) -> Replayed {
        let mut leases: Vec<_> = self.leases.into_values().collect();
        leases.sort_by_key(|(order, _)| *order);
        let leases = leases.into_iter().map(|(_, lease)| lease).collect();
        Replayed { leases, watches: self.watches }
    }
}

#[cfg(test)]
mod tests;
