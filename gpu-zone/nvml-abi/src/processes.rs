use std::time::{SystemTime, UNIX_EPOCH};

/// In what NVML says of a process: it is on no MIG instance.
pub const NO_INSTANCE: u32 = u32::MAX;

/// The time as NVML counts it: microseconds since 1970.
pub fn microseconds_now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}
