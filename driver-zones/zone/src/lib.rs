//! Zone backends: how a zone's processes are started, watched and ended.
//!
//! A process is known by pid, start time and boot ([`ProcessId`]), so that a record of it can be
//! believed after a restart of whoever wrote it. A running one is held by a pidfd ([`Process`]):
//! what is watched and ended is that very process, never one that got its number later.
//!
//! [`Zones`] owns zones of any kind: a task for each, driven by [`ZoneState`], and a record for the
//! owner after it. What makes a kind is a [`Backend`]: [`sandbox::Sandboxes`] or [`microvm::MicroVms`].

mod backend;
mod environment;
pub mod files;
mod identity;
pub mod keeper;
pub mod maker;
pub mod microvm;
mod packets;
#[cfg(test)]
mod patience;
mod process;
pub mod sandbox;
mod state;
mod zones;

pub use backend::{Backend, ZoneStats};
pub use environment::{SetVariableError, set_variable};
pub use identity::{BootId, ProcessId};
pub use process::{Exit, Process};
pub use state::{WrongEvent, ZoneEvent, ZoneState};
pub use zones::single::{Listed, list, settle};
pub use zones::{RecordError, START_LIMIT, Unreadable, Zone, ZoneError, Zones};
