//! Which broker and which workers were last seen, so that the audit log has each one's start and
//! end, whoever replaced it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use gpuzone_core::{LeaseId, TenantId};
use gpuzone_ledger::{AuditEvent, AuditKind};
use gpuzone_wire::control::{LeaseStatus, WorkerEnd};
use serde_json::{Value, json};

use super::Leases;
use crate::audit::{self, AGENT};
use crate::errors::sentence;

#[derive(Debug, Default)]
pub(super) struct Workers(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    broker: Option<u32>,
    workers: BTreeMap<LeaseId, Worker>,
}

/// A lease's worker, as far as it is written down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Worker {
    pid: Option<u32>,
    /// Ends up to this number are.
    through: u32,
}

impl Workers {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Worker {
    /// What is to be written of a process that serves now, or of none.
    fn now(&mut self, lease: LeaseId, pid: Option<u32>) -> Vec<AuditEvent> {
        let before = std::mem::replace(&mut self.pid, pid);
        if before == pid {
            return Vec::new();
        }
        let detail = json!({ "lease": lease.to_string() });
        changes("worker", before, pid, &detail)
    }

    /// What is to be written of these ends, and how many workers they were.
    fn ended(&mut self, lease: LeaseId, ends: &[WorkerEnd]) -> (Vec<AuditEvent>, u32) {
        let (mut events, mut count) = (Vec::new(), 0);
        for WorkerEnd { number, pid, reason } in ends {
            if *number <= self.through {
                continue;
            }
            // It began and ended between two looks.
            events.extend(self.now(lease, Some(*pid)));
            let untold = number - self.through - 1;
            let detail = json!({
                "lease": lease.to_string(),
                "reason": reason,
                "number": number,
                "untold_before": untold,
            });
            events.push(zone(AuditKind::ZoneEnd, "worker", *pid, &detail));
            count += untold + 1;
            *self = Self { pid: None, through: *number };
        }
        (events, count)
    }
}

fn zone(kind: AuditKind, what: &str, pid: u32, detail: &Value) -> AuditEvent {
    let mut detail = detail.clone();
    detail["kind"] = what.into();
    // A worker's zone is called as its lease is.
    detail["name"] = detail["lease"].clone();
    audit::event(kind, AGENT, format!("{what} {pid}"), detail)
}

fn changes(what: &str, before: Option<u32>, now: Option<u32>, detail: &Value) -> Vec<AuditEvent> {
    let ended = before.map(|pid| zone(AuditKind::ZoneEnd, what, pid, detail));
    let began = now.map(|pid| zone(AuditKind::ZoneStart, what, pid, detail));
    ended.into_iter().chain(began).collect()
}

impl Leases {
    async fn note_all(&self, lease: Option<LeaseId>, events: Vec<AuditEvent>) {
        let tenant = match lease {
            Some(lease) if !events.is_empty() => self.tenant_of(lease).await,
            Some(_) | None => None,
        };
        for event in events {
            self.audit.note(AuditEvent { tenant: tenant.clone(), ..event }).await;
        }
    }

    async fn tenant_of(&self, id: LeaseId) -> Option<TenantId> {
        let held = self.book.with(move |book| book.lease(id).or_else(|| book.ended(id))).await;
        held.ok().flatten().map(|held| held.lease.tenant)
    }

    /// Notes the broker that serves now, or that none does.
    pub async fn saw_broker(&self, pid: Option<u32>) {
        let before = std::mem::replace(&mut self.workers.lock().broker, pid);
        if before == pid {
            return;
        }
        if pid.is_some() && before.is_some() {
            self.audit.counts.broker_replaced();
        }
        self.note_all(None, changes("broker", before, pid, &json!({ "lease": null }))).await;
    }

    /// Notes the worker that serves a lease from now on.
    pub(super) async fn saw_worker(&self, lease: LeaseId, pid: Option<u32>) {
        let events = self.workers.lock().workers.entry(lease).or_default().now(lease, pid);
        self.note_all(Some(lease), events).await;
    }

    /// Notes the workers of a lease that another agent began.
    pub(super) async fn adopted(&self, status: &LeaseStatus) {
        if let Some(first) = status.ends.first() {
            // That agent saw it begin. Earlier ones it saw end.
            let worker = Worker { pid: Some(first.pid), through: first.number.saturating_sub(1) };
            self.workers.lock().workers.insert(status.lease, worker);
        } else {
            let worker = Worker { pid: None, through: status.restarts };
            self.workers.lock().workers.insert(status.lease, worker);
        }
        self.saw_status(status).await;
    }

    /// Notes workers that the broker replaced.
    pub(super) async fn saw_workers(&self, statuses: &[LeaseStatus]) {
        for status in statuses {
            self.saw_status(status).await;
        }
    }

    async fn saw_status(&self, status: &LeaseStatus) {
        let lease = status.lease;
        let (events, count) = {
            let mut seen = self.workers.lock();
            // One whose lease ended meanwhile was noted by whoever ended it.
            let Some(worker) = seen.workers.get_mut(&lease) else { return };
            let (mut events, count) = worker.ended(lease, &status.ends);
            // None is no end: that will be told with its reason.
            if status.worker_pid.is_some() {
                events.extend(worker.now(lease, status.worker_pid));
            }
            (events, count)
        };
        self.audit.counts.workers_ended(count);
        self.note_all(Some(lease), events).await;
        let Some(last) = status.ends.last() else { return };
        if let Err(error) = self.link.acknowledge(lease, last.number).await {
            // It tells them again, and they are known.
            tracing::debug!(%lease, error = sentence(&error), "the broker keeps a worker's end");
        }
    }

    /// Notes how the last workers of a lease ended, of which there are none any more.
    pub(super) async fn saw_last(&self, lease: LeaseId, last: Option<&LeaseStatus>) {
        let (events, count) = {
            let mut worker = self.workers.lock().workers.remove(&lease).unwrap_or_default();
            let ends = last.map_or(&[][..], |last| &last.ends);
            let (mut events, count) = worker.ended(lease, ends);
            events.extend(worker.now(lease, None));
            (events, count)
        };
        self.audit.counts.workers_ended(count);
        self.note_all(Some(lease), events).await;
    }
}
