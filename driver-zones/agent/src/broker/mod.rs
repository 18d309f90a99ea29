//! The driver zone's broker, from the agent's side.

mod keeper;
mod link;
mod sandboxes;

pub use keeper::{BrokerError, BrokerKeeper};
pub use link::{BrokerLink, LinkError};
