use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::agent::v1::agent_client;
use crate::{SocketPathTooLong, check_socket_path};

/// A client of the agent's service.
pub type AgentClient = agent_client::AgentClient<Channel>;

/// Why no agent answers.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The path cannot be a socket's.
    #[error(transparent)]
    PathTooLong(#[from] SocketPathTooLong),
    /// No socket there.
    #[error("no agent runs here: there is no socket {}; start one with `gpu-zone up`", .0.display())]
    NoSocket(PathBuf),
    /// A socket that nobody serves.
    #[error(
        "no agent answers at {}: its socket was left behind by an agent that ended; start one with `gpu-zone up`", .0.display()
    )]
    Stale(PathBuf),
    /// A socket that this user may not open.
    #[error(
        "the agent's socket {} belongs to another user; run this as the user who runs the agent", .0.display()
    )]
    Denied(PathBuf),
    /// Anything else.
    #[error("cannot connect to the agent at {}", .path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A socket that does not speak gRPC.
    #[error("what answers at {} is no agent", .path.display())]
    Transport {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: tonic::transport::Error,
    },
}

/// Connects to the agent at `socket`.
///
/// # Errors
/// When nobody serves the socket, or it cannot be opened.
pub async fn connect(socket: &Path) -> Result<AgentClient, ConnectError> {
    Ok(AgentClient::new(connect_channel(socket).await?))
}

/// Connects to the agent at `socket`, for any of its services.
///
/// # Errors
/// When nobody serves the socket, or it cannot be opened.
pub async fn connect_channel(socket: &Path) -> Result<Channel, ConnectError> {
    check_socket_path(socket)?;
    // Tried once by hand: the transport's own error hides why it failed.
    let probe = UnixStream::connect(socket).await;
    let path = socket.to_owned();
    match probe {
        Ok(_) => {}
        Err(error) => {
            return Err(match error.kind() {
                io::ErrorKind::NotFound => ConnectError::NoSocket(path),
                io::ErrorKind::ConnectionRefused => ConnectError::Stale(path),
                io::ErrorKind::PermissionDenied => ConnectError::Denied(path),
                _ => ConnectError::Io { path, source: error },
            });
        }
    }
    let transport = |source| ConnectError::Transport { path: socket.to_owned(), source };
    // The address is a placeholder that HTTP wants; the connector below never looks at it.
    let endpoint = Endpoint::from_static("http://agent").connect_timeout(Duration::from_secs(5));
    let connector = service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    endpoint.connect_with_connector(connector).await.map_err(transport)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn says_why_no_agent_answers() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("agent.sock");
        assert!(matches!(connect(&socket).await, Err(ConnectError::NoSocket(_))));
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        assert!(matches!(connect(&socket).await, Err(ConnectError::Stale(_))));
    }
}
