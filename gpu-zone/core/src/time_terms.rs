use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ComputeShare;

/// How urgent a lease's work is.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// It waits for its place in the round.
    #[default]
    Batch,
    /// Its next launch goes in before batch work, as long as it uses no more than its share.
    LatencyCritical,
}

/// A priority that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("priority '{0}' is neither 'batch' nor 'latency-critical'")]
pub struct InvalidPriority(String);

impl Priority {
    /// Its name, as people write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Batch => "batch",
            Self::LatencyCritical => "latency-critical",
        }
    }
}

impl FromStr for Priority {
    type Err = InvalidPriority;

    fn from_str(text: &str) -> Result<Self, InvalidPriority> {
        match text.trim() {
            "batch" => Ok(Self::Batch),
            "latency-critical" => Ok(Self::LatencyCritical),
            // It may come from anywhere and goes to terminals.
            _ => Err(InvalidPriority(text.chars().filter(|c| !c.is_control()).take(40).collect())),
        }
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How a lease's time is given beyond its share; as it was before there was a choice by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TimeTerms {
    /// How urgent its work is.
    pub priority: Priority,
    /// The part of each GPU's time that it gets at most, even alone; `None` is no limit.
    pub cap: Option<ComputeShare>,
}

/// A share and a cap that cannot both hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a cap of {cap} is below the share of {share} that is guaranteed; ask for a smaller share, or a larger cap"
)]
pub struct CapBelowShare {
    /// What is guaranteed.
    pub share: ComputeShare,
    /// What is the most.
    pub cap: ComputeShare,
}

impl TimeTerms {
    /// The share that is guaranteed where `share` was worked out and not asked for: no more than
    /// the cap lets it use.
    pub fn limit(self, share: ComputeShare) -> ComputeShare {
        self.cap.map_or(share, |cap| share.min(cap))
    }

    /// Whether a share that was asked for can be had under the cap.
    ///
    /// # Errors
    /// When the cap is below it.
    pub fn allow(self, share: ComputeShare) -> Result<(), CapBelowShare> {
        match self.cap {
            Some(cap) if cap < share => Err(CapBelowShare { share, cap }),
            Some(_) | None => Ok(()),
        }
    }

    /// Whether there is nothing to say about it.
    pub fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_priority_reads_back_and_nothing_else_is_one() {
        for priority in [Priority::Batch, Priority::LatencyCritical] {
            assert_eq!(priority.to_string().parse(), Ok(priority));
        }
        for text in ["", "Batch", "urgent", "latency_critical", "batch\u{1b}[2J"] {
            let error = text.parse::<Priority>().unwrap_err().to_string();
            assert!(!error.contains('\u{1b}') && error.contains("latency-critical"), "{error}");
        }
    }

    #[test]
    fn a_cap_bounds_the_share_that_was_worked_out_and_refuses_the_one_that_was_asked_for() {
        let share = |percent| ComputeShare::new(percent).unwrap();
        let capped = TimeTerms { cap: Some(share(40)), ..TimeTerms::default() };
        assert_eq!(capped.limit(share(100)), share(40));
        assert_eq!(capped.limit(share(10)), share(10));
        assert_eq!(capped.allow(share(40)), Ok(()));
        assert!(capped.allow(share(41)).unwrap_err().to_string().contains("40% is below"));
        assert_eq!(TimeTerms::default().allow(ComputeShare::WHOLE), Ok(()));
    }
}
