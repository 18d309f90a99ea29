//! What the library holds between `nvmlInit` and the last `nvmlShutdown`.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gpuzone_nvml_abi::bindings::{
    nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED, nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST,
    nvmlReturn_t,
};
use gpuzone_nvml_abi::{Answer, INVALID, Return, UNINITIALIZED};
use gpuzone_wire::hello::HelloError;
use gpuzone_wire::view::{GpuView, LookError, SLOT_VARIABLE, View, look};

/// A device handle: a number that was given out, never an address.
pub(crate) type Handle = usize;

const FIRST_HANDLE: Handle = 0x6a11_0000_0000_0000;
const STEP: Handle = 16;

/// For so long the lease is taken to be as it was seen: a listing asks many questions in a row.
const FRESH: Duration = Duration::from_millis(100);
/// How long the worker may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// How long a worker that is being replaced is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

struct Library {
    slot: PathBuf,
    initialised: u32,
    seen_at: Instant,
    view: Arc<View>,
}

static LIBRARY: Mutex<Option<Library>> = Mutex::new(None);

fn library() -> MutexGuard<'static, Option<Library>> {
    LIBRARY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says on standard error what a result code has no room for.
fn report(reason: &str) {
    eprintln!("gpu-zone: nothing to show of this program's GPU: {reason}");
}

/// Looks, again and again for a while: a worker that ended a faulty session is being replaced.
fn look_patiently(slot: &std::path::Path) -> Result<View, LookError> {
    let began = Instant::now();
    loop {
        match look(slot, ANSWER) {
            Err(LookError::Hello(HelloError::Socket(_))) if began.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(20));
            }
            looked => return looked,
        }
    }
}

/// `nvmlInit`: looks at the lease; counted.
pub(crate) fn initialise() -> Answer {
    let mut library = library();
    if let Some(open) = library.as_mut() {
        open.initialised = open.initialised.saturating_add(1);
        return Ok(());
    }
    let none = Return(nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED);
    let slot =
        std::env::var_os(SLOT_VARIABLE).filter(|slot| !slot.is_empty()).ok_or_else(|| {
            report(&format!(
                "{SLOT_VARIABLE} is not set, so there is no lease; `gpu-zone run` sets it"
            ));
            none
        })?;
    let slot = PathBuf::from(slot);
    let view = look_patiently(&slot).map_err(|error| {
        report(&format!("{error}; `gpu-zone ps` shows whether the lease is active"));
        none
    })?;
    let (seen_at, view) = (Instant::now(), Arc::new(view));
    *library = Some(Library { slot, initialised: 1, seen_at, view });
    Ok(())
}

/// `nvmlShutdown`, as often as `nvmlInit`.
pub(crate) fn shut_down() -> Answer {
    let mut library = library();
    let open = library.as_mut().ok_or(UNINITIALIZED)?;
    open.initialised -= 1;
    if open.initialised == 0 {
        *library = None;
    }
    Ok(())
}

/// The lease as it is now, or was a moment ago.
pub(crate) fn view() -> Answer<Arc<View>> {
    let mut library = library();
    let open = library.as_mut().ok_or(UNINITIALIZED)?;
    if open.seen_at.elapsed() >= FRESH {
        let view = look_patiently(&open.slot).map_err(|error| {
            report(&error.to_string());
            Return(nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST)
        })?;
        (open.seen_at, open.view) = (Instant::now(), Arc::new(view));
    }
    Ok(open.view.clone())
}

/// The answer of a function that the lease does not have.
pub(crate) fn refuse(answer: Return) -> nvmlReturn_t {
    if library().is_some() { answer.0 } else { UNINITIALIZED.0 }
}

/// One GPU of the lease.
pub(crate) struct Device {
    pub(crate) view: Arc<View>,
    pub(crate) index: usize,
}

impl Device {
    pub(crate) fn of(handle: Handle) -> Answer<Self> {
        let view = view()?;
        let offset = handle.checked_sub(FIRST_HANDLE).filter(|offset| offset.is_multiple_of(STEP));
        let index = offset.ok_or(INVALID)? / STEP;
        if index < view.gpus.len() { Ok(Self { view, index }) } else { Err(INVALID) }
    }

    pub(crate) fn gpu(&self) -> &GpuView {
        &self.view.gpus[self.index]
    }
}

/// The handle of the lease's GPU with this index.
pub(crate) const fn handle(index: usize) -> Handle {
    FIRST_HANDLE + index * STEP
}
