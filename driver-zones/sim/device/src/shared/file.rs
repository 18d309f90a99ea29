//! The state file of one GPU: where each record lies, who may touch it when.
//!
//! ```text
//! 0        header: magic, version, granule, memory     written once
//! 64       changes: generation, rows                    under the file's lock
//! 4 KiB    processes: pid, contexts  × 256              under the file's lock
//! 64 KiB   activity records          × 256              each by its process, without lock
//! 256 KiB  allocations: offset, length, owner × 65,536  under the file's lock
//! ```
//!
//! Records are read and written with system calls, never through a mapping: whatever
//! another process does to the file, this one reads plain bytes and checks them. Each
//! change is one record, so a process killed in between leaves a table that is right.
//! The lock is the kernel's (`flock`): the death of its holder releases it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use gpuzone_core::MemoryBytes;

use super::{GRANULE, StateError};

const MAGIC: u64 = u64::from_le_bytes(*b"gzsimgpu");
const VERSION: u64 = 1;
const HEADER_BYTES: usize = 32;
const CHANGES_AT: u64 = 64;

/// The file as it is shared.
pub(super) struct StateFile {
    file: File,
    path: PathBuf,
}

/// The file while this process alone may change its tables.
pub(super) struct Locked<'a>(&'a StateFile);

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // Failing to unlock a file that is open is not possible; closing it would unlock too.
        let _ = self.0.file.unlock();
    }
}

/// Counter of changes, and how many rows of the allocation table were ever used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    pub(super) generation: u64,
    pub(super) rows: u64,
}

/// What a new or existing file turned out to be.
pub(super) enum Opened {
    /// Ready to use.
    Ready,
    /// Made for a GPU of another size.
    OtherMemory(MemoryBytes),
}

impl StateFile {
    pub(super) fn open(path: &Path) -> Result<Self, StateError> {
        let file = open_private(path)?;
        Ok(Self { file, path: path.to_owned() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn raw(&self) -> &File {
        &self.file
    }

    pub(super) fn lock(&self) -> Result<Locked<'_>, StateError> {
        loop {
            match self.file.lock() {
                Ok(()) => return Ok(Locked(self)),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(self.io(source)),
            }
        }
    }

    pub(super) fn io(&self, source: io::Error) -> StateError {
        StateError::Io { path: self.path.clone(), source }
    }

    pub(super) fn corrupt(&self, reason: &'static str) -> StateError {
        StateError::Corrupt { path: self.path.clone(), reason }
    }

    /// Reads `words` at `offset`; what lies behind the end of the file reads as zero.
    pub(super) fn read(&self, offset: u64, words: &mut [u64]) -> Result<(), StateError> {
        let mut bytes = vec![0; size_of_val(words)];
        let mut done = 0;
        while done < bytes.len() {
            let at = offset.saturating_add(u64::try_from(done).unwrap_or(u64::MAX));
            match self.file.read_at(&mut bytes[done..], at) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(self.io(source)),
            }
        }
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        Ok(())
    }

    /// Writes `words` at `offset` in one call.
    pub(super) fn write(&self, offset: u64, words: &[u64]) -> Result<(), StateError> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.file.write_all_at(&bytes, offset).map_err(|source| self.io(source))
    }
}

impl Locked<'_> {
    /// Checks the header, or writes it when the file is new.
    pub(super) fn check(&self, memory: MemoryBytes) -> Result<Opened, StateError> {
        let Self(file) = self;
        let mut header = [0; HEADER_BYTES / 8];
        file.read(0, &mut header)?;
        match header {
            [0, 0, 0, 0] if file.file.metadata().map_err(|e| file.io(e))?.len() == 0 => {
                self.write_header(memory)?;
                Ok(Opened::Ready)
            }
            [MAGIC, VERSION, GRANULE, found] if found == memory.get() => Ok(Opened::Ready),
            [MAGIC, VERSION, GRANULE, found] => {
                Ok(Opened::OtherMemory(MemoryBytes::saturating(found)))
            }
            [MAGIC, ..] => Err(file.corrupt("it is of another version")),
            [_, ..] => Err(file.corrupt("it does not begin as one")),
        }
    }

    /// Forgets everything in the file, for a GPU of another size.
    pub(super) fn start_over(&self, memory: MemoryBytes) -> Result<(), StateError> {
        // Caches of other processes are told by the generation, which therefore goes on.
        let generation = self.changes()?.generation;
        self.0.file.set_len(0).map_err(|source| self.0.io(source))?;
        self.write_changes(Changes { generation: generation.wrapping_add(1), rows: 0 })?;
        self.write_header(memory)
    }

    fn write_header(&self, memory: MemoryBytes) -> Result<(), StateError> {
        self.0.write(0, &[MAGIC, VERSION, GRANULE, memory.get()])
    }

    pub(super) fn changes(&self) -> Result<Changes, StateError> {
        let mut words = [0; 2];
        self.0.read(CHANGES_AT, &mut words)?;
        let [generation, rows] = words;
        Ok(Changes { generation, rows })
    }

    pub(super) fn write_changes(&self, changes: Changes) -> Result<(), StateError> {
        self.0.write(CHANGES_AT, &[changes.generation, changes.rows])
    }
}

impl std::ops::Deref for Locked<'_> {
    type Target = StateFile;

    fn deref(&self) -> &StateFile {
        self.0
    }
}

/// Opens a file of the state folder, making it for this user only.
pub(super) fn open_private(path: &Path) -> Result<File, StateError> {
    let no_follow = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0);
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(no_follow)
        .open(path)
        .map_err(|source| StateError::Io { path: path.to_owned(), source })
}
