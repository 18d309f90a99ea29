use std::ffi::c_void;

use gpuzone_cuda_abi::{
    CUevent, CUstream, CuResult, LaunchAttribute, LaunchAttributeValue, LaunchConfig, event_flags,
    stream_flags,
};
use gpuzone_wire::spec::{
    ContextId, EventId, EventRecord, Launch, LaunchSetting, ParamInfo, StreamId,
};

use super::{Session, room};
use crate::busy::GpuClock;
use crate::driver::Driver;

impl Session {
    /// Gives work to a stream of the current context and measures it.
    pub(super) fn work(
        &mut self,
        context: ContextId,
        id: StreamId,
        stream: CUstream,
        act: impl FnOnce(&Driver) -> CuResult,
    ) -> Result<(), CuResult> {
        self.take_turn(context)?;
        let (lease, clock) = (&self.lease, &self.clock);
        let entered = self.contexts.get_mut(&context).ok_or(CuResult::INVALID_CONTEXT)?;
        let on = GpuClock { clock, gpu: entered.device };
        entered.meter.before(&lease.driver, stream, on);
        let result = act(&lease.driver);
        if result.is_success() {
            entered.meter.after(&lease.driver, id, stream);
            entered.pace.after(&lease.driver, stream);
        } else {
            // What the driver refused is no work: it keeps no turn.
            entered.settle(lease, clock);
        }
        self.ask(result)
    }

    /// An event behind all that a stream of the current context was given.
    pub(super) fn mark(
        &mut self,
        context: ContextId,
        stream: CUstream,
    ) -> Result<CUevent, CuResult> {
        let lease = self.lease.clone();
        let spare = &mut self.enter(context)?.spare;
        let event = spare.take(&lease.driver);
        let marked = event.and_then(|event| {
            // SAFETY: an event and a stream of the current context.
            let recorded = unsafe { (lease.driver.event_record)(event, stream) };
            if !recorded.is_success() {
                spare.give(&lease.driver, event);
            }
            recorded.ok().map(|()| event)
        });
        self.ask(marked.err().unwrap_or(CuResult::SUCCESS))?;
        marked
    }

    /// Looks whether the current context's work is done.
    pub(super) fn settle_current(&mut self) {
        if let Some(context) = self.contexts.get_mut(&self.current) {
            context.settle(&self.lease, &self.clock);
        }
    }

    pub(super) fn start_kernel(
        &mut self,
        context: ContextId,
        request: &Launch,
    ) -> Result<(), CuResult> {
        let function = self.functions.get(&request.function).ok_or(CuResult::INVALID_HANDLE)?;
        if function.context != context {
            return Err(CuResult::INVALID_HANDLE);
        }
        let driver = function.driver;
        let mut arguments = arguments(&request.arguments, &function.parameters)?;
        let stream = self.stream(context, request.stream)?;
        let device = self.enter(context)?.device;
        let bounds = self.lease.devices.get(device).map(|device| device.bounds);
        if bounds.is_some_and(|b| !b.allow(request.grid, request.block, request.shared)) {
            return Err(CuResult::INVALID_VALUE);
        }
        let settings = settings(&request.settings)?;
        if !settings.is_empty() {
            let config = LaunchConfig {
                grid: request.grid,
                block: request.block,
                shared: request.shared,
                stream,
                attributes: settings.as_ptr(),
                attribute_count: u32::try_from(settings.len()).unwrap_or(0),
            };
            self.work(context, request.stream, stream, |table| {
                let (list, none) = (arguments.as_mut_ptr(), std::ptr::null_mut());
                // SAFETY: as below; the settings outlive the call.
                unsafe { (table.launch_with)(&raw const config, driver, list, none) }
            })?;
            self.lease.stats.add_launch();
            return Ok(());
        }
        let ([gx, gy, gz], [bx, by, bz]) = (request.grid, request.block);
        self.work(context, request.stream, stream, |table| {
            // SAFETY: a kernel and a stream of the current context. There is an argument for
            // each of the kernel's parameters, as large as the driver said it is.
            unsafe {
                let (shared, list) = (request.shared, arguments.as_mut_ptr());
                let none = std::ptr::null_mut();
                (table.launch)(driver, gx, gy, gz, bx, by, bz, shared, stream, list, none)
            }
        })?;
        self.lease.stats.add_launch();
        Ok(())
    }

    pub(super) fn make_stream(
        &mut self,
        context: ContextId,
        id: StreamId,
        flags: u32,
        priority: i32,
    ) -> Result<(), CuResult> {
        if id.0 < StreamId::FIRST || self.streams.contains_key(&id) {
            return Err(CuResult::INVALID_VALUE);
        }
        room(self.streams.len(), self.lease.caps.streams)?;
        self.enter(context)?;
        let mut stream = std::ptr::null_mut();
        let flags = flags & stream_flags::NON_BLOCKING;
        // SAFETY: a place for the answer; the context is current.
        let made = unsafe { (self.lease.driver.stream_create)(&raw mut stream, flags, priority) };
        self.ask(made)?;
        self.streams.insert(id, (context, stream));
        Ok(())
    }

    pub(super) fn end_stream(&mut self, id: StreamId) -> Result<(), CuResult> {
        let (context, stream) = *self.streams.get(&id).ok_or(CuResult::INVALID_HANDLE)?;
        let lease = self.lease.clone();
        let entered = self.enter(context)?;
        entered.meter.forget(&lease.driver, id);
        entered.pace.forget(&lease.driver, stream);
        self.streams.remove(&id);
        // SAFETY: a stream of the current context, in no table any more.
        let ended = unsafe { (lease.driver.stream_destroy)(stream) };
        self.ask(ended)
    }

    pub(super) fn query_stream(
        &mut self,
        context: ContextId,
        id: StreamId,
    ) -> Result<(), CuResult> {
        let stream = self.stream(context, id)?;
        self.enter(context)?;
        // SAFETY: a stream of the current context, or one of CUDA's own.
        let state = unsafe { (self.lease.driver.stream_query)(stream) };
        if state.is_success() {
            self.settle_current();
        }
        self.ask(state)
    }

    pub(super) fn have_stream_wait(
        &mut self,
        context: ContextId,
        id: StreamId,
        event: EventId,
    ) -> Result<(), CuResult> {
        let stream = self.stream(context, id)?;
        let (_, event) = *self.events.get(&event).ok_or(CuResult::INVALID_HANDLE)?;
        self.enter(context)?;
        // SAFETY: a stream of the current context and an event that was not destroyed.
        let waits = unsafe { (self.lease.driver.stream_wait_event)(stream, event, 0) };
        self.ask(waits)
    }

    pub(super) fn make_event(
        &mut self,
        context: ContextId,
        id: EventId,
        flags: u32,
    ) -> Result<(), CuResult> {
        if self.events.contains_key(&id) {
            return Err(CuResult::INVALID_VALUE);
        }
        room(self.events.len(), self.lease.caps.events)?;
        self.enter(context)?;
        let flags = flags & (event_flags::DISABLE_TIMING | event_flags::BLOCKING_SYNC);
        let mut event = std::ptr::null_mut();
        // SAFETY: a place for the answer; the context is current.
        let made = unsafe { (self.lease.driver.event_create)(&raw mut event, flags) };
        self.ask(made)?;
        self.events.insert(id, (context, event));
        Ok(())
    }

    pub(super) fn end_event(&mut self, id: EventId) -> Result<(), CuResult> {
        let event = self.enter_event(id)?;
        self.events.remove(&id);
        // SAFETY: an event of the current context, in no table any more.
        let ended = unsafe { (self.lease.driver.event_destroy)(event) };
        self.ask(ended)
    }

    fn enter_event(&mut self, id: EventId) -> Result<CUevent, CuResult> {
        let (context, event) = *self.events.get(&id).ok_or(CuResult::INVALID_HANDLE)?;
        self.enter(context)?;
        Ok(event)
    }

    pub(super) fn record_event(
        &mut self,
        context: ContextId,
        request: &EventRecord,
    ) -> Result<(), CuResult> {
        let stream = self.stream(context, request.stream)?;
        let event = self.enter_event(request.event)?;
        if self.current != context {
            return Err(CuResult::INVALID_HANDLE);
        }
        // SAFETY: an event and a stream of the current context.
        let recorded = unsafe { (self.lease.driver.event_record)(event, stream) };
        self.ask(recorded)
    }

    pub(super) fn wait_for_event(&mut self, id: EventId) -> Result<(), CuResult> {
        let event = self.enter_event(id)?;
        self.before_waiting_for_event(event);
        // SAFETY: an event of the current context.
        let waited = unsafe { (self.lease.driver.event_synchronize)(event) };
        let waited = self.ask(waited);
        self.settle_current();
        waited
    }

    pub(super) fn query_event(&mut self, id: EventId) -> Result<(), CuResult> {
        let event = self.enter_event(id)?;
        // SAFETY: an event of the current context.
        let state = unsafe { (self.lease.driver.event_query)(event) };
        self.ask(state)
    }

    pub(super) fn elapsed(&mut self, start: EventId, end: EventId) -> Result<f32, CuResult> {
        let (context, _) = *self.events.get(&end).ok_or(CuResult::INVALID_HANDLE)?;
        let start = self.enter_event(start)?;
        let end = self.enter_event(end)?;
        if self.current != context {
            return Err(CuResult::INVALID_HANDLE);
        }
        let mut milliseconds = 0f32;
        // SAFETY: a place for the answer and two events that were not destroyed.
        let asked = unsafe { (self.lease.driver.event_elapsed)(&raw mut milliseconds, start, end) };
        self.ask(asked)?;
        Ok(milliseconds)
    }
}

/// Attributes that say how a kernel runs and touch nothing else.
const ALLOWED: [LaunchAttribute; 6] = [
    LaunchAttribute::COOPERATIVE,
    LaunchAttribute::CLUSTER_DIMENSION,
    LaunchAttribute::CLUSTER_SCHEDULING_POLICY_PREFERENCE,
    LaunchAttribute::PROGRAMMATIC_STREAM_SERIALIZATION,
    LaunchAttribute::PRIORITY,
    LaunchAttribute::PREFERRED_SHARED_MEMORY_CARVEOUT,
];

fn settings(wanted: &[LaunchSetting]) -> Result<Vec<LaunchAttributeValue>, CuResult> {
    let one = |setting: &LaunchSetting| {
        let is_allowed = ALLOWED.contains(&LaunchAttribute(setting.attribute));
        let value = LaunchAttributeValue::of(setting.attribute, setting.value);
        is_allowed.then_some(value).ok_or(CuResult::NOT_SUPPORTED)
    };
    wanted.iter().map(one).collect()
}

/// A pointer to each argument in `blob`, when it is just as large as the kernel's parameters.
fn arguments(blob: &[u8], layout: &[ParamInfo]) -> Result<Vec<*mut c_void>, CuResult> {
    let mut pointers = Vec::with_capacity(layout.len());
    let mut expected = 0usize;
    for parameter in layout {
        let (offset, size) = (parameter.offset as usize, parameter.size as usize);
        let end = offset.checked_add(size).ok_or(CuResult::INVALID_VALUE)?;
        let argument = blob.get(offset..end).ok_or(CuResult::INVALID_VALUE)?;
        pointers.push(argument.as_ptr().cast_mut().cast());
        expected = expected.max(end);
    }
    if blob.len() == expected { Ok(pointers) } else { Err(CuResult::INVALID_VALUE) }
}
