//! The file: 64-bit numbers in the machine's order, one after the other.

use gpuzone_cuda_abi::FUNCTIONS;

/// "GZSTATS" and a zero.
pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"GZSTATS\0");
/// Of the layout, and of the list of names: a function is counted at its position in it.
pub(super) const VERSION: u64 = 2;

/// Positions of the words, in words.
pub(super) mod word {
    pub(crate) const MAGIC: usize = 0;
    pub(crate) const VERSION: usize = 1;
    /// How many names of functions are counted behind [`BY_NAME`].
    pub(crate) const FUNCTIONS: usize = 2;
    /// Odd while the words from [`USED`] to [`REMAINDER`] are being written.
    pub(crate) const SEQUENCE: usize = 3;
    pub(crate) const USED: usize = 4;
    pub(crate) const SINCE: usize = 5;
    pub(crate) const INTEGRAL: usize = 6;
    /// What the integral lacks, in byte-nanoseconds, below one MiB-millisecond.
    pub(crate) const REMAINDER: usize = 7;
    pub(crate) const PEAK: usize = 8;
    pub(crate) const SESSIONS: usize = 9;
    pub(crate) const BUSY: usize = 10;
    pub(crate) const LAUNCHES: usize = 11;
    pub(crate) const TO_DEVICE: usize = 12;
    pub(crate) const FROM_DEVICE: usize = 13;
    pub(crate) const ON_DEVICE: usize = 14;
    pub(crate) const REFUSED_MEMORY: usize = 15;
    pub(crate) const REFUSED_CALLS: usize = 16;
    pub(crate) const BY_NAME: usize = 32;
}

pub(super) const WORDS: usize = word::BY_NAME + FUNCTIONS.len();
pub(super) const BYTES: usize = WORDS * 8;

/// Memory use integrated over time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Integral {
    /// Bytes in use since `since`.
    pub(super) used: u64,
    /// Nanoseconds of the monotonic clock.
    pub(super) since: u64,
    /// MiB-milliseconds until `since`.
    pub(super) sum: u64,
    /// Byte-nanoseconds that `sum` lacks.
    pub(super) remainder: u64,
}

const BYTE_NANOSECONDS: u128 = (1 << 20) * 1_000_000;

impl Integral {
    /// The integral until `now`, with `used` bytes in use from then on.
    pub(super) fn advance(self, now: u64, used: u64) -> Self {
        let nanoseconds = u128::from(now.saturating_sub(self.since));
        let total = u128::from(self.used) * nanoseconds + u128::from(self.remainder);
        let whole = u64::try_from(total / BYTE_NANOSECONDS).unwrap_or(u64::MAX);
        Self {
            used,
            since: now.max(self.since),
            sum: self.sum.saturating_add(whole),
            remainder: u64::try_from(total % BYTE_NANOSECONDS).unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn many_small_steps_are_one_large_step(
            used in 0u64..1 << 40,
            steps in proptest::collection::vec(0u64..1 << 33, 1..50),
        ) {
            let mut now = 0;
            let mut stepped = Integral { used, ..Integral::default() };
            for step in steps {
                now += step;
                stepped = stepped.advance(now, used);
            }
            let direct = Integral { used, ..Integral::default() }.advance(now, used);
            prop_assert_eq!(stepped, direct);
        }
    }

    #[test]
    fn a_gibibyte_for_a_second() {
        let gib = Integral { used: 1 << 30, ..Integral::default() };
        assert_eq!(gib.advance(1_000_000_000, 0).sum, 1024 * 1000);
    }

    #[test]
    fn the_clock_does_not_run_backwards() {
        let at = Integral { used: 5, since: 100, sum: 1, remainder: 2 };
        assert_eq!(at.advance(50, 5), at);
    }
}
