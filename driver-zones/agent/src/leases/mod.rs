//! What is done for a lease: its slot, its worker, its bill, and the end of all three.
//!
//! ```text
//! create: place, admit ─▶ journal ─▶ slot, worker ─▶ ledger ─▶ journal: active
//! end:    journal: draining ─▶ worker ends ─▶ ledger ─▶ journal: scrubbing ─▶ scrub
//!                                                   clear: journal: released ◀─┤
//!                       not shown to be clear: GPU in quarantine, lease failed ◀─┘
//! ```
//!
//! Every step can be repeated, so a lease that a crash left anywhere is brought on from there.

mod bill;
mod devices;
mod health;
mod placed;
mod reconcile;
mod scrub;
mod turns;
mod workers;
mod zones;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use gpuzone_api::{AgentError, Directories, ErrorKind, SLOT_SOCKET, slot_folder};
use gpuzone_core::{
    GpuUuid, Inventory, LeaseEvent, LeaseId, LeaseState, Request, ZoneId, ZoneName,
};
use gpuzone_ledger::AuditKind;
use gpuzone_wire::control::{LeaseStatus, SlotAccess, WorkerOrder};
use gpuzone_zone::files::{mounted_dir, private_dir, remove};
use gpuzone_zone::{Process, ProcessId};
use serde_json::json;
use tokio::sync::{Mutex as AsyncMutex, oneshot, watch};
use uuid::Uuid;

use crate::audit::{self, AGENT, Audit};
use crate::book::{Book, BookHandle};
use crate::broker::{BrokerLink, LinkError};
use crate::errors::{internal, sentence};
use crate::journal::{At, HeldBy, HeldLease, Holder};
use crate::passthrough::Passthrough;
use crate::usage::{UsageBook, Used, now};
use bill::used_by;
pub use scrub::ScrubSettings;
use turns::Turns;
use workers::Workers;
pub use zones::WorkloadZones;

/// The reason of an end that the lease's holder brought about.
pub const PROGRAM_ENDED: &str = "its program ended";

/// The node's leases and all that serves them.
pub struct Leases {
    /// What is held.
    pub book: BookHandle,
    /// What serves it.
    pub link: BrokerLink,
    /// What bills it.
    pub usage: UsageBook,
    /// What tells of it.
    pub audit: Audit,
    /// Where its files are.
    pub directories: Directories,
    /// What there is to be held.
    pub inventory: Inventory,
    turns: Turns,
    gpu_turns: BTreeMap<GpuUuid, Arc<AsyncMutex<()>>>,
    scrubs: ScrubSettings,
    workers: Workers,
    workload_zones: WorkloadZones,
    passthrough: Option<Passthrough>,
    health: watch::Sender<u64>,
    closing: AtomicBool,
}

/// Whether a lease's memory has to be cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Memory {
    /// A worker may have served it.
    Used,
    /// The broker said that none did.
    Untouched,
}

impl Leases {
    /// Leases over these parts.
    pub fn new(
        book: BookHandle,
        link: BrokerLink,
        usage: UsageBook,
        audit: Audit,
        directories: Directories,
        inventory: Inventory,
        scrubs: ScrubSettings,
    ) -> Self {
        let (turns, closing) = (Turns::default(), AtomicBool::new(false));
        let gpu_turns = inventory.units().map(|unit| (unit, Arc::default())).collect();
        let workers = Workers::default();
        Self {
            book,
            link,
            usage,
            audit,
            directories,
            inventory,
            turns,
            gpu_turns,
            scrubs,
            workers,
            workload_zones: WorkloadZones::default(),
            passthrough: None,
            health: watch::Sender::new(1),
            closing,
        }
    }

    /// The same, with a policy on which programs share a zone.
    pub fn with_workload_zones(self, workload_zones: WorkloadZones) -> Self {
        Self { workload_zones, ..self }
    }

    /// The same, with devices that it clears itself between tenants.
    pub fn with_passthrough(self, passthrough: Option<Passthrough>) -> Self {
        Self { passthrough, ..self }
    }

    /// Makes a lease for the process `holder`, active when this returns.
    ///
    /// # Errors
    /// When it is refused or cannot be served. Nothing is held or running then.
    pub async fn create(
        self: &Arc<Self>,
        request: Request,
        holder: ProcessId,
        program: String,
        zone: Option<ZoneName>,
    ) -> Result<HeldLease, AgentError> {
        let (answer, answered) = oneshot::channel();
        let leases = Arc::clone(self);
        // On a task of its own: a caller that goes away cancels this future, and half of what
        // follows must not be all that is done.
        tokio::spawn(async move {
            let created = leases.create_for(&request, holder, program, zone).await;
            if let Err(error) = &created {
                leases.audit.counts.refused(error.kind);
                leases.usage.refused(&request.tenant, error.kind, &error.message).await;
                leases.audit_refusal(&request, holder, error).await;
            }
            if let Err(Ok(unwanted)) = answer.send(created) {
                let ended = leases.end(unwanted.lease.id, "its caller went away").await;
                log_failure(unwanted.lease.id, ended);
            }
        });
        let failed = || internal("the lease could not be made; the agent's log says why");
        answered.await.unwrap_or_else(|_| Err(failed()))
    }

    async fn create_for(
        self: &Arc<Self>,
        request: &Request,
        holder: ProcessId,
        program: String,
        name: Option<ZoneName>,
    ) -> Result<HeldLease, AgentError> {
        self.workload_zones.check(&request.tenant, name.as_ref())?;
        self.wait_for_name(name.as_ref()).await;
        let id = LeaseId::from_uuid(Uuid::now_v7());
        let zone = ZoneId::from_uuid(Uuid::now_v7());
        let _turn = self.turns.take(id).await;
        let trouble = String::new();
        let by = HeldBy::process(holder, request.exposure);
        let holder = Holder { by, program, created: now(), trouble, zone: name };
        let asked = request.clone();
        let leases = Arc::clone(self);
        let reserve = move |book: &mut Book| {
            // Asked in the book's turn: `end_all` says so before it lists the leases, so that
            // none is reserved after its list.
            if leases.closing.load(Ordering::SeqCst) {
                let message = "the agent is ending; start it again with `gpu-zone up`".to_owned();
                return Err(AgentError { kind: ErrorKind::Unavailable, message });
            }
            zones::check_free(&book.leases(), holder.zone.as_ref())?;
            book.reserve(id, zone, &asked, holder)
                .map_err(|refusal| AgentError { kind: refusal.kind(), message: sentence(&refusal) })
        };
        let held = self.book.with(reserve).await??;
        match self.serve(&held).await {
            Ok(()) => {}
            Err((error, memory)) => {
                // Whatever fails here is tried again by the next reconciliation.
                let _ = self.advance(id, LeaseEvent::Fail, &error.message).await;
                log_failure(id, self.end_in_turn(id, "it could not be served", memory).await);
                return Err(error);
            }
        }
        self.note_workload_zone(AuditKind::ZoneStart, &held, "its lease is active").await;
        self.watch_holder(&held);
        tracing::info!(lease = %id, tenant = %held.lease.tenant, "active");
        let lease = gpuzone_core::Lease { state: LeaseState::Active, ..held.lease };
        Ok(HeldLease { lease, holder: held.holder })
    }

    /// Audit, slot, worker, bill, active.
    async fn serve(&self, held: &HeldLease) -> Result<(), (AgentError, Memory)> {
        if !held.exposure().has_worker() {
            return self.serve_device(held).await;
        }
        let untouched = |error| (error, Memory::Untouched);
        let detail = json!({
            "grants": audit::granted(&held.lease),
            "time": audit::timed(held.lease.time),
            "program": held.holder.program,
            "zone": held.lease.zone.to_string(),
        });
        let granted = audit::of_lease(AuditKind::Grant, asker_of(held), &held.lease, detail);
        let written = self.audit.write(vec![granted]).await;
        written.map_err(|error| untouched(internal(sentence(&error))))?;
        let order = self.order(held);
        let made = match order.access {
            SlotAccess::Private => private_dir(&order.slot_dir),
            SlotAccess::Mounted => mounted_dir(&order.slot_dir),
        };
        made.map_err(|error| {
            let slot = order.slot_dir.display();
            untouched(internal(format!("cannot make the slot {slot}: {error}")))
        })?;
        self.wait_for_scrubs(held).await;
        let started = self.link.start(order).await.map_err(|error| {
            let memory = match &error {
                LinkError::Refused(_) => Memory::Untouched,
                LinkError::Broken(_) | LinkError::Slow(_) | LinkError::Nonsense(_) => Memory::Used,
            };
            let message = format!("the lease cannot be served: {}", sentence(&error));
            (AgentError { kind: ErrorKind::Driver, message }, memory)
        })?;
        let used = |error| (error, Memory::Used);
        self.saw_worker(held.lease.id, started.worker_pid).await;
        let begun = self.usage.begin(held, &self.inventory, now()).await;
        begun.map_err(|error| used(internal(sentence(&error))))?;
        self.advance(held.lease.id, LeaseEvent::Activate, "").await.map_err(used)?;
        Ok(())
    }

    async fn audit_refusal(&self, request: &Request, holder: ProcessId, error: &AgentError) {
        let detail = json!({
            "kind": error.kind.as_str(),
            "reason": error.message,
            "gpus": request.gpus.get(),
            "memory_bytes": request.memory.map(|memory| memory.get()),
            "share_percent": request.share.map(|share| share.percent()),
            "time": audit::timed(request.time),
        });
        let refusal = audit::event(AuditKind::Refusal, asker(holder), "lease", detail);
        let tenant = Some(request.tenant.clone());
        self.audit.note(gpuzone_ledger::AuditEvent { tenant, ..refusal }).await;
    }

    fn order(&self, held: &HeldLease) -> WorkerOrder {
        let lease = held.lease.id;
        let at = held.holder.placed().map(|by| by.at);
        let (slot_dir, access) = match at {
            // A device's lease has no worker, and nobody asks for its order.
            None | Some(At::Device { .. }) => {
                (self.directories.slots_dir().join(lease.to_string()), SlotAccess::Private)
            }
            Some(At::Slot { slot, folder }) => {
                (slot_folder(&self.directories.state, slot, folder), SlotAccess::Mounted)
            }
        };
        WorkerOrder {
            lease,
            slot_dir,
            grants: held.lease.placement.grants().to_vec(),
            priority: held.lease.time.priority,
            time_cap: held.lease.time.cap,
            access,
        }
    }

    async fn advance(
        &self,
        id: LeaseId,
        event: LeaseEvent,
        trouble: &str,
    ) -> Result<LeaseState, AgentError> {
        let trouble = trouble.to_owned();
        Ok(self.book.with(move |book| book.advance(id, event, &trouble)).await??)
    }

    /// Ends the lease when its holder ends.
    fn watch_holder(self: &Arc<Self>, held: &HeldLease) {
        // Whoever placed a lease ends it.
        let Some(holder) = held.holder.process() else { return };
        let (leases, id) = (Arc::clone(self), held.lease.id);
        tokio::spawn(async move {
            let gone = async {
                match Process::find(holder)? {
                    Some(process) => process.exited().await.map(drop),
                    None => Ok(()),
                }
            };
            if let Err(error) = gone.await {
                // Not knowing whether a holder lives, it keeps its lease.
                tracing::error!(lease = %id, %holder, %error, "the holder cannot be watched");
                return;
            }
            if leases.book.with(move |book| book.lease(id)).await.is_ok_and(|held| held.is_some()) {
                log_failure(id, leases.end(id, PROGRAM_ENDED).await);
            }
        });
    }

    /// Ends a lease; answers when it is released. One that ended not long ago is no error.
    ///
    /// # Errors
    /// When there is no such lease, or it cannot be ended now; it is tried again later then.
    pub async fn end(&self, id: LeaseId, reason: &str) -> Result<HeldLease, AgentError> {
        let _turn = self.turns.take(id).await;
        self.end_in_turn(id, reason, Memory::Used).await
    }

    async fn end_in_turn(
        &self,
        id: LeaseId,
        reason: &str,
        memory: Memory,
    ) -> Result<HeldLease, AgentError> {
        let Some(held) = self.book.with(move |book| book.lease(id)).await? else {
            let ended = self.book.with(move |book| book.ended(id)).await?;
            return ended.ok_or_else(|| AgentError {
                kind: ErrorKind::NotFound,
                message: gpuzone_core::UnknownLease(id).to_string(),
            });
        };
        match held.lease.state {
            LeaseState::Reserved
            | LeaseState::Active
            | LeaseState::Draining
            | LeaseState::Failed => {
                if held.lease.state == LeaseState::Active {
                    self.note_workload_zone(AuditKind::ZoneEnd, &held, reason).await;
                }
                self.advance(id, LeaseEvent::Drain, "").await?;
                if let Err(error) = self.drain(&held, reason).await {
                    return Err(self.failed(&held, error).await);
                }
                self.advance(id, LeaseEvent::Drained, "").await?;
            }
            LeaseState::Scrubbing | LeaseState::Released => {}
        }
        let gpus = match memory {
            Memory::Untouched => None,
            Memory::Used if !held.exposure().has_worker() => {
                self.keep_out(&held).await?;
                None
            }
            Memory::Used => match self.scrub(&held).await {
                Ok(gpus) => Some(gpus),
                Err(error) => return Err(self.failed(&held, error).await),
            },
        };
        self.advance(id, LeaseEvent::Scrubbed, "").await?;
        drop(gpus);
        let detail = json!({ "reason": reason });
        let released = audit::of_lease(AuditKind::Release, AGENT, &held.lease, detail);
        self.audit.write_or_log(released).await;
        tracing::info!(lease = %id, reason, "released");
        let ended = self.book.with(move |book| book.ended(id)).await?;
        Ok(ended.unwrap_or(held))
    }

    /// Notes that a lease could not be brought to its end; what it held stays held.
    async fn failed(&self, held: &HeldLease, error: AgentError) -> AgentError {
        let detail = json!({ "reason": error.message });
        self.audit.note(audit::of_lease(AuditKind::Failure, AGENT, &held.lease, detail)).await;
        match self.advance(held.lease.id, LeaseEvent::Fail, &error.message).await {
            Ok(_) => error,
            Err(worse) => worse,
        }
    }

    /// Ends the worker, closes the bill, removes the slot.
    async fn drain(&self, held: &HeldLease, reason: &str) -> Result<(), AgentError> {
        let id = held.lease.id;
        if !held.exposure().has_worker() {
            self.drain_device(held, reason).await;
            return Ok(());
        }
        let last = self.link.stop(id).await.map_err(|error| AgentError {
            kind: ErrorKind::Driver,
            message: format!("the lease's worker cannot be ended: {}", sentence(&error)),
        })?;
        self.saw_last(id, last.as_ref()).await;
        self.count_last(held, last.as_ref());
        self.bill_last(id, last, reason).await;
        let order = self.order(held);
        match order.access {
            SlotAccess::Private => remove(&order.slot_dir),
            // A container may have the folder mounted: only what answers in it goes.
            SlotAccess::Mounted => remove(&order.slot_dir.join(SLOT_SOCKET)),
        }
        .map_err(|error| internal(format!("cannot remove {}: {error}", order.slot_dir.display())))
    }

    /// All leases that hold something, with what the broker says of each; and why it says
    /// nothing, if it does not.
    ///
    /// # Errors
    /// When the book failed.
    pub async fn list(&self) -> Result<Vec<(HeldLease, Option<LeaseStatus>)>, AgentError> {
        let held = self.book.with(|book| book.leases()).await?;
        let statuses = self.link.status().await;
        let silence = statuses.as_ref().err().map(|error| sentence(error));
        let statuses = statuses.unwrap_or_default();
        let with_status = |mut held: HeldLease| {
            let status = statuses.iter().find(|status| status.lease == held.lease.id).cloned();
            if let (Some(silence), true) = (&silence, held.holder.trouble.is_empty()) {
                silence.clone_into(&mut held.holder.trouble);
            }
            (held, status)
        };
        Ok(held.into_iter().map(with_status).collect())
    }

    /// Writes all usage so far into the ledger; returns of how many leases.
    ///
    /// # Errors
    /// When the broker does not answer or the ledger does not take it.
    pub async fn flush(&self) -> Result<u32, AgentError> {
        let statuses = self
            .link
            .status()
            .await
            .map_err(|error| AgentError { kind: ErrorKind::Driver, message: sentence(&error) })?;
        self.saw_workers(&statuses).await;
        if let Err(error) = self.audit.sync().await {
            tracing::error!(error = sentence(&error), "the audit log is not on disk");
        }
        let late = self.usage.write_late().await;
        for lease in late.map_err(|error| internal(sentence(&error)))? {
            self.settle(lease).await;
        }
        let mut used: Vec<Used> = statuses.into_iter().map(used_by).collect();
        used.extend(self.used_devices().await);
        self.usage.record(used).await.map_err(|error| internal(sentence(&error)))
    }

    /// Ends all leases and takes no more; returns how many were ended.
    ///
    /// # Errors
    /// When the book failed. A lease that cannot be ended is only logged.
    pub async fn end_all(self: &Arc<Self>, reason: &'static str) -> Result<u32, AgentError> {
        self.closing.store(true, Ordering::SeqCst);
        let mut ends = tokio::task::JoinSet::new();
        for held in self.book.with(|book| book.leases()).await? {
            let (leases, id) = (Arc::clone(self), held.lease.id);
            ends.spawn(async move { (id, leases.end(id, reason).await) });
        }
        let mut count = 0;
        for (id, ended) in ends.join_all().await {
            count += u32::from(ended.is_ok());
            log_failure(id, ended);
        }
        Ok(count)
    }
}

/// Who asked, for the audit log.
pub(crate) fn asker(process: ProcessId) -> String {
    format!("process {}", process.pid)
}

fn asker_of(held: &HeldLease) -> String {
    match &held.holder.by {
        HeldBy::Process(process) | HeldBy::Owner(process) => asker(*process),
        HeldBy::Placed(placed) => placed.name.to_string(),
    }
}

fn log_failure(lease: LeaseId, ended: Result<HeldLease, AgentError>) {
    if let Err(error) = ended {
        tracing::error!(%lease, %error, "could not be ended now; it is tried again");
    }
}

#[cfg(test)]
mod tests;
