//! What the process has once `cuInit` succeeded.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use gpuzone_cuda_abi::CuResult;
use gpuzone_sim_device::{Attachment, Config, GpuConfig, MemsetFault, SimulatedNode};

use crate::Answer;
use crate::abi::Word;
use crate::context::Context;
use crate::handles;

static DRIVER: OnceLock<Driver> = OnceLock::new();
static INITIALISING: Mutex<()> = Mutex::new(());

pub(crate) struct Driver {
    gpus: Vec<Gpu>,
}

/// One GPU as this process uses it.
pub(crate) struct Gpu {
    pub(crate) ordinal: i32,
    pub(crate) attachment: Attachment<'static>,
    pub(crate) primary: Mutex<Primary>,
    /// The configuration may ask for a driver that lies.
    pub(crate) memset_fault: Option<MemsetFault>,
}

/// The context that libraries of a process share.
#[derive(Default)]
pub(crate) struct Primary {
    pub(crate) context: Option<Arc<Context>>,
    pub(crate) retained: u32,
    pub(crate) flags: u32,
}

impl Gpu {
    pub(crate) fn config(&self) -> &GpuConfig {
        self.attachment.gpu().config()
    }
}

/// `cuInit`: opens everything this library will ever open.
pub(crate) fn initialise() -> Answer {
    let _one_at_a_time = INITIALISING.lock().unwrap_or_else(PoisonError::into_inner);
    if DRIVER.get().is_some() {
        return Ok(());
    }
    let driver = open().map_err(|error| {
        report(&chain(error.as_ref()));
        CuResult::NO_DEVICE
    })?;
    let _ = DRIVER.set(driver);
    Ok(())
}

fn open() -> Result<Driver, Box<dyn std::error::Error>> {
    // Lives as long as the process does: so do the driver's tables.
    let node: &'static SimulatedNode =
        Box::leak(Box::new(SimulatedNode::open(Config::from_env()?)?));
    let mut gpus = Vec::new();
    let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    for (ordinal, gpu) in (0..).zip(node.visible(visible.as_deref())) {
        let (attachment, memset_fault) = (gpu.attach()?, node.config().memset_fault);
        gpus.push(Gpu { ordinal, attachment, primary: Mutex::default(), memset_fault });
    }
    Ok(Driver { gpus })
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Says on standard error what a result code has no room for, as a driver does in the
/// kernel's log.
pub(crate) fn report(text: &str) {
    eprintln!("gpu-zone simulated GPU: {text}");
}

pub(crate) fn driver() -> Answer<&'static Driver> {
    DRIVER.get().ok_or(CuResult::NOT_INITIALIZED)
}

impl Driver {
    pub(crate) fn gpus(&self) -> &[Gpu] {
        &self.gpus
    }
}

/// The GPU with this ordinal.
pub(crate) fn gpu(ordinal: i32) -> Answer<&'static Gpu> {
    let index = usize::try_from(ordinal).map_err(|_| CuResult::INVALID_DEVICE);
    driver()?.gpus.get(index?).ok_or(CuResult::INVALID_DEVICE)
}

thread_local! {
    /// Handles of the contexts that this thread pushed; the last is current.
    static STACK: RefCell<Vec<Word>> = const { RefCell::new(Vec::new()) };
}

pub(crate) fn with_stack<T>(action: impl FnOnce(&mut Vec<Word>) -> T) -> T {
    STACK.with_borrow_mut(action)
}

/// The current context, whatever state it is in.
pub(crate) fn current_unchecked() -> Answer<Arc<Context>> {
    driver()?;
    let handle = with_stack(|stack| stack.last().copied());
    handles::context(handle.ok_or(CuResult::INVALID_CONTEXT)?)
}

/// The current context, unless an earlier fault stuck to it.
pub(crate) fn current() -> Answer<Arc<Context>> {
    let context = current_unchecked()?;
    context.check()?;
    Ok(context)
}
