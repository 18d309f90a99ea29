//! What is being done to devices, on disk before it is done, and what is still to be given back.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::change::Change;
use crate::line;

/// After so many lines a journal is rewritten when it is opened.
const COMPACT_AFTER: u64 = 1_000;

/// What is done: changes in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Action {
    /// Its number in this journal.
    pub id: u64,
    /// What it is, for people.
    pub what: String,
    /// In which boot: the next one begins with all as the machine has it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub boot: String,
    /// For whom a part was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// The action that this one takes back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub takes_back: Option<u64>,
    /// Whether it is only for the moment: whoever finds it done takes it back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub passing: bool,
    /// In their order.
    pub changes: Vec<Change>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "record")]
enum Record {
    /// This is going to be done.
    Begin(Action),
    /// Now that change of it, from 0.
    At { id: u64, change: usize },
    /// All of it is done.
    Done { id: u64 },
    /// All of it is as before.
    Undone { id: u64 },
    /// It was done, and the machine has been started anew since.
    Forgotten { id: u64 },
    /// It is done, as an earlier journal said: a rewritten one begins with these.
    Kept(Action),
}

/// An action that was begun, and how far it got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Open {
    pub(super) action: Action,
    /// Its changes up to this one may have been made.
    pub(super) at: Option<usize>,
}

/// What a journal says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    /// Done and not given back, in their order.
    pub(super) kept: Vec<Action>,
    /// Begun and neither done nor undone.
    pub(super) open: Vec<Open>,
}

impl State {
    fn take(&mut self, record: Record) -> Result<(), String> {
        match record {
            Record::Begin(action) => {
                let known = self.kept.iter().chain(self.open.iter().map(|open| &open.action));
                if known.into_iter().any(|known| known.id == action.id) {
                    return Err(format!("action {} is there already", action.id));
                }
                self.open.push(Open { action, at: None });
            }
            Record::At { id, change } => self.open_mut(id)?.at = Some(change),
            Record::Done { id } => {
                let action = self.close(id)?;
                match action.takes_back {
                    Some(other) => self.kept.retain(|kept| kept.id != other),
                    None => self.kept.push(action),
                }
            }
            Record::Undone { id } => {
                self.close(id)?;
            }
            Record::Forgotten { id } => {
                self.kept.retain(|kept| kept.id != id);
                self.open.retain(|open| open.action.id != id);
            }
            Record::Kept(action) => self.kept.push(action),
        }
        Ok(())
    }

    fn open_mut(&mut self, id: u64) -> Result<&mut Open, String> {
        let open = self.open.iter_mut().find(|open| open.action.id == id);
        open.ok_or_else(|| format!("action {id} was not begun"))
    }

    fn close(&mut self, id: u64) -> Result<Action, String> {
        let position = self.open.iter().position(|open| open.action.id == id);
        let position = position.ok_or_else(|| format!("action {id} was not begun"))?;
        Ok(self.open.remove(position).action)
    }
}

/// A journal of devices cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file cannot be read or written.
    #[error("cannot use the journal of devices {}: {source}", .path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process has it.
    #[error("another process uses the journal of devices {}; end it first", .path.display())]
    InUse {
        /// Which.
        path: PathBuf,
    },
    /// A line is not what was written.
    #[error(
        "the journal of devices {} is damaged in line {line}: {reason}. No device was touched. See what each is bound to, move the journal away and start anew", .path.display()
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// From 1.
        line: u64,
        /// What is wrong with it.
        reason: String,
    },
}

/// The journal, held by this process alone.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    sequence: u64,
    /// Bytes of whole lines.
    length: u64,
    next_id: u64,
    pub(super) state: State,
}

impl Journal {
    /// Opens the journal at `path`, or begins one. A last line that a crash cut off is dropped:
    /// what it was written for was not begun.
    pub(super) fn open(path: &Path) -> Result<Self, JournalError> {
        let io = |source| JournalError::Io { path: path.to_owned(), source };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(path).map_err(io)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(JournalError::InUse { path: path.to_owned() });
            }
            Err(error) => return Err(io(error.into())),
        }
        sync_folder(path).map_err(io)?;
        let bytes = std::fs::read(path).map_err(io)?;
        let Replayed { state, sequence, length, next_id, lines } = replay(path, &bytes)?;
        let mut journal = Self { path: path.to_owned(), file, sequence, length, next_id, state };
        journal.cut().map_err(io)?;
        if lines > COMPACT_AFTER {
            journal.rewrite().map_err(io)?;
        }
        Ok(journal)
    }

    /// Leaves nothing behind the last whole line.
    fn cut(&mut self) -> io::Result<()> {
        self.file.set_len(self.length)?;
        self.file.seek(SeekFrom::Start(self.length))?;
        self.file.sync_all()
    }

    /// Puts a shorter journal that says the same in this one's place.
    fn rewrite(&mut self) -> io::Result<()> {
        let (mut bytes, mut sequence) = (Vec::new(), 0);
        let mut add = |record: &Record| {
            sequence += 1;
            line::write(&mut bytes, sequence, record)
        };
        for action in &self.state.kept {
            add(&Record::Kept(action.clone()))?;
        }
        for open in &self.state.open {
            add(&Record::Begin(open.action.clone()))?;
            if let Some(change) = open.at {
                add(&Record::At { id: open.action.id, change })?;
            }
        }
        let new = self.path.with_extension("new");
        let mut options = OpenOptions::new();
        let mut file =
            options.read(true).write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        std::fs::rename(&new, &self.path)?;
        sync_folder(&self.path)?;
        (self.file, self.sequence, self.length) = (file, sequence, bytes.len() as u64);
        Ok(())
    }

    fn append(&mut self, record: Record) -> Result<(), JournalError> {
        let mut bytes = Vec::new();
        let written = line::write(&mut bytes, self.sequence + 1, &record)
            .and_then(|()| self.file.write_all(&bytes))
            .and_then(|()| self.file.sync_data());
        if let Err(source) = written {
            // The half of a line would be damage once another follows it.
            let _ = self.cut();
            return Err(JournalError::Io { path: self.path.clone(), source });
        }
        self.sequence += 1;
        self.length += bytes.len() as u64;
        // What was just made by this process contradicts nothing.
        let _ = self.state.take(record);
        Ok(())
    }

    pub(super) fn begin(&mut self, mut action: Action) -> Result<Action, JournalError> {
        action.id = self.next_id;
        self.append(Record::Begin(action.clone()))?;
        self.next_id += 1;
        Ok(action)
    }

    /// Forgets what was done in another boot.
    pub(super) fn forget_others(&mut self, boot: &str) -> Result<(), JournalError> {
        let open = self.state.open.iter().map(|open| &open.action);
        let others = self.state.kept.iter().chain(open).filter(|action| action.boot != boot);
        for id in others.map(|action| action.id).collect::<Vec<_>>() {
            self.append(Record::Forgotten { id })?;
        }
        Ok(())
    }

    pub(super) fn at(&mut self, id: u64, change: usize) -> Result<(), JournalError> {
        self.append(Record::At { id, change })
    }

    pub(super) fn done(&mut self, id: u64) -> Result<(), JournalError> {
        self.append(Record::Done { id })
    }

    pub(super) fn undone(&mut self, id: u64) -> Result<(), JournalError> {
        self.append(Record::Undone { id })
    }
}

/// What a journal's bytes say, and where they end.
#[derive(Debug, Default)]
pub(super) struct Replayed {
    pub(super) state: State,
    sequence: u64,
    /// Bytes of whole lines.
    pub(super) length: u64,
    next_id: u64,
    lines: u64,
}

/// Reads a journal's bytes; `path` is for the error.
pub(super) fn replay(path: &Path, bytes: &[u8]) -> Result<Replayed, JournalError> {
    let damaged = |line, reason| JournalError::Damaged { path: path.to_owned(), line, reason };
    let mut read = Replayed { next_id: 1, ..Replayed::default() };
    let mut lines = bytes.split_inclusive(|byte| *byte == b'\n').peekable();
    while let Some(line) = lines.next() {
        let number = read.lines + 1;
        if lines.peek().is_none() && line::is_torn(line) {
            break;
        }
        let (sequence, record) =
            line::read::<Record>(line).map_err(|error| damaged(number, error.to_string()))?;
        if read.lines > 0 && Some(sequence) != read.sequence.checked_add(1) {
            return Err(damaged(number, format!("it is number {sequence}, out of order")));
        }
        if let Record::Begin(action) | Record::Kept(action) = &record {
            read.next_id = read.next_id.max(action.id.saturating_add(1));
        }
        read.state.take(record).map_err(|reason| damaged(number, reason))?;
        (read.sequence, read.lines) = (sequence, number);
        read.length += line.len() as u64;
    }
    Ok(read)
}

/// Makes a file's creation or a rename outlive a power failure.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or_else(|| Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action(what: &str) -> Action {
        Action { what: what.into(), ..Action::default() }
    }

    #[test]
    fn what_was_cut_off_is_dropped_and_what_was_altered_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("devices");
        let mut journal = Journal::open(&path).unwrap();
        assert!(matches!(Journal::open(&path), Err(JournalError::InUse { .. })));
        let one = journal.begin(action("one")).unwrap();
        journal.at(one.id, 0).unwrap();
        let before = journal.length;
        journal.done(one.id).unwrap();
        let state = journal.state.clone();
        drop(journal);
        let whole = std::fs::read(&path).unwrap();
        for length in usize::try_from(before).unwrap()..=whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let mut again = Journal::open(&path).unwrap();
            let complete = length == whole.len();
            assert_eq!(again.state == state, complete, "{length}");
            assert_eq!(again.state.open.len(), usize::from(!complete));
            again.begin(action("two")).unwrap();
            drop(again);
            assert_eq!(Journal::open(&path).unwrap().state.open.last().unwrap().action.id, 2);
        }
        for position in 0..usize::try_from(before).unwrap() {
            let mut altered = whole.clone();
            altered[position] ^= 1;
            std::fs::write(&path, &altered).unwrap();
            let read = Journal::open(&path);
            assert!(matches!(read, Err(JournalError::Damaged { .. })), "{position}");
            // Nothing was changed.
            assert_eq!(std::fs::read(&path).unwrap(), altered);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            crate::fuzz::journal(&bytes);
        }

        #[test]
        fn any_records_are_answered(records in "(\\{\"record\":\"(at|done|undone)\",\"id\":[0-2](,\"change\":[1-9][0-9]{0,19})?\\}\n){0,5}", torn in 0usize..80) {
            let mut bytes = Vec::new();
            for (number, record) in (1..).zip(records.lines()) {
                let record: serde_json::Value = serde_json::from_str(record).unwrap();
                line::write(&mut bytes, number, &record).unwrap();
            }
            bytes.truncate(bytes.len().saturating_sub(torn));
            crate::fuzz::journal(&bytes);
        }
    }

    #[test]
    fn a_long_journal_is_rewritten_and_says_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("devices");
        let mut journal = Journal::open(&path).unwrap();
        let kept = journal.begin(action("kept")).unwrap();
        journal.done(kept.id).unwrap();
        for _ in 0..COMPACT_AFTER / 2 {
            let gone = journal.begin(action("gone")).unwrap();
            journal.undone(gone.id).unwrap();
        }
        let open = journal.begin(action("open")).unwrap();
        journal.at(open.id, 3).unwrap();
        let (state, long) = (journal.state.clone(), journal.length);
        drop(journal);
        let mut again = Journal::open(&path).unwrap();
        assert_eq!(again.state, state);
        assert!(again.length * 10 < long);
        // Nobody else gets at the new file, either.
        assert!(matches!(Journal::open(&path), Err(JournalError::InUse { .. })));
        assert!(again.begin(action("new")).unwrap().id > open.id);
    }
}
