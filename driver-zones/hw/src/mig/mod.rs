//! MIG: which GPUs are cut into instances, and those; into what they could be cut, and the cutting.

mod error;
mod layout;
mod sys;

use std::collections::BTreeSet;

use gpuzone_core::{Gpu, GpuUuid, MemoryBytes, MigInstance, MigProfile, mig_share};
use nvml_wrapper::Device;
use nvml_wrapper::error::NvmlError;

use crate::{DiscoverError, QueryError};

pub use error::MigError;
pub use layout::{
    ComputeInstance, GpuInstance, MigDriver, MigKind, MigLayout, MigPlace, MigPlacement, MigStep,
};
pub(crate) use sys::Raw;

/// `nvmlDeviceGetMigMode` says so.
const ENABLED: u32 = 1;
/// What stands before the profile in an instance's name: "NVIDIA H100 80GB HBM3 MIG 1g.10gb".
const BEFORE_PROFILE: &str = " MIG ";

/// What of a node's GPUs is cut into MIG instances.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MigListing {
    /// The GPUs in MIG mode. They are their instances, and nothing else can be had of them.
    pub gpus: BTreeSet<GpuUuid>,
    /// The instances that can be handed over.
    pub instances: Vec<MigInstance>,
    /// Those that cannot.
    pub left_out: Vec<LeftOut>,
}

/// A MIG instance that is not handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// Its GPU.
    pub gpu: GpuUuid,
    /// NVML's index of it.
    pub index: u32,
    /// Why, and what to do.
    pub why: String,
}

/// Why an instance is not handed over. The others are.
#[derive(Debug, thiserror::Error)]
enum Unfit {
    #[error("its {what} is not known; see whether nvidia-smi -L lists it: {source}")]
    Query { what: &'static str, source: QueryError },
    #[error("its name '{0}' names no MIG profile")]
    Name(String),
    #[error("its identifier '{0}' is no MIG UUID of today's drivers; use R470 or later")]
    Identifier(String),
    #[error(
        "it is a part of its GPU instance ({compute} of {all} slices) and shares that one's memory with others, so it keeps no tenants apart; make one compute instance of the whole GPU instance"
    )]
    Shares { compute: u32, all: u32 },
}

impl MigListing {
    /// Adds a GPU, if it is in MIG mode.
    pub(crate) fn add(&mut self, device: &Device<'_>, gpu: &Gpu) -> Result<(), DiscoverError> {
        let query = |what| {
            move |error: NvmlError| DiscoverError::Query {
                what,
                index: gpu.index,
                source: error.into(),
            }
        };
        match device.mig_mode() {
            Ok(mode) if mode.current == ENABLED => {}
            Ok(_) | Err(NvmlError::NotSupported | NvmlError::FailedToLoadSymbol(_)) => {
                return Ok(());
            }
            Err(error) => return Err(query("MIG mode")(error)),
        }
        self.gpus.insert(gpu.uuid);
        let most = device.mig_device_count().map_err(query("number of MIG instances"))?;
        for index in 0..most {
            let instance = match device.mig_device_by_index(index) {
                // The places are numbered, and not all are taken.
                Err(NvmlError::NotFound | NvmlError::InvalidArg) => continue,
                other => other.map_err(query("handle of a MIG instance"))?,
            };
            match describe(&instance, gpu.uuid) {
                Ok(found) => self.instances.push(found),
                Err(unfit) => {
                    let (gpu, why) = (gpu.uuid, unfit.to_string());
                    self.left_out.push(LeftOut { gpu, index, why });
                }
            }
        }
        Ok(())
    }
}

fn describe(instance: &Device<'_>, gpu: GpuUuid) -> Result<MigInstance, Unfit> {
    let query = |what| move |error: NvmlError| Unfit::Query { what, source: error.into() };
    let uuid = instance.uuid().map_err(query("UUID"))?;
    let uuid = uuid.parse().ok().filter(|uuid: &GpuUuid| uuid.is_mig()).ok_or({
        let text = uuid.chars().take(80).collect();
        Unfit::Identifier(text)
    })?;
    let attributes = instance.attributes().map_err(query("attributes"))?;
    let (compute, all) =
        (attributes.compute_instance_slice_count, attributes.gpu_instance_slice_count);
    if compute < all {
        return Err(Unfit::Shares { compute, all });
    }
    let profile = profile(&instance.name().map_err(query("name"))?)?;
    let memory = instance.memory_info().map_err(query("memory"))?;
    Ok(MigInstance {
        uuid,
        gpu,
        profile,
        memory: MemoryBytes::saturating(memory.total),
        share: mig_share(all),
    })
}

fn profile(name: &str) -> Result<MigProfile, Unfit> {
    let profile = name.rsplit_once(BEFORE_PROFILE).and_then(|(_, profile)| profile.parse().ok());
    profile.ok_or_else(|| Unfit::Name(name.chars().take(96).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profile_stands_behind_the_name() {
        let read = |name: &str| profile(name).map(|profile| profile.to_string());
        assert_eq!(read("NVIDIA A100-SXM4-40GB MIG 1g.5gb").unwrap(), "1g.5gb");
        assert_eq!(read("NVIDIA H100 80GB HBM3 MIG 1g.10gb+me").unwrap(), "1g.10gb.me");
        for name in ["NVIDIA H100 80GB HBM3", "X MIG 1c.3g.40gb", "X MIG ", "MIG 1g.5gb"] {
            assert!(read(name).is_err(), "{name}");
        }
    }
}
