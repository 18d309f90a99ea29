use std::sync::{Mutex, PoisonError};

use gpuzone_core::MemoryBytes;

use super::activity::Activity;
use super::file::StateFile;
use super::node::SimulatedGpu;
use super::processes::{MAX_PROCESSES, Process, ProcessTable, Row, claim};
use super::{AllocateError, DeviceMap, DeviceRange, StateError};

/// Allocations from this size on are compared with what the host can back.
const CHECK_HOST_FROM: u64 = 1 << 30;

/// This process as a user of a GPU: it may allocate, and is listed. Dropping it gives
/// everything back.
pub struct Attachment<'a> {
    gpu: &'a SimulatedGpu,
    row: Row,
    map: DeviceMap,
    activity: Activity,
    contexts: Mutex<u32>,
    /// Holds the lock that says that this process lives, and is used for nothing else.
    _alive: StateFile,
}

impl<'a> Attachment<'a> {
    pub(super) fn new(gpu: &'a SimulatedGpu) -> Result<Self, StateError> {
        let map = gpu.map()?;
        let alive = StateFile::open(gpu.file.path())?;
        let mut entered = gpu.enter()?;
        let row = claim_row(&entered.processes, &alive)?;
        let activity = Activity::new(&entered.file, row)?;
        let process = Process { pid: std::process::id(), contexts: 0 };
        entered.processes.set(&entered.file, row, Some(process))?;
        Ok(Self { gpu, row, map, activity, contexts: Mutex::new(0), _alive: alive })
    }

    /// The GPU.
    #[must_use]
    pub fn gpu(&self) -> &'a SimulatedGpu {
        self.gpu
    }

    /// Its memory.
    #[must_use]
    pub fn map(&self) -> &DeviceMap {
        &self.map
    }

    /// Takes `bytes` of device memory, rounded up to whole granules.
    ///
    /// # Errors
    /// When there is not that much, or the shared state cannot be used.
    pub fn allocate(&self, bytes: u64) -> Result<DeviceRange, AllocateError> {
        if bytes >= CHECK_HOST_FROM {
            self.check_host(bytes)?;
        }
        let mut entered = self.gpu.enter()?;
        let (offset, bytes) = entered.space.allocate(&entered.file, self.row, bytes)?;
        Ok(DeviceRange { address: self.gpu.base() + offset, bytes })
    }

    fn check_host(&self, requested: u64) -> Result<(), AllocateError> {
        // A folder that cannot say how much room it has is not asked again: memory is sparse.
        match self.map.host_room() {
            Ok(room) if room < requested => {
                Err(AllocateError::HostFull { requested, available: MemoryBytes::saturating(room) })
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Gives back the allocation that begins at `address`; false when this process has none.
    ///
    /// # Errors
    /// When the shared state cannot be used.
    pub fn free(&self, address: u64) -> Result<bool, StateError> {
        let Some(offset) = address.checked_sub(self.gpu.base()) else { return Ok(false) };
        let mut entered = self.gpu.enter()?;
        entered.space.free(&entered.file, self.row, offset)
    }

    /// One more context of this process.
    ///
    /// # Errors
    /// When the shared state cannot be used.
    pub fn add_context(&self) -> Result<(), StateError> {
        self.change_contexts(|n| n.saturating_add(1))
    }

    /// One context less.
    ///
    /// # Errors
    /// When the shared state cannot be used.
    pub fn remove_context(&self) -> Result<(), StateError> {
        self.change_contexts(|n| n.saturating_sub(1))
    }

    fn change_contexts(&self, change: impl Fn(u32) -> u32) -> Result<(), StateError> {
        let mut contexts = self.contexts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut entered = self.gpu.enter()?;
        let process = Process { pid: std::process::id(), contexts: change(*contexts) };
        entered.processes.set(&entered.file, self.row, Some(process))?;
        *contexts = process.contexts;
        Ok(())
    }

    /// The GPU is busy for this process until the guard is dropped. Busyness is a measurement:
    /// an error of the file is not worth stopping work for.
    #[must_use]
    pub fn busy(&self) -> BusyGuard<'_> {
        let _ = self.activity.begin(&self.gpu.file);
        BusyGuard { attachment: self }
    }
}

/// See [`Attachment::busy`].
pub struct BusyGuard<'a> {
    attachment: &'a Attachment<'a>,
}

impl Drop for BusyGuard<'_> {
    fn drop(&mut self) {
        let _ = self.attachment.activity.end(&self.attachment.gpu.file);
    }
}

impl Drop for Attachment<'_> {
    fn drop(&mut self) {
        // Whatever fails here, the next process that looks finds this one gone.
        let Ok(mut entered) = self.gpu.enter() else { return };
        if entered.space.free_all(&entered.file, self.row).is_ok() {
            let _ = entered.processes.set(&entered.file, self.row, None);
        }
    }
}

fn claim_row(processes: &ProcessTable, alive: &StateFile) -> Result<Row, StateError> {
    let row = processes.free_row().ok_or(StateError::TooManyProcesses(MAX_PROCESSES))?;
    // A free row is locked only by a process that died while it detached, and not for long.
    match claim(alive, row)? {
        true => Ok(row),
        false => Err(alive.corrupt("a free row of its table of processes is locked")),
    }
}
