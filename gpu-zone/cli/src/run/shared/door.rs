//! The way to a zone by its name: its folder in the run directory, and who may start it.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::PathBuf;
use std::time::Duration;

use gpuzone_api::{Directories, check_socket_path};
use gpuzone_core::ZoneName;
use rustix::fs::{FlockOperation, flock};
use tokio::time::sleep;

use super::line::Line;
use crate::error::{CliError, Kind};

const SOCKET: &str = "zone.sock";
const START: &str = "start.lock";
/// Held by the keeper, as long as it lives.
const KEEPER: &str = "keeper.lock";
/// Between two looks whether another has started the zone.
const AGAIN: Duration = Duration::from_millis(5);

/// Where a zone's keeper is, if there is one.
#[derive(Debug)]
pub(crate) struct Door {
    pub(crate) name: ZoneName,
    pub(crate) folder: PathBuf,
}

/// The right to start the zone, while it is not dropped.
pub(crate) struct Starter {
    _lock: File,
}

impl Door {
    pub(crate) fn of(name: &ZoneName, directories: &Directories) -> Result<Self, CliError> {
        let folder = directories.zones_dir().join(name.as_str());
        check_socket_path(&folder.join(SOCKET))
            .map_err(|error| CliError::caused(Kind::Configuration, &error))?;
        Ok(Self { name: name.clone(), folder })
    }

    /// A connection to the keeper; `None` when there is none.
    pub(crate) fn knock(&self) -> Result<Option<Line>, CliError> {
        match Line::connect(&self.folder.join(SOCKET)) {
            Ok(line) => Ok(Some(line)),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(self.failed("cannot reach", &error)),
        }
    }

    /// Waits until nobody else starts the zone. Without `make`, `None` where there is not even
    /// its folder.
    pub(crate) async fn starter(&self, make: bool) -> Result<Option<Starter>, CliError> {
        let path = self.folder.join(START);
        let failed = |error: io::Error| self.failed("cannot use the folder of", &error);
        loop {
            if make {
                let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.folder);
                made.map_err(failed)?;
            }
            let open =
                File::options().read(true).write(true).create(make).truncate(false).open(&path);
            let lock = match open {
                Ok(lock) => lock,
                // Removed just now, with the zone.
                Err(error) if error.kind() == io::ErrorKind::NotFound && make => continue,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(failed(error)),
            };
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    let held = lock.metadata().map_err(failed)?;
                    // It may be the lock of a folder that was removed meanwhile.
                    if std::fs::metadata(&path).is_ok_and(|now| now.ino() == held.ino()) {
                        return Ok(Some(Starter { _lock: lock }));
                    }
                }
                Err(rustix::io::Errno::WOULDBLOCK) => sleep(AGAIN).await,
                Err(error) => return Err(failed(error.into())),
            }
        }
    }

    pub(crate) fn failed(&self, what: &str, error: &io::Error) -> CliError {
        CliError::new(Kind::Internal, format!("{what} zone '{}': {error}", self.name))
    }

    pub(crate) fn absent(&self) -> CliError {
        let message = format!("there is no zone '{}'", self.name);
        let hint = "`gpu-zone ps` shows those that there are; `gpu-zone run --zone NAME` makes one";
        CliError::new(Kind::NotFound, message).hint(hint)
    }

    /// Why nobody opens: it has no keeper, or one that is on its way out.
    pub(crate) fn closed(&self) -> CliError {
        if self.is_kept() { self.ending() } else { self.absent() }
    }

    fn is_kept(&self) -> bool {
        let lock = File::options().read(true).write(true).open(self.folder.join(KEEPER));
        lock.is_ok_and(|lock| {
            flock(&lock, FlockOperation::NonBlockingLockShared)
                .is_err_and(|error| error == rustix::io::Errno::WOULDBLOCK)
        })
    }

    /// Waits until an earlier keeper, which opens to nobody any more, is gone: its zone and its
    /// lease have the name until then.
    pub(crate) async fn vacant(&self) {
        while self.is_kept() {
            sleep(AGAIN).await;
        }
    }

    pub(crate) fn ending(&self) -> CliError {
        let message = format!("zone '{}' is ending; nothing was started in it", self.name);
        CliError::new(Kind::Unavailable, message)
            .hint("`gpu-zone run --zone NAME` makes a new one of that name")
    }
}
