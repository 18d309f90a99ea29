//! vGPUs that the agent makes: mediated devices, NVIDIA's on virtual functions, and virtual
//! functions. They are made at its start, for a container that is given one is told at once which
//! device it opens; between two tenants one is taken away and made anew.
//!
//! Which vGPU is which follows from the configuration alone: a mediated device bears the UUID of
//! the vGPU, the others are counted among their card's functions. So making is the same at the
//! first start and after a crash, and makes none twice.

use std::collections::BTreeSet;

use gpuzone_core::{ComputeShare, GpuUuid, PciAddress, Vgpu};
use gpuzone_hw::actions::{ActionError, Change, Devices, MdevParent, Writes};
use gpuzone_hw::pci::SysfsError;
use gpuzone_hw::vfio::Interface;
use gpuzone_hw::{NotReady, SysfsRoot, VfioFunction};
use uuid::Uuid;

use crate::config::{CutBy, VgpuGpu};
use crate::errors::sentence;

/// What to do where a virtual function needs a token: vGPUs are for pods, whose VMs are handed none.
const NO_TOKENS: &str = "vGPUs are handed over without tokens, so bind the physical one to its own driver, or have its functions used by `gpu-zone run`, each with a [[gpu]] of its own, exposure = \"passthrough\" and vf_token_file";

/// One vGPU of the configuration.
#[derive(Clone, Debug)]
pub(crate) struct Wanted<'a> {
    /// Of what.
    pub(crate) of: &'a VgpuGpu,
    /// Which, from 0.
    number: u32,
}

/// Why a vGPU is not made, or not taken away.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VgpuError {
    /// What was to be done could not be.
    #[error(transparent)]
    Action(#[from] ActionError),
    /// Its function is not there.
    #[error(transparent)]
    Function(#[from] NotReady),
}

/// All vGPUs of the configuration.
pub(crate) fn all(gpus: &[VgpuGpu]) -> impl Iterator<Item = Wanted<'_>> {
    gpus.iter().flat_map(|of| (0..of.count).map(move |number| Wanted { of, number }))
}

/// The vGPU of the configuration that is called so.
pub(crate) fn find(gpus: &[VgpuGpu], uuid: GpuUuid) -> Option<Wanted<'_>> {
    all(gpus).find(|wanted| wanted.uuid() == uuid)
}

impl Wanted<'_> {
    /// What gpu-zone calls it.
    pub(crate) fn uuid(&self) -> GpuUuid {
        self.of.gpu.uuid.vgpu(self.number)
    }

    /// As the domain has it.
    pub(crate) fn vgpu(&self) -> Vgpu {
        let VgpuGpu { gpu, by, kind, count, memory } = self.of;
        let share = ComputeShare::new((100 / (*count).max(1)).max(1));
        Vgpu {
            uuid: self.uuid(),
            gpu: gpu.uuid,
            mode: by.mode(),
            kind: kind.clone(),
            memory: *memory,
            share: share.unwrap_or(ComputeShare::WHOLE),
        }
    }

    fn mdev(&self) -> Uuid {
        Uuid::from_bytes(*self.uuid().as_bytes())
    }

    /// What the machine calls it: the mediated device's UUID, or the function's address.
    pub(crate) fn id(&self, sysfs: &SysfsRoot) -> String {
        match self.of.by {
            CutBy::Mdev => self.mdev().to_string(),
            CutBy::Vendor { .. } | CutBy::Functions => self.function(sysfs).map_or_else(
                |_| format!("{}/{}", self.of.gpu.address, self.number),
                |a| a.to_string(),
            ),
        }
    }

    /// The virtual function that it is, or is on.
    fn function(&self, sysfs: &SysfsRoot) -> Result<PciAddress, NotReady> {
        let found = functions(sysfs, self.of.gpu.address)?.get(self.number as usize).copied();
        found.ok_or(NotReady::NoFunction {
            physical: self.of.gpu.address,
            number: self.number,
            why: match self.of.by {
                CutBy::Vendor { .. } => "run sriov-manage -e for it",
                CutBy::Functions | CutBy::Mdev => "the agent's log says why it could not make them",
            },
        })
    }

    /// By what it is opened to be reset, where that is how it is cleared.
    pub(super) fn opening(
        &self,
        sysfs: &SysfsRoot,
        interface: Interface,
    ) -> Result<Option<(PciAddress, Interface)>, NotReady> {
        match self.of.by {
            CutBy::Mdev | CutBy::Vendor { .. } => Ok(None),
            CutBy::Functions => Ok(Some((self.function(sysfs)?, interface))),
        }
    }

    /// What a VM opens.
    pub(crate) fn ready(
        &self,
        sysfs: &SysfsRoot,
        others: &BTreeSet<PciAddress>,
    ) -> Result<VfioFunction, NotReady> {
        match self.of.by {
            CutBy::Mdev => sysfs.mediated_vfio(self.mdev()),
            CutBy::Vendor { kind } => {
                let (address, others) = self.among(sysfs, others)?;
                sysfs.vgpu_vfio(address, kind, &others)
            }
            CutBy::Functions => {
                let (address, others) = self.among(sysfs, others)?;
                let ready = sysfs.vfio(address, &others)?;
                sysfs.without_token(address, NO_TOKENS)?;
                Ok(ready)
            }
        }
    }

    /// Its function, and all others that are handed out.
    fn among(
        &self,
        sysfs: &SysfsRoot,
        others: &BTreeSet<PciAddress>,
    ) -> Result<(PciAddress, BTreeSet<PciAddress>), NotReady> {
        let mut all = others.clone();
        all.extend(functions(sysfs, self.of.gpu.address)?);
        Ok((self.function(sysfs)?, all))
    }

    /// Makes it; one that is there is left as it is.
    pub(super) fn make<W: Writes>(&self, devices: &mut Devices<W>) -> Result<(), VgpuError> {
        let (address, owner) = (self.of.gpu.address, self.uuid().to_string());
        match self.of.by {
            CutBy::Mdev => {
                let parent = MdevParent::from(address);
                devices.create_mdev(&parent, self.of.kind.as_str(), self.mdev(), &owner)?;
            }
            CutBy::Vendor { kind } => {
                let function = self.function(&devices.places().sysfs)?;
                devices.create_vgpu(function, kind, &owner)?;
            }
            CutBy::Functions => {
                devices.set_functions(address, self.of.count)?;
                let function = self.function(&devices.places().sysfs)?;
                devices.bind(function, &BTreeSet::new())?;
            }
        }
        Ok(())
    }

    /// Takes it away and makes it anew, so that nothing of it goes on.
    pub(super) fn remake<W: Writes>(&self, devices: &mut Devices<W>) -> Result<(), VgpuError> {
        match self.of.by {
            CutBy::Mdev => devices.remove_mdev(self.mdev())?,
            CutBy::Vendor { .. } => {
                let function = self.function(&devices.places().sysfs)?;
                devices.free_vgpu(function, &self.uuid().to_string())?;
            }
            // Virtual functions are reset, one by one: they come and go only together.
            CutBy::Functions => {}
        }
        self.make(devices)
    }

    /// Whether a change made it.
    fn is(&self, change: &Change, owner: Option<&str>) -> bool {
        match (&self.of.by, change) {
            (CutBy::Mdev, Change::Mdev { parent, kind, uuid, .. }) => {
                let here = *parent == MdevParent::from(self.of.gpu.address);
                here && *uuid == self.mdev() && kind == self.of.kind.as_str()
            }
            (CutBy::Vendor { kind }, Change::Vgpu { to, .. }) => {
                to == kind && owner == Some(self.uuid().to_string().as_str())
            }
            (CutBy::Functions, Change::Functions { address, to, .. }) => {
                *address == self.of.gpu.address && to.enabled == self.of.count
            }
            (CutBy::Mdev | CutBy::Vendor { .. } | CutBy::Functions, _) => false,
        }
    }
}

fn functions(sysfs: &SysfsRoot, physical: PciAddress) -> Result<Vec<PciAddress>, SysfsError> {
    let found = sysfs.pci_function(physical)?;
    Ok(found.and_then(|function| function.sriov).map_or_else(Vec::new, |sriov| sriov.functions))
}

/// The functions that are bound for vGPUs.
pub(super) fn bound(sysfs: &SysfsRoot, gpus: &[VgpuGpu]) -> BTreeSet<PciAddress> {
    let cut = gpus.iter().filter(|gpu| gpu.by == CutBy::Functions);
    cut.flat_map(|gpu| {
        let made = functions(sysfs, gpu.gpu.address).unwrap_or_default();
        // Of another number they are made anew, and cannot go while they are bound.
        if made.len() == gpu.count as usize { made } else { Vec::new() }
    })
    .collect()
}

/// Takes away what was made here and is not to be any more. What somebody has open stays.
pub(super) fn give_back<W: Writes>(devices: &mut Devices<W>, gpus: &[VgpuGpu]) {
    for action in devices.kept().to_vec() {
        let Some(change) = action.changes.first() else { continue };
        let owner = action.owner.as_deref();
        if all(gpus).any(|wanted| wanted.is(change, owner)) {
            continue;
        }
        let taken = match change {
            Change::Mdev { uuid, .. } => devices.remove_mdev(*uuid),
            Change::Vgpu { address, .. } => devices.free_vgpu(*address, owner.unwrap_or_default()),
            Change::Functions { address, .. } => devices.set_functions(*address, 0),
            Change::Binding { .. }
            | Change::GpuInstance { .. }
            | Change::ComputeInstance { .. }
            | Change::ResetOrder { .. } => continue,
        };
        match taken {
            Ok(()) => {
                tracing::info!(what = action.what, "undone: the configuration has it no more")
            }
            Err(error) => {
                let reason = sentence(&error);
                tracing::error!(what = action.what, reason, "it cannot be undone");
            }
        }
    }
}

/// Makes all of them. One that cannot be made is not ready, and the others serve.
pub(super) fn make_all<W: Writes>(devices: &mut Devices<W>, gpus: &[VgpuGpu]) {
    for wanted in all(gpus) {
        if let Err(error) = wanted.make(devices) {
            let (vgpu, reason) = (wanted.uuid(), sentence(&error));
            tracing::error!(%vgpu, gpu = %wanted.of.gpu.uuid, reason, "it cannot be made");
        }
    }
}
