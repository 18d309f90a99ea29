//! What goes wrong with a GPU: `gpu-N.faults`, a line for each thing, in the order in which they
//! happened. The CUDA library appends what programs bring about; a tester appends anything:
//!
//! ```text
//! xid 79          the driver reports this error
//! ecc             it counts an uncorrectable memory error
//! lost, found     it does not reach the GPU any more, and does again
//! remap-failed    a bad row could not be put aside
//! action 1        it asks for a reset (NVML's number); 0 for nothing
//! ```
//!
//! Lines that are none of these say nothing.

use std::fs::File;
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify;

use super::StateError;
use super::file::open_private;

/// The simulated driver appends nothing more to a file of this size: programs that fault without
/// end must not fill the host's memory.
const LONGEST: u64 = 1 << 20;
/// So much is read at a time.
const CHUNK: usize = 16 << 10;
/// How often a file is looked at when nothing tells of a change.
const LOOK: Duration = Duration::from_millis(500);

/// Something that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultEvent {
    /// The driver reports an error.
    Xid(u64),
    /// It counts an uncorrectable memory error.
    UncorrectableEcc,
}

/// How a GPU is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// Whether the driver does not reach it.
    pub lost: bool,
    /// Whether a bad row could not be put aside.
    pub remap_failed: bool,
    /// What the driver asks for, as NVML numbers it.
    pub action: u32,
}

enum Line {
    Event(FaultEvent),
    Lost(bool),
    RemapFailed,
    Action(u32),
}

fn parse(line: &str) -> Option<Line> {
    let mut words = line.split_ascii_whitespace();
    let line = match (words.next()?, words.next()) {
        ("xid", Some(number)) => Line::Event(FaultEvent::Xid(number.parse().ok()?)),
        ("ecc", None) => Line::Event(FaultEvent::UncorrectableEcc),
        ("lost", None) => Line::Lost(true),
        ("found", None) => Line::Lost(false),
        ("remap-failed", None) => Line::RemapFailed,
        ("action", Some(number)) => Line::Action(number.parse().ok()?),
        (_, _) => return None,
    };
    words.next().is_none().then_some(line)
}

/// Reads a file of faults from where it is.
#[derive(Debug)]
struct Reader {
    file: File,
    at: u64,
}

impl Reader {
    fn open(path: &Path) -> Result<Self, StateError> {
        Ok(Self { file: open_private(path)?, at: 0 })
    }

    /// The whole lines that came since the last time, some at a time.
    fn lines(&mut self) -> io::Result<Vec<Line>> {
        let mut bytes = vec![0; CHUNK];
        let count = self.file.read_at(&mut bytes, self.at)?;
        let whole = bytes[..count].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        // A line that fills a chunk is none of ours.
        let taken = if whole == 0 && count == CHUNK { count } else { whole };
        self.at += u64::try_from(taken).unwrap_or(0);
        let text = String::from_utf8_lossy(&bytes[..whole]).into_owned();
        Ok(text.lines().filter_map(parse).collect())
    }

    fn go_to_end(&mut self) -> io::Result<()> {
        self.at = self.file.metadata()?.len();
        Ok(())
    }
}

/// The faults of one GPU.
#[derive(Debug)]
pub(super) struct Faults {
    path: PathBuf,
    reader: Reader,
    condition: Condition,
}

impl Faults {
    pub(super) fn open(path: PathBuf) -> Result<Self, StateError> {
        Ok(Self { reader: Reader::open(&path)?, path, condition: Condition::default() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// How the GPU is now.
    pub(super) fn condition(&mut self) -> Result<Condition, StateError> {
        loop {
            let before = self.reader.at;
            let lines = self.reader.lines();
            let lines =
                lines.map_err(|source| StateError::Io { path: self.path.clone(), source })?;
            for line in lines {
                match line {
                    Line::Event(_) => {}
                    Line::Lost(lost) => self.condition.lost = lost,
                    Line::RemapFailed => self.condition.remap_failed = true,
                    Line::Action(action) => self.condition.action = action,
                }
            }
            if self.reader.at == before {
                return Ok(self.condition);
            }
        }
    }
}

/// Notes that the driver reports an error.
pub(super) fn report(path: &Path, xid: u64) -> io::Result<()> {
    let mut file = File::options().append(true).create(true).mode(0o600).open(path)?;
    if file.metadata()?.len() >= LONGEST {
        return Ok(());
    }
    // One write: lines of several processes do not mix.
    file.write_all(format!("xid {xid}\n").as_bytes())
}

/// Waits for what happens to GPUs from now on.
#[derive(Debug)]
pub struct FaultWatch<K> {
    changes: Option<OwnedFd>,
    readers: Vec<(K, Reader)>,
    waiting: std::collections::VecDeque<(K, FaultEvent)>,
}

impl<K> Default for FaultWatch<K> {
    fn default() -> Self {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        // Without it, looking from time to time has to do.
        let changes = inotify::init(flags).ok();
        Self { changes, readers: Vec::new(), waiting: Default::default() }
    }
}

impl<K: Clone> FaultWatch<K> {
    pub(super) fn add(&mut self, key: K, path: &Path) -> Result<(), StateError> {
        let mut reader = Reader::open(path)?;
        let io = |source| StateError::Io { path: path.to_owned(), source };
        reader.go_to_end().map_err(io)?;
        if let Some(changes) = &self.changes {
            let added = inotify::add_watch(changes, path, inotify::WatchFlags::MODIFY);
            added.map_err(|errno| io(errno.into()))?;
        }
        self.readers.push((key, reader));
        Ok(())
    }

    /// What happened next, to which GPU; `None` when nothing did in time.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn next(&mut self, limit: Duration) -> io::Result<Option<(K, FaultEvent)>> {
        let end = Instant::now() + limit;
        loop {
            for (key, reader) in &mut self.readers {
                for line in reader.lines()? {
                    if let Line::Event(event) = line {
                        self.waiting.push_back((key.clone(), event));
                    }
                }
            }
            if let Some(next) = self.waiting.pop_front() {
                return Ok(Some(next));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.rest(left.min(LOOK));
        }
    }

    /// Waits until a file changed, or for so long.
    fn rest(&self, limit: Duration) {
        let Some(changes) = &self.changes else {
            std::thread::sleep(limit.min(Duration::from_millis(20)));
            return;
        };
        let limit = rustix::time::Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(1),
            tv_nsec: limit.subsec_nanos().into(),
        };
        let mut waiting = [PollFd::new(changes, PollFlags::IN)];
        if poll(&mut waiting, Some(&limit)).is_ok_and(|ready| ready > 0) {
            // What they say does not matter: all files are looked at.
            let mut buffer = [MaybeUninit::uninit(); 1024];
            let mut reader = inotify::Reader::new(changes, &mut buffer);
            while reader.next().is_ok() {}
        }
    }
}
