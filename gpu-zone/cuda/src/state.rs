//! The connection and everything that hangs on it, behind one mutex.

use std::alloc::Layout;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::ffi::c_void;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use gpuzone_cuda_abi::{CUdevice, CUstream, CuResult, DeviceAttribute};
use gpuzone_wire::client::Client;
use gpuzone_wire::hello::DeviceInfo;
use gpuzone_wire::ring::Payload;
use gpuzone_wire::spec::{
    ContextDestroy, ContextId, EventId, FunctionId, ModuleId, Request, StreamId,
};

use crate::connect::{FORKED, connect};
use crate::ffi::Answer;
use crate::handles::{Kind, number};
use crate::tables::{Context, Function, Primary, Ranges, Stream};

/// The first number of contexts that are no GPU's primary one.
const FIRST_CONTEXT: u32 = 1 << 16;

pub(crate) struct State {
    pub(crate) client: Client,
    pub(crate) driver_version: i32,
    pub(crate) devices: Vec<DeviceInfo>,
    attributes: Vec<Attributes>,
    pub(crate) contexts: HashMap<ContextId, Context>,
    pub(crate) primaries: Vec<Primary>,
    pub(crate) modules: HashMap<ModuleId, ContextId>,
    pub(crate) functions: HashMap<FunctionId, Function>,
    pub(crate) by_name: HashMap<(ModuleId, String), FunctionId>,
    pub(crate) streams: HashMap<StreamId, Stream>,
    pub(crate) events: HashMap<EventId, ContextId>,
    pub(crate) ranges: Ranges,
    pub(crate) host: BTreeMap<usize, (Layout, u32)>,
    numbers: u32,
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
        driver_version: connection.driver_version,
        contexts: HashMap::new(),
        modules: HashMap::new(),
        functions: HashMap::new(),
        by_name: HashMap::new(),
        streams: HashMap::new(),
        events: HashMap::new(),
        ranges: Ranges::default(),
        host: BTreeMap::new(),
        numbers: FIRST_CONTEXT,
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
    pub(crate) fn stream(&self, handle: CUstream) -> Answer<(StreamId, ContextId)> {
        match handle.addr() {
            0 => Ok((StreamId::DEFAULT, self.context()?)),
            1 => Ok((StreamId::LEGACY, self.context()?)),
            2 => Ok((StreamId::PER_THREAD, self.context()?)),
            _ => {
                let id = number(Kind::Stream, handle).map(StreamId);
                let id = id.ok_or(CuResult::INVALID_HANDLE)?;
                let stream = self.streams.get(&id).ok_or(CuResult::INVALID_HANDLE)?;
                Ok((id, stream.context))
            }
        }
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

    /// Ends a context and forgets what was in it.
    pub(crate) fn destroy_context(&mut self, id: ContextId) -> Answer {
        self.contexts.remove(&id).ok_or(CuResult::INVALID_CONTEXT)?;
        self.modules.retain(|_, context| *context != id);
        self.functions.retain(|_, function| function.context != id);
        let modules = &self.modules;
        self.by_name.retain(|(module, _), _| modules.contains_key(module));
        self.streams.retain(|_, stream| stream.context != id);
        self.events.retain(|_, context| *context != id);
        self.ranges.retain(|range| range.context != id);
        self.call(id, &ContextDestroy { context: id }).map(|_| ())
    }
}
