//! When to register with the kubelet.
//!
//! ```text
//!              kubelet.sock is there           it answered
//!   Waiting ──────────────────────▶ Calling ───────────────▶ Registered
//!      ▲                             │   ▲                      │
//!      │ it is gone                  │   │ time to try again    │ kubelet.sock is another one,
//!      ├─────────────────────────────┤   │                      │ or our own socket is gone
//!      │                   it refused│   │                      │ (a kubelet that starts empties
//!      │                             ▼   │                      │ the folder)
//!      ├─────────────────────────── Resting                     ▼
//!      └──────────────────────────────────────────────────── Calling
//! ```

use std::time::Duration;

/// A socket, told from the one that was at the same path before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketId {
    /// Its inode.
    pub inode: u64,
    /// When it was made, in nanoseconds.
    pub made: i64,
}

/// What there is to be seen in the kubelet's folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The kubelet's socket.
    pub kubelet: Option<SocketId>,
    /// Whether our own is there, and not another plugin's in its place.
    pub own: bool,
}

/// Where we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// There is no kubelet.
    Waiting,
    /// It is being asked.
    Calling {
        /// Which.
        kubelet: SocketId,
        /// How often it has not taken us.
        refusals: u32,
    },
    /// It knows us.
    Registered(SocketId),
    /// It did not take us; we try again.
    Resting {
        /// Which.
        kubelet: SocketId,
        /// How often it has not taken us.
        refusals: u32,
    },
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Somebody looked.
    Looked(Seen),
    /// The kubelet took us.
    Taken,
    /// It did not.
    Refused,
    /// The rest is over.
    Rested,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Nothing,
    /// Make our socket anew, serve it, and register.
    Register,
    /// Look again after this.
    Rest(Duration),
}

/// How long to rest after so many refusals: half a second, and up to half a minute.
fn rest(refusals: u32) -> Duration {
    let doubled = Duration::from_millis(500).saturating_mul(1 << refusals.min(6));
    doubled.min(Duration::from_secs(30))
}

/// What follows. Every pair is listed.
pub fn after(state: State, event: Event) -> (State, Action) {
    use Event as E;
    use State as S;
    let call = |kubelet, refusals| (S::Calling { kubelet, refusals }, Action::Register);
    match (state, event) {
        (_, E::Looked(Seen { kubelet: None, .. })) => (S::Waiting, Action::Nothing),
        (S::Waiting, E::Looked(Seen { kubelet: Some(kubelet), .. })) => call(kubelet, 0),
        (
            S::Calling { kubelet: known, .. } | S::Registered(known),
            E::Looked(Seen { kubelet: Some(kubelet), own }),
        ) => {
            // It is another one, or it has thrown away what it was to call us by.
            let anew = known != kubelet || !own;
            if anew { call(kubelet, 0) } else { (state, Action::Nothing) }
        }
        (S::Resting { kubelet: known, .. }, E::Looked(Seen { kubelet: Some(kubelet), .. })) => {
            if known == kubelet {
                (state, Action::Nothing)
            } else {
                call(kubelet, 0)
            }
        }
        (S::Calling { kubelet, .. }, E::Taken) => (S::Registered(kubelet), Action::Nothing),
        (S::Calling { kubelet, refusals }, E::Refused) => {
            (S::Resting { kubelet, refusals: refusals + 1 }, Action::Rest(rest(refusals)))
        }
        (S::Resting { kubelet, refusals }, E::Rested) => call(kubelet, refusals),
        // Answers and rests of a time that is over.
        (S::Waiting | S::Registered(_) | S::Resting { .. }, E::Taken | E::Refused)
        | (S::Waiting | S::Calling { .. } | S::Registered(_), E::Rested) => {
            (state, Action::Nothing)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn socket(inode: u64) -> SocketId {
        SocketId { inode, made: 0 }
    }

    fn calling(inode: u64, refusals: u32) -> State {
        State::Calling { kubelet: socket(inode), refusals }
    }

    fn looked(kubelet: Option<u64>, own: bool) -> Event {
        Event::Looked(Seen { kubelet: kubelet.map(socket), own })
    }

    #[test]
    fn a_kubelet_that_comes_back_is_told() {
        let known = State::Registered(socket(1));
        assert_eq!(after(known, looked(Some(1), true)), (known, Action::Nothing));
        let again = (calling(2, 0), Action::Register);
        assert_eq!(after(known, looked(Some(2), true)), again);
        // It emptied its folder and its socket is the same: seen between the two.
        let same = (calling(1, 0), Action::Register);
        assert_eq!(after(known, looked(Some(1), false)), same);
        assert_eq!(after(known, looked(None, true)), (State::Waiting, Action::Nothing));
    }

    #[test]
    fn a_refusal_is_tried_again_and_more_and_more_rarely() {
        let (state, action) = after(calling(1, 0), Event::Refused);
        assert_eq!(state, State::Resting { kubelet: socket(1), refusals: 1 });
        assert_eq!(action, Action::Rest(Duration::from_millis(500)));
        let (_, action) = after(calling(1, 40), Event::Refused);
        assert_eq!(action, Action::Rest(Duration::from_secs(30)));
        assert_eq!(after(state, Event::Rested), (calling(1, 1), Action::Register));
    }

    proptest! {
        /// Whatever happened: a look at a kubelet that does not know us makes us register, or we
        /// are about to.
        #[test]
        fn no_kubelet_is_forgotten(events in prop::collection::vec((0u8..6, 0u64..3, any::<bool>()), 0..40)) {
            let mut state = State::Waiting;
            let mut taken = None;
            for (what, inode, own) in events {
                let event = match what {
                    0..3 => looked((inode > 0).then_some(inode), own),
                    3 => Event::Taken,
                    4 => Event::Refused,
                    _ => Event::Rested,
                };
                let (next, action) = after(state, event);
                if let (State::Calling { kubelet, .. }, Event::Taken) = (state, event) {
                    taken = Some(kubelet);
                }
                if let State::Registered(kubelet) = next {
                    prop_assert_eq!(Some(kubelet), taken);
                }
                if let Event::Looked(Seen { kubelet: Some(kubelet), own }) = event {
                    let settled = match next {
                        State::Registered(known) => known == kubelet && own,
                        State::Calling { kubelet: asked, .. } => asked == kubelet,
                        State::Resting { kubelet: known, .. } => known == kubelet,
                        State::Waiting => false,
                    };
                    prop_assert!(settled, "{:?} {:?} {:?}", state, event, action);
                }
                state = next;
            }
        }
    }
}
