//! What a broker's arbiter and a worker say to each other about turns on a GPU.
//!
//! A worker listens at a socket (`SOCK_SEQPACKET`) that it inherits as [`TURNS_FD`]; the broker
//! connects to it, so the broker that comes after one that died just connects again. One message
//! a packet, 24 bytes each:
//!
//! ```text
//!  worker ──Want────▶ arbiter     work is there and there is no turn
//!  worker ◀─Grant─── arbiter     submit work
//!  worker ◀─Contended─ arbiter   somebody waits: give the turn back when there is nothing to do
//!  worker ◀─Brief─── arbiter     have little ahead: somebody may come who must not wait long
//!  worker ◀─Recall── arbiter     submit no more, and give the turn back when all is done
//!  worker ──Yield───▶ arbiter     nothing of ours is on the GPU any more
//! ```
//!
//! No message goes to and fro while a worker is alone on its GPU: it keeps the turn.

use std::time::Duration;

pub use gpuzone_core::Priority;
use serde::{Deserialize, Serialize};

/// The inherited file descriptor of the listening socket for turns, if
/// [`crate::handover::WorkerSpec::arbitrated`].
pub const TURNS_FD: i32 = 5;

/// Bytes of a message.
pub const MESSAGE: usize = 24;

/// A message's bytes.
pub type Packet = [u8; MESSAGE];

/// How a GPU's time is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FairTime {
    /// Length of an average turn, in microseconds, while several want the GPU.
    pub quantum_microseconds: u32,
    /// How long a worker may keep the GPU, in milliseconds, after its turn was recalled. One
    /// that keeps it longer is ended: a kernel of its runs on and on.
    pub watchdog_milliseconds: u32,
}

impl Default for FairTime {
    fn default() -> Self {
        Self { quantum_microseconds: 4_000, watchdog_milliseconds: 30_000 }
    }
}

impl FairTime {
    /// Length of an average turn; at least 100 µs.
    pub fn quantum(&self) -> Duration {
        Duration::from_micros(self.quantum_microseconds.max(100).into())
    }

    /// How long a recalled turn may be kept; at least 10 ms.
    pub fn watchdog(&self) -> Duration {
        Duration::from_millis(self.watchdog_milliseconds.max(10).into())
    }
}

/// From a worker. Devices are numbered as in the lease's grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromWorker {
    /// It has work for a device and no turn.
    Want {
        /// Which.
        device: u32,
    },
    /// It gives its turn back: none of its work is on the device.
    Yield {
        /// Which.
        device: u32,
        /// Whether it has more work already.
        wants: bool,
        /// How long the device worked for it in this turn, in nanoseconds.
        used: u64,
    },
}

/// From the arbiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromArbiter {
    /// The device is its own until it is recalled.
    Grant {
        /// Which.
        device: u32,
        /// Whether somebody waits.
        contended: bool,
        /// As after [`FromArbiter::Brief`].
        brief: bool,
    },
    /// Somebody waits from now on.
    Contended {
        /// Which.
        device: u32,
    },
    /// Until its turn is over it is to have no more work ahead than keeps the device busy.
    Brief {
        /// Which.
        device: u32,
    },
    /// Its time is over.
    Recall {
        /// Which.
        device: u32,
    },
}

const WANT: u32 = 1;
const YIELD: u32 = 2;
const GRANT: u32 = 3;
const CONTENDED: u32 = 4;
const RECALL: u32 = 5;
const BRIEF: u32 = 6;

impl FromWorker {
    /// The message's bytes.
    pub fn encode(self) -> Packet {
        match self {
            Self::Want { device } => encode([WANT, device, 0, 0], 0),
            Self::Yield { device, wants, used } => encode([YIELD, device, wants.into(), 0], used),
        }
    }

    /// The message in a packet; `None` when there is none.
    pub fn decode(packet: &[u8]) -> Option<Self> {
        let ([kind, device, flag, zero], used) = decode(packet)?;
        match (kind, flag, zero, used) {
            (WANT, 0, 0, 0) => Some(Self::Want { device }),
            (YIELD, 0 | 1, 0, used) => Some(Self::Yield { device, wants: flag == 1, used }),
            _ => None,
        }
    }
}

impl FromArbiter {
    /// The message's bytes.
    pub fn encode(self) -> Packet {
        match self {
            Self::Grant { device, contended, brief } => {
                encode([GRANT, device, contended.into(), brief.into()], 0)
            }
            Self::Brief { device } => encode([BRIEF, device, 0, 0], 0),
            Self::Contended { device } => encode([CONTENDED, device, 0, 0], 0),
            Self::Recall { device } => encode([RECALL, device, 0, 0], 0),
        }
    }

    /// The message in a packet; `None` when there is none.
    pub fn decode(packet: &[u8]) -> Option<Self> {
        let ([kind, device, flag, other], used) = decode(packet)?;
        match (kind, flag, other, used) {
            (GRANT, 0 | 1, 0 | 1, 0) => {
                Some(Self::Grant { device, contended: flag == 1, brief: other == 1 })
            }
            (BRIEF, 0, 0, 0) => Some(Self::Brief { device }),
            (CONTENDED, 0, 0, 0) => Some(Self::Contended { device }),
            (RECALL, 0, 0, 0) => Some(Self::Recall { device }),
            _ => None,
        }
    }
}

fn encode(words: [u32; 4], long: u64) -> Packet {
    let mut packet = [0; MESSAGE];
    for (place, word) in packet.chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    packet[16..].copy_from_slice(&long.to_ne_bytes());
    packet
}

fn decode(packet: &[u8]) -> Option<([u32; 4], u64)> {
    let packet: &Packet = packet.try_into().ok()?;
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(packet.chunks_exact(4)) {
        *word = u32::from_ne_bytes(bytes.try_into().ok()?);
    }
    Some((words, u64::from_ne_bytes(packet[16..].try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn messages_cross_unchanged(device: u32, flag: bool, other: bool, used: u64) {
            for message in [
                FromWorker::Want { device },
                FromWorker::Yield { device, wants: flag, used },
            ] {
                prop_assert_eq!(FromWorker::decode(&message.encode()), Some(message));
                prop_assert_eq!(FromArbiter::decode(&message.encode()), None);
            }
            for message in [
                FromArbiter::Grant { device, contended: flag, brief: other },
                FromArbiter::Brief { device },
                FromArbiter::Contended { device },
                FromArbiter::Recall { device },
            ] {
                prop_assert_eq!(FromArbiter::decode(&message.encode()), Some(message));
                prop_assert_eq!(FromWorker::decode(&message.encode()), None);
            }
        }

        #[test]
        fn anything_is_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Some(message) = FromWorker::decode(&bytes) {
                prop_assert_eq!(&message.encode()[..], &bytes[..]);
            }
            if let Some(message) = FromArbiter::decode(&bytes) {
                prop_assert_eq!(&message.encode()[..], &bytes[..]);
            }
        }
    }
}
