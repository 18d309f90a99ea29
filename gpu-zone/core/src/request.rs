use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{ComputeShare, Exposure, MemoryBytes, TenantId, TimeTerms};

/// How many distinct GPUs: 1 to 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct GpuCount(u32);

/// A number of GPUs that no node can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a number of GPUs; ask for 1 to 64")]
pub struct InvalidGpuCount(String);

impl GpuCount {
    /// One GPU.
    pub const ONE: Self = Self(1);

    /// `count` GPUs.
    ///
    /// # Errors
    /// When `count` is 0 or above 64.
    pub fn new(count: u32) -> Result<Self, InvalidGpuCount> {
        if (1..=64).contains(&count) {
            Ok(Self(count))
        } else {
            Err(InvalidGpuCount(count.to_string()))
        }
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for GpuCount {
    type Error = InvalidGpuCount;

    fn try_from(count: u32) -> Result<Self, InvalidGpuCount> {
        Self::new(count)
    }
}

impl From<GpuCount> for u32 {
    fn from(count: GpuCount) -> Self {
        count.0
    }
}

impl FromStr for GpuCount {
    type Err = InvalidGpuCount;

    fn from_str(text: &str) -> Result<Self, InvalidGpuCount> {
        let invalid = || InvalidGpuCount(text.to_owned());
        Self::new(text.trim().parse().map_err(|_| invalid())?).map_err(|_| invalid())
    }
}

impl fmt::Display for GpuCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a program asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Who asks.
    pub tenant: TenantId,
    /// How many distinct GPUs.
    pub gpus: GpuCount,
    /// Memory on each GPU. `None` is the whole GPU, to itself.
    pub memory: Option<MemoryBytes>,
    /// Guaranteed share of each GPU's time. `None` is the same part of the GPU's time as of
    /// its memory, rounded down, but at least 1 %.
    pub share: Option<ComputeShare>,
    /// How its time is given beyond that.
    #[serde(default)]
    pub time: TimeTerms,
    /// How the GPU is handed over.
    pub exposure: Exposure,
    /// Only GPUs of this product name.
    pub model: Option<String>,
}
