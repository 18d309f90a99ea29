//! The contracts between gpu-zone's processes: the agent's gRPC service, where its socket is,
//! how an error crosses it, and what is written in Kubernetes' objects.
#![forbid(unsafe_code)]

mod client;
mod directories;
mod error;
pub mod kubernetes;
mod slot;

/// What the agent serves, generated from `proto/agent.proto`.
pub mod agent {
    /// Version 1.
    #[allow(missing_docs, unreachable_pub, rust_2018_idioms, clippy::all, clippy::pedantic)]
    pub mod v1 {
        tonic::include_proto!("gpuzone.agent.v1");
    }
}

impl std::fmt::Debug for agent::v1::VfToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("VfToken(…)")
    }
}

/// Leases that somebody else placed, generated from `proto/placements.proto`.
pub mod placements {
    /// Version 1.
    #[allow(missing_docs, unreachable_pub, rust_2018_idioms, clippy::all, clippy::pedantic)]
    pub mod v1 {
        tonic::include_proto!("gpuzone.placements.v1");
    }
}

/// The kubelet's interfaces, generated from `proto/kubelet-*.proto`.
#[cfg(feature = "kubelet")]
pub mod kubelet {
    /// Device plugins.
    #[allow(missing_docs, unreachable_pub, rust_2018_idioms, clippy::all, clippy::pedantic)]
    pub mod v1beta1 {
        tonic::include_proto!("v1beta1");
    }

    /// Which pod holds which device.
    pub mod podresources {
        /// Version 1.
        #[allow(missing_docs, unreachable_pub, rust_2018_idioms, clippy::all, clippy::pedantic)]
        pub mod v1 {
            tonic::include_proto!("v1");
        }
    }
}

pub use client::{AgentClient, ConnectError, connect, connect_channel};
pub use directories::{
    AGENT_SOCKET, DRIVER_ZONE_DIR, Directories, MAX_SOCKET_PATH, PROGRAMS_DIR, SHIM_DIR,
    SLOT_SOCKET, SLOT_VARIABLE, SLOTS_DIR, SocketPathTooLong, ZONES_DIR, check_socket_path,
};
pub use error::{AgentError, ERROR_KEY, ErrorKind, UnknownErrorKind};
pub use slot::{
    HolderName, InvalidFolder, InvalidHolder, InvalidSlot, PLACED_SLOTS_DIR, SlotFolder, SlotId,
    slot_folder,
};
