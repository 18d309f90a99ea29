//! Leases of GPUs that somebody else chose: the service for those who place them.

use std::sync::Arc;

use gpuzone_api::placements::v1 as proto;
use gpuzone_api::placements::v1::placements_server::Placements;
use gpuzone_api::{AgentError, ErrorKind, HolderName, SlotFolder, SlotId};
use gpuzone_core::{ComputeShare, Grant, MemoryBytes, Placement, TenantId};
use tonic::{Request, Response, Status};

use crate::convert;
use crate::errors::internal;
use crate::journal::{HeldLease, PlacedHolder};
use crate::leases::Leases;

/// What a listing shows of a text is not longer.
const TEXT: usize = 256;

/// A lease that somebody wants placed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Who will hold it.
    pub holder: HolderName,
    /// Who pays.
    pub tenant: TenantId,
    /// What it is to hold.
    pub placement: Placement,
    /// The slot that it is to appear in.
    pub slot: SlotId,
    /// And the folder there.
    pub folder: SlotFolder,
    /// What runs, for listings.
    pub program: String,
}

impl Wanted {
    /// Whether `held` is that very lease.
    pub(crate) fn is(&self, held: &HeldLease, by: &PlacedHolder) -> bool {
        by.name == self.holder
            && by.slot == self.slot
            && by.folder == self.folder
            && held.lease.tenant == self.tenant
            && held.lease.placement == self.placement
    }
}

fn invalid(error: impl std::fmt::Display) -> AgentError {
    AgentError { kind: ErrorKind::InvalidRequest, message: error.to_string() }
}

/// A stranger's text goes to terminals.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(TEXT).collect()
}

fn wanted(message: proto::PlaceRequest) -> Result<Wanted, AgentError> {
    let proto::PlaceRequest { holder, tenant, gpus, slot, folder, program } = message;
    let grant = |gpu: proto::PlacedGpu| {
        let memory = MemoryBytes::new(gpu.memory_bytes);
        Ok(Grant {
            gpu: gpu.gpu_uuid.parse().map_err(invalid)?,
            memory: memory.ok_or_else(|| invalid("more memory than any GPU has"))?,
            share: ComputeShare::new(gpu.share_percent).map_err(invalid)?,
        })
    };
    let grants = gpus.into_iter().map(grant).collect::<Result<_, AgentError>>()?;
    Ok(Wanted {
        holder: holder.parse().map_err(invalid)?,
        tenant: tenant.parse().map_err(invalid)?,
        placement: Placement::of(grants).map_err(invalid)?,
        slot: slot.parse().map_err(invalid)?,
        folder: folder.parse().map_err(invalid)?,
        program: shown(&program),
    })
}

fn placed(held: HeldLease) -> Option<proto::PlacedLease> {
    let by = held.holder.placed()?.clone();
    let gpu = |grant: &Grant| proto::PlacedGpu {
        gpu_uuid: grant.gpu.to_string(),
        memory_bytes: grant.memory.get(),
        share_percent: grant.share.percent(),
    };
    Some(proto::PlacedLease {
        id: held.lease.id.to_string(),
        holder: by.name.to_string(),
        tenant: held.lease.tenant.to_string(),
        gpus: held.lease.placement.grants().iter().map(gpu).collect(),
        slot: by.slot.to_string(),
        folder: by.folder.to_string(),
        state: held.lease.state.to_string(),
        trouble: held.holder.trouble,
        program: held.holder.program,
    })
}

/// The service.
pub(crate) struct PlacementService {
    pub(crate) leases: Arc<Leases>,
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Placements for PlacementService {
    async fn place(&self, request: Request<proto::PlaceRequest>) -> Answer<proto::PlaceReply> {
        let held = self.leases.place(wanted(request.into_inner())?).await?;
        Ok(Response::new(proto::PlaceReply { lease: placed(held) }))
    }

    async fn list(&self, _: Request<proto::ListRequest>) -> Answer<proto::ListReply> {
        let held = self.leases.book.with(|book| book.leases()).await.map_err(AgentError::from)?;
        let leases = held.into_iter().filter_map(placed).collect();
        Ok(Response::new(proto::ListReply { leases }))
    }

    async fn end(&self, request: Request<proto::EndRequest>) -> Answer<proto::EndReply> {
        let proto::EndRequest { lease_id, reason } = request.into_inner();
        let (id, reason) = (convert::lease_id(&lease_id)?, shown(&reason));
        let held = self.leases.book.with(move |book| book.lease(id)).await;
        let held = held.map_err(AgentError::from)?;
        if held.is_some_and(|held| held.holder.placed().is_none()) {
            return Err(
                invalid(format!("{id} is held by a process; end it with `gpu-zone stop`")).into()
            );
        }
        let leases = Arc::clone(&self.leases);
        // On a task of its own, for a caller that goes away must not stop it half way.
        let ended = tokio::spawn(async move { leases.end(id, &reason).await });
        ended.await.map_err(|error| internal(error.to_string()))??;
        Ok(Response::new(proto::EndReply {}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> proto::PlaceRequest {
        proto::PlaceRequest {
            holder: "pod/6f1/train".into(),
            tenant: "acme".into(),
            gpus: vec![proto::PlacedGpu {
                gpu_uuid: "GPU-00000000-0000-0000-0000-000000000001".into(),
                memory_bytes: 1 << 30,
                share_percent: 50,
            }],
            slot: "slot-3".into(),
            folder: "0000000000000001".into(),
            program: "team-a/train\u{1b}[2J".into(),
        }
    }

    #[test]
    fn reads_what_is_right_and_names_what_is_not() {
        let read = wanted(asked()).unwrap();
        assert_eq!((read.slot.number(), read.program.as_str()), (3, "team-a/train[2J"));
        type Change = fn(&mut proto::PlaceRequest);
        let cases: [(Change, &str); 9] = [
            (|r| r.holder = "Pod".into(), "'Pod' names no holder"),
            (|r| r.holder = "x".repeat(201), "names no holder"),
            (|r| r.tenant = "../x".into(), "tenant '../x'"),
            (|r| r.gpus.clear(), "at least one GPU"),
            (|r| r.gpus[0].gpu_uuid = "0".into(), "GPU '0'"),
            (|r| r.gpus[0].memory_bytes = u64::MAX, "more memory"),
            (|r| r.gpus[0].share_percent = 0, "share '0'"),
            (|r| r.slot = "slot-3/..".into(), "'slot-3/..' is no slot"),
            (|r| r.folder = "../../etc".into(), "'../../etc' names no folder"),
        ];
        for (change, part) in cases {
            let mut message = asked();
            change(&mut message);
            let error = wanted(message).unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidRequest);
            assert!(error.message.contains(part), "{} lacks {part}", error.message);
        }
    }
}
