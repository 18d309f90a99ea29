use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

use super::{InvalidId, text_serde};

/// The UUID that the driver gives to what runs CUDA programs: a GPU, shown as NVML shows it, `GPU-`
/// and a hyphenated UUID; or a MIG instance of one, shown as `MIG-` and a hyphenated UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GpuUuid {
    kind: Kind,
    uuid: Uuid,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Kind {
    Gpu,
    Mig,
}

impl Kind {
    const fn prefix(self) -> &'static str {
        match self {
            Self::Gpu => "GPU-",
            Self::Mig => "MIG-",
        }
    }
}

impl GpuUuid {
    /// The GPU with these 16 bytes, as `cuDeviceGetUuid` returns them.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self { kind: Kind::Gpu, uuid: Uuid::from_bytes(bytes) }
    }

    /// The MIG instance with these 16 bytes, as `cuDeviceGetUuid_v2` returns them.
    pub const fn mig_from_bytes(bytes: [u8; 16]) -> Self {
        Self { kind: Kind::Mig, uuid: Uuid::from_bytes(bytes) }
    }

    /// The 16 bytes, as `cuDeviceGetUuid_v2` returns them.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.uuid.as_bytes()
    }

    /// Whether it names a MIG instance and no whole GPU.
    pub const fn is_mig(self) -> bool {
        match self.kind {
            Kind::Gpu => false,
            Kind::Mig => true,
        }
    }
}

impl FromStr for GpuUuid {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let parsed = [Kind::Gpu, Kind::Mig].into_iter().find_map(|kind| {
            let uuid = text.strip_prefix(kind.prefix()).filter(|uuid| uuid.len() == 36)?;
            Some(Self { kind, uuid: Uuid::parse_str(uuid).ok()? })
        });
        parsed.ok_or_else(|| InvalidId {
            kind: "GPU",
            text: text.to_owned(),
            rule: "write it as 'GPU-' (or 'MIG-') and a UUID, as the listing shows it",
        })
    }
}

impl fmt::Display for GpuUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}{}", self.kind.prefix(), self.uuid.hyphenated()))
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
            let instance = GpuUuid::mig_from_bytes(bytes);
            prop_assert_eq!(instance.to_string().parse(), Ok(instance));
            prop_assert!(instance != gpu && instance.is_mig() && !gpu.is_mig());
        }
    }

    #[test]
    fn other_forms_are_refused() {
        for text in [
            "",
            "GPU-",
            "GPU-1",
            "MIG-GPU-00000000-0000-0000-0000-000000000000/1/0",
            "mig-00000000-0000-0000-0000-000000000000",
            "GPU-00000000000000000000000000000000",
        ] {
            assert!(text.parse::<GpuUuid>().is_err(), "{text}");
        }
    }
}
