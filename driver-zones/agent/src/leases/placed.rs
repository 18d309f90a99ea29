//! Leases that somebody else chose the GPUs of.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use gpuzone_api::{AgentError, ErrorKind};
use gpuzone_core::{ClusterTerms, LeaseEvent, LeaseId, LeaseState, ZoneId};
use gpuzone_ledger::{AuditEvent, AuditKind};
use gpuzone_zone::BootId;
use serde_json::json;
use uuid::Uuid;

use super::{Leases, log_failure};
use crate::audit;
use crate::book::{Book, Found};
use crate::errors::{internal, sentence};
use crate::journal::{HeldBy, HeldLease, Holder, PlacedHolder};
use crate::placements::Wanted;
use crate::usage::now;

impl Leases {
    /// Makes a lease as somebody else chose it, active when this returns; or answers the one that
    /// is there already.
    ///
    /// # Errors
    /// When it is refused, cannot be served, or its holder or folder has another lease. Nothing
    /// of it is held or running then.
    pub async fn place(self: &Arc<Self>, wanted: Wanted) -> Result<HeldLease, AgentError> {
        let leases = Arc::clone(self);
        // On a task of its own: a caller that goes away cancels this future, and half of what
        // follows must not be all that is done. The lease stays: it is asked for again.
        let placed = tokio::spawn(async move {
            let placed = leases.place_for(&wanted).await;
            if let Err(error) = &placed {
                leases.refused(&wanted, error).await;
            }
            placed
        });
        placed.await.map_err(|error| internal(error.to_string()))?
    }

    async fn place_for(self: &Arc<Self>, wanted: &Wanted) -> Result<HeldLease, AgentError> {
        let id = LeaseId::from_uuid(Uuid::now_v7());
        let turn = self.turns.take(id).await;
        loop {
            let held = match self.reserve_placed(id, wanted).await? {
                Found::New(held) => held,
                Found::There(there) => match self.placed_already(there.lease.id).await? {
                    Some(held) => return Ok(held),
                    // It was on its way to its end, and is there no more.
                    None => continue,
                },
            };
            if let Err((error, memory)) = self.serve(&held).await {
                // Whatever fails here is tried again by the next reconciliation.
                let _ = self.advance(id, LeaseEvent::Fail, &error.message).await;
                let ended = self.end_in_turn(id, "it could not be served", memory).await;
                log_failure(id, ended);
                return Err(error);
            }
            drop(turn);
            tracing::info!(lease = %id, holder = %wanted.holder, "active");
            let lease = gpuzone_core::Lease { state: LeaseState::Active, ..held.lease };
            return Ok(HeldLease { lease, holder: held.holder });
        }
    }

    async fn reserve_placed(
        self: &Arc<Self>,
        id: LeaseId,
        wanted: &Wanted,
    ) -> Result<Found, AgentError> {
        let boot = BootId::current().map_err(|error| internal(format!("no boot id: {error}")))?;
        let under = wanted.cluster.as_ref().map(ClusterTerms::under);
        let placed = PlacedHolder { name: wanted.holder.clone(), at: wanted.at, boot, under };
        let holder = Holder {
            by: HeldBy::Placed(placed),
            program: wanted.program.clone(),
            created: now(),
            trouble: String::new(),
            zone: None,
        };
        let zone = ZoneId::from_uuid(Uuid::now_v7());
        let (leases, wanted) = (Arc::clone(self), wanted.clone());
        let reserve = move |book: &mut Book| {
            // Asked in the book's turn, as for every lease.
            if leases.closing.load(Ordering::SeqCst) {
                let message = "the agent is ending; start it again".to_owned();
                return Err(AgentError { kind: ErrorKind::Unavailable, message });
            }
            book.reserve_placed(id, zone, &wanted, holder)
                .map_err(|refusal| AgentError { kind: refusal.kind(), message: sentence(&refusal) })
        };
        self.book.with(reserve).await?
    }

    /// Notes that a lease was refused.
    pub(crate) async fn refused(&self, wanted: &Wanted, error: &AgentError) {
        self.usage.refused(&wanted.tenant, error.kind, &error.message).await;
        let detail = json!({
            "kind": error.kind.as_str(),
            "reason": error.message,
            "exposure": wanted.exposure().as_str(),
            "gpus": wanted.placement.grants().len(),
            "memory_bytes": wanted.placement.memory().get(),
            "share_percent": wanted.placement.share_percent(),
        });
        let refusal = audit::event(AuditKind::Refusal, wanted.holder.as_str(), "lease", detail);
        let tenant = Some(wanted.tenant.clone());
        self.audit.note(AuditEvent { tenant, ..refusal }).await;
    }

    /// A lease that is there, as soon as whoever works on it is done; `None` for one that is gone then.
    async fn placed_already(&self, id: LeaseId) -> Result<Option<HeldLease>, AgentError> {
        let _turn = self.turns.take(id).await;
        let Some(held) = self.book.with(move |book| book.lease(id)).await? else {
            return Ok(None);
        };
        match held.lease.state {
            LeaseState::Active => Ok(Some(held)),
            LeaseState::Reserved
            | LeaseState::Draining
            | LeaseState::Scrubbing
            | LeaseState::Released
            | LeaseState::Failed => {
                let trouble = Some(held.holder.trouble).filter(|t| !t.is_empty());
                let why = trouble.map_or_else(String::new, |trouble| format!(": {trouble}"));
                let message = format!("{id} of the same holder is being ended{why}; try again");
                Err(AgentError { kind: ErrorKind::Unavailable, message })
            }
        }
    }
}
