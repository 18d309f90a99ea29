//! Zones that are sandboxed process groups on the host. Each process of one is started by a
//! [`Launch`]: a session of its own, nothing inherited but what it is handed.

mod launch;

pub use launch::{FIRST_INHERITED, Launch, LaunchError};
