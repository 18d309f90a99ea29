//! What a tenant is told of its lease when it only looks: one question over the slot's socket,
//! one answer, and the connection ends. No rings, no context, nothing charged.
//!
//! What is answered decides nothing: limits are held where they are counted.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::hello::{self, Hello, HelloError};

/// Version of the question; a worker refuses another.
pub const VERSION: u32 = 2;
/// Processes in one answer about a lease of so many GPUs: on more than that it would be longer than a
/// message may be, for up to 32 GPUs.
pub fn most_processes(gpus: usize) -> usize {
    (4096 / gpus.max(1)).min(512)
}

/// Names the slot's directory to a tenant's process.
pub const SLOT_VARIABLE: &str = "GPUZONE_SLOT";

/// The question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    /// The asker's [`VERSION`].
    pub look: u32,
}

/// What a process that connects may say first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Opening {
    /// It only wants to look.
    Look(Look),
    /// It wants to work.
    Work(Hello),
}

/// The answer. A refusal reads as one of [`hello::Welcome`] does: who refuses before the
/// greeting does not know which it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seen {
    /// The lease as it is now.
    Lease(View),
    /// No.
    Refused {
        /// Why, and what to do.
        reason: String,
    },
}

impl Seen {
    /// A refusal with this reason.
    pub fn refused(why: impl std::fmt::Display) -> Self {
        Self::Refused { reason: why.to_string() }
    }
}

/// A lease as it is now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// The driver's version, where its NVML tells it.
    pub driver: Option<String>,
    /// The version of the driver's NVML, where it tells it.
    pub nvml: Option<String>,
    /// As `cuDriverGetVersion` has it.
    pub cuda: i32,
    /// The lease's GPUs, in order.
    pub gpus: Vec<GpuView>,
    /// Its processes that are connected, at most [`most_processes`].
    pub processes: Vec<ProcessView>,
}

/// A GPU of a lease.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuView {
    /// Product name.
    pub name: String,
    /// As `cuDeviceGetUuid` has it.
    pub uuid: [u8; 16],
    /// The lease's memory on it, in bytes.
    pub memory: u64,
    /// What of that is in use.
    pub used: u64,
    /// Per cent of the last second in which it worked for the lease, where that is known.
    pub busy: Option<u32>,
    /// Major and minor number of its compute capability.
    pub capability: Option<(i32, i32)>,
    /// Domain, bus and device of its PCI address.
    pub pci: Option<(u32, u32, u32)>,
}

/// A process of a lease's tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessView {
    /// Its number, as it said itself: in its own zone nobody else's is true.
    pub pid: u32,
    /// Bytes in use on each of the lease's GPUs.
    pub used: Vec<u64>,
    /// As [`GpuView::busy`], for this process, on each of the lease's GPUs.
    pub busy: Vec<Option<u32>>,
}

/// Why there is nothing to see.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// The worker was not met.
    #[error(transparent)]
    Hello(#[from] HelloError),
    /// It would not say.
    #[error("{0}")]
    Refused(String),
}

/// Asks the worker of a slot.
///
/// # Errors
/// When none answers in time, or it refuses.
pub fn look(slot: &Path, timeout: Duration) -> Result<View, LookError> {
    match ask(slot, Look { look: VERSION }, timeout)? {
        Seen::Lease(view) => Ok(view),
        Seen::Refused { reason } => Err(LookError::Refused(reason)),
    }
}

/// The same for somebody else, whose question is passed on as it is.
///
/// # Errors
/// When the worker does not answer in time.
pub fn ask(slot: &Path, look: Look, timeout: Duration) -> Result<Seen, HelloError> {
    let socket = hello::connect(&slot.join(hello::SOCKET), timeout)?;
    hello::send(&socket, &look, None)?;
    Ok(hello::receive::<Seen>(&socket)?.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hello::Welcome;

    #[test]
    fn a_look_is_told_from_a_greeting_whatever_else_a_greeting_says() {
        let opening = |text: &str| serde_json::from_str::<Opening>(text).expect("an opening");
        assert_eq!(opening(r#"{"look":1}"#), Opening::Look(Look { look: 1 }));
        let hello = opening(r#"{"version":3,"pid":7,"more":[]}"#);
        assert_eq!(hello, Opening::Work(Hello { version: 3, pid: 7, window: None, apart: false }));
        assert!(serde_json::from_str::<Opening>(r#"{"pid":7}"#).is_err());
    }

    #[test]
    fn a_refusal_before_the_greeting_is_understood_by_who_looks() {
        let refused = Welcome::Refused { reason: "full".to_owned() };
        let text = serde_json::to_string(&refused).expect("text");
        let seen: Seen = serde_json::from_str(&text).expect("understood");
        assert_eq!(seen, Seen::Refused { reason: "full".to_owned() });
    }

    #[test]
    fn the_longest_answer_is_a_message() {
        for gpus in [1, 8, 16, 32] {
            let (used, busy) = (vec![u64::MAX; gpus], vec![Some(100); gpus]);
            let process = ProcessView { pid: u32::MAX, used, busy };
            let gpu = GpuView {
                name: "x".repeat(255),
                uuid: [u8::MAX; 16],
                memory: u64::MAX,
                used: u64::MAX,
                busy: Some(100),
                capability: Some((99, 99)),
                pci: Some((u32::MAX, u32::MAX, u32::MAX)),
            };
            let processes = vec![process; most_processes(gpus)];
            let view = View { gpus: vec![gpu; gpus], processes, ..View::default() };
            let bytes = serde_json::to_vec(&Seen::Lease(view)).expect("bytes");
            assert!(bytes.len() <= hello::MAX_MESSAGE, "{} of {gpus} GPUs", bytes.len());
        }
    }
}
