//! Why a GPU serves nobody new, in few classes: a reason's own text has addresses and numbers in it
//! and would make a new series each time.

use gpuzone_core::{Cause, Level};

/// A class of reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// Bytes were not what was written.
    Residue,
    /// Something that is no lease holds memory.
    Busy,
    /// It took too long.
    Late,
    /// The driver refused a call.
    Driver,
    /// The scrub itself could not be done or told.
    Unverified,
    /// The device reported a fault of its own, or is lost.
    Device,
    /// The driver reported something that is not known.
    Unknown,
    /// The driver wants a reset or a reboot.
    Action,
    /// The driver does not answer for it.
    Silent,
    /// Its driver zone does not answer.
    Zone,
}

impl Reason {
    pub(super) const ALL: [Self; 10] = [
        Self::Residue,
        Self::Busy,
        Self::Late,
        Self::Driver,
        Self::Unverified,
        Self::Device,
        Self::Unknown,
        Self::Action,
        Self::Silent,
        Self::Zone,
    ];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Residue => "residue",
            Self::Busy => "busy",
            Self::Late => "late",
            Self::Driver => "driver",
            Self::Unverified => "unverified",
            Self::Device => "device",
            Self::Unknown => "unknown",
            Self::Action => "action",
            Self::Silent => "silent",
            Self::Zone => "zone",
        }
    }

    /// The class of what keeps a GPU from serving.
    pub(super) fn of(cause: Cause, text: &str) -> Self {
        match cause {
            Cause::Scrub => Self::of_scrub(text),
            Cause::Xid(_) | Cause::Contained | Cause::Ecc | Cause::Remap | Cause::Lost => {
                Self::Device
            }
            Cause::UnknownXid => Self::Unknown,
            Cause::Level(Level::Action) => Self::Action,
            Cause::Level(Level::Driver) => Self::Silent,
            Cause::Level(Level::Zone) => Self::Zone,
        }
    }

    /// The class of a scrub's reason. One that is in no other is not shown to be clear.
    fn of_scrub(text: &str) -> Self {
        let residue = text.starts_with("byte 0x") || text.starts_with("what was written as ");
        if residue {
            Self::Residue
        } else if text.starts_with("only ") && text.contains(" were free") {
            Self::Busy
        } else if text.contains(" was not done within ") || text.contains(" did not answer within ")
        {
            Self::Late
        } else if text.starts_with("the driver cannot ") {
            Self::Driver
        } else {
            Self::Unverified
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sentence_of_a_scrub_has_its_class() {
        let cases = [
            ("byte 0x10 is 0xa5 after it was overwritten with zeros", Reason::Residue),
            ("what was written as 0x01 was read back as 0x00 at 0x7", Reason::Residue),
            ("only 1Gi of at least 2Gi were free; something that is no lease", Reason::Busy),
            ("it was not done within 60 s", Reason::Late),
            ("the scrub worker was not done within 70 s and was ended: ", Reason::Late),
            ("the driver zone's broker did not answer within 80 s", Reason::Late),
            ("the driver cannot overwrite memory: CUDA_ERROR_UNKNOWN", Reason::Driver),
            ("the scrub worker ended with signal 9: ", Reason::Unverified),
            ("its thread panicked", Reason::Unverified),
            ("", Reason::Unverified),
        ];
        for (text, class) in cases {
            assert_eq!(Reason::of(Cause::Scrub, text), class, "{text}");
        }
    }
}
