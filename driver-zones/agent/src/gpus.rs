//! The node's GPUs, through NVML.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gpuzone_core::{GpuUuid, Inventory};
use gpuzone_hw::{DiscoverError, Discovered, GpuUse, NvmlLibrary, OpenError, SysfsRoot};

use crate::config::{Config, DriverKind};

/// The GPUs and the library that knows them.
pub struct Gpus {
    /// None while it is opened anew.
    library: Mutex<Option<Arc<NvmlLibrary>>>,
    path: PathBuf,
    inventory: Inventory,
    driver_version: String,
    /// Those whose events are not heard.
    unheard: Mutex<BTreeSet<GpuUuid>>,
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
        let found = library.inventory(&SysfsRoot::default(), driver.backing());
        let Discovered { inventory, lost } = found.map_err(discover)?;
        for index in lost {
            tracing::error!(index, "the driver has lost this GPU; the node serves without it");
        }
        let driver_version = library.driver_version().map_err(discover)?;
        let (path, library) = (config.nvml_library.clone(), Mutex::new(Some(Arc::new(library))));
        Ok(Self { library, path, inventory, driver_version, unheard: Mutex::default() })
    }

    /// The library, unless it is being opened anew.
    pub(crate) fn library(&self) -> Option<Arc<NvmlLibrary>> {
        lock(&self.library).clone()
    }

    /// Lets go of the library. It is closed when nobody uses it any more.
    pub(crate) fn close(&self) {
        *lock(&self.library) = None;
    }

    /// Opens the library again.
    ///
    /// # Errors
    /// When its driver does not answer.
    pub(crate) fn open(&self) -> Result<(), OpenError> {
        let library = NvmlLibrary::open(&self.path)?;
        *lock(&self.library) = Some(Arc::new(library));
        Ok(())
    }

    /// Whether a GPU's events are heard.
    pub(crate) fn set_events(&self, gpu: GpuUuid, heard: bool) {
        let mut unheard = lock(&self.unheard);
        if heard {
            unheard.remove(&gpu);
        } else {
            unheard.insert(gpu);
        }
    }

    /// Whether all GPUs' events are heard.
    pub(crate) fn hears_events(&self) -> bool {
        lock(&self.unheard).is_empty()
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
            let Some(library) = self.library() else { return BTreeMap::new() };
            let uuids = self.inventory.gpus().iter().map(|gpu| gpu.uuid);
            let used = uuids.filter_map(|gpu| match library.gpu_use(gpu) {
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
