//! The driver zone's supervisor: turns leases into workers, and keeps them alive.
//!
//! Architecture invariant: it parses the agent's requests and its own files, and never a byte
//! that a tenant sent. Workers do not depend on it: when it dies they serve on, and the next
//! broker finds them in the zone's directory.
//!
//! ```text
//! <zone_dir>/broker.lock  control.sock
//!            leases/<lease>/order.json   what to serve, written before the worker is started
//!                           stats        what was used, over all workers of the lease
//!                           worker.json  whether its worker serves, and how often it was replaced
//!                           turns.sock   where it listens for its turns on the GPUs
//!                           worker.log   what it said on its standard error
//!            scrub-<lease>.log           what a scrub worker says, while there is one
//!            zones/<zone>.zone           the process of each zone: <lease>, scrub-<lease>
//! ```
#![forbid(unsafe_code)]

mod arbiter;
mod broker;
mod confine;
mod ends;
mod lease;
mod paths;
mod record;
mod respite;
mod resume;
mod scrub;
mod scrubs;
mod serve;
mod slot;
mod vm;
mod worker;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gpuzone_wire::control::BrokerConfig;
use gpuzone_zone::files::{LockError, PidLock, private_dir, remove};

pub use paths::ZonePaths;

use broker::Broker;

/// Why a broker does not serve.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Its configuration cannot be read.
    #[error("cannot read the configuration {}", .0.display())]
    Config(PathBuf, #[source] io::Error),
    /// Its configuration is wrong.
    #[error("the configuration {} is not what the agent writes", .0.display())]
    Json(PathBuf, #[source] serde_json::Error),
    /// Another broker serves the zone.
    #[error("another broker serves this driver zone")]
    Locked(#[source] LockError),
    /// The directory or the socket cannot be used.
    #[error("cannot serve the driver zone in {}", .0.display())]
    Zone(PathBuf, #[source] io::Error),
}

/// What the agent wrote for the broker.
///
/// # Errors
/// When the file at `config` cannot be read, or is something else.
pub fn configuration(config: &Path) -> Result<BrokerConfig, RunError> {
    let bytes = std::fs::read(config).map_err(|error| RunError::Config(config.into(), error))?;
    serde_json::from_slice(&bytes).map_err(|error| RunError::Json(config.into(), error))
}

/// Serves the driver zone that `read` describes, until the agent ends it.
///
/// # Errors
/// When the zone is served by another broker, or its files cannot be used.
pub async fn run(mut read: BrokerConfig) -> Result<(), RunError> {
    if let Some(machine) = read.microvm.take() {
        return vm::run(read, *machine).await;
    }
    let zone_dir = read.zone_dir.clone();
    let zone = |error| RunError::Zone(zone_dir.clone(), error);
    private_dir(&zone_dir).map_err(zone)?;
    let paths = ZonePaths::new(zone_dir.clone());
    let _lock = PidLock::take(&paths.lock()).map_err(RunError::Locked)?;
    let broker = Arc::new(Broker::resume(read).await.map_err(zone)?);
    let listener = serve::bind(&paths.control_socket()).map_err(zone)?;
    tracing::info!(zone = %zone_dir.display(), "serving");
    serve::serve(broker, listener).await.map_err(zone)?;
    tracing::info!("all leases ended; this broker ends");
    remove(&paths.control_socket()).map_err(zone)?;
    // Stays when something was put aside in it.
    let _ = std::fs::remove_dir(paths.leases());
    let _ = std::fs::remove_dir(paths.zones());
    Ok(())
}
