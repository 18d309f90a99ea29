//! Devices that containers have themselves, from the moment that the kubelet hands one out until
//! nothing of whoever had it is left.
//!
//! The end of a lease clears its devices. But a VM may have one before there is a lease (Kata's
//! cold plug makes it with the pod's sandbox), and without ever having one: its container is
//! refused, or its image cannot be pulled. So a hand-out is written down before Allocate answers:
//!
//! ```text
//!           Allocate                  a lease is made
//!   clear ───────────▶ handed out ──────────────────────▶ leased
//!     ▲                 │   │ Allocate once more            │   │ Allocate once more
//!     │ never opened    │   ▼                               ▼   │
//!     ├─────────────────┤  blocked, until it is known to be the │ its end has
//!     │ cleared by the  │  same pod, or the device is cleared   │ cleared it
//!     └─────────────────┴───────────────────────────────────────┘
//! ```
//!
//! What is blocked is not among CDI's devices, and PreStartContainer refuses it.

mod store;

use gpuzone_api::kubernetes::PodUid;
use serde::{Deserialize, Serialize};

pub use store::HandedError;
pub(crate) use store::{HandOut, Handed};

/// What is known of a device that was handed out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// To which pod, where that is known.
    pub pod: Option<PodUid>,
    /// Whether that one may have opened it.
    pub may_be_open: bool,
    /// Whether it has a lease of it, whose end clears it.
    pub leased: bool,
    /// Whether it was handed out once more since, nobody knows yet to whom.
    pub again: bool,
}

/// Who holds a device, as kubelet and API server say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Neither says it, or not so that it could be told.
    Unknown,
    /// Nobody.
    Nobody,
    /// This pod.
    Pod(PodUid),
}

/// What becomes of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// This is known of it.
    Keep(Mark),
    /// It is clear.
    Forget,
    /// It has to be cleared; this is known of it then.
    Clear(Option<Mark>),
}

impl Mark {
    /// One that this pod was handed, who may open it without a lease if that is `early`.
    fn fresh(pod: Option<PodUid>, early: bool) -> Self {
        Self { pod, may_be_open: early, leased: false, again: false }
    }

    /// One of which nothing is known but that it may be anybody's.
    pub fn unknown() -> Self {
        Self { pod: None, may_be_open: true, leased: false, again: true }
    }
}

/// What is known of a device that is handed out now. `early` says that whoever gets it may open it
/// without a lease; `at_once`, that it was handed out a moment before: the containers of one pod, an
/// init container and the one that takes over from it, are admitted together, and the kubelet says
/// whose it is only after the last of them.
pub fn handed_out(before: Option<Mark>, early: bool, at_once: bool) -> Mark {
    match before {
        None => Mark::fresh(None, early),
        Some(mark) if mark.leased => Mark { again: true, ..mark },
        Some(mark) if at_once && mark.pod.is_none() => {
            Mark { may_be_open: mark.may_be_open || early, ..mark }
        }
        Some(mark) if mark.may_be_open => Mark { again: true, ..mark },
        Some(_) => Mark::fresh(None, early),
    }
}

/// What follows from a look at a device. `lease` is the pod that has one of it; `over` says that the
/// pod that it was handed to is, as far as is known, and that no hand-out is on its way.
pub fn after_look(
    mark: &Mark,
    lease: Option<&PodUid>,
    holder: &Holder,
    over: bool,
    early: bool,
) -> Next {
    if let Some(of) = lease {
        // Whoever else holds it waits for that lease's end.
        let same = *holder == Holder::Pod(of.clone());
        let another = matches!(holder, Holder::Pod(_)) && !same;
        let again = another || (mark.again && !same);
        return Next::Keep(Mark { pod: Some(of.clone()), may_be_open: true, leased: true, again });
    }
    match holder {
        Holder::Unknown => Next::Keep(mark.clone()),
        Holder::Nobody if !over => Next::Keep(mark.clone()),
        Holder::Nobody if mark.leased || !mark.may_be_open => Next::Forget,
        Holder::Nobody => Next::Clear(None),
        Holder::Pod(pod) if mark.pod.as_ref() == Some(pod) => {
            Next::Keep(Mark { leased: false, again: false, ..mark.clone() })
        }
        Holder::Pod(pod) if mark.pod.is_none() && !mark.again => {
            Next::Keep(Mark { pod: Some(pod.clone()), ..mark.clone() })
        }
        Holder::Pod(pod) => {
            let fresh = Mark::fresh(Some(pod.clone()), early);
            match mark.leased || !mark.may_be_open {
                true => Next::Keep(fresh),
                false => Next::Clear(Some(fresh)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pod(number: u8) -> PodUid {
        format!("uid-{number}").parse().unwrap()
    }

    fn look(mark: &Mark, holder: &Holder, over: bool) -> Next {
        after_look(mark, None, holder, over, true)
    }

    #[test]
    fn what_a_pod_may_have_opened_is_cleared_before_another_may() {
        let mark = handed_out(None, true, false);
        let Next::Keep(mark) = look(&mark, &Holder::Pod(pod(1)), false) else { panic!("{mark:?}") };
        assert_eq!(mark.pod, Some(pod(1)));
        // It goes, and nobody has the device; or the next one has it already.
        assert_eq!(look(&mark, &Holder::Nobody, true), Next::Clear(None));
        let again = handed_out(Some(mark), true, false);
        assert!(again.again);
        let next = Mark::fresh(Some(pod(2)), true);
        assert_eq!(look(&again, &Holder::Pod(pod(2)), true), Next::Clear(Some(next)));
        // Silence, and a pod that is there, change nothing.
        assert_eq!(look(&again, &Holder::Unknown, true), Next::Keep(again.clone()));
        assert_eq!(look(&again, &Holder::Nobody, false), Next::Keep(again.clone()));
        // The same pod's next container.
        let same = Mark { again: false, ..again.clone() };
        assert_eq!(look(&again, &Holder::Pod(pod(1)), false), Next::Keep(same));
        let unknown = look(&Mark::unknown(), &Holder::Pod(pod(1)), false);
        assert!(matches!(unknown, Next::Clear(Some(_))), "{unknown:?}");
    }

    #[test]
    fn what_was_never_opened_need_not_be_cleared() {
        let mark = handed_out(None, false, false);
        assert_eq!(look(&mark, &Holder::Nobody, true), Next::Forget);
        assert!(!handed_out(Some(mark), false, false).again);
    }

    #[test]
    fn a_moment_later_it_is_the_same_pods_unless_another_is_known_to_have_it() {
        let mark = handed_out(Some(handed_out(None, true, false)), true, true);
        assert!(!mark.again);
        let known = Mark { pod: Some(pod(1)), ..mark };
        assert!(handed_out(Some(known), true, true).again);
    }

    #[test]
    fn a_leases_end_clears_and_until_then_nobody_else_opens_it() {
        let leased = Mark { leased: true, ..Mark::fresh(Some(pod(1)), true) };
        let again = handed_out(Some(leased.clone()), true, true);
        assert!(again.again);
        let of = pod(1);
        let during = |mark, holder| after_look(mark, Some(&of), &holder, true, true);
        assert_eq!(during(&again, Holder::Pod(pod(2))), Next::Keep(again.clone()));
        assert_eq!(during(&leased, Holder::Pod(pod(2))), Next::Keep(again.clone()));
        assert_eq!(during(&again, Holder::Pod(pod(1))), Next::Keep(leased.clone()));
        let fresh = Mark::fresh(Some(pod(2)), true);
        assert_eq!(look(&again, &Holder::Pod(pod(2)), true), Next::Keep(fresh));
        assert_eq!(look(&leased, &Holder::Nobody, true), Next::Forget);
    }

    /// A device of the real world beside what is known of it: who has opened it since it was clear.
    #[derive(Default)]
    struct World {
        mark: Option<Mark>,
        holder: u8,
        over: bool,
        leased: bool,
        opened_by: Option<u8>,
    }

    impl World {
        fn step(&mut self, what: u8, early: bool) {
            let blocked = self.mark.as_ref().is_none_or(|mark| mark.again);
            match what {
                // The next pod gets it, and the one before is gone.
                0 => {
                    self.holder += 1;
                    self.over = false;
                    self.mark = Some(handed_out(self.mark.take(), early, false));
                }
                1 if early && !blocked && !self.over => self.open(),
                // PreStartContainer, and what the container does then.
                2 if !blocked && !self.over => {
                    self.leased = true;
                    let pod = Some(pod(self.holder));
                    self.mark = Some(Mark { pod, may_be_open: true, leased: true, again: false });
                    self.open();
                }
                // The end of a lease is its pod's.
                3 if self.leased => {
                    self.over |= !blocked;
                    self.leased = false;
                    self.opened_by = None;
                }
                4 => self.look(early),
                _ => {}
            }
        }

        fn open(&mut self) {
            let by = *self.opened_by.get_or_insert(self.holder);
            assert_eq!(by, self.holder, "what another left is not cleared: {:?}", self.mark);
        }

        fn look(&mut self, early: bool) {
            let Some(mark) = self.mark.take() else { return };
            let lease = mark.pod.clone().filter(|_| self.leased);
            let holder = if self.over { Holder::Nobody } else { Holder::Pod(pod(self.holder)) };
            self.mark = match after_look(&mark, lease.as_ref(), &holder, true, early) {
                Next::Keep(mark) => Some(mark),
                Next::Forget => None,
                Next::Clear(mark) => {
                    assert!(!self.leased, "a lease is not cleared away");
                    self.opened_by = None;
                    mark
                }
            };
        }
    }

    proptest! {
        #[test]
        fn nobody_opens_what_another_left(steps in prop::collection::vec(0u8..5, 0..60), early in any::<bool>()) {
            let mut world = World::default();
            for what in steps {
                world.step(what, early);
            }
        }
    }
}
