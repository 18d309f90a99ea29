//! How a GPU is cut, and into what it could be.

use std::fmt;
use std::path::PathBuf;

use gpuzone_core::{GpuUuid, MemoryBytes};
use nvml_wrapper::Device;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper_sys::bindings::NVML_GPU_INSTANCE_PROFILE_COUNT;
use serde::{Deserialize, Serialize};

use super::ENABLED;
use super::error::MigError;
use super::sys::{GpuInstanceHandle, Raw, RawError};
use crate::NvmlLibrary;

/// What stands before the name of a profile, as NVML calls it.
const BEFORE_NAME: &str = "MIG ";

/// Memory slices of a GPU, from the first of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MigPlacement {
    /// The first, from 0.
    pub start: u32,
    /// How many.
    pub size: u32,
}

impl MigPlacement {
    /// Whether two share a slice.
    pub const fn overlaps(self, other: Self) -> bool {
        let (end, other_end) =
            (self.start.saturating_add(self.size), other.start.saturating_add(other.size));
        self.start < other_end && other.start < end
    }
}

impl fmt::Display for MigPlacement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.size {
            1 => write!(f, "memory slice {}", self.start),
            _ => {
                let last = self.start.saturating_add(self.size).saturating_sub(1);
                write!(f, "memory slices {}-{last}", self.start)
            }
        }
    }
}

/// A kind of GPU instance that a GPU can have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigKind {
    /// The GPU's own identifier of it.
    pub id: u32,
    /// As NVML calls it, like `1g.10gb+me`.
    pub name: String,
    /// Compute slices, of seven.
    pub slices: u32,
    /// What one has.
    pub memory: MemoryBytes,
    /// The most there can be at once, if there is nothing else.
    pub most: u32,
    /// Where one may lie.
    pub placements: Vec<MigPlacement>,
}

/// A part of a GPU instance that is a MIG device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComputeInstance {
    /// Its number in its GPU instance.
    pub number: u32,
    /// Its compute slices, of those of its GPU instance.
    pub slices: u32,
    /// What the driver calls the device.
    pub uuid: Option<GpuUuid>,
}

/// A GPU instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuInstance {
    /// Its number on its GPU.
    pub number: u32,
    /// Which kind it is ([`MigKind::id`]).
    pub kind: u32,
    /// Its memory slices.
    pub placement: MigPlacement,
    /// Its compute slices.
    pub slices: u32,
    /// What of it programs can run on.
    pub computes: Vec<ComputeInstance>,
    /// Processes with a context on it.
    pub users: Vec<u32>,
}

impl GpuInstance {
    /// Whether one compute instance is all of it.
    pub fn is_whole(&self) -> bool {
        self.computes.iter().any(|compute| compute.slices == self.slices)
    }
}

/// How a GPU with MIG is cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigLayout {
    /// Whether it is in MIG mode now.
    pub enabled: bool,
    /// What it can be cut into.
    pub kinds: Vec<MigKind>,
    /// What it is cut into, by place.
    pub instances: Vec<GpuInstance>,
}

impl MigLayout {
    /// The kind with an identifier.
    pub fn kind(&self, id: u32) -> Option<&MigKind> {
        self.kinds.iter().find(|kind| kind.id == id)
    }

    /// The instance of this kind at this place.
    pub fn at(&self, place: &MigPlace) -> Option<&GpuInstance> {
        let is = |of: &&GpuInstance| of.kind == place.kind && of.placement == place.at;
        self.instances.iter().find(is)
    }
}

/// An instance that is or is not there: a kind at a place of a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MigPlace {
    /// Of which GPU.
    pub gpu: GpuUuid,
    /// [`MigKind::id`].
    pub kind: u32,
    /// Its memory slices.
    pub at: MigPlacement,
}

impl fmt::Display for MigPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of GPU {} (profile {})", self.at, self.gpu, self.kind)
    }
}

/// One call of the driver's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MigStep {
    /// A GPU instance is made.
    MakeInstance(MigPlace),
    /// Its compute instance is, with all of its slices.
    MakeCompute(MigPlace),
    /// That one is ended.
    EndCompute(MigPlace),
    /// And the GPU instance.
    EndInstance(MigPlace),
}

impl MigStep {
    /// Where.
    pub const fn place(&self) -> &MigPlace {
        match self {
            Self::MakeInstance(at)
            | Self::MakeCompute(at)
            | Self::EndCompute(at)
            | Self::EndInstance(at) => at,
        }
    }
}

impl fmt::Display for MigStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self {
            Self::MakeInstance(_) => "make the GPU instance",
            Self::MakeCompute(_) => "make the compute instance",
            Self::EndCompute(_) => "end the compute instance",
            Self::EndInstance(_) => "end the GPU instance",
        };
        write!(f, "{what} at {}", self.place())
    }
}

/// A driver's NVML by its path, opened for each question and let go of: nothing has the GPUs open
/// in between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigDriver(pub PathBuf);

impl MigDriver {
    fn open(&self, gpu: GpuUuid) -> Result<NvmlLibrary, MigError> {
        NvmlLibrary::open(&self.0).map_err(|source| MigError::Open { gpu, source })
    }

    /// How a GPU is cut now.
    ///
    /// # Errors
    /// When it has no MIG, or NVML does not say.
    pub fn layout(&self, gpu: GpuUuid) -> Result<MigLayout, MigError> {
        self.open(gpu)?.mig_layout(gpu)?.ok_or(MigError::NoMig(gpu))
    }

    /// Makes or ends an instance.
    ///
    /// # Errors
    /// When the driver refuses, or fails.
    pub fn cut(&self, step: &MigStep) -> Result<(), MigError> {
        self.open(step.place().gpu)?.cut(step)
    }
}

impl NvmlLibrary {
    /// How a GPU is cut now; `None` for one without MIG.
    ///
    /// # Errors
    /// When NVML does not say.
    pub fn mig_layout(&self, gpu: GpuUuid) -> Result<Option<MigLayout>, MigError> {
        let device = self.device(gpu)?;
        let query = |what| move |error: RawError| known(what, gpu, &error);
        let enabled = match device.mig_mode() {
            Ok(mode) => mode.current == ENABLED,
            Err(NvmlError::NotSupported | NvmlError::FailedToLoadSymbol(_)) => return Ok(None),
            Err(error) => return Err(known("MIG mode", gpu, &error)),
        };
        let mut kinds = Vec::new();
        for number in 0..NVML_GPU_INSTANCE_PROFILE_COUNT {
            let found = self.raw.kind(&device, number).map_err(query("profiles"))?;
            let Some(raw) = found else { continue };
            let placements = self.raw.placements(&device, raw.id).map_err(query("placements"))?;
            let name =
                raw.name.as_deref().map(|name| name.strip_prefix(BEFORE_NAME).unwrap_or(name));
            kinds.push(MigKind {
                id: raw.id,
                name: name.map_or_else(|| format!("profile {}", raw.id), str::to_owned),
                slices: raw.slices,
                memory: MemoryBytes::saturating(raw.megabytes.saturating_mul(1 << 20)),
                most: raw.most,
                placements,
            });
        }
        let mut instances = Vec::new();
        if enabled {
            let devices = self.mig_devices(&device);
            for kind in &kinds {
                let found = self.raw.instances(&device, kind.id).map_err(query("GPU instances"))?;
                for handle in found {
                    let one = self.instance(handle, kind.slices, &devices);
                    instances.push(one.map_err(query("instances"))?);
                }
            }
            let processes = device.running_compute_processes().unwrap_or_default();
            for of in &mut instances {
                let on =
                    processes.iter().filter(|process| process.gpu_instance_id == Some(of.number));
                of.users = on.map(|process| process.pid).collect();
            }
        }
        instances.sort_by_key(|of| of.placement);
        Ok(Some(MigLayout { enabled, kinds, instances }))
    }

    fn device(&self, gpu: GpuUuid) -> Result<Device<'_>, MigError> {
        self.nvml.device_by_uuid(gpu.to_string()).map_err(|error| match error {
            NvmlError::NotFound | NvmlError::InvalidArg | NvmlError::GpuLost => {
                MigError::UnknownGpu(gpu)
            }
            other => known("handle", gpu, &other),
        })
    }

    /// The MIG devices of a GPU, by the numbers of their instances. What does not say is left out: it
    /// has no name then, and is there all the same.
    fn mig_devices(&self, device: &Device<'_>) -> Vec<((u32, u32), GpuUuid)> {
        let count = device.mig_device_count().unwrap_or(0);
        let devices = (0..count).filter_map(|index| device.mig_device_by_index(index).ok());
        let named = devices.filter_map(|of| {
            let uuid = of.uuid().ok()?.parse().ok()?;
            Some((self.raw.numbers(&of).ok()?, uuid))
        });
        named.collect()
    }

    fn instance(
        &self,
        handle: GpuInstanceHandle,
        slices: u32,
        devices: &[((u32, u32), GpuUuid)],
    ) -> Result<GpuInstance, RawError> {
        let raw = self.raw.instance(handle)?;
        let mut computes = Vec::new();
        for kind in self.raw.compute_kinds(handle)? {
            for found in self.raw.computes(handle, kind.id)? {
                let number = self.raw.compute(found)?.number;
                let device = devices.iter().find(|(at, _)| *at == (raw.number, number));
                let uuid = device.map(|(_, uuid)| *uuid);
                computes.push(ComputeInstance { number, slices: kind.slices, uuid });
            }
        }
        let (number, kind, placement) = (raw.number, raw.kind, raw.placement);
        Ok(GpuInstance { number, kind, placement, slices, computes, users: Vec::new() })
    }

    /// Makes or ends an instance.
    ///
    /// # Errors
    /// When the driver refuses, or fails.
    pub fn cut(&self, step: &MigStep) -> Result<(), MigError> {
        let place = step.place();
        let device = self.device(place.gpu)?;
        let did = |error: RawError| {
            let (step, reason) = (*step, error.to_string());
            match error.is_refusal() {
                true => MigError::Refused { step, reason },
                false => MigError::Failed { step, reason },
            }
        };
        if let MigStep::MakeInstance(_) = step {
            return self.raw.make_instance(&device, place.kind, place.at).map_err(did);
        }
        let handle = find(&self.raw, &device, place).map_err(did)?;
        let gone = || MigError::Refused { step: *step, reason: "it is not there".to_owned() };
        let handle = handle.ok_or_else(gone)?;
        match step {
            MigStep::MakeInstance(_) => Ok(()),
            MigStep::EndInstance(_) => self.raw.end_instance(handle).map_err(did),
            MigStep::MakeCompute(_) => {
                let kind = whole(&self.raw, &device, handle, place.kind).map_err(did)?;
                self.raw.make_compute(handle, kind.ok_or_else(gone)?).map_err(did)
            }
            MigStep::EndCompute(_) => {
                let kind = whole(&self.raw, &device, handle, place.kind).map_err(did)?;
                let found = self.raw.computes(handle, kind.ok_or_else(gone)?).map_err(did)?;
                self.raw.end_compute(*found.first().ok_or_else(gone)?).map_err(did)
            }
        }
    }
}

fn known(what: &'static str, gpu: GpuUuid, error: &impl fmt::Display) -> MigError {
    MigError::Query { what, gpu, reason: error.to_string() }
}

fn find(
    raw: &Raw,
    device: &Device<'_>,
    place: &MigPlace,
) -> Result<Option<GpuInstanceHandle>, RawError> {
    for handle in raw.instances(device, place.kind)? {
        if raw.instance(handle)?.placement == place.at {
            return Ok(Some(handle));
        }
    }
    Ok(None)
}

/// The kind of compute instance that is all of a GPU instance of this kind.
fn whole(
    raw: &Raw,
    device: &Device<'_>,
    handle: GpuInstanceHandle,
    kind: u32,
) -> Result<Option<u32>, RawError> {
    let mut slices = None;
    for number in 0..NVML_GPU_INSTANCE_PROFILE_COUNT {
        let found = raw.kind(device, number)?.filter(|found| found.id == kind);
        slices = slices.or(found.map(|found| found.slices));
    }
    let all = raw.compute_kinds(handle)?;
    Ok(all.iter().find(|of| Some(of.slices) == slices).map(|of| of.id))
}
