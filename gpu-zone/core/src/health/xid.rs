//! What the driver's numbered errors say of a GPU.
//!
//! The classes follow the actions that NVIDIA's Xid catalogue asks for (Ampere and later): restart
//! the program, ignore it, or reset the GPU. Where the catalogue and the list that NVIDIA's own
//! device plugin ignores differ, the reason for our choice stands with the entry.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The number of an error of NVIDIA's driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Xid(u64);

/// What an error says of the GPU that it was seen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum XidClass {
    /// A program brought it about, or only a program is hit: noted, whoever does it however often.
    Application,
    /// Something of the device's own that needs nothing now: noted.
    Notice,
    /// The device failed and kept the harm to one program: noted, unless it goes on.
    Contained,
    /// The device cannot be trusted until somebody has seen to it.
    Device,
    /// A number that this version does not know.
    Unknown,
}

/// What is known of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XidEntry {
    /// What follows from it.
    pub class: XidClass,
    /// What happened.
    pub what: &'static str,
    /// What to do.
    pub action: &'static str,
}

const PROGRAM: &str = "look at the program; nothing is to be done about the GPU";
const NOTHING: &str = "nothing is to be done now; watch whether it goes on";
const RESET: &str = "end its leases, reset the GPU (nvidia-smi --gpu-reset) or reboot the node, then clear it; replace it if that comes again";
const LINK: &str =
    "look at the link's cables and the fabric manager, reset the GPUs at both ends, then clear it";
const REBOOT: &str =
    "reboot the node, then clear it; look at its power, its seat and its slot if that comes again";

impl XidClass {
    /// All classes.
    pub const ALL: [Self; 5] =
        [Self::Application, Self::Notice, Self::Contained, Self::Device, Self::Unknown];

    /// One word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Application => "application",
            Self::Notice => "notice",
            Self::Contained => "contained",
            Self::Device => "device",
            Self::Unknown => "unknown",
        }
    }
}

impl Xid {
    /// The error with this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Its number.
    pub const fn number(self) -> u64 {
        self.0
    }

    /// What it says of the GPU.
    pub const fn class(self) -> XidClass {
        self.entry().class
    }

    /// What is known of it.
    pub const fn entry(self) -> XidEntry {
        let (class, what, action) = match self.application() {
            Some(what) => (XidClass::Application, what, PROGRAM),
            None => match self.noticed() {
                Some(what) => (XidClass::Notice, what, NOTHING),
                None => match self.device() {
                    Some((class, what, action)) => (class, what, action),
                    None => (
                        XidClass::Unknown,
                        "an error that this version does not know",
                        "look it up in NVIDIA's Xid catalogue; if it is a program's, name it in [health] noted_xids",
                    ),
                },
            },
        };
        XidEntry { class, what, action }
    }

    const fn application(self) -> Option<&'static str> {
        Some(match self.0 {
            8 => "a program's work was stopped for taking too long",
            11 | 25 | 32 => "a program's commands were invalid or corrupted",
            13 => "a program's kernel raised an exception",
            31 => "a program touched memory that is not its own",
            39 | 40 | 41 | 70..=72 | 75..=77 | 85 | 126..=135 => "a program's copy failed",
            43 => "a program's work was stopped after an error of its own",
            44 => "a program failed while the GPU turned to it",
            45 => "a program's work was taken off the GPU, as at its end",
            60 | 68 | 82..=84 | 86 | 88 | 89 | 96..=105 | 139 => {
                "a program's video or image work failed"
            }
            69 => "a program used a class of commands wrongly",
            80 => "a program sent corrupted data",
            // The catalogue asks for a reset, NVIDIA's device plugin ignores it, and a program can
            // bring it about. A GPU that really cannot turn to another fails its next scrub.
            109 => "a program did not let go of the GPU in time",
            _ => return None,
        })
    }

    const fn noticed(self) -> Option<&'static str> {
        Some(match self.0 {
            37 | 38 => "the driver's firmware reported an error that it got over",
            // The remapping itself happens with the next reset; until then the row is not used.
            63 => "a bad row of memory was put aside",
            66 | 67 => "the driver made an access that was refused",
            92 => "many memory errors were corrected",
            93 => "the board's small memory is written often",
            106 | 107 => "a test message",
            121 => "the link to the processor had an error that was corrected",
            137 => "an access over NVLink was refused",
            141 => "a fast path of the driver was left",
            152 | 153 => "the accelerator beside the GPU reported an error",
            // What it asks for is read from the driver.
            154 => "the driver asks for another action than before",
            157 => "a broken part could not be put aside",
            160 | 161 => "a channel of commands was put aside",
            162..=165 => "the power smoothing reports its state",
            171 | 172 => "details of an uncorrectable memory error",
            _ => return None,
        })
    }

    const fn device(self) -> Option<(XidClass, &'static str, &'static str)> {
        let (what, action) = match self.0 {
            94 => {
                let what = "an uncorrectable memory error, kept to one program";
                return Some((XidClass::Contained, what, RESET));
            }
            46 => ("the GPU stopped working", RESET),
            48 => ("an uncorrectable memory error", RESET),
            54 => ("the board lacks power", "connect its power, reboot the node, then clear it"),
            61 | 62 | 169 => ("a controller in the GPU halted", RESET),
            64 => ("a bad row of memory could not be put aside", RESET),
            74 | 136 | 144..=150 | 155 => ("an NVLink of the GPU failed", LINK),
            79 => ("the GPU has fallen off the bus", REBOOT),
            95 => ("an uncorrectable memory error that may have reached several programs", RESET),
            110 => ("the GPU's protection was violated", RESET),
            119 | 120 => ("the GPU's system processor does not answer", RESET),
            140 => ("an uncorrectable error that the GPU did not get over", RESET),
            143 => ("the GPU could not be started", REBOOT),
            151 => ("the keys of confidential computing could not be renewed", REBOOT),
            156 => ("a broken part of the GPU has to be put aside", RESET),
            158 | 167 => ("the GPU did not answer within a fatal limit", REBOOT),
            168 => ("the GPU's protected memory has errors", RESET),
            _ => return None,
        };
        Some((XidClass::Device, what, action))
    }
}

impl fmt::Display for Xid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Xid {}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_can_do_condemns_no_gpu_and_what_a_device_does_is_not_overlooked() {
        let classes = [
            // What NVIDIA's device plugin ignores.
            (XidClass::Application, [13, 31, 43, 45, 68, 109].as_slice()),
            (XidClass::Notice, &[63, 92, 154]),
            (XidClass::Contained, &[94]),
            (XidClass::Device, &[46, 48, 62, 64, 74, 79, 95, 119, 120, 140, 143]),
            (XidClass::Unknown, &[0, 1, 999, u64::MAX]),
        ];
        for (class, numbers) in classes {
            for number in numbers {
                assert_eq!(Xid::new(*number).class(), class, "{number}");
            }
        }
    }

    #[test]
    fn each_has_a_sentence_and_something_to_do() {
        for number in 0..200 {
            let entry = Xid::new(number).entry();
            assert!(!entry.what.is_empty() && !entry.action.is_empty(), "{number}");
        }
    }
}
