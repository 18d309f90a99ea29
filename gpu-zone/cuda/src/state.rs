//! The connection and everything that hangs on it, behind one mutex.

use std::cell::RefCell;
use std::ffi::c_void;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use gpuzone_cuda_abi::{CUdevice, CUstream, CuResult, DeviceAttribute, ctx_flags, stream_flags};
use gpuzone_wire::client::Client;
use gpuzone_wire::hello::DeviceInfo;
use gpuzone_wire::ring::{Payload, Spin};
use gpuzone_wire::spec::{
    ContextCreate, ContextDestroy, ContextId, EventId, FunctionId, ModuleId, PhysicalId, PoolId,
    Request, StreamCreate, StreamId,
};

use crate::connect::{FORKED, connect};
use crate::ffi::Answer;
use crate::graphs::{Graphs, Work};
use crate::handles::{Kind, number};
use crate::host::Hosts;
use crate::tables::{
    Context, Function, HashMap, Kernel, Library, Linker, Physical, Primary, Ranges, Stream,
};
use crate::threads::{is_own_default, own_stream, set_own_stream};

/// The first number of contexts that are no GPU's primary one.
const FIRST_CONTEXT: u32 = 1 << 16;

pub(crate) struct State {
    pub(crate) client: Client,
    /// Bytes that go in one record at most.
    pub(crate) piece: usize,
    pub(crate) driver_version: i32,
    pub(crate) devices: Vec<DeviceInfo>,
    attributes: Vec<Attributes>,
    pub(crate) contexts: HashMap<ContextId, Context>,
    pub(crate) primaries: Vec<Primary>,
    pub(crate) modules: HashMap<ModuleId, ContextId>,
    pub(crate) functions: HashMap<FunctionId, Function>,
    pub(crate) by_name: HashMap<(ModuleId, String), FunctionId>,
    pub(crate) libraries: HashMap<u32, Library>,
    pub(crate) kernels: HashMap<u32, Kernel>,
    pub(crate) linkers: HashMap<u32, Linker>,
    pub(crate) streams: HashMap<StreamId, Stream>,
    pub(crate) events: HashMap<EventId, ContextId>,
    pub(crate) ranges: Ranges,
    pub(crate) hosts: Hosts,
    pub(crate) graphs: Graphs,
    /// Nodes as the program was last told them.
    pub(crate) told_tips: Vec<usize>,
    pub(crate) physical: HashMap<PhysicalId, Physical>,
    pub(crate) pools: HashMap<PoolId, usize>,
    /// The pool that each GPU takes memory of, where the program has said.
    pub(crate) current_pools: HashMap<usize, PoolId>,
    /// Whether a thread runs what the worker says is due.
    pub(crate) hears_worker: bool,
    /// Whether kernels may print.
    pub(crate) prints: bool,
    numbers: u32,
    /// Room for the arguments of the next launch: most launches follow another one.
    pub(crate) spare: Vec<u8>,
}

/// A GPU's attributes by number: every launch looks at some.
struct Attributes(Vec<Option<i32>>);

impl Attributes {
    /// More than CUDA has.
    const MOST: usize = 1024;

    fn of(device: &DeviceInfo) -> Self {
        let mut table = Vec::new();
        for (number, value) in &device.attributes {
            let place = usize::try_from(*number).ok().filter(|place| *place < Self::MOST);
            if let Some(place) = place {
                table.resize(table.len().max(place + 1), None);
                table[place] = Some(*value);
            }
        }
        Self(table)
    }

    fn get(&self, attribute: DeviceAttribute) -> Option<i32> {
        let place = usize::try_from(attribute.0).ok()?;
        self.0.get(place).copied().flatten()
    }
}

static STATE: Mutex<Option<State>> = Mutex::new(None);

thread_local! {
    static STACK: RefCell<Vec<ContextId>> = const { RefCell::new(Vec::new()) };
}

/// Connects, once.
pub(crate) fn initialise() -> Answer {
    if FORKED.load(Ordering::SeqCst) {
        return Err(CuResult::NOT_INITIALIZED);
    }
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    if state.is_some() {
        return Ok(());
    }
    let connection = connect().map_err(|reason| {
        eprintln!("gpu-zone: no GPU for this program: {reason}");
        CuResult::NO_DEVICE
    })?;
    let devices = connection.devices;
    *state = Some(State {
        attributes: devices.iter().map(Attributes::of).collect(),
        primaries: devices.iter().map(|_| Primary::default()).collect(),
        devices,
        client: connection.client,
        piece: connection.record_bytes.get(),
        driver_version: connection.driver_version,
        contexts: HashMap::default(),
        modules: HashMap::default(),
        functions: HashMap::default(),
        by_name: HashMap::default(),
        libraries: HashMap::default(),
        kernels: HashMap::default(),
        linkers: HashMap::default(),
        streams: HashMap::default(),
        events: HashMap::default(),
        ranges: Ranges::default(),
        hosts: Hosts::default(),
        graphs: Graphs::default(),
        told_tips: Vec::new(),
        physical: HashMap::default(),
        pools: HashMap::default(),
        current_pools: HashMap::default(),
        hears_worker: false,
        prints: false,
        numbers: FIRST_CONTEXT,
        spare: Vec::new(),
    });
    Ok(())
}

/// Does something with the connection.
pub(crate) fn with<T>(act: impl FnOnce(&mut State) -> Answer<T>) -> Answer<T> {
    if FORKED.load(Ordering::Relaxed) {
        return Err(CuResult::NOT_INITIALIZED);
    }
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    let state = state.as_mut().ok_or(CuResult::NOT_INITIALIZED)?;
    if state.client.trouble().is_some() {
        return Err(CuResult::DEVICE_UNAVAILABLE);
    }
    let answer = act(state);
    if let Some(trouble) = state.client.trouble() {
        eprintln!("gpu-zone: the GPU is lost to this process: {trouble}; start it again");
    }
    answer
}

/// The thread's contexts, the current one last.
pub(crate) fn with_stack<T>(act: impl FnOnce(&mut Vec<ContextId>) -> T) -> Answer<T> {
    // A thread that is ending has no context any more.
    STACK.try_with(|stack| act(&mut stack.borrow_mut())).map_err(|_| CuResult::INVALID_CONTEXT)
}

/// The thread's current context.
pub(crate) fn current() -> Answer<Option<ContextId>> {
    with_stack(|stack| stack.last().copied().filter(|context| context.0 != 0))
}

impl State {
    /// A number that no object has had.
    pub(crate) fn new_number(&mut self) -> u32 {
        self.numbers += 1;
        self.numbers
    }

    /// The context that the thread's calls are made in.
    pub(crate) fn context(&self) -> Answer<ContextId> {
        let context = current()?.ok_or(CuResult::INVALID_CONTEXT)?;
        if self.contexts.contains_key(&context) {
            Ok(context)
        } else {
            Err(CuResult::CONTEXT_IS_DESTROYED)
        }
    }

    /// The current context if it is of this GPU, else any that is.
    pub(crate) fn context_on(&self, device: usize) -> Answer<ContextId> {
        let on_device = |context: &ContextId| {
            self.contexts.get(context).is_some_and(|context| context.device == device)
        };
        let current = self.context().ok().filter(on_device);
        let found = current.or_else(|| self.contexts.keys().copied().find(on_device));
        found.ok_or(CuResult::INVALID_CONTEXT)
    }

    pub(crate) fn context_of(&self, handle: *mut c_void) -> Answer<ContextId> {
        let id = number(Kind::Context, handle).map(ContextId);
        id.filter(|id| self.contexts.contains_key(id)).ok_or(CuResult::INVALID_CONTEXT)
    }

    pub(crate) fn device(&self, device: CUdevice) -> Answer<usize> {
        let index = usize::try_from(device).map_err(|_| CuResult::INVALID_DEVICE)?;
        if index < self.devices.len() { Ok(index) } else { Err(CuResult::INVALID_DEVICE) }
    }

    pub(crate) fn attribute(&self, device: usize, attribute: DeviceAttribute) -> Answer<i32> {
        let of_device = self.attributes.get(device).ok_or(CuResult::INVALID_DEVICE)?;
        of_device.get(attribute).ok_or(CuResult::INVALID_VALUE)
    }

    /// A stream and the context it belongs to: the current one for CUDA's own streams.
    pub(crate) fn stream(&mut self, handle: CUstream) -> Answer<(StreamId, ContextId)> {
        match handle.addr() {
            0 if is_own_default() => self.own_stream(),
            0 => Ok((StreamId::DEFAULT, self.context()?)),
            1 => Ok((StreamId::LEGACY, self.context()?)),
            2 => self.own_stream(),
            _ => {
                let id = number(Kind::Stream, handle).map(StreamId);
                let id = id.ok_or(CuResult::INVALID_HANDLE)?;
                let stream = self.streams.get(&id).ok_or(CuResult::INVALID_HANDLE)?;
                Ok((id, stream.context))
            }
        }
    }

    /// The calling thread's own stream in the current context.
    fn own_stream(&mut self) -> Answer<(StreamId, ContextId)> {
        let context = self.context()?;
        if let Some(stream) = own_stream(context, |stream| self.streams.contains_key(&stream)) {
            return Ok((stream, context));
        }
        let stream = StreamId(self.new_number());
        let (flags, priority) = (stream_flags::DEFAULT, 0);
        self.post(context, &StreamCreate { stream, flags, priority })?;
        self.streams.insert(stream, Stream { context, flags, priority });
        set_own_stream(context, stream)?;
        Ok((stream, context))
    }

    /// Records work where the stream is capturing; whether it is. Then nothing else is to be done.
    pub(crate) fn captures(
        &mut self,
        stream: StreamId,
        work: impl FnOnce() -> Work,
    ) -> Answer<bool> {
        if !self.graphs.is_capturing(stream) {
            return Ok(false);
        }
        let node = self.new_number();
        self.graphs.record(stream, node, work())?;
        Ok(true)
    }

    /// Refuses what a capturing stream cannot do.
    pub(crate) fn not_capturing(&self, stream: StreamId) -> Answer {
        let capturing = self.graphs.is_capturing(stream);
        if capturing { Err(CuResult::STREAM_CAPTURE_UNSUPPORTED) } else { Ok(()) }
    }

    pub(crate) fn event(&self, handle: *mut c_void) -> Answer<(EventId, ContextId)> {
        let id = number(Kind::Event, handle).map(EventId).ok_or(CuResult::INVALID_HANDLE)?;
        let context = self.events.get(&id).ok_or(CuResult::INVALID_HANDLE)?;
        Ok((id, *context))
    }

    pub(crate) fn post<R: Request>(&mut self, context: ContextId, request: &R) -> Answer {
        self.client.post(context, request, Payload::NONE)
    }

    pub(crate) fn post_release<R: Request>(&mut self, context: ContextId, request: &R) -> Answer {
        self.client.post_release(context, request)
    }

    pub(crate) fn call<R: Request>(&mut self, context: ContextId, request: &R) -> Answer<R::Reply> {
        self.client.call(context, request, Payload::NONE)
    }

    /// Makes a call that waits for work, which may have printed.
    pub(crate) fn wait<R: Request>(&mut self, context: ContextId, request: &R) -> Answer {
        let waited = self.call(context, request).map(drop);
        self.write_prints();
        waited
    }

    /// The program wants its threads to wait in this way (`ctx_flags::SCHED_MASK`): in one context,
    /// but there is one line to the worker, so that the last one who says so is heard.
    pub(crate) fn wait_as(&mut self, flags: u32) {
        let blocks = flags & ctx_flags::SCHED_MASK == ctx_flags::SCHED_BLOCKING_SYNC;
        self.client.set_spin(if blocks { Spin::default() } else { Spin::for_a_gpu() });
    }

    /// Makes a context.
    pub(crate) fn create_context(&mut self, id: ContextId, device: usize, flags: u32) -> Answer {
        let number = u32::try_from(device).map_err(|_| CuResult::INVALID_DEVICE)?;
        let request = ContextCreate { context: id, device: number, flags };
        let made = self.call(ContextId(0), &request)?;
        let priorities = (made.least_priority, made.greatest_priority);
        let (cache_config, shared_config) = (0, 0);
        let context = Context { device, flags, priorities, cache_config, shared_config };
        self.contexts.insert(id, context);
        self.wait_as(flags);
        Ok(())
    }

    /// Ends a context and forgets what was in it.
    pub(crate) fn destroy_context(&mut self, id: ContextId) -> Answer {
        self.contexts.remove(&id).ok_or(CuResult::INVALID_CONTEXT)?;
        self.modules.retain(|_, context| *context != id);
        self.functions.retain(|_, function| function.context != id);
        let modules = &self.modules;
        self.by_name.retain(|(module, _), _| modules.contains_key(module));
        for library in self.libraries.values_mut() {
            library.modules.remove(&id);
        }
        for kernel in self.kernels.values_mut() {
            kernel.functions.remove(&id);
        }
        self.graphs.forget_context(id);
        self.linkers.retain(|_, linker| linker.context != id);
        self.streams.retain(|_, stream| stream.context != id);
        self.events.retain(|_, context| *context != id);
        self.ranges.retain(|range| range.context != id);
        self.wait(id, &ContextDestroy { context: id })
    }
}
