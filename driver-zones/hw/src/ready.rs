//! Whether a PCI function can be handed to a VM over VFIO now, as sysfs shows it.

use std::collections::BTreeSet;

use gpuzone_core::PciAddress;
use uuid::Uuid;

use crate::SysfsRoot;
use crate::pci::{FunctionKind, IommuGroup, SysfsError, link_name, parse, required_text};

/// A function that is on a VFIO driver, and whose IOMMU group can be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VfioFunction {
    /// Its IOMMU group: `/dev/vfio/<group>`.
    pub group: u32,
    /// Its name among VFIO devices, `vfioN`: `/dev/vfio/devices/vfioN`. `None` where the kernel
    /// has no such devices.
    pub device: Option<String>,
}

/// Why a function cannot be handed over.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    /// Nothing at that address.
    #[error("there is no PCI function {0}; see whether lspci lists it")]
    Missing(PciAddress),
    /// Another driver has it, or none.
    #[error("{address} is bound to {}, not to a VFIO driver; bind it to vfio-pci", driver.as_deref().unwrap_or("no driver"))]
    Driver {
        /// Which.
        address: PciAddress,
        /// To what.
        driver: Option<String>,
    },
    /// Nothing keeps it from the machine's memory.
    #[error(
        "{0} has no IOMMU group; turn the IOMMU on in the firmware and on the kernel's command line"
    )]
    NoGroup(PciAddress),
    /// Something else in its group has a driver.
    #[error(
        "{address} shares the IOMMU group {group} with {member}, which is bound to {driver}; bind that to vfio-pci, too, or to nothing"
    )]
    Member {
        /// Which.
        address: PciAddress,
        /// The group.
        group: u32,
        /// The other one.
        member: PciAddress,
        /// What it is bound to.
        driver: String,
    },
    /// Its group has another function that is handed out on its own: two tenants in one group.
    #[error(
        "{address} shares the IOMMU group {group} with {other}, which is handed out on its own; only one of a group can be"
    )]
    Shared {
        /// Which.
        address: PciAddress,
        /// The group.
        group: u32,
        /// The other one.
        other: PciAddress,
    },
    /// No mediated device of that name.
    #[error(
        "there is no mediated device {0}; the agent makes it at its start, and its log says why it could not"
    )]
    NoMdev(Uuid),
    /// Its driver gives VMs nothing to open.
    #[error(
        "the mediated device {0} has no IOMMU group; see whether its driver for VFIO is loaded (vfio_mdev, or the vendor's)"
    )]
    NoMdevGroup(Uuid),
    /// Another vGPU than the one that is handed out, or none.
    #[error("{address} has {} and is to have a vGPU of type {wanted}; the agent makes it at its start, and its log says why it could not", shown(.found))]
    NoVgpu {
        /// Which function.
        address: PciAddress,
        /// The type of the one that is there.
        found: Option<u32>,
        /// The type that is to be there.
        wanted: u32,
    },
    /// Fewer virtual functions than are handed out.
    #[error("{physical} has no virtual function number {number} that can be handed out; {why}")]
    NoFunction {
        /// Whose.
        physical: PciAddress,
        /// Which, from 0.
        number: u32,
        /// What is to be done.
        why: &'static str,
    },
    /// It opens with a token, and nothing here gives it one.
    #[error(
        "{address} is a virtual function of {physical}, which is on VFIO, so it opens with the token that whoever has {physical} has set and not without; {why}"
    )]
    Token {
        /// Which.
        address: PciAddress,
        /// Its physical function.
        physical: PciAddress,
        /// What is to be done.
        why: &'static str,
    },
    /// sysfs is not what it should be.
    #[error(transparent)]
    Sysfs(#[from] SysfsError),
}

fn shown(found: &Option<u32>) -> String {
    found.map_or_else(|| "no vGPU".to_owned(), |kind| format!("one of type {kind}"))
}

/// Drivers for VFIO are called so: `vfio-pci`, and the vendors' variants of it.
pub(crate) fn is_vfio(driver: &str) -> bool {
    driver == "vfio-pci" || driver.ends_with("-vfio-pci") || driver.ends_with("_vfio_pci")
}

impl SysfsRoot {
    /// Looks whether the function at `address` can be handed over on its own. `others` are those
    /// that are handed out, too.
    ///
    /// # Errors
    /// When it cannot; the error says why and what to do.
    pub fn vfio(
        &self,
        address: PciAddress,
        others: &BTreeSet<PciAddress>,
    ) -> Result<VfioFunction, NotReady> {
        let folder = self.function(address);
        if !folder.is_dir() {
            return Err(NotReady::Missing(address));
        }
        let driver = link_name(&folder.join("driver"))?;
        if !driver.as_deref().is_some_and(is_vfio) {
            return Err(NotReady::Driver { address, driver });
        }
        self.alone(address, others)
    }

    /// The physical function whose owner's token opens the one at `address`. The kernel asks for one where the
    /// physical function is on VFIO, and takes none elsewhere (`vfio_pci_validate_vf_token`).
    ///
    /// # Errors
    /// When sysfs cannot be read.
    pub fn token_of(&self, address: PciAddress) -> Result<Option<PciAddress>, SysfsError> {
        let physical = link_name(&self.function(address).join("physfn"))?;
        let Some(physical) = physical.and_then(|name| name.parse().ok()) else { return Ok(None) };
        let driver = link_name(&self.function(physical).join("driver"))?;
        Ok(Some(physical).filter(|_| driver.as_deref().is_some_and(is_vfio)))
    }

    /// Refuses a function that opens with a token only. `why` says what is to be done.
    ///
    /// # Errors
    /// When it is one, or sysfs cannot be read.
    pub fn without_token(&self, address: PciAddress, why: &'static str) -> Result<(), NotReady> {
        match self.token_of(address)? {
            Some(physical) => Err(NotReady::Token { address, physical, why }),
            None => Ok(()),
        }
    }

    /// A function whose IOMMU group can be handed over with it.
    fn alone(
        &self,
        address: PciAddress,
        others: &BTreeSet<PciAddress>,
    ) -> Result<VfioFunction, NotReady> {
        let folder = self.function(address);
        let IommuGroup { number: group, members } =
            self.group(address)?.ok_or(NotReady::NoGroup(address))?;
        // What is no PCI function is on no PCI driver; the kernel checks it once more.
        for member in members {
            if member != address {
                self.check_member(address, group, member, others)?;
            }
        }
        Ok(VfioFunction { group, device: self.vfio_name(&folder)? })
    }

    /// Looks whether a mediated device can be handed over: VFIO has it in a group of its own.
    ///
    /// # Errors
    /// When it cannot; the error says why and what to do.
    pub fn mediated_vfio(&self, uuid: Uuid) -> Result<VfioFunction, NotReady> {
        let folder = self.0.join("bus/mdev/devices").join(uuid.to_string());
        if !folder.is_dir() {
            return Err(NotReady::NoMdev(uuid));
        }
        let group = link_name(&folder.join("iommu_group"))?;
        let group = group.and_then(|name| name.parse().ok()).ok_or(NotReady::NoMdevGroup(uuid))?;
        Ok(VfioFunction { group, device: self.vfio_name(&folder)? })
    }

    /// Looks whether the vGPU of type `wanted` on a virtual function can be handed over. The function
    /// is on the vendor's driver, which gives VFIO the vGPU.
    ///
    /// # Errors
    /// When it cannot; the error says why and what to do.
    pub fn vgpu_vfio(
        &self,
        address: PciAddress,
        wanted: u32,
        others: &BTreeSet<PciAddress>,
    ) -> Result<VfioFunction, NotReady> {
        if !self.function(address).is_dir() {
            return Err(NotReady::Missing(address));
        }
        let found = self.current_vgpu(address)?.filter(|kind| *kind != 0);
        if found != Some(wanted) {
            return Err(NotReady::NoVgpu { address, found, wanted });
        }
        self.alone(address, others)
    }

    fn check_member(
        &self,
        address: PciAddress,
        group: u32,
        member: PciAddress,
        others: &BTreeSet<PciAddress>,
    ) -> Result<(), NotReady> {
        if others.contains(&member) {
            return Err(NotReady::Shared { address, group, other: member });
        }
        let folder = self.function(member);
        let file = folder.join("class");
        let class = required_text(&file)?;
        let strange = || SysfsError::strange(&file, &class, "a number like 0x030200");
        let class = parse::hex(&class).ok_or_else(strange)?;
        // An NVSwitch is a bridge by its class, too, and not one of those that VFIO lets be.
        let bridge = FunctionKind::of(class, 0) == FunctionKind::Bridge;
        match link_name(&folder.join("driver"))? {
            Some(driver) if !is_vfio(&driver) && !bridge => {
                Err(NotReady::Member { address, group, member, driver })
            }
            Some(_) | None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use tempfile::TempDir;

    const GPU: &str = "0000:3b:00.0";

    struct Tree(TempDir);

    impl Tree {
        fn new() -> Self {
            let tree = Self(tempfile::tempdir().unwrap());
            tree.function(GPU, "0x030200", Some("vfio-pci"), Some(12));
            tree
        }

        fn function(&self, address: &str, class: &str, driver: Option<&str>, group: Option<u32>) {
            let device = self.0.path().join("bus/pci/devices").join(address);
            std::fs::create_dir_all(&device).unwrap();
            std::fs::write(device.join("class"), format!("{class}\n")).unwrap();
            if let Some(driver) = driver {
                let _ = std::fs::remove_file(device.join("driver"));
                symlink(format!("../../../bus/pci/drivers/{driver}"), device.join("driver"))
                    .unwrap();
            }
            if let Some(group) = group {
                let group = self.0.path().join(format!("kernel/iommu_groups/{group}"));
                std::fs::create_dir_all(group.join("devices")).unwrap();
                symlink(&device, group.join("devices").join(address)).unwrap();
                symlink(&group, device.join("iommu_group")).unwrap();
            }
        }

        fn look(&self, others: &[&str]) -> Result<VfioFunction, String> {
            let others = others.iter().map(|other| other.parse().unwrap()).collect();
            let root = SysfsRoot(self.0.path().to_owned());
            root.vfio(GPU.parse().unwrap(), &others).map_err(|error| error.to_string())
        }
    }

    #[test]
    fn what_is_ready_has_its_group_and_its_device() {
        let tree = Tree::new();
        assert_eq!(tree.look(&[]), Ok(VfioFunction { group: 12, device: None }));
        let device = tree.0.path().join("bus/pci/devices").join(GPU).join("vfio-dev/vfio3");
        std::fs::create_dir_all(device).unwrap();
        // Its audio function goes with it, a bridge has a driver of its own.
        tree.function("0000:3b:00.1", "0x040300", Some("vfio-pci"), Some(12));
        tree.function("0000:3b:00.2", "0x0c0330", None, Some(12));
        tree.function("0000:3a:00.0", "0x060400", Some("pcieport"), Some(12));
        let ready = VfioFunction { group: 12, device: Some("vfio3".into()) };
        assert_eq!(tree.look(&["0000:af:00.0"]), Ok(ready.clone()));
        for variant in ["nvgrace_gpu_vfio_pci", "some-vfio-pci"] {
            tree.function(GPU, "0x030200", Some(variant), None);
            assert_eq!(tree.look(&[]), Ok(ready.clone()), "{variant}");
        }
    }

    #[test]
    fn a_function_whose_physical_one_is_on_vfio_opens_with_a_token() {
        let tree = Tree::new();
        let (root, gpu) = (SysfsRoot(tree.0.path().to_owned()), GPU.parse().unwrap());
        assert_eq!(root.token_of(gpu).unwrap(), None);
        root.without_token(gpu, "do this").unwrap();
        let physical: PciAddress = "0000:3b:01.0".parse().unwrap();
        let folder = tree.0.path().join("bus/pci/devices");
        symlink("../0000:3b:01.0", folder.join(GPU).join("physfn")).unwrap();
        for (driver, token) in [
            (None, None),
            (Some("nvidia"), None),
            (Some("vfio-pci"), Some(physical)),
            (Some("xe-vfio-pci"), Some(physical)),
        ] {
            tree.function("0000:3b:01.0", "0x030200", driver, None);
            assert_eq!(root.token_of(gpu).unwrap(), token, "{driver:?}");
        }
        let said = root.without_token(gpu, "do this").unwrap_err().to_string();
        assert!(said.contains("0000:3b:00.0 is a virtual function of 0000:3b:01.0"), "{said}");
        assert!(said.ends_with("; do this"), "{said}");
    }

    #[test]
    fn what_is_not_says_why() {
        let says = |tree: &Tree, others: &[&str], part: &str| {
            let said = tree.look(others).unwrap_err();
            assert!(said.contains(part), "{said} lacks {part}");
        };
        let empty = Tree(tempfile::tempdir().unwrap());
        says(&empty, &[], "there is no PCI function 0000:3b:00.0");
        empty.function(GPU, "0x030200", None, Some(12));
        says(&empty, &[], "is bound to no driver");
        empty.function(GPU, "0x030200", Some("nvidia"), None);
        says(&empty, &[], "is bound to nvidia, not to a VFIO driver");
        let no_iommu = Tree(tempfile::tempdir().unwrap());
        no_iommu.function(GPU, "0x030200", Some("vfio-pci"), None);
        says(&no_iommu, &[], "turn the IOMMU on");

        let tree = Tree::new();
        tree.function("0000:3b:00.1", "0x040300", Some("snd_hda_intel"), Some(12));
        says(&tree, &[], "0000:3b:00.1, which is bound to snd_hda_intel");
        says(&tree, &["0000:3b:00.1"], "is handed out on its own");
        let switch = Tree::new();
        switch.function("0000:3c:00.0", "0x068000", Some("nvidia-nvswitch"), Some(12));
        says(&switch, &[], "bound to nvidia-nvswitch");
        let broken = Tree::new();
        let member = broken.0.path().join("kernel/iommu_groups/12/devices/0000:99:00.0");
        symlink("nowhere", member).unwrap();
        says(&broken, &[], "cannot read");
    }
}
