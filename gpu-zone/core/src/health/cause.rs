use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{HealthTerms, Xid};

/// What keeps a GPU from new leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Its memory is not shown to be clear.
    Scrub,
    /// The driver reported a fault of the device.
    Xid(Xid),
    /// Contained memory errors went on.
    Contained,
    /// The driver reported something that this version does not know.
    UnknownXid,
    /// The driver counted an uncorrectable memory error.
    Ecc,
    /// A bad row of memory could not be put aside.
    Remap,
    /// The driver has lost it.
    Lost,
    /// Something that is looked at again and again is wrong.
    Level(Level),
}

/// What is looked at again and again, and may become well by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Whether the driver wants the GPU reset, or the node rebooted.
    Action,
    /// Whether the driver answers for it.
    Driver,
    /// Whether its driver zone answers.
    Zone,
}

/// How a cause ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Policy {
    /// An operator ends it.
    Condemns,
    /// It ends by itself.
    Settles(Settling),
    /// It is nothing until it has come so often.
    Counts,
}

/// When something that ends by itself begins and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Settling {
    /// It counts when it has been there for so long.
    pub(super) grace: Duration,
    /// It is over when it has been away for so long, the first time.
    pub(super) settle: Duration,
    /// That doubles with each time within the window, up to this.
    pub(super) most: Duration,
    /// Whether an operator has to end it when it comes again and again.
    pub(super) escalates: bool,
}

impl Level {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Action, Self::Driver, Self::Zone];
}

impl Cause {
    pub(super) fn policy(self, terms: &HealthTerms) -> Policy {
        let HealthTerms { grace, settle, unknown_settle, .. } = *terms;
        let most = settle.max(terms.most_settle);
        match self {
            Self::Scrub | Self::Xid(_) | Self::Ecc | Self::Remap | Self::Lost => Policy::Condemns,
            Self::Contained => Policy::Counts,
            Self::UnknownXid => Policy::Settles(Settling {
                grace: Duration::ZERO,
                settle: unknown_settle,
                most: unknown_settle.saturating_mul(4),
                escalates: true,
            }),
            // A zone or a driver that comes and goes is not the GPU's fault, and it would be every
            // GPU of the node that waits for an operator.
            Self::Level(Level::Zone | Level::Driver) => {
                Policy::Settles(Settling { grace, settle, most, escalates: false })
            }
            Self::Level(Level::Action) => {
                Policy::Settles(Settling { grace: Duration::ZERO, settle, most, escalates: false })
            }
        }
    }

    /// One word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Scrub => "scrub",
            Self::Xid(_) => "xid",
            Self::Contained => "contained",
            Self::UnknownXid => "unknown-xid",
            Self::Ecc => "ecc",
            Self::Remap => "remap",
            Self::Lost => "lost",
            Self::Level(Level::Action) => "action",
            Self::Level(Level::Driver) => "driver",
            Self::Level(Level::Zone) => "zone",
        }
    }

    /// What is wrong and what to do, with what else was said of it.
    pub(super) fn sentence(self, detail: &str) -> String {
        const RESET: &str =
            "reset the GPU or reboot the node, then clear it; replace it if that comes again";
        match self {
            // A scrub's own words.
            Self::Scrub => detail.to_owned(),
            Self::Xid(xid) => {
                let entry = xid.entry();
                format!("{xid}: {}; {}", entry.what, entry.action)
            }
            Self::Contained => format!("Xid 94 again and again: its memory fails; {RESET}"),
            Self::UnknownXid => {
                format!("{detail}: {}", Xid::new(u64::MAX).entry().action)
            }
            Self::Ecc => format!("an uncorrectable memory error; {RESET}"),
            Self::Remap => {
                format!("a bad row of its memory could not be put aside; replace it. {RESET}")
            }
            Self::Lost => {
                "the driver has lost it; reboot the node, then clear it; look at its power and its seat"
                    .to_owned()
            }
            Self::Level(Level::Action) => format!("the driver asks for something: {detail}"),
            Self::Level(Level::Driver) => format!("the driver does not answer for it: {detail}"),
            Self::Level(Level::Zone) => format!("its driver zone does not answer: {detail}"),
        }
    }
}

/// Its word, and which error it was.
impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Xid(xid) => write!(f, "xid-{}", xid.number()),
            Self::Scrub
            | Self::Contained
            | Self::UnknownXid
            | Self::Ecc
            | Self::Remap
            | Self::Lost
            | Self::Level(_) => f.pad(self.as_str()),
        }
    }
}
