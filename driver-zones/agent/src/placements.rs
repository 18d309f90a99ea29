//! Leases of GPUs that somebody else chose: the service for those who place them.

mod quotas;

use std::collections::BTreeMap;
use std::sync::Arc;

use gpuzone_api::placements::v1 as proto;
use gpuzone_api::placements::v1::placements_server::Placements;
use gpuzone_api::{AgentError, ErrorKind, HolderName, SlotFolder, SlotId};
use gpuzone_core::{
    ClusterTerms, ComputeShare, Exposure, GpuUuid, Grant, MemoryBytes, Placement, TenantId,
};
use gpuzone_hw::VfioFunction;
use tonic::{Request, Response, Status};

use crate::convert;
use crate::errors::internal;
use crate::gpus::Gpus;
use crate::journal::{At, HeldLease, PlacedHolder};
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
    /// Where its GPUs are to be had.
    pub at: At,
    /// What runs, for listings.
    pub program: String,
    /// What its holder opens, where it was told before.
    pub nodes: BTreeMap<GpuUuid, String>,
    /// Under which quotas of the cluster, if any hold for it.
    pub cluster: Option<ClusterTerms>,
}

impl Wanted {
    /// How it is to be handed over.
    pub(crate) fn exposure(&self) -> Exposure {
        self.at.exposure(&self.placement)
    }

    /// Whether `held` is that very lease.
    pub(crate) fn is(&self, held: &HeldLease, by: &PlacedHolder) -> bool {
        by.name == self.holder
            && by.at == self.at
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

/// A caller of an earlier release says nothing of the exposure, and means mediated.
fn at(exposure: &str, slot: &str, folder: &str, placement: &Placement) -> Result<At, AgentError> {
    let exposure = match exposure {
        "" => Exposure::Mediated,
        named => named.parse().map_err(invalid)?,
    };
    // What is placed says it, too; both have to say the same.
    if (exposure == Exposure::Mig) != placement.is_mig() {
        return Err(invalid(
            "exposure 'mig' is of a MIG instance, named by its MIG-… UUID, and nothing else is",
        ));
    }
    let vgpus = placement.grants().iter().filter(|grant| grant.gpu.is_vgpu()).count();
    if vgpus != if exposure == Exposure::Vgpu { placement.grants().len() } else { 0 } {
        return Err(invalid(
            "exposure 'vgpu' is of vGPUs, named by their VGPU-… UUIDs, and nothing else is",
        ));
    }
    match exposure {
        Exposure::Mediated | Exposure::Mig => {
            let slot: SlotId = slot.parse().map_err(invalid)?;
            let folder: SlotFolder = folder.parse().map_err(invalid)?;
            Ok(At::Slot { slot, folder })
        }
        Exposure::Passthrough | Exposure::Vgpu if slot.is_empty() && folder.is_empty() => {
            Ok(At::Device { exposure })
        }
        Exposure::Passthrough | Exposure::Vgpu => {
            Err(invalid(format!("a lease of exposure '{exposure}' appears in no slot")))
        }
    }
}

fn wanted(message: proto::PlaceRequest) -> Result<Wanted, AgentError> {
    let proto::PlaceRequest {
        holder,
        tenant,
        gpus,
        slot,
        folder,
        program,
        exposure,
        quotas,
        group,
    } = message;
    let grant = |gpu: proto::PlacedGpu| {
        let memory = MemoryBytes::new(gpu.memory_bytes);
        Ok(Grant {
            gpu: gpu.gpu_uuid.parse().map_err(invalid)?,
            memory: memory.ok_or_else(|| invalid("more memory than any GPU has"))?,
            share: ComputeShare::new(gpu.share_percent).map_err(invalid)?,
        })
    };
    let named = gpus.iter().filter(|gpu| !gpu.node.is_empty());
    let named = named.filter_map(|gpu| Some((gpu.gpu_uuid.parse().ok()?, shown(&gpu.node))));
    let nodes = named.collect();
    let grants = gpus.into_iter().map(grant).collect::<Result<_, AgentError>>()?;
    let placement = Placement::of(grants).map_err(invalid)?;
    Ok(Wanted {
        holder: holder.parse().map_err(invalid)?,
        tenant: tenant.parse().map_err(invalid)?,
        at: at(&exposure, &slot, &folder, &placement)?,
        placement,
        program: shown(&program),
        nodes,
        cluster: quotas::terms(quotas, &group)?,
    })
}

fn placed(held: HeldLease) -> Option<proto::PlacedLease> {
    let by = held.holder.placed()?.clone();
    let exposure = held.exposure();
    let gpu = |grant: &Grant| proto::PlacedGpu {
        gpu_uuid: grant.gpu.to_string(),
        memory_bytes: grant.memory.get(),
        share_percent: grant.share.percent(),
        // Whoever asked was told by the listing.
        node: String::new(),
    };
    let (slot, folder) = match by.at {
        At::Slot { slot, folder } => (slot.to_string(), folder.to_string()),
        At::Device { .. } => Default::default(),
    };
    Some(proto::PlacedLease {
        id: held.lease.id.to_string(),
        holder: by.name.to_string(),
        tenant: held.lease.tenant.to_string(),
        gpus: held.lease.placement.grants().iter().map(gpu).collect(),
        slot,
        folder,
        exposure: exposure.to_string(),
        state: held.lease.state.to_string(),
        trouble: held.holder.trouble,
        program: held.holder.program,
    })
}

/// Whether this node leads to that function, by either of the kernel's interfaces.
fn is_opened_by(function: &VfioFunction, node: &str) -> bool {
    let by_group = format!("/dev/vfio/{}", function.group);
    let device = function.device.as_ref().map(|device| format!("/dev/vfio/devices/{device}"));
    node == by_group || Some(node) == device.as_deref()
}

/// The service.
pub(crate) struct PlacementService {
    pub(crate) leases: Arc<Leases>,
    pub(crate) gpus: Arc<Gpus>,
}

impl PlacementService {
    /// Whether the devices can be handed over now.
    fn check_ready(&self, wanted: &Wanted) -> Result<(), AgentError> {
        match wanted.at {
            At::Slot { .. } => return Ok(()),
            At::Device { .. } => {}
        }
        let ready = self.gpus.vfio();
        for grant in wanted.placement.grants() {
            let kept = self.gpus.kept_from_pods(grant.gpu);
            let trouble = match (ready.get(&grant.gpu), wanted.nodes.get(&grant.gpu), kept) {
                (Some(Err(error)), _, _) => error.to_string(),
                (_, _, Some(kept)) => kept,
                (Some(Ok(now)), Some(node), None) if !is_opened_by(now, node) => format!(
                    "its holder was told to open {node}, and it is in group {} now; delete the pod and let it be created again",
                    now.group
                ),
                // One that is not there as a device is refused by the book, with its reason.
                (Some(Ok(_)) | None, _, None) => continue,
            };
            let message = format!("GPU {} cannot be handed over now: {trouble}", grant.gpu);
            return Err(AgentError { kind: ErrorKind::Driver, message });
        }
        Ok(())
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Placements for PlacementService {
    async fn place(&self, request: Request<proto::PlaceRequest>) -> Answer<proto::PlaceReply> {
        let wanted = wanted(request.into_inner())?;
        if let Err(error) = self.check_ready(&wanted) {
            self.leases.refused(&wanted, &error).await;
            return Err(error.into());
        }
        let held = self.leases.place(wanted.clone()).await?;
        // Looked at again, for until now whoever had it before could be at its end.
        if let Err(error) = self.check_ready(&wanted) {
            let (leases, id) = (Arc::clone(&self.leases), held.lease.id);
            let ended = async move { leases.end(id, "its holder would open another").await };
            if let Ok(Err(worse)) = tokio::spawn(ended).await {
                tracing::error!(lease = %id, error = %worse, "it could not be ended");
            }
            return Err(error.into());
        }
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

    async fn condemn(
        &self,
        request: Request<proto::CondemnRequest>,
    ) -> Answer<proto::CondemnReply> {
        let proto::CondemnRequest { gpu_uuid, held_by, reason } = request.into_inner();
        let gpu = gpu_uuid.parse().map_err(invalid)?;
        self.leases.condemn(gpu, &shown(&held_by), &shown(&reason)).await?;
        Ok(Response::new(proto::CondemnReply {}))
    }

    async fn clear(&self, request: Request<proto::ClearRequest>) -> Answer<proto::ClearReply> {
        let proto::ClearRequest { gpu_uuid, had_by } = request.into_inner();
        let (gpu, had_by) = (gpu_uuid.parse().map_err(invalid)?, shown(&had_by));
        let leases = Arc::clone(&self.leases);
        // On a task of its own, for a caller that goes away must not stop it half way.
        let cleared = tokio::spawn(async move { leases.clear_unleased(gpu, &had_by).await });
        let clear = cleared.await.map_err(|error| internal(error.to_string()))??;
        Ok(Response::new(proto::ClearReply { clear }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSTANCE: &str = "MIG-00000000-0000-0000-0000-000000000001";

    fn asked() -> proto::PlaceRequest {
        proto::PlaceRequest {
            holder: "pod/6f1/train".into(),
            tenant: "acme".into(),
            gpus: vec![proto::PlacedGpu {
                gpu_uuid: "GPU-00000000-0000-0000-0000-000000000001".into(),
                memory_bytes: 1 << 30,
                share_percent: 50,
                node: String::new(),
            }],
            slot: "slot-3".into(),
            folder: "0000000000000001".into(),
            program: "team-a/train\u{1b}[2J".into(),
            exposure: String::new(),
            quotas: Vec::new(),
            group: String::new(),
        }
    }

    #[test]
    fn reads_what_is_right_and_names_what_is_not() {
        let read = wanted(asked()).unwrap();
        let (slot, folder) = ("slot-3".parse().unwrap(), SlotFolder::new(1));
        assert_eq!(
            (read.at, read.program.as_str()),
            (At::Slot { slot, folder }, "team-a/train[2J")
        );
        type Change = fn(&mut proto::PlaceRequest);
        let cases: [(Change, &str); 14] = [
            (|r| r.holder = "Pod".into(), "'Pod' names no holder"),
            (|r| r.holder = "x".repeat(201), "names no holder"),
            (|r| r.tenant = "../x".into(), "tenant '../x'"),
            (|r| r.gpus.clear(), "at least one GPU"),
            (|r| r.gpus[0].gpu_uuid = "0".into(), "GPU '0'"),
            (|r| r.gpus[0].memory_bytes = u64::MAX, "more memory"),
            (|r| r.gpus[0].share_percent = 0, "share '0'"),
            (|r| r.slot = "slot-3/..".into(), "'slot-3/..' is no slot"),
            (|r| r.folder = "../../etc".into(), "'../../etc' names no folder"),
            (|r| r.exposure = "borrowed".into(), "exposure 'borrowed'"),
            (|r| r.exposure = "passthrough".into(), "appears in no slot"),
            (|r| r.exposure = "vgpu".into(), "named by their VGPU-"),
            (|r| r.exposure = "mig".into(), "named by its MIG-"),
            (|r| r.gpus[0].gpu_uuid = INSTANCE.into(), "named by its MIG-"),
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
