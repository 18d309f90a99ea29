//! Slots, and who holds the leases that appear in them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use gpuzone_core::GpuUuid;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::kubernetes::shorten;

/// Folder of all slots in the state directory: a container's mounts outlive a restart of the
/// node, and what they name has to be there then.
pub const PLACED_SLOTS_DIR: &str = "slots";

/// A place where a lease can appear, as the kubelet counts it: `slot-0` to `slot-1023`, which says
/// nothing about a GPU; or a MIG instance, called as the driver calls it, where a lease of that
/// instance appears.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(Place);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Place {
    Numbered(u16),
    Instance(GpuUuid),
}

/// A text that is no slot of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{}' is no slot of gpu-zone; slots are called slot-0 to slot-{}, or like MIG instances", shorten(.0), SlotId::MOST - 1)]
pub struct InvalidSlot(pub String);

impl SlotId {
    /// The most numbered slots that a node can have: 64 on each of 16 GPUs. All of them listed are
    /// far below the 4 MiB that a kubelet takes in one message.
    pub const MOST: u16 = 1024;

    /// The slot with this number; `None` above the most.
    pub const fn new(number: u16) -> Option<Self> {
        if number < Self::MOST { Some(Self(Place::Numbered(number))) } else { None }
    }

    /// The slot of a MIG instance; `None` for a whole GPU.
    pub const fn of_instance(instance: GpuUuid) -> Option<Self> {
        if instance.is_mig() { Some(Self(Place::Instance(instance))) } else { None }
    }

    /// Its number, if it has one.
    pub const fn number(self) -> Option<u16> {
        match self.0 {
            Place::Numbered(number) => Some(number),
            Place::Instance(_) => None,
        }
    }

    /// The MIG instance whose slot it is, if it is one's.
    pub const fn instance(self) -> Option<GpuUuid> {
        match self.0 {
            Place::Numbered(_) => None,
            Place::Instance(instance) => Some(instance),
        }
    }

    /// The first `count` numbered slots, as many as there can be.
    pub fn first(count: u16) -> impl Iterator<Item = Self> {
        (0..count.min(Self::MOST)).map(|number| Self(Place::Numbered(number)))
    }
}

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Place::Numbered(number) => f.pad(&format!("slot-{number}")),
            Place::Instance(instance) => instance.fmt(f),
        }
    }
}

impl FromStr for SlotId {
    type Err = InvalidSlot;

    fn from_str(text: &str) -> Result<Self, InvalidSlot> {
        let invalid = || InvalidSlot(text.to_owned());
        let Some(digits) = text.strip_prefix("slot-") else {
            let instance = text.parse().ok().and_then(Self::of_instance);
            // One name, one slot: a UUID may be written in capitals, too.
            return instance.filter(|slot| slot.to_string() == text).ok_or_else(invalid);
        };
        // Likewise: no sign and no zeros in front.
        let plain = digits.bytes().all(|b| b.is_ascii_digit())
            && (digits == "0" || !digits.starts_with('0'));
        let slot =
            Some(digits).filter(|_| plain).and_then(|digits| Self::new(digits.parse().ok()?));
        slot.ok_or_else(invalid)
    }
}

/// The folder of a slot that one container has mounted: a number of 16 hexadecimal digits.
/// Numbers only grow, so none is ever given to a second container of another pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotFolder(u64);

/// A text that names no folder of a slot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{}' names no folder of a slot; those have 16 hexadecimal digits", shorten(.0))]
pub struct InvalidFolder(pub String);

impl SlotFolder {
    /// The folder with this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The first of `wanted` and later numbers that is above this one; `None` when numbers end.
    pub const fn next(self, wanted: u64) -> Option<Self> {
        match self.0.checked_add(1) {
            Some(above) if above > wanted => Some(Self(above)),
            Some(_) => Some(Self(wanted)),
            None => None,
        }
    }
}

impl fmt::Display for SlotFolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:016x}", self.0))
    }
}

impl FromStr for SlotFolder {
    type Err = InvalidFolder;

    fn from_str(text: &str) -> Result<Self, InvalidFolder> {
        // One name, one folder: `from_str_radix` alone would take a sign and capitals.
        let folder = u64::from_str_radix(text, 16).ok().map(Self);
        let folder = folder.filter(|folder| folder.to_string() == text);
        folder.ok_or_else(|| InvalidFolder(text.to_owned()))
    }
}

/// Who holds a placed lease, as whoever placed it knows it: 1 to 200 of `a-z`, `0-9`, `-`, `.`
/// and `/`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HolderName(String);

/// A text that names no holder.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{}' names no holder of a lease; use 1 to 200 of a-z, 0-9, '-', '.' and '/'", shorten(.0))]
pub struct InvalidHolder(pub String);

impl HolderName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HolderName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for HolderName {
    type Err = InvalidHolder;

    fn from_str(text: &str) -> Result<Self, InvalidHolder> {
        let allowed =
            |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.' | b'/');
        if (1..=200).contains(&text.len()) && text.bytes().all(allowed) {
            return Ok(Self(text.to_owned()));
        }
        Err(InvalidHolder(text.to_owned()))
    }
}

/// Text form in serde for a type with `FromStr` and `Display`.
macro_rules! text_serde {
    ($($type:ty),*) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
text_serde!(SlotId, SlotFolder, HolderName);

/// The folder that a container has mounted, below a state directory.
pub fn slot_folder(state: &Path, slot: SlotId, folder: SlotFolder) -> PathBuf {
    state.join(PLACED_SLOTS_DIR).join(slot.to_string()).join(folder.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn other_names_are_no_slots() {
        for text in ["", "slot-", "slot-+1", "slot-01", "slot-1024", "slot--1", "slot-1/..", "0"] {
            assert_eq!(text.parse::<SlotId>(), Err(InvalidSlot(text.into())), "{text}");
        }
        for text in [
            "GPU-00000000-0000-0000-0000-00000000000a",
            "MIG-00000000-0000-0000-0000-00000000000A",
            "MIG-../../../etc",
        ] {
            assert!(text.parse::<SlotId>().is_err(), "{text}");
        }
        assert_eq!(SlotId::first(u16::MAX).count(), usize::from(SlotId::MOST));
    }

    proptest! {
        #[test]
        fn reads_back(number in 0..SlotId::MOST) {
            let slot = SlotId::new(number).unwrap();
            prop_assert_eq!(slot.to_string().parse(), Ok(slot));
            prop_assert!(slot.to_string().len() <= 63);
        }

        #[test]
        fn an_instances_slot_reads_back(bytes: [u8; 16]) {
            let instance = GpuUuid::mig_from_bytes(bytes);
            let slot = SlotId::of_instance(instance).unwrap();
            prop_assert_eq!(slot.to_string().parse(), Ok(slot));
            prop_assert_eq!((slot.instance(), slot.number()), (Some(instance), None));
            // A device's name has at most 63 characters.
            prop_assert!(slot.to_string().len() <= 63);
        }

        #[test]
        fn a_folder_reads_back_and_the_next_is_above_it(number: u64, wanted: u64) {
            let folder = SlotFolder::new(number);
            prop_assert_eq!(folder.to_string().parse(), Ok(folder));
            match folder.next(wanted) {
                Some(next) => prop_assert!(next > folder && next >= SlotFolder::new(wanted)),
                None => prop_assert_eq!(number, u64::MAX),
            }
        }

        #[test]
        fn any_text_is_answered(text in ".{0,80}") {
            let _ = text.parse::<SlotId>();
            let _ = text.parse::<SlotFolder>();
            if let Ok(holder) = text.parse::<HolderName>() {
                prop_assert_eq!(holder.to_string(), text);
            }
        }
    }
}
