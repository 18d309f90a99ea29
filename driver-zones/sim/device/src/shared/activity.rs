//! How busy a process keeps its GPU. Each process writes its own record without a lock; a
//! reader that catches it half written is wrong by one sample, for one second.
//!
//! ```text
//! 0   nanoseconds busy since the process came    8   busy since (0: idle)
//! 16  20 × (number of the 50 ms slice, nanoseconds busy in it)
//! ```

use std::sync::Mutex;
use std::sync::PoisonError;

use super::StateError;
use super::file::StateFile;
use super::processes::Row;

const RECORDS_AT: u64 = 64 << 10;
const RECORD_BYTES: u64 = 512;
const SLICES: u64 = 20;
const SLICE_NS: u64 = 50_000_000;
const WORDS: usize = 42;

/// Nanoseconds of the clock that all processes of the machine share.
pub(super) fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0))
}

/// A process's own record.
pub(super) struct Activity {
    row: Row,
    state: Mutex<State>,
}

struct State {
    running: u32,
    words: [u64; WORDS],
}

impl Activity {
    /// An empty record, which replaces that of an earlier process.
    pub(super) fn new(file: &StateFile, row: Row) -> Result<Self, StateError> {
        let words = [0; WORDS];
        file.write(record_at(row), &words)?;
        Ok(Self { row, state: Mutex::new(State { running: 0, words }) })
    }

    /// One more of the process's contexts runs something.
    pub(super) fn begin(&self, file: &StateFile) -> Result<(), StateError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.running += 1;
        if state.running > 1 {
            return Ok(());
        }
        state.words[1] = now();
        file.write(record_at(self.row) + 8, &state.words[1..2])
    }

    /// One less. The time is that in which at least one ran.
    pub(super) fn end(&self, file: &StateFile) -> Result<(), StateError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.running = state.running.saturating_sub(1);
        if state.running > 0 {
            return Ok(());
        }
        let end = now();
        let start = state.words[1].min(end);
        state.words[0] = state.words[0].saturating_add(end - start);
        state.words[1] = 0;
        add_to_slices(&mut state.words[2..], start, end);
        file.write(record_at(self.row), &state.words)
    }
}

fn add_to_slices(slices: &mut [u64], start: u64, end: u64) {
    let horizon = end.saturating_sub(SLICES * SLICE_NS);
    let mut at = start.max(horizon);
    while at < end {
        let number = at / SLICE_NS;
        let until = ((number + 1) * SLICE_NS).min(end);
        let place = usize::try_from(number % SLICES).unwrap_or(0) * 2;
        if slices[place] != number {
            slices[place] = number;
            slices[place + 1] = 0;
        }
        slices[place + 1] += until - at;
        at = until;
    }
}

fn record_at(row: Row) -> u64 {
    RECORDS_AT + row.number() * RECORD_BYTES
}

/// What a record says at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sample {
    /// Nanoseconds busy since the process came.
    pub(super) total_ns: u64,
    /// Nanoseconds busy in the second before.
    pub(super) last_second_ns: u64,
}

/// Reads a process's record. Of a process that is gone (`alive` is false) only what it did in
/// the last second counts.
pub(super) fn sample(file: &StateFile, row: Row, alive: bool) -> Result<Sample, StateError> {
    let mut words = [0; WORDS];
    file.read(record_at(row), &mut words)?;
    Ok(evaluate(&words, now(), alive))
}

fn evaluate(words: &[u64; WORDS], now: u64, alive: bool) -> Sample {
    let [total, since, slices @ ..] = words;
    let running = if *since == 0 || !alive { 0 } else { now.saturating_sub(*since) };
    let oldest = (now / SLICE_NS).saturating_sub(SLICES - 1);
    let recent = slices.as_chunks::<2>().0.iter().filter(|[number, _]| *number >= oldest);
    let finished: u64 = recent.map(|[_, busy]| (*busy).min(SLICE_NS)).sum();
    let last_second_ns = finished.saturating_add(running).min(SLICES * SLICE_NS);
    Sample { total_ns: total.saturating_add(running), last_second_ns }
}

/// Nanoseconds as per cent of a second, at most 100.
pub(super) fn percent(last_second_ns: u64) -> u32 {
    u32::try_from(last_second_ns.div_ceil(10_000_000).min(100)).unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words_of(start: u64, end: u64) -> [u64; WORDS] {
        let mut words = [0; WORDS];
        add_to_slices(&mut words[2..], start, end);
        words
    }

    #[test]
    fn a_busy_half_second_is_half_a_second_and_is_forgotten_after_one() {
        let start = 1_000 * SLICE_NS;
        let words = words_of(start, start + 500_000_000);
        let at = |ms: u64| evaluate(&words, start + ms * 1_000_000, true).last_second_ns;
        assert_eq!(at(500), 500_000_000);
        assert_eq!(at(949), 500_000_000);
        assert_eq!(percent(at(1_200)), 25);
        assert_eq!(at(1_600), 0);
    }

    #[test]
    fn what_runs_now_counts_while_its_process_lives() {
        let mut words = [0; WORDS];
        words[1] = 7_000_000_000;
        assert_eq!(evaluate(&words, 7_300_000_000, true).last_second_ns, 300_000_000);
        assert_eq!(evaluate(&words, 99_000_000_000, true).last_second_ns, 1_000_000_000);
        assert_eq!(evaluate(&words, 7_300_000_000, false).last_second_ns, 0);
    }

    #[test]
    fn a_torn_record_is_never_more_than_everything() {
        let words = [u64::MAX; WORDS];
        let sample = evaluate(&words, u64::MAX, true);
        assert!(percent(sample.last_second_ns) <= 100);
    }
}
