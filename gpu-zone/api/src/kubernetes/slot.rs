use std::fmt;
use std::str::FromStr;

/// A place where a lease can appear, as the kubelet counts it: `slot-0` to `slot-4095`. It says
/// nothing about a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(u16);

/// A text that is no slot of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{}' is no slot of gpu-zone; slots are called slot-0 to slot-{}", super::names::shorten(.0), SlotId::MOST - 1)]
pub struct InvalidSlot(pub String);

impl SlotId {
    /// The most slots that a node can have. All of them listed are far below the 4 MiB that a
    /// kubelet takes in one message.
    pub const MOST: u16 = 4096;

    /// The slot with this number; `None` above the most.
    pub const fn new(number: u16) -> Option<Self> {
        if number < Self::MOST { Some(Self(number)) } else { None }
    }

    /// Its number.
    pub const fn number(self) -> u16 {
        self.0
    }

    /// The first `count` slots, as many as there can be.
    pub fn first(count: u16) -> impl Iterator<Item = Self> {
        (0..count.min(Self::MOST)).map(Self)
    }
}

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("slot-{}", self.0))
    }
}

impl FromStr for SlotId {
    type Err = InvalidSlot;

    fn from_str(text: &str) -> Result<Self, InvalidSlot> {
        let number = text.strip_prefix("slot-").and_then(|number| number.parse().ok());
        // One name, one slot: no sign and no zeros in front.
        let slot = number.and_then(Self::new).filter(|slot| slot.to_string() == text);
        slot.ok_or_else(|| InvalidSlot(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn other_names_are_no_slots() {
        for text in ["", "slot-", "slot-+1", "slot-01", "slot-4096", "slot--1", "slot-1/..", "0"] {
            assert_eq!(text.parse::<SlotId>(), Err(InvalidSlot(text.into())), "{text}");
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
        fn any_text_is_answered(text in ".{0,80}") {
            let _ = text.parse::<SlotId>();
        }
    }
}
