//! Zones of process groups: sandboxes of namespaces, Landlock and seccomp.
//!
//! [`Launch`] starts a process with exactly what it is handed; [`Sandboxed`] does so through the
//! launcher `gpu-zone-sandbox`, which makes itself what a [`Spec`] says ([`run`]) and then
//! becomes the program. What the host lacks is reported, and decided by [`Policy`].

mod backend;
mod broker;
mod cgroup;
mod filter;
mod inside;
mod launch;
mod maker;
mod probe;
mod spec;
mod start;
mod stats;
mod users;

pub use backend::{Order, SandboxZone, Sandboxes};
pub use broker::{BrokerSandbox, MadeBy, confine_broker};
pub(crate) use cgroup::{end_groups, is_name};
pub use filter::{FilterError, programs};
pub use inside::{EXIT_FAILED, Runs, run};
pub use launch::{FIRST_INHERITED, Launch, LaunchError};
pub(crate) use maker::confine_maker;
pub use maker::{MakerSandbox, PrivilegesError, libraries};
pub use probe::probe;
pub use spec::{
    Demand, Feature, Filter, LIBRARIES, Limits, Missing, Mount, Policy, Report, Root, Spec,
    UserRanges,
};
pub use start::{Held, SandboxError, Sandboxed};
pub(crate) use stats::of as stats_of;
pub(crate) use users::sweep as sweep_claims;
