//! The agent's configuration: a TOML file, flags over it, and what follows from both.

mod boot_file;
mod file;
mod gpus;
mod health;
mod libraries;
mod microvm;
mod sandbox;
mod zone;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gpuzone_api::Directories;
use gpuzone_core::{GpuBacking, HealthTerms, TenantId, TenantQuota};
use gpuzone_hw::SysfsRoot;
use gpuzone_wire::control::Caps;
use gpuzone_wire::turn::FairTime;
use serde::Deserialize;

pub use boot_file::BootFileError;
pub use gpus::{CutBy, GpuTableError, GpuTables, PassthroughGpu, VgpuGpu, WantedInstance};
pub use libraries::MissingFile;
pub use microvm::{InMicroVm, MicroVmTable, WorkloadVm};
pub use sandbox::ZonePolicy;
pub use zone::{DeviceMemory, ZoneLimits, ZoneUsers};

use crate::leases::ScrubSettings;
use crate::metrics::Listen;

/// The variable that tells the simulated GPU's libraries where their configuration is.
pub const SIM_CONFIG_VARIABLE: &str = "GPUZONE_SIM_CONFIG";

/// Which driver a node's GPUs have. There is no default: a simulated GPU is only ever there
/// because somebody named it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DriverKind {
    /// The simulated GPU's libraries.
    Simulated,
    /// NVIDIA's.
    Nvidia,
}

/// Who may have how much. Whoever is not named here, with no default either, gets nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quotas {
    /// Of those who are not named.
    pub default: Option<TenantQuota>,
    /// Of those who are.
    pub tenants: BTreeMap<TenantId, TenantQuota>,
}

/// What the command line says; it wins over the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// The driver.
    pub driver: Option<DriverKind>,
    /// The directory of what outlives a reboot.
    pub state_dir: Option<PathBuf>,
    /// The directory of what does not.
    pub run_dir: Option<PathBuf>,
    /// Whether every tenant that has no quota may have whatever is free.
    pub open: bool,
}

/// All that an agent is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where its files are.
    pub directories: Directories,
    /// Which driver its GPUs have.
    pub driver: DriverKind,
    /// `libcuda.so.1` of that driver.
    pub cuda_library: PathBuf,
    /// `libnvidia-ml.so.1` of that driver.
    pub nvml_library: PathBuf,
    /// The simulated node's description; without one the libraries' built-in default.
    pub simulated_config: Option<PathBuf>,
    /// The library that programs get as their `libcuda.so.1`.
    pub shim_library: PathBuf,
    /// The library that programs get as their `libnvidia-ml.so.1`.
    pub shim_nvml_library: PathBuf,
    /// The broker's executable.
    pub broker: PathBuf,
    /// The worker's executable.
    pub worker: PathBuf,
    /// The sandbox launcher's executable; without it, nothing is sandboxed.
    pub launcher: Option<PathBuf>,
    /// What zones must have.
    pub zone: ZonePolicy,
    /// How often usage is written to the ledger: what a crash can lose at most.
    pub flush: Duration,
    /// Who may have how much.
    pub quotas: Quotas,
    /// Caps on what one program may make its worker hold.
    pub caps: Caps,
    /// How time is shared.
    pub fair_time: FairTime,
    /// How memory is cleared when a lease ends.
    pub scrub: ScrubSettings,
    /// When a GPU serves nobody new, and when it does again.
    pub health: HealthTerms,
    /// Where metrics are served, if anywhere.
    pub metrics: Option<Listen>,
    /// The GPUs that are handed over otherwise than mediated.
    pub gpus: GpuTables,
    /// Where the kernel shows devices.
    pub sysfs: SysfsRoot,
}

/// Why a configuration is not used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}; check that it is there and may be read, or name another with --config", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A key that does not exist.
    #[error("{}{}: there is no key '{key}'{}", .path.display(), at(*.line), or_nearest(.nearest))]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: Option<usize>,
        /// What stands there.
        key: String,
        /// The key that comes nearest to it.
        nearest: Option<String>,
    },
    /// No TOML, or a value that does not fit its key.
    #[error("{}{}: {message}", .path.display(), at(*.line))]
    Value {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: Option<usize>,
        /// What is wrong.
        message: String,
    },
    /// Nobody said which driver.
    #[error(
        "no driver is chosen; write kind = \"nvidia\" or kind = \"simulated\" under [driver] in the configuration, or give --driver"
    )]
    NoDriver,
    /// A `[[gpu]]` that makes no sense.
    #[error(transparent)]
    Gpu(#[from] GpuTableError),
    /// Something that the agent needs is not where it was looked for.
    #[error(transparent)]
    Missing(#[from] MissingFile),
    /// The running program's own path is not known.
    #[error(
        "cannot tell where this program is, and so not where its libraries are; see that /proc is mounted, or name each library in the configuration"
    )]
    Executable(#[source] io::Error),
    /// A microVM's kernel or image.
    #[error(transparent)]
    BootFile(#[from] BootFileError),
    /// A directory that cannot be made absolute.
    #[error("cannot tell the whole path of {}; write it from / on", .0.display())]
    Directory(PathBuf, #[source] io::Error),
}

/// Where images of microVMs are unpacked, in the state folder.
const IMAGES: &str = "images";

fn at(line: Option<usize>) -> String {
    line.map_or_else(String::new, |line| format!(", line {line}"))
}

fn or_nearest(nearest: &Option<String>) -> String {
    match nearest {
        Some(nearest) => format!("; did you mean '{nearest}'?"),
        None => String::new(),
    }
}

impl DriverKind {
    /// Its name, as the configuration has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Simulated => "simulated",
            Self::Nvidia => "nvidia",
        }
    }

    /// What its GPUs are.
    pub const fn backing(self) -> GpuBacking {
        match self {
            Self::Simulated => GpuBacking::Simulated,
            Self::Nvidia => GpuBacking::Physical,
        }
    }
}

impl Quotas {
    /// What `tenant` may hold; `None` is nothing.
    pub fn of(&self, tenant: &TenantId) -> Option<&TenantQuota> {
        self.tenants.get(tenant).or(self.default.as_ref())
    }
}

impl Config {
    /// The configuration of the file at `path`, or of no file, with `overrides`.
    ///
    /// # Errors
    /// When the file is wrong, no driver is chosen, or a library or program is missing.
    pub fn load(path: Option<&Path>, overrides: &Overrides) -> Result<Self, ConfigError> {
        let file = match path {
            Some(path) => file::read(path)?,
            None => file::File::default(),
        };
        // What the file names is relative to the file, not to wherever the agent is started.
        let base = path.and_then(Path::parent).unwrap_or(Path::new("")).to_owned();
        let whole = |path: &Path| {
            std::path::absolute(path)
                .map_err(|source| ConfigError::Directory(path.to_owned(), source))
        };
        let beside_file =
            |path: Option<PathBuf>| path.map(|path| whole(&base.join(path))).transpose();
        let driver = overrides.driver.or(file.driver.kind).ok_or(ConfigError::NoDriver)?;
        let defaults = Directories::for_user();
        let directory =
            |flag: &Option<PathBuf>, named: Option<PathBuf>, default: PathBuf| match flag {
                Some(flag) => whole(flag),
                None => Ok(beside_file(named)?.unwrap_or(default)),
            };
        let directories = Directories {
            state: directory(&overrides.state_dir, file.node.state_dir, defaults.state)?,
            run: directory(&overrides.run_dir, file.node.run_dir, defaults.run)?,
        };
        let search = libraries::Search::of_this_program().map_err(ConfigError::Executable)?;
        let mut quotas = Quotas { default: file.default, tenants: file.tenants };
        if overrides.open && quotas.default.is_none() {
            quotas.default = Some(TenantQuota { latency_critical: true, ..TenantQuota::default() });
        }
        let simulated_config = match driver {
            DriverKind::Simulated => match beside_file(file.driver.simulated_config)? {
                Some(named) => Some(named),
                None => std::env::var_os(SIM_CONFIG_VARIABLE)
                    .map(|path| whole(Path::new(&path)))
                    .transpose()?,
            },
            DriverKind::Nvidia => None,
        };
        let mut zone = file.zone;
        let workload = zone.workload_microvm.as_mut().map(WorkloadVm::table);
        let images = directories.state.join(IMAGES);
        for table in zone.microvm.as_mut().into_iter().chain(workload) {
            *table = table.clone().beside(&base, &images)?;
        }
        let sysfs = beside_file(file.node.sysfs)?;
        let gpus = gpus::exposed(file.gpus, driver, sysfs.is_some())?;
        let listen = match file.metrics.listen {
            Some(Listen::Unix(path)) => beside_file(Some(path))?.map(Listen::Unix),
            other => other,
        };
        let launcher = match search.launcher(beside_file(file.binaries.sandbox.clone())?) {
            Ok(launcher) => Some(launcher),
            // Named, or needed: then it has to be there.
            Err(error) if file.binaries.sandbox.is_some() || zone.requires_any() => {
                return Err(error.into());
            }
            Err(error) => {
                tracing::warn!(%error, "workers run without a sandbox, which [zone] policy allows");
                None
            }
        };
        let shim_library = search.shim(beside_file(file.shim.library)?)?;
        Ok(Self {
            directories,
            driver,
            cuda_library: search.cuda(driver, beside_file(file.driver.cuda_library)?)?,
            nvml_library: search.nvml(driver, beside_file(file.driver.nvml_library)?)?,
            simulated_config,
            shim_nvml_library: search
                .shim_nvml(beside_file(file.shim.nvml_library)?, &shim_library)?,
            shim_library,
            broker: search.broker(beside_file(file.binaries.broker)?)?,
            worker: search.worker(beside_file(file.binaries.worker)?)?,
            launcher,
            zone,
            flush: file.usage.flush,
            quotas,
            caps: file.worker,
            fair_time: file.fair_time,
            scrub: file.scrub,
            health: file.health,
            metrics: listen,
            gpus,
            sysfs: sysfs.map_or_else(SysfsRoot::default, SysfsRoot),
        })
    }
}

#[cfg(test)]
mod tests;
