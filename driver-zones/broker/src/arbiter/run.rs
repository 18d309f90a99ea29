//! The arbiter's thread.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};

use gpuzone_core::{GpuUuid, LeaseId};
use gpuzone_wire::stats::Monotonic;
use gpuzone_wire::turn::{FairTime, FromArbiter, FromWorker};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tokio::sync::Notify;

use super::line::{Line, LineError};
use super::schedule::{Action, Schedule};
use super::{Newcomer, Order};

/// Messages of one worker that are read before others have their say.
const AT_ONCE: usize = 64;

pub(super) struct Arbiter {
    config: FairTime,
    orders: Receiver<Order>,
    wake: Arc<OwnedFd>,
    gpus: BTreeMap<GpuUuid, Schedule>,
    workers: BTreeMap<LeaseId, Worker>,
}

struct Worker {
    line: Line,
    /// In the order of the lease's grants.
    gpus: Vec<GpuUuid>,
    overran: Arc<Notify>,
}

impl Worker {
    fn device(&self, gpu: GpuUuid) -> Option<u32> {
        let device = self.gpus.iter().position(|own| *own == gpu)?;
        u32::try_from(device).ok()
    }
}

impl Arbiter {
    pub(super) fn new(config: FairTime, orders: Receiver<Order>, wake: Arc<OwnedFd>) -> Self {
        Self { config, orders, wake, gpus: BTreeMap::new(), workers: BTreeMap::new() }
    }

    /// Until nobody gives orders any more.
    pub(super) fn run(mut self) {
        loop {
            if !self.take_orders() {
                return;
            }
            self.schedule();
            match self.wait() {
                Ok(spoke) => spoke.into_iter().for_each(|lease| self.listen(lease)),
                Err(error) => {
                    tracing::error!(%error, "the arbiter cannot wait for workers");
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
            }
        }
    }

    /// Whether there may be more at some time.
    fn take_orders(&mut self) -> bool {
        loop {
            match self.orders.try_recv() {
                Ok(Order::Join(newcomer)) => self.join(*newcomer),
                Ok(Order::Leave(lease)) => self.leave(lease),
                Ok(Order::Forget(lease)) => self.forget(lease),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn join(&mut self, newcomer: Newcomer) {
        let Newcomer { lease, line, gpus, overran } = newcomer;
        self.leave(lease);
        for (gpu, terms) in &gpus {
            let schedule = self.gpus.entry(*gpu).or_insert_with(|| Schedule::new(self.config));
            schedule.join(lease, *terms, Monotonic::now());
        }
        let gpus = gpus.into_iter().map(|(gpu, _)| gpu).collect();
        self.workers.insert(lease, Worker { line, gpus, overran });
    }

    fn leave(&mut self, lease: LeaseId) {
        if self.workers.remove(&lease).is_some() {
            let now = Monotonic::now();
            self.gpus.values_mut().for_each(|schedule| schedule.leave(lease, now));
        }
    }

    fn forget(&mut self, lease: LeaseId) {
        self.workers.remove(&lease);
        let now = Monotonic::now();
        self.gpus.values_mut().for_each(|schedule| schedule.forget(lease, now));
    }

    /// Tells the workers what is to be done now.
    fn schedule(&mut self) {
        let (mut gone, mut lost) = (Vec::new(), Vec::new());
        for (gpu, schedule) in &mut self.gpus {
            // A grant to a worker that is just going is taken back, and the next one's turn is it.
            loop {
                let actions = schedule.poll(Monotonic::now());
                let failed = actions.into_iter().filter_map(|action| {
                    let (lease, error) = tell(&self.workers, *gpu, action).err()?;
                    match error {
                        LineError::Closed => gone.push(lease),
                        LineError::NoMessage | LineError::Io(_) => {
                            tracing::warn!(%lease, %error, "a worker's line of turns broke");
                            lost.push(lease);
                        }
                    }
                    Some(lease)
                });
                let failed: Vec<LeaseId> = failed.collect();
                failed.iter().for_each(|lease| schedule.leave(*lease, Monotonic::now()));
                if failed.is_empty() {
                    break;
                }
            }
        }
        gone.into_iter().for_each(|lease| self.leave(lease));
        lost.into_iter().for_each(|lease| self.broken(lease));
    }

    /// Waits for workers, orders or the next moment; who has something to say.
    fn wait(&self) -> Result<Vec<LeaseId>, Errno> {
        let now = Monotonic::now();
        let next = self.gpus.values().filter_map(|schedule| schedule.wake_at(now)).min();
        let timeout = next.map(|next| {
            let nanoseconds = next.nanoseconds_since(now);
            Timespec {
                tv_sec: i64::try_from(nanoseconds / 1_000_000_000).unwrap_or(i64::MAX),
                tv_nsec: i64::try_from(nanoseconds % 1_000_000_000).unwrap_or(0),
            }
        });
        let mut fds = vec![PollFd::new(&*self.wake, PollFlags::IN)];
        fds.extend(self.workers.values().map(|w| PollFd::new(&w.line, PollFlags::IN)));
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        let events: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if events.first() == Some(&true) {
            let mut count = [0u8; 8];
            // Empties the counter; nothing depends on its value.
            let _ = rustix::io::read(&*self.wake, &mut count);
        }
        let spoke = self.workers.keys().zip(events.into_iter().skip(1));
        Ok(spoke.filter_map(|(lease, spoke)| spoke.then_some(*lease)).collect())
    }

    fn listen(&mut self, lease: LeaseId) {
        for _ in 0..AT_ONCE {
            let Some(worker) = self.workers.get(&lease) else { return };
            match worker.line.receive() {
                Ok(None) => return,
                Ok(Some(message)) => {
                    if !heard(worker, &mut self.gpus, lease, message) {
                        tracing::warn!(%lease, "its worker speaks of a GPU that it has not got");
                        return self.broken(lease);
                    }
                }
                Err(LineError::Closed) => return self.leave(lease),
                Err(error) => {
                    tracing::warn!(%lease, %error, "a worker's line of turns broke");
                    return self.broken(lease);
                }
            }
        }
    }

    /// A worker that cannot be told anything any more may not go on: it would take its time
    /// without asking. One that is gone already is none the worse for it.
    fn broken(&mut self, lease: LeaseId) {
        if let Some(worker) = self.workers.get(&lease) {
            worker.overran.notify_one();
        }
        self.leave(lease);
    }
}

fn heard(
    worker: &Worker,
    gpus: &mut BTreeMap<GpuUuid, Schedule>,
    lease: LeaseId,
    message: FromWorker,
) -> bool {
    let (FromWorker::Want { device } | FromWorker::Yield { device, .. }) = message;
    let gpu = usize::try_from(device).ok().and_then(|device| worker.gpus.get(device));
    let Some(schedule) = gpu.and_then(|gpu| gpus.get_mut(gpu)) else { return false };
    tracing::trace!(%lease, ?message, at = Monotonic::now().nanoseconds());
    match message {
        FromWorker::Want { device: _ } => schedule.want(lease, Monotonic::now()),
        FromWorker::Yield { device: _, wants, used } => {
            schedule.yielded(lease, used, wants, Monotonic::now());
        }
    }
    true
}

fn tell(
    workers: &BTreeMap<LeaseId, Worker>,
    gpu: GpuUuid,
    action: Action,
) -> Result<(), (LeaseId, LineError)> {
    let (Action::Grant { lease, .. }
    | Action::Contended { lease }
    | Action::Brief { lease }
    | Action::Recall { lease }
    | Action::Overrun { lease }) = action;
    let Some(worker) = workers.get(&lease) else { return Err((lease, LineError::Closed)) };
    let Some(device) = worker.device(gpu) else { return Err((lease, LineError::Closed)) };
    let message = match action {
        Action::Grant { lease: _, contended, brief } => {
            FromArbiter::Grant { device, contended, brief }
        }
        Action::Brief { lease: _ } => FromArbiter::Brief { device },
        Action::Contended { lease: _ } => FromArbiter::Contended { device },
        Action::Recall { lease: _ } => FromArbiter::Recall { device },
        Action::Overrun { lease } => {
            tracing::warn!(%lease, %gpu, "its worker kept the GPU past the watchdog's limit");
            worker.overran.notify_one();
            return Ok(());
        }
    };
    tracing::trace!(%lease, ?message, at = Monotonic::now().nanoseconds());
    worker.line.send(message).map_err(|error| (lease, error))
}
