use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Mutex, PoisonError};

use gpuzone_cuda_abi::FunctionIndex;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::layout::{BYTES, Integral, WORDS, word};
use super::reader::StatsFile;
use super::{Monotonic, StatsError};

/// Which way bytes were copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copied {
    /// From the host to a device.
    ToDevice,
    /// From a device to the host.
    FromDevice,
    /// Within devices.
    OnDevice,
}

/// A lease's stats file, as its worker holds it. Any thread may add to it.
#[derive(Debug)]
pub struct StatsWriter {
    words: *const AtomicU64,
    memory: Mutex<()>,
}

// SAFETY: the mapping lives as long as the writer and is only touched through atomics.
unsafe impl Send for StatsWriter {}
// SAFETY: as above.
unsafe impl Sync for StatsWriter {}

impl StatsWriter {
    /// Maps a file that [`StatsFile::create`] made, and settles what a worker before this one
    /// left in use.
    ///
    /// # Errors
    /// When it is not such a file, of another version, or cannot be mapped.
    pub fn open(file: File) -> Result<Self, StatsError> {
        let stats = StatsFile::open(file)?;
        stats.worker_gone(Monotonic::now())?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice; the file is long enough,
        // `StatsFile::open` has read `BYTES` bytes of it.
        let address = unsafe {
            mmap(std::ptr::null_mut(), BYTES, protection, MapFlags::SHARED, stats.file(), 0)
        };
        let address = address.map_err(|error| StatsError::io("map")(error.into()))?;
        Ok(Self { words: address.cast(), memory: Mutex::new(()) })
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        debug_assert!(at < WORDS);
        // SAFETY: the mapping holds `WORDS` words, is aligned to a page and lives as long as
        // `self`; every `at` is a constant of the layout or a checked function index.
        unsafe { &*self.words.add(at) }
    }

    fn add(&self, at: usize, amount: u64) {
        self.word(at).fetch_add(amount, Ordering::Relaxed);
    }

    /// Notes how much memory is in use from `now` on, over all GPUs.
    pub fn set_used(&self, now: Monotonic, bytes: u64) {
        let _guard = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let load = |at: usize| self.word(at).load(Ordering::Relaxed);
        let old = Integral {
            used: load(word::USED),
            since: load(word::SINCE),
            sum: load(word::INTEGRAL),
            remainder: load(word::REMAINDER),
        };
        let new = old.advance(now.nanoseconds(), bytes);
        let sequence = load(word::SEQUENCE) & !1;
        self.word(word::SEQUENCE).store(sequence + 1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.word(word::USED).store(new.used, Ordering::Relaxed);
        self.word(word::SINCE).store(new.since, Ordering::Relaxed);
        self.word(word::INTEGRAL).store(new.sum, Ordering::Relaxed);
        self.word(word::REMAINDER).store(new.remainder, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.word(word::SEQUENCE).store(sequence + 2, Ordering::Relaxed);
        self.word(word::PEAK).fetch_max(bytes, Ordering::Relaxed);
    }

    /// Notes how many tenant processes are connected.
    pub fn set_sessions(&self, count: u32) {
        self.word(word::SESSIONS).store(count.into(), Ordering::Relaxed);
    }

    /// Adds time in which a GPU worked, in nanoseconds.
    pub fn add_busy(&self, nanoseconds: u64) {
        self.add(word::BUSY, nanoseconds);
    }

    /// Counts a kernel's launch.
    pub fn add_launch(&self) {
        self.add(word::LAUNCHES, 1);
    }

    /// Counts copied bytes.
    pub fn add_copied(&self, way: Copied, bytes: u64) {
        let at = match way {
            Copied::ToDevice => word::TO_DEVICE,
            Copied::FromDevice => word::FROM_DEVICE,
            Copied::OnDevice => word::ON_DEVICE,
        };
        self.add(at, bytes);
    }

    /// Counts an allocation that the lease's limit refused.
    pub fn add_refused_memory(&self) {
        self.add(word::REFUSED_MEMORY, 1);
    }

    /// Counts a call that is not supported.
    pub fn add_refused_call(&self, function: FunctionIndex) {
        self.add(word::REFUSED_CALLS, 1);
        self.add(word::BY_NAME + usize::from(function.get()), 1);
    }
}

impl Drop for StatsWriter {
    fn drop(&mut self) {
        // SAFETY: the mapping that `open` made, of that length; nobody can hold a reference
        // into it any more.
        let unmapped = unsafe { munmap(self.words.cast_mut().cast(), BYTES) };
        debug_assert!(unmapped.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpuzone_core::MemoryBytes;
    use std::fs::OpenOptions;
    use std::os::unix::fs::FileExt;

    fn temporary() -> (tempfile::TempDir, StatsFile, File) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let stats = StatsFile::create(&dir.path().join("stats")).expect("created");
        let file = stats.file().try_clone().expect("cloned");
        (dir, stats, file)
    }

    fn at(milliseconds: u64) -> Monotonic {
        // Later than `now`, which `open` settles at.
        let base = 1_000_000_000_000_000_000;
        Monotonic::from_nanoseconds(base + milliseconds * 1_000_000)
    }

    #[test]
    fn counts_and_goes_on_counting_after_a_restart() {
        let (_dir, stats, file) = temporary();
        let unsupported = FunctionIndex::of("cuMemAllocManaged").expect("known");
        for round in 1..=2 {
            let writer = StatsWriter::open(file.try_clone().expect("cloned")).expect("open");
            assert_eq!(stats.snapshot(at(0)).expect("readable").used, MemoryBytes::ZERO);
            writer.add_launch();
            writer.add_copied(Copied::ToDevice, 10);
            writer.add_refused_call(unsupported);
            writer.set_sessions(1);
            writer.set_used(Monotonic::now(), 7);
            let seen = stats.snapshot(Monotonic::now()).expect("readable");
            assert_eq!(
                (seen.counters.launches, seen.counters.bytes_to_device),
                (round, 10 * round)
            );
            assert_eq!(seen.refused_by_name.get("cuMemAllocManaged"), Some(&round));
            assert_eq!((seen.sessions, seen.used.get()), (1, 7));
        }
        stats.worker_gone(Monotonic::now()).expect("settled");
        let seen = stats.snapshot(at(0)).expect("readable");
        assert_eq!((seen.sessions, seen.used), (0, MemoryBytes::ZERO));
        assert_eq!(seen.counters.peak_used.get(), 7);
    }

    #[test]
    fn integrates_until_the_moment_of_reading() {
        let (_dir, stats, file) = temporary();
        let writer = StatsWriter::open(file).expect("open");
        writer.set_used(at(0), 3 << 20);
        writer.set_used(at(10), 1 << 20);
        let counters = stats.snapshot(at(15)).expect("readable").counters;
        assert_eq!(counters.used_mib_milliseconds, 3 * 10 + 5);
        assert_eq!(counters.peak_used.get(), 3 << 20);
        stats.worker_gone(at(20)).expect("settled");
        let counters = stats.snapshot(at(1000)).expect("readable").counters;
        assert_eq!(counters.used_mib_milliseconds, 3 * 10 + 10);
    }

    #[test]
    fn refuses_what_is_no_stats_file() {
        let (dir, stats, _file) = temporary();
        stats.file().write_all_at(&9u64.to_ne_bytes(), 8).expect("written");
        let open = || {
            let mut options = OpenOptions::new();
            options.read(true).write(true).open(dir.path().join("stats")).expect("there")
        };
        assert!(matches!(StatsFile::open(open()), Err(StatsError::Version { found: 9, .. })));
        stats.file().write_all_at(b"junk", 0).expect("written");
        assert!(matches!(StatsFile::open(open()), Err(StatsError::Damaged)));
        stats.file().set_len(100).expect("cut");
        assert!(matches!(StatsFile::open(open()), Err(StatsError::Damaged)));
    }

    #[test]
    fn a_reader_never_sees_two_moments_mixed() {
        let (_dir, stats, file) = temporary();
        let writer = StatsWriter::open(file).expect("open");
        std::thread::scope(|scope| {
            // Always 1 MiB, so the integral at a fixed moment never moves.
            writer.set_used(at(0), 1 << 20);
            scope.spawn(|| (0..2000).for_each(|step| writer.set_used(at(step), 1 << 20)));
            for _ in 0..200 {
                let seen = stats.snapshot(at(5000)).expect("readable");
                assert_eq!(seen.counters.used_mib_milliseconds, 5000);
            }
        });
    }
}
