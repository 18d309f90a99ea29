//! The audit log, from async code.
//!
//! What gives or ends something is on disk before it is done ([`Audit::write`]); what only tells
//! of it is in the file at once and on disk with the next such event, or when usage is flushed
//! ([`Audit::note`], [`Audit::sync`]).

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use gpuzone_core::{
    Cause, ComputeShare, GpuHealth, GpuUuid, Lease, TenantId, TenantQuota, TimeTerms,
};
use gpuzone_ledger::{
    AuditAppendError, AuditEvent, AuditKind, AuditLog, AuditOpenError, Opened, WriteError,
};
use serde_json::{Value, json};

use crate::config::Quotas;
use crate::errors::sentence;
use crate::metrics::Counts;
use crate::usage::{UsageBook, now};

/// Where events are written down.
#[derive(Clone)]
pub struct Audit {
    log: Arc<Mutex<AuditLog>>,
    usage: UsageBook,
    /// What is counted of it, and of all else.
    pub counts: Counts,
}

/// Why an event was not written down.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The log does not open.
    #[error(transparent)]
    Open(#[from] AuditOpenError),
    /// The log does not take it.
    #[error(transparent)]
    Append(#[from] AuditAppendError),
    /// The ledger does not take the log's head.
    #[error("the end of the audit log cannot be recorded in the ledger; free space on its disk")]
    Head(#[from] WriteError),
}

/// The agent itself.
pub(crate) const AGENT: &str = "agent";

/// An event without anything to add.
pub(crate) fn event(
    kind: AuditKind,
    actor: impl Into<String>,
    subject: impl ToString,
    detail: Value,
) -> AuditEvent {
    AuditEvent { kind, actor: actor.into(), subject: subject.to_string(), tenant: None, detail }
}

/// An event about a lease, and so about its tenant.
pub(crate) fn of_lease(
    kind: AuditKind,
    actor: impl Into<String>,
    lease: &Lease,
    detail: Value,
) -> AuditEvent {
    AuditEvent { tenant: Some(lease.tenant.clone()), ..event(kind, actor, lease.id, detail) }
}

/// What a lease gets, for the log.
pub(crate) fn granted(lease: &Lease) -> Value {
    let grants = lease.placement.grants().iter().map(|grant| {
        json!({
            "gpu": grant.gpu.to_string(),
            "memory_bytes": grant.memory.get(),
            "share_percent": grant.share.percent(),
        })
    });
    Value::Array(grants.collect())
}

/// How its time is given beyond the shares, for the log.
pub(crate) fn timed(time: TimeTerms) -> Value {
    json!({
        "priority": time.priority.as_str(),
        "cap_percent": time.cap.map(ComputeShare::percent),
    })
}

/// A GPU's health, for the log; nothing when only the words for it changed.
pub(crate) fn health(gpu: GpuUuid, before: &GpuHealth, after: &GpuHealth) -> Option<AuditEvent> {
    let cause = |health: &GpuHealth| health.why().map(|(cause, _)| cause);
    if before.as_str() == after.as_str() && cause(before) == cause(after) {
        return None;
    }
    let (kind, of) = match after {
        GpuHealth::Healthy => (AuditKind::Recovery, before),
        GpuHealth::Suspended { .. } => (AuditKind::Suspension, after),
        GpuHealth::Quarantined { .. } => (AuditKind::Quarantine, after),
    };
    let (cause, reason) = of.why()?;
    Some(event(kind, AGENT, gpu, json!({ "cause": cause.to_string(), "reason": reason })))
}

/// A GPU in quarantine because nobody could clear what a lease had there.
pub(crate) fn unscrubbed(gpu: GpuUuid, reason: &str) -> AuditEvent {
    let detail = json!({ "cause": Cause::Scrub.to_string(), "reason": reason });
    event(AuditKind::Quarantine, AGENT, gpu, detail)
}

fn limits(quotas: &Quotas) -> Value {
    let quota = |quota: &TenantQuota| {
        json!({
            "memory_bytes": quota.memory.map(|memory| memory.get()),
            "share_percent": quota.share,
            "gpus": quota.gpus,
            "leases": quota.leases,
            "latency_critical": quota.latency_critical,
        })
    };
    let named = |(tenant, limits): (&TenantId, &TenantQuota)| (tenant.to_string(), quota(limits));
    let tenants: serde_json::Map<String, Value> = quotas.tenants.iter().map(named).collect();
    json!({ "tenants": tenants, "default": quotas.default.as_ref().map(quota) })
}

impl Audit {
    /// Opens the log at `path`, notes that an agent starts, and the limits if they are not those
    /// that were last noted. A damaged log is noted in itself and goes on: to stop serving would
    /// let whoever damages it stop the node.
    ///
    /// # Errors
    /// When it cannot be written to, or the ledger does not know its head.
    pub async fn open(path: &Path, usage: UsageBook, quotas: &Quotas) -> Result<Self, AuditError> {
        let recorded = usage.audit_head().await?;
        let Opened { log, last_limits, damage } = AuditLog::open(path, recorded, now())?;
        if let Some(damage) = damage {
            tracing::error!(log = %path.display(), %damage,
                "the audit log is not as it was written; `gpu-zone audit verify` looks at it");
        }
        let counts = usage.counts.clone();
        counts.name_tenants(quotas.tenants.keys());
        let audit = Self { log: Arc::new(Mutex::new(log)), usage, counts };
        let about = json!({ "version": env!("CARGO_PKG_VERSION"), "pid": std::process::id() });
        audit.note(event(AuditKind::AgentStart, AGENT, AGENT, about)).await;
        let limits = limits(quotas);
        if last_limits.is_none_or(|last| last.detail != limits) {
            audit.note(event(AuditKind::Limits, AGENT, "quotas", limits)).await;
        }
        audit.sync().await?;
        Ok(audit)
    }

    /// Writes events down; they are on disk when this returns.
    ///
    /// # Errors
    /// When they are not. What they were about must not be done.
    pub async fn write(&self, events: Vec<AuditEvent>) -> Result<(), AuditError> {
        self.with(move |log| {
            events.into_iter().try_for_each(|event| log.append(event, now()).map(drop))
        })
        .await?;
        self.sync().await
    }

    /// Writes an event down, on disk a little later. One that cannot be written is in the
    /// agent's own log.
    pub async fn note(&self, event: AuditEvent) {
        let kept = event.clone();
        if let Err(error) = self.with(move |log| log.append(event, now())).await {
            tracing::error!(error = sentence(&error), event = ?kept, "not in the audit log");
        }
    }

    /// Writes an event down, on disk when this returns if it can be; one that cannot be written
    /// is in the agent's own log. For what has happened already and cannot be refused.
    pub(crate) async fn write_or_log(&self, event: AuditEvent) {
        self.note(event).await;
        if let Err(error) = self.sync().await {
            tracing::error!(error = sentence(&error), "the audit log is not on disk");
        }
    }

    /// Brings all that was noted to disk, and its end into the ledger.
    ///
    /// # Errors
    /// When one of the two does not take it.
    pub async fn sync(&self) -> Result<(), AuditError> {
        let head = self.with(AuditLog::sync).await?;
        Ok(self.usage.set_audit_head(head).await?)
    }

    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut AuditLog) -> Result<T, AuditAppendError> + Send + 'static,
    ) -> Result<T, AuditAppendError> {
        let log = Arc::clone(&self.log);
        let work = move || work(&mut log.lock().unwrap_or_else(PoisonError::into_inner));
        match tokio::task::spawn_blocking(work).await {
            Ok(done) => done.inspect_err(|_| self.counts.audit_failed()),
            // Not cancelled by anybody, so it panicked; the panic goes on here.
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}
