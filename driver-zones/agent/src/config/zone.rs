//! The configuration's `[zone.users]`, `[zone.limits]` and `[zone.device_memory]`.

use std::collections::BTreeMap;

use gpuzone_core::MemoryBytes;
use gpuzone_zone::sandbox::{Limits, UserRanges};
use serde::Deserialize;

/// Numbers below these are for users of the host's own.
const HOSTS_OWN: u32 = 65_536;
/// Processors of the largest machine that anybody has, and more.
const MOST_CPUS: f64 = 1e6;

/// Whom zones are on the host, where the agent is root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RawUsers")]
pub struct ZoneUsers(Option<UserRanges>);

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawUsers {
    /// Whether each zone has users of its own.
    own: bool,
    first: u32,
    each: u32,
    zones: u32,
}

impl Default for RawUsers {
    fn default() -> Self {
        let UserRanges { first, each, zones } = UserRanges::default();
        Self { own: true, first, each, zones }
    }
}

impl Default for ZoneUsers {
    fn default() -> Self {
        Self(Some(UserRanges::default()))
    }
}

impl TryFrom<RawUsers> for ZoneUsers {
    type Error = String;

    fn try_from(raw: RawUsers) -> Result<Self, String> {
        let RawUsers { own, first, each, zones } = raw;
        let end = u64::from(first).saturating_add(u64::from(each) * u64::from(zones));
        if first < HOSTS_OWN {
            return Err(format!("first is {first}, but numbers below {HOSTS_OWN} are the host's"));
        }
        if each == 0 || zones == 0 {
            return Err("each and zones are 1 or more".to_owned());
        }
        if end > u64::from(u32::MAX) {
            return Err(format!("the last zone's numbers end at {end}, but there are 2^32"));
        }
        Ok(Self(own.then_some(UserRanges { first, each, zones })))
    }
}

impl ZoneUsers {
    /// From where each zone gets users of its own, if it does.
    pub fn ranges(self) -> Option<UserRanges> {
        self.0
    }
}

/// What each program's zone may have at most, unless `gpu-zone run` says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RawLimits")]
pub struct ZoneLimits {
    memory: Option<MemoryBytes>,
    pids: u64,
    cpu_percent: Option<u64>,
    scratch: MemoryBytes,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawLimits {
    /// Host memory. Left out: nine tenths of the host's.
    #[serde(deserialize_with = "super::file::memory")]
    memory: Option<MemoryBytes>,
    /// Processes and threads.
    pids: u64,
    /// Processors' time, like 1.5. Left out: all there is.
    cpus: Option<f64>,
    /// In all private folders together, which are memory. Left out: 1 GiB.
    #[serde(deserialize_with = "super::file::memory")]
    scratch: Option<MemoryBytes>,
}

impl Default for RawLimits {
    /// No program that is not a fork bomb has so many processes.
    fn default() -> Self {
        Self { memory: None, pids: 4096, cpus: None, scratch: None }
    }
}

impl Default for ZoneLimits {
    fn default() -> Self {
        let RawLimits { memory, pids, cpus: _, scratch: _ } = RawLimits::default();
        Self { memory, pids, cpu_percent: None, scratch: MemoryBytes::gib(1) }
    }
}

impl TryFrom<RawLimits> for ZoneLimits {
    type Error = String;

    fn try_from(raw: RawLimits) -> Result<Self, String> {
        let RawLimits { memory, pids, cpus, scratch } = raw;
        if pids == 0 {
            return Err("a zone without processes runs nothing; pids is 1 or more".to_owned());
        }
        let percent = |cpus: f64| {
            if !(0.01..=MOST_CPUS).contains(&cpus) {
                return Err("cpus is a number from 0.01 up, like 1.5".to_owned());
            }
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "in the range above"
            )]
            Ok((cpus * 100.0).round() as u64)
        };
        let cpu_percent = cpus.map(percent).transpose()?;
        Ok(Self { memory, pids, cpu_percent, scratch: scratch.unwrap_or(MemoryBytes::gib(1)) })
    }
}

impl ZoneLimits {
    /// The same for the launcher.
    pub fn limits(self) -> Limits {
        let Self { memory, pids, cpu_percent, scratch } = self;
        Limits {
            memory: Some(memory.map_or_else(most_memory, MemoryBytes::get)),
            pids: Some(pids),
            cpu: cpu_percent,
            scratch: Some(scratch.get()),
            ..Limits::default()
        }
    }
}

/// Bytes that each lease's worker may have at most of each region of device memory, by the regions' names
/// in the kernel's `dmem.capacity`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "BTreeMap<String, String>")]
pub struct DeviceMemory(BTreeMap<String, u64>);

impl TryFrom<BTreeMap<String, String>> for DeviceMemory {
    type Error = String;

    fn try_from(raw: BTreeMap<String, String>) -> Result<Self, String> {
        let limit = |(region, size): (String, String)| {
            let is_name = |c: char| c.is_ascii_graphic();
            if region.is_empty() || !region.chars().all(is_name) {
                return Err(format!(
                    "{region:?} is no region of device memory; /sys/fs/cgroup/dmem.capacity names them"
                ));
            }
            let size: MemoryBytes =
                size.parse().map_err(|error| format!("the limit of {region}: {error}"))?;
            Ok((region, size.get()))
        };
        Ok(Self(raw.into_iter().map(limit).collect::<Result<_, String>>()?))
    }
}

impl DeviceMemory {
    /// The same, by region.
    pub fn limits(&self) -> BTreeMap<String, u64> {
        self.0.clone()
    }
}

/// So that no zone alone takes what the node's own parts need.
fn most_memory() -> u64 {
    rustix::system::sysinfo().totalram / 10 * 9
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(text: &str) -> Result<ZoneUsers, String> {
        toml::from_str(text).map_err(|error: toml::de::Error| error.message().to_owned())
    }

    fn limits(text: &str) -> Result<ZoneLimits, String> {
        toml::from_str(text).map_err(|error: toml::de::Error| error.message().to_owned())
    }

    #[test]
    fn zones_have_users_of_their_own_unless_told_otherwise() {
        assert_eq!(users("").unwrap().ranges(), Some(UserRanges::default()));
        assert_eq!(users("own = false").unwrap().ranges(), None);
        let few = users("first = 200_000\neach = 10\nzones = 3").unwrap();
        assert_eq!(few.ranges(), Some(UserRanges { first: 200_000, each: 10, zones: 3 }));
    }

    #[test]
    fn ranges_that_are_the_hosts_or_no_numbers_are_refused() {
        for wrong in ["first = 1000", "each = 0", "zones = 0", "first = 4_200_000_000", "x = 1"] {
            assert!(users(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn device_memory_is_limited_by_region() {
        let read = |text: &str| toml::from_str::<DeviceMemory>(text);
        assert_eq!(read("").unwrap(), DeviceMemory::default());
        let limits = read("\"drm/0000:03:00.0/vram0\" = \"16Gi\"").unwrap().limits();
        assert_eq!(limits, BTreeMap::from([("drm/0000:03:00.0/vram0".to_owned(), 16 << 30)]));
        for wrong in
            ["\"\" = \"1Gi\"", "\"a b\" = \"1Gi\"", "\"a\\nb\" = \"1Gi\"", "a = \"x\"", "a = 1"]
        {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_zone_has_limits_unless_told_otherwise() {
        let usual = limits("").unwrap();
        assert_eq!(usual, ZoneLimits::default());
        let usual = usual.limits();
        assert_eq!((usual.pids, usual.cpu, usual.scratch), (Some(4096), None, Some(1 << 30)));
        assert!(usual.memory.is_some_and(|bytes| bytes > 1 << 20));
        let small = limits("memory = \"2Gi\"\npids = 7\ncpus = 1.5\nscratch = \"1Mi\"").unwrap();
        let small = small.limits();
        assert_eq!((small.memory, small.pids), (Some(2 << 30), Some(7)));
        assert_eq!((small.cpu, small.scratch), (Some(150), Some(1 << 20)));
        for wrong in ["pids = 0", "cpus = 0.0", "cpus = -1.0", "cpus = nan", "memory = \"x\""] {
            assert!(limits(wrong).is_err(), "{wrong}");
        }
    }
}
