use std::collections::BTreeSet;
use std::path::PathBuf;

use gpuzone_core::PciAddress;
use uuid::Uuid;

use super::{Action, ActionError, Change, Devices, Functions, MdevParent, Subject, Writes, exists};
use crate::pci::{PciFunction, link_name, text};

impl<W: Writes> Devices<W> {
    /// Makes `count` virtual functions, or with 0 takes those away that were made here. The kernel
    /// is told not to give new ones to drivers of the host.
    ///
    /// # Errors
    /// When it may not be, or the kernel refuses; all is as before then.
    pub fn set_functions(&mut self, address: PciAddress, count: u32) -> Result<(), ActionError> {
        let function = self.usable(address)?;
        let sriov = function.sriov.as_ref().ok_or(ActionError::NotOffered {
            address,
            file: "sriov_totalvfs",
            why: "the device has no virtual functions, or its driver or the kernel (CONFIG_PCI_IOV) hides them",
        })?;
        if count > sriov.total {
            return Err(ActionError::TooMany { address, total: sriov.total, asked: count });
        }
        if count == sriov.enabled {
            return Ok(());
        }
        if count == 0 {
            let ours = |change: &Change| matches!(change, Change::Functions { address: of, .. } if *of == address);
            let kept = self.kept_with(ours).cloned();
            let kept = kept.ok_or_else(|| {
                ActionError::NotOurs(format!("the number of virtual functions of {address}"))
            })?;
            self.check_functions(&sriov.functions)?;
            return self.take_back(&kept);
        }
        if sriov.enabled > 0 {
            return Err(ActionError::HasFunctions { address, enabled: sriov.enabled });
        }
        let switch = self.places.sysfs.0.join("module/vfio_pci/parameters/enable_sriov");
        let allowed = text(&switch)?.is_none_or(|text| text == "Y" || text == "1");
        if function.driver.as_deref() == Some(crate::alias::GENERIC) && !allowed {
            return Err(ActionError::SriovOff(address));
        }
        let from = Functions { enabled: 0, autoprobe: sriov.autoprobe };
        let quiet = exists(&self.places.sysfs, address, "sriov_drivers_autoprobe");
        let to = Functions { enabled: count, autoprobe: sriov.autoprobe && !quiet };
        let changes = vec![Change::Functions { address, from, to }];
        let what = format!("make {count} virtual functions of {address}");
        self.run(Action { what, changes, ..Action::default() })
    }

    /// Nobody uses these, and nothing was done to them that would have to be given back.
    fn check_functions(&self, functions: &[PciAddress]) -> Result<(), ActionError> {
        for vf in functions {
            if let Some(kept) = self.kept_with(|change| change.subject() == Subject::Function(*vf))
            {
                return Err(ActionError::Kept { address: *vf, what: kept.what.clone() });
            }
            let function = self.usable(*vf)?;
            self.check_free(&function)?;
        }
        Ok(())
    }

    /// Makes a mediated device for `owner`. The same again is no error.
    ///
    /// # Errors
    /// When there is none left, or the kernel refuses; all is as before then.
    pub fn create_mdev(
        &mut self,
        parent: &MdevParent,
        kind: &str,
        uuid: Uuid,
        owner: &str,
    ) -> Result<(), ActionError> {
        let subject = Subject::Parent(parent.clone());
        self.check_finished(&subject)?;
        let (types, _) = self.places.sysfs.mediated_devices(parent.as_str())?;
        let made = |change: &Change| matches!(change, Change::Mdev { uuid: of, .. } if *of == uuid);
        if self.mdev(uuid).exists() {
            let same = self.kept_with(made).is_some_and(|kept| {
                let like = |change: &Change| {
                    matches!(change, Change::Mdev { parent: of, kind: is, .. }
                        if of == parent && is == kind)
                };
                kept.owner.as_deref() == Some(owner) && kept.changes.iter().any(like)
            });
            return if same { Ok(()) } else { Err(ActionError::Taken { uuid }) };
        }
        let found = types.iter().find(|of| of.id == kind && of.available > 0);
        if found.is_none() {
            let left = types.iter().filter(|of| of.available > 0);
            let offers = left.map(|of| format!("{} ({} left)", of.id, of.available)).collect();
            return Err(ActionError::NoInstance { subject, kind: kind.into(), offers });
        }
        let (kind, parent) = (kind.to_owned(), parent.clone());
        let what = format!("make the mediated device {uuid} of {subject}");
        let changes = vec![Change::Mdev { parent, kind, uuid, from: false, to: true }];
        let owner = Some(owner.to_owned());
        self.run(Action { what, owner, changes, ..Action::default() })
    }

    /// Takes a mediated device away that was made here. One that is gone is no error.
    ///
    /// # Errors
    /// When somebody uses it, it was not made here, or the kernel refuses.
    pub fn remove_mdev(&mut self, uuid: Uuid) -> Result<(), ActionError> {
        let made = |change: &Change| matches!(change, Change::Mdev { uuid: of, .. } if *of == uuid);
        let Some(kept) = self.kept_with(made).cloned() else {
            return match self.mdev(uuid).exists() {
                true => Err(ActionError::NotOurs(format!("the mediated device {uuid}"))),
                false => Ok(()),
            };
        };
        let group = link_name(&self.mdev(uuid).join("iommu_group"))?;
        let mut nodes: BTreeSet<PathBuf> =
            group.into_iter().map(|group| PathBuf::from("/dev/vfio").join(group)).collect();
        let device = self.places.sysfs.vfio_name(&self.mdev(uuid))?;
        nodes.extend(device.map(|name| PathBuf::from("/dev/vfio/devices").join(name)));
        let holders = self.places.proc.holders(&nodes)?;
        if let (false, Some(change)) = (holders.is_empty(), kept.changes.first()) {
            return Err(ActionError::Held { subject: change.subject(), holders });
        }
        self.take_back(&kept)
    }

    fn mdev(&self, uuid: Uuid) -> PathBuf {
        self.places.sysfs.0.join("bus/mdev/devices").join(uuid.to_string())
    }

    /// Makes a vGPU of a vendor's type on a virtual function, for `owner`. The function stays with
    /// the vendor's driver. The same again is no error.
    ///
    /// # Errors
    /// When the place is another's, the type cannot be made now, or the kernel refuses.
    pub fn create_vgpu(
        &mut self,
        address: PciAddress,
        kind: u32,
        owner: &str,
    ) -> Result<(), ActionError> {
        let function = self.usable(address)?;
        let vgpu = vendor(&function)?;
        if let Some(current) = vgpu.current {
            let holder = self.vgpu_owner(address);
            return match holder.as_deref() == Some(owner) && current == kind {
                true => Ok(()),
                false => Err(ActionError::Owned { address, owner: holder }),
            };
        }
        if !vgpu.creatable.iter().any(|of| of.id == kind) {
            let offers = vgpu.creatable.iter().map(|of| format!("{} ({})", of.id, of.name));
            let offers = offers.collect();
            let (subject, kind) = (address.into(), kind.to_string());
            return Err(ActionError::NoInstance { subject, kind, offers });
        }
        // Paths are used again: a handle of the last owner's would be one to the new vGPU.
        self.check_free(&function)?;
        let changes = vec![Change::Vgpu { address, from: 0, to: kind }];
        let (what, owner) = (format!("make a vGPU of type {kind} on {address}"), owner.to_owned());
        self.run(Action { what, owner: Some(owner), changes, ..Action::default() })
    }

    /// Frees the vGPU of `owner` on a virtual function. One that is gone is no error.
    ///
    /// # Errors
    /// When it is another's, somebody has it open, or the kernel refuses.
    pub fn free_vgpu(&mut self, address: PciAddress, owner: &str) -> Result<(), ActionError> {
        let function = self.usable(address)?;
        let holder = self.vgpu_owner(address);
        if vendor(&function)?.current.is_none() && holder.is_none() {
            return Ok(());
        }
        if holder.as_deref() != Some(owner) {
            return Err(ActionError::Owned { address, owner: holder });
        }
        self.check_free(&function)?;
        let kept = self.kept_with(on_vgpu(address)).cloned();
        let kept = kept.ok_or_else(|| ActionError::NotOurs(format!("the vGPU on {address}")))?;
        self.take_back(&kept)
    }

    /// For whom the vGPU on a virtual function was made here.
    pub fn vgpu_owner(&self, address: PciAddress) -> Option<String> {
        self.kept_with(on_vgpu(address)).and_then(|kept| kept.owner.clone())
    }
}

fn on_vgpu(address: PciAddress) -> impl Fn(&Change) -> bool {
    move |change| matches!(change, Change::Vgpu { address: of, .. } if *of == address)
}

fn vendor(function: &PciFunction) -> Result<&crate::pci::VendorVgpu, ActionError> {
    function.vgpu.as_ref().ok_or(ActionError::NotOffered {
        address: function.address,
        file: "nvidia/current_vgpu_type",
        why: "it is no virtual function on NVIDIA's vGPU driver (run sriov-manage -e for its GPU)",
    })
}
