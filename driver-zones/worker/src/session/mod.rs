//! What one tenant process holds, and how its calls are done.

#[cfg(any(test, feature = "fuzzing"))]
mod caps;
mod contexts;
mod handler;
mod host_functions;
mod jit;
mod links;
mod memory;
mod modules;
mod physical;
mod pieces;
mod pools;
mod prints;
mod rows;
mod serve;
mod shared;
mod staging;
mod turn;
mod work;

#[cfg(test)]
mod tests;

pub use host_functions::{Line, LinePlace};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use serve::Rings;
pub use serve::{Ended, SessionPeer, serve};

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use gpuzone_core::GpuUuid;
use gpuzone_cuda_abi::{CUcontext, CUevent, CUfunction, CUmodule, CUstream, CuResult};
use gpuzone_wire::control::Caps;
use gpuzone_wire::spec::{
    ContextId, EventId, FunctionId, HostId, ModuleId, ParamInfo, PoolId, StreamId,
};
use gpuzone_wire::stats::StatsWriter;

use crate::busy::{BusyClock, Meter, Worked};
use crate::driver::{Device, Driver};
use crate::host_room::{Held, HostRoom};
use crate::ledger::{Charge, Ledger};
use crate::log;
use crate::nvml::OwnUse;
use crate::pace::Pace;
use crate::prints::Prints;
use crate::spare::SpareEvents;
use crate::turns::Turns;
use physical::Physical;
use pools::Pool;
use prints::Printing;
use shared::Host;
use staging::Staging;

/// By numbers of a tenant's choice, each in a table of its own session's.
type HashMap<K, V> = std::collections::HashMap<K, V, foldhash::fast::RandomState>;

/// What all sessions of a worker share.
#[derive(Debug)]
pub struct Lease {
    /// The driver.
    pub driver: Driver,
    /// Its version.
    pub driver_version: i32,
    /// The lease's GPUs, in order.
    pub devices: Vec<Device>,
    /// The limits.
    pub ledger: Arc<Ledger>,
    /// The counters.
    pub stats: Arc<StatsWriter>,
    /// How long each GPU worked.
    pub worked: Arc<Worked>,
    /// What NVML says of this process.
    pub own_use: OwnUse,
    /// Host memory of modules.
    pub images: Arc<HostRoom>,
    /// Host memory that is shared with tenants.
    pub pinned: Arc<HostRoom>,
    /// What kernels print.
    pub prints: Arc<Prints>,
    /// Caps on each session.
    pub caps: Caps,
    /// Whether some session's context had a fault that a process does not recover from.
    pub poisoned: AtomicBool,
    /// Whether tenants are in another machine, with windows to it.
    pub windows: bool,
    /// The GPUs' time.
    pub turns: Arc<Turns>,
}

struct Context {
    driver: CUcontext,
    device: usize,
    /// New memory is zeroed on it.
    zeroing: CUstream,
    meter: Meter,
    pace: Pace,
    spare: SpareEvents,
    charge: Charge,
    /// What its limits take, by number.
    limits: HashMap<u32, Charge>,
}

struct Module {
    context: ContextId,
    driver: CUmodule,
    charge: Charge,
    /// Held for its drop.
    _image: Held,
}

struct Function {
    context: ContextId,
    module: ModuleId,
    driver: CUfunction,
    parameters: Vec<ParamInfo>,
}

struct Allocation {
    context: ContextId,
    bytes: u64,
    charge: Charge,
    /// Where it goes when it is freed; `None`: back to the driver.
    pool: Option<PoolId>,
}

struct Global {
    module: ModuleId,
    bytes: u64,
}

/// One tenant process's objects. Not to be sent to another thread: the driver's current context
/// is the thread's.
pub struct Session {
    lease: Arc<Lease>,
    clock: Arc<BusyClock>,
    contexts: HashMap<ContextId, Context>,
    current: ContextId,
    modules: HashMap<ModuleId, Module>,
    functions: HashMap<FunctionId, Function>,
    streams: HashMap<StreamId, (ContextId, CUstream)>,
    events: HashMap<EventId, (ContextId, CUevent)>,
    allocations: BTreeMap<u64, Allocation>,
    globals: BTreeMap<u64, Global>,
    pools: HashMap<PoolId, Pool>,
    hosts: HashMap<HostId, Host>,
    staging: Staging,
    physical: Physical,
    line: LinePlace,
    printing: Printing,
    image: Vec<u8>,
    image_held: Held,
}

impl Session {
    /// A session that holds nothing.
    pub fn new(lease: Arc<Lease>, clock: Arc<BusyClock>, line: LinePlace) -> Self {
        let image_held = Held::none(&lease.images);
        let printing = Printing::of(&lease);
        Self {
            lease,
            clock,
            contexts: HashMap::default(),
            current: ContextId(0),
            modules: HashMap::default(),
            functions: HashMap::default(),
            streams: HashMap::default(),
            events: HashMap::default(),
            allocations: BTreeMap::new(),
            globals: BTreeMap::new(),
            pools: HashMap::default(),
            hosts: HashMap::default(),
            staging: Staging::default(),
            physical: Physical::default(),
            line,
            printing,
            image: Vec::new(),
            image_held,
        }
    }

    /// Notes a fault that the process will not recover from.
    fn ask(&self, result: CuResult) -> Result<(), CuResult> {
        if result.is_context_fatal() {
            self.lease.poisoned.store(true, Ordering::SeqCst);
        }
        result.ok()
    }

    /// Looks whether work that was given is done; whether some is not.
    pub fn settle(&mut self) -> bool {
        let busy: Vec<ContextId> = self
            .contexts
            .iter()
            .filter(|(_, context)| context.meter.is_busy())
            .map(|(id, _)| *id)
            .collect();
        let mut left = false;
        for id in busy {
            if self.enter(id).is_ok()
                && let Some(context) = self.contexts.get_mut(&id)
            {
                context.settle(&self.lease, &self.clock);
                left |= context.meter.is_busy();
            }
        }
        left
    }

    /// Memory that the driver did not take back, and that nothing stands for any more: it stays
    /// charged for as long as this worker lives, which is until its sessions are over.
    fn lose(&self, charges: impl IntoIterator<Item = Charge>) {
        charges.into_iter().for_each(std::mem::forget);
        if !self.lease.poisoned.swap(true, Ordering::SeqCst) {
            log::say("the driver did not take memory back; it stays charged until a fresh worker");
        }
    }

    fn uuid(&self, device: usize) -> GpuUuid {
        let bytes = self.lease.devices.get(device).map(|device| device.info.uuid);
        GpuUuid::from_bytes(bytes.unwrap_or_default())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // No work waits for a tenant that is gone.
        if let Some(line) = self.line.get() {
            line.close();
        }
        // What a context still prints is this session's, though nobody is left to read it.
        self.begin_printing();
        let contexts: Vec<ContextId> = self.contexts.keys().copied().collect();
        for context in contexts {
            // Whatever the driver says, nothing of it is used again.
            let _ = self.end_context(context);
        }
        self.forget_physical();
        self.end_printing();
    }
}

/// Room in a table, or the answer that CUDA gives when it runs out of its own memory.
fn room(held: usize, cap: u32) -> Result<(), CuResult> {
    if held < cap as usize { Ok(()) } else { Err(CuResult::OUT_OF_MEMORY) }
}
