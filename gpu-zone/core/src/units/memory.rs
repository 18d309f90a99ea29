use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An amount of memory in bytes.
///
/// Reads and writes Kubernetes' quantities: plain bytes, binary suffixes (`Ki`, `Mi`,
/// `Gi`, `Ti`) and decimal ones (`k`, `M`, `G`, `T`). It is shown with the largest
/// binary suffix that divides it exactly, so what is shown reads back as the same amount.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct MemoryBytes(u64);

/// Why a text is no amount of memory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMemory {
    /// Nothing but white space.
    #[error("a memory size is missing; write one like 8Gi, 512Mi or 1073741824")]
    Empty,
    /// A minus sign.
    #[error("memory size '{0}' is negative; write a size above zero like 8Gi")]
    Negative(String),
    /// No digits in front.
    #[error("memory size '{0}' is not a whole number with a unit; write one like 8Gi or 512Mi")]
    NotANumber(String),
    /// Digits followed by something that is no suffix.
    #[error(
        "memory size '{text}' has the unknown unit '{unit}'; use Ki, Mi, Gi, Ti, k, M, G, T or none for bytes"
    )]
    UnknownUnit {
        /// The whole text.
        text: String,
        /// What stands behind the digits.
        unit: String,
    },
    /// More than 2^63 - 1 bytes.
    #[error("memory size '{0}' is larger than any GPU's memory can be (8Ei)")]
    TooLarge(String),
}

const SUFFIXES: [(&str, u64); 8] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
];

impl MemoryBytes {
    /// No memory.
    pub const ZERO: Self = Self(0);
    /// The largest amount: it fits SQLite's and protobuf's signed 64-bit numbers.
    pub const MAX: Self = Self(i64::MAX as u64);

    /// An amount of `bytes`, at most [`MemoryBytes::MAX`].
    pub const fn new(bytes: u64) -> Option<Self> {
        if bytes > Self::MAX.0 { None } else { Some(Self(bytes)) }
    }

    /// `n` MiB; saturates at [`MemoryBytes::MAX`].
    pub const fn mib(n: u64) -> Self {
        Self::saturating(n.saturating_mul(1 << 20))
    }

    /// `n` GiB; saturates at [`MemoryBytes::MAX`].
    pub const fn gib(n: u64) -> Self {
        Self::saturating(n.saturating_mul(1 << 30))
    }

    /// `bytes`, or [`MemoryBytes::MAX`] when there are more.
    pub const fn saturating(bytes: u64) -> Self {
        if bytes > Self::MAX.0 { Self::MAX } else { Self(bytes) }
    }

    /// The number of bytes.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Whether there is none.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// The sum, unless it is above [`MemoryBytes::MAX`].
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        Self::new(self.0.saturating_add(other.0))
    }

    /// The difference, unless `other` is larger.
    pub const fn checked_sub(self, other: Self) -> Option<Self> {
        match self.0.checked_sub(other.0) {
            Some(bytes) => Some(Self(bytes)),
            None => None,
        }
    }

    /// This amount `n` times, unless it is above [`MemoryBytes::MAX`].
    pub const fn checked_mul(self, n: u64) -> Option<Self> {
        match self.0.checked_mul(n) {
            Some(bytes) => Self::new(bytes),
            None => None,
        }
    }
}

impl FromStr for MemoryBytes {
    type Err = InvalidMemory;

    fn from_str(text: &str) -> Result<Self, InvalidMemory> {
        let trimmed = text.trim();
        if trimmed.is_empty() {
            return Err(InvalidMemory::Empty);
        }
        if trimmed.starts_with('-') {
            return Err(InvalidMemory::Negative(text.to_owned()));
        }
        let digits = trimmed.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = trimmed.split_at(digits);
        if number.is_empty() || unit.starts_with(['.', ',']) {
            return Err(InvalidMemory::NotANumber(text.to_owned()));
        }
        let factor = match SUFFIXES.iter().find(|(suffix, _)| *suffix == unit) {
            Some((_, factor)) => *factor,
            None if unit.is_empty() => 1,
            None => {
                return Err(InvalidMemory::UnknownUnit {
                    text: text.to_owned(),
                    unit: unit.to_owned(),
                });
            }
        };
        // The digits are all that is left, so parsing fails for one reason only: too many.
        let too_large = || InvalidMemory::TooLarge(text.to_owned());
        let count = number.parse::<u64>().map_err(|_| too_large())?;
        count.checked_mul(factor).and_then(Self::new).ok_or_else(too_large)
    }
}

impl fmt::Display for MemoryBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let binary = SUFFIXES[..4].iter().rev();
        match binary.into_iter().find(|(_, factor)| self.0 != 0 && self.0.is_multiple_of(*factor)) {
            Some((suffix, factor)) => write!(f, "{}{suffix}", self.0 / factor),
            None => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<u64, InvalidMemory> {
        text.parse().map(MemoryBytes::get)
    }

    #[test]
    fn reads_kubernetes_quantities() {
        assert_eq!(parse("8Gi"), Ok(8 << 30));
        assert_eq!(parse("8192Mi"), Ok(8 << 30));
        assert_eq!(parse("1G"), Ok(1_000_000_000));
        assert_eq!(parse(" 17 "), Ok(17));
        assert_eq!(parse("0"), Ok(0));
    }

    #[test]
    fn says_what_is_wrong() {
        assert_eq!(parse(""), Err(InvalidMemory::Empty));
        assert_eq!(parse("-1Gi"), Err(InvalidMemory::Negative("-1Gi".into())));
        assert_eq!(parse("lots"), Err(InvalidMemory::NotANumber("lots".into())));
        assert_eq!(parse("1.5Gi"), Err(InvalidMemory::NotANumber("1.5Gi".into())));
        assert!(
            matches!(parse("8GB"), Err(InvalidMemory::UnknownUnit { unit, .. }) if unit == "GB")
        );
        for huge in ["9223372036854775808", "8388608Ti", "99999999999999999999999"] {
            assert_eq!(parse(huge), Err(InvalidMemory::TooLarge(huge.into())), "{huge}");
        }
        assert_eq!(parse("9223372036854775807"), Ok(i64::MAX as u64));
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(bytes in 0..=MemoryBytes::MAX.get(), shift in 0u32..50) {
            let memory = MemoryBytes::saturating((bytes >> shift) << shift);
            prop_assert_eq!(memory.to_string().parse(), Ok(memory));
        }

        #[test]
        fn any_text_is_answered(text in ".{0,40}") {
            let _ = text.parse::<MemoryBytes>();
        }
    }
}
