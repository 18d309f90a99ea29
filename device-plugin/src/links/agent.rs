use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use gpuzone_api::agent::v1::Gpu;
use gpuzone_api::placements::v1::placements_client::PlacementsClient;
use gpuzone_api::placements::v1::{self as proto, PlacedGpu};
use gpuzone_api::{AgentError, ErrorKind, SlotFolder, SlotId, connect_channel};
use gpuzone_core::{ClusterQuota, Exposure, GpuUuid, Limits, MemoryBytes};
use tonic::Status;
use tonic::transport::Channel;

use super::LinkError;
use crate::claim::{Claim, PodHolder};
use crate::holders::PodName;

/// A lease takes a worker's start, and may wait for a scrub. The kubelet waits for 30 s.
const PLACE_PATIENCE: Duration = Duration::from_secs(20);
/// The end of one takes a scrub.
const END_PATIENCE: Duration = Duration::from_secs(120);
const PATIENCE: Duration = Duration::from_secs(5);

/// A pod's lease, as the agent has it.
#[derive(Clone, Debug)]
pub(crate) struct PlacedLease {
    pub(crate) id: String,
    pub(crate) holder: PodHolder,
    /// The pod's name, as it was when the lease was made.
    pub(crate) name: Option<PodName>,
    pub(crate) slot: SlotId,
    pub(crate) folder: SlotFolder,
    /// It serves, or will as soon as whoever makes it is done; any other is on its way to its end.
    pub(crate) lasts: bool,
}

/// A pod's lease of whole GPUs, as the agent has it.
#[derive(Clone, Debug)]
pub(crate) struct WholeLease {
    pub(crate) id: String,
    pub(crate) holder: PodHolder,
    pub(crate) name: Option<PodName>,
    pub(crate) gpus: Vec<GpuUuid>,
    pub(crate) active: bool,
}

/// The node's agent. Every question is a connection of its own: it says most plainly what is
/// wrong with an agent that is not there.
#[derive(Clone, Debug)]
pub(crate) struct AgentLink {
    socket: PathBuf,
}

fn failed(status: Status) -> LinkError {
    let error = AgentError::from(status);
    match error.kind {
        ErrorKind::Unavailable => LinkError::Agent(error.message),
        ErrorKind::InvalidRequest
        | ErrorKind::Quota
        | ErrorKind::NoRoom
        | ErrorKind::NotFound
        | ErrorKind::Driver
        | ErrorKind::Internal => LinkError::Refused(error),
    }
}

async fn within<T>(
    limit: Duration,
    asked: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, LinkError> {
    match tokio::time::timeout(limit, asked).await {
        Ok(answer) => answer.map(tonic::Response::into_inner).map_err(failed),
        Err(_) => Err(LinkError::Agent(format!("nothing within {limit:?}"))),
    }
}

/// The pod of a listing's text, `namespace/name/container`.
fn pod_of(program: &str) -> Option<PodName> {
    let mut parts = program.split('/');
    let (namespace, name) = (parts.next()?.to_owned(), parts.next()?.to_owned());
    parts.next()?;
    Some(PodName { namespace, name })
}

fn read(lease: proto::PlacedLease) -> Option<PlacedLease> {
    Some(PlacedLease {
        holder: PodHolder::parse(&lease.holder.parse().ok()?)?,
        name: pod_of(&lease.program),
        slot: lease.slot.parse().ok()?,
        folder: lease.folder.parse().ok()?,
        lasts: matches!(lease.state.as_str(), "reserved" | "active"),
        id: lease.id,
    })
}

/// Behind the holder's name, so that a container may have several kinds of lease.
fn suffix(exposure: Exposure) -> String {
    format!("/{exposure}")
}

fn read_whole(lease: proto::PlacedLease, exposure: Exposure) -> Option<WholeLease> {
    if lease.exposure != exposure.as_str() {
        return None;
    }
    let holder = lease.holder.strip_suffix(&suffix(exposure))?;
    Some(WholeLease {
        holder: PodHolder::parse(&holder.parse().ok()?)?,
        name: pod_of(&lease.program),
        gpus: lease.gpus.iter().filter_map(|gpu| gpu.gpu_uuid.parse().ok()).collect(),
        active: lease.state == "active",
        id: lease.id,
    })
}

/// How what appears in a slot is handed over.
fn in_slot(claim: &Claim) -> Exposure {
    match claim.placement.is_mig() {
        true => Exposure::Mig,
        false => Exposure::Mediated,
    }
}

fn placed_gpus(claim: &Claim, nodes: &BTreeMap<GpuUuid, String>) -> Vec<PlacedGpu> {
    let gpu = |grant: &gpuzone_core::Grant| PlacedGpu {
        node: nodes.get(&grant.gpu).cloned().unwrap_or_default(),
        gpu_uuid: grant.gpu.to_string(),
        memory_bytes: grant.memory.get(),
        share_percent: grant.share.percent(),
    };
    claim.placement.grants().iter().map(gpu).collect()
}

fn quotas_of(claim: &Claim) -> Vec<proto::ClusterQuota> {
    let limits = |limits: &Limits| {
        let Limits { memory, gpus, share, groups } = *limits;
        let memory_bytes = memory.map(MemoryBytes::get);
        Some(proto::Limits { memory_bytes, gpus, share_percent: share, groups })
    };
    let named = |name: String, of: &Limits| proto::NamedLimits { name, limits: limits(of) };
    let quota = |quota: &ClusterQuota| proto::ClusterQuota {
        name: quota.name.clone(),
        limits: limits(&quota.limits),
        per_group: limits(&quota.per_group),
        models: quota.models.iter().map(|(model, of)| named(model.clone(), of)).collect(),
        exposures: quota.exposures.iter().map(|(how, of)| named(how.to_string(), of)).collect(),
    };
    claim.quotas.iter().map(quota).collect()
}

impl AgentLink {
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    pub(super) async fn channel(&self) -> Result<Channel, LinkError> {
        match tokio::time::timeout(PATIENCE, connect_channel(&self.socket)).await {
            Ok(connected) => connected.map_err(|error| LinkError::Agent(error.to_string())),
            Err(_) => Err(LinkError::Agent(format!("nothing within {PATIENCE:?}"))),
        }
    }

    /// The lease of a claim, active when this answers.
    pub(crate) async fn place(
        &self,
        claim: &Claim,
        pod: &PodName,
        slot: SlotId,
        folder: SlotFolder,
    ) -> Result<(), LinkError> {
        let holder = PodHolder { pod: claim.pod.clone(), container: claim.container.clone() };
        let asked = proto::PlaceRequest {
            holder: holder.to_string(),
            tenant: claim.tenant.to_string(),
            gpus: placed_gpus(claim, &BTreeMap::new()),
            slot: slot.to_string(),
            folder: folder.to_string(),
            program: format!("{pod}/{}", claim.container),
            exposure: in_slot(claim).to_string(),
            quotas: quotas_of(claim),
            group: claim.pod.to_string(),
        };
        let mut client = PlacementsClient::new(self.channel().await?);
        within(PLACE_PATIENCE, client.place(asked)).await.map(drop)
    }

    /// The lease of a claim on whole GPUs or vGPUs, which the container has itself: it opens these
    /// nodes.
    pub(crate) async fn place_whole(
        &self,
        exposure: Exposure,
        claim: &Claim,
        nodes: &BTreeMap<GpuUuid, String>,
        pod: &PodName,
    ) -> Result<(), LinkError> {
        let holder = PodHolder { pod: claim.pod.clone(), container: claim.container.clone() };
        let asked = proto::PlaceRequest {
            holder: format!("{holder}{}", suffix(exposure)),
            tenant: claim.tenant.to_string(),
            gpus: placed_gpus(claim, nodes),
            slot: String::new(),
            folder: String::new(),
            program: format!("{pod}/{}", claim.container),
            exposure: exposure.to_string(),
            quotas: quotas_of(claim),
            group: claim.pod.to_string(),
        };
        let mut client = PlacementsClient::new(self.channel().await?);
        within(PLACE_PATIENCE, client.place(asked)).await.map(drop)
    }

    /// All leases of pods on whole GPUs, or on vGPUs.
    pub(crate) async fn whole_leases(
        &self,
        exposure: Exposure,
    ) -> Result<Vec<WholeLease>, LinkError> {
        let mut client = PlacementsClient::new(self.channel().await?);
        let listed = within(PATIENCE, client.list(proto::ListRequest {})).await?;
        Ok(listed.leases.into_iter().filter_map(|lease| read_whole(lease, exposure)).collect())
    }

    /// All leases of pods that appear in slots.
    pub(crate) async fn leases(&self) -> Result<Vec<PlacedLease>, LinkError> {
        let mut client = PlacementsClient::new(self.channel().await?);
        let listed = within(PATIENCE, client.list(proto::ListRequest {})).await?;
        Ok(listed.leases.into_iter().filter_map(read).collect())
    }

    /// Says that `held_by` has a device without a lease.
    pub(crate) async fn condemn(
        &self,
        gpu: GpuUuid,
        held_by: String,
        reason: String,
    ) -> Result<(), LinkError> {
        let mut client = PlacementsClient::new(self.channel().await?);
        let condemned = proto::CondemnRequest { gpu_uuid: gpu.to_string(), held_by, reason };
        within(PATIENCE, client.condemn(condemned)).await.map(drop)
    }

    /// Has a device cleared that `had_by` may have had without a lease; answers whether it is, for it
    /// is in quarantine otherwise.
    pub(crate) async fn clear(&self, gpu: GpuUuid, had_by: String) -> Result<bool, LinkError> {
        let mut client = PlacementsClient::new(self.channel().await?);
        let asked = proto::ClearRequest { gpu_uuid: gpu.to_string(), had_by };
        within(END_PATIENCE, client.clear(asked)).await.map(|answer| answer.clear)
    }

    /// Ends a lease; one that is not there any more is no error.
    pub(crate) async fn end(&self, lease: &str, reason: &str) -> Result<(), LinkError> {
        let mut client = PlacementsClient::new(self.channel().await?);
        let end = proto::EndRequest { lease_id: lease.to_owned(), reason: reason.to_owned() };
        match within(END_PATIENCE, client.end(end)).await {
            Err(LinkError::Refused(error)) if error.kind == ErrorKind::NotFound => Ok(()),
            other => other.map(drop),
        }
    }
}

/// Whether leases in slots can be of a GPU.
fn is_mediated(gpu: &Gpu) -> bool {
    gpu.exposure == Exposure::Mediated.as_str()
}

/// The NUMA nodes that mediated GPUs are near to.
pub(crate) fn numa_nodes(gpus: &[Gpu]) -> BTreeSet<u32> {
    gpus.iter().filter(|gpu| is_mediated(gpu)).filter_map(|gpu| gpu.numa_node).collect()
}
