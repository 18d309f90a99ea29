//! Leases of devices that a container has itself: the driver there is the tenant's own, in its VM.
//!
//! Such a lease is admitted, written down, billed and ended like any other. What differs: no
//! worker serves it, so no call is counted, and nobody here can clear what it leaves behind. Its
//! GPUs go into quarantine when it ends, until an operator has them cleared.

use gpuzone_api::{AgentError, ErrorKind};
use gpuzone_core::{Exposure, GpuUuid, LeaseEvent, LeaseState, UsageCounters};
use gpuzone_ledger::AuditKind;
use serde_json::json;

use super::{Leases, Memory, asker_of};
use crate::audit;
use crate::errors::{internal, sentence};
use crate::journal::HeldLease;
use crate::usage::{Used, now};

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

    /// Closes the bill of a device's lease.
    pub(super) async fn drain_device(&self, held: &HeldLease, reason: &str) {
        self.usage.close(held.lease.id, None, reason).await;
    }

    /// Keeps others from the GPUs of a device's lease that is over: nothing shows that they are
    /// clear.
    pub(super) async fn keep_out(&self, held: &HeldLease) -> Result<(), AgentError> {
        let (tenant, exposure) = (&held.lease.tenant, held.exposure());
        let reason = format!(
            "tenant {tenant} had it by {exposure}, and nothing shows that its memory is clear"
        );
        for grant in held.lease.placement.grants() {
            self.quarantine(grant.gpu, &reason).await?;
        }
        Ok(())
    }

    /// Refuses to clear what no worker of ours reaches.
    pub(super) fn check_clearable(&self, gpu: GpuUuid) -> Result<(), AgentError> {
        match self.inventory.exposure(gpu) {
            Exposure::Mediated | Exposure::Mig => Ok(()),
            exposure @ (Exposure::Passthrough | Exposure::Vgpu) => Err(AgentError {
                kind: ErrorKind::InvalidRequest,
                message: format!(
                    "GPU {gpu} is handed over as {exposure}, so nothing here can clear it; bind it to its own driver, write exposure = \"mediated\" in its [[gpu]], restart the agent, clear it, and undo both"
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
