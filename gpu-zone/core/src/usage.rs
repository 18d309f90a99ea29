use serde::{Deserialize, Serialize};

use crate::{MemoryBytes, Timestamp};

/// What a lease has used since it began. Every counter only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageCounters {
    /// Nanoseconds in which the GPU worked for the lease.
    pub busy_nanoseconds: u64,
    /// Kernels launched.
    pub launches: u64,
    /// Bytes copied to the device.
    pub bytes_to_device: u64,
    /// Bytes copied from the device.
    pub bytes_from_device: u64,
    /// Bytes copied within devices.
    pub bytes_on_device: u64,
    /// Allocations refused because of the lease's memory limit.
    pub refused_memory: u64,
    /// Calls refused because they are not supported.
    pub refused_calls: u64,
    /// Used memory integrated over time, in MiB-milliseconds (2^20 bytes for 1/1000 s):
    /// the mean is this over the duration. At 1 TiB it lasts 500 years.
    pub used_mib_milliseconds: u64,
    /// The largest amount of memory used at once so far.
    pub peak_used: MemoryBytes,
}

impl UsageCounters {
    /// What was added since `earlier`. The peak is no sum: it stays the peak so far.
    /// A counter below `earlier`'s counts as 0 added, so that nothing is ever billed twice.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            busy_nanoseconds: self.busy_nanoseconds.saturating_sub(earlier.busy_nanoseconds),
            launches: self.launches.saturating_sub(earlier.launches),
            bytes_to_device: self.bytes_to_device.saturating_sub(earlier.bytes_to_device),
            bytes_from_device: self.bytes_from_device.saturating_sub(earlier.bytes_from_device),
            bytes_on_device: self.bytes_on_device.saturating_sub(earlier.bytes_on_device),
            refused_memory: self.refused_memory.saturating_sub(earlier.refused_memory),
            refused_calls: self.refused_calls.saturating_sub(earlier.refused_calls),
            used_mib_milliseconds: self
                .used_mib_milliseconds
                .saturating_sub(earlier.used_mib_milliseconds),
            peak_used: self.peak_used,
        }
    }

    /// The sum of two parts; the peak is the larger one.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            busy_nanoseconds: self.busy_nanoseconds.saturating_add(other.busy_nanoseconds),
            launches: self.launches.saturating_add(other.launches),
            bytes_to_device: self.bytes_to_device.saturating_add(other.bytes_to_device),
            bytes_from_device: self.bytes_from_device.saturating_add(other.bytes_from_device),
            bytes_on_device: self.bytes_on_device.saturating_add(other.bytes_on_device),
            refused_memory: self.refused_memory.saturating_add(other.refused_memory),
            refused_calls: self.refused_calls.saturating_add(other.refused_calls),
            used_mib_milliseconds: self
                .used_mib_milliseconds
                .saturating_add(other.used_mib_milliseconds),
            peak_used: self.peak_used.max(other.peak_used),
        }
    }
}

/// What a lease held and used in a stretch of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interval {
    /// From here.
    pub start: Timestamp,
    /// To here, exclusive.
    pub end: Timestamp,
    /// Memory that was kept for the lease throughout.
    pub reserved: MemoryBytes,
    /// What was used within.
    pub used: UsageCounters,
}

impl Interval {
    /// Seconds from start to end.
    pub fn seconds(&self) -> f64 {
        self.end.nanoseconds_since(self.start) as f64 / 1e9
    }

    /// Reserved memory times time, in byte-seconds, rounded down.
    pub fn reserved_byte_seconds(&self) -> u128 {
        let nanoseconds = u128::from(self.end.nanoseconds_since(self.start));
        u128::from(self.reserved.get()) * nanoseconds / 1_000_000_000
    }

    /// Mean of the used memory; zero for an interval of no length.
    pub fn mean_used(&self) -> MemoryBytes {
        let milliseconds = u128::from(self.end.nanoseconds_since(self.start)) / 1_000_000;
        let byte_milliseconds = u128::from(self.used.used_mib_milliseconds) << 20;
        let mean = byte_milliseconds.checked_div(milliseconds).unwrap_or(0);
        MemoryBytes::saturating(u64::try_from(mean).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_add_up_to_the_whole(cuts in proptest::collection::vec(0u64..1 << 40, 1..20)) {
            let mut totals = cuts;
            totals.sort_unstable();
            let at = |n: u64| UsageCounters { busy_nanoseconds: n, launches: n / 3, peak_used: MemoryBytes::saturating(n), ..Default::default() };
            let mut sum = UsageCounters::default();
            let mut last = UsageCounters::default();
            for total in &totals {
                sum = sum.plus(&at(*total).since(&last));
                last = at(*total);
            }
            prop_assert_eq!(sum, last);
        }

        #[test]
        fn mean_is_never_above_the_peak(mib in 0u64..1 << 20, ms in 1u64..1 << 30) {
            let used = UsageCounters { used_mib_milliseconds: mib * ms, peak_used: MemoryBytes::mib(mib), ..Default::default() };
            let interval = Interval { start: Timestamp::from_nanoseconds(0), end: Timestamp::from_nanoseconds(ms * 1_000_000), reserved: MemoryBytes::mib(mib), used };
            prop_assert_eq!(interval.mean_used(), used.peak_used);
            prop_assert_eq!(interval.reserved_byte_seconds(), u128::from(mib << 20) * u128::from(ms) / 1000);
        }
    }
}
