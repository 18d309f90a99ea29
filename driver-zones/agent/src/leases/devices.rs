//! Leases of devices that a container has itself: the driver there is the tenant's own, in its VM.
//!
//! Such a lease is admitted, written down, billed and ended like any other. What differs: no
//! worker serves it, so no call is counted, and no worker can clear what it leaves behind. When it
//! ends, its GPUs are reset and looked at, where the configuration leaves that to the agent; what
//! is not shown to be clear then goes into quarantine.

use std::time::Duration;

use gpuzone_api::{AgentError, ErrorKind};
use gpuzone_core::{
    Exposure, GpuUuid, LeaseEvent, LeaseId, LeaseState, MemoryBytes, TenantId, UsageCounters,
};
use gpuzone_ledger::{AuditEvent, AuditKind};
use gpuzone_wire::scrub::ScrubReport;
use gpuzone_zone::Process;
use serde_json::json;

use super::{Leases, Memory, PROGRAM_ENDED, asker_of};
use crate::audit;
use crate::errors::{internal, sentence};
use crate::journal::{HeldBy, HeldLease};
use crate::metrics::ScrubResult;
use crate::passthrough::Turned;
use crate::usage::{Used, now};

/// How long a program may take to end when its lease is taken away.
const END_LIMIT: Duration = Duration::from_secs(10);

impl Leases {
    /// Audit, bill, active.
    pub(super) async fn serve_device(&self, held: &HeldLease) -> Result<(), (AgentError, Memory)> {
        // Whoever asks may have it already: a container that started before it was asked about.
        let used = |error| (error, Memory::Used);
        let detail = json!({
            "grants": audit::granted(&held.lease),
            "exposure": held.exposure().as_str(),
            "program": held.holder.program,
            "zone": held.lease.zone.to_string(),
        });
        let granted = audit::of_lease(AuditKind::Grant, asker_of(held), &held.lease, detail);
        let written = self.audit.write(vec![granted]).await;
        written.map_err(|error| used(internal(sentence(&error))))?;
        let begun = self.usage.begin(held, &self.inventory, now()).await;
        begun.map_err(|error| used(internal(sentence(&error))))?;
        self.advance(held.lease.id, LeaseEvent::Activate, "").await.map_err(used)?;
        Ok(())
    }

    /// Ends a lease of devices whose holder was never told what to open.
    pub(crate) async fn take_back(&self, id: LeaseId, reason: &str) -> Result<(), AgentError> {
        let _turn = self.turns.take(id).await;
        self.end_in_turn(id, reason, Memory::Untouched).await.map(drop)
    }

    /// Ends whoever has a device, and closes the bill of its lease.
    pub(super) async fn drain_device(&self, held: &HeldLease, reason: &str) {
        match held.holder.by {
            // Nothing else takes a device from a VM; its zone ends with the process that holds it.
            HeldBy::Owner(process) if reason != PROGRAM_ENDED => {
                let ended = match Process::find(process) {
                    Ok(Some(process)) => process.end(Some(END_LIMIT)).await.map(drop),
                    other => other.map(drop),
                };
                if let Err(error) = ended {
                    tracing::error!(lease = %held.lease.id, %error, "its holder cannot be ended");
                }
            }
            HeldBy::Owner(_) | HeldBy::Process(_) | HeldBy::Placed(_) => {}
        }
        self.usage.close(held.lease.id, None, reason).await;
    }

    /// Clears the GPUs of a device's lease that is over, where that is left to the agent. Others
    /// are kept from those of which nothing shows that they are clear.
    pub(super) async fn keep_out(&self, held: &HeldLease) -> Result<(), AgentError> {
        let (tenant, exposure) = (&held.lease.tenant, held.exposure());
        let reason = format!(
            "tenant {tenant} had it by {exposure}, and nothing shows that its memory is clear"
        );
        for grant in held.lease.placement.grants() {
            let subject = held.lease.id.to_string();
            match self.turn_over(grant.gpu, audit::AGENT, subject, Some(tenant.clone())).await? {
                Some(Ok(_)) => {}
                Some(Err(why)) => self.quarantine(grant.gpu, &format!("{reason}: {why}")).await?,
                None => self.quarantine(grant.gpu, &reason).await?,
            }
        }
        // What is made anew may be opened elsewhere, and whoever hands it on has to know.
        self.health_changed();
        Ok(())
    }

    /// Resets a GPU, and looks whether what was there is gone, or makes a vGPU anew; `None` where
    /// that is not left to the agent, the reason where it is not gone. It is in the audit log, on
    /// disk, when this returns.
    pub(super) async fn turn_over(
        &self,
        gpu: GpuUuid,
        actor: &str,
        subject: String,
        tenant: Option<TenantId>,
    ) -> Result<Option<Result<Turned, String>>, AgentError> {
        let Some(passthrough) = &self.passthrough else { return Ok(None) };
        let Some(turned) = passthrough.turn_over(gpu).await else { return Ok(None) };
        let mut detail = json!({ "gpu": gpu.to_string() });
        let turned = turned.and_then(|turned| match turned {
            Turned::Reset(record) => {
                detail["reset"] = json!(record.reset.to_string());
                detail["seen_bytes"] = json!(record.seen_bytes);
                detail["places"] = json!(record.places);
                detail["nanoseconds"] = json!(record.ended.nanoseconds_since(record.began));
                match &record.condemned {
                    None => Ok(Turned::Reset(record)),
                    Some(why) => Err(why.to_string()),
                }
            }
            Turned::Remade { began, ended } => {
                detail["reset"] = json!("taken away and made anew");
                detail["nanoseconds"] = json!(ended.nanoseconds_since(began));
                Ok(Turned::Remade { began, ended })
            }
        });
        detail["result"] = match &turned {
            Ok(Turned::Reset(_)) => json!("clear"),
            // Nothing of its memory was looked at, and nothing says so.
            Ok(Turned::Remade { .. }) => json!("made anew"),
            Err(why) => json!(format!("failed: {why}")),
        };
        let result = if turned.is_ok() { ScrubResult::Clear } else { ScrubResult::Failed };
        self.audit.counts.scrub(result);
        let event = audit::event(AuditKind::Scrub, actor, subject, detail);
        let written = self.audit.write(vec![AuditEvent { tenant, ..event }]).await;
        written.map_err(|error| internal(sentence(&error)))?;
        Ok(Some(turned))
    }

    /// Clears a GPU in quarantine by a reset, for an operator; `None` where that is not left to the
    /// agent.
    pub(super) async fn clear_by_reset(
        &self,
        gpu: GpuUuid,
        actor: &str,
    ) -> Result<Option<ScrubReport>, AgentError> {
        if !self.passthrough.as_ref().is_some_and(|devices| devices.resets(gpu)) {
            return Ok(None);
        }
        self.check_unleased(gpu).await?;
        let Some(turned) = self.turn_over(gpu, actor, gpu.to_string(), None).await? else {
            return Ok(None);
        };
        let turned = turned.map_err(|why| AgentError {
            kind: ErrorKind::Driver,
            message: format!("GPU {gpu} stays in quarantine: {why}"),
        })?;
        let (compared, method, nanoseconds) = match turned {
            Turned::Reset(record) => (
                MemoryBytes::saturating(record.places as u64 * 8),
                record.sentence(),
                record.ended.nanoseconds_since(record.began),
            ),
            Turned::Remade { began, ended } => (
                MemoryBytes::ZERO,
                "taken away and made anew; its memory is its driver's to clear".to_owned(),
                ended.nanoseconds_since(began),
            ),
        };
        // Neither says of a byte that it overwrote it.
        let (overwritten, left) = (MemoryBytes::ZERO, MemoryBytes::ZERO);
        let failure = None;
        Ok(Some(ScrubReport { gpu, overwritten, compared, left, method, nanoseconds, failure }))
    }

    /// Refuses what would take a device from a lease.
    async fn check_unleased(&self, gpu: GpuUuid) -> Result<(), AgentError> {
        let held = self.book.with(|book| book.leases()).await?;
        let holds =
            |held: &&HeldLease| held.lease.placement.grants().iter().any(|grant| grant.gpu == gpu);
        held.iter().find(holds).map_or(Ok(()), |held| {
            let message = format!(
                "{} holds GPU {gpu}, which a reset would take from it; end it first",
                held.lease.id
            );
            Err(AgentError { kind: ErrorKind::InvalidRequest, message })
        })
    }

    /// Refuses what is handed over through a worker.
    fn check_device(&self, gpu: GpuUuid) -> Result<(), AgentError> {
        if self.inventory.unit(gpu).is_some() && !self.inventory.exposure(gpu).has_worker() {
            return Ok(());
        }
        Err(AgentError {
            kind: ErrorKind::InvalidRequest,
            message: format!(
                "GPU {gpu} is no device that a container can have by itself; `gpu-zone gpus` lists those, by passthrough or as vGPUs"
            ),
        })
    }

    /// Clears a device that `had_by` may have had without a lease; answers whether it is clear. It is
    /// in quarantine otherwise.
    pub(crate) async fn clear_unleased(
        &self,
        gpu: GpuUuid,
        had_by: &str,
    ) -> Result<bool, AgentError> {
        self.check_device(gpu)?;
        self.check_unleased(gpu).await?;
        // An operator clears that one.
        if self.book.with(move |book| book.is_quarantined(gpu)).await? {
            return Ok(false);
        }
        let reason = format!(
            "{had_by} may have had it without a lease, and nothing shows that its memory is clear"
        );
        let clear = match self.turn_over(gpu, audit::AGENT, gpu.to_string(), None).await? {
            Some(Ok(_)) => true,
            Some(Err(why)) => {
                self.quarantine(gpu, &format!("{reason}: {why}")).await?;
                false
            }
            None => {
                self.quarantine(gpu, &reason).await?;
                false
            }
        };
        // What is made anew may be opened elsewhere, and whoever hands it on has to know.
        self.health_changed();
        Ok(clear)
    }

    /// Keeps others from a device that somebody has without a lease.
    pub(crate) async fn condemn(
        &self,
        gpu: GpuUuid,
        held_by: &str,
        why: &str,
    ) -> Result<(), AgentError> {
        self.check_device(gpu)?;
        // Said again and again, as long as it goes on.
        if self.book.with(move |book| book.is_quarantined(gpu)).await? {
            return Ok(());
        }
        let reason = format!(
            "{held_by} has it without a lease ({why}), so it counts as held by that one; end it, and have the GPU cleared"
        );
        self.quarantine(gpu, &reason).await
    }

    /// Refuses to clear what no worker of ours reaches.
    pub(super) fn check_clearable(&self, gpu: GpuUuid) -> Result<(), AgentError> {
        match self.inventory.exposure(gpu) {
            Exposure::Mediated | Exposure::Mig => Ok(()),
            exposure @ (Exposure::Passthrough | Exposure::Vgpu) => Err(AgentError {
                kind: ErrorKind::InvalidRequest,
                message: format!(
                    "GPU {gpu} is handed over as {exposure}, so nothing here can clear it unless its [[gpu]] says reset = true; or bind it to its own driver, write exposure = \"mediated\" in its [[gpu]], restart the agent, clear it, and undo both"
                ),
            }),
        }
    }

    /// What the active leases of devices have used: nothing that can be counted, until now.
    pub(super) async fn used_devices(&self) -> Vec<Used> {
        let held = self.book.with(|book| book.leases()).await.unwrap_or_default();
        let devices = held
            .into_iter()
            .filter(|held| !held.exposure().has_worker() && held.lease.state == LeaseState::Active);
        let used = |held: HeldLease| Used {
            lease: held.lease.id,
            counters: UsageCounters::default(),
            refused_by_name: Default::default(),
        };
        devices.map(used).collect()
    }
}
