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
//!            leases/.ended-<lease>/      the same of one that has ended, until the agent has written
//!                                        down what it used
//!                           last.json    how it did
//!            scrub-<lease>.log           what a scrub worker says, while there is one
//!            zones/<zone>.zone           the process of each zone, <lease> and scrub-<lease>: the
//!                                        maker's, and this broker's to read
//! ```
#![forbid(unsafe_code)]

mod arbiter;
mod broker;
mod driver_zone;
mod ended;
mod ends;
mod lease;
mod maker;
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
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gpuzone_wire::control::BrokerConfig;
use gpuzone_zone::files::{LockError, PidLock, private_dir, remove};

pub use driver_zone::DriverZone;
pub use maker::made_by;
pub use paths::ZonePaths;
pub use vm::MachineZone;
pub use worker::READY_TIMEOUT;

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
    /// There is no maker of zones, or none any more.
    #[error("the maker of workers' zones {0}")]
    Maker(&'static str, #[source] io::Error),
}

/// What the agent wrote for the broker.
///
/// # Errors
/// When the file at `config` cannot be read, or is something else.
pub fn configuration(config: &Path) -> Result<BrokerConfig, RunError> {
    let bytes = std::fs::read(config).map_err(|error| RunError::Config(config.into(), error))?;
    serde_json::from_slice(&bytes).map_err(|error| RunError::Json(config.into(), error))
}

/// The line to the maker of workers' zones, where the agent started one. To be taken before anything
/// is opened.
///
/// # Errors
/// When there is to be one and is none.
pub fn handed(config: &BrokerConfig) -> Result<Option<OwnedFd>, RunError> {
    maker::handed(config).map_err(|error| RunError::Maker("was not handed over", error))
}

/// Serves the driver zone that `read` describes, until the agent ends it. `handed` is what
/// [`handed`] found.
///
/// # Errors
/// When the zone is served by another broker, or its files cannot be used.
pub async fn run(mut read: BrokerConfig, handed: Option<OwnedFd>) -> Result<(), RunError> {
    if let Some(machine) = read.microvm.take() {
        return vm::run(read, *machine, handed).await;
    }
    let zone_dir = read.zone_dir.clone();
    let zone = |error| RunError::Zone(zone_dir.clone(), error);
    private_dir(&zone_dir).map_err(zone)?;
    // A lease's folder may be too deep for a socket's address, so all is reached from here.
    std::env::set_current_dir(&zone_dir).map_err(zone)?;
    let paths = ZonePaths::new(PathBuf::from("."));
    let _lock = PidLock::take(&paths.lock()).map_err(RunError::Locked)?;
    let maker = maker::connect(&read, &paths, handed).await;
    let maker = maker.map_err(|error| RunError::Maker("says nothing", error))?;
    let broker = Arc::new(Broker::resume(read, paths.clone(), maker.clone()).await.map_err(zone)?);
    let listener = serve::bind(&paths.control_socket()).map_err(zone)?;
    tracing::info!(zone = %zone_dir.display(), "serving");
    tokio::select! {
        served = serve::serve(broker, listener) => served.map_err(zone)?,
        () = maker.lost() => {
            let gone = io::ErrorKind::UnexpectedEof.into();
            return Err(RunError::Maker("ended; so does this broker, and the next has another", gone));
        }
    }
    maker.close().await;
    tracing::info!("all leases ended; this broker ends");
    remove(&paths.control_socket()).map_err(zone)?;
    // Stays when something was put aside in it.
    let _ = std::fs::remove_dir(paths.leases());
    let _ = std::fs::remove_dir(paths.zones());
    Ok(())
}
