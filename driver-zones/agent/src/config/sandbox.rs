//! What workers' sandboxes have, from the configuration and the driver.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gpuzone_wire::control::Sandbox;
use gpuzone_zone::sandbox::{Demand, Feature, UserRanges};
use serde::Deserialize;

use super::libraries::folder_of_driver;
use super::zone::{DeviceMemory, ZoneLimits, ZoneUsers};
use super::{Config, DriverKind, SIM_CONFIG_VARIABLE};
use crate::leases::WorkloadZones;

/// Where the simulated node keeps its state when its configuration does not say.
const SIMULATED_STATE: &str = "/dev/shm/gpu-zone-sim-";

/// The configuration's `[zone]`: how far zones may do without what the host lacks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ZonePolicy {
    /// Of features that are not named.
    pub policy: Demand,
    /// Of those that are.
    pub features: BTreeMap<Feature, Demand>,
    /// Which programs share a workload zone.
    pub workload: WorkloadZones,
    /// Whom zones are on the host.
    pub users: ZoneUsers,
    /// What each program's zone may have at most, unless `gpu-zone run` says less.
    pub limits: ZoneLimits,
    /// What each lease's worker may have of each region of device memory at most.
    pub device_memory: DeviceMemory,
    /// The driver zone is this microVM, and not a sandbox of the host's.
    pub microvm: Option<super::microvm::MicroVmTable>,
    /// What workload zones are made of that are microVMs.
    pub workload_microvm: Option<super::microvm::WorkloadVm>,
}

impl ZonePolicy {
    fn requires(&self, feature: Feature) -> bool {
        self.features.get(&feature).copied().unwrap_or(self.policy) == Demand::Require
    }

    /// Whether any feature is required.
    pub fn requires_any(&self) -> bool {
        Feature::ALL.into_iter().any(|feature| self.requires(feature))
    }
}

impl Config {
    /// How workers are kept apart; `None` where the launcher is not installed and nothing is
    /// required.
    pub fn sandbox(&self) -> Option<Sandbox> {
        let maker = self.launcher.clone()?;
        let required = Feature::ALL.into_iter().filter(|feature| self.zone.requires(*feature));
        let require = required.map(|feature| feature.as_str().to_owned()).collect();
        let (read, write, devices) = match self.driver {
            DriverKind::Simulated => {
                let config = self.simulated_config.clone();
                let state = simulated_state(config.as_deref());
                (config.into_iter().collect(), vec![state], Vec::new())
            }
            // The driver's library reads what the kernel module says about itself and its GPUs.
            DriverKind::Nvidia => {
                let beside = folder_of_driver(&self.cuda_library).map(|(_, files)| files);
                let read = ["/proc".into(), "/sys".into()].into_iter();
                let read = read.chain(beside.into_iter().flatten()).collect();
                (read, Vec::new(), nvidia_nodes(Path::new("/dev")))
            }
        };
        let users = self.zone.users.ranges();
        let users = users.map(|UserRanges { first, each, zones }| {
            gpuzone_wire::control::UserRanges { first, each, zones }
        });
        let device_memory = self.zone.device_memory.limits();
        Some(Sandbox { maker, read, write, devices, require, users, device_memory })
    }

    /// A worker's whole environment.
    pub fn worker_environment(&self) -> BTreeMap<String, String> {
        let mut environment = BTreeMap::new();
        match (self.driver, &self.simulated_config) {
            (DriverKind::Simulated, Some(path)) => {
                environment.insert(SIM_CONFIG_VARIABLE.to_owned(), path.display().to_string());
            }
            (DriverKind::Simulated, None) => {}
            (DriverKind::Nvidia, _) => {
                // The driver's cache of compiled kernels would be shared by tenants.
                environment.insert("CUDA_CACHE_DISABLE".to_owned(), "1".to_owned());
                if let Some((folder, _)) = folder_of_driver(&self.cuda_library) {
                    environment.insert("LD_LIBRARY_PATH".to_owned(), folder.display().to_string());
                }
            }
        }
        environment
    }
}

/// The folder in which the simulated node's processes share memory. Workers are given it.
pub(super) fn simulated_state(config: Option<&Path>) -> PathBuf {
    let text = config.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
    let table: toml::Table = text.parse().unwrap_or_default();
    match table.get("state_dir").and_then(toml::Value::as_str) {
        Some(named) => named.into(),
        None => format!("{SIMULATED_STATE}{}", rustix::process::getuid().as_raw()).into(),
    }
}

/// The nodes through which NVIDIA's driver is used: control, unified memory, each GPU, each MIG
/// instance. Not those for administration, displays and switches.
fn nvidia_nodes(dev: &Path) -> Vec<PathBuf> {
    let is_gpu = |name: &str| {
        let number = name.strip_prefix("nvidia").unwrap_or_default();
        !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    };
    let wanted = |name: &str| matches!(name, "nvidiactl" | "nvidia-uvm") || is_gpu(name);
    let names = std::fs::read_dir(dev).into_iter().flatten().flatten();
    let names = names.filter(|entry| entry.file_name().to_str().is_some_and(wanted));
    let mut nodes: Vec<PathBuf> = names.map(|entry| entry.path()).collect();
    nodes.extend(instance_nodes(&dev.join("nvidia-caps")));
    nodes.sort();
    nodes
}

/// The nodes of GPU instances and compute instances. The first two are for changing MIG's
/// configuration and for watching all instances.
fn instance_nodes(folder: &Path) -> Vec<PathBuf> {
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let number = |entry: &std::fs::DirEntry| {
        entry.file_name().to_str()?.strip_prefix("nvidia-cap")?.parse::<u32>().ok()
    };
    let wanted = names.filter(|entry| number(entry).is_some_and(|number| number > 2));
    wanted.map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_gets_the_nodes_of_compute_and_no_others() {
        let dev = tempfile::tempdir().unwrap();
        for name in ["nvidia0", "nvidia11", "nvidiactl", "nvidia-uvm", "nvidia-modeset", "nvram"] {
            std::fs::write(dev.path().join(name), "").unwrap();
        }
        std::fs::create_dir(dev.path().join("nvidia-caps")).unwrap();
        for name in ["nvidia-cap1", "nvidia-cap2", "nvidia-cap21", "nvidia-caps"] {
            std::fs::write(dev.path().join("nvidia-caps").join(name), "").unwrap();
        }
        let nodes = nvidia_nodes(dev.path());
        let names: Vec<_> = nodes.iter().filter_map(|node| node.file_name()?.to_str()).collect();
        assert_eq!(names, ["nvidia-cap21", "nvidia-uvm", "nvidia0", "nvidia11", "nvidiactl"]);
    }

    #[test]
    fn the_simulated_nodes_folder_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.toml");
        std::fs::write(&path, "state_dir = \"/dev/shm/mine\"\n[[gpu]]\n").unwrap();
        assert_eq!(simulated_state(Some(&path)), Path::new("/dev/shm/mine"));
        let usual = simulated_state(None);
        assert!(usual.to_str().is_some_and(|path| path.starts_with(SIMULATED_STATE)));
    }

    #[test]
    fn a_named_feature_wins_over_the_policy() {
        let policy: ZonePolicy =
            toml::from_str("policy = \"require\"\n[features]\npids = \"warn\"").unwrap();
        assert!(policy.requires(Feature::Seccomp));
        assert!(!policy.requires(Feature::Pids));
        assert!(!ZonePolicy::default().requires_any());
        assert_eq!(ZonePolicy::default().workload, WorkloadZones::Named);
        let policy: ZonePolicy = toml::from_str("workload = \"tenant\"").unwrap();
        assert_eq!(policy.workload, WorkloadZones::Tenant);
    }
}
