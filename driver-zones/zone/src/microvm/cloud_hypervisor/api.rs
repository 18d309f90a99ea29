//! The part of Cloud Hypervisor's API that is used, typed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

use super::http::{self, Answer, HttpError, short};
use super::machine::Machine;

/// How long an answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
/// The same where a kernel is read, or a VM with devices is taken apart.
const BOOT_LIMIT: Duration = Duration::from_secs(60);
/// How long it may take to say goodbye.
const GOODBYE_LIMIT: Duration = Duration::from_secs(2);
/// The first version whose devices can be given their places.
const OLDEST: u32 = 52;

/// Why Cloud Hypervisor did not do it.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// It does not answer.
    #[error("Cloud Hypervisor does not answer '{call}': {source}")]
    Broken {
        /// What was asked.
        call: &'static str,
        /// Why.
        source: io::Error,
    },
    /// What it says is no answer.
    #[error("Cloud Hypervisor answered '{call}' with something that makes no sense: {said}")]
    Nonsense {
        /// What was asked.
        call: &'static str,
        /// What it said.
        said: String,
    },
    /// It said no.
    #[error("Cloud Hypervisor refused '{call}' ({status}): {reason}")]
    Refused {
        /// What was asked.
        call: &'static str,
        /// Its number for it.
        status: u16,
        /// Why, in its words.
        reason: String,
    },
    /// It is of another time.
    #[error(
        "this is Cloud Hypervisor {0}, and the oldest that gives devices their places is {OLDEST}; install that or a younger one"
    )]
    Version(String),
    /// Its machine is neither to be booted nor running.
    #[error("Cloud Hypervisor's machine is in the state {0}, and nobody here put it into that")]
    State(State),
    /// A device is somewhere else.
    #[error("Cloud Hypervisor put a window at {got}, and was told {wanted}")]
    Place {
        /// Where it was to be.
        wanted: String,
        /// Where it is.
        got: String,
    },
    /// A window's socket cannot be made.
    #[error("cannot serve a window: {0}")]
    Window(#[from] io::Error),
}

/// How a machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum State {
    /// Described, and nothing of it runs.
    Created,
    /// It runs.
    Running,
    /// It was shut down.
    Shutdown,
    /// It is held.
    Paused,
    /// Something that this does not know.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

#[derive(Debug, Deserialize)]
struct Ping {
    version: String,
}

#[derive(Debug, Deserialize)]
struct Info {
    state: State,
    #[serde(default)]
    device_tree: Option<BTreeMap<String, IgnoredAny>>,
}

/// A device that was added.
#[derive(Debug, Deserialize)]
pub(super) struct Added {
    /// Like `0000:00:10.0`.
    pub(super) bdf: String,
}

#[derive(Debug, Serialize)]
struct UserDevice<'a> {
    id: &'a str,
    socket: &'a Path,
    pci_device_id: u8,
}

#[derive(Debug, Serialize)]
struct RemoveDevice<'a> {
    id: &'a str,
}

/// The API of one process. Each call has a connection of its own, so that nothing is left of one that
/// was given up.
#[derive(Clone, Debug)]
pub(super) struct Api {
    socket: PathBuf,
    limit: Option<Duration>,
}

impl Api {
    pub(super) fn at(socket: PathBuf) -> Self {
        Self { socket, limit: None }
    }

    /// The same, for tests of who does not answer.
    #[cfg(test)]
    pub(super) fn within(socket: PathBuf, limit: Duration) -> Self {
        Self { socket, limit: Some(limit) }
    }

    /// Fails unless it is young enough.
    pub(super) fn check_version(&self) -> Result<(), ApiError> {
        let call = "vmm.ping";
        let Ping { version } = read(call, &self.ask(call, ANSWER_LIMIT)?)?;
        // Like `v52.0` or `v53.0-12-gabc`.
        let digits: String = version.trim_start_matches('v').chars().take(9).collect();
        let major = digits.split(|c: char| !c.is_ascii_digit()).next();
        match major.and_then(|major| major.parse::<u32>().ok()) {
            Some(major) if major >= OLDEST => Ok(()),
            _ => Err(ApiError::Version(short(&version))),
        }
    }

    pub(super) fn state(&self) -> Result<State, ApiError> {
        Ok(self.info()?.state)
    }

    /// Identifiers of all devices.
    pub(super) fn devices(&self) -> Result<BTreeSet<String>, ApiError> {
        Ok(self.info()?.device_tree.unwrap_or_default().into_keys().collect())
    }

    fn info(&self) -> Result<Info, ApiError> {
        let call = "vm.info";
        read(call, &self.ask(call, ANSWER_LIMIT)?)
    }

    pub(super) fn create(&self, machine: &Machine) -> Result<(), ApiError> {
        self.tell("vm.create", Some(machine), BOOT_LIMIT).map(drop)
    }

    pub(super) fn boot(&self) -> Result<(), ApiError> {
        self.tell("vm.boot", None::<&()>, BOOT_LIMIT).map(drop)
    }

    pub(super) fn add_user_device(
        &self,
        id: &str,
        socket: &Path,
        slot: u8,
    ) -> Result<Added, ApiError> {
        let call = "vm.add-user-device";
        let device = UserDevice { id, socket, pci_device_id: slot };
        read(call, &self.tell(call, Some(&device), ANSWER_LIMIT)?)
    }

    pub(super) fn remove_device(&self, id: &str) -> Result<(), ApiError> {
        self.tell("vm.remove-device", Some(&RemoveDevice { id }), ANSWER_LIMIT).map(drop)
    }

    /// Has the process end, in order.
    pub(super) fn shut_down(&self) -> Result<(), ApiError> {
        self.tell("vmm.shutdown", None::<&()>, GOODBYE_LIMIT).map(drop)
    }

    fn ask(&self, call: &'static str, limit: Duration) -> Result<Answer, ApiError> {
        self.exchange("GET", call, None, limit)
    }

    fn tell(
        &self,
        call: &'static str,
        body: Option<&impl Serialize>,
        limit: Duration,
    ) -> Result<Answer, ApiError> {
        let body = body.map(serde_json::to_vec).transpose();
        let body = body.map_err(|error| ApiError::Broken { call, source: error.into() })?;
        self.exchange("PUT", call, body.as_deref(), limit)
    }

    fn exchange(
        &self,
        method: &str,
        call: &'static str,
        body: Option<&[u8]>,
        limit: Duration,
    ) -> Result<Answer, ApiError> {
        let (path, limit) = (format!("/api/v1/{call}"), self.limit.unwrap_or(limit));
        let answer = http::exchange(&self.socket, method, &path, body, limit);
        let answer = answer.map_err(|error| match error {
            HttpError::Broken(source) => ApiError::Broken { call, source },
            HttpError::Nonsense(said) => ApiError::Nonsense { call, said: short(&said) },
        })?;
        match answer.status {
            200 | 204 => Ok(answer),
            status => Err(ApiError::Refused { call, status, reason: reason(&answer.body) }),
        }
    }
}

fn read<T: DeserializeOwned>(call: &'static str, answer: &Answer) -> Result<T, ApiError> {
    let nonsense = |error: serde_json::Error| short(&error.to_string());
    let read = serde_json::from_slice(&answer.body).map_err(nonsense);
    read.map_err(|said| ApiError::Nonsense { call, said })
}

/// A list of errors, each the cause of the one before.
fn reason(body: &[u8]) -> String {
    let causes = serde_json::from_slice::<Vec<String>>(body).map(|causes| causes.join(": "));
    let text = causes.unwrap_or_else(|_| String::from_utf8_lossy(body).into_owned());
    match short(&text) {
        empty if empty.trim().is_empty() => "no reason".to_owned(),
        text => text,
    }
}
