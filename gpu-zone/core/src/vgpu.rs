use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::devices::PartMode;
use crate::ids::text_serde;
use crate::{ComputeShare, GpuUuid, MemoryBytes};

/// A type of vGPUs as resources are called: `nvidia-592`, `i915-GVTg_V5_4`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VgpuType(String);

/// A text that is no type of vGPUs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' names no vGPU type; write 1 to 48 letters, digits, '-', '_' and '.', with a letter or digit at both ends"
)]
pub struct InvalidVgpuType(String);

impl VgpuType {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for VgpuType {
    type Err = InvalidVgpuType;

    fn from_str(text: &str) -> Result<Self, InvalidVgpuType> {
        let ends = [text.bytes().next(), text.bytes().next_back()];
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        let valid = text.len() <= 48
            && ends.into_iter().all(|end| end.is_some_and(|b| b.is_ascii_alphanumeric()))
            && text.bytes().all(plain);
        let invalid =
            || InvalidVgpuType(text.chars().filter(|c| !c.is_control()).take(80).collect());
        if valid { Ok(Self(text.to_owned())) } else { Err(invalid()) }
    }
}

impl fmt::Display for VgpuType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

text_serde!(VgpuType);

/// One vGPU: a mediated device, a vendor's vGPU on a virtual function, or a virtual function. It is
/// handed to one lease at a time, all of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vgpu {
    /// What gpu-zone calls it.
    pub uuid: GpuUuid,
    /// The GPU that it is a part of.
    pub gpu: GpuUuid,
    /// What it is made as.
    pub mode: PartMode,
    /// What it is called by size.
    pub kind: VgpuType,
    /// All of its memory.
    pub memory: MemoryBytes,
    /// The part of its GPU's compute that it is: what a quota counts and a bill says.
    pub share: ComputeShare,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn types_are_called_as_resources_can_be() {
        for text in ["nvidia-592", "i915-GVTg_V5_4", "xe.vf-4", "a"] {
            assert_eq!(text.parse::<VgpuType>().unwrap().as_str(), text);
        }
        let long = "x".repeat(49);
        for text in ["", "-a", "a-", "NVIDIA L40S-1B", "a/b", &long] {
            assert!(text.parse::<VgpuType>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in ".{0,60}") {
            if let Ok(of) = text.parse::<VgpuType>() {
                prop_assert_eq!(of.to_string().parse(), Ok(of));
            }
        }
    }
}
