use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use gpuzone_core::MemoryBytes;

use super::activity::{self, percent};
use super::faults::{self, Condition, FaultWatch, Faults};
use super::file::{Locked, Opened, StateFile, open_private};
use super::instances::InstanceTable;
use super::processes::{ProcessTable, Row, is_claimed};
use super::space::Space;
use super::{Attachment, DeviceMap, StateError, base_address};
use crate::{Config, GpuConfig, MigConfig};

/// The simulated node as one process sees it. Looking at it registers nothing.
pub struct SimulatedNode {
    config: Config,
    gpus: Vec<SimulatedGpu>,
    /// Of those in MIG mode.
    pub(super) tables: Vec<Option<InstanceTable>>,
}

/// One simulated GPU as one process sees it.
pub struct SimulatedGpu {
    config: GpuConfig,
    /// In the order of `config.mig`.
    instances: Vec<SimulatedGpu>,
    base: u64,
    pub(super) file: StateFile,
    memory_file: std::path::PathBuf,
    /// Also keeps threads of this process apart, which share the file's lock.
    space: Mutex<Space>,
    faults: Mutex<Faults>,
}

/// How much of a GPU's memory is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryUse {
    /// Charged to processes.
    pub used: MemoryBytes,
    /// All there is.
    pub total: MemoryBytes,
}

/// A process that uses a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuProcess {
    /// Its identifier as it knows it itself.
    pub pid: u32,
    /// Memory charged to it.
    pub used: MemoryBytes,
    /// Contexts that it has.
    pub contexts: u32,
    /// Nanoseconds in which it kept the GPU busy.
    pub busy_ns: u64,
    /// The part of the last second in which it did, in per cent.
    pub utilization_percent: u32,
}

impl SimulatedNode {
    /// Opens the state of the node, making it if it is not there.
    ///
    /// # Errors
    /// When the folder or a file of it cannot be used, or is not ours.
    pub fn open(mut config: Config) -> Result<Self, StateError> {
        prepare_folder(&config.state_dir)?;
        let mut tables = Vec::new();
        for (index, gpu) in config.gpus.iter_mut().enumerate() {
            let table = InstanceTable::open(&config.state_dir, index, gpu)?;
            tables.push(table.map(|(table, now)| {
                gpu.mig = Some(now);
                table
            }));
        }
        let open = |(index, gpu)| SimulatedGpu::open(&config.state_dir, index, gpu);
        let gpus = config.gpus.iter().enumerate().map(open).collect::<Result<_, _>>()?;
        Ok(Self { config, gpus, tables })
    }

    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Its GPUs, by index.
    #[must_use]
    pub fn gpus(&self) -> &[SimulatedGpu] {
        &self.gpus
    }
}

fn prepare_folder(path: &Path) -> Result<(), StateError> {
    let failed = |source| StateError::Folder { path: path.to_owned(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
    let metadata = std::fs::symlink_metadata(path).map_err(failed)?;
    // In /dev/shm anybody could have made it first; root may look at everybody's.
    let own = metadata.uid() == rustix::process::geteuid().as_raw();
    if metadata.is_dir() && (own || rustix::process::geteuid().is_root()) {
        Ok(())
    } else {
        Err(StateError::ForeignFolder { path: path.to_owned() })
    }
}

impl SimulatedGpu {
    fn open(folder: &Path, index: usize, config: &GpuConfig) -> Result<Self, StateError> {
        let mut gpu = Self::part(folder, index, &format!("gpu-{index}"), config.clone())?;
        for mig in config.mig.iter().flatten() {
            gpu.instances.push(Self::instance(folder, index, config, mig)?);
        }
        Ok(gpu)
    }

    pub(super) fn instance(
        folder: &Path,
        index: usize,
        whole: &GpuConfig,
        mig: &MigConfig,
    ) -> Result<Self, StateError> {
        let name = format!("gpu-{index}.mig-{}", mig.gpu_instance.saturating_sub(1));
        Self::part(folder, index, &name, whole.instance(mig))
    }

    /// A GPU, or an instance of one: what happens to its GPU happens to it. A process sees one
    /// instance of all, so theirs need no addresses of their own.
    fn part(
        folder: &Path,
        index: usize,
        name: &str,
        config: GpuConfig,
    ) -> Result<Self, StateError> {
        let gpu = Self {
            base: base_address(index),
            file: StateFile::open(&folder.join(format!("{name}.state")))?,
            memory_file: folder.join(format!("{name}.memory")),
            space: Mutex::new(Space::new(config.memory)),
            faults: Mutex::new(Faults::open(folder.join(format!("gpu-{index}.faults")))?),
            instances: Vec::new(),
            config,
        };
        gpu.check()?;
        Ok(gpu)
    }

    /// Its GPU instances, in the order of its configuration's `mig`.
    #[must_use]
    pub fn instances(&self) -> &[Self] {
        &self.instances
    }

    /// Those with a compute instance: what programs can run on.
    pub fn mig_devices(&self) -> impl Iterator<Item = &Self> {
        let parts = self.instances.iter().zip(self.config.mig.iter().flatten());
        parts.filter(|(_, mig)| mig.compute_slices > 0).map(|(part, _)| part)
    }

    fn check(&self) -> Result<(), StateError> {
        let file = self.file.lock()?;
        let Opened::OtherMemory(found) = file.check(self.config.memory)? else {
            return Ok(());
        };
        for (row, _) in ProcessTable::read(&file)?.used() {
            if is_claimed(&file, row)? {
                let path = self.file.path().to_owned();
                let configured = self.config.memory;
                return Err(StateError::MemoryChanged { path, found, configured });
            }
        }
        file.start_over(self.config.memory)
    }

    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> &GpuConfig {
        &self.config
    }

    /// How it is, as far as its driver would know.
    ///
    /// # Errors
    /// When the shared state cannot be used.
    pub fn condition(&self) -> Result<Condition, StateError> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).condition()
    }

    /// Has its driver report an error.
    ///
    /// # Errors
    /// When the shared state cannot be used.
    pub fn report_xid(&self, xid: u64) -> Result<(), StateError> {
        let faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        let path = faults.path();
        faults::report(path, xid).map_err(|source| StateError::Io { path: path.to_owned(), source })
    }

    /// Has `watch` tell what happens to it from now on.
    ///
    /// # Errors
    /// When the shared state cannot be used.
    pub fn watch_faults<K: Clone>(
        &self,
        watch: &mut FaultWatch<K>,
        key: K,
    ) -> Result<(), StateError> {
        let faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        watch.add(key, faults.path())
    }

    /// Registers this process as a user, and maps the memory.
    ///
    /// # Errors
    /// When the shared state cannot be used, or has no room for another process.
    pub fn attach(&self) -> Result<Attachment<'_>, StateError> {
        Attachment::new(self)
    }

    pub(super) fn map(&self) -> Result<DeviceMap, StateError> {
        let io = |source| StateError::Io { path: self.memory_file.clone(), source };
        let file = open_private(&self.memory_file)?;
        let wanted = self.config.memory.get();
        // Only ever longer: another process may have the old end mapped.
        if file.metadata().map_err(io)?.len() < wanted {
            file.set_len(wanted).map_err(io)?;
        }
        DeviceMap::new(file, self.base, self.config.memory)
    }

    pub(super) fn base(&self) -> u64 {
        self.base
    }

    /// Locks the state, gives back what dead processes held, and brings the copy of the
    /// allocation table up to date.
    pub(super) fn enter(&self) -> Result<Entered<'_>, StateError> {
        let mut space = self.space.lock().unwrap_or_else(PoisonError::into_inner);
        let file = self.file.lock()?;
        let mut processes = ProcessTable::read(&file)?;
        space.refresh(&file)?;
        for (row, _) in processes.used().collect::<Vec<_>>() {
            if !is_claimed(&file, row)? {
                space.free_all(&file, row)?;
                processes.set(&file, row, None)?;
            }
        }
        // A process may have died while it gave its memory back.
        let orphans = space.owners().filter(|owner| processes.get(*owner).is_none());
        for orphan in orphans.collect::<BTreeSet<_>>() {
            space.free_all(&file, orphan)?;
        }
        Ok(Entered { file, processes, space })
    }

    /// How much of its memory is in use, by all processes.
    ///
    /// # Errors
    /// When the shared state cannot be used.
    pub fn memory_use(&self) -> Result<MemoryUse, StateError> {
        let mut used = self.enter()?.space.used();
        for instance in &self.instances {
            used = used.saturating_add(instance.memory_use()?.used.get());
        }
        Ok(MemoryUse { used: MemoryBytes::saturating(used), total: self.config.memory })
    }

    /// The processes that use it, by identifier; one that attached twice is one.
    ///
    /// # Errors
    /// When the shared state cannot be used.
    pub fn processes(&self) -> Result<Vec<GpuProcess>, StateError> {
        let entered = self.enter()?;
        let mut by_pid = BTreeMap::<u32, GpuProcess>::new();
        for (row, process) in entered.processes.used() {
            let sample = activity::sample(&entered.file, row, true)?;
            let used = entered.space.used_by(row);
            let pid = process.pid;
            let sum = by_pid.entry(pid).or_insert(GpuProcess {
                pid,
                used: MemoryBytes::ZERO,
                contexts: 0,
                busy_ns: 0,
                utilization_percent: 0,
            });
            sum.used = MemoryBytes::saturating(sum.used.get().saturating_add(used));
            sum.contexts = sum.contexts.saturating_add(process.contexts);
            sum.busy_ns = sum.busy_ns.saturating_add(sample.total_ns);
            let utilization = percent(sample.last_second_ns);
            sum.utilization_percent = sum.utilization_percent.saturating_add(utilization).min(100);
        }
        Ok(by_pid.into_values().collect())
    }

    /// The part of the last second in which it executed something, in per cent: 0 to 100.
    /// Processes that overlapped count twice, as the host's cores were shared between them.
    ///
    /// # Errors
    /// When the shared state cannot be used.
    pub fn utilization_percent(&self) -> Result<u32, StateError> {
        let entered = self.enter()?;
        let mut busy: u64 = 0;
        for row in Row::all() {
            let alive = entered.processes.get(row).is_some();
            let sample = activity::sample(&entered.file, row, alive)?;
            busy = busy.saturating_add(sample.last_second_ns);
        }
        Ok(percent(busy))
    }
}

/// The shared tables, locked and up to date.
pub(super) struct Entered<'a> {
    pub(super) file: Locked<'a>,
    pub(super) processes: ProcessTable,
    pub(super) space: MutexGuard<'a, Space>,
}
