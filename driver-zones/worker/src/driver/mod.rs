//! The driver's library: opened by path, its functions looked up by name.

mod bounds;
mod devices;
mod instances;
mod table;

pub use bounds::LaunchBounds;
pub use devices::{Device, DeviceError, devices};
pub use instances::show_instances;
pub use table::{Driver, LoadError};
