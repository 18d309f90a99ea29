use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

use super::{InvalidId, text_serde};

/// The UUID that the driver gives to what runs CUDA programs: a GPU, shown as NVML shows it, `GPU-`
/// and a hyphenated UUID; or a MIG instance of one, shown as `MIG-` and a hyphenated UUID. Or what
/// gpu-zone calls a vGPU of a GPU: `VGPU-` and a hyphenated UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GpuUuid {
    kind: Kind,
    uuid: Uuid,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Kind {
    Gpu,
    Mig,
    Vgpu,
}

impl Kind {
    const fn prefix(self) -> &'static str {
        match self {
            Self::Gpu => "GPU-",
            Self::Mig => "MIG-",
            Self::Vgpu => "VGPU-",
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

    /// The vGPU with this number of a GPU: always the same, so that whoever makes it again finds
    /// that it is there.
    pub const fn vgpu(self, number: u32) -> Self {
        // Odd and without a pattern: near UUIDs and near numbers do not meet.
        const STEP: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;
        let bits = self.uuid.as_u128() ^ STEP.wrapping_mul(number as u128 + 1);
        Self { kind: Kind::Vgpu, uuid: Uuid::from_u128(bits) }
    }

    /// The 16 bytes, as `cuDeviceGetUuid_v2` returns them.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.uuid.as_bytes()
    }

    /// Whether it names a MIG instance and no whole GPU.
    pub const fn is_mig(self) -> bool {
        match self.kind {
            Kind::Gpu | Kind::Vgpu => false,
            Kind::Mig => true,
        }
    }

    /// Whether it names a vGPU.
    pub const fn is_vgpu(self) -> bool {
        match self.kind {
            Kind::Gpu | Kind::Mig => false,
            Kind::Vgpu => true,
        }
    }

    /// Whether it names a part of a GPU and no whole one.
    pub const fn is_part(self) -> bool {
        self.is_mig() || self.is_vgpu()
    }
}

impl FromStr for GpuUuid {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let parsed = [Kind::Gpu, Kind::Mig, Kind::Vgpu].into_iter().find_map(|kind| {
            let uuid = text.strip_prefix(kind.prefix()).filter(|uuid| uuid.len() == 36)?;
            Some(Self { kind, uuid: Uuid::parse_str(uuid).ok()? })
        });
        parsed.ok_or_else(|| InvalidId {
            kind: "GPU",
            text: text.to_owned(),
            rule: "write it as 'GPU-' (or 'MIG-', 'VGPU-') and a UUID, as the listing shows it",
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
            let vgpus: Vec<GpuUuid> = (0..64).map(|number| gpu.vgpu(number)).collect();
            prop_assert_eq!(vgpus.iter().collect::<std::collections::BTreeSet<_>>().len(), 64);
            prop_assert_eq!(vgpus[7].to_string().parse(), Ok(vgpus[7]));
            prop_assert!(vgpus.iter().all(|vgpu| vgpu.is_vgpu() && vgpu.is_part()));
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
