use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

use super::{InvalidId, text_serde};

/// The UUID that the driver gives a GPU; shown as NVML shows it, `GPU-` and a hyphenated UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GpuUuid(Uuid);

impl GpuUuid {
    /// The identifier with these 16 bytes, as `cuDeviceGetUuid` returns them.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    /// The 16 bytes, as `cuDeviceGetUuid` returns them.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }
}

impl FromStr for GpuUuid {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let parsed = text
            .strip_prefix("GPU-")
            .filter(|uuid| uuid.len() == 36)
            .and_then(|uuid| Uuid::parse_str(uuid).ok());
        parsed.map(Self).ok_or_else(|| InvalidId {
            kind: "GPU",
            text: text.to_owned(),
            rule: "write it as 'GPU-' and a UUID, as the listing shows it",
        })
    }
}

impl fmt::Display for GpuUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("GPU-{}", self.0.hyphenated()))
    }
}

text_serde!(GpuUuid);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn reads_back(bytes: [u8; 16]) {
            let gpu = GpuUuid::from_bytes(bytes);
            prop_assert_eq!(gpu.to_string().parse(), Ok(gpu));
            prop_assert_eq!(gpu.as_bytes(), &bytes);
        }
    }

    #[test]
    fn other_forms_are_refused() {
        for text in [
            "",
            "GPU-",
            "GPU-1",
            "MIG-00000000-0000-0000-0000-000000000000",
            "GPU-00000000000000000000000000000000",
        ] {
            assert!(text.parse::<GpuUuid>().is_err(), "{text}");
        }
    }
}
