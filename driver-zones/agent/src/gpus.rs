//! The node's GPUs, through NVML.

use std::collections::BTreeMap;
use std::sync::Arc;

use gpuzone_core::{GpuUuid, Inventory};
use gpuzone_hw::{DiscoverError, GpuUse, NvmlLibrary, OpenError, SysfsRoot};

use crate::config::{Config, DriverKind};

/// The GPUs and the library that knows them.
pub struct Gpus {
    library: NvmlLibrary,
    inventory: Inventory,
    driver_version: String,
}

/// Why the GPUs are not known.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// The library is none, or its driver does not run.
    #[error("cannot open the {} driver's NVML library", .driver.as_str())]
    Open {
        /// Whose.
        driver: DriverKind,
        /// Why.
        source: OpenError,
    },
    /// The driver does not say what there is, or has GPUs of the other kind.
    #[error("the {} driver does not tell this node's GPUs", .driver.as_str())]
    Discover {
        /// Which.
        driver: DriverKind,
        /// Why.
        source: DiscoverError,
    },
}

impl Gpus {
    /// Finds the GPUs of the driver that the configuration names.
    ///
    /// # Errors
    /// When the library is not that driver's, or the driver does not answer.
    pub fn discover(config: &Config) -> Result<Self, DiscoveryError> {
        let driver = config.driver;
        let opened = NvmlLibrary::open(&config.nvml_library);
        let library = opened.map_err(|source| DiscoveryError::Open { driver, source })?;
        let discover = |source| DiscoveryError::Discover { driver, source };
        let inventory = library.inventory(&SysfsRoot::default(), driver.backing());
        let inventory = inventory.map_err(discover)?;
        let driver_version = library.driver_version().map_err(discover)?;
        Ok(Self { library, inventory, driver_version })
    }

    /// What there is.
    pub fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// The driver's version, as it says it.
    pub fn driver_version(&self) -> &str {
        &self.driver_version
    }

    /// What is in use now, of each GPU of which NVML says it.
    pub async fn used(self: Arc<Self>) -> BTreeMap<GpuUuid, GpuUse> {
        let ask = move || {
            let uuids = self.inventory.gpus().iter().map(|gpu| gpu.uuid);
            let used = uuids.filter_map(|gpu| match self.library.gpu_use(gpu) {
                Ok(used) => Some((gpu, used)),
                Err(error) => {
                    tracing::warn!(%gpu, %error, "its use is not known");
                    None
                }
            });
            used.collect()
        };
        // A driver that hangs keeps its own thread waiting and nobody else.
        tokio::task::spawn_blocking(ask).await.unwrap_or_default()
    }
}
