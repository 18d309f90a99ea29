//! What a workload zone's host and the first process of its microVM say to each other: JSON, one
//! message a line, over the virtio-serial port [`PORT`]. What the program reads and writes goes over
//! ports of their own, so that a program which does not read holds up nothing else.
//!
//! ```text
//! host   ── Opened, Refused, Bell, Closed, Signal, InputEnds, Unwanted ──▶  guest
//! host   ◀── Hello, Open, Bell, Close, Exited, Unrunnable, Failed ── guest
//! ```
//!
//! The guest is the tenant's: the host reads at most [`MAX_LINE`] bytes of one of its lines, and
//! nothing in it is a path or a process that the host acts on. What the guest may ask for is one more
//! connection to the slot that its zone has, and its own end.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::hello::Welcome;
use crate::view::{Look, Seen};
use crate::zone_link::SessionId;

/// Version of this protocol.
pub const VERSION: u32 = 2;
/// The port of messages, by its name in the guest.
pub const PORT: &str = "gpuzone.control";
/// Ports of the program's standard input, output and error.
pub const STREAMS: [&str; 3] = ["gpuzone.input", "gpuzone.output", "gpuzone.error"];
/// Longest line that the host reads, in bytes.
pub const MAX_LINE: usize = 16 << 10;
/// Longest line that the guest reads: a greeting's answer, and what is around it.
pub const MAX_LINE_OF_HOST: usize = crate::hello::MAX_MESSAGE + 4096;
/// Among the kernel's words: the machine is a workload zone.
pub const MODE: &str = "gpuzone.mode=workload";
/// In the guest's first file system: what it is to run, as [`Order`].
pub const ORDER: &str = "/order.json";
/// In the guest's first file system, unpacked last of all: without it, something is missing.
pub const WHOLE: &str = "/whole";
/// In the guest's first file system: the program's root.
pub const ROOT: &str = "/rootfs";
/// In the guest's first file system: the shim's libraries.
pub const LIBRARIES: &str = "/libraries";
/// In the program's root: where those are found.
pub const LIBRARIES_SEEN: &str = "/run/gpu-zone/lib";
/// In the program's root: its slot.
pub const SLOT_SEEN: &str = "/run/gpu-zone/slot";

/// What a workload zone's microVM runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The program, in its root.
    pub file: PathBuf,
    /// As it was called.
    pub name: String,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Its variables.
    pub environment: Vec<(String, String)>,
    /// Its working directory, in its root.
    pub directory: PathBuf,
    /// Most processes and threads, if there is a limit.
    pub pids: Option<u64>,
    /// Bytes in `/tmp`, `/run` and their like, each; left out: half of the machine's memory.
    pub scratch: Option<u64>,
    /// The bridges on bus 0, like `08.0`, behind which it has devices itself. Where there are some, it
    /// has neither slot nor shim: the devices' drivers are its own.
    pub devices: Vec<String>,
}

/// From the host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "to_guest")]
pub enum ToWorkload {
    /// The worker let the process in.
    Opened {
        /// Which session.
        session: SessionId,
        /// The bridge on bus 0 behind which the rings are, like `10.3`.
        bridge: String,
        /// What the worker said.
        welcome: Box<Welcome>,
    },
    /// It was not let in.
    Refused {
        /// Which session.
        session: SessionId,
        /// Why.
        reason: String,
    },
    /// To [`FromWorkload::Look`]: what the worker said, or why there is nothing to see.
    Seen {
        /// Which session.
        session: SessionId,
        /// What it said.
        seen: Box<Seen>,
    },
    /// The worker woke its tenant.
    Bell {
        /// In this session.
        session: SessionId,
    },
    /// The worker ended the session.
    Closed {
        /// Which.
        session: SessionId,
    },
    /// A signal for the program.
    Signal {
        /// Its number.
        number: i32,
    },
    /// The program's input ends after so many bytes.
    InputEnds {
        /// In all.
        bytes: u64,
    },
    /// Nobody reads this output of the program's any more.
    Unwanted {
        /// Which.
        output: OutputName,
    },
}

/// What a program writes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputName {
    /// Its standard output.
    Output,
    /// Its standard error.
    Error,
}

/// From the guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "to_host")]
pub enum FromWorkload {
    /// First of all.
    Hello {
        /// The guest's [`VERSION`].
        version: u32,
    },
    /// A process of the program's came to its slot.
    Open {
        /// Which session this is to be: one that there is not.
        session: SessionId,
        /// The process's version of the spec.
        version: u32,
        /// Its number, as it says itself.
        pid: u32,
    },
    /// A process of the program's only looks at its lease.
    Look {
        /// Which session this is to be, to its answer: one that there is not.
        session: SessionId,
        /// The question.
        look: Look,
    },
    /// The process woke its worker.
    Bell {
        /// In this session.
        session: SessionId,
    },
    /// The process is gone, and has let go of its rings.
    Close {
        /// Which session.
        session: SessionId,
    },
    /// The program ended, and all that it had started.
    Exited {
        /// How.
        end: End,
        /// Bytes that it wrote to its standard output and error.
        written: [u64; 2],
    },
    /// There was no program to begin.
    Unrunnable {
        /// The kernel's number for it (errno(3)).
        errno: i32,
        /// What could not be done.
        reason: String,
    },
    /// The machine cannot do its part.
    Failed {
        /// Why.
        reason: String,
    },
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_cross_the_line_unchanged_and_stay_on_it() {
        let messages = [
            FromWorkload::Hello { version: VERSION },
            FromWorkload::Open { session: 3, version: 2, pid: 7 },
            FromWorkload::Look { session: 4, look: Look { look: 1 } },
            FromWorkload::Exited { end: End::Signal(15), written: [1, 2] },
            FromWorkload::Unrunnable { errno: 2, reason: "no\nprogram".to_owned() },
        ];
        for message in messages {
            let line = serde_json::to_string(&message).expect("it can be written");
            assert!(!line.contains('\n') && line.len() < MAX_LINE, "{line}");
            assert_eq!(serde_json::from_str::<FromWorkload>(&line).expect("readable"), message);
        }
        let refused = ToWorkload::Refused { session: 1, reason: "a\nb".to_owned() };
        let line = serde_json::to_string(&refused).expect("it can be written");
        assert_eq!(serde_json::from_str::<ToWorkload>(&line).expect("readable"), refused);
    }
}
