//! What the zone of a driver zone's microVM is: its relay, the maker that makes it, and the hypervisor's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gpuzone_wire::control::{
    self as wire, Accelerator as Wanted, BrokerConfig, Hypervisor as Named, MicroVm, Sandbox,
};
use gpuzone_zone::maker::{self, Kind, Template};
use gpuzone_zone::microvm::{
    Accelerator, Hypervisor, KVM, Machine, MicroVmError, MicroVms, Passthrough, VmSpec,
};
use gpuzone_zone::sandbox::{BrokerSandbox, Filter, MakerSandbox, Policy, Spec, UserRanges};

use crate::paths::ZonePaths;

/// The machine's name among zones.
pub(super) const NAME: &str = "driver-zone-vm";
/// That of a probe, and of its kind.
pub(super) const PROBE: &str = "driver-zone-probe";
/// The relay's name among zones.
const RELAY: &str = "driver-zone";
/// That of the maker.
const MAKER: &str = "driver-zone-maker";

/// A driver zone that is a microVM, and whose processes on the host have sandboxes.
#[derive(Debug)]
pub struct MachineZone<'a> {
    config: &'a BrokerConfig,
    vm: &'a MicroVm,
    sandbox: &'a Sandbox,
    policy: Policy,
}

impl<'a> MachineZone<'a> {
    /// # Errors
    /// The name of a feature that is required and that there is not.
    pub fn new(
        config: &'a BrokerConfig,
        vm: &'a MicroVm,
        sandbox: &'a Sandbox,
    ) -> Result<Self, String> {
        Ok(Self { config, vm, sandbox, policy: Policy::requiring(&sandbox.require)? })
    }

    /// Where the maker writes its zones down.
    pub fn records(&self) -> PathBuf {
        self.config.zone_dir.join("zones")
    }

    /// What the relay is shown: its files, those of slots, and those whose digests it compares.
    pub fn relay(&self, program: &Path, slots: &[PathBuf]) -> Spec {
        let write = std::iter::once(&self.config.zone_dir).chain(slots);
        let read = self.vm.digests.keys().cloned();
        let view = BrokerSandbox {
            zone: RELAY.to_owned(),
            program: program.to_owned(),
            write: write.cloned().collect(),
            closed: read.chain([self.records()]).collect(),
            users: self.users(),
            policy: self.policy.clone(),
        };
        view.spec()
    }

    /// What the maker is shown: what it hands to the hypervisor, and where it writes it down.
    ///
    /// # Errors
    /// When the machine cannot be described.
    pub fn maker(&self) -> Result<Spec, MicroVmError> {
        let folder = |source| MicroVmError::Files { folder: self.records(), source };
        let theirs = self.hypervisor(self.usual())?;
        let paths = ZonePaths::new(self.config.zone_dir.clone());
        let own_folder = vms(&paths, self.vm).prepare().map_err(folder)?;
        let own = [&self.sandbox.maker, &self.vm.program].into_iter().cloned();
        // It is shown `/proc` as a whole.
        let handed = theirs.mounts.iter().filter(|mount| !mount.source.starts_with("/proc"));
        let handed =
            handed.filter(|mount| !mount.write && (!mount.optional || mount.source.exists()));
        let view = MakerSandbox {
            zone: MAKER.to_owned(),
            read: own.chain(handed.map(|mount| mount.source.clone())).collect(),
            write: vec![self.records()].into_iter().chain(own_folder).collect(),
            devices: theirs.devices,
            users: self.sandbox.users.is_some(),
            policy: self.policy.clone(),
        };
        let mut spec = view.spec().map_err(folder)?;
        // It has the filters of whoever started it, too.
        spec.filter = Filter::Machines;
        // It hands on what it has, and cannot give itself more.
        spec.limits.locked = theirs.limits.locked;
        Ok(spec)
    }

    /// All that the maker makes.
    ///
    /// # Errors
    /// When the machine cannot be described.
    pub fn template(&self) -> Result<Template, MicroVmError> {
        let spec = self.hypervisor(self.usual())?;
        let sandbox = maker::Sandbox { launcher: self.sandbox.maker.clone(), spec };
        template(self.vm, Some(sandbox))
    }

    fn users(&self) -> Option<UserRanges> {
        let wire::UserRanges { first, each, zones } = self.sandbox.users?;
        Some(UserRanges { first, each, zones })
    }

    fn hypervisor(&self, accelerator: Accelerator) -> Result<Spec, MicroVmError> {
        let vms = vms(&ZonePaths::new(self.config.zone_dir.clone()), self.vm);
        vms.confinement(&machine(self.vm, accelerator), self.users(), self.policy.clone())
    }

    /// What it may have of the host: KVM where a guest could run on it.
    fn usual(&self) -> Accelerator {
        match self.vm.accelerator {
            Wanted::Tcg => Accelerator::Tcg,
            Wanted::Kvm => Accelerator::Kvm,
            Wanted::Auto if Path::new(KVM).exists() => Accelerator::Kvm,
            Wanted::Auto => hypervisor(self.vm).without_kvm(),
        }
    }
}

/// Where the machine's files are, and who runs it.
pub(super) fn vms(paths: &ZonePaths, vm: &MicroVm) -> MicroVms {
    MicroVms::new(paths.machine(), hypervisor(vm))
}

fn hypervisor(vm: &MicroVm) -> Hypervisor {
    match vm.hypervisor {
        Named::Qemu => Hypervisor::Qemu,
        Named::CloudHypervisor => Hypervisor::CloudHypervisor,
    }
}

/// A huge page below each thread's stack would be most of what a driver zone at rest takes, and where anybody may
/// have one, the kernel keeps a twentieth of the memory free for them (`set_recommended_min_free_kbytes`).
const SMALL_PAGES: &str = "transparent_hugepage=never";

/// What a maker makes that makes no sandboxes.
pub(super) fn plain(vm: &MicroVm) -> Result<Template, MicroVmError> {
    template(vm, None)
}

fn template(vm: &MicroVm, sandbox: Option<maker::Sandbox>) -> Result<Template, MicroVmError> {
    let kind = |arguments, files| Kind { arguments, files, device_memory: BTreeMap::new() };
    let hypervisor = hypervisor(vm);
    let files = hypervisor.sockets(&[]);
    let probe = hypervisor.probe().arguments(Accelerator::Kvm);
    let mut kinds = BTreeMap::from([(PROBE.to_owned(), kind(probe, 0))]);
    for &accelerator in hypervisor.accelerators() {
        let arguments = hypervisor.arguments(NAME, &machine(vm, accelerator))?;
        kinds.insert(accelerator.as_str().to_owned(), kind(arguments, files));
    }
    Ok(Template { program: vm.program.clone(), environment: BTreeMap::new(), kinds, sandbox })
}

pub(super) fn machine(vm: &MicroVm, accelerator: Accelerator) -> VmSpec {
    let MicroVm { program, kernel, image, memory, processors, windows, devices, .. } = vm.clone();
    let passthrough = |address| Passthrough { address, vf_token: None };
    VmSpec {
        program,
        kernel,
        image,
        append: SMALL_PAGES.to_owned(),
        accelerator,
        machine: Machine::Q35 { windows, iommu: false },
        memory,
        processors,
        devices: devices.into_iter().map(passthrough).collect(),
        ports: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use gpuzone_zone::sandbox::Root;

    use super::*;
    use crate::driver_zone::tests::config;

    fn vm() -> MicroVm {
        MicroVm {
            hypervisor: Named::Qemu,
            program: "/usr/bin/qemu".into(),
            kernel: "/k/vmlinuz".into(),
            image: "/k/zone.cpio".into(),
            digests: BTreeMap::from([("/k/vmlinuz".into(), "sha256:0".to_owned())]),
            accelerator: Wanted::Tcg,
            memory: 256 << 20,
            processors: 2,
            windows: 4,
            devices: Vec::new(),
            files: BTreeMap::new(),
            confinement: None,
        }
    }

    #[test]
    fn the_relay_has_slots_and_neither_qemu_nor_devices_and_the_maker_has_no_slots() {
        let (config, vm) = (config(), vm());
        let sandbox = Sandbox {
            maker: "/opt/launcher".into(),
            read: Vec::new(),
            write: Vec::new(),
            devices: vec!["/dev/nvidia0".into()],
            users: None,
            require: Default::default(),
            device_memory: BTreeMap::new(),
        };
        let zone = MachineZone::new(&config, &vm, &sandbox).unwrap();
        let relay = zone.relay(Path::new("/opt/broker"), &["/run/gz/slots".into()]);
        let maker = zone.maker().unwrap();
        let shows = |spec: &Spec, path: &str| {
            let found = spec.mounts.iter().find(|mount| mount.source == Path::new(path));
            found.map(|mount| mount.write)
        };
        for path in ["/usr/bin/qemu", "/opt/launcher", "/k/zone.cpio", "/proc"] {
            assert_eq!(
                (shows(&relay, path), shows(&maker, path).is_some()),
                (None, true),
                "{path}"
            );
        }
        for path in ["/run/gz/slots", "/run/gz/driver-zone"] {
            assert_eq!((shows(&relay, path), shows(&maker, path)), (Some(true), None), "{path}");
        }
        assert_eq!(shows(&relay, "/k/vmlinuz"), Some(false));
        let records = "/run/gz/driver-zone/zones";
        assert_eq!((shows(&relay, records), shows(&maker, records)), (Some(false), Some(true)));
        assert_eq!(
            (&relay.root, relay.network, relay.filter),
            (&Root::Empty, false, Filter::Broker)
        );
        assert!(relay.devices.is_empty() && maker.devices.is_empty());

        let template = zone.template().unwrap();
        let kinds: Vec<(&str, usize)> =
            template.kinds.iter().map(|(name, kind)| (name.as_str(), kind.files)).collect();
        assert_eq!(kinds, [(PROBE, 0), ("kvm", 2), ("tcg", 2)]);
        let spec = template.sandbox.unwrap().spec;
        assert_eq!((spec.filter, spec.own_pids, spec.network), (Filter::Workload, true, false));
        let written: Vec<_> = spec.mounts.iter().filter(|mount| mount.write).collect();
        assert!(written.len() == 1 && spec.devices.is_empty(), "{written:?}");
    }
}
