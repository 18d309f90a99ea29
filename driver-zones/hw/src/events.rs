use std::time::Duration;

use gpuzone_core::{GpuUuid, Xid};
use nvml_wrapper::EventSet;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;

use crate::{NvmlLibrary, QueryError};

/// NVML's number for an error that has none.
const NO_NUMBER: u64 = 999;

/// Something that a driver reported of a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeviceEvent {
    /// An error with a number.
    Xid(Xid),
    /// An uncorrectable memory error.
    UncorrectableEcc,
}

/// Why a GPU's events are not to be had.
#[derive(Debug, thiserror::Error)]
pub enum EventsError {
    /// The library or the GPU has none.
    #[error("this driver tells of no events of GPU {0}; it is only asked how the GPU is")]
    Unsupported(GpuUuid),
    /// It is gone.
    #[error("the driver has lost GPU {0}; reset it, or reboot")]
    Lost(GpuUuid),
    /// The driver did not answer as it should.
    #[error("GPU {gpu}'s events are not to be had now; see whether nvidia-smi shows it")]
    Failed {
        /// Whose.
        gpu: GpuUuid,
        /// What NVML says.
        source: QueryError,
    },
}

/// The events of one GPU. Each GPU has a set of its own, so that an event's GPU is known when the
/// driver cannot name it any more, and one that hangs keeps no other's from being told.
#[derive(Debug)]
pub struct GpuEvents<'a> {
    set: EventSet<'a>,
    gpu: GpuUuid,
}

impl NvmlLibrary {
    /// What happens to a GPU from now on.
    ///
    /// # Errors
    /// When the driver does not tell.
    pub fn events(&self, gpu: GpuUuid) -> Result<GpuEvents<'_>, EventsError> {
        let failed = |error| explain(gpu, error);
        let device = self.nvml.device_by_uuid(gpu.to_string()).map_err(failed)?;
        let wanted = EventTypes::CRITICAL_XID_ERROR | EventTypes::DOUBLE_BIT_ECC_ERROR;
        let types = device.supported_event_types().map_err(failed)? & wanted;
        if !types.contains(EventTypes::CRITICAL_XID_ERROR) {
            return Err(EventsError::Unsupported(gpu));
        }
        let set = self.nvml.create_event_set().map_err(failed)?;
        let set = device.register_events(types, set).map_err(|error| failed(error.error))?;
        Ok(GpuEvents { set, gpu })
    }
}

fn explain(gpu: GpuUuid, error: NvmlError) -> EventsError {
    match error {
        NvmlError::NotSupported | NvmlError::FailedToLoadSymbol(_) => EventsError::Unsupported(gpu),
        NvmlError::GpuLost => EventsError::Lost(gpu),
        other => EventsError::Failed { gpu, source: other.into() },
    }
}

impl GpuEvents<'_> {
    /// What happened next; `None` when nothing did within `limit`.
    ///
    /// A driver that has several errors to tell at once may tell the number of the last for each
    /// of them: that is NVML's documentation, so what is asked for in [`NvmlLibrary::condition`]
    /// is looked at, too.
    ///
    /// # Errors
    /// When the driver does not tell any more.
    pub fn next(&self, limit: Duration) -> Result<Option<DeviceEvent>, EventsError> {
        let limit = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
        let data = match self.set.wait(limit) {
            Ok(data) => data,
            Err(NvmlError::Timeout) => return Ok(None),
            Err(error) => return Err(explain(self.gpu, error)),
        };
        Ok(match data.event_data {
            Some(XidError::Value(number)) => Some(DeviceEvent::Xid(Xid::new(number))),
            Some(XidError::Unknown) => Some(DeviceEvent::Xid(Xid::new(NO_NUMBER))),
            None if data.event_type.contains(EventTypes::DOUBLE_BIT_ECC_ERROR) => {
                Some(DeviceEvent::UncorrectableEcc)
            }
            None => None,
        })
    }
}
