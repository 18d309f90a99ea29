use super::HashMap;

use gpuzone_cuda_abi::{CuResult, DeviceAttribute, Limit, stream_flags};
use gpuzone_wire::spec::{ContextCreate, ContextCreated, ContextId};

use super::{Context, Session, room};
use crate::busy::{GpuClock, Meter};
use crate::ledger::Charge;
use crate::pace::Pace;
use crate::spare::SpareEvents;

impl Session {
    /// Makes a context current for the calls that follow.
    pub(super) fn enter(&mut self, id: ContextId) -> Result<&mut Context, CuResult> {
        let context = self.contexts.get_mut(&id).ok_or(CuResult::INVALID_CONTEXT)?;
        if self.current != id {
            // SAFETY: a context that the driver made and that was not destroyed.
            unsafe { (self.lease.driver.context_set_current)(context.driver) }.ok()?;
            self.current = id;
        }
        Ok(context)
    }

    pub(super) fn create_context(
        &mut self,
        request: &ContextCreate,
    ) -> Result<ContextCreated, CuResult> {
        let id = request.context;
        if id.0 == 0 || self.contexts.contains_key(&id) {
            return Err(CuResult::INVALID_VALUE);
        }
        room(self.contexts.len(), self.lease.caps.contexts)?;
        let device = usize::try_from(request.device).map_err(|_| CuResult::INVALID_DEVICE)?;
        let lease = self.lease.clone();
        let ordinal = lease.devices.get(device).ok_or(CuResult::INVALID_DEVICE)?.ordinal;
        // Takes long, and nobody else is to wait for that.
        self.drain();
        let mut made = std::ptr::null_mut();
        // How threads of this process wait is for the driver zone to say, not for the tenant:
        // its flags stay in its own process.
        let create = || {
            // SAFETY: a place for the answer; a GPU of the lease.
            unsafe { (lease.driver.context_create)(&raw mut made, 0, ordinal) }
        };
        let (result, charge) = self.charge_what_it_takes(device, create);
        // Creating a context makes it current: what was current before is not any more.
        self.current = ContextId(0);
        self.ask(result)?;
        let undo = |error: CuResult| {
            // SAFETY: the context made above, used by nobody.
            let _ = unsafe { (lease.driver.context_destroy)(made) };
            error
        };
        let charge = charge.map_err(undo)?;
        let mut zeroing = std::ptr::null_mut();
        // SAFETY: a place for the answer; the new context is current.
        let streamed = unsafe {
            (lease.driver.stream_create)(&raw mut zeroing, stream_flags::NON_BLOCKING, 0)
        };
        self.ask(streamed).map_err(undo)?;
        let meter = Meter::default();
        let pace = Pace::default();
        let (driver, spare, limits) = (made, SpareEvents::default(), HashMap::default());
        let context = Context { driver, device, zeroing, meter, pace, spare, charge, limits };
        self.contexts.insert(id, context);
        self.current = id;
        let (mut least_priority, mut greatest_priority) = (0, 0);
        // SAFETY: places for the answers; the new context is current.
        let told = unsafe {
            let ask = lease.driver.context_priorities;
            ask(&raw mut least_priority, &raw mut greatest_priority)
        };
        self.ask(told)?;
        Ok(ContextCreated { least_priority, greatest_priority })
    }

    /// Sets a limit of a context. What the driver takes for it is charged as much as it may be.
    pub(super) fn set_limit(
        &mut self,
        id: ContextId,
        limit: u32,
        value: u64,
    ) -> Result<(), CuResult> {
        let device = self.enter(id)?.device;
        let takes = match Limit(limit) {
            // For each thread that runs at once.
            Limit::STACK_SIZE => value.checked_mul(self.threads_at_once(device)),
            Limit::PRINTF_FIFO_SIZE | Limit::MALLOC_HEAP_SIZE => Some(value),
            Limit::MAX_L2_FETCH_GRANULARITY => Some(0),
            // A part of the cache that others would go without, and what has no use here.
            _ => return Err(CuResult::UNSUPPORTED_LIMIT),
        };
        let takes = takes.ok_or(CuResult::INVALID_VALUE)?;
        let size = usize::try_from(value).map_err(|_| CuResult::INVALID_VALUE)?;
        let charge = self.lease.ledger.charge(device, takes);
        let charge = charge.map_err(|_| CuResult::OUT_OF_MEMORY)?;
        // SAFETY: a limit of the current context.
        self.ask(unsafe { (self.lease.driver.context_set_limit)(limit, size) })?;
        self.enter(id)?.limits.insert(limit, charge);
        Ok(())
    }

    fn threads_at_once(&self, device: usize) -> u64 {
        let info = self.lease.devices.get(device).map(|device| &device.info.attributes);
        let number = |wanted: DeviceAttribute| {
            let found = info.and_then(|all| all.iter().find(|(which, _)| *which == wanted.0));
            found.and_then(|(_, value)| u64::try_from(*value).ok()).unwrap_or(1)
        };
        number(DeviceAttribute::MULTIPROCESSOR_COUNT)
            * number(DeviceAttribute::MAX_THREADS_PER_MULTIPROCESSOR)
    }

    /// Does something that takes device memory of an amount that the driver decides, and
    /// charges what NVML says it took. When that passes the limit, the charge is an error and
    /// the caller undoes what was done.
    pub(super) fn charge_what_it_takes(
        &self,
        device: usize,
        act: impl FnOnce() -> CuResult,
    ) -> (CuResult, Result<Charge, CuResult>) {
        let _gate = self.lease.ledger.close_gate();
        let gpu = self.uuid(device);
        let before = self.lease.own_use.bytes(gpu);
        let result = act();
        let after = self.lease.own_use.bytes(gpu);
        let taken = match (before, after) {
            (Some(before), Some(after)) => after.saturating_sub(before),
            _ => 0,
        };
        let charge = self.lease.ledger.charge(device, taken);
        (result, charge.map_err(|_| CuResult::OUT_OF_MEMORY))
    }

    /// Ends a context and all that is in it.
    pub(super) fn end_context(&mut self, id: ContextId) -> Result<(), CuResult> {
        if self.enter(id).is_ok() && (!self.hosts.is_empty() || self.is_staged_by(id)) {
            // SAFETY: waits for the current context's work. Whether it failed shows later.
            let _ = unsafe { (self.lease.driver.context_synchronize)() };
            self.unregister_all(id);
            self.unstage(id);
        }
        let mut context = self.contexts.remove(&id).ok_or(CuResult::INVALID_CONTEXT)?;
        let modules = self.modules.extract_if(|_, module| module.context == id);
        let modules: Vec<Charge> = modules.map(|(_, module)| module.charge).collect();
        self.functions.retain(|_, function| function.context != id);
        let left = &self.modules;
        self.globals.retain(|_, global| left.contains_key(&global.module));
        self.streams.retain(|_, (of, _)| *of != id);
        self.events.retain(|_, (of, _)| *of != id);
        if self.current == id {
            self.current = ContextId(0);
        }
        let result = {
            let _gate = self.lease.ledger.close_gate();
            // SAFETY: the driver's context, in no table any more; destroying it waits for its
            // work and gives its memory back.
            unsafe { (self.lease.driver.context_destroy)(context.driver) }
        };
        self.forget_reads(id);
        let on = GpuClock { clock: &self.clock, gpu: context.device };
        if context.meter.stop(on) {
            self.lease.turns.end(context.device, None);
        }
        let blocks = self.forget_blocks(id);
        let held = self.allocations.extract_if(.., |_, held| held.context == id);
        let mut charges: Vec<Charge> = held.map(|(_, held)| held.charge).collect();
        charges.extend(blocks.into_iter().chain(modules).chain([context.charge]));
        charges.extend(context.limits.into_values());
        if !result.is_success() {
            // Whether anything of it came back nobody knows.
            self.lose(std::mem::take(&mut charges));
        }
        // Charges go last: nobody is told that there is room before there is.
        drop(charges);
        self.ask(result)
    }
}
