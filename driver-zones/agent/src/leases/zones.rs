//! Workload zones, as far as the agent knows of them: which programs may share one, which names
//! are taken, and when each began and ended.

use std::time::{Duration, Instant};

use gpuzone_api::{AgentError, ErrorKind};
use gpuzone_core::{LeaseState, TenantId, ZoneName};
use gpuzone_ledger::AuditKind;
use serde::Deserialize;
use serde_json::json;

use super::{Leases, asker_of};
use crate::audit;
use crate::journal::HeldLease;

/// Which programs share a workload zone, and with it a lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkloadZones {
    /// None: each program has a zone of its own.
    Program,
    /// Those that name the same zone; each other has one of its own.
    #[default]
    Named,
    /// All of a tenant's, in a zone that is called as the tenant is.
    Tenant,
}

impl WorkloadZones {
    /// Its name in the configuration and on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Program => "program",
            Self::Named => "named",
            Self::Tenant => "tenant",
        }
    }

    pub(super) fn check(
        self,
        tenant: &TenantId,
        zone: Option<&ZoneName>,
    ) -> Result<(), AgentError> {
        let refused = |message: String| {
            let kind = ErrorKind::InvalidRequest;
            Err(AgentError { kind, message })
        };
        match (self, zone) {
            (Self::Program, Some(zone)) => refused(format!(
                "zone '{zone}' cannot be shared: each program has a zone of its own on this node ([zone] workload = \"program\"); leave --zone out"
            )),
            (Self::Tenant, None) => refused(format!(
                "all programs of a tenant share a zone on this node ([zone] workload = \"tenant\"); ask for --zone {tenant}"
            )),
            (Self::Tenant, Some(zone)) if zone.as_str() != tenant.as_str() => refused(format!(
                "all programs of tenant '{tenant}' share the zone '{tenant}' on this node ([zone] workload = \"tenant\"), so none can be in '{zone}'"
            )),
            (Self::Program, None) | (Self::Named | Self::Tenant, _) => Ok(()),
        }
    }
}

/// How long a keeper that has closed its zone may take to be gone.
const EXIT_LIMIT: Duration = Duration::from_millis(500);

/// Refuses a name that a zone has whose keeper lives.
pub(super) fn check_free(leases: &[HeldLease], zone: Option<&ZoneName>) -> Result<(), AgentError> {
    let Some(zone) = zone else { return Ok(()) };
    let lives = |held: &&HeldLease| {
        let holds = matches!(held.lease.state, LeaseState::Reserved | LeaseState::Active);
        // Not knowing whether it lives, its name is taken.
        holds && held.holder.process().is_none_or(|holder| holder.is_alive().unwrap_or(true))
    };
    let named = |held: &&HeldLease| held.holder.zone.as_ref() == Some(zone);
    match leases.iter().filter(named).find(lives) {
        Some(held) => Err(AgentError {
            kind: ErrorKind::InvalidRequest,
            message: format!(
                "there is a zone '{zone}' already: {} of tenant '{}' is its lease",
                held.lease.id, held.lease.tenant
            ),
        }),
        None => Ok(()),
    }
}

impl Leases {
    /// Gives the keeper that has the name a moment: whoever asks has seen it let go of its zone.
    pub(super) async fn wait_for_name(&self, zone: Option<&ZoneName>) {
        let Some(zone) = zone else { return };
        let end = Instant::now() + EXIT_LIMIT;
        loop {
            let name = zone.clone();
            let free = self.book.with(move |book| check_free(&book.leases(), Some(&name)).is_ok());
            // A book that fails says so to the next who asks it.
            if free.await.unwrap_or(true) || Instant::now() > end {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Notes that a workload zone begins or ends: it does with its lease, for its holder does.
    pub(super) async fn note_workload_zone(&self, kind: AuditKind, held: &HeldLease, reason: &str) {
        let HeldLease { lease, holder } = held;
        let detail = json!({
            "kind": "workload",
            "name": holder.zone.as_ref().map(ZoneName::as_str),
            "lease": lease.id.to_string(),
            "holder": holder.process().map(|process| process.pid),
            "reason": reason,
        });
        let subject = lease.zone.to_string();
        let tenant = Some(lease.tenant.clone());
        let event = audit::event(kind, asker_of(held), subject, detail);
        self.audit.note(gpuzone_ledger::AuditEvent { tenant, ..event }).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_says_who_shares_and_how_to_ask() {
        let tenant: TenantId = "acme".parse().unwrap();
        let zone = |name: &str| Some(name.parse::<ZoneName>().unwrap());
        let allowed = |policy: WorkloadZones, zone: Option<ZoneName>| {
            policy.check(&tenant, zone.as_ref()).map_err(|refused| refused.message)
        };
        assert_eq!(allowed(WorkloadZones::Program, None), Ok(()));
        assert_eq!(allowed(WorkloadZones::Named, None), Ok(()));
        assert_eq!(allowed(WorkloadZones::Named, zone("train")), Ok(()));
        assert_eq!(allowed(WorkloadZones::Tenant, zone("acme")), Ok(()));
        for (policy, zone, said) in [
            (WorkloadZones::Program, zone("train"), "leave --zone out"),
            (WorkloadZones::Tenant, zone("train"), "share the zone 'acme'"),
            (WorkloadZones::Tenant, None, "--zone acme"),
        ] {
            let refused = allowed(policy, zone).unwrap_err();
            assert!(refused.contains(said), "{refused}");
        }
    }
}
