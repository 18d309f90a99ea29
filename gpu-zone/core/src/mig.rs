use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ids::text_serde;
use crate::{ComputeShare, GpuUuid, MemoryBytes};

/// A MIG profile as resources are called: `1g.10gb`, and `1g.10gb.me` for what NVML calls
/// `1g.10gb+me`, because no resource's name has a `+`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MigProfile(String);

/// A text that is no MIG profile.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no MIG profile; those are called like 1g.10gb")]
pub struct InvalidMigProfile(String);

impl MigProfile {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// How many of its GPU's compute slices it has.
    pub fn slices(&self) -> u32 {
        slices(&self.0).unwrap_or(0)
    }
}

/// A GPU has seven compute slices, and no part of one is to be had.
fn slices(text: &str) -> Option<u32> {
    let (slices, _) = text.split_once("g.")?;
    slices.parse().ok().filter(|slices| (1..=8).contains(slices))
}

fn is_profile(text: &str) -> bool {
    let Some((compute, memory)) = text.split_once("g.") else { return false };
    let (memory, attributes) = memory.split_once("gb").unwrap_or(("", memory));
    let digits = |text: &str, most| {
        (1..=most).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_digit())
            && !text.starts_with('0')
    };
    let attribute =
        |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
    let attributes = attributes.is_empty()
        || attributes.strip_prefix('.').is_some_and(|all| all.split('.').all(attribute));
    let ends = text.bytes().next_back().is_some_and(|b| b.is_ascii_alphanumeric());
    digits(compute, 1) && digits(memory, 4) && attributes && ends && text.len() <= 32
}

impl FromStr for MigProfile {
    type Err = InvalidMigProfile;

    fn from_str(text: &str) -> Result<Self, InvalidMigProfile> {
        let name = text.replace('+', ".");
        let valid = is_profile(&name) && slices(&name).is_some();
        let invalid = || InvalidMigProfile(text.chars().take(80).collect());
        if valid { Ok(Self(name)) } else { Err(invalid()) }
    }
}

impl fmt::Display for MigProfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

text_serde!(MigProfile);

/// One MIG instance: a part of a GPU with compute units and memory that nothing else reaches. It
/// is handed to one lease at a time, all of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigInstance {
    /// The driver's identifier of it.
    pub uuid: GpuUuid,
    /// The GPU that it is a part of.
    pub gpu: GpuUuid,
    /// What it is called by size.
    pub profile: MigProfile,
    /// All of its memory.
    pub memory: MemoryBytes,
    /// The part of its GPU's compute that it is: what a quota counts and a bill says.
    pub share: ComputeShare,
}

/// The part of a GPU's compute that `slices` of its seven slices are, rounded down: those of all
/// instances together are never more than the whole.
pub fn mig_share(slices: u32) -> ComputeShare {
    let percent = (slices.min(7) * 100 / 7).clamp(1, 100);
    ComputeShare::new(percent).unwrap_or(ComputeShare::WHOLE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn profiles_are_called_as_resources_can_be() {
        for (text, name, slices) in [
            ("1g.10gb", "1g.10gb", 1),
            ("1g.10gb+me", "1g.10gb.me", 1),
            ("1g.12gb.me", "1g.12gb.me", 1),
            ("7g.141gb", "7g.141gb", 7),
            ("2g.24gb+me.all", "2g.24gb.me.all", 2),
            ("1g.12gb-me", "", 0),
        ] {
            match text.parse::<MigProfile>() {
                Ok(profile) => assert_eq!((profile.as_str(), profile.slices()), (name, slices)),
                Err(_) => assert_eq!(name, "", "{text}"),
            }
        }
        for text in [
            "",
            "1g",
            "g.10gb",
            "0g.10gb",
            "9g.10gb",
            "1g.gb",
            "1g.010gb",
            "1g.10gb.",
            "1g.10GB",
            "1g.10gb/x",
            "1c.2g.20gb",
            "1g.10gb..me",
            "1g.10gb.ME",
        ] {
            assert!(text.parse::<MigProfile>().is_err(), "{text}");
        }
    }

    #[test]
    fn instances_are_never_more_than_their_gpu() {
        let share = |slices| mig_share(slices).percent();
        assert_eq!((share(1), share(3), share(7), share(8)), (14, 42, 100, 100));
        assert!(7 * share(1) <= 100 && 2 * share(3) + share(1) <= 100);
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in ".{0,50}") {
            if let Ok(profile) = text.parse::<MigProfile>() {
                prop_assert_eq!(profile.to_string().parse(), Ok(profile));
            }
        }
    }
}
