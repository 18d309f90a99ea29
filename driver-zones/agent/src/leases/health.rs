//! What is seen of GPUs' health, and who is told.

use gpuzone_api::AgentError;
use gpuzone_core::{GpuHealth, GpuUuid, Signal};
use tokio::sync::watch;

use super::Leases;
use crate::audit;
use crate::book::HealthSeen;
use crate::errors::sentence;
use crate::journal::AppendError;
use crate::usage::now;

impl Leases {
    /// Takes in what was seen of a GPU, and lets time go on for it; tells everybody of what
    /// changed. What could not be written down is the inner error.
    ///
    /// # Errors
    /// When the book failed.
    pub async fn observe(
        &self,
        gpu: GpuUuid,
        signals: Vec<Signal>,
    ) -> Result<Result<(), AppendError>, AgentError> {
        let seen = self.book.with(move |book| book.observe(gpu, &signals, now())).await?;
        if seen.is_change() {
            self.tell(gpu, &seen).await;
        }
        if let Err(error) = &seen.written {
            tracing::error!(%gpu, error = sentence(error), "what was seen of it is not written down");
        }
        Ok(seen.written)
    }

    async fn tell(&self, gpu: GpuUuid, seen: &HealthSeen) {
        match &seen.after {
            GpuHealth::Healthy => {
                let from = seen.before.why().map_or("", |(_, reason)| reason);
                tracing::warn!(%gpu, from, "it serves new leases again");
            }
            GpuHealth::Suspended { reason, .. } => {
                tracing::error!(%gpu, reason, "suspended: it serves no new lease for now");
            }
            GpuHealth::Quarantined { reason, .. } => {
                tracing::error!(%gpu, reason,
                    "in quarantine: it serves no new lease until it is cleared");
            }
        }
        if let Some(event) = audit::health(gpu, &seen.before, &seen.after) {
            self.audit.write_or_log(event).await;
        }
        self.health_changed();
    }

    /// Wakes all who watch.
    pub(super) fn health_changed(&self) {
        self.health.send_modify(|version| *version += 1);
    }

    /// A number that grows with each change of a GPU's health.
    pub fn health_versions(&self) -> watch::Receiver<u64> {
        self.health.subscribe()
    }
}
