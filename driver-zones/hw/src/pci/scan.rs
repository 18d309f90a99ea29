use std::path::Path;

use gpuzone_core::PciAddress;

use super::read::{entries, link_name, text};
use super::{FunctionKind, IommuGroup, PciFunction, SysfsError, parse};
use crate::SysfsRoot;

fn number(path: &Path) -> Result<Option<u32>, SysfsError> {
    let Some(text) = text(path)? else { return Ok(None) };
    match parse::hex(&text) {
        Some(number) => Ok(Some(number)),
        None => Err(SysfsError::strange(path, &text, "a number like 0x10de")),
    }
}

fn short_number(path: &Path) -> Result<Option<u16>, SysfsError> {
    let Some(number) = number(path)? else { return Ok(None) };
    let short = u16::try_from(number);
    let wide = |_| SysfsError::strange(path, &format!("{number:#x}"), "a number of four digits");
    short.map(Some).map_err(wide)
}

/// The kernel writes `(null)` where there is none.
fn overridden(folder: &Path) -> Result<Option<String>, SysfsError> {
    let text = text(&folder.join("driver_override"))?;
    Ok(text.filter(|name| !name.is_empty() && name != "(null)"))
}

impl SysfsRoot {
    /// All PCI functions, by address. One that goes away meanwhile is left out.
    ///
    /// # Errors
    /// When sysfs cannot be read, or says what nothing here understands.
    pub fn functions(&self) -> Result<Vec<PciFunction>, SysfsError> {
        let mut found = Vec::new();
        for name in entries(&self.0.join("bus/pci/devices"))? {
            let Ok(address) = name.parse() else { continue };
            found.extend(self.pci_function(address)?);
        }
        found.sort_by_key(|function| function.address);
        Ok(found)
    }

    /// The function at `address`; `None` where there is none.
    ///
    /// # Errors
    /// As for [`Self::functions`].
    pub fn pci_function(&self, address: PciAddress) -> Result<Option<PciFunction>, SysfsError> {
        let folder = self.function(address);
        let Some(class) = number(&folder.join("class"))? else { return Ok(None) };
        let vendor = short_number(&folder.join("vendor"))?.unwrap_or_default();
        let resource = text(&folder.join("resource"))?.unwrap_or_default();
        let methods = text(&folder.join("reset_method"))?.unwrap_or_default();
        let (mdev_types, mdevs) = self.mediated_devices(&address.to_string())?;
        Ok(Some(PciFunction {
            address,
            vendor,
            device: short_number(&folder.join("device"))?.unwrap_or_default(),
            class,
            kind: FunctionKind::of(class, vendor),
            modalias: text(&folder.join("modalias"))?,
            numa_node: self.numa_node(address),
            driver: link_name(&folder.join("driver"))?,
            driver_override: overridden(&folder)?,
            bars: parse::bars(&resource),
            group: self.group(address)?,
            companions: companions(&folder)?,
            reset_methods: parse::reset_methods(&methods),
            sriov: self.sriov(&folder)?,
            physical: link_name(&folder.join("physfn"))?.and_then(|name| name.parse().ok()),
            mdev_types,
            mdevs,
            vgpu: self.vendor_vgpu(&folder)?,
            vfio_device: self.vfio_name(&folder)?,
        }))
    }

    /// What a function is bound to, and the only driver that may have it.
    pub(crate) fn binding(
        &self,
        address: PciAddress,
    ) -> Result<(Option<String>, Option<String>), SysfsError> {
        let folder = self.function(address);
        Ok((link_name(&folder.join("driver"))?, overridden(&folder)?))
    }

    /// What the IOMMU cannot keep apart from a function.
    pub(crate) fn group(&self, address: PciAddress) -> Result<Option<IommuGroup>, SysfsError> {
        let link = self.function(address).join("iommu_group");
        let Some(name) = link_name(&link)? else { return Ok(None) };
        let strange = || SysfsError::strange(&link, &name, "the number of a group");
        let number = name.parse().map_err(|_| strange())?;
        let members = entries(&link.join("devices"))?;
        let members = members.iter().filter_map(|name| name.parse().ok()).collect();
        Ok(Some(IommuGroup { number, members }))
    }

    /// Its name among VFIO's devices.
    pub(crate) fn vfio_name(&self, folder: &Path) -> Result<Option<String>, SysfsError> {
        let names = entries(&folder.join("vfio-dev"))?;
        Ok(names.into_iter().find(|name| name.starts_with("vfio") && parse::is_name(name)))
    }
}

/// What depends on a function, by the kernel's links between devices: `consumer:pci:<address>`.
fn companions(folder: &Path) -> Result<Vec<PciAddress>, SysfsError> {
    let names = entries(folder)?;
    let address = |name: &String| name.strip_prefix("consumer:pci:")?.parse().ok();
    Ok(names.iter().filter_map(address).collect())
}
