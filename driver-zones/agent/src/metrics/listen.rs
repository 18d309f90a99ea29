//! Where the page is served.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use gpuzone_api::check_socket_path;
use gpuzone_zone::files::{private_dir, remove};
use tokio::net::{TcpListener, UnixListener};

/// Before the path of a Unix socket.
const UNIX: &str = "unix:";

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// Whoever reaches the address reads.
    Tcp(SocketAddr),
    /// Only the agent's user reads.
    Unix(PathBuf),
}

/// A text that names no place to listen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is nowhere to listen; write \"unix:metrics.sock\" or \"127.0.0.1:9400\"")]
pub struct InvalidListen(String);

/// Why nobody can be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve metrics at {listen}; choose another place under [metrics] listen")]
pub struct BindError {
    listen: Listen,
    source: io::Error,
}

/// A place where connections come in.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl FromStr for Listen {
    type Err = InvalidListen;

    fn from_str(text: &str) -> Result<Self, InvalidListen> {
        match text.strip_prefix(UNIX) {
            Some("") => Err(InvalidListen(text.to_owned())),
            Some(path) => Ok(Self::Unix(path.into())),
            None => text.parse().map(Self::Tcp).map_err(|_| InvalidListen(text.to_owned())),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

impl Listen {
    /// Opens it.
    ///
    /// # Errors
    /// When somebody else has the address, or the socket cannot be made.
    pub(crate) async fn bind(&self) -> Result<Listener, BindError> {
        let bound = match self {
            Self::Tcp(address) => {
                if !address.ip().is_loopback() {
                    tracing::warn!(%address, "metrics of all tenants are served to the network");
                }
                TcpListener::bind(address).await.map(Listener::Tcp)
            }
            Self::Unix(path) => bind_unix(path).map(Listener::Unix),
        };
        bound.map_err(|source| BindError { listen: self.clone(), source })
    }
}

impl Listen {
    /// Takes a socket away that nobody serves any more.
    pub(crate) fn remove(&self) {
        if let Self::Unix(path) = self
            && let Err(error) = remove(path)
        {
            tracing::warn!(%error, "the metrics' socket stays");
        }
    }
}

/// A socket that nobody else may open, not even for the moment before its mode is set.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    check_socket_path(path).map_err(io::Error::other)?;
    match std::fs::symlink_metadata(path) {
        Ok(there) if !there.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it is no socket"));
        }
        Ok(_) | Err(_) => {}
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let folder = path.with_file_name(format!(".gpuzone-{name}"));
    remove(&folder)?;
    private_dir(&folder)?;
    let fresh = folder.join("s");
    let bound = UnixListener::bind(&fresh).and_then(|listener| {
        std::fs::set_permissions(&fresh, PermissionsExt::from_mode(0o600))?;
        std::fs::rename(&fresh, path)?;
        Ok(listener)
    });
    remove(&folder)?;
    bound
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_where_to_listen() {
        for text in ["127.0.0.1:9400", "[::1]:9400", "unix:/run/gpu-zone/metrics.sock"] {
            assert_eq!(text.parse::<Listen>().unwrap().to_string(), text);
        }
        for wrong in ["", "unix:", "9400", "localhost:9400", "127.0.0.1", "http://127.0.0.1:1"] {
            assert_eq!(wrong.parse::<Listen>(), Err(InvalidListen(wrong.into())));
        }
    }

    #[tokio::test]
    async fn a_socket_is_its_users_own_and_replaces_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.sock");
        let listen = Listen::Unix(path.clone());
        drop(listen.bind().await.unwrap());
        // One that an earlier agent left is replaced.
        drop(listen.bind().await.unwrap());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "mine").unwrap();
        let error = listen.bind().await.unwrap_err();
        assert!(error.to_string().contains("metrics.sock"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
    }
}
