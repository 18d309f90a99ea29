//! The mediated-device protocol: rings, messages, handles and one spec of calls.
//!
//! ```text
//!  tenant process                                       driver zone
//!  shim ──Hello──▶ slot socket (SOCK_SEQPACKET) ──────▶ worker
//!       ◀─Welcome + memfd── (SCM_RIGHTS)
//!       ══ request ring: posted and replied calls ═════▶ session thread
//!       ◀═ reply ring: answers, bytes copied to the host ═
//! ```
//!
//! Architecture invariant: neither side trusts what it reads from the other. Positions in a
//! ring are checked against what was seen before, a record is copied out once and then decoded
//! with its bounds checked, and only the bytes of a copy are used where they lie.

pub mod client;
pub mod codec;
pub mod control;
pub mod handover;
pub mod hello;
pub mod ring;
pub mod scrub;
pub mod spec;
pub mod stats;
pub mod turn;
pub mod untrusted;
pub mod view;
pub mod workload_link;
pub mod zone_link;
