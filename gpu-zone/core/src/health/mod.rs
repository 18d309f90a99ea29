//! Whether a GPU may have new leases, and what has to happen until it may.
//!
//! ```text
//!            trouble lasts for the grace, or an unknown Xid
//!   healthy ────────────────────────────────────────────────▶ suspended
//!      ▲  ▲          it was away for the settling time            │  │
//!      │  └───────────────────────────────────────────────────────┘  │ comes again and again,
//!      │                                                             │ where that means something
//!      │ an operator clears it (and a scrub succeeds)                ▼
//!      └────────────────────────────────────────────────────── quarantined
//!                                    a device's fault, a failed scrub ▲
//! ```
//!
//! Each cause goes its own way, and the worst of them is what the GPU is. The time that something
//! has to stay away doubles each time that it comes back, so what comes and goes stays out.
//!
//! Time is passed in. It is the node's wall clock, because it has to outlive the agent: one that
//! is set back makes a GPU wait longer, one that is set forward makes it wait less.

mod cause;
mod watch;
mod xid;

use std::collections::BTreeSet;
use std::time::Duration;

pub use cause::{Cause, Level};
pub use watch::{GpuWatch, Noted, Recovered};
pub use xid::{Xid, XidClass, XidEntry};

/// Whether a GPU serves new leases. Those that it serves already go on, whatever it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GpuHealth {
    /// It does.
    Healthy,
    /// It does not, until what is wrong has been away for a while.
    Suspended {
        /// What kind of thing is wrong.
        cause: Cause,
        /// What is wrong and what to do.
        reason: String,
    },
    /// It does not, until an operator clears it.
    Quarantined {
        /// What kind of thing is wrong.
        cause: Cause,
        /// What is wrong and what to do.
        reason: String,
    },
}

impl GpuHealth {
    /// Whether it serves new leases.
    pub fn serves(&self) -> bool {
        matches!(self, Self::Healthy)
    }

    /// One word for it.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Suspended { .. } => "suspended",
            Self::Quarantined { .. } => "quarantined",
        }
    }

    /// Why it serves no new lease: what kind of thing, and the sentence.
    pub fn why(&self) -> Option<(Cause, &str)> {
        match self {
            Self::Healthy => None,
            Self::Suspended { cause, reason } | Self::Quarantined { cause, reason } => {
                Some((*cause, reason))
            }
        }
    }
}

/// Something that was seen of a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signal {
    /// The driver reported an error, so often since it was last asked.
    Xid(Xid, u64),
    /// The driver counted an uncorrectable memory error.
    UncorrectableEcc,
    /// A row of memory could not be put aside.
    RemapFailed,
    /// The driver says that it is gone.
    Lost,
    /// Its memory is not shown to be clear, for this reason.
    ScrubFailed(String),
    /// Something is wrong, for this reason.
    Trouble(Level, String),
    /// Nothing is wrong with it.
    Well(Level),
}

/// How long things take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthTerms {
    /// A driver or a zone may be silent for so long: it is being restarted.
    pub grace: Duration,
    /// It has to answer for so long before its GPUs serve again; the first time within an hour.
    pub settle: Duration,
    /// And at most for so long, however often it came and went.
    pub most_settle: Duration,
    /// How long a GPU is out after an error that is not known.
    pub unknown_settle: Duration,
    /// Errors that are only noted, whatever their class.
    pub noted: BTreeSet<Xid>,
}

impl HealthTerms {
    /// Within this time, what comes back from settling counts as the same trouble.
    pub const SOON: Duration = Duration::from_secs(3600);
    /// Within this time, contained and unknown errors add up.
    pub const DAY: Duration = Duration::from_secs(24 * 3600);
    /// So many of them condemn a GPU.
    pub const ESCALATES_AT: usize = 3;
}

impl Default for HealthTerms {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(5),
            settle: Duration::from_secs(10),
            most_settle: Duration::from_secs(600),
            unknown_settle: Duration::from_secs(600),
            noted: BTreeSet::new(),
        }
    }
}
