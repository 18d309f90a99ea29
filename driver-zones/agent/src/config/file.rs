//! The configuration file, as it is written.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gpuzone_core::{HealthTerms, MemoryBytes, TenantId, TenantQuota};
use gpuzone_wire::control::Caps;
use gpuzone_wire::turn::FairTime;
use serde::de::{Error as _, Visitor};
use serde::{Deserialize, Deserializer};

use super::gpus::GpuTable;
use super::health::Health;
use super::{ConfigError, DriverKind, ZonePolicy};
use crate::leases::ScrubSettings;
use crate::metrics::Listen;

/// The tenants' table that stands for all who have none.
const DEFAULT: &str = "default";

#[derive(Debug, Default, PartialEq)]
pub(super) struct File {
    pub(super) node: Node,
    pub(super) driver: Driver,
    pub(super) shim: Shim,
    pub(super) binaries: Binaries,
    pub(super) usage: Usage,
    pub(super) zone: ZonePolicy,
    pub(super) default: Option<TenantQuota>,
    pub(super) tenants: BTreeMap<TenantId, TenantQuota>,
    pub(super) worker: Caps,
    pub(super) fair_time: FairTime,
    pub(super) scrub: ScrubSettings,
    pub(super) health: HealthTerms,
    pub(super) metrics: Metrics,
    pub(super) gpus: Vec<GpuTable>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tables {
    #[serde(default)]
    node: Node,
    #[serde(default)]
    driver: Driver,
    #[serde(default)]
    shim: Shim,
    #[serde(default)]
    binaries: Binaries,
    #[serde(default)]
    usage: Usage,
    #[serde(default)]
    zone: ZonePolicy,
    #[serde(default)]
    tenants: BTreeMap<TenantId, Quota>,
    #[serde(default)]
    worker: Caps,
    #[serde(default)]
    fair_time: FairTime,
    #[serde(default)]
    scrub: Scrub,
    #[serde(default)]
    health: Health,
    #[serde(default)]
    metrics: Metrics,
    #[serde(default)]
    gpu: Vec<GpuTable>,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Node {
    pub(super) state_dir: Option<PathBuf>,
    pub(super) run_dir: Option<PathBuf>,
    pub(super) sysfs: Option<PathBuf>,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Driver {
    pub(super) kind: Option<DriverKind>,
    pub(super) cuda_library: Option<PathBuf>,
    pub(super) nvml_library: Option<PathBuf>,
    pub(super) simulated_config: Option<PathBuf>,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Shim {
    pub(super) library: Option<PathBuf>,
    pub(super) nvml_library: Option<PathBuf>,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Binaries {
    pub(super) broker: Option<PathBuf>,
    pub(super) worker: Option<PathBuf>,
    pub(super) sandbox: Option<PathBuf>,
}

/// Nowhere unless it is named. A program of a tenant shares the machine's loopback unless it is
/// told not to, so an address there by default would show it everybody's usage.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Metrics {
    #[serde(deserialize_with = "listen")]
    pub(super) listen: Option<Listen>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Usage {
    #[serde(rename = "flush_seconds", deserialize_with = "seconds")]
    pub(super) flush: Duration,
}

impl Default for Usage {
    fn default() -> Self {
        Self { flush: Duration::from_secs(5) }
    }
}

/// As [`ScrubSettings`], with memory and time as people write them.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Scrub {
    #[serde(deserialize_with = "memory")]
    sample: Option<MemoryBytes>,
    limit_seconds: Option<std::num::NonZeroU16>,
}

impl From<Scrub> for ScrubSettings {
    fn from(scrub: Scrub) -> Self {
        let Self { sample, limit } = Self::default();
        let seconds = |seconds: std::num::NonZeroU16| Duration::from_secs(seconds.get().into());
        Self {
            sample: scrub.sample.unwrap_or(sample),
            limit: scrub.limit_seconds.map_or(limit, seconds),
        }
    }
}

/// As [`TenantQuota`], with memory as people write it.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Quota {
    #[serde(deserialize_with = "memory")]
    memory: Option<MemoryBytes>,
    share: Option<u32>,
    gpus: Option<u32>,
    leases: Option<u32>,
    latency_critical: bool,
}

impl From<Quota> for TenantQuota {
    fn from(quota: Quota) -> Self {
        let Quota { memory, share, gpus, leases, latency_critical } = quota;
        Self { memory, share, gpus, leases, latency_critical }
    }
}

fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let seconds = f64::deserialize(deserializer)?;
    if !(0.05..=3600.0).contains(&seconds) {
        return Err(D::Error::custom("flush_seconds is a number from 0.05 to 3600"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

fn listen<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Listen>, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map(Some).map_err(D::Error::custom)
}

pub(super) fn memory<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<MemoryBytes>, D::Error> {
    struct Memory;

    impl Visitor<'_> for Memory {
        type Value = Option<MemoryBytes>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a memory size like \"8Gi\", or a number of bytes")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
            text.parse().map(Some).map_err(E::custom)
        }

        fn visit_i64<E: serde::de::Error>(self, bytes: i64) -> Result<Self::Value, E> {
            self.visit_str(&bytes.to_string())
        }

        fn visit_u64<E: serde::de::Error>(self, bytes: u64) -> Result<Self::Value, E> {
            self.visit_str(&bytes.to_string())
        }
    }

    deserializer.deserialize_any(Memory)
}

/// Reads the file.
pub(super) fn read(path: &Path) -> Result<File, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    parse(path, &text)
}

pub(super) fn parse(path: &Path, text: &str) -> Result<File, ConfigError> {
    let tables: Tables = toml::from_str(text).map_err(|error| explain(path, text, &error))?;
    let Tables { node, driver, shim, binaries, usage, zone, tenants, .. } = tables;
    let Tables { worker, fair_time, scrub, health, metrics, gpu: gpus, .. } = tables;
    let mut tenants: BTreeMap<TenantId, TenantQuota> =
        tenants.into_iter().map(|(tenant, quota)| (tenant, quota.into())).collect();
    let default = tenants.iter().find(|(tenant, _)| tenant.as_str() == DEFAULT);
    let default = default.map(|(tenant, quota)| (tenant.clone(), quota.clone()));
    if let Some((tenant, _)) = &default {
        tenants.remove(tenant);
    }
    let default = default.map(|(_, quota)| quota);
    Ok(File {
        node,
        driver,
        shim,
        binaries,
        usage,
        zone,
        default,
        tenants,
        worker,
        fair_time,
        scrub: scrub.into(),
        health: health.into(),
        metrics,
        gpus,
    })
}

fn explain(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let path = path.to_owned();
    let line = error.span().and_then(|span| text.get(..span.start));
    let line = line.map(|before| before.matches('\n').count() + 1);
    let message = error.message().to_owned();
    // serde names the key and all that would do, each in backticks.
    let mut quoted = message.split('`').skip(1).step_by(2);
    match (message.starts_with("unknown field"), quoted.next()) {
        (true, Some(key)) => {
            let distance = |known: &&str| strsim::damerau_levenshtein(key, known);
            let nearest = quoted.min_by_key(distance).map(str::to_owned);
            ConfigError::UnknownKey { path, line, key: key.to_owned(), nearest }
        }
        (_, _) => ConfigError::Value { path, line, message },
    }
}
