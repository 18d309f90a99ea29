//! A context: its memory, its work, and the fault that ended it.

use std::collections::BTreeMap;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use gpuzone_cuda_abi::{CuResult, Limit};
use gpuzone_sim_ptx::PrintBuffer;

use crate::Answer;
use crate::abi::Word;
use crate::driver::{Gpu, report};
use crate::executor::{Executor, Ticket};
use crate::handles::{self, Object};
use crate::memory::{Kind, Memory};
use crate::work::{Work, perform};

/// Bytes that kernels may print until somebody waits for them, unless the program says otherwise.
const PRINTS: usize = 1 << 20;
/// The most that it may say.
const MOST_PRINTS: usize = 64 << 20;

/// Says how many texts of printf were lost in this process, each time that they have doubled: a
/// program that prints without end has it said a few dozen times.
fn note_lost(lost: u64) {
    static LOST: AtomicU64 = AtomicU64::new(0);
    let before = LOST.fetch_add(lost, Ordering::Relaxed);
    let now = before.saturating_add(lost);
    if now.checked_ilog2() > before.checked_ilog2() {
        report(&format!("{now} texts of printf were lost so far: its buffer was full"));
    }
}

pub(crate) struct Context {
    pub(crate) handle: Word,
    gpu: &'static Gpu,
    pub(crate) flags: AtomicU32,
    pub(crate) cache_config: AtomicU32,
    limits: Mutex<BTreeMap<u32, usize>>,
    memory: Memory,
    prints: PrintBuffer,
    executor: Executor,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// 0, or the result that every call answers.
    stuck: AtomicU32,
    cancelled: AtomicBool,
}

impl Context {
    /// A new context, entered in the table of handles. Its overhead is charged.
    pub(crate) fn create(gpu: &'static Gpu, flags: u32) -> Answer<Arc<Self>> {
        let memory = Memory::new(&gpu.attachment, &gpu.physical);
        let overhead = gpu.config().context_overhead.get();
        if overhead > 0 {
            memory.allocate(overhead, Kind::Context)?;
        }
        let counted = gpu.attachment.add_context();
        counted.map_err(|error| {
            report(&error.to_string());
            memory.free_all();
            CuResult::UNKNOWN
        })?;
        let mut created = None;
        handles::insert(|handle| {
            let context = Arc::new(Self {
                handle,
                gpu,
                flags: AtomicU32::new(flags),
                cache_config: AtomicU32::new(0),
                limits: Mutex::default(),
                memory,
                prints: PrintBuffer::new(PRINTS),
                executor: Executor::default(),
                thread: Mutex::default(),
                stuck: AtomicU32::new(0),
                cancelled: AtomicBool::new(false),
            });
            created = Some(Arc::clone(&context));
            Object::Context(context)
        });
        let context = created.ok_or(CuResult::UNKNOWN)?;
        if let Err(error) = context.start() {
            report(&format!("cannot start a thread for a context: {error}"));
            context.destroy();
            return Err(CuResult::OPERATING_SYSTEM);
        }
        Ok(context)
    }

    fn start(self: &Arc<Self>) -> std::io::Result<()> {
        let own = Arc::clone(self);
        let guarded = move |context: &Self, work| {
            // Whoever waits must not wait for ever, whatever happened.
            let done = catch_unwind(AssertUnwindSafe(|| perform(context, work)));
            done.unwrap_or_else(|_| {
                context.stick(CuResult::LAUNCH_FAILED);
                None
            })
        };
        let run = move || own.executor.run(|work| guarded(&own, work));
        let thread = std::thread::Builder::new().name("sim-gpu-context".into()).spawn(run)?;
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(())
    }

    /// Ends the context: what runs is cancelled, its memory goes back, its handles are gone.
    pub(crate) fn destroy(self: &Arc<Self>) {
        handles::remove_context(self);
        self.cancelled.store(true, Ordering::Release);
        self.executor.stop();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
        self.write_prints();
        self.memory.free_all();
        if let Err(error) = self.gpu.attachment.remove_context() {
            report(&error.to_string());
        }
    }

    pub(crate) fn gpu(&self) -> &'static Gpu {
        self.gpu
    }

    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    pub(crate) fn cancel_flag(&self) -> &AtomicBool {
        &self.cancelled
    }

    /// The fault that stuck, if one did.
    pub(crate) fn check(&self) -> Answer {
        CuResult(self.stuck.load(Ordering::Acquire)).ok()
    }

    /// The first fault stays; later ones are its consequences.
    pub(crate) fn stick(&self, result: CuResult) {
        let _ = self.stuck.compare_exchange(0, result.0, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Whether nothing shall touch its memory any more.
    pub(crate) fn is_over(&self) -> bool {
        self.check().is_err() || self.cancelled.load(Ordering::Acquire)
    }

    pub(crate) fn submit(&self, work: Work) -> Answer<Ticket> {
        self.executor.submit(work)
    }

    /// Submits, waits, and answers what the work came to.
    pub(crate) fn run(&self, work: Work) -> Answer {
        let ticket = self.submit(work)?;
        self.wait(ticket)
    }

    pub(crate) fn wait(&self, ticket: Ticket) -> Answer {
        self.executor.wait(ticket);
        self.write_prints();
        self.check()
    }

    /// Where kernels print to.
    pub(crate) fn prints(&self) -> &PrintBuffer {
        &self.prints
    }

    /// Writes what kernels printed to the process's output, as the driver does whenever a
    /// program waits for its work.
    pub(crate) fn write_prints(&self) {
        let (text, lost) = self.prints.take();
        note_lost(lost);
        if !text.is_empty() {
            let mut output = std::io::stdout().lock();
            let written = output.write_all(&text).and_then(|()| output.flush());
            if let Err(error) = written {
                report(&format!("what kernels printed is lost: {error}"));
            }
        }
    }

    /// `NOT_READY` while the work up to `ticket` is not done.
    pub(crate) fn query(&self, ticket: Ticket) -> Answer {
        let done = self.executor.is_done(ticket);
        self.check()?;
        if done { Ok(()) } else { Err(CuResult::NOT_READY) }
    }

    /// Everything that was submitted so far.
    pub(crate) fn last(&self) -> Ticket {
        self.executor.last()
    }

    pub(crate) fn limit(&self, limit: Limit) -> Answer<usize> {
        let default = match limit {
            Limit::STACK_SIZE => 1024,
            Limit::PRINTF_FIFO_SIZE => PRINTS,
            Limit::MALLOC_HEAP_SIZE => 8 << 20,
            Limit::DEV_RUNTIME_SYNC_DEPTH => 2,
            Limit::DEV_RUNTIME_PENDING_LAUNCH_COUNT => 2048,
            Limit::MAX_L2_FETCH_GRANULARITY => 128,
            Limit::PERSISTING_L2_CACHE_SIZE => 0,
            _ => return Err(CuResult::UNSUPPORTED_LIMIT),
        };
        let limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(limits.get(&limit.0).copied().unwrap_or(default))
    }

    pub(crate) fn set_limit(&self, limit: Limit, value: usize) -> Answer {
        self.limit(limit)?;
        let mut value = value;
        if limit == Limit::PRINTF_FIFO_SIZE {
            value = value.min(MOST_PRINTS);
            self.prints.set_capacity(value);
        }
        self.limits.lock().unwrap_or_else(PoisonError::into_inner).insert(limit.0, value);
        Ok(())
    }
}
