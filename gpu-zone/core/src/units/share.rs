use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The part of one GPU's time that a lease is guaranteed, in per cent: 1 to 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct ComputeShare(u8);

/// A share that is not a whole number from 1 to 100.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("share '{0}' is not a whole per cent of a GPU; write a number from 1 to 100")]
pub struct InvalidShare(String);

impl ComputeShare {
    /// A whole GPU's time.
    pub const WHOLE: Self = Self(100);

    /// A share of `percent`.
    ///
    /// # Errors
    /// When `percent` is 0 or above 100.
    pub fn new(percent: u32) -> Result<Self, InvalidShare> {
        match u8::try_from(percent) {
            Ok(percent @ 1..=100) => Ok(Self(percent)),
            Ok(_) | Err(_) => Err(InvalidShare(percent.to_string())),
        }
    }

    /// The per cent, 1 to 100.
    pub const fn percent(self) -> u32 {
        self.0 as u32
    }
}

impl FromStr for ComputeShare {
    type Err = InvalidShare;

    fn from_str(text: &str) -> Result<Self, InvalidShare> {
        let number = text.trim().strip_suffix('%').unwrap_or(text.trim());
        let invalid = || InvalidShare(text.to_owned());
        Self::new(number.parse().map_err(|_| invalid())?).map_err(|_| invalid())
    }
}

impl fmt::Display for ComputeShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

impl TryFrom<u32> for ComputeShare {
    type Error = InvalidShare;

    fn try_from(percent: u32) -> Result<Self, InvalidShare> {
        Self::new(percent)
    }
}

impl From<ComputeShare> for u32 {
    fn from(share: ComputeShare) -> Self {
        share.percent()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_share_reads_back_and_nothing_else_is_one() {
        for percent in 1..=100 {
            let share = ComputeShare::new(percent).unwrap();
            assert_eq!(share.to_string().parse(), Ok(share));
            assert_eq!(percent.to_string().parse(), Ok(share));
        }
        for wrong in ["0", "101", "-1", "", "half", "4294967297", "50.5"] {
            assert_eq!(wrong.parse::<ComputeShare>(), Err(InvalidShare(wrong.into())));
        }
    }
}
