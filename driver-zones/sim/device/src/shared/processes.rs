//! The processes that use a GPU. A process is alive as long as it holds a lock on the byte
//! of its row, which needs neither `/proc` nor a common PID namespace: the kernel drops the
//! lock when the process ends, however it ends.

use std::os::fd::AsRawFd;

use super::StateError;
use super::file::{Locked, StateFile};

/// How many processes can use one GPU at a time.
pub(super) const MAX_PROCESSES: u16 = 256;
const TABLE_AT: u64 = 4 << 10;
const ROW_BYTES: u64 = 16;
/// Locks lie where no record does.
const LOCKS_AT: i64 = 1 << 40;

/// A process's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Row(u16);

impl Row {
    pub(super) fn new(number: u64) -> Option<Self> {
        u16::try_from(number).ok().filter(|n| *n < MAX_PROCESSES).map(Self)
    }

    pub(super) fn all() -> impl Iterator<Item = Self> {
        (0..MAX_PROCESSES).map(Self)
    }

    pub(super) fn number(self) -> u64 {
        u64::from(self.0)
    }

    fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// What a row says; nobody's when `pid` is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) contexts: u32,
}

pub(super) struct ProcessTable(Vec<Option<Process>>);

impl ProcessTable {
    pub(super) fn read(file: &StateFile) -> Result<Self, StateError> {
        let mut words = vec![0; usize::from(MAX_PROCESSES) * 2];
        file.read(TABLE_AT, &mut words)?;
        let row = |[pid, contexts]: &[u64; 2]| match *pid {
            0 => Ok(None),
            pid => match (u32::try_from(pid), u32::try_from(*contexts)) {
                (Ok(pid), Ok(contexts)) => Ok(Some(Process { pid, contexts })),
                (_, _) => Err(file.corrupt("a process has an impossible number")),
            },
        };
        words.as_chunks::<2>().0.iter().map(row).collect::<Result<_, _>>().map(Self)
    }

    pub(super) fn used(&self) -> impl Iterator<Item = (Row, Process)> {
        Row::all().zip(&self.0).filter_map(|(row, process)| Some((row, (*process)?)))
    }

    pub(super) fn get(&self, row: Row) -> Option<Process> {
        self.0.get(row.index()).copied().flatten()
    }

    pub(super) fn free_row(&self) -> Option<Row> {
        Row::all().zip(&self.0).find_map(|(row, process)| process.is_none().then_some(row))
    }

    pub(super) fn set(
        &mut self,
        file: &Locked<'_>,
        row: Row,
        process: Option<Process>,
    ) -> Result<(), StateError> {
        let (pid, contexts) = process.map_or((0, 0), |p| (p.pid, p.contexts));
        file.write(TABLE_AT + row.number() * ROW_BYTES, &[u64::from(pid), u64::from(contexts)])?;
        self.0[row.index()] = process;
        Ok(())
    }
}

/// Takes the lock that says that this process lives; false when another one holds it. `file`
/// must be an opening of its own: an opening does not see the locks that it holds itself.
pub(super) fn claim(file: &StateFile, row: Row) -> Result<bool, StateError> {
    let mut lock = byte_lock(row, libc::F_WRLCK);
    match ofd_lock(file, libc::F_OFD_SETLK, &mut lock) {
        Ok(()) => Ok(true),
        Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(source) => Err(file.io(source)),
    }
}

/// Whether a process holds the row, through another opening of the file than `file`.
pub(super) fn is_claimed(file: &StateFile, row: Row) -> Result<bool, StateError> {
    let mut lock = byte_lock(row, libc::F_WRLCK);
    ofd_lock(file, libc::F_OFD_GETLK, &mut lock).map_err(|source| file.io(source))?;
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}

fn byte_lock(row: Row, kind: libc::c_int) -> libc::flock {
    libc::flock {
        // The three kinds are 0, 1 and 2.
        l_type: libc::c_short::try_from(kind).unwrap_or(0),
        l_whence: 0,
        l_start: LOCKS_AT + i64::from(row.0),
        l_len: 1,
        l_pid: 0,
    }
}

fn ofd_lock(file: &StateFile, command: libc::c_int, lock: &mut libc::flock) -> std::io::Result<()> {
    // SAFETY: the descriptor is open for as long as `file` is borrowed, and the kernel reads
    // and writes one `flock`, which `lock` is.
    match unsafe { libc::fcntl(file.raw().as_raw_fd(), command, std::ptr::from_mut(lock)) } {
        -1 => Err(std::io::Error::last_os_error()),
        _ => Ok(()),
    }
}
