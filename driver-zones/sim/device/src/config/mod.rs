//! What the simulated node consists of.

mod error;
mod keys;
mod mig;
mod profiles;
mod raw;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use gpuzone_core::{ComputeCapability, GpuUuid, MemoryBytes, PciAddress};

pub use error::ConfigError;
pub use mig::MigConfig;
pub use profiles::{MIG_KINDS, MigKind};

/// The most GPUs of one node; device addresses have room for that many.
pub const MAX_GPUS: usize = 64;

/// Names the configuration file; unset or empty means the built-in default.
const CONFIG_VARIABLE: &str = "GPUZONE_SIM_CONFIG";

/// What stands in the name of every simulated GPU.
const MARK: &str = "Simulated";

/// The simulated node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Folder of the files that the node's processes share.
    pub state_dir: PathBuf,
    /// Version of the driver that is simulated, without the mark.
    pub driver_version: String,
    /// The GPUs, by index.
    pub gpus: Vec<GpuConfig>,
    /// A lie that its driver tells, for tests of what is made of it.
    pub memset_fault: Option<MemsetFault>,
    /// Whether its NVML tells of events, as not each driver does.
    pub events: bool,
}

/// How a driver that was told to overwrite memory does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemsetFault {
    /// It says that it did, and did nothing.
    Ignored,
    /// It leaves out the second half of what is longer than a MiB.
    Half,
}

impl MemsetFault {
    /// How many of `bytes` are overwritten.
    #[must_use]
    pub fn bytes(self, bytes: u64) -> u64 {
        match self {
            Self::Ignored => 0,
            Self::Half if bytes > 1 << 20 => bytes / 2 / 4096 * 4096,
            Self::Half => bytes,
        }
    }
}

/// One simulated GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuConfig {
    /// Product name; always contains "Simulated".
    pub name: String,
    /// Identifier: configured, or derived from index and name, so that it stays the same.
    pub uuid: GpuUuid,
    /// All of its memory.
    pub memory: MemoryBytes,
    /// What it claims to be able to run.
    pub compute_capability: ComputeCapability,
    /// Where it claims to sit.
    pub pci: PciAddress,
    /// The NUMA node it claims to be near to.
    pub numa_node: Option<u32>,
    /// Indices of the GPUs it is joined with; symmetric.
    pub nvlink_peers: BTreeSet<usize>,
    /// Whether it claims that it can be cut into MIG instances.
    pub mig_capable: bool,
    /// Its MIG instances, if it is in MIG mode: then they are all that programs see of it.
    pub mig: Option<Vec<MigConfig>>,
    /// How many multiprocessors it claims to have.
    pub multiprocessors: u32,
    /// Its clock, in MHz.
    pub clock_mhz: u32,
    /// Device memory that every context takes, in addition to what is allocated in it.
    pub context_overhead: MemoryBytes,
    /// Whether it claims that kernels reach all memory of the process that runs them, unless
    /// that process declines.
    pub hmm: bool,
}

impl Config {
    /// The configuration that `GPUZONE_SIM_CONFIG` names, or the built-in default.
    ///
    /// # Errors
    /// When the file cannot be read or is wrong.
    pub fn from_env() -> Result<Self, ConfigError> {
        match std::env::var_os(CONFIG_VARIABLE).filter(|path| !path.is_empty()) {
            Some(path) => Self::from_file(Path::new(&path)),
            None => Self::built_in(),
        }
    }

    /// The default that ships: two GPUs of 16 GiB.
    ///
    /// # Errors
    /// Never, as long as the file that ships is right.
    pub fn built_in() -> Result<Self, ConfigError> {
        Self::parse(Path::new("(built-in default)"), include_str!("../../../default.toml"))
    }

    /// The configuration in the file at `path`.
    ///
    /// # Errors
    /// When the file cannot be read or is wrong.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    /// The configuration in `text`; `path` is for messages.
    ///
    /// # Errors
    /// When the text is no TOML, has a key that is not known, or a value that cannot be.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        keys::check(path, text)?;
        raw::read(path, text)
    }

    /// Version of the driver, as its libraries tell it; says that it is simulated.
    #[must_use]
    pub fn shown_driver_version(&self) -> String {
        format!("{}-simulated", self.driver_version)
    }
}

/// `name`, with the mark that a simulated GPU always carries.
fn marked(name: &str) -> String {
    if name.contains(MARK) { name.to_owned() } else { format!("{MARK} {name}") }
}

/// The identifier of GPU `index` when none is configured: a hash (FNV-1a, 128 bits) with the
/// version and variant bits of a UUID that is application-defined (RFC 9562, version 8).
fn derived_uuid(index: usize, name: &str) -> GpuUuid {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let text = format!("gpu-zone simulated GPU {index} {name}");
    let hash = text.bytes().fold(OFFSET, |hash, b| (hash ^ u128::from(b)).wrapping_mul(PRIME));
    let mut bytes = hash.to_be_bytes();
    bytes[6] = (bytes[6] & 0x0f) | 0x80;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    GpuUuid::from_bytes(bytes)
}

/// Where the state lies when the configuration does not say: in memory, one folder per user.
fn default_state_dir() -> PathBuf {
    PathBuf::from(format!("/dev/shm/gpu-zone-sim-{}", rustix::process::getuid().as_raw()))
}
