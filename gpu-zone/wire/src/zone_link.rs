//! What a driver zone's host and the first process of its microVM say to each other: JSON, one
//! message a line, over the virtio-serial port [`PORT`].
//!
//! ```text
//! host   ── Hello, Begin, Ask, Open, Bell, Close, Health, PowerOff ──▶  guest
//! host   ◀── Hello, Began, Answer, Opened, Refused, Bell, Closed, Health ── guest
//! ```
//!
//! Neither side trusts the other's lines: the host reads at most [`MAX_LINE`] bytes of one, and
//! nothing in it is a path, a process or a number that the host acts on beyond what it asked for.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::control::{self, BrokerConfig};
use crate::hello::Welcome;
use crate::ring::RingSizes;
use crate::view::{Look, Seen};

/// Version of this protocol.
pub const VERSION: u32 = 2;
/// The port's name in the guest.
pub const PORT: &str = "gpuzone.control";
/// Among the kernel's words: ports are not virtio-serial's, but those of a vsock device.
pub const VSOCK: &str = "gpuzone.ports=vsock";
/// The number of a port there, by its name: where the guest's first process listens.
pub fn vsock_port(name: &str) -> Option<u32> {
    let names = std::iter::once(PORT).chain(crate::workload_link::STREAMS);
    names.zip(1024..).find(|(known, _)| *known == name).map(|(_, number)| number)
}
/// Longest line either side reads, in bytes: a line of the broker's and what is around it.
pub const MAX_LINE: usize = control::MAX_LINE + 4096;
/// The end of a session that did not come about, or came to its end.
pub type SessionId = u64;

/// From the host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "to_guest")]
pub enum ToGuest {
    /// First of all, and after each interruption: sessions of before are over.
    Hello {
        /// The host's [`VERSION`].
        version: u32,
        /// Told again in the answer, so that what was said before is not taken for it.
        nonce: u64,
    },
    /// Start the broker, unless it was started.
    Begin {
        /// What the broker is told.
        config: Box<BrokerConfig>,
        /// Files to write first, below [`CONFIG_DIR`].
        files: BTreeMap<String, String>,
    },
    /// Ask the broker.
    Ask {
        /// Told again in the answer.
        id: u64,
        /// What.
        request: Box<control::Request>,
    },
    /// A tenant's process came to a slot: connect it to the slot's worker.
    Open {
        /// Which session this is to be.
        session: SessionId,
        /// The slot's folder in the guest.
        slot: PathBuf,
        /// The bridge on bus 0 behind which the window is, like `10.3`.
        bridge: String,
        /// How the rings in it are cut.
        sizes: RingSizes,
        /// The tenant's version of the spec.
        version: u32,
        /// Its process's number, as it says itself.
        pid: u32,
    },
    /// A tenant's process only looks at its lease: ask the slot's worker.
    Look {
        /// Which session this is to be, to its answer.
        session: SessionId,
        /// The slot's folder in the guest.
        slot: PathBuf,
        /// The question.
        look: Look,
    },
    /// The tenant woke its worker.
    Bell {
        /// In this session.
        session: SessionId,
    },
    /// The tenant's process is gone.
    Close {
        /// Which session.
        session: SessionId,
    },
    /// How is it?
    Health,
    /// End.
    PowerOff,
}

/// Where the guest keeps what the host tells it.
pub const CONFIG_DIR: &str = "/run/gpu-zone/config";

/// From the guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "to_host")]
pub enum ToHost {
    /// To [`ToGuest::Hello`].
    Hello {
        /// The guest's [`VERSION`].
        version: u32,
        /// As it was told.
        nonce: u64,
        /// Whether its broker was started.
        begun: bool,
    },
    /// The broker answers requests.
    Began,
    /// It was not started, or does not answer.
    Failed {
        /// Why.
        reason: String,
    },
    /// To [`ToGuest::Ask`].
    Answer {
        /// To which.
        id: u64,
        /// The broker's, or a refusal where it did not answer.
        reply: Box<control::Reply>,
    },
    /// The worker answered the greeting.
    Opened {
        /// Which session.
        session: SessionId,
        /// What it said.
        welcome: Box<Welcome>,
    },
    /// To [`ToGuest::Look`]: what the worker said, or why there is nothing to see.
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
    /// The worker ended the session, or there was none to be had.
    Closed {
        /// Which session.
        session: SessionId,
        /// Why there was none, if so.
        reason: Option<String>,
    },
    /// To [`ToGuest::Health`].
    Health(Health),
}

/// How a guest is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Bytes of its memory.
    pub memory: u64,
    /// Bytes that are free, or can be had at once.
    pub available: u64,
    /// Milliseconds since its kernel began.
    pub uptime_ms: u64,
    /// Whether its broker runs.
    pub broker: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_cross_the_line_unchanged_and_stay_on_it() {
        let messages = [
            ToHost::Hello { version: VERSION, nonce: 7, begun: true },
            ToHost::Failed { reason: "a\nline".to_owned() },
            ToHost::Answer { id: 3, reply: Box::new(control::Reply::Bye) },
            ToHost::Closed { session: 9, reason: None },
            ToHost::Health(Health { memory: 1, available: 2, uptime_ms: 3, broker: true }),
        ];
        for message in messages {
            let line = serde_json::to_string(&message).expect("it can be written");
            assert!(!line.contains('\n'), "{line}");
            assert_eq!(serde_json::from_str::<ToHost>(&line).expect("readable"), message);
        }
        let open = ToGuest::Open {
            session: 1,
            slot: "/run/slot".into(),
            bridge: "10.3".to_owned(),
            sizes: RingSizes::default(),
            version: 2,
            pid: 9,
        };
        let line = serde_json::to_string(&open).expect("it can be written");
        assert_eq!(serde_json::from_str::<ToGuest>(&line).expect("readable"), open);
    }
}
