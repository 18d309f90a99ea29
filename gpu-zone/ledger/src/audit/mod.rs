//! The audit log: who was given what, refused what, and what was done to a GPU in between.
//!
//! ```text
//! {"hash":"<sha256 of the event's bytes>","event":{"seq":7,"prev":"<hash of 6>",…}}
//! ```
//!
//! Each line's event holds the hash of the line before, so nothing can be changed, taken out,
//! repeated or moved without breaking the chain at that place. The chain's end is the
//! [`Head`], which [`crate::Ledger`] keeps in another file: a log that was cut at its end does
//! not reach it. Whoever can write both files can also rewrite both; a head that was noted
//! elsewhere ([`Expected::noted`]) shows that.

mod export;
mod line;
mod log;
mod verify;

use std::fmt;
use std::str::FromStr;

use gpuzone_core::{TenantId, Timestamp};
use serde::{Deserialize, Serialize};

pub use export::{ExportError, ExportFilter, Exporter};
pub use log::{AuditAppendError, AuditLog, AuditOpenError, Opened};
pub use verify::{Damage, DamageKind, Expected, Verified, verify, verify_while};

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuditKind {
    /// An agent began to write this log.
    AgentStart,
    /// It ended in good order.
    AgentEnd,
    /// A tenant got a lease.
    Grant,
    /// A tenant got none.
    Refusal,
    /// A lease ended and what it held is free.
    Release,
    /// A lease could not be brought to its end.
    Failure,
    /// What tenants may hold is not what was last written here.
    Limits,
    /// A broker, a worker or a workload zone runs.
    ZoneStart,
    /// A broker or a worker is gone, or a workload zone with its holder or its lease.
    ZoneEnd,
    /// A GPU's memory was overwritten and looked at.
    Scrub,
    /// A GPU serves nobody new from now on.
    Quarantine,
    /// An operator let it serve again.
    QuarantineCleared,
    /// A GPU serves nobody new until what is wrong has been away for a while.
    Suspension,
    /// It serves again, by itself.
    Recovery,
    /// A crash had cut off the last line.
    LogTorn,
    /// The log was not whole when an agent opened it.
    LogDamaged,
}

/// Something to be written down.
#[derive(Clone, Debug, PartialEq)]
pub struct AuditEvent {
    /// What happened.
    pub kind: AuditKind,
    /// Who did it: `agent`, `tenant acme`, `process 7 of user 0`.
    pub actor: String,
    /// To what: a lease, a GPU, a worker.
    pub subject: String,
    /// Whose, if it is a tenant's.
    pub tenant: Option<TenantId>,
    /// What else there is to say.
    pub detail: serde_json::Value,
}

/// An event as it stands in the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditEntry {
    /// Its number, from 1.
    pub seq: u64,
    /// The hash of the line before.
    pub prev: AuditHash,
    /// When, in nanoseconds since 1970 UTC, by the node's clock.
    pub time_unix_ns: u64,
    /// What happened.
    pub kind: AuditKind,
    /// Who did it.
    pub actor: String,
    /// To what.
    pub subject: String,
    /// Whose, if it is a tenant's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<TenantId>,
    /// What else there is to say.
    pub detail: serde_json::Value,
}

/// SHA-256 of a line's event; written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct AuditHash([u8; 32]);

/// The end of the chain: number and hash of a line, written `<seq>:<hash>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The line's number; 0 before the first.
    pub seq: u64,
    /// Its hash.
    pub hash: AuditHash,
}

/// A text that is no hash or no head.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is not the head of an audit log; `gpu-zone audit verify` prints one like 17:9f86d0…"
)]
pub struct InvalidHead(String);

impl Head {
    /// Before the first line.
    pub const START: Self = Self { seq: 0, hash: AuditHash([0; 32]) };
}

impl AuditHash {
    fn of(event: &[u8]) -> Self {
        use sha2::Digest;
        Self(sha2::Sha256::digest(event).into())
    }
}

impl fmt::Display for AuditHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for AuditHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for AuditHash {
    type Err = InvalidHead;

    fn from_str(text: &str) -> Result<Self, InvalidHead> {
        let invalid = || InvalidHead(text.chars().take(80).collect());
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            // One spelling only: a changed letter's case is a changed byte.
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let mut bytes = [0; 32];
        if pairs.len() != bytes.len() || !rest.is_empty() {
            return Err(invalid());
        }
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            *byte = digit(*high).zip(digit(*low)).map(|(h, l)| h << 4 | l).ok_or_else(invalid)?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for AuditHash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AuditHash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.seq, self.hash)
    }
}

impl FromStr for Head {
    type Err = InvalidHead;

    fn from_str(text: &str) -> Result<Self, InvalidHead> {
        let invalid = || InvalidHead(text.chars().take(80).collect());
        let (seq, hash) = text.split_once(':').ok_or_else(invalid)?;
        let seq = seq.parse().map_err(|_| invalid())?;
        Ok(Self { seq, hash: hash.parse().map_err(|_| invalid())? })
    }
}

impl AuditEvent {
    fn into_entry(self, after: &Head, time: Timestamp) -> AuditEntry {
        let Self { kind, actor, subject, tenant, detail } = self;
        let time_unix_ns = time.nanoseconds();
        AuditEntry {
            seq: after.seq + 1,
            prev: after.hash,
            time_unix_ns,
            kind,
            actor,
            subject,
            tenant,
            detail,
        }
    }
}

impl AuditKind {
    /// Its name, as the log has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AgentStart => "agent_start",
            Self::AgentEnd => "agent_end",
            Self::Grant => "grant",
            Self::Refusal => "refusal",
            Self::Release => "release",
            Self::Failure => "failure",
            Self::Limits => "limits",
            Self::ZoneStart => "zone_start",
            Self::ZoneEnd => "zone_end",
            Self::Scrub => "scrub",
            Self::Quarantine => "quarantine",
            Self::QuarantineCleared => "quarantine_cleared",
            Self::Suspension => "suspension",
            Self::Recovery => "recovery",
            Self::LogTorn => "log_torn",
            Self::LogDamaged => "log_damaged",
        }
    }
}
