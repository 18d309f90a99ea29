//! What the library holds between `nvmlInit` and the last `nvmlShutdown`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gpuzone_sim_device::{Config, MigConfig, SimulatedGpu, SimulatedNode, StateError};
use nvml_wrapper_sys::bindings::{
    nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED, nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST,
    nvmlReturn_enum_NVML_ERROR_UNINITIALIZED, nvmlReturn_enum_NVML_ERROR_UNKNOWN,
};

use gpuzone_nvml_abi::Answer;
use gpuzone_nvml_abi::{INVALID, Return};

/// A device handle: a number that was given out, never an address.
pub(crate) type Handle = usize;

const FIRST_HANDLE: Handle = 0x0511_0000_0000_0000;
const STEP: Handle = 16;
/// Handles of MIG instances, by the numbers of their GPU instances: room for so many of each GPU.
const FIRST_INSTANCE: Handle = FIRST_HANDLE + 0x10_0000;
const MOST_INSTANCES: usize = 16;

struct Library {
    node: Arc<SimulatedNode>,
    initialised: u32,
}

static LIBRARY: Mutex<Option<Library>> = Mutex::new(None);

fn library() -> MutexGuard<'static, Option<Library>> {
    LIBRARY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says on standard error what a result code has no room for, as a driver does in the
/// kernel's log.
fn report(error: &dyn std::error::Error) {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    eprintln!("gpu-zone simulated GPU: {text}");
}

/// `nvmlInit`: opens the node; counted.
pub(crate) fn initialise() -> Answer {
    let mut library = library();
    if let Some(open) = library.as_mut() {
        open.initialised = open.initialised.saturating_add(1);
        return Ok(());
    }
    let not_loaded = Return(nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED);
    let config = Config::from_env().map_err(|error| {
        report(&error);
        not_loaded
    })?;
    let node = SimulatedNode::open(config).map_err(|error| {
        report(&error);
        not_loaded
    })?;
    *library = Some(Library { node: Arc::new(node), initialised: 1 });
    Ok(())
}

/// `nvmlShutdown`: the last one closes the node.
pub(crate) fn shut_down() -> Answer {
    let mut library = library();
    let open = library.as_mut().ok_or(Return(nvmlReturn_enum_NVML_ERROR_UNINITIALIZED))?;
    open.initialised -= 1;
    if open.initialised == 0 {
        *library = None;
    }
    Ok(())
}

/// The node as it is now: other processes make and end MIG instances, too.
pub(crate) fn node() -> Answer<Arc<SimulatedNode>> {
    let mut library = library();
    let open = library.as_mut().ok_or(Return(nvmlReturn_enum_NVML_ERROR_UNINITIALIZED))?;
    if open.node.is_stale() {
        open.node = Arc::new(known(open.node.opened_anew())?);
    }
    Ok(Arc::clone(&open.node))
}

/// One GPU of the open node, or one MIG instance of it.
pub(crate) struct Device {
    node: Arc<SimulatedNode>,
    index: usize,
    instance: Option<usize>,
}

impl Device {
    pub(crate) fn of(handle: Handle) -> Answer<Self> {
        let device = Self::part(handle)?;
        match device.instance() {
            // A GPU instance without a compute instance is no device.
            Some((_, mig)) if mig.compute_slices == 0 => Err(INVALID),
            Some(_) | None => Ok(device),
        }
    }

    /// The same, also of a GPU instance that has no compute instance.
    pub(crate) fn part(handle: Handle) -> Answer<Self> {
        if let Some(offset) = handle.checked_sub(FIRST_INSTANCE) {
            let place = Some(offset).filter(|offset| offset.is_multiple_of(STEP));
            let place = place.ok_or(INVALID)? / STEP;
            let (index, number) = (place / MOST_INSTANCES, place % MOST_INSTANCES);
            let device = Self::at(index)?;
            let is = |mig: &MigConfig| usize::try_from(mig.gpu_instance) == Ok(number);
            let instance = device.whole().config().mig.iter().flatten().position(is);
            return Ok(Self { instance: Some(instance.ok_or(INVALID)?), ..device });
        }
        let offset = handle.checked_sub(FIRST_HANDLE).filter(|o| o.is_multiple_of(STEP));
        Self::at(offset.ok_or(INVALID)? / STEP)
    }

    pub(crate) fn at(index: usize) -> Answer<Self> {
        let node = node()?;
        let gpu = node.gpus().get(index).ok_or(INVALID)?;
        // Nothing can be asked of a GPU that is not reached.
        if known(gpu.condition())?.lost {
            return Err(Return(nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST));
        }
        Ok(Self { node, index, instance: None })
    }

    pub(crate) fn node(&self) -> &SimulatedNode {
        &self.node
    }

    pub(crate) fn gpu(&self) -> &SimulatedGpu {
        let whole = self.whole();
        self.instance.and_then(|instance| whole.instances().get(instance)).unwrap_or(whole)
    }

    /// The GPU, also where this is an instance of it.
    pub(crate) fn whole(&self) -> &SimulatedGpu {
        &self.node.gpus()[self.index]
    }

    /// Which instance it is, and how that is configured.
    pub(crate) fn instance(&self) -> Option<(usize, &MigConfig)> {
        let instance = self.instance?;
        Some((instance, self.whole().config().mig.as_ref()?.get(instance)?))
    }

    /// The handle of its GPU.
    pub(crate) fn whole_handle(&self) -> Handle {
        handle(self.index)
    }

    /// Which GPU of the node its GPU is.
    pub(crate) const fn whole_index(&self) -> usize {
        self.index
    }

    /// The handle of a GPU instance of its GPU, by its number.
    pub(crate) fn instance_handle(&self, number: u32) -> Answer<Handle> {
        instance_handle(self.index, number)
    }

    pub(crate) fn index(&self) -> Answer<u32> {
        let Some(instance) = self.instance else {
            return u32::try_from(self.index).map_err(|_| INVALID);
        };
        let before = self.whole().config().mig.iter().flatten().take(instance);
        let devices = before.filter(|mig| mig.compute_slices > 0).count();
        u32::try_from(devices).map_err(|_| INVALID)
    }
}

pub(crate) const fn handle(index: usize) -> Handle {
    FIRST_HANDLE + index * STEP
}

/// The handle of a GPU instance, by its number.
pub(crate) fn instance_handle(index: usize, number: u32) -> Answer<Handle> {
    let number = usize::try_from(number).ok().filter(|number| *number < MOST_INSTANCES);
    Ok(FIRST_INSTANCE + (index * MOST_INSTANCES + number.ok_or(INVALID)?) * STEP)
}

/// What the shared state says, or an unknown error with its reason on standard error.
pub(crate) fn known<T>(result: Result<T, StateError>) -> Answer<T> {
    result.map_err(|error| {
        report(&error);
        Return(nvmlReturn_enum_NVML_ERROR_UNKNOWN)
    })
}
