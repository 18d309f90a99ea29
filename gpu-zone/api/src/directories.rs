use std::path::{Path, PathBuf};

/// File name of the agent's socket in the run directory.
pub const AGENT_SOCKET: &str = "agent.sock";
/// Folder of the shim library in the run directory.
pub const SHIM_DIR: &str = "shim";
/// Folder of the slots in the run directory.
pub const SLOTS_DIR: &str = "slots";
/// Folder of the driver zone in the run directory.
pub const DRIVER_ZONE_DIR: &str = "driver-zone";
/// Folder of the zones that several programs share, in the run directory.
pub const ZONES_DIR: &str = "zones";
/// Folder of the records of zones that have one program each, in the run directory.
pub const PROGRAMS_DIR: &str = "programs";
/// File name of a slot's socket in the slot's folder.
pub const SLOT_SOCKET: &str = "cuda.sock";
/// Environment variable that names a program's slot folder.
pub const SLOT_VARIABLE: &str = "GPUZONE_SLOT";

/// Longest path of a Unix socket: `sun_path` has 108 bytes, one of them the final zero
/// (unix(7)).
pub const MAX_SOCKET_PATH: usize = 107;

/// Where an agent keeps its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directories {
    /// What outlives a reboot: journal and ledger.
    pub state: PathBuf,
    /// What does not: sockets, slots, the driver zone.
    pub run: PathBuf,
}

/// A Unix socket's path that the kernel would not take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the socket path {} has {length} bytes and a Unix socket's path has at most {MAX_SOCKET_PATH}; choose a shorter run directory", .path.display()
)]
pub struct SocketPathTooLong {
    /// The path.
    pub path: PathBuf,
    /// Its bytes.
    pub length: usize,
}

/// Refuses a path that does not fit a Unix socket's address.
///
/// # Errors
/// When it is longer than [`MAX_SOCKET_PATH`].
pub fn check_socket_path(path: &Path) -> Result<(), SocketPathTooLong> {
    let length = path.as_os_str().len();
    if length > MAX_SOCKET_PATH {
        return Err(SocketPathTooLong { path: path.to_owned(), length });
    }
    Ok(())
}

impl Directories {
    /// The defaults for whoever runs this process: root's are `/var/lib/gpu-zone` and
    /// `/run/gpu-zone`; others' follow the XDG base directories, with
    /// `~/.local/state/gpu-zone` and `/tmp/gpu-zone-<uid>` where the variables are not set.
    pub fn for_user() -> Self {
        let uid = rustix::process::getuid();
        Self::derive(uid.as_raw(), |name| std::env::var_os(name).map(PathBuf::from))
    }

    fn derive(uid: u32, variable: impl Fn(&str) -> Option<PathBuf>) -> Self {
        if uid == 0 {
            return Self { state: "/var/lib/gpu-zone".into(), run: "/run/gpu-zone".into() };
        }
        // The XDG specification: a relative path is invalid and is ignored.
        let absolute = |name| variable(name).filter(|path| path.is_absolute());
        let of_uid = || PathBuf::from(format!("/tmp/gpu-zone-{uid}"));
        let state = absolute("XDG_STATE_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
        Self {
            state: state.map_or_else(|| of_uid().join("state"), |base| base.join("gpu-zone")),
            run: absolute("XDG_RUNTIME_DIR").map_or_else(of_uid, |base| base.join("gpu-zone")),
        }
    }

    /// The agent's socket.
    pub fn agent_socket(&self) -> PathBuf {
        self.run.join(AGENT_SOCKET)
    }

    /// The folder with the shim library, for a program's library path.
    pub fn shim_dir(&self) -> PathBuf {
        self.run.join(SHIM_DIR)
    }

    /// The folder of the slots.
    pub fn slots_dir(&self) -> PathBuf {
        self.run.join(SLOTS_DIR)
    }

    /// The folder of the driver zone.
    pub fn driver_zone_dir(&self) -> PathBuf {
        self.run.join(DRIVER_ZONE_DIR)
    }

    /// The folder of zones that several programs share, each with a folder of its name.
    pub fn zones_dir(&self) -> PathBuf {
        self.run.join(ZONES_DIR)
    }

    /// The folder in which zones of one program each are written down.
    pub fn programs_dir(&self) -> PathBuf {
        self.run.join(PROGRAMS_DIR)
    }

    /// The ledger's database.
    pub fn ledger(&self) -> PathBuf {
        self.state.join("ledger.db")
    }

    /// The audit log.
    pub fn audit_log(&self) -> PathBuf {
        self.state.join("audit.log")
    }

    /// The agent's journal.
    pub fn journal(&self) -> PathBuf {
        self.state.join("journal")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_follow_the_user() {
        let set = |name: &str| match name {
            "HOME" => Some(PathBuf::from("/home/ada")),
            "XDG_RUNTIME_DIR" => Some(PathBuf::from("/run/user/1000")),
            _ => None,
        };
        let ada = Directories::derive(1000, set);
        assert_eq!(ada.state, Path::new("/home/ada/.local/state/gpu-zone"));
        assert_eq!(ada.agent_socket(), Path::new("/run/user/1000/gpu-zone/agent.sock"));
        let bare = Directories::derive(7, |_| None);
        assert_eq!(bare.run, Path::new("/tmp/gpu-zone-7"));
        assert_eq!(Directories::derive(0, set).run, Path::new("/run/gpu-zone"));
        let relative = Directories::derive(7, |_| Some("here".into()));
        assert_eq!(relative, bare);
    }

    #[test]
    fn a_long_socket_path_is_refused() {
        assert_eq!(check_socket_path(Path::new(&"x".repeat(107))), Ok(()));
        let error = check_socket_path(Path::new(&"x".repeat(108))).unwrap_err();
        assert_eq!(error.length, 108);
    }
}
