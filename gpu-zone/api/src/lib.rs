//! The contracts between gpu-zone's processes: the agent's gRPC service, where its socket is,
//! and how an error crosses it.
#![forbid(unsafe_code)]

mod client;
mod directories;
mod error;

/// What the agent serves, generated from `proto/agent.proto`.
pub mod agent {
    /// Version 1.
    #[allow(missing_docs, unreachable_pub, rust_2018_idioms, clippy::all, clippy::pedantic)]
    pub mod v1 {
        tonic::include_proto!("gpuzone.agent.v1");
    }
}

pub use client::{AgentClient, ConnectError, connect};
pub use directories::{
    AGENT_SOCKET, DRIVER_ZONE_DIR, Directories, MAX_SOCKET_PATH, SHIM_DIR, SLOT_SOCKET,
    SLOT_VARIABLE, SLOTS_DIR, SocketPathTooLong, ZONES_DIR, check_socket_path,
};
pub use error::{AgentError, ERROR_KEY, ErrorKind, UnknownErrorKind};
