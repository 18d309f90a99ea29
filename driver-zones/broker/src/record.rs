//! What a broker writes down, for the broker after it.

use std::io;
use std::path::Path;

use gpuzone_zone::files::write_atomically;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::ends::Ends;

/// The lease's worker, in `worker.json`. What is believed of its process is its zone's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WorkerRecord {
    /// Its number, for whoever reads of its end.
    pub(crate) pid: u32,
    /// Whether it said that it accepts connections.
    pub(crate) ready: bool,
    /// How many workers were replaced before it.
    pub(crate) restarts: u32,
    /// What last went wrong.
    pub(crate) trouble: String,
    /// Whether its end is among those that are told.
    #[serde(default)]
    pub(crate) ended: bool,
    /// Ends that the agent has not acknowledged.
    #[serde(default)]
    pub(crate) ends: Ends,
}

/// Why a record cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("it is not what a broker writes: {0}")]
    Json(#[from] serde_json::Error),
}

pub(crate) fn write<T: Serialize>(path: &Path, record: &T) -> io::Result<()> {
    write_atomically(path, &serde_json::to_vec(record)?)
}

pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, ReadError> {
    Ok(serde_json::from_slice(&std::fs::read(path)?)?)
}

/// As [`read`]; `None` when there is no such file.
pub(crate) fn read_if_there<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, ReadError> {
    match read(path) {
        Ok(record) => Ok(Some(record)),
        Err(ReadError::Io(error)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
