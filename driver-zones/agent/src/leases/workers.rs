//! Which broker and which workers were last seen, so that the audit log has each one's start and
//! end, whoever replaced it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use gpuzone_core::{LeaseId, TenantId};
use gpuzone_ledger::AuditKind;
use gpuzone_wire::control::LeaseStatus;
use serde_json::json;

use super::Leases;
use crate::audit::{self, AGENT};

#[derive(Debug, Default)]
pub(super) struct Workers(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    broker: Option<u32>,
    workers: BTreeMap<LeaseId, u32>,
}

impl Workers {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Leases {
    /// Notes the broker that serves now, or that none does.
    pub async fn saw_broker(&self, pid: Option<u32>) {
        let before = std::mem::replace(&mut self.workers.lock().broker, pid);
        self.note_change("broker", None, before, pid).await;
    }

    /// Notes the worker that serves a lease now, or that none does.
    pub(super) async fn saw_worker(&self, lease: LeaseId, pid: Option<u32>) {
        let before = {
            let mut seen = self.workers.lock();
            match pid {
                Some(pid) => seen.workers.insert(lease, pid),
                None => seen.workers.remove(&lease),
            }
        };
        self.note_change("worker", Some(lease), before, pid).await;
    }

    /// Notes workers that the broker replaced.
    pub(super) async fn saw_workers(&self, statuses: &[LeaseStatus]) {
        for status in statuses {
            // One whose lease ends meanwhile was noted by whoever ends it.
            let known = self.workers.lock().workers.contains_key(&status.lease);
            if known && status.worker_pid.is_some() {
                self.saw_worker(status.lease, status.worker_pid).await;
            }
        }
    }

    async fn tenant_of(&self, id: LeaseId) -> Option<TenantId> {
        let held = self.book.with(move |book| book.lease(id).or_else(|| book.ended(id))).await;
        held.ok().flatten().map(|held| held.lease.tenant)
    }

    async fn note_change(
        &self,
        what: &str,
        lease: Option<LeaseId>,
        before: Option<u32>,
        now: Option<u32>,
    ) {
        if before == now {
            return;
        }
        let tenant = match lease {
            Some(lease) => self.tenant_of(lease).await,
            None => None,
        };
        let changes = [(AuditKind::ZoneEnd, before), (AuditKind::ZoneStart, now)];
        for (kind, pid) in changes {
            let Some(pid) = pid else { continue };
            let id = lease.map(|lease| lease.to_string());
            // A worker's zone is called as its lease is.
            let detail = json!({ "kind": what, "name": id, "lease": id });
            let event = audit::event(kind, AGENT, format!("{what} {pid}"), detail);
            self.audit.note(gpuzone_ledger::AuditEvent { tenant: tenant.clone(), ..event }).await;
        }
    }
}
