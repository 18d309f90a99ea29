use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How a driver zone hands a GPU to a workload zone.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Exposure {
    /// CUDA calls cross to a worker process that holds the context; leases share the GPU.
    #[default]
    Mediated,
    /// The whole PCI function, over VFIO, to one lease: its VM runs a driver of its own.
    Passthrough,
    /// MIG instances, each to one lease: a worker process holds its context there.
    Mig,
    /// The vendor's vGPUs (mediated devices, or virtual functions), each to one lease over VFIO.
    Vgpu,
}

/// A text that names no exposure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("exposure '{0}' is not known; write mediated, passthrough, mig or vgpu")]
pub struct InvalidExposure(String);

impl Exposure {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Mediated, Self::Passthrough, Self::Mig, Self::Vgpu];

    /// Whether a lease of it shares a GPU's memory and time with others.
    pub const fn is_shared(self) -> bool {
        match self {
            Self::Mediated => true,
            Self::Passthrough | Self::Mig | Self::Vgpu => false,
        }
    }

    /// Its name in configurations, listings and on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Mediated => "mediated",
            Self::Passthrough => "passthrough",
            Self::Mig => "mig",
            Self::Vgpu => "vgpu",
        }
    }

    /// Whether a worker of ours serves its leases. Where none does, the tenant's own driver has
    /// the device: no call of it is seen, and its memory is not ours to clear.
    pub const fn has_worker(self) -> bool {
        match self {
            Self::Mediated | Self::Mig => true,
            Self::Passthrough | Self::Vgpu => false,
        }
    }
}

impl FromStr for Exposure {
    type Err = InvalidExposure;

    fn from_str(text: &str) -> Result<Self, InvalidExposure> {
        let named = Self::ALL.into_iter().find(|exposure| exposure.as_str() == text);
        named.ok_or_else(|| InvalidExposure(text.chars().take(80).collect()))
    }
}

impl fmt::Display for Exposure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_reads_back() {
        for exposure in Exposure::ALL {
            assert_eq!(exposure.to_string().parse(), Ok(exposure));
            let json = serde_json::to_string(&exposure).unwrap();
            assert_eq!(json, format!("\"{exposure}\""));
        }
        let error = "x".repeat(500).parse::<Exposure>().unwrap_err().to_string();
        assert!(error.len() < 200 && error.contains("write mediated"), "{error}");
    }
}
