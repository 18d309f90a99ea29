//! The node's GPUs, through NVML.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gpuzone_core::{
    ComputeCapability, Exposure, Gpu, GpuBacking, GpuUuid, Inventory, InventoryError, PciAddress,
    VfToken,
};
use gpuzone_hw::pci::{PciFunction, SysfsError};
use gpuzone_hw::{
    DiscoverError, Discovered, GpuUse, LeftOut, MigListing, NotReady, NvmlLibrary, OpenError,
    SysfsRoot, VfioFunction,
};
use tokio::sync::watch;

use crate::config::{Config, DriverKind, PassthroughGpu, VgpuGpu};
use crate::passthrough::vgpus;
use crate::vf_token::{self, TokenError};

/// What to do where no token is named.
const NO_FILE: &str = "write it into a file of root's with mode 0400 and name that in its [[gpu]] as vf_token_file, or bind the physical one to its own driver";

/// The GPUs and the library that knows them.
pub struct Gpus {
    /// None while it is opened anew.
    library: Mutex<Option<Arc<NvmlLibrary>>>,
    path: PathBuf,
    inventory: Inventory,
    driver_version: String,
    passthrough: Vec<PassthroughGpu>,
    vgpus: Vec<VgpuGpu>,
    sysfs: SysfsRoot,
    /// Those whose events are not heard.
    unheard: Mutex<BTreeSet<GpuUuid>>,
    /// Those whose driver has not yet been asked for their events.
    unasked: watch::Sender<BTreeSet<GpuUuid>>,
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
    /// The configuration is about another one.
    #[error(
        "[[gpu]] {gpu} is at {said} as the configuration says, and at {found} as its driver says; correct the address"
    )]
    Elsewhere {
        /// Which.
        gpu: GpuUuid,
        /// The configuration's address.
        said: PciAddress,
        /// The driver's.
        found: PciAddress,
    },
    /// The configuration says that it is cut into instances, and it is not.
    #[error(
        "[[gpu]] {0} is to be handed over as MIG instances, and it is not in MIG mode; turn that on and make instances (nvidia-smi -mig 1, then nvidia-smi mig -cgi … -C), or remove its [[gpu]]"
    )]
    NotInMigMode(GpuUuid),
    /// With those of the configuration it makes no inventory.
    #[error(
        "the GPUs of the driver and of [[gpu]] together cannot be used; see whether nvidia-smi -L lists each once, and correct [[gpu]]"
    )]
    Inventory(#[from] InventoryError),
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
        let found = library.inventory(&config.sysfs, driver.backing());
        let Discovered { inventory, lost, mig } = found.map_err(discover)?;
        for index in lost {
            tracing::error!(index, "the driver has lost this GPU; the node serves without it");
        }
        let inventory = partitioned(with_passthrough(inventory, config)?, config, mig)?;
        let driver_version = library.driver_version().map_err(discover)?;
        let gpus = Self {
            library: Mutex::new(Some(Arc::new(library))),
            path: config.nvml_library.clone(),
            inventory,
            driver_version,
            passthrough: config.gpus.passthrough.clone(),
            vgpus: config.gpus.vgpu.clone(),
            sysfs: config.sysfs.clone(),
            unheard: Mutex::default(),
            unasked: watch::Sender::default(),
        };
        gpus.unasked.send_replace(gpus.of_driver().collect());
        Ok(gpus)
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
        self.unasked.send_if_modified(|unasked| unasked.remove(&gpu));
    }

    /// Waits until each GPU's driver was asked for its events once, whatever it said.
    pub(crate) async fn asked_for_events(&self) {
        // The sender is here, too, so that it cannot be gone.
        let _ = self.unasked.subscribe().wait_for(BTreeSet::is_empty).await;
    }

    /// Whether all GPUs' events are heard.
    pub(crate) fn hears_events(&self) -> bool {
        lock(&self.unheard).is_empty()
    }

    /// What there is.
    pub fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// The GPUs that our driver is to answer for. The others are on another one.
    pub(crate) fn of_driver(&self) -> impl Iterator<Item = GpuUuid> {
        let uuids = self.inventory.gpus().iter().map(|gpu| gpu.uuid);
        uuids.filter(|gpu| self.inventory.exposure(*gpu).has_worker())
    }

    /// The driver's version, as it says it.
    pub fn driver_version(&self) -> &str {
        &self.driver_version
    }

    /// The GPUs that are handed over by passthrough, and the vGPUs; and whether each can be now.
    pub fn vfio(&self) -> BTreeMap<GpuUuid, Result<VfioFunction, NotReady>> {
        let addresses: BTreeSet<PciAddress> =
            self.passthrough.iter().map(|gpu| gpu.address).collect();
        let look = |gpu: &PassthroughGpu| (gpu.uuid, self.whole(gpu, &addresses));
        let look_at = |vgpu: vgpus::Wanted<'_>| (vgpu.uuid(), vgpu.ready(&self.sysfs, &addresses));
        let vgpus = vgpus::all(&self.vgpus).map(look_at);
        self.passthrough.iter().map(look).chain(vgpus).collect()
    }

    fn whole(
        &self,
        gpu: &PassthroughGpu,
        others: &BTreeSet<PciAddress>,
    ) -> Result<VfioFunction, NotReady> {
        let ready = self.sysfs.vfio(gpu.address, others)?;
        if gpu.token_file.is_none() {
            self.sysfs.without_token(gpu.address, NO_FILE)?;
        }
        Ok(ready)
    }

    /// Why no pod gets a GPU that a program on this node may well get: what starts pods' VMs opens devices
    /// without tokens, and would fail late and say little.
    pub(crate) fn kept_from_pods(&self, gpu: GpuUuid) -> Option<String> {
        let PassthroughGpu { address, token_file, .. } =
            self.passthrough.iter().find(|known| known.uuid == gpu)?;
        token_file.as_ref()?;
        Some(format!(
            "{address} has a vf_token_file, for it opens with a token, and nothing hands a token to a pod's VM; use it by `gpu-zone run --zone-kind microvm --exposure passthrough`, or bind its physical function to its own driver and take vf_token_file out of its [[gpu]]"
        ))
    }

    /// The token that a GPU by passthrough is opened with, where it has one.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn token(&self, gpu: GpuUuid) -> Result<Option<VfToken>, TokenError> {
        let found = self.passthrough.iter().find(|known| known.uuid == gpu);
        let file = found.and_then(|gpu| gpu.token_file.as_deref());
        file.map(vf_token::read).transpose()
    }

    /// What the machine calls a vGPU.
    pub(crate) fn vgpu_id(&self, vgpu: GpuUuid) -> String {
        let found = vgpus::find(&self.vgpus, vgpu);
        found.map_or_else(|| vgpu.to_string(), |found| found.id(&self.sysfs))
    }

    /// The functions of GPUs and of what goes with them, as sysfs shows them now.
    ///
    /// # Errors
    /// When sysfs cannot be read.
    pub(crate) fn cards(&self) -> Result<Vec<PciFunction>, SysfsError> {
        self.sysfs.cards()
    }

    /// What is in use now, of each GPU of which NVML says it.
    pub async fn used(self: Arc<Self>) -> BTreeMap<GpuUuid, GpuUse> {
        let ask = move || {
            let Some(library) = self.library() else { return BTreeMap::new() };
            let used = self.of_driver().filter_map(|gpu| match library.gpu_use(gpu) {
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

/// The driver's GPUs, and those of the configuration that it does not see because they are on
/// another driver.
fn with_passthrough(inventory: Inventory, config: &Config) -> Result<Inventory, DiscoveryError> {
    let mut gpus = inventory.gpus().to_vec();
    let cut = config.gpus.vgpu.iter().map(|cut| &cut.gpu);
    for wanted in config.gpus.passthrough.iter().chain(cut) {
        match inventory.gpu(wanted.uuid) {
            Some(found) if found.pci != wanted.address => {
                let (gpu, said, found) = (wanted.uuid, wanted.address, found.pci);
                return Err(DiscoveryError::Elsewhere { gpu, said, found });
            }
            Some(_) => {}
            None => {
                let index = gpus.iter().map(|gpu| gpu.index.saturating_add(1)).max();
                let index = index.unwrap_or_default();
                gpus.push(described(wanted, index, config));
            }
        }
    }
    let whole = config.gpus.passthrough.iter().map(|gpu| (gpu.uuid, Exposure::Passthrough));
    let cut = config.gpus.vgpu.iter().map(|cut| (cut.gpu.uuid, Exposure::Vgpu));
    let inventory = Inventory::new(gpus)?.exposing(whole.chain(cut).collect());
    let vgpus = vgpus::all(&config.gpus.vgpu).map(|vgpu| vgpu.vgpu());
    Ok(inventory.with_vgpus(vgpus.collect())?)
}

/// The same, with GPUs in MIG mode as their instances.
fn partitioned(
    inventory: Inventory,
    config: &Config,
    mig: MigListing,
) -> Result<Inventory, DiscoveryError> {
    if let Some(gpu) = config.gpus.mig.iter().find(|gpu| !mig.gpus.contains(gpu)) {
        return Err(DiscoveryError::NotInMigMode(*gpu));
    }
    for LeftOut { gpu, index, why } in &mig.left_out {
        tracing::error!(%gpu, index, why, "a MIG instance is not handed over");
    }
    Ok(inventory.partitioned(&mig.gpus, mig.instances)?)
}

fn described(wanted: &PassthroughGpu, index: u32, config: &Config) -> Gpu {
    let backing: GpuBacking = config.driver.backing();
    Gpu {
        uuid: wanted.uuid,
        index,
        name: wanted.model.clone(),
        pci: wanted.address,
        memory: wanted.memory,
        // Its driver is the tenant's, and says it there.
        compute_capability: ComputeCapability { major: 0, minor: 0 },
        numa_node: config.sysfs.numa_node(wanted.address),
        nvlink_peers: BTreeSet::new(),
        mig_capable: false,
        backing,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
