//! The arbiter: shares each GPU's time among the leases on it.
//!
//! ```text
//!  broker's loop ──join, leave──▶ ┌─────────────────────┐ ◀─Want, Yield── worker of lease A
//!                                 │ arbiter's thread:   │ ──Grant, Recall─▶
//!  lease's task ◀─overran──────── │ a schedule per GPU  │ ◀─Want, Yield── worker of lease B
//!                                 └─────────────────────┘
//! ```
//!
//! Architecture invariant: it has a thread of its own and does nothing there that waits for a
//! disk or for another process, for whoever waits for a turn waits for it. Nothing that a worker
//! says is believed beyond its bounds, and it only ever concerns that worker's own turns.

mod bucket;
mod line;
mod member;
mod run;
mod schedule;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use gpuzone_core::{ComputeShare, GpuUuid, LeaseId};
use gpuzone_wire::control::WorkerOrder;
use gpuzone_wire::scrub::ScrubOrder;
use gpuzone_wire::turn::{FairTime, Priority};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use tokio::sync::Notify;

pub(crate) use line::serve;

use line::Line;
use run::Arbiter;
use schedule::Terms;

/// The weight of a scrub, in per cent.
const SCRUB_PERCENT: u32 = 5;

/// The arbiter, as the broker's other parts know it. When the last of these is dropped, the
/// arbiter ends.
#[derive(Clone, Debug)]
pub(crate) struct Turns {
    orders: Sender<Order>,
    wake: Arc<Wake>,
}

/// Wakes the arbiter, at the latest when nobody can give it orders any more.
#[derive(Debug)]
struct Wake(Arc<OwnedFd>);

impl Drop for Wake {
    fn drop(&mut self) {
        self.ring();
    }
}

impl Wake {
    fn ring(&self) {
        // Fails only when it has been rung 2^64 times and not been heard.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

enum Order {
    Join(Box<Newcomer>),
    Leave(LeaseId),
    Forget(LeaseId),
}

/// A worker that wants to have turns.
struct Newcomer {
    lease: LeaseId,
    line: Line,
    gpus: Vec<(GpuUuid, Terms)>,
    overran: Arc<Notify>,
}

impl Turns {
    /// Starts the arbiter.
    ///
    /// # Errors
    /// When the system gives no descriptor or thread.
    pub(crate) fn start(config: FairTime) -> io::Result<Self> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (orders, received) = channel();
        let arbiter = Arbiter::new(config, received, Arc::clone(&wake));
        std::thread::Builder::new().name("arbiter".to_owned()).spawn(move || arbiter.run())?;
        Ok(Self { orders, wake: Arc::new(Wake(wake)) })
    }

    /// Gives the worker of a lease, which listens at `path`, its turns from now on. `overran` is
    /// notified when it keeps a turn past the watchdog's limit.
    ///
    /// # Errors
    /// When the worker cannot be reached.
    pub(crate) fn join(
        &self,
        order: &WorkerOrder,
        path: &Path,
        overran: Arc<Notify>,
    ) -> io::Result<()> {
        let line = Line::connect(path)?;
        let (cap, priority) = (order.time_cap, order.priority);
        let terms = |weight| Terms { weight, cap, priority, patient: false };
        let gpus = order.grants.iter().map(|grant| (grant.gpu, terms(grant.share))).collect();
        let newcomer = Newcomer { lease: order.lease, line, gpus, overran };
        self.order(Order::Join(Box::new(newcomer)));
        Ok(())
    }

    /// Gives a scrub worker, which listens at `path`, turns beside the leases that run: few while
    /// they want the GPU, all of it when they do not. Nobody is ended for keeping it waiting.
    ///
    /// # Errors
    /// When the worker cannot be reached.
    pub(crate) fn join_scrub(
        &self,
        order: &ScrubOrder,
        path: &Path,
        overran: Arc<Notify>,
    ) -> io::Result<()> {
        let line = Line::connect(path)?;
        let weight = ComputeShare::new(SCRUB_PERCENT).map_err(io::Error::other)?;
        let terms = Terms { weight, cap: None, priority: Priority::Batch, patient: true };
        let gpus = order.gpus.iter().map(|gpu| (gpu.gpu, terms)).collect();
        let newcomer = Newcomer { lease: order.lease, line, gpus, overran };
        self.order(Order::Join(Box::new(newcomer)));
        Ok(())
    }

    /// A lease has no worker any more; it may get another, which owes what this one used.
    pub(crate) fn leave(&self, lease: LeaseId) {
        self.order(Order::Leave(lease));
    }

    /// A lease, or a scrub, is over.
    pub(crate) fn forget(&self, lease: LeaseId) {
        self.order(Order::Forget(lease));
    }

    fn order(&self, order: Order) {
        if self.orders.send(order).is_err() {
            tracing::error!("the arbiter is gone; GPUs' time is not shared fairly");
        }
        self.wake.ring();
    }
}
