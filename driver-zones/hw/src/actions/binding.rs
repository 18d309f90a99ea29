use std::collections::BTreeSet;

use gpuzone_core::PciAddress;

use super::{Action, ActionError, Binding, Change, Devices, Subject, Writes, for_vfio};
use crate::alias::GENERIC;
use crate::pci::parse::is_name;
use crate::pci::{FunctionKind, PciFunction, entries};

/// A function that is on a driver for VFIO now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Which driver.
    pub driver: String,
    /// What went with it.
    pub with: Vec<PciAddress>,
    /// Whether anything had to be done.
    pub changed: bool,
}

impl<W: Writes> Devices<W> {
    /// Binds a function to its driver for VFIO, with its companions and `with`, which share its
    /// IOMMU group and go where it goes.
    ///
    /// # Errors
    /// When it may not be, or the kernel refuses; all is as before then.
    pub fn bind(
        &mut self,
        address: PciAddress,
        with: &BTreeSet<PciAddress>,
    ) -> Result<Bound, ActionError> {
        let function = self.usable(address)?;
        let mut members: BTreeSet<PciAddress> = with.clone();
        members.extend(&function.companions);
        members.remove(&address);
        let with: Vec<PciAddress> = members.iter().copied().collect();
        self.check_group(&function, &members)?;
        let others = with.iter().map(|other| self.usable(*other)).collect::<Result<Vec<_>, _>>()?;
        let driver = self.vfio_driver(&function)?;
        let mut changes = Vec::new();
        for member in std::iter::once(&function).chain(&others) {
            let goal = match member.address == address {
                true => driver.clone(),
                false => self.vfio_driver(member)?,
            };
            if member.driver.as_ref() == Some(&goal) {
                continue;
            }
            self.check_unused(member)?;
            let from =
                Binding { driver: member.driver.clone(), only: member.driver_override.clone() };
            let to = Binding { driver: Some(goal.clone()), only: Some(goal) };
            changes.push(Change::Binding { address: member.address, from, to });
        }
        let changed = !changes.is_empty();
        if changed {
            let what = format!("bind {address} to {driver}");
            self.run(Action { what, changes, ..Action::default() })?;
        }
        Ok(Bound { driver, with, changed })
    }

    /// Gives a function that was bound here back to what it was bound to before, with what went
    /// with it.
    ///
    /// # Errors
    /// When it was not bound here, somebody uses it, or the kernel refuses: it is on VFIO then as
    /// before.
    pub fn release(&mut self, address: PciAddress) -> Result<(), ActionError> {
        let ours = self.kept_with(
            |change| matches!(change, Change::Binding { address: bound, .. } if *bound == address),
        );
        let kept = ours.cloned().ok_or_else(|| ActionError::NotOurs(format!("{address}")))?;
        for change in &kept.changes {
            let Subject::Function(member) = change.subject() else { continue };
            match self.usable(member) {
                Ok(member) => self.check_unused(&member)?,
                // Pulled out meanwhile: there is nothing left to give back.
                Err(ActionError::Missing(_)) => {}
                Err(error) => return Err(error),
            }
        }
        self.take_back(&kept)
    }

    fn check_unused(&self, function: &PciFunction) -> Result<(), ActionError> {
        match &function.sriov {
            Some(sriov) if sriov.enabled > 0 => {
                let (address, enabled) = (function.address, sriov.enabled);
                Err(ActionError::HasFunctions { address, enabled })
            }
            Some(_) | None => self.check_free(function),
        }
    }

    /// What shares the group must be on VFIO, on nothing, or go with it.
    fn check_group(
        &self,
        function: &PciFunction,
        with: &BTreeSet<PciAddress>,
    ) -> Result<(), ActionError> {
        let address = function.address;
        let group = function.group.as_ref().ok_or(ActionError::NoGroup(address))?;
        let mut members = Vec::new();
        for member in &group.members {
            if *member == address || with.contains(member) {
                continue;
            }
            let Some(other) = self.places.sysfs.pci_function(*member)? else { continue };
            let Some(driver) = other.driver else { continue };
            if !for_vfio(Some(&driver)) && other.kind != FunctionKind::Bridge {
                members.push((*member, driver));
            }
        }
        match members.is_empty() {
            true => Ok(()),
            false => Err(ActionError::Members { address, group: group.number, members }),
        }
    }

    /// The driver for VFIO that belongs to a function. It must be loaded: another in its place
    /// would work, and lack what the vendor's has.
    fn vfio_driver(&self, function: &PciFunction) -> Result<String, ActionError> {
        let modalias = function.modalias.as_deref().unwrap_or_default();
        let module = self.places.aliases.module_for(modalias).unwrap_or(GENERIC);
        let sysfs = &self.places.sysfs.0;
        let spellings = [module.to_owned(), module.replace('-', "_"), module.replace('_', "-")];
        for folder in &spellings {
            let of_module = entries(&sysfs.join("module").join(folder).join("drivers"))?;
            let named = of_module.iter().find_map(|name| name.strip_prefix("pci:"));
            if let Some(name) = named.filter(|name| is_name(name)) {
                return Ok(name.to_owned());
            }
        }
        // A driver that is part of the kernel is no module.
        let drivers = sysfs.join("bus/pci/drivers");
        let built_in = spellings.into_iter().find(|name| drivers.join(name).is_dir());
        built_in.ok_or_else(|| ActionError::NoDriver {
            address: function.address,
            module: module.to_owned(),
            why: if module.replace('_', "-") == GENERIC { " (CONFIG_VFIO_PCI)" } else { "" },
        })
    }
}
