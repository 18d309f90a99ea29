//! Clearing what a lease gave back, and what is done with a GPU that cannot be cleared.

use std::sync::Arc;
use std::time::Duration;

use gpuzone_api::{AgentError, ErrorKind};
use gpuzone_core::{GpuUuid, LeaseId, LeaseState, MemoryBytes, Signal};
use gpuzone_ledger::{AuditEvent, AuditKind};
use gpuzone_wire::scrub::{ScrubOrder, ScrubReport};
use serde_json::json;
use tokio::sync::OwnedMutexGuard;
use uuid::Uuid;

use super::{Leases, log_failure};
use crate::audit;
use crate::book::Book;
use crate::broker::LinkError;
use crate::errors::{internal, sentence};
use crate::journal::HeldLease;
use crate::metrics::ScrubResult;
use crate::usage::now;

/// How memory is cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubSettings {
    /// How many bytes of a GPU are read back and compared; all are overwritten.
    pub sample: MemoryBytes,
    /// How long it may take until the GPU is put into quarantine.
    pub limit: Duration,
}

impl Default for ScrubSettings {
    fn default() -> Self {
        Self { sample: MemoryBytes::mib(8), limit: Duration::from_secs(60) }
    }
}

/// The scrub of a GPU is not done while another one of it is, and a new lease does not begin
/// while one holds what it may ask for.
pub(super) type GpuTurns = Vec<OwnedMutexGuard<()>>;

impl Leases {
    /// Waits for scrubs of these GPUs, and keeps others from beginning.
    async fn take_gpus(&self, gpus: &[GpuUuid]) -> GpuTurns {
        let mut turns = Vec::new();
        // In the map's order, so that no two wait for each other.
        for (_, turn) in self.gpu_turns.iter().filter(|(gpu, _)| gpus.contains(gpu)) {
            turns.push(Arc::clone(turn).lock_owned().await);
        }
        turns
    }

    /// Waits until no scrub holds memory that this lease, which is in the book, may ask for.
    pub(super) async fn wait_for_scrubs(&self, held: &HeldLease) {
        drop(self.take_gpus(&gpus_of(held)).await);
    }

    /// Clears what a lease had, whose worker is gone. A GPU of which it is not shown that it is
    /// clear is put into quarantine.
    ///
    /// What comes back is to be kept until the lease is out of the book: the next scrub would leave
    /// alone what this lease had, and if it was the last one, nobody would clear that any more.
    pub(super) async fn scrub(&self, held: &HeldLease) -> Result<GpuTurns, AgentError> {
        let id = held.lease.id;
        let gpus = gpus_of(held);
        let turns = self.take_gpus(&gpus).await;
        let (reports, failures) = self.clear(id, &gpus, vec![id]).await?;
        for report in &reports {
            let scrubbed = AuditEvent {
                tenant: Some(held.lease.tenant.clone()),
                ..scrubbed(audit::AGENT, id.to_string(), report)
            };
            self.audit.note(scrubbed).await;
        }
        for (gpu, reason) in &failures {
            self.quarantine(*gpu, reason).await?;
        }
        match failures.into_iter().next() {
            None => Ok(turns),
            Some((gpu, reason)) => Err(AgentError {
                kind: ErrorKind::Driver,
                message: format!(
                    "GPU {gpu} is in quarantine, because what {id} had there is not shown to be clear: {reason}"
                ),
            }),
        }
    }

    /// Has memory cleared. What failed is an answer too; an error means that it is not known and
    /// is to be tried again.
    async fn clear(
        &self,
        id: LeaseId,
        gpus: &[GpuUuid],
        among: Vec<LeaseId>,
    ) -> Result<(Vec<ScrubReport>, Vec<(GpuUuid, String)>), AgentError> {
        let asked = gpus.to_vec();
        let limits = move |book: &mut Book| {
            asked.iter().filter_map(|gpu| book.scrubbable(*gpu, &among)).collect::<Vec<_>>()
        };
        let ScrubSettings { sample, limit } = self.scrubs;
        let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let on_node = self.book.with(limits).await?;
        let order = ScrubOrder { lease: id, gpus: on_node, sample, limit_ms };
        match self.link.scrub(order).await {
            Ok(reports) => {
                reports.iter().for_each(|report| self.audit.counts.scrubbed(report));
                let failed = |report: &ScrubReport| Some((report.gpu, report.failure.clone()?));
                let failures = reports.iter().filter_map(failed).collect();
                Ok((reports, failures))
            }
            // Nobody tried, so it says nothing about the GPU: what the lease had stays held.
            Err(error @ LinkError::Broken(_)) => Err(AgentError {
                kind: ErrorKind::Driver,
                message: format!("its memory is not cleared yet: {}", sentence(&error)),
            }),
            Err(error @ (LinkError::Slow(_) | LinkError::Refused(_) | LinkError::Nonsense(_))) => {
                let reason = sentence(&error);
                gpus.iter().for_each(|_| self.audit.counts.scrub(ScrubResult::Failed));
                let unknown = gpus.iter().map(|gpu| (*gpu, reason.clone())).collect();
                Ok((Vec::new(), unknown))
            }
        }
    }

    pub(super) async fn quarantine(&self, gpu: GpuUuid, reason: &str) -> Result<(), AgentError> {
        let written = self.observe(gpu, vec![Signal::ScrubFailed(reason.to_owned())]).await?;
        written.map_err(|error| internal(sentence(&error)))
    }

    /// Clears a GPU in quarantine again and, when that succeeds, lets it serve; leases that
    /// failed on it are brought to their end. `actor` asks for it.
    ///
    /// # Errors
    /// When nothing is wrong with it, or it is still not shown to be clear.
    pub async fn clear_quarantine(
        self: &Arc<Self>,
        gpu: GpuUuid,
        actor: String,
    ) -> Result<ScrubReport, AgentError> {
        if self.book.with(move |book| book.serves(gpu)).await? {
            let message = format!("GPU {gpu} is not in quarantine; there is nothing to clear");
            return Err(AgentError { kind: ErrorKind::InvalidRequest, message });
        }
        if let Some(report) = self.clear_by_reset(gpu, &actor).await? {
            self.cleared(gpu, actor, &report).await?;
            return Ok(report);
        }
        self.check_clearable(gpu)?;
        let units = self.inventory.parts(gpu);
        let turns = self.take_gpus(&units).await;
        // Those whose end failed; no worker of theirs is left to use what they hold.
        let leases = self.book.with(|book| book.leases()).await?;
        let failed = leases.into_iter().filter(|held| {
            let of_it = gpus_of(held).iter().any(|gpu| units.contains(gpu));
            held.lease.state == LeaseState::Failed && of_it
        });
        let failed: Vec<LeaseId> = failed.map(|held| held.lease.id).collect();
        let report = self.clear_units(gpu, &units, &failed, &actor).await;
        drop(turns);
        let report = report?;
        self.cleared(gpu, actor, &report).await?;
        for id in failed {
            log_failure(id, self.end(id, "its GPU was cleared").await);
        }
        Ok(report)
    }

    /// Lets a GPU serve again that is shown to be clear.
    async fn cleared(
        &self,
        gpu: GpuUuid,
        actor: String,
        report: &ScrubReport,
    ) -> Result<(), AgentError> {
        let detail = json!({ "scrubbed_bytes": report.overwritten.get() });
        let cleared = audit::event(AuditKind::QuarantineCleared, actor, gpu, detail);
        // On disk before it serves.
        let written = self.audit.write(vec![cleared]).await;
        written.map_err(|error| internal(sentence(&error)))?;
        let mut cleared = self.book.with(move |book| book.clear(gpu, now())).await?;
        let parts = self.inventory.parts(gpu);
        for unit in parts.into_iter().filter(|unit| *unit != gpu) {
            cleared.written.map_err(|error| internal(sentence(&error)))?;
            cleared = self.book.with(move |book| book.clear(unit, now())).await?;
        }
        cleared.written.map_err(|error| internal(sentence(&error)))?;
        self.health_changed();
        tracing::warn!(%gpu, health = cleared.after.as_str(), "cleared by an operator");
        Ok(())
    }

    /// Clears all of a GPU: one unit after the other, for a process sees one MIG instance only.
    async fn clear_units(
        &self,
        gpu: GpuUuid,
        units: &[GpuUuid],
        failed: &[LeaseId],
        actor: &str,
    ) -> Result<ScrubReport, AgentError> {
        let mut all: Option<ScrubReport> = None;
        for unit in units {
            let id = LeaseId::from_uuid(Uuid::now_v7());
            let (reports, failures) = self.clear(id, &[*unit], failed.to_vec()).await?;
            for report in &reports {
                self.audit.note(scrubbed(actor, unit.to_string(), report)).await;
            }
            if let Some((_, reason)) = failures.into_iter().next() {
                let message = format!("GPU {gpu} stays in quarantine: {reason}");
                return Err(AgentError { kind: ErrorKind::Driver, message });
            }
            for report in reports {
                all = Some(match all {
                    None => report,
                    Some(sum) => ScrubReport {
                        overwritten: together(sum.overwritten, report.overwritten),
                        compared: together(sum.compared, report.compared),
                        ..sum
                    },
                });
            }
        }
        all.ok_or_else(|| AgentError {
            kind: ErrorKind::Driver,
            message: format!(
                "GPU {gpu} has no MIG instance that could be cleared; make one, or turn MIG mode off, and restart the agent"
            ),
        })
    }

    /// Whether a lease that failed waits for an operator, who has a GPU of it to clear.
    pub(super) async fn waits_for_operator(&self, held: &HeldLease) -> bool {
        let gpus = gpus_of(held);
        let quarantined = move |book: &mut Book| gpus.iter().any(|gpu| book.is_quarantined(*gpu));
        held.lease.state == LeaseState::Failed && self.book.with(quarantined).await.unwrap_or(false)
    }
}

fn together(one: MemoryBytes, other: MemoryBytes) -> MemoryBytes {
    MemoryBytes::saturating(one.get().saturating_add(other.get()))
}

fn gpus_of(held: &HeldLease) -> Vec<GpuUuid> {
    held.lease.placement.grants().iter().map(|grant| grant.gpu).collect()
}

fn scrubbed(actor: &str, subject: String, report: &ScrubReport) -> AuditEvent {
    let detail = json!({
        "gpu": report.gpu.to_string(),
        "bytes": report.overwritten.get(),
        "compared_bytes": report.compared.get(),
        "left_to_other_leases_bytes": report.left.get(),
        "method": report.method,
        "nanoseconds": report.nanoseconds,
        "result": match &report.failure {
            None => "clear".to_owned(),
            Some(failure) => format!("failed: {failure}"),
        },
    });
    audit::event(AuditKind::Scrub, actor, subject, detail)
}
