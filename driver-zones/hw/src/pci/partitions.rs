//! Into what a function can be cut, and what of that is there.

use std::path::{Path, PathBuf};

use gpuzone_core::{MemoryBytes, PciAddress};
use uuid::Uuid;

use super::read::{entries, link_name, text};
use super::{MdevType, Sriov, SysfsError, VendorVgpu, VfProfile, parse};
use crate::SysfsRoot;

fn count(path: &Path) -> Result<Option<u32>, SysfsError> {
    let Some(text) = text(path)? else { return Ok(None) };
    match parse::count(&text) {
        Some(number) => Ok(Some(number)),
        None => Err(SysfsError::strange(path, &text, "a count")),
    }
}

impl SysfsRoot {
    pub(super) fn sriov(&self, folder: &Path) -> Result<Option<Sriov>, SysfsError> {
        let Some(total) = count(&folder.join("sriov_totalvfs"))? else { return Ok(None) };
        let autoprobe = text(&folder.join("sriov_drivers_autoprobe"))?;
        let mut functions: Vec<(u32, PciAddress)> = Vec::new();
        for name in entries(folder)? {
            let Some(number) = name.strip_prefix("virtfn").and_then(parse::count) else { continue };
            let target = link_name(&folder.join(&name))?;
            functions.extend(target.and_then(|name| Some((number, name.parse().ok()?))));
        }
        functions.sort_unstable();
        Ok(Some(Sriov {
            total,
            enabled: count(&folder.join("sriov_numvfs"))?.unwrap_or_default(),
            autoprobe: autoprobe.is_none_or(|text| text != "0"),
            functions: functions.into_iter().map(|(_, address)| address).collect(),
            profiles: profiles(&folder.join("sriov_admin"))?,
        }))
    }

    /// How many virtual functions there are, and whether the kernel looks for drivers for more.
    pub(crate) fn virtual_functions(
        &self,
        address: PciAddress,
    ) -> Result<Option<(u32, bool)>, SysfsError> {
        let sriov = self.sriov(&self.function(address))?;
        Ok(sriov.map(|sriov| (sriov.enabled, sriov.autoprobe)))
    }

    /// The folder of the types that a parent of mediated devices makes.
    pub(crate) fn mdev_parent(&self, parent: &str) -> PathBuf {
        self.0.join("class/mdev_bus").join(parent).join("mdev_supported_types")
    }

    /// What mediated devices a parent makes, and which there are.
    pub(crate) fn mediated_devices(
        &self,
        parent: &str,
    ) -> Result<(Vec<MdevType>, Vec<Uuid>), SysfsError> {
        let (mut types, mut devices) = (Vec::new(), Vec::new());
        let parent = self.mdev_parent(parent);
        for id in entries(&parent)? {
            let of = parent.join(&id);
            let Some(available) = count(&of.join("available_instances"))? else { continue };
            let made = entries(&of.join("devices"))?;
            devices.extend(made.iter().filter_map(|name| name.parse::<Uuid>().ok()));
            let name = text(&of.join("name"))?;
            let description = text(&of.join("description"))?;
            types.push(MdevType { id, name, description, available });
        }
        Ok((types, devices))
    }

    pub(super) fn vendor_vgpu(&self, folder: &Path) -> Result<Option<VendorVgpu>, SysfsError> {
        let folder = folder.join("nvidia");
        let Some(current) = count(&folder.join("current_vgpu_type"))? else { return Ok(None) };
        let creatable = text(&folder.join("creatable_vgpu_types"))?.unwrap_or_default();
        let current = Some(current).filter(|id| *id != 0);
        Ok(Some(VendorVgpu { current, creatable: parse::vgpu_types(&creatable) }))
    }

    /// The type of the vGPU on a virtual function, 0 for none; `None` where no driver makes any.
    pub(crate) fn current_vgpu(&self, vf: PciAddress) -> Result<Option<u32>, SysfsError> {
        count(&self.function(vf).join("nvidia/current_vgpu_type"))
    }
}

/// What Intel's driver says of virtual functions, by their numbers.
fn profiles(admin: &Path) -> Result<Vec<VfProfile>, SysfsError> {
    let mut profiles = Vec::new();
    for name in entries(admin)? {
        let Some(vf) = name.strip_prefix("vf").and_then(parse::count) else { continue };
        let profile = admin.join(&name).join("profile");
        let memory = text(&profile.join("vram_quota"))?.and_then(|text| text.parse().ok());
        // `sched_priority` lists all and puts the one that holds into brackets.
        let priority = text(&profile.join("sched_priority"))?;
        let chosen =
            |text: String| match text.split_once('[').and_then(|(_, rest)| rest.split_once(']')) {
                Some((chosen, _)) => chosen.to_owned(),
                None => text,
            };
        profiles.push(VfProfile {
            vf,
            exec_quantum_ms: count(&profile.join("exec_quantum_ms"))?,
            preempt_timeout_us: count(&profile.join("preempt_timeout_us"))?,
            priority: priority.map(chosen),
            memory: memory.map(MemoryBytes::saturating),
        });
    }
    profiles.sort_by_key(|profile| profile.vf);
    Ok(profiles)
}
