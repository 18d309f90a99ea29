//! The life of a lease.
//!
//! ```text
//!            Activate            Drain              Drained             Scrubbed
//! Reserved ──────────▶ Active ──────────▶ Draining ──────────▶ Scrubbing ──────────▶ Released
//!    │ │                  │                 ▲    │                 │
//!    │ │ Drain            │ Fail            │    │ Fail            │ Fail
//!    │ └──────────────────┼─────────────────┘    ▼                 │
//!    │ Fail               └──────────────────▶ Failed ◀────────────┘
//!    └───────────────────────────────────────────▲│
//!                                                 └─ Drain ▶ Draining (tried again)
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where a lease is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LeaseState {
    /// Its GPUs, memory and share are set aside; nothing runs yet.
    Reserved,
    /// Its slot answers.
    Active,
    /// Its slot is closed and its worker is being ended.
    Draining,
    /// Its worker is gone and its memory is being cleared.
    Scrubbing,
    /// Over; what it held serves others.
    Released,
    /// Something could not be done. What it held stays held until it is drained again.
    Failed,
}

/// What can happen to a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LeaseEvent {
    /// The driver zone serves it.
    Activate,
    /// Its holder is gone, or somebody ends it.
    Drain,
    /// Its worker is gone.
    Drained,
    /// Its memory is clear.
    Scrubbed,
    /// A step could not be done.
    Fail,
}

/// An event that the state does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a lease that is {state} cannot {event}")]
pub struct IllegalTransition {
    /// Where the lease is.
    pub state: LeaseState,
    /// What was tried.
    pub event: LeaseEvent,
}

impl LeaseState {
    /// All states.
    pub const ALL: [Self; 6] = [
        Self::Reserved,
        Self::Active,
        Self::Draining,
        Self::Scrubbing,
        Self::Released,
        Self::Failed,
    ];

    /// The state after `event`. Every pair is listed: a new state or event does not compile
    /// until somebody has thought about it.
    ///
    /// # Errors
    /// When the event has no meaning in this state.
    pub const fn after(self, event: LeaseEvent) -> Result<Self, IllegalTransition> {
        use LeaseEvent as E;
        use LeaseState as S;
        match (self, event) {
            (S::Reserved, E::Activate) => Ok(S::Active),
            (S::Reserved | S::Active | S::Failed, E::Drain) => Ok(S::Draining),
            // Ending twice is one end: the holder's exit and an operator's stop may cross.
            (S::Draining, E::Drain) => Ok(S::Draining),
            (S::Draining, E::Drained) => Ok(S::Scrubbing),
            (S::Scrubbing, E::Scrubbed) => Ok(S::Released),
            (S::Reserved | S::Active | S::Draining | S::Scrubbing, E::Fail) => Ok(S::Failed),
            (S::Active | S::Draining | S::Scrubbing | S::Released | S::Failed, E::Activate)
            | (S::Scrubbing | S::Released, E::Drain)
            | (S::Reserved | S::Active | S::Scrubbing | S::Released | S::Failed, E::Drained)
            | (S::Reserved | S::Active | S::Draining | S::Released | S::Failed, E::Scrubbed)
            | (S::Released | S::Failed, E::Fail) => Err(IllegalTransition { state: self, event }),
        }
    }

    /// Whether a lease in this state keeps others from its memory and share.
    pub const fn holds(self) -> bool {
        match self {
            Self::Reserved | Self::Active | Self::Draining | Self::Scrubbing | Self::Failed => true,
            Self::Released => false,
        }
    }
}

impl LeaseEvent {
    /// All events.
    pub const ALL: [Self; 5] =
        [Self::Activate, Self::Drain, Self::Drained, Self::Scrubbed, Self::Fail];
}

impl fmt::Display for LeaseState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Reserved => "reserved",
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Scrubbing => "scrubbing",
            Self::Released => "released",
            Self::Failed => "failed",
        })
    }
}

impl fmt::Display for LeaseEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Activate => "be activated",
            Self::Drain => "be drained",
            Self::Drained => "have been drained",
            Self::Scrubbed => "have been scrubbed",
            Self::Fail => "fail",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_scrub_releases() {
        for state in LeaseState::ALL {
            for event in LeaseEvent::ALL {
                if state.after(event) == Ok(LeaseState::Released) {
                    assert_eq!((state, event), (LeaseState::Scrubbing, LeaseEvent::Scrubbed));
                }
            }
        }
    }

    #[test]
    fn released_is_the_end_and_every_other_state_can_reach_it() {
        use LeaseEvent::{Drain, Drained, Scrubbed};
        for event in LeaseEvent::ALL {
            assert!(LeaseState::Released.after(event).is_err());
        }
        for state in LeaseState::ALL.into_iter().filter(|state| *state != LeaseState::Released) {
            let steps = [Drain, Drained, Scrubbed];
            let end =
                steps.into_iter().fold(state, |state, event| state.after(event).unwrap_or(state));
            assert_eq!(end, LeaseState::Released, "from {state}");
        }
    }
}
