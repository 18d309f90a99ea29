//! The life of a zone, as an exhaustive machine.
//!
//! ```text
//!  create        start          begun           end           gone
//! ───────▶ Made ──────▶ Starting ─────▶ Running ─────▶ Ending ─────▶ Ended
//!            │  end        │  failed, end    │                         ▲
//!            ├─────────────┴────▶ Ending     │                         │
//!            │  gone       │  gone           │  gone                   │
//!            └─────────────┴─────────────────┴─────────────────────────┘
//!
//! adopt: Running stays Running; Made and Starting go to Ending, for nobody can tell what they
//! would become.
//! ```
//!
//! Pure: whoever owns a zone feeds in what happened and does what the answer says.

use serde::{Deserialize, Serialize};

/// Where a zone is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ZoneState {
    /// It is held back: nothing of its program has run, and it ends with its owner.
    Made,
    /// It was let go, and the program has not begun.
    Starting,
    /// Its program runs.
    Running,
    /// It was told to end, and processes may be left.
    Ending,
    /// No process of it is left, and none will be.
    Ended,
}

/// What happens to a zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ZoneEvent {
    /// It is let go.
    Start,
    /// Its program begins.
    Begun,
    /// Its program cannot begin.
    Failed,
    /// Somebody wants it gone.
    End,
    /// Its process was seen to be gone.
    Gone,
    /// Another owner found its process running (pid, start time and boot agree).
    Adopt,
}

/// Why an event does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a zone that is {state:?} cannot take {event:?}")]
pub struct WrongEvent {
    /// Where the zone was, and is.
    pub state: ZoneState,
    /// What was said to have happened.
    pub event: ZoneEvent,
}

impl ZoneState {
    /// The state after `event`.
    ///
    /// # Errors
    /// When that cannot happen to a zone in this state; it stays as it is.
    pub const fn after(self, event: ZoneEvent) -> Result<Self, WrongEvent> {
        use ZoneEvent as E;
        use ZoneState as S;
        match (self, event) {
            (S::Made, E::Start) => Ok(S::Starting),
            (S::Starting, E::Begun) | (S::Running, E::Adopt) => Ok(S::Running),
            (S::Made | S::Starting, E::End | E::Adopt)
            | (S::Starting, E::Failed)
            | (S::Running, E::End) => Ok(S::Ending),
            // Ending twice is no error: both want the same.
            (S::Ending, E::End | E::Failed | E::Begun | E::Adopt) => Ok(S::Ending),
            (S::Made | S::Starting | S::Running | S::Ending, E::Gone) => Ok(S::Ended),
            (S::Ended, E::End | E::Gone) => Ok(S::Ended),
            (S::Made, E::Begun | E::Failed)
            | (S::Starting | S::Running | S::Ending | S::Ended, E::Start)
            | (S::Running, E::Begun | E::Failed)
            | (S::Ended, E::Begun | E::Failed | E::Adopt) => Err(WrongEvent { state: self, event }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [ZoneState; 5] = [
        ZoneState::Made,
        ZoneState::Starting,
        ZoneState::Running,
        ZoneState::Ending,
        ZoneState::Ended,
    ];
    const EVENTS: [ZoneEvent; 6] = [
        ZoneEvent::Start,
        ZoneEvent::Begun,
        ZoneEvent::Failed,
        ZoneEvent::End,
        ZoneEvent::Gone,
        ZoneEvent::Adopt,
    ];

    #[test]
    fn what_has_ended_stays_ended_and_anything_can_be_ended() {
        for event in EVENTS {
            let after = ZoneState::Ended.after(event);
            assert!(after.is_err() || after == Ok(ZoneState::Ended), "{event:?}");
        }
        for state in STATES {
            let mut state = state.after(ZoneEvent::End).unwrap();
            if state != ZoneState::Ended {
                state = state.after(ZoneEvent::Gone).unwrap();
            }
            assert_eq!(state, ZoneState::Ended);
        }
    }

    #[test]
    fn a_zone_that_is_told_to_end_never_runs_again() {
        for first in EVENTS {
            for second in EVENTS {
                let state = ZoneState::Ending.after(first).unwrap_or(ZoneState::Ending);
                let state = state.after(second).unwrap_or(state);
                assert!(matches!(state, ZoneState::Ending | ZoneState::Ended));
            }
        }
    }

    #[test]
    fn only_what_ran_is_kept_by_the_next_owner() {
        for state in STATES {
            let kept = state.after(ZoneEvent::Adopt) == Ok(ZoneState::Running);
            assert_eq!(kept, state == ZoneState::Running, "{state:?}");
        }
    }

    #[test]
    fn only_what_was_made_is_started() {
        let starts = STATES.into_iter().filter(|state| state.after(ZoneEvent::Start).is_ok());
        assert_eq!(starts.collect::<Vec<_>>(), [ZoneState::Made]);
    }
}
