//! The configuration's `[zone.microvm]`: the driver zone is a microVM; and `[zone.workload_microvm]`:
//! workload zones can be.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gpuzone_api::agent::v1 as proto;
use gpuzone_core::{MemoryBytes, PciAddress};
use gpuzone_wire::control::{Accelerator, Driver, Hypervisor, MicroVm, Sandbox};
use gpuzone_zone::microvm;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::boot_file::{self, BootFileError};
use super::sandbox::simulated_state;
use super::{Config, DriverKind, SIM_CONFIG_VARIABLE};

/// Where the guest's image has the simulated driver.
const SIMULATED: &str = "/usr/lib/gpu-zone";
/// Where it has NVIDIA's, unless the configuration names another place.
const NVIDIA: &str = "/usr/lib/x86_64-linux-gnu";
/// In which the guest finds the simulated node's description.
const DESCRIPTION: &str = "simulated.toml";

/// A microVM, as it is written.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct MicroVmTable {
    /// The guest's kernel, a bzImage: a file, or `oci:DIR@sha256:…#/path`.
    kernel: PathBuf,
    /// The guest's initial file system, as `cargo xtask guest-image` builds it; the same.
    image: PathBuf,
    /// What they have to be, like `sha256:…`; a microVM of other files is not started.
    #[serde(default)]
    kernel_digest: Option<Digest>,
    #[serde(default)]
    image_digest: Option<Digest>,
    /// Who runs it.
    #[serde(default)]
    hypervisor: Hypervisor,
    /// QEMU, where that is it.
    #[serde(default)]
    qemu: Option<PathBuf>,
    /// Cloud Hypervisor, where that is it.
    #[serde(default)]
    cloud_hypervisor: Option<PathBuf>,
    /// How its processors are made.
    #[serde(default)]
    accelerator: Accelerator,
    /// Its memory.
    #[serde(default, deserialize_with = "super::file::memory")]
    memory: Option<MemoryBytes>,
    /// Its processors.
    #[serde(default = "two")]
    cpus: u32,
    /// Most processes of tenants that are connected at once.
    #[serde(default = "sixteen")]
    windows: u16,
    /// Functions that it gets, bound to VFIO already.
    #[serde(default)]
    devices: Vec<String>,
}

impl<'de> Deserialize<'de> for MicroVmTable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // What was generated, which takes fields as they are.
        let table = Self::deserialize(deserializer)?;
        table.check().map_err(D::Error::custom)?;
        Ok(table)
    }
}

/// A file's digest: `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
struct Digest(String);

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let digits = text.strip_prefix("sha256:").unwrap_or_default();
        let hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        match digits.len() == 64 && digits.bytes().all(hex) {
            true => Ok(Self(text)),
            false => Err(format!("'{text}' is no digest: write sha256: and 64 hexadecimal digits")),
        }
    }
}

/// Where they are installed, unless it is said.
const QEMU: &str = "/usr/bin/qemu-system-x86_64";
const CLOUD_HYPERVISOR: &str = "/usr/bin/cloud-hypervisor";

/// As it is written.
const fn hypervisor_name(hypervisor: Hypervisor) -> &'static str {
    match hypervisor {
        Hypervisor::Qemu => "qemu",
        Hypervisor::CloudHypervisor => "cloud-hypervisor",
    }
}

const fn two() -> u32 {
    2
}

const fn sixteen() -> u16 {
    16
}

impl MicroVmTable {
    /// Fails where its hypervisor cannot be what the rest asks for.
    fn check(&self) -> Result<(), String> {
        let other = match self.hypervisor {
            Hypervisor::Qemu => self.cloud_hypervisor.as_ref().map(|_| "cloud_hypervisor"),
            Hypervisor::CloudHypervisor => self.qemu.as_ref().map(|_| "qemu"),
        };
        let name = hypervisor_name(self.hypervisor);
        if let Some(other) = other {
            return Err(format!(
                "'{other}' is a path that nothing reads: hypervisor is \"{name}\"; leave it out, or name the other hypervisor"
            ));
        }
        let hypervisor = match self.hypervisor {
            Hypervisor::Qemu => microvm::Hypervisor::Qemu,
            Hypervisor::CloudHypervisor => microvm::Hypervisor::CloudHypervisor,
        };
        let passthrough =
            |address: &String| microvm::Passthrough { address: address.clone(), vf_token: None };
        let machine = microvm::VmSpec {
            program: self.program(),
            kernel: self.kernel.clone(),
            image: self.image.clone(),
            append: String::new(),
            accelerator: match self.accelerator {
                Accelerator::Tcg => microvm::Accelerator::Tcg,
                Accelerator::Kvm | Accelerator::Auto => microvm::Accelerator::Kvm,
            },
            machine: microvm::Machine::Q35 { windows: self.windows, iommu: false },
            memory: self.bytes(),
            processors: self.cpus,
            devices: self.devices.iter().map(passthrough).collect(),
            ports: Vec::new(),
        };
        hypervisor.arguments("check", &machine).map(drop).map_err(|error| error.to_string())
    }

    /// The same, with paths that are beside the file at `base`; what comes from images is unpacked
    /// below `images`, and pinned to what it is now.
    pub(super) fn beside(self, base: &Path, images: &Path) -> Result<Self, BootFileError> {
        let find = |path: &Path| boot_file::find(path, base, images);
        let (kernel, kernel_is) = find(&self.kernel)?;
        let (image, image_is) = find(&self.image)?;
        let kernel_digest = self.kernel_digest.or(kernel_is.map(Digest));
        let image_digest = self.image_digest.or(image_is.map(Digest));
        let whole = |path: Option<PathBuf>| {
            let whole = |path: PathBuf| {
                let whole = std::path::absolute(base.join(&path));
                whole.map_err(|source| BootFileError::Path(path, source))
            };
            path.map(whole).transpose()
        };
        let (qemu, cloud_hypervisor) = (whole(self.qemu)?, whole(self.cloud_hypervisor)?);
        Ok(Self { kernel, image, kernel_digest, image_digest, qemu, cloud_hypervisor, ..self })
    }

    /// The functions that it gets.
    pub(crate) fn devices(&self) -> impl Iterator<Item = PciAddress> {
        // Whatever is none was refused as the table was read.
        self.devices.iter().filter_map(|address| address.parse().ok())
    }

    /// The hypervisor's program.
    fn program(&self) -> PathBuf {
        match self.hypervisor {
            Hypervisor::Qemu => self.qemu.clone().unwrap_or_else(|| QEMU.into()),
            Hypervisor::CloudHypervisor => {
                self.cloud_hypervisor.clone().unwrap_or_else(|| CLOUD_HYPERVISOR.into())
            }
        }
    }

    /// What its files have to be, as far as that is said.
    fn digests(&self) -> impl Iterator<Item = (&PathBuf, &Digest)> {
        let both = [(&self.kernel, &self.kernel_digest), (&self.image, &self.image_digest)];
        both.into_iter().filter_map(|(path, digest)| Some((path, digest.as_ref()?)))
    }

    /// Its memory.
    fn bytes(&self) -> u64 {
        self.memory.unwrap_or(MemoryBytes::mib(512)).get()
    }

    /// The machine, with these files, and confined so.
    fn machine(self, files: BTreeMap<String, String>, confinement: Option<Sandbox>) -> MicroVm {
        let digests = self.digests().map(|(path, digest)| (path.clone(), digest.0.clone()));
        let (digests, memory, program) = (digests.collect(), self.bytes(), self.program());
        let Self { kernel, image, accelerator, cpus: processors, windows, devices, .. } = self;
        MicroVm {
            hypervisor: self.hypervisor,
            program,
            kernel,
            image,
            digests,
            accelerator,
            memory,
            processors,
            windows,
            devices,
            files,
            confinement,
        }
    }
}

/// What workload zones' microVMs are made of: none gets a device.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "MicroVmTable")]
pub struct WorkloadVm(MicroVmTable);

impl TryFrom<MicroVmTable> for WorkloadVm {
    type Error = String;

    fn try_from(table: MicroVmTable) -> Result<Self, String> {
        match table.devices.first() {
            None => Ok(Self(table)),
            Some(device) => Err(format!(
                "all workload zones would have {device}, which one machine at a time can; devices are for [zone.microvm]"
            )),
        }
    }
}

impl WorkloadVm {
    /// As it is written.
    pub(super) fn table(&mut self) -> &mut MicroVmTable {
        &mut self.0
    }

    /// The same for whoever starts workload zones.
    pub(crate) fn message(&self) -> proto::MicroVm {
        let MicroVmTable { kernel, image, accelerator, cpus, windows, .. } = &self.0;
        let text = |path: &Path| path.display().to_string();
        let digests = self.0.digests().map(|(path, digest)| (text(path), digest.0.clone()));
        proto::MicroVm {
            hypervisor: hypervisor_name(self.0.hypervisor).to_owned(),
            program: text(&self.0.program()),
            kernel: text(kernel),
            image: text(image),
            digests: digests.collect(),
            accelerator: match accelerator {
                Accelerator::Auto => "auto".to_owned(),
                Accelerator::Kvm => "kvm".to_owned(),
                Accelerator::Tcg => "tcg".to_owned(),
            },
            memory_bytes: self.0.bytes(),
            processors: *cpus,
            windows: (*windows).into(),
        }
    }
}

/// What the broker of a microVM is told, of which the guest's broker gets all but the first.
pub struct InMicroVm {
    /// The machine.
    pub microvm: MicroVm,
    /// The driver, as the guest has it.
    pub driver: Driver,
    /// What workers get of the guest.
    pub sandbox: Sandbox,
}

impl Config {
    /// The driver zone's microVM, if it is one.
    pub fn microvm(&self) -> Option<InMicroVm> {
        let table = self.zone.microvm.clone()?;
        let description = self.simulated_config.as_deref().map(std::fs::read_to_string);
        let description = description.and_then(Result::ok).unwrap_or_default();
        let given = Path::new(gpuzone_wire::zone_link::CONFIG_DIR);
        let host = self.sandbox();
        let (folder, environment, files, read, write) = match self.driver {
            DriverKind::Simulated => (
                SIMULATED,
                (SIM_CONFIG_VARIABLE, given.join(DESCRIPTION).display().to_string()),
                BTreeMap::from([(DESCRIPTION.to_owned(), description)]),
                vec![given.to_owned()],
                vec![simulated_state(self.simulated_config.as_deref())],
            ),
            DriverKind::Nvidia => (
                NVIDIA,
                ("CUDA_CACHE_DISABLE", "1".to_owned()),
                BTreeMap::new(),
                vec!["/proc".into(), "/sys".into()],
                Vec::new(),
            ),
        };
        let named = |path: &Path| match (self.driver, path.file_name()) {
            (DriverKind::Simulated, Some(name)) => Path::new(folder).join(name),
            (DriverKind::Nvidia, _) | (DriverKind::Simulated, None) => path.to_owned(),
        };
        let driver = Driver {
            cuda_library: named(&self.cuda_library),
            nvml_library: named(&self.nvml_library),
            environment: BTreeMap::from([(environment.0.to_owned(), environment.1)]),
        };
        let users = host.as_ref().and_then(|sandbox| sandbox.users);
        let require = host.as_ref().map(|sandbox| sandbox.require.clone()).unwrap_or_default();
        let devices = match self.driver {
            DriverKind::Simulated => Vec::new(),
            DriverKind::Nvidia => ["nvidiactl", "nvidia-uvm", "nvidia0"]
                .map(|node| Path::new("/dev").join(node))
                .into(),
        };
        let maker = self.launcher.clone().unwrap_or_default();
        let device_memory = self.zone.device_memory.limits();
        let sandbox = Sandbox { maker, read, write, devices, require, users, device_memory };
        let microvm = table.machine(files, host);
        Some(InMicroVm { microvm, driver, sandbox })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> Result<MicroVmTable, String> {
        toml::from_str(text).map_err(|error: toml::de::Error| error.message().to_owned())
    }

    #[test]
    fn a_hypervisor_is_taken_by_its_name_and_only_for_what_it_can() {
        let files = "kernel = \"k\"\nimage = \"i\"\n";
        let program = |text: &str| table(&format!("{files}{text}")).unwrap().program();
        assert_eq!(program(""), Path::new(QEMU));
        assert_eq!(program("qemu = \"/q\""), Path::new("/q"));
        let cloud = "hypervisor = \"cloud-hypervisor\"\n";
        assert_eq!(program(cloud), Path::new(CLOUD_HYPERVISOR));
        assert_eq!(program(&format!("{cloud}cloud_hypervisor = \"/c\"")), Path::new("/c"));
        for (more, expected) in [
            ("qemu = \"/q\"", "'qemu' is a path that nothing reads"),
            ("accelerator = \"tcg\"", "by KVM only"),
            ("windows = 17", "at most 16 windows"),
            ("devices = [\"3b:00.0\"]", "no PCI function's address"),
        ] {
            let error = table(&format!("{files}{cloud}{more}")).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        let error = table(&format!("{files}cloud_hypervisor = \"/c\"")).unwrap_err();
        assert!(error.contains("hypervisor is \"qemu\""), "{error}");
        assert!(table(&format!("{files}hypervisor = \"xen\"")).is_err());
        let text = format!("{files}{cloud}");
        let message = toml::from_str::<WorkloadVm>(&text).unwrap().message();
        assert_eq!(message.hypervisor, "cloud-hypervisor");
        assert_eq!(message.program, CLOUD_HYPERVISOR);
    }

    #[test]
    fn a_machine_needs_a_kernel_and_an_image_and_a_digest_is_one() {
        let files = "kernel = \"k\"\nimage = \"i\"\n";
        let usual = table(files).unwrap();
        assert_eq!((usual.accelerator, usual.cpus, usual.windows), (Accelerator::Auto, 2, 16));
        let beside = usual.beside(Path::new("/etc/gz"), Path::new("/nowhere")).unwrap();
        assert_eq!((beside.kernel, beside.image), ("/etc/gz/k".into(), "/etc/gz/i".into()));
        let digest = format!("{files}image_digest = \"sha256:{}\"", "0a".repeat(32));
        assert!(table(&digest).unwrap().image_digest.is_some());
        for wrong in ["sha256:0a", "0a", &format!("sha256:{}", "0A".repeat(32))] {
            let error = table(&format!("{files}kernel_digest = {wrong:?}")).unwrap_err();
            assert!(error.contains("is no digest"), "{error}");
        }
        let workload = toml::from_str::<WorkloadVm>(&digest).unwrap().message();
        assert_eq!((workload.accelerator.as_str(), workload.memory_bytes), ("auto", 512 << 20));
        assert_eq!(workload.digests.len(), 1);
        let device = format!("{files}devices = [\"0000:3b:00.0\"]");
        assert!(table(&device).is_ok() && toml::from_str::<WorkloadVm>(&device).is_err());
        for wrong in ["kernel = \"k\"", "accelerator = \"xen\"", "colour = 1"] {
            assert!(table(wrong).is_err(), "{wrong}");
        }
    }
}
