//! What a driver zone's broker, the maker of its workers' zones, and those zones are.
//!
//! A worker's zone has namespaces of its own but for one: it shares the host's pid namespace. The
//! driver, real or simulated, books device memory by pid, and the worker looks its own up in NVML's
//! list, as this agent does for usage: inside a pid namespace the numbers would not meet. In its place,
//! a worker has no `/proc` to see others in, seccomp lets it signal nobody, and Landlock would not
//! either. So the launcher becomes the worker and leaves no process between.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gpuzone_wire::control::{self as wire, BrokerConfig, Sandbox};
use gpuzone_wire::handover::Role;
use gpuzone_zone::maker::{self, Kind, Template};
use gpuzone_zone::sandbox::{
    BrokerSandbox, Filter, Limits, MakerSandbox, Mount, Policy, Root, Spec, UserRanges, libraries,
};

/// The broker's name among zones, and its host's name.
const BROKER: &str = "driver-zone";
/// That of the maker.
const MAKER: &str = "driver-zone-maker";
/// More than any worker within its caps needs, and no fork bomb.
const MOST_THREADS: u64 = 4096;
/// Many threads in one worker are no more of the processors for it than few in another.
const SAME_AS_OTHERS: u64 = 100;
/// Sockets, rings and events of all sessions that the caps allow.
const MOST_FILES: u64 = 65_536;

/// A driver zone whose processes have sandboxes.
#[derive(Debug)]
pub struct DriverZone<'a> {
    config: &'a BrokerConfig,
    sandbox: &'a Sandbox,
    policy: Policy,
}

impl<'a> DriverZone<'a> {
    /// # Errors
    /// The name of a feature that is required and that there is not.
    pub fn new(config: &'a BrokerConfig, sandbox: &'a Sandbox) -> Result<Self, String> {
        Ok(Self { config, sandbox, policy: Policy::requiring(&sandbox.require)? })
    }

    /// Where the maker writes its zones down: in the folder of the zone, for the broker to see.
    pub fn records(&self) -> PathBuf {
        self.config.zone_dir.join("zones")
    }

    fn users(&self) -> Option<UserRanges> {
        let wire::UserRanges { first, each, zones } = self.sandbox.users?;
        Some(UserRanges { first, each, zones })
    }

    /// What the broker is shown: its files, and those of slots.
    pub fn broker(&self, program: &Path, slots: &[PathBuf]) -> Spec {
        let write = std::iter::once(&self.config.zone_dir).chain(slots);
        let view = BrokerSandbox {
            zone: BROKER.to_owned(),
            program: program.to_owned(),
            write: write.cloned().collect(),
            closed: vec![self.records()],
            users: self.users(),
            policy: self.policy.clone(),
        };
        view.spec()
    }

    /// What the maker is shown: what it hands to workers, and where it writes them down.
    ///
    /// # Errors
    /// When the folder in which users are claimed cannot be made.
    pub fn maker(&self) -> std::io::Result<Spec> {
        let BrokerConfig { worker, driver, .. } = self.config;
        let own = [&self.sandbox.maker, worker, &driver.cuda_library, &driver.nvml_library];
        let write = self.sandbox.write.iter().cloned();
        let view = MakerSandbox {
            zone: MAKER.to_owned(),
            read: own.into_iter().chain(&self.sandbox.read).cloned().collect(),
            write: write.chain([self.records()]).collect(),
            devices: self.sandbox.devices.clone(),
            users: self.sandbox.users.is_some(),
            policy: self.policy.clone(),
        };
        view.spec()
    }

    /// All that the maker makes.
    pub fn template(&self) -> Template {
        let sandbox = maker::Sandbox { launcher: self.sandbox.maker.clone(), spec: self.worker() };
        template(self.config, Some(sandbox), &self.sandbox.device_memory)
    }

    /// A worker's sandbox.
    fn worker(&self) -> Spec {
        let BrokerConfig { worker, driver, .. } = self.config;
        let mut mounts: Vec<Mount> = libraries().collect();
        let own = [worker, &driver.cuda_library, &driver.nvml_library];
        mounts.extend(own.into_iter().map(Mount::read));
        mounts.extend(self.sandbox.read.iter().map(Mount::read));
        mounts.extend(self.sandbox.write.iter().map(Mount::write));
        if self.sandbox.read.iter().any(|path| path == Path::new("/proc")) {
            // NVIDIA's driver names its threads there, and does not begin where it cannot
            // (580.159.04). The files are the process's own, whoever its user is.
            mounts.push(Mount { unmapped: true, ..Mount::write("/proc/self/task") });
        }
        Spec {
            // Each has its own.
            zone: String::new(),
            root: Root::Empty,
            mounts,
            devices: self.sandbox.devices.clone(),
            private: Vec::new(),
            hidden: Vec::new(),
            directory: "/".into(),
            network: false,
            own_pids: false,
            users: self.users(),
            record: None,
            filter: Filter::Worker,
            limits: Limits {
                pids: Some(MOST_THREADS),
                open_files: Some(MOST_FILES),
                cpu_weight: Some(SAME_AS_OTHERS),
                ..Limits::default()
            },
            policy: self.policy.clone(),
        }
    }
}

/// What a maker makes that makes no sandboxes.
pub(crate) fn plain(config: &BrokerConfig) -> Template {
    template(config, None, &BTreeMap::new())
}

fn template(
    config: &BrokerConfig,
    sandbox: Option<maker::Sandbox>,
    device_memory: &BTreeMap<String, u64>,
) -> Template {
    let kind = |role: Role| {
        let arguments = role.arguments().iter().map(ToString::to_string).collect();
        let device_memory = match role {
            Role::Worker => device_memory.clone(),
            Role::Scrub => BTreeMap::new(),
        };
        (role.as_str().to_owned(), Kind { arguments, files: role.files(), device_memory })
    };
    Template {
        program: config.worker.clone(),
        environment: config.driver.environment.clone(),
        kinds: Role::ALL.map(kind).into(),
        sandbox,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use gpuzone_wire::control::{Caps, Driver};
    use gpuzone_wire::turn::FairTime;
    use gpuzone_zone::sandbox::{Demand, Feature};

    use super::*;

    pub(crate) fn config() -> BrokerConfig {
        BrokerConfig {
            zone_dir: "/run/gz/driver-zone".into(),
            worker: "/opt/worker".into(),
            driver: Driver {
                cuda_library: "/opt/libcuda.so.1".into(),
                nvml_library: "/opt/libnvidia-ml.so.1".into(),
                environment: BTreeMap::new(),
            },
            caps: Caps::default(),
            fair_time: FairTime::default(),
            sandbox: None,
            windows: false,
            microvm: None,
        }
    }

    fn sandbox(require: &[&str]) -> Sandbox {
        Sandbox {
            maker: "/opt/launcher".into(),
            read: Vec::new(),
            write: vec!["/dev/shm/sim".into()],
            devices: vec!["/dev/nvidia0".into()],
            users: None,
            require: require.iter().map(ToString::to_string).collect(),
            device_memory: BTreeMap::from([("drm/0/vram0".to_owned(), 1 << 30)]),
        }
    }

    #[test]
    fn what_is_required_is_demanded_and_nothing_else() {
        let (config, sandbox) = (config(), sandbox(&["seccomp"]));
        let zone = DriverZone::new(&config, &sandbox).unwrap();
        let slots = ["/run/gz/slots".into()];
        let all =
            [zone.worker(), zone.broker(Path::new("/opt/broker"), &slots), zone.maker().unwrap()];
        for spec in all {
            assert_eq!(spec.policy.of(Feature::Seccomp), Demand::Require);
            assert_eq!(spec.policy.of(Feature::Pids), Demand::Warn);
        }
    }

    #[test]
    fn a_lease_has_its_share_of_device_memory_and_a_scrub_all_that_is_free() {
        let (config, sandbox) = (config(), sandbox(&[]));
        let template = DriverZone::new(&config, &sandbox).unwrap().template();
        let of = |role: Role| template.kinds[role.as_str()].device_memory.clone();
        assert_eq!(of(Role::Worker), sandbox.device_memory);
        assert_eq!(of(Role::Scrub), BTreeMap::new());
    }

    #[test]
    fn a_requirement_that_nothing_can_meet_is_refused() {
        assert_eq!(DriverZone::new(&config(), &sandbox(&["secomp"])).unwrap_err(), "secomp");
    }

    #[test]
    fn the_broker_has_slots_and_no_driver_and_the_maker_the_driver_and_no_slots() {
        let (config, sandbox) = (config(), sandbox(&[]));
        let zone = DriverZone::new(&config, &sandbox).unwrap();
        let broker = zone.broker(Path::new("/opt/broker"), &["/run/gz/slots".into()]);
        let maker = zone.maker().unwrap();
        let shows = |spec: &Spec, path: &str| {
            spec.mounts.iter().any(|mount| mount.source == Path::new(path))
        };
        for path in ["/opt/libcuda.so.1", "/opt/worker", "/opt/launcher", "/proc", "/dev/shm/sim"] {
            assert!(shows(&maker, path) && !shows(&broker, path), "{path}");
        }
        for path in ["/run/gz/slots", "/run/gz/driver-zone", "/opt/broker"] {
            assert!(shows(&broker, path) && !shows(&maker, path), "{path}");
        }
        assert!(broker.devices.is_empty());
        assert_eq!(maker.devices, sandbox.devices);
        let records = |spec: &Spec| {
            let records = Path::new("/run/gz/driver-zone/zones");
            spec.mounts.iter().find(|mount| mount.source == records).map(|mount| mount.write)
        };
        assert_eq!((records(&broker), records(&maker)), (Some(false), Some(true)));
    }
}
