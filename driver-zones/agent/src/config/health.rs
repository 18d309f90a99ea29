//! `[health]`: how long things take until a GPU is out, and until it serves again.

use std::time::Duration;

use gpuzone_core::{HealthTerms, Xid};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// As [`HealthTerms`], with time as people write it.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Health {
    #[serde(deserialize_with = "seconds")]
    grace_seconds: Option<Duration>,
    #[serde(deserialize_with = "seconds")]
    settle_seconds: Option<Duration>,
    #[serde(deserialize_with = "seconds")]
    most_settle_seconds: Option<Duration>,
    #[serde(deserialize_with = "seconds")]
    unknown_xid_seconds: Option<Duration>,
    noted_xids: Vec<u64>,
}

impl From<Health> for HealthTerms {
    fn from(health: Health) -> Self {
        let usual = Self::default();
        Self {
            grace: health.grace_seconds.unwrap_or(usual.grace),
            settle: health.settle_seconds.unwrap_or(usual.settle),
            most_settle: health.most_settle_seconds.unwrap_or(usual.most_settle),
            unknown_settle: health.unknown_xid_seconds.unwrap_or(usual.unknown_settle),
            noted: health.noted_xids.into_iter().map(Xid::new).collect(),
        }
    }
}

fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let seconds = f64::deserialize(deserializer)?;
    if !(0.1..=86_400.0).contains(&seconds) {
        return Err(D::Error::custom(
            "a time of [health] is a number of seconds from 0.1 to 86400",
        ));
    }
    Ok(Some(Duration::from_secs_f64(seconds)))
}
