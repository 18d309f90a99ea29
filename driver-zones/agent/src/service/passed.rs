//! Whole GPUs that a program gets itself, in a VM of its own.

use std::sync::Arc;

use gpuzone_api::agent::v1 as proto;
use gpuzone_api::{AgentError, ErrorKind};
use gpuzone_core::Request;

use crate::errors::internal;
use crate::gpus::Gpus;
use crate::journal::HeldLease;
use crate::leases::Leases;

fn not_ready(why: impl std::fmt::Display) -> AgentError {
    AgentError {
        kind: ErrorKind::Driver,
        message: format!("no GPU can be handed over whole now: {why}"),
    }
}

/// Refuses a request for more whole GPUs than can be opened, before anything is held for it.
pub(super) fn check(gpus: &Gpus, request: &Request) -> Result<(), AgentError> {
    if request.exposure.has_worker() {
        return Ok(());
    }
    let (mut ready, mut trouble) = (0, None);
    for (gpu, found) in gpus.vfio() {
        match (found, gpus.token(gpu)) {
            (Ok(_), Ok(_)) => ready += 1,
            (Err(error), _) => trouble = Some(error.to_string()),
            (Ok(_), Err(error)) => trouble = Some(format!("GPU {gpu}: {error}")),
        }
    }
    match trouble {
        Some(error) if ready < request.gpus.get() => Err(not_ready(error)),
        // Where there is none at all, the refusal of its placement says so.
        Some(_) | None => Ok(()),
    }
}

/// What a lease's holder may open. A lease of which something cannot be opened is over.
pub(super) async fn functions(
    leases: &Arc<Leases>,
    gpus: &Gpus,
    held: &HeldLease,
) -> Result<Vec<proto::PassedFunction>, AgentError> {
    let mut ready = gpus.vfio();
    let function = |gpu| {
        let found = ready.remove(&gpu).ok_or_else(|| not_ready(format!("GPU {gpu} is gone")))?;
        let found = found.map_err(not_ready)?;
        let address = leases.inventory.gpu(gpu).map(|gpu| gpu.pci.to_string());
        let address = address.ok_or_else(|| internal(format!("GPU {gpu} has no address")))?;
        let token = gpus.token(gpu).map_err(|error| not_ready(format!("GPU {gpu}: {error}")))?;
        let vf_token = token.map(|token| proto::VfToken { uuid: token.reveal().to_string() });
        Ok(proto::PassedFunction { address, group: found.group, vf_token })
    };
    let grants = held.lease.placement.grants().iter();
    let functions: Result<_, AgentError> = grants.map(|grant| grant.gpu).map(function).collect();
    if functions.is_err() {
        let (leases, id) = (Arc::clone(leases), held.lease.id);
        // On a task of its own, for a caller that goes away must not stop it half way.
        let ended = async move { leases.take_back(id, "what it has cannot be opened").await };
        if let Ok(Err(error)) = tokio::spawn(ended).await {
            tracing::error!(lease = %id, %error, "it could not be ended");
        }
    }
    functions
}
