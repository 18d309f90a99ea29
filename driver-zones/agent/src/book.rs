//! The node's leases: what is held, by whom, and in which state. One owner, no locks: the
//! [`Book`] lives on a thread of its own, and [`BookHandle`] sends it work.
//!
//! Invariant: what the book says is in the journal. A change that the journal did not take did
//! not happen.

mod health;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::Path;

use gpuzone_api::{AgentError, ErrorKind, HolderName, SlotId};
use gpuzone_core::{
    Admission, ApplyError, Counted, Demand, Exposure, GpuHealth, GpuUuid, GpuWatch, HealthTerms,
    Inventory, Lease, LeaseEvent, LeaseId, LeaseState, MemoryBytes, NodeState, PlacementRefusal,
    QuotaRefusal, Request, ReserveError, Signal, UnknownLease, ZoneId, admit,
};
use gpuzone_wire::scrub::ScrubGpu;
use tokio::sync::{mpsc, oneshot};

use crate::config::Quotas;
use crate::journal::{
    AppendError, At, HeldLease, Holder, Journal, Record, ReplayError, Replayed, replay,
};
use crate::placements::Wanted;
use crate::usage::now;
pub use health::HealthSeen;

/// How many ended leases are remembered for those who ask again.
const REMEMBERED: usize = 1000;

/// The node's leases.
#[derive(Debug)]
pub struct Book {
    node: NodeState,
    holders: BTreeMap<LeaseId, Holder>,
    quotas: Quotas,
    health: HealthTerms,
    journal: Journal,
    ended: VecDeque<HeldLease>,
}

/// Why a request gets no lease.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// No GPU serves it.
    #[error(transparent)]
    Placement(#[from] PlacementRefusal),
    /// The tenant may not have it.
    #[error(transparent)]
    Quota(#[from] QuotaRefusal),
    /// The room went away.
    #[error(transparent)]
    Reserve(#[from] ReserveError),
    /// It cannot be written down.
    #[error(transparent)]
    Journal(#[from] AppendError),
    /// Its holder has another lease.
    #[error("{holder} holds {lease} already, of other GPUs or in another slot; end that one first")]
    HoldsAnother {
        /// Who.
        holder: HolderName,
        /// Which.
        lease: LeaseId,
    },
    /// Another lease appears in its folder.
    #[error("{lease} of {holder} appears in {slot} already; end that one first")]
    SlotTaken {
        /// Where.
        slot: SlotId,
        /// Which.
        lease: LeaseId,
        /// Whose.
        holder: HolderName,
    },
}

/// What a request for a placed lease came to.
#[derive(Clone, Debug)]
pub enum Found {
    /// It is reserved now.
    New(HeldLease),
    /// It was there already.
    There(HeldLease),
}

/// Why a lease does not move on.
#[derive(Debug, thiserror::Error)]
pub enum AdvanceError {
    /// It cannot, from where it is.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// It cannot be written down.
    #[error(transparent)]
    Journal(#[from] AppendError),
}

/// A lease that the journal has and that this node cannot hold any more.
#[derive(Clone, Debug)]
pub struct LostLease {
    /// The lease.
    pub lease: HeldLease,
    /// Why.
    pub reason: ReserveError,
}

impl LostLease {
    /// Why its GPUs, if they are there again, serve nobody before somebody has cleared them.
    pub(crate) fn unscrubbed(&self) -> String {
        format!("what {} had there was not cleared: {}", self.lease.lease.id, self.reason)
    }

    fn condemn_gpus(&self, node: &mut NodeState) {
        for grant in self.lease.lease.placement.grants() {
            let mut watch = node.watch(grant.gpu);
            let unscrubbed = Signal::ScrubFailed(self.unscrubbed());
            watch.observe(&unscrubbed, now(), &HealthTerms::default());
            node.set_watch(grant.gpu, watch);
        }
    }
}

/// What is free of a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuRoom {
    /// Of its memory.
    pub memory: MemoryBytes,
    /// Of its time, in per cent.
    pub share: u32,
    /// Leases that hold some of it.
    pub leases: u32,
    /// Whether it serves new ones.
    pub health: GpuHealth,
    /// What else is known of its health.
    pub watch: GpuWatch,
}

impl Refusal {
    /// What kind of error it is for the one who asked.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Placement(PlacementRefusal::NoMemory) => ErrorKind::InvalidRequest,
            Self::Placement(
                PlacementRefusal::NoGpu
                | PlacementRefusal::NotExposed { .. }
                | PlacementRefusal::NoSuchModel { .. }
                | PlacementRefusal::TooFewGpus { .. }
                | PlacementRefusal::LargerThanAnyGpu { .. }
                | PlacementRefusal::Unhealthy { .. }
                | PlacementRefusal::NoRoom { .. },
            ) => ErrorKind::NoRoom,
            Self::Reserve(
                ReserveError::Taken { .. }
                | ReserveError::UnknownGpu(_)
                | ReserveError::Exposed { .. }
                | ReserveError::NotWhole { .. }
                | ReserveError::InMigMode(_)
                | ReserveError::CutIntoVgpus(_)
                | ReserveError::Excluded { .. }
                | ReserveError::Quarantined(_)
                | ReserveError::Suspended(_),
            ) => ErrorKind::NoRoom,
            Self::Quota(
                QuotaRefusal::NoQuota(_)
                | QuotaRefusal::NotUrgent(_)
                | QuotaRefusal::Exceeded { .. }
                | QuotaRefusal::Cluster(_),
            ) => ErrorKind::Quota,
            Self::Reserve(ReserveError::DuplicateLease(_)) | Self::Journal(_) => {
                ErrorKind::Internal
            }
            Self::HoldsAnother { .. } | Self::SlotTaken { .. } => ErrorKind::InvalidRequest,
        }
    }
}

impl From<AdvanceError> for AgentError {
    fn from(error: AdvanceError) -> Self {
        let kind = match &error {
            AdvanceError::Apply(ApplyError::Unknown(_)) => ErrorKind::NotFound,
            AdvanceError::Apply(ApplyError::Illegal(_)) | AdvanceError::Journal(_) => {
                ErrorKind::Internal
            }
        };
        Self { kind, message: error.to_string() }
    }
}

impl Book {
    /// The book of a node with these GPUs, as its journal has it; and the leases that the node
    /// cannot hold any more. Those are not in the book.
    ///
    /// # Errors
    /// When the journal is damaged or cannot be written.
    pub fn open(
        journal: &Path,
        inventory: Inventory,
        quotas: Quotas,
    ) -> Result<(Self, Vec<LostLease>), ReplayError> {
        let mut node = NodeState::new(inventory);
        let (mut kept, mut lost) = (Vec::new(), Vec::new());
        let Replayed { leases, watches } = replay(journal)?;
        for (gpu, watch) in watches {
            node.set_watch(gpu, watch);
        }
        for lease in leases {
            match node.restore(lease.lease.clone(), lease.exposure()) {
                Ok(_) => kept.push(lease),
                Err(reason) => {
                    let lost_lease = LostLease { lease, reason };
                    lost_lease.condemn_gpus(&mut node);
                    lost.push(lost_lease);
                }
            }
        }
        let journal = Journal::rewrite(journal, kept.iter(), node.watches())?;
        let holders = kept.into_iter().map(|held| (held.lease.id, held.holder)).collect();
        let (health, ended) = (HealthTerms::default(), VecDeque::new());
        Ok((Self { node, holders, quotas, health, journal, ended }, lost))
    }

    /// The same, with other terms of GPUs' health.
    pub fn with_health(self, health: HealthTerms) -> Self {
        Self { health, ..self }
    }

    /// Places and admits a request and sets its GPUs aside.
    ///
    /// # Errors
    /// When it is refused, or the journal cannot be written. Nothing is held then.
    pub fn reserve(
        &mut self,
        id: LeaseId,
        zone: ZoneId,
        request: &Request,
        holder: Holder,
    ) -> Result<HeldLease, Refusal> {
        let placement = self.node.place(request)?;
        let demand = Demand { tenant: request.tenant.clone(), placement, time: request.time };
        let admission = self.admit(demand)?;
        self.hold(id, zone, request.exposure, admission, holder)
    }

    /// Admits a placement that somebody else chose and sets its GPUs aside, unless the very lease
    /// is there.
    ///
    /// # Errors
    /// When it is refused, or the journal cannot be written. Nothing is held then.
    pub fn reserve_placed(
        &mut self,
        id: LeaseId,
        zone: ZoneId,
        wanted: &Wanted,
        holder: Holder,
    ) -> Result<Found, Refusal> {
        let placed = self.leases().into_iter().filter_map(|held| {
            let by = held.holder.placed()?.clone();
            Some((held, by))
        });
        for (held, by) in placed {
            let lease = held.lease.id;
            if wanted.is(&held, &by) {
                return Ok(Found::There(held));
            }
            if by.name == wanted.holder {
                return Err(Refusal::HoldsAnother { holder: by.name, lease });
            }
            match by.at {
                At::Slot { slot, .. } if by.at == wanted.at => {
                    return Err(Refusal::SlotTaken { slot, lease, holder: by.name });
                }
                At::Slot { .. } | At::Device { .. } => {}
            }
        }
        let (tenant, placement) = (wanted.tenant.clone(), wanted.placement.clone());
        let demand = Demand { tenant, placement, time: Default::default() };
        let exposure = wanted.exposure();
        let mut admission = self.admit(demand)?;
        if let Some(terms) = &wanted.cluster {
            let held = self.leases();
            let counted = held.iter().filter_map(|held| {
                let (placement, exposure) = (&held.lease.placement, held.exposure());
                Some(Counted { placement, exposure, under: held.holder.placed()?.under.as_ref()? })
            });
            let counted: Vec<Counted<'_>> = counted.collect();
            admission = admission.within(terms, exposure, &counted, self.node.inventory())?;
        }
        self.hold(id, zone, exposure, admission, holder).map(Found::New)
    }

    fn admit(&self, demand: Demand) -> Result<Admission, QuotaRefusal> {
        let held = self.node.holdings(&demand.tenant);
        admit(self.quotas.of(&demand.tenant), held, demand)
    }

    fn hold(
        &mut self,
        id: LeaseId,
        zone: ZoneId,
        exposure: Exposure,
        admission: Admission,
        holder: Holder,
    ) -> Result<HeldLease, Refusal> {
        // Tried on a copy, for the journal comes before the change and may refuse.
        let mut node = self.node.clone();
        let lease = node.reserve_as(id, zone, exposure, admission)?.clone();
        let held = HeldLease { lease, holder };
        self.journal.append(&Record::Lease(held.clone()))?;
        self.node = node;
        self.holders.insert(id, held.holder.clone());
        Ok(held)
    }

    /// Moves a lease on. `trouble` is why it failed, empty if it did not.
    ///
    /// # Errors
    /// When the event has no meaning for it, or the journal cannot be written. Nothing changes.
    pub fn advance(
        &mut self,
        id: LeaseId,
        event: LeaseEvent,
        trouble: &str,
    ) -> Result<LeaseState, AdvanceError> {
        let lease = self.node.lease(id).ok_or(ApplyError::Unknown(UnknownLease(id)))?;
        let state = lease.state.after(event).map_err(ApplyError::Illegal)?;
        if state == lease.state {
            return Ok(state);
        }
        let mut last = lease.clone();
        last.state = state;
        self.journal.append(&Record::Moved { lease: id, state, trouble: trouble.to_owned() })?;
        self.node.apply(id, event)?;
        if let Some(holder) = self.holders.get_mut(&id) {
            trouble.clone_into(&mut holder.trouble);
        }
        if !state.holds() {
            self.remember(last);
            self.compact();
        }
        Ok(state)
    }

    fn remember(&mut self, lease: Lease) {
        if let Some(holder) = self.holders.remove(&lease.id) {
            self.ended.truncate(REMEMBERED - 1);
            self.ended.push_front(HeldLease { lease, holder });
        }
    }

    fn compact(&mut self) {
        let leases = self.leases();
        if self.journal.is_long(leases.len()) {
            match Journal::rewrite(self.journal.path(), leases.iter(), self.node.watches()) {
                Ok(journal) => self.journal = journal,
                // The long one serves as well.
                Err(error) => tracing::warn!(%error, "the journal could not be shortened"),
            }
        }
    }

    /// All leases that hold something.
    pub fn leases(&self) -> Vec<HeldLease> {
        self.node.leases().filter_map(|lease| self.held(lease)).collect()
    }

    /// One lease that holds something.
    pub fn lease(&self, id: LeaseId) -> Option<HeldLease> {
        self.node.lease(id).and_then(|lease| self.held(lease))
    }

    /// One lease that ended not long ago.
    pub fn ended(&self, id: LeaseId) -> Option<HeldLease> {
        self.ended.iter().find(|held| held.lease.id == id).cloned()
    }

    fn held(&self, lease: &Lease) -> Option<HeldLease> {
        let holder = self.holders.get(&lease.id)?.clone();
        Some(HeldLease { lease: lease.clone(), holder })
    }

    /// What is free of a GPU; `None` for a GPU that is not here.
    pub fn room(&self, gpu: GpuUuid) -> Option<GpuRoom> {
        let (memory, share) = (self.node.free_memory(gpu)?, self.node.free_share(gpu)?);
        let parts = self.node.inventory().parts(gpu);
        let holds =
            |lease: &&Lease| lease.placement.grants().iter().any(|g| parts.contains(&g.gpu));
        let leases = self.node.leases().filter(holds).count();
        let leases = u32::try_from(leases).unwrap_or(u32::MAX);
        Some(GpuRoom {
            memory,
            share,
            leases,
            health: self.node.health(gpu)?,
            watch: self.node.watch(gpu),
        })
    }

    /// What a scrub may hold of a GPU for a moment: what no lease may ask for, and what those
    /// `among` them had, whose workers are gone. `None` for a GPU that is not here.
    pub fn scrubbable(&self, gpu: GpuUuid, among: &[LeaseId]) -> Option<ScrubGpu> {
        let memory = self.node.inventory().unit(gpu)?.memory();
        let had = among.iter().filter_map(|id| self.node.lease(*id));
        let had = had.flat_map(|lease| lease.placement.grants());
        let had = had.filter(|grant| grant.gpu == gpu).map(|grant| grant.memory.get());
        let at_least = MemoryBytes::saturating(had.sum());
        let free = self.node.free_memory(gpu)?.get();
        let at_most =
            MemoryBytes::saturating(free.saturating_add(at_least.get()).min(memory.get()));
        Some(ScrubGpu { gpu, memory, at_least, at_most })
    }
}

type Work = Box<dyn FnOnce(&mut Book) + Send>;

/// The way to a [`Book`] on its own thread, which ends with the last handle.
#[derive(Clone, Debug)]
pub struct BookHandle {
    work: mpsc::Sender<Work>,
}

/// The book's thread is gone: it panicked.
#[derive(Debug, thiserror::Error)]
#[error("the agent's book of leases has failed; restart the agent, its leases are in the journal")]
pub struct BookGone;

impl From<BookGone> for AgentError {
    fn from(error: BookGone) -> Self {
        Self { kind: ErrorKind::Internal, message: error.to_string() }
    }
}

impl BookHandle {
    /// Puts `book` on a thread of its own.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn open(mut book: Book) -> io::Result<Self> {
        let (work, mut queue) = mpsc::channel::<Work>(64);
        std::thread::Builder::new().name("book".to_owned()).spawn(move || {
            while let Some(work) = queue.blocking_recv() {
                work(&mut book);
            }
        })?;
        Ok(Self { work })
    }

    /// Does `work` with the book, in turn with all others. Work that was sent is done even if
    /// nobody waits for its answer any more.
    ///
    /// # Errors
    /// When the book's thread is gone.
    pub async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Book) -> T + Send + 'static,
    ) -> Result<T, BookGone> {
        let (answer, answered) = oneshot::channel();
        let work: Work = Box::new(move |book| {
            // Nobody waits when the asker was cancelled; the work is done all the same.
            let _ = answer.send(work(book));
        });
        self.work.send(work).await.map_err(|_| BookGone)?;
        answered.await.map_err(|_| BookGone)
    }
}

#[cfg(test)]
mod tests;
