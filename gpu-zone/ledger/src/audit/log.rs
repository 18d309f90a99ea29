use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use gpuzone_core::Timestamp;

use super::{
    AuditEntry, AuditEvent, AuditHash, AuditKind, Damage, DamageKind, Expected, Head, line, verify,
};

/// The log, open for writing. One process writes it.
///
/// A line is in the file when [`AuditLog::append`] returns and on disk after
/// [`AuditLog::sync`]; whoever has synced records [`AuditLog::head`] elsewhere.
#[derive(Debug)]
pub struct AuditLog {
    path: PathBuf,
    file: File,
    head: Head,
    length: u64,
}

/// Why a log cannot be written to.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the audit log '{}'; look at its permissions", .path.display())]
pub struct AuditOpenError {
    path: PathBuf,
    source: io::Error,
}

/// An event is not in the log. The log is as it was before.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the audit log '{}'; free space on its disk", .path.display())]
pub struct AuditAppendError {
    path: PathBuf,
    source: io::Error,
}

/// A log that was opened, and what was found in it.
#[derive(Debug)]
pub struct Opened {
    /// It.
    pub log: AuditLog,
    /// The limits that were last written down.
    pub last_limits: Option<AuditEntry>,
    /// What is wrong with it, beyond a line that a crash cut off.
    pub damage: Option<Damage>,
}

impl AuditLog {
    /// Opens the log at `path`, or begins one. What a crash cut off is taken away, and the log
    /// says so itself; so it does when it is damaged, and goes on behind the damage, which
    /// [`verify()`] keeps naming.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn open(
        path: &Path,
        recorded: Option<Head>,
        now: Timestamp,
    ) -> Result<Opened, AuditOpenError> {
        let opened = || -> io::Result<Opened> {
            let mut last_limits = None;
            let expected = Expected { recorded, noted: None };
            let found = verify(path, &expected, |entry| {
                if entry.kind == AuditKind::Limits {
                    last_limits = Some(entry);
                }
            })?;
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            let mut file = options.open(path)?;
            let (whole, torn) = last_lines(&mut file)?;
            // A damaged log goes on from what is there or was recorded, whichever is later:
            // numbers are never given twice.
            let mut head = found.head;
            for other in [whole.head, recorded].into_iter().flatten() {
                if found.damage.is_some() && other.seq > head.seq {
                    head = other;
                }
            }
            file.set_len(whole.length)?;
            file.seek(SeekFrom::Start(whole.length))?;
            let length = whole.length;
            let mut log = Self { path: path.to_owned(), file, head, length };
            let torn_only = found.damage.as_ref().is_none_or(|damage| {
                damage.kind == DamageKind::Torn
                    && recorded.is_none_or(|recorded| recorded.seq <= found.head.seq)
            });
            let damage = found.damage.filter(|_| !torn_only);
            let source = |error: AuditAppendError| error.source;
            if !torn.is_empty() {
                log.append(torn_line(&torn), now).map_err(source)?;
            }
            if let Some(damage) = &damage {
                log.append(damaged(damage), now).map_err(source)?;
            }
            log.sync().map_err(source)?;
            sync_parent(path)?;
            Ok(Opened { log, last_limits, damage })
        };
        opened().map_err(|source| AuditOpenError { path: path.to_owned(), source })
    }

    /// Writes an event. It is on disk after [`AuditLog::sync`].
    ///
    /// # Errors
    /// When it does not fit on the disk; nothing of it is there then.
    pub fn append(&mut self, event: AuditEvent, now: Timestamp) -> Result<Head, AuditAppendError> {
        let entry = event.into_entry(&self.head, now);
        let written = line::write(&entry).map_err(io::Error::from).and_then(|(line, hash)| {
            self.file.write_all(&line)?;
            Ok((line.len() as u64, hash))
        });
        match written {
            Ok((bytes, hash)) => {
                self.length += bytes;
                self.head = Head { seq: entry.seq, hash };
                Ok(self.head)
            }
            Err(source) => {
                // Half a line would look like a cut once another follows it; if it cannot be
                // taken away, the next start notes it.
                let _ = self.file.set_len(self.length);
                let _ = self.file.seek(SeekFrom::Start(self.length));
                Err(AuditAppendError { path: self.path.clone(), source })
            }
        }
    }

    /// Waits until all that was appended is on disk.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn sync(&mut self) -> Result<Head, AuditAppendError> {
        self.file
            .sync_data()
            .map_err(|source| AuditAppendError { path: self.path.clone(), source })?;
        Ok(self.head)
    }

    /// Number and hash of the last line.
    pub fn head(&self) -> Head {
        self.head
    }
}

/// The whole lines of a file: where they end, and the last one's number if it is readable.
struct Whole {
    length: u64,
    head: Option<Head>,
}

/// How much of the file is read first, from its end.
const PART: u64 = 64 << 10;

/// The last whole line, and what stands behind it. Only the end of the file is read.
fn last_lines(file: &mut File) -> io::Result<(Whole, Vec<u8>)> {
    let end = file.seek(SeekFrom::End(0))?;
    let (mut begin, mut bytes, mut part) = (end, Vec::new(), PART);
    // Until two ends of lines are there: those of the last whole line and of the one before.
    while begin > 0 && bytes.iter().filter(|byte| **byte == b'\n').count() < 2 {
        part = part.min(begin);
        begin -= part;
        file.seek(SeekFrom::Start(begin))?;
        let mut before = Vec::new();
        file.take(part).read_to_end(&mut before)?;
        before.append(&mut bytes);
        bytes = before;
        // Twice as much, for a file without a line must not take for ever.
        part = part.saturating_mul(2);
    }
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let torn = bytes.split_off(whole);
    let head = bytes.split_inclusive(|byte| *byte == b'\n').next_back().and_then(|line| {
        let (hash, entry) = line::read(line).ok()?;
        Some(Head { seq: entry.seq, hash })
    });
    // All that was not read is in whole lines, or there is no end of a line at all.
    let length = if whole == 0 { 0 } else { begin + whole as u64 };
    Ok((Whole { length, head }, torn))
}

fn torn_line(torn: &[u8]) -> AuditEvent {
    AuditEvent {
        kind: AuditKind::LogTorn,
        actor: "agent".to_owned(),
        subject: "audit log".to_owned(),
        tenant: None,
        detail: serde_json::json!({
            "bytes": torn.len(),
            "sha256": AuditHash::of(torn).to_string(),
            "why": "the last line had no end, as a crash leaves it; it was taken away",
        }),
    }
}

fn damaged(damage: &Damage) -> AuditEvent {
    AuditEvent {
        kind: AuditKind::LogDamaged,
        actor: "agent".to_owned(),
        subject: "audit log".to_owned(),
        tenant: None,
        detail: serde_json::json!({
            "line": damage.line,
            "kind": damage.kind.as_str(),
            "why": damage.detail,
        }),
    }
}

/// The file's name is on disk, too.
fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The end of a log is found as if all of it had been read, however long its lines are.
        #[test]
        fn the_end_is_found_from_the_end(
            lengths in prop::collection::vec(0..200_000_usize, 0..6),
            torn in 0..100_000_usize,
        ) {
            let mut bytes = Vec::new();
            for length in &lengths {
                bytes.extend(std::iter::repeat_n(b'x', *length));
                bytes.push(b'\n');
            }
            let whole = bytes.len();
            bytes.extend(std::iter::repeat_n(b'y', torn));
            let mut file = tempfile::tempfile().expect("a file");
            file.write_all(&bytes).expect("written");
            let (found, rest) = last_lines(&mut file).expect("read");
            prop_assert_eq!((found.length, rest.len()), (whole as u64, torn));
            prop_assert!(found.head.is_none());
        }
    }

    #[test]
    fn the_last_line_of_a_long_log_is_read() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("audit.log");
        let now = Timestamp::from_nanoseconds(1);
        let mut log = AuditLog::open(&path, None, now).expect("it opens").log;
        let event = |n: usize| AuditEvent {
            kind: AuditKind::Refusal,
            actor: "agent".to_owned(),
            subject: "x".repeat(n),
            tenant: None,
            detail: serde_json::Value::Null,
        };
        for n in 0..1000 {
            log.append(event(n * 97 % 3000), now).expect("it is written");
        }
        let head = log.head();
        let mut file = File::open(&path).expect("it is there");
        let length = file.metadata().expect("it has a length").len();
        let (whole, torn) = last_lines(&mut file).expect("it is read");
        assert_eq!((whole.head, whole.length, torn), (Some(head), length, Vec::new()));
    }
}
