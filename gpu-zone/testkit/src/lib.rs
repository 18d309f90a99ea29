//! A harness that starts the real binaries on a simulated node, for tests and for the demo.
//!
//! Architecture invariant: it knows the product as its users do, by its commands and their
//! JSON, and depends on no crate of it but for the kubelet's own interfaces. Product crates use it as a dev-dependency only;
//! `xtask`, which is no product, runs the demo with it.
#![forbid(unsafe_code)]

mod artifacts;
mod census;
pub mod hostile;
pub mod kills;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
mod node;
mod output;
mod processes;
mod sysfs;

use std::time::Duration;

pub use artifacts::Artifacts;
pub use census::{Holdings, Traces, processes_of};
pub use node::{Lease, Node, Options, Sweeper};
pub use output::{Finished, Running};
pub use processes::{Process, Role};
pub use sysfs::Sysfs;

/// Why the harness could not do what a test wanted.
#[derive(Debug, thiserror::Error)]
pub enum HarnessError {
    /// `cargo build` failed.
    #[error("cargo cannot build what is needed here:\n{0}")]
    Build(String),
    /// It succeeded without a file that it should have made.
    #[error("cargo build made no '{0}'")]
    NoArtifact(String),
    /// A program cannot be started, or a file written.
    #[error("{what}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// Something took too long.
    #[error("{what} took longer than {limit:?}\n{output}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// For how long.
        limit: Duration,
        /// What had been said until then.
        output: String,
    },
    /// A command failed that should not have.
    #[error("{command} failed with {status}:\n{output}")]
    Failed {
        /// The command line.
        command: String,
        /// Its exit status.
        status: String,
        /// What it said.
        output: String,
    },
    /// A command's JSON is none, or lacks something.
    #[error("{what} is not in the output of {command}:\n{output}")]
    Unexpected {
        /// The command line.
        command: String,
        /// What was looked for.
        what: String,
        /// What it said.
        output: String,
    },
}

impl HarnessError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
