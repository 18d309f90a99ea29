use gpuzone_core::GpuUuid;
use nvml_wrapper::Device;
use nvml_wrapper::enums::device::SampleValue;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::structs::device::FieldId;
use nvml_wrapper::sys_exports::field_id::{
    NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, NVML_FI_DEV_REMAPPED_FAILURE,
};

use crate::NvmlLibrary;

/// How a GPU is, as its driver says when it is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The driver reaches it.
    Reached {
        /// Whether a bad row of memory could not be put aside. A driver that does not say says no.
        remap_failed: bool,
        /// What the driver wants done, if anything.
        action: Option<RecoveryAction>,
    },
    /// The driver has lost it.
    Lost,
    /// The driver does not say, for this reason.
    Silent(String),
}

/// What a driver wants done so that a GPU works again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecoveryAction {
    /// A reset of the GPU.
    Reset,
    /// A restart of the machine.
    Reboot,
    /// An end of what it does with other GPUs.
    DrainPeers,
    /// An end of all its work, and a reset.
    DrainAndReset,
    /// Something that this version does not know, by its number.
    Unknown(u64),
}

impl RecoveryAction {
    fn of(number: u64) -> Option<Self> {
        Some(match number {
            0 => return None,
            1 => Self::Reset,
            2 => Self::Reboot,
            3 => Self::DrainPeers,
            4 => Self::DrainAndReset,
            other => Self::Unknown(other),
        })
    }
}

impl std::fmt::Display for RecoveryAction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Reset => f.write_str("reset the GPU"),
            Self::Reboot => f.write_str("reboot the node"),
            Self::DrainPeers => f.write_str("end what it does with other GPUs"),
            Self::DrainAndReset => f.write_str("end all its leases, then reset the GPU"),
            Self::Unknown(number) => write!(f, "recovery action {number} of NVML"),
        }
    }
}

fn number(value: SampleValue) -> Option<u64> {
    match value {
        SampleValue::U32(value) => Some(value.into()),
        SampleValue::U64(value) => Some(value),
        SampleValue::I64(value) => u64::try_from(value).ok(),
        SampleValue::F64(_) => None,
    }
}

/// The number of a field; none where the driver has not got it.
fn field(device: &Device<'_>, id: u32) -> Option<u64> {
    let samples = device.field_values_for(&[FieldId(id)]).ok()?;
    number(samples.into_iter().next()?.ok()?.value.ok()?)
}

impl NvmlLibrary {
    /// How a GPU is now.
    pub fn condition(&self, gpu: GpuUuid) -> Condition {
        let asked = || -> Result<Condition, NvmlError> {
            let device = self.nvml.device_by_uuid(gpu.to_string())?;
            // Something that every driver answers, and only for a GPU that it reaches.
            device.memory_info()?;
            let remap_failed = field(&device, NVML_FI_DEV_REMAPPED_FAILURE);
            let action = field(&device, NVML_FI_DEV_GET_GPU_RECOVERY_ACTION);
            Ok(Condition::Reached {
                remap_failed: remap_failed.is_some_and(|failed| failed != 0),
                action: action.and_then(RecoveryAction::of),
            })
        };
        match asked() {
            Ok(condition) => condition,
            Err(NvmlError::GpuLost) => Condition::Lost,
            Err(error) => Condition::Silent(error.to_string()),
        }
    }
}
