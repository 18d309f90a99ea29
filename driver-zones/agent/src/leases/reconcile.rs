//! The book says what should be, the broker what is; here the second is made like the first.

use std::collections::BTreeSet;
use std::sync::Arc;

use gpuzone_api::AgentError;
use gpuzone_core::{LeaseId, LeaseState};
use gpuzone_zone::BootId;

use super::{Leases, Memory, PROGRAM_ENDED, log_failure};
use crate::audit;
use crate::book::LostLease;
use crate::errors::{internal, sentence};
use crate::journal::{HeldBy, HeldLease};

/// The reason of an end that the machine's brought about.
const NODE_RESTARTED: &str = "the node restarted";

impl Leases {
    /// Takes over what an earlier agent left: closes bills, ends what cannot go on, watches the
    /// holders of the rest.
    ///
    /// # Errors
    /// When the ledger or the book cannot be read.
    pub async fn recover(self: &Arc<Self>, lost: Vec<LostLease>) -> Result<(), AgentError> {
        for lost in lost {
            let LostLease { lease, reason } = &lost;
            tracing::error!(lease = %lease.lease.id, %reason, "the node cannot hold it any more");
            for grant in lease.lease.placement.grants() {
                self.audit.write_or_log(audit::unscrubbed(grant.gpu, &lost.unscrubbed())).await;
            }
        }
        let boot = BootId::current().map_err(|error| internal(format!("no boot id: {error}")))?;
        self.bill_ended().await;
        let held = self.book.with(|book| book.leases()).await?;
        let open = self.usage.open_leases().await.map_err(|error| internal(sentence(&error)))?;
        for (id, recorded) in open {
            let in_book = held.iter().find(|held| held.lease.id == id);
            // Billed as far as it is known to have gone on; the machine was off after that.
            let (at, reason) = match in_book {
                Some(held) if held.holder.boot() != boot => (recorded, NODE_RESTARTED),
                Some(_) => continue,
                None => (recorded, "it ended while the agent was away"),
            };
            let ended = self.usage.end(id, at, reason).await;
            ended.map_err(|error| internal(sentence(&error)))?;
        }
        for held in &held {
            if held.lease.state == LeaseState::Active {
                self.watch_holder(held);
            }
        }
        // Adopted: from now on they are known, and their end is noted.
        for status in self.link.status().await.unwrap_or_default() {
            self.adopted(&status).await;
        }
        self.reconcile().await
    }

    /// Ends workers whose lease is not in the book, gives active leases their worker, and brings
    /// on what is stuck on its way to the end.
    ///
    /// # Errors
    /// When the broker does not answer or the book failed.
    pub async fn reconcile(self: &Arc<Self>) -> Result<(), AgentError> {
        self.bill_ended().await;
        let statuses = self.link.status().await.map_err(|error| internal(sentence(&error)))?;
        let served: BTreeSet<LeaseId> = statuses.iter().map(|status| status.lease).collect();
        // Read after the broker's answer: a lease is in the book before it is served.
        let held = self.book.with(|book| book.leases()).await?;
        let known: BTreeSet<LeaseId> = held.iter().map(|held| held.lease.id).collect();
        for status in statuses.into_iter().filter(|status| !known.contains(&status.lease)) {
            let id = status.lease;
            tracing::warn!(lease = %id, "its worker serves a lease that is over; it is ended");
            match self.link.stop(id).await {
                Ok(last) => self.bill_last(id, last, "its worker was found without it").await,
                Err(error) => tracing::error!(lease = %id, %error, "it cannot be ended now"),
            }
        }
        for held in held {
            let serves = served.contains(&held.lease.id);
            let leases = Arc::clone(self);
            tokio::spawn(async move { leases.bring_on(held, serves).await });
        }
        Ok(())
    }

    /// Brings one lease on, unless somebody does already.
    async fn bring_on(&self, seen: HeldLease, served: bool) {
        let id = seen.lease.id;
        let Some(_turn) = self.turns.try_take(id) else { return };
        // It may have moved on since it was seen.
        let Ok(Some(held)) = self.book.with(move |book| book.lease(id)).await else { return };
        // Its end may have been missed, or what it was to bring about failed.
        let (abandoned, reason) = match &held.holder.by {
            HeldBy::Process(process) | HeldBy::Owner(process) => {
                (process.is_alive().is_ok_and(|alive| !alive), PROGRAM_ENDED)
            }
            HeldBy::Placed(placed) => {
                (BootId::current().is_ok_and(|boot| boot != placed.boot), NODE_RESTARTED)
            }
        };
        match held.lease.state {
            LeaseState::Active if abandoned => {
                log_failure(id, self.end_in_turn(id, reason, Memory::Used).await);
            }
            LeaseState::Active if served || !held.exposure().has_worker() => {}
            LeaseState::Active => match self.link.start(self.order(&held)).await {
                Ok(_) => tracing::warn!(lease = %id, "it had no worker and has one again"),
                Err(error) => tracing::error!(lease = %id, %error, "it has no worker"),
            },
            LeaseState::Reserved
            | LeaseState::Draining
            | LeaseState::Scrubbing
            | LeaseState::Failed => {
                if self.waits_for_operator(&held).await {
                    return;
                }
                tracing::warn!(lease = %id, state = %held.lease.state, "it is brought to its end");
                let ended = self.end_in_turn(id, "it was left half done", Memory::Used).await;
                log_failure(id, ended);
            }
            LeaseState::Released => {}
        }
    }
}
