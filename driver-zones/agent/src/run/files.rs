//! The agent's own files and folders.

use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use gpuzone_api::{Directories, PLACED_SLOTS_DIR, SLOT_SOCKET, check_socket_path};
use gpuzone_zone::files::{PidLock, private_dir, remove};
use tokio::net::UnixListener;

use super::RunError;

/// The broker's socket in the driver zone's folder.
pub(super) const CONTROL_SOCKET: &str = "control.sock";
const STATE_LOCK: &str = "lock";
const RUN_LOCK: &str = "agent.lock";
/// In the folder of a zone that several programs share, held by its keeper.
const KEEPER_LOCK: &str = "keeper.lock";
/// What programs ask the loader for, and what they are linked with.
const CUDA_NAMES: [&str; 2] = ["libcuda.so.1", "libcuda.so"];
const NVML_NAMES: [&str; 2] = ["libnvidia-ml.so.1", "libnvidia-ml.so"];
/// A lease's name, as long as each is.
const ANY_LEASE: &str = "lease-00000000000000000000000000000000";

/// The agent's right to its folders, while it is not dropped.
pub(super) struct Locks {
    _state: PidLock,
    _run: PidLock,
}

/// Makes the agent's folders and locks them. Two agents may share neither: one would hand out
/// what the other's leases hold.
pub(super) fn take(directories: &Directories) -> Result<Locks, RunError> {
    let longest = directories.slots_dir().join(ANY_LEASE).join(SLOT_SOCKET);
    let control = directories.driver_zone_dir().join(CONTROL_SOCKET);
    for socket in [directories.agent_socket(), control, longest] {
        check_socket_path(&socket)?;
    }
    let lock = |directory: &Path, name: &str| {
        private_dir(directory).map_err(|source| unusable(directory, source))?;
        PidLock::take(&directory.join(name))
            .map_err(|source| RunError::Locked { directory: directory.to_owned(), source })
    };
    let state = lock(&directories.state, STATE_LOCK)?;
    Ok(Locks { _state: state, _run: lock(&directories.run, RUN_LOCK)? })
}

fn unusable(path: &Path, source: io::Error) -> RunError {
    RunError::Directory { path: path.to_owned(), source }
}

/// Makes the folders for slots and for the libraries that programs get.
pub(super) fn lay_out(directories: &Directories, cuda: &Path, nvml: &Path) -> Result<(), RunError> {
    let (slots, folder) = (directories.slots_dir(), directories.shim_dir());
    // Those of pods are made by whoever places them; the broker is given the folder of all.
    let (placed, programs) = (directories.state.join(PLACED_SLOTS_DIR), directories.programs_dir());
    for folder in [&slots, &placed, &programs] {
        private_dir(folder).map_err(|source| unusable(folder, source))?;
    }
    settle(&programs);
    let links = || -> io::Result<()> {
        private_dir(&folder)?;
        for (library, names) in [(cuda, CUDA_NAMES), (nvml, NVML_NAMES)] {
            for name in names {
                // Renamed into its place: programs that start meanwhile find the one or the other.
                let new = folder.join(".new");
                remove(&new)?;
                symlink(library, &new)?;
                std::fs::rename(new, folder.join(name))?;
            }
        }
        Ok(())
    };
    links().map_err(|source| unusable(&folder, source))
}

/// Binds the agent's socket; one that an earlier agent left is replaced. The caller has the locks.
pub(super) fn bind(socket: &Path) -> Result<UnixListener, RunError> {
    let bound = || -> io::Result<UnixListener> {
        remove(socket)?;
        let listener = UnixListener::bind(socket)?;
        std::fs::set_permissions(socket, PermissionsExt::from_mode(0o600))?;
        Ok(listener)
    };
    bound().map_err(|source| unusable(socket, source))
}

/// Removes the socket, so that clients see at once that nobody serves it.
pub(super) fn remove_socket(directories: &Directories) {
    log_failure(remove(&directories.agent_socket()));
}

/// Removes all that an agent makes in its run directory, when its broker is gone. What it does
/// not know stays, and with it the folders that hold it.
pub(super) fn clear(directories: &Directories) {
    let zone = directories.driver_zone_dir();
    for name in ["broker.json", "broker.log", "broker.lock", CONTROL_SOCKET] {
        log_failure(remove(&zone.join(name)));
    }
    log_failure(remove(&directories.shim_dir()));
    clear_zones(&directories.zones_dir());
    settle(&directories.programs_dir());
    let (slots, zones, programs) =
        (directories.slots_dir(), directories.zones_dir(), directories.programs_dir());
    let made = zone.join("zones");
    for folder in [made, zone, slots, zones, programs] {
        match std::fs::remove_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // A program that runs on without its lease.
            Err(error)
                if error.kind() == io::ErrorKind::DirectoryNotEmpty
                    && folder == directories.programs_dir() => {}
            other => log_failure(other),
        }
    }
    log_failure(remove(&directories.run.join(RUN_LOCK)));
    // Last: whoever waits for the agent's end waits for this.
    remove_socket(directories);
}

/// Takes away what killed launchers left of zones that had one program each. Those whose launchers
/// live go on, and are nobody else's.
pub(super) fn settle(programs: &Path) {
    match gpuzone_zone::settle(programs) {
        Ok(zones) if zones.is_empty() => {}
        Ok(zones) => tracing::warn!(?zones, "nobody cleaned up behind these zones; it is done now"),
        Err(error) => tracing::warn!(%error, "what killed zones left cannot be looked at now"),
    }
}

/// What killed keepers left. A keeper that lives has its lock, and takes its folder away itself.
fn clear_zones(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if let Ok(_lock) = PidLock::take(&entry.path().join(KEEPER_LOCK)) {
            log_failure(remove(&entry.path()));
        }
    }
}

fn log_failure(removed: io::Result<()>) {
    if let Err(error) = removed {
        tracing::warn!(%error, "something stays in the run directory");
    }
}
