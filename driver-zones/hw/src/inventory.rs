use std::collections::BTreeSet;

use gpuzone_core::{
    ComputeCapability, Gpu, GpuBacking, GpuUuid, Inventory, MemoryBytes, PciAddress,
};
use nvml_wrapper::Device;
use nvml_wrapper::error::NvmlError;

use crate::{DiscoverError, MigListing, NvmlLibrary, SysfsRoot, UseError};

/// What a simulated GPU's name and (in lower case) its driver's version always contain.
const NAME_MARK: &str = "Simulated";
const DRIVER_MARK: &str = "simulated";

/// NVML numbers a GPU's links from 0; no GPU has more.
const MAX_LINKS: u32 = 18;

/// What discovery found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovered {
    /// The GPUs that the driver reaches.
    pub inventory: Inventory,
    /// NVML's indices of those that it has lost. The others serve without them.
    pub lost: Vec<u32>,
    /// What of them is cut into MIG instances.
    pub mig: MigListing,
}

/// A link of a GPU's that is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NvLink {
    /// Its number on its GPU.
    pub number: u32,
    /// What is at its other end, a GPU or a switch, where the driver knows.
    pub remote: Option<PciAddress>,
}

impl NvmlLibrary {
    /// The links of a GPU that are up.
    ///
    /// # Errors
    /// When NVML knows no such GPU.
    pub fn links(&self, gpu: GpuUuid) -> Result<Vec<NvLink>, UseError> {
        let device = self.nvml.device_by_uuid(gpu.to_string());
        let device = device.map_err(|_| UseError::UnknownGpu(gpu))?;
        Ok(active_links(&device).collect())
    }

    /// The GPUs of this node. `backing` is what the configuration says that they are.
    ///
    /// # Errors
    /// When NVML does not say what must be known of a GPU, or a GPU is not what the
    /// configuration says.
    pub fn inventory(
        &self,
        sysfs: &SysfsRoot,
        backing: GpuBacking,
    ) -> Result<Discovered, DiscoverError> {
        let driver = self.driver_version()?;
        let count = self
            .nvml
            .device_count()
            .map_err(|e| DiscoverError::Node { what: "number of GPUs", source: e.into() })?;
        let (mut found, mut lost, mut mig) = (Vec::new(), Vec::new(), MigListing::default());
        for index in 0..count {
            let device = match self.nvml.device_by_index(index) {
                Err(NvmlError::GpuLost) => {
                    lost.push(index);
                    continue;
                }
                other => other.map_err(query("handle", index))?,
            };
            let gpu = describe(&device, index, sysfs, backing)?;
            check_backing(&gpu, &driver)?;
            mig.add(&device, &gpu)?;
            found.push((device, gpu));
        }
        let ends: Vec<Ends> = found
            .iter()
            .map(|(device, gpu)| Ends { gpu: gpu.uuid, at: gpu.pci, others: other_ends(device) })
            .collect();
        let gpus =
            found.into_iter().map(|(_, gpu)| Gpu { nvlink_peers: peers(gpu.uuid, &ends), ..gpu });
        Ok(Discovered { inventory: Inventory::new(gpus.collect())?, lost, mig })
    }
}

fn query(what: &'static str, index: u32) -> impl Fn(NvmlError) -> DiscoverError {
    move |error| DiscoverError::Query { what, index, source: error.into() }
}

fn describe(
    device: &Device<'_>,
    index: u32,
    sysfs: &SysfsRoot,
    backing: GpuBacking,
) -> Result<Gpu, DiscoverError> {
    let identifier = |source| DiscoverError::Identifier { index, source };
    let uuid: GpuUuid = device.uuid().map_err(query("UUID", index))?.parse().map_err(identifier)?;
    let pci = device.pci_info().map_err(query("PCI address", index))?;
    let pci: PciAddress = pci.bus_id.parse().map_err(identifier)?;
    let memory = device.memory_info().map_err(query("memory", index))?;
    let capability =
        device.cuda_compute_capability().map_err(query("compute capability", index))?;
    Ok(Gpu {
        uuid,
        index,
        name: device.name().map_err(query("name", index))?,
        pci,
        memory: MemoryBytes::saturating(memory.total),
        compute_capability: ComputeCapability {
            major: u32::try_from(capability.major).unwrap_or(0),
            minor: u32::try_from(capability.minor).unwrap_or(0),
        },
        numa_node: numa_node(device, pci, sysfs, backing),
        nvlink_peers: BTreeSet::new(),
        mig_capable: mig_capable(device, index)?,
        backing,
    })
}

fn numa_node(
    device: &Device<'_>,
    pci: PciAddress,
    sysfs: &SysfsRoot,
    backing: GpuBacking,
) -> Option<u32> {
    let from_sysfs = match backing {
        GpuBacking::Physical => sysfs.numa_node(pci),
        // What sits at that address of this machine is something else.
        GpuBacking::Simulated => None,
    };
    from_sysfs.or_else(|| device.numa_node_id().ok())
}

/// A GPU without MIG does not support the question.
fn mig_capable(device: &Device<'_>, index: u32) -> Result<bool, DiscoverError> {
    match device.mig_mode() {
        Ok(_) => Ok(true),
        Err(NvmlError::NotSupported | NvmlError::FailedToLoadSymbol(_)) => Ok(false),
        Err(error) => Err(query("MIG mode", index)(error)),
    }
}

/// A GPU, and what is at the other ends of its active links: other GPUs, or switches.
struct Ends {
    gpu: GpuUuid,
    at: PciAddress,
    others: BTreeSet<PciAddress>,
}

fn active_links(device: &Device<'_>) -> impl Iterator<Item = NvLink> {
    let links = (0..MAX_LINKS).map(|link| device.link_wrapper_for(link));
    let active = links.filter(|link| link.is_active().unwrap_or(false));
    active.map(|link| NvLink {
        number: link.link(),
        remote: link.remote_pci_info().ok().and_then(|remote| remote.bus_id.parse().ok()),
    })
}

fn other_ends(device: &Device<'_>) -> BTreeSet<PciAddress> {
    active_links(device).filter_map(|link| link.remote).collect()
}

/// The GPUs that NVLink joins `gpu` with: at the other end of a link, or at another port of the same
/// switch.
fn peers(gpu: GpuUuid, all: &[Ends]) -> BTreeSet<GpuUuid> {
    let Some(own) = all.iter().find(|ends| ends.gpu == gpu) else { return BTreeSet::new() };
    let switches: BTreeSet<PciAddress> = {
        let gpus: BTreeSet<PciAddress> = all.iter().map(|ends| ends.at).collect();
        // An end that the driver does not know is shown at address 0, where no switch sits.
        let known = own.others.iter().copied().filter(|at| at.bus() != 0 || at.domain() != 0);
        known.filter(|at| !gpus.contains(at)).collect()
    };
    let others = all.iter().filter(|ends| ends.gpu != gpu);
    let joined = others.filter(|other| {
        own.others.contains(&other.at)
            || other.others.contains(&own.at)
            || !switches.is_disjoint(&other.others)
    });
    joined.map(|other| other.gpu).collect()
}

/// The simulated GPU must not answer where a real one was asked for, nor the other way round.
fn check_backing(gpu: &Gpu, driver: &str) -> Result<(), DiscoverError> {
    let (index, name, driver) = (gpu.index, gpu.name.clone(), driver.to_owned());
    let in_name = name.contains(NAME_MARK);
    let in_driver = driver.contains(DRIVER_MARK);
    match gpu.backing {
        GpuBacking::Physical if in_name || in_driver => {
            Err(DiscoverError::UnexpectedlySimulated { index, name, driver })
        }
        GpuBacking::Simulated if !in_name || !in_driver => {
            Err(DiscoverError::UnexpectedlyPhysical { index, name, driver })
        }
        GpuBacking::Physical | GpuBacking::Simulated => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(name: &str, backing: GpuBacking) -> Gpu {
        Gpu {
            uuid: GpuUuid::from_bytes([1; 16]),
            index: 3,
            name: name.to_owned(),
            pci: "0000:01:00.0".parse().unwrap(),
            memory: MemoryBytes::gib(1),
            compute_capability: ComputeCapability { major: 9, minor: 0 },
            numa_node: None,
            nvlink_peers: BTreeSet::new(),
            mig_capable: false,
            backing,
        }
    }

    #[test]
    fn gpus_at_one_switch_are_joined_and_those_at_none_are_not() {
        let at = |text: &str| text.parse::<PciAddress>().unwrap();
        let uuid = |number: u8| GpuUuid::from_bytes([number; 16]);
        let ends = |number: u8, others: &[&str]| Ends {
            gpu: uuid(number),
            at: at(&format!("0000:{number:02x}:00.0")),
            others: others.iter().map(|other| at(other)).collect(),
        };
        let (switch, other_switch) = ("0000:a0:00.0", "0000:b0:00.0");
        let all = [
            ends(1, &[switch]),
            ends(2, &[switch, other_switch]),
            ends(3, &[other_switch]),
            // Directly, as one side says it.
            ends(4, &["0000:05:00.0"]),
            ends(5, &[]),
            // Ends that the driver does not know are no common switch.
            ends(6, &["0000:00:00.0"]),
            ends(7, &["0000:00:00.0"]),
        ];
        let joined = |number| peers(uuid(number), &all);
        assert_eq!(joined(1), [uuid(2)].into());
        assert_eq!(joined(2), [uuid(1), uuid(3)].into());
        assert_eq!((joined(4), joined(5)), ([uuid(5)].into(), [uuid(4)].into()));
        assert_eq!((joined(6), joined(7), joined(8)), Default::default());
    }

    #[test]
    fn what_a_gpu_says_it_is_must_be_what_was_asked_for() {
        use GpuBacking::{Physical, Simulated};
        let check = |name, backing, driver| check_backing(&gpu(name, backing), driver);
        assert!(check("NVIDIA H100", Physical, "580.95.05").is_ok());
        assert!(check("gpu-zone Simulated GPU", Simulated, "580-simulated").is_ok());
        for (name, driver) in [("NVIDIA H100", "580-simulated"), ("Simulated GPU", "580")] {
            let error = check(name, Physical, driver).unwrap_err();
            assert!(error.to_string().contains("asks for physical GPUs"), "{error}");
            let error = check(name, Simulated, driver).unwrap_err();
            assert!(error.to_string().contains("is physical"), "{error}");
        }
    }
}
