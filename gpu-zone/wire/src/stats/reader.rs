use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use gpuzone_core::{MemoryBytes, UsageCounters};
use gpuzone_cuda_abi::FUNCTIONS;

use super::layout::{BYTES, Integral, MAGIC, VERSION, WORDS, word};
use super::{Monotonic, StatsError};

/// A lease's stats file, as its broker holds it.
#[derive(Debug)]
pub struct StatsFile {
    file: File,
}

/// What a stats file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Everything counted since the file was made, over all workers.
    pub counters: UsageCounters,
    /// Memory in use now, over all GPUs.
    pub used: MemoryBytes,
    /// Tenant processes that are connected now.
    pub sessions: u32,
    /// Calls that were refused because they are not supported.
    pub refused_by_name: BTreeMap<String, u64>,
}

impl StatsFile {
    /// Makes a file with all counters at 0; one that is there already is replaced.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn create(path: &Path) -> Result<Self, StatsError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        let file = options.open(path).map_err(StatsError::io("make"))?;
        let mut bytes = vec![0u8; BYTES];
        for (at, value) in [
            (word::MAGIC, MAGIC),
            (word::VERSION, VERSION),
            (word::FUNCTIONS, FUNCTIONS.len() as u64),
        ] {
            bytes[at * 8..at * 8 + 8].copy_from_slice(&value.to_ne_bytes());
        }
        file.write_all_at(&bytes, 0).map_err(StatsError::io("write"))?;
        Ok(Self { file })
    }

    /// The stats of a file that [`StatsFile::create`] made; opened for reading and writing.
    ///
    /// # Errors
    /// When it is not such a file, or of another version.
    pub fn open(file: File) -> Result<Self, StatsError> {
        let stats = Self { file };
        stats.words()?;
        Ok(stats)
    }

    /// Takes over what another such file counted: the lease of both is the same, and was not served
    /// for a while.
    ///
    /// # Errors
    /// When one of the files cannot be read or written, or the other is damaged.
    pub fn go_on_from(&self, before: File) -> Result<(), StatsError> {
        let counted = Self::open(before)?.words()?;
        self.write(word::SEQUENCE, &counted[word::SEQUENCE..])?;
        self.worker_gone(Monotonic::now())
    }

    /// The file, to be inherited by a worker.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Everything the file says, with the memory's use integrated until `now`.
    ///
    /// # Errors
    /// When the file cannot be read or is damaged.
    pub fn snapshot(&self, now: Monotonic) -> Result<Snapshot, StatsError> {
        let words = self.words()?;
        let integral = integral_of(&words).advance(now.nanoseconds(), 0);
        let by_name = FUNCTIONS.iter().zip(&words[word::BY_NAME..]);
        Ok(Snapshot {
            counters: UsageCounters {
                busy_nanoseconds: words[word::BUSY],
                launches: words[word::LAUNCHES],
                bytes_to_device: words[word::TO_DEVICE],
                bytes_from_device: words[word::FROM_DEVICE],
                bytes_on_device: words[word::ON_DEVICE],
                refused_memory: words[word::REFUSED_MEMORY],
                refused_calls: words[word::REFUSED_CALLS],
                used_mib_milliseconds: integral.sum,
                peak_used: MemoryBytes::saturating(words[word::PEAK]),
            },
            used: MemoryBytes::saturating(words[word::USED]),
            sessions: u32::try_from(words[word::SESSIONS]).unwrap_or(u32::MAX),
            refused_by_name: by_name
                .filter(|(_, count)| **count > 0)
                .map(|(name, count)| ((*name).to_owned(), *count))
                .collect(),
        })
    }

    /// Notes that the worker is gone: from `now` on nothing is in use and nobody connected.
    /// To be called when no process maps the file.
    ///
    /// # Errors
    /// When the file cannot be read or written, or is damaged.
    pub fn worker_gone(&self, now: Monotonic) -> Result<(), StatsError> {
        let words = self.words()?;
        let settled = integral_of(&words).advance(now.nanoseconds(), 0);
        let even = (words[word::SEQUENCE] | 1).wrapping_add(1);
        let group = [even, settled.used, settled.since, settled.sum, settled.remainder];
        self.write(word::SEQUENCE, &group)?;
        self.write(word::SESSIONS, &[0])
    }

    fn write(&self, at: usize, words: &[u64]) -> Result<(), StatsError> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let offset = u64::try_from(at * 8).unwrap_or(u64::MAX);
        self.file.write_all_at(&bytes, offset).map_err(StatsError::io("write"))
    }

    /// All words, the memory group unmixed where the worker lets it: one that died in the middle
    /// of a change leaves a mixture of two moments that lie together closely.
    fn words(&self) -> Result<Vec<u64>, StatsError> {
        let mut words = self.read()?;
        for _ in 0..64 {
            let before = words[word::SEQUENCE];
            let again = self.read()?;
            let settled = before % 2 == 0 && again[word::SEQUENCE] == before;
            words = again;
            if settled {
                break;
            }
        }
        match (words[word::MAGIC], words[word::VERSION], words[word::FUNCTIONS]) {
            (MAGIC, VERSION, count) if count == FUNCTIONS.len() as u64 => Ok(words),
            (MAGIC, found, _) if found != VERSION => {
                Err(StatsError::Version { found, expected: VERSION })
            }
            _ => Err(StatsError::Damaged),
        }
    }

    fn read(&self) -> Result<Vec<u64>, StatsError> {
        let mut bytes = vec![0u8; BYTES];
        match self.file.read_exact_at(&mut bytes, 0) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(StatsError::Damaged);
            }
            Err(error) => return Err(StatsError::io("read")(error)),
        }
        let mut words = Vec::with_capacity(WORDS);
        let (chunks, _) = bytes.as_chunks::<8>();
        words.extend(chunks.iter().map(|chunk| u64::from_ne_bytes(*chunk)));
        Ok(words)
    }
}

fn integral_of(words: &[u64]) -> Integral {
    Integral {
        used: words[word::USED],
        since: words[word::SINCE],
        sum: words[word::INTEGRAL],
        remainder: words[word::REMAINDER],
    }
}
