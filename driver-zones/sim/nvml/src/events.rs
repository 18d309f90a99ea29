//! Event sets: what happens to GPUs from the moment at which they were registered.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gpuzone_sim_device::{FaultEvent, FaultWatch};
use nvml_wrapper_sys::bindings::*;

use crate::state::{Device, Handle, handle, known, node};
use gpuzone_nvml_abi::Answer;
use gpuzone_nvml_abi::{INVALID, NO_INSTANCE, NOT_SUPPORTED, Out, Return, entry_points};

const TIMEOUT: Return = Return(nvmlReturn_enum_NVML_ERROR_TIMEOUT);
const SUPPORTED: u64 = (nvmlEventTypeXidCriticalError | nvmlEventTypeDoubleBitEccError) as u64;

/// A set's handle: a number that was given out, never an address.
type SetHandle = usize;

#[derive(Default)]
struct EventSet {
    watch: FaultWatch<usize>,
    /// What each GPU was registered for.
    wanted: BTreeMap<usize, u64>,
}

#[derive(Default)]
struct Sets {
    last: SetHandle,
    sets: BTreeMap<SetHandle, Arc<Mutex<EventSet>>>,
}

static SETS: Mutex<Sets> = Mutex::new(Sets { last: 0, sets: BTreeMap::new() });

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn set(handle: SetHandle) -> Answer<Arc<Mutex<EventSet>>> {
    node()?;
    locked(&SETS).sets.get(&handle).cloned().ok_or(INVALID)
}

/// The type and the data of an event, as NVML has them.
fn told(event: FaultEvent) -> (u64, u64) {
    match event {
        FaultEvent::Xid(number) => (u64::from(nvmlEventTypeXidCriticalError), number),
        FaultEvent::UncorrectableEcc => (u64::from(nvmlEventTypeDoubleBitEccError), 0),
    }
}

impl EventSet {
    fn next(&mut self, limit: Duration) -> Answer<nvmlEventData_t> {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let unknown = |_| Return(nvmlReturn_enum_NVML_ERROR_UNKNOWN);
            let (index, event) = self.watch.next(left).map_err(unknown)?.ok_or(TIMEOUT)?;
            let (event_type, data) = told(event);
            if self.wanted.get(&index).is_some_and(|wanted| wanted & event_type != 0) {
                return Ok(nvmlEventData_t {
                    device: handle(index) as nvmlDevice_t,
                    eventType: event_type,
                    eventData: data,
                    gpuInstanceId: NO_INSTANCE,
                    computeInstanceId: NO_INSTANCE,
                });
            }
        }
    }
}

entry_points! {
    fn nvmlDeviceGetSupportedEventTypes(device: Handle, types: Out<u64>) {
        let device = Device::of(device)?;
        types.put(if device.node().config().events { SUPPORTED } else { 0 })
    }

    fn nvmlEventSetCreate(set: Out<SetHandle>) {
        node()?;
        let mut sets = locked(&SETS);
        sets.last += 1;
        let number = sets.last;
        set.put(number)?;
        sets.sets.insert(number, Arc::default());
        Ok(())
    }

    fn nvmlDeviceRegisterEvents(device: Handle, types: u64, handle: SetHandle) {
        let device = Device::of(device)?;
        if types & !SUPPORTED != 0 || !device.node().config().events {
            return Err(NOT_SUPPORTED);
        }
        let set = set(handle)?;
        let mut set = locked(&set);
        let index = usize::try_from(device.index()?).map_err(|_| INVALID)?;
        if set.wanted.insert(index, types).is_none() {
            known(device.gpu().watch_faults(&mut set.watch, index))?;
        }
        Ok(())
    }

    fn nvmlEventSetWait_v2(handle: SetHandle, data: Out<nvmlEventData_t>, timeout_ms: u32) {
        let set = set(handle)?;
        let event = locked(&set).next(Duration::from_millis(timeout_ms.into()))?;
        data.put(event)
    }

    fn nvmlEventSetFree(handle: SetHandle) {
        node()?;
        locked(&SETS).sets.remove(&handle).map(drop).ok_or(INVALID)
    }
}
