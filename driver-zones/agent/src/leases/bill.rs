//! A lease's last bill. Its broker keeps what it used until that is in the ledger, whoever dies
//! meanwhile.

use std::collections::BTreeSet;

use gpuzone_core::LeaseId;
use gpuzone_wire::control::LeaseStatus;

use super::Leases;
use crate::errors::sentence;
use crate::journal::HeldLease;
use crate::metrics;
use crate::usage::Used;

impl Leases {
    /// Counts what a lease used at last.
    pub(super) fn count_last(&self, held: &HeldLease, last: Option<&LeaseStatus>) {
        let (lease, tenant, created) = (held.lease.id, &held.lease.tenant, held.holder.created);
        let used =
            last.map(|last| metrics::Used { lease, tenant, created, counters: last.counters });
        self.audit.counts.used(used.into_iter());
        self.audit.counts.ended(lease);
    }

    /// Writes down what a lease used at last, and its end; what the ledger does not take now is
    /// written with the next flush.
    pub(super) async fn bill_last(&self, id: LeaseId, last: Option<LeaseStatus>, reason: &str) {
        let known = last.is_some();
        if self.usage.close(id, last.map(used_by), reason).await && known {
            self.settle(id).await;
        }
    }

    /// Has the broker forget a lease whose last usage is written down.
    pub(super) async fn settle(&self, id: LeaseId) {
        if let Err(error) = self.link.settle(id).await {
            // It tells it again, and the ledger knows that it is nothing new.
            tracing::debug!(lease = %id, error = sentence(&error), "the broker keeps its usage");
        }
    }

    /// Writes down what leases used that are over and that nobody else brings to their end: whoever
    /// ended them died before their bill was written, or before that was said.
    pub(super) async fn bill_ended(&self) {
        let ended = match self.link.ended().await {
            Ok(ended) => ended,
            Err(error) => {
                tracing::debug!(error = sentence(&error), "it is not known which leases ended");
                return;
            }
        };
        // Read after the broker's answer: what is in the book has an end of its own to come.
        let Ok(held) = self.book.with(|book| book.leases()).await else { return };
        let held: BTreeSet<LeaseId> = held.iter().map(|held| held.lease.id).collect();
        for last in ended.into_iter().filter(|last| !held.contains(&last.lease)) {
            let id = last.lease;
            tracing::warn!(lease = %id, "its last usage is written down late");
            self.bill_last(id, Some(last), "it ended while the agent was away").await;
        }
    }
}

pub(super) fn used_by(status: LeaseStatus) -> Used {
    let LeaseStatus { lease, counters, refused_by_name, .. } = status;
    Used { lease, counters, refused_by_name }
}
