//! The driver's library: opened by path, its functions looked up by name.

mod bounds;
mod devices;
mod table;

pub use bounds::LaunchBounds;
pub use devices::{Device, DeviceError, devices};
pub use table::{Driver, LoadError};
