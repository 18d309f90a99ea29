//! GPUs that are handed over whole, where the configuration leaves that to the agent: bound to
//! VFIO at its start, and cleared between two tenants. And those that are handed over as vGPUs, or as
//! MIG instances that the agent makes.

mod instances;
pub(crate) mod vgpus;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gpuzone_core::{GpuUuid, PciAddress, Timestamp};
use gpuzone_hw::actions::{
    Change, Devices, JournalError, KernelFiles, Places, Recovery, SimulatedKernel, Write, Writes,
};
use gpuzone_hw::alias::ModuleAliases;
use gpuzone_hw::turnover::{Between, BetweenError, TurnoverRecord, between_tenants};
use gpuzone_hw::vfio::{DevRoot, Interface, Opening, open_when_free};
use gpuzone_hw::{MigDriver, MigError, MigLayout, MigStep, ProcRoot, SysfsRoot};
use uuid::Uuid;

use crate::config::{Config, DriverKind, PassthroughGpu, VgpuGpu};
use crate::errors::{internal, sentence};
use crate::usage::now;
use crate::vf_token;

/// The journal of what was done to devices, beside that of leases.
const JOURNAL: &str = "devices";
/// How long a VM that was killed may still have its device: the kernel gives back all of its memory first,
/// page by page.
const FREE_WITHIN: Duration = Duration::from_secs(60);

/// Who acts on what is written to sysfs: the kernel, or a stand-in for a folder of simulated GPUs.
enum Files {
    Kernel(KernelFiles),
    Simulated(SimulatedKernel),
}

/// The node's files, and its driver's NVML, which cuts GPUs into MIG instances.
struct Node {
    files: Files,
    driver: MigDriver,
}

impl Node {
    fn of(config: &Config) -> Self {
        let files = match config.driver {
            // The configuration is refused without a folder of its own for sysfs.
            DriverKind::Simulated if !config.sysfs.is_the_kernels() => {
                Files::Simulated(SimulatedKernel::new(config.sysfs.0.clone()))
            }
            DriverKind::Simulated | DriverKind::Nvidia => Files::Kernel(KernelFiles),
        };
        Self { files, driver: MigDriver(config.nvml_library.clone()) }
    }
}

impl Writes for Node {
    fn write(&mut self, write: &Write) -> io::Result<()> {
        match &mut self.files {
            Files::Kernel(files) => files.write(write),
            Files::Simulated(kernel) => kernel.write(write),
        }
    }

    fn layout(&mut self, gpu: GpuUuid) -> Result<MigLayout, MigError> {
        self.driver.layout(gpu)
    }

    fn cut(&mut self, step: &MigStep) -> Result<(), MigError> {
        self.driver.cut(step)
    }
}

/// How a device was cleared between two tenants.
pub(crate) enum Turned {
    /// Reset, and looked at.
    Reset(TurnoverRecord),
    /// A vGPU, taken away and made anew; its memory is its driver's to clear.
    Remade {
        /// When that began.
        began: Timestamp,
        /// When it was there again.
        ended: Timestamp,
    },
}

/// The devices that are the agent's to bind, to cut and to reset.
pub struct Passthrough {
    devices: Arc<Mutex<Devices<Node>>>,
    gpus: Vec<PassthroughGpu>,
    vgpus: Vec<VgpuGpu>,
    sysfs: SysfsRoot,
}

impl Passthrough {
    /// Brings to an end what an earlier agent left half done, binds what is to be bound, and gives
    /// back what is not any more. A GPU that cannot be bound is not ready, and says so in each
    /// listing; the others serve.
    ///
    /// # Errors
    /// When it is not known what was done to devices.
    pub fn start(config: &Config) -> Result<Option<Self>, JournalError> {
        let path = config.directories.state.join(JOURNAL);
        let (gpus, vgpus) = (&config.gpus.passthrough, &config.gpus.vgpu);
        let wanted = gpus.iter().any(|gpu| gpu.bind || gpu.reset.is_some());
        let cut = &config.gpus.instances;
        if !wanted && vgpus.is_empty() && cut.is_empty() && !path.exists() {
            return Ok(None);
        }
        let places = Places {
            sysfs: config.sysfs.clone(),
            proc: ProcRoot::default(),
            aliases: aliases(&config.sysfs),
        };
        let (mut devices, recovered) = Devices::open(places, &path, Node::of(config))?;
        for was in recovered {
            match was.now {
                Recovery::Stuck(reason) => {
                    tracing::error!(
                        what = was.what,
                        reason,
                        "a device is neither as it was nor as it should be; it serves nobody"
                    );
                }
                now @ (Recovery::Undone | Recovery::Finished) => {
                    tracing::warn!(what = was.what, ?now, "an earlier agent was interrupted");
                }
            }
        }
        give_back(&mut devices, gpus, &vgpus::bound(&config.sysfs, vgpus));
        vgpus::give_back(&mut devices, vgpus);
        instances::give_back(&mut devices, cut);
        vgpus::make_all(&mut devices, vgpus);
        for gpu in gpus.iter().filter(|gpu| gpu.bind) {
            match devices.bind(gpu.address, &BTreeSet::new()) {
                Ok(bound) if bound.changed => {
                    tracing::info!(gpu = %gpu.uuid, address = %gpu.address, driver = bound.driver, with = ?bound.with, "bound");
                }
                Ok(_) => {}
                Err(error) => {
                    let reason = sentence(&error);
                    tracing::error!(gpu = %gpu.uuid, reason, "it cannot be bound to VFIO");
                }
            }
        }
        // Last, for the driver that does it has its GPUs open meanwhile.
        instances::make_all(&mut devices, cut);
        let devices = Arc::new(Mutex::new(devices));
        let (gpus, vgpus, sysfs) = (gpus.clone(), vgpus.clone(), config.sysfs.clone());
        Ok(Some(Self { devices, gpus, vgpus, sysfs }))
    }

    /// Whether a GPU is the agent's to clear between tenants.
    pub fn resets(&self, gpu: GpuUuid) -> bool {
        let vgpu = vgpus::find(&self.vgpus, gpu);
        self.opening(gpu).is_some() || vgpu.is_some_and(|vgpu| vgpu.of.gpu.reset.is_some())
    }

    fn opening(&self, gpu: GpuUuid) -> Option<(PciAddress, Interface)> {
        let found = self.gpus.iter().find(|known| known.uuid == gpu)?;
        Some((found.address, found.reset?))
    }

    fn token_file(&self, gpu: GpuUuid) -> Option<PathBuf> {
        self.gpus.iter().find(|known| known.uuid == gpu)?.token_file.clone()
    }

    /// Resets a GPU and looks whether what was in its memory is gone, or makes a vGPU anew; `None`
    /// when that is not left to the agent. An error is as good as a memory that was kept: nothing
    /// shows that it is clear.
    pub(crate) async fn turn_over(&self, gpu: GpuUuid) -> Option<Result<Turned, String>> {
        let Some(vgpu) = vgpus::find(&self.vgpus, gpu) else {
            let (opening, token_file) = (self.opening(gpu)?, self.token_file(gpu));
            return Some(self.reset(opening, token_file).await.map(Turned::Reset));
        };
        let opening = vgpu.opening(&self.sysfs, vgpu.of.gpu.reset?);
        Some(match opening {
            Ok(Some(opening)) => self.reset(opening, None).await.map(Turned::Reset),
            Ok(None) => self.remake(gpu).await,
            Err(error) => Err(sentence(&error)),
        })
    }

    /// Takes a vGPU away and makes it anew.
    async fn remake(&self, vgpu: GpuUuid) -> Result<Turned, String> {
        let (devices, vgpus, began) = (Arc::clone(&self.devices), self.vgpus.clone(), now());
        let remake = move || {
            let mut devices = devices.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(vgpu) = vgpus::find(&vgpus, vgpu) else { return Ok(()) };
            vgpu.remake(&mut devices).map_err(|error| sentence(&error))
        };
        let remade = tokio::task::spawn_blocking(remake).await;
        remade.map_err(|error| internal(error.to_string()).message)??;
        Ok(Turned::Remade { began, ended: now() })
    }

    async fn reset(
        &self,
        (address, interface): (PciAddress, Interface),
        token_file: Option<PathBuf>,
    ) -> Result<TurnoverRecord, String> {
        let token = token_file.map(|path| vf_token::read(&path)).transpose();
        let token = token.map_err(|error| sentence(&error))?;
        let devices = Arc::clone(&self.devices);
        let sysfs = self.sysfs.clone();
        let turn = move || {
            let opening = Opening { address, interface, token };
            // Before others wait for this one.
            let device = open_when_free(&sysfs, &DevRoot::default(), &opening, FREE_WITHIN);
            let device = device.map_err(BetweenError::from)?;
            // Its random half, so that no tenant can have left that there.
            let (_, seed) = Uuid::now_v7().as_u64_pair();
            let mut devices = devices.lock().unwrap_or_else(PoisonError::into_inner);
            let between = Between::default();
            between_tenants(&mut devices, device, &between, seed)
        };
        // A device that hangs keeps its own thread waiting and nobody else.
        let turned = tokio::task::spawn_blocking(turn).await;
        match turned {
            Ok(Ok(record)) => Ok(record),
            Ok(Err(error)) => Err(sentence(&error)),
            Err(error) => Err(internal(error.to_string()).message),
        }
    }
}

/// The running kernel's list of modules. What stands for sysfs in a test has none beside it.
fn aliases(sysfs: &SysfsRoot) -> ModuleAliases {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let path = Path::new("/lib/modules").join(release.trim()).join("modules.alias");
    if !sysfs.is_the_kernels() {
        return ModuleAliases::default();
    }
    ModuleAliases::load(&path).unwrap_or_else(|error| {
        tracing::warn!(%error, "vendors' drivers for VFIO are not known");
        ModuleAliases::default()
    })
}

/// What was bound here and is not to be any more.
fn give_back<W: Writes>(
    devices: &mut Devices<W>,
    gpus: &[PassthroughGpu],
    vgpus: &BTreeSet<PciAddress>,
) {
    let whole = gpus.iter().filter(|gpu| gpu.bind).map(|gpu| gpu.address);
    let wanted: BTreeSet<PciAddress> = whole.chain(vgpus.iter().copied()).collect();
    let bound = devices.kept().iter().filter_map(|action| match action.changes.first()? {
        Change::Binding { address, .. } => Some(*address),
        Change::Functions { .. }
        | Change::Mdev { .. }
        | Change::Vgpu { .. }
        | Change::GpuInstance { .. }
        | Change::ComputeInstance { .. }
        | Change::ResetOrder { .. } => None,
    });
    let unwanted: Vec<PciAddress> = bound.filter(|address| !wanted.contains(address)).collect();
    for address in unwanted {
        match devices.release(address) {
            Ok(()) => tracing::info!(%address, "given back to its own driver"),
            Err(error) => {
                let reason = sentence(&error);
                tracing::error!(%address, reason, "it cannot be given back to its own driver");
            }
        }
    }
}
