//! The gRPC service: messages in, [`Leases`] asked, messages out.

mod cut;
mod devices;
mod gpus;
mod passed;

use std::collections::HashMap;
use std::sync::Arc;

use gpuzone_api::agent::v1 as proto;
use gpuzone_api::agent::v1::agent_server::Agent;
use gpuzone_api::{AgentError, ErrorKind, SLOT_VARIABLE};
use gpuzone_zone::ProcessId;
use tokio::sync::watch;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Response, Status};

use crate::config::{WorkloadVm, ZonePolicy};
use crate::convert;
use crate::errors::internal;
use crate::gpus::Gpus;
use crate::leases::{Leases, PROGRAM_ENDED, asker};
pub(crate) use gpus::Watchers;

/// The agent, as its clients see it.
pub(crate) struct Service {
    pub(crate) leases: Arc<Leases>,
    pub(crate) gpus: Arc<Gpus>,
    pub(crate) watchers: Watchers,
    pub(crate) about: proto::DescribeReply,
    /// What programs' zones are told.
    pub(crate) zone: ZonePolicy,
    /// Says that the agent is to end after this answer.
    pub(crate) end: watch::Sender<bool>,
}

type Answer<T> = Result<Response<T>, Status>;

/// The process at the other end, from the kernel.
fn caller<T>(request: &Request<T>) -> Result<ProcessId, AgentError> {
    let info = request.extensions().get::<UdsConnectInfo>();
    let pid = info.and_then(|info| info.peer_cred?.pid());
    let unknown = |message: &str| AgentError {
        kind: ErrorKind::InvalidRequest,
        message: format!("the kernel does not say which process asks: {message}"),
    };
    // A caller in another PID namespace is shown as process 0.
    let pid = pid.and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid != 0);
    let pid = pid.ok_or_else(|| unknown("it has no number in the agent's PID namespace"))?;
    let found = ProcessId::of(pid).map_err(|error| unknown(&error.to_string()))?;
    found.ok_or_else(|| unknown("it has ended"))
}

#[tonic::async_trait]
impl Agent for Service {
    async fn describe(&self, _: Request<proto::DescribeRequest>) -> Answer<proto::DescribeReply> {
        Ok(Response::new(self.about.clone()))
    }

    async fn list_gpus(&self, _: Request<proto::ListGpusRequest>) -> Answer<proto::ListGpusReply> {
        let used = Arc::clone(&self.gpus).used().await;
        let gpus = gpus::listed(&self.leases, &self.gpus, &used).await?;
        Ok(Response::new(proto::ListGpusReply { gpus }))
    }

    type WatchGpusStream = gpus::Watching;

    async fn watch_gpus(
        &self,
        _: Request<proto::WatchGpusRequest>,
    ) -> Answer<Self::WatchGpusStream> {
        Ok(Response::new(self.watchers.watch()?))
    }

    async fn list_devices(
        &self,
        _: Request<proto::ListDevicesRequest>,
    ) -> Answer<proto::ListDevicesReply> {
        Ok(Response::new(devices::listed(Arc::clone(&self.gpus)).await?))
    }

    async fn create_lease(
        &self,
        request: Request<proto::CreateLeaseRequest>,
    ) -> Answer<proto::CreateLeaseReply> {
        let holder = caller(&request)?;
        let zone = convert::zone_name(request.get_ref())?;
        let (request, program) = convert::request(request.into_inner())?;
        let exposure = request.exposure;
        passed::check(&self.gpus, &request)?;
        let held = self.leases.create(request, holder, program, zone).await?;
        let functions = match exposure.has_worker() {
            true => Vec::new(),
            false => passed::functions(&self.leases, &self.gpus, &held).await?,
        };
        let directories = &self.leases.directories;
        let slot = directories.slots_dir().join(held.lease.id.to_string());
        let environment = HashMap::from([(SLOT_VARIABLE.to_owned(), slot.display().to_string())]);
        Ok(Response::new(proto::CreateLeaseReply {
            lease: Some(convert::lease(held, None, &self.leases.inventory)),
            environment,
            library_dir: directories.shim_dir().display().to_string(),
            zone_limits: Some(convert::zone_limits(&self.zone.limits.limits())),
            zone_users: self.zone.users.ranges().map(convert::zone_users),
            microvm: self.zone.workload_microvm.as_ref().map(WorkloadVm::message),
            functions,
        }))
    }

    async fn list_leases(
        &self,
        _: Request<proto::ListLeasesRequest>,
    ) -> Answer<proto::ListLeasesReply> {
        let leases = self.leases.list().await?;
        let inventory = &self.leases.inventory;
        let lease = |(held, status)| convert::lease(held, status, inventory);
        let leases = leases.into_iter().map(lease).collect();
        Ok(Response::new(proto::ListLeasesReply { leases }))
    }

    async fn end_lease(
        &self,
        request: Request<proto::EndLeaseRequest>,
    ) -> Answer<proto::EndLeaseReply> {
        // An end is nobody's to refuse because its caller is hard to see.
        let caller = caller(&request).ok();
        let id = convert::lease_id(&request.into_inner().lease_id)?;
        let held = self.leases.book.with(move |book| book.lease(id)).await;
        let held = held.map_err(AgentError::from)?;
        let by_holder = held.and_then(|held| held.holder.process());
        let by_holder = by_holder.is_some() && by_holder == caller;
        let reason = if by_holder { PROGRAM_ENDED } else { "it was stopped" };
        let leases = Arc::clone(&self.leases);
        // On a task of its own, for a caller that goes away must not stop it half way.
        let ended = tokio::spawn(async move { leases.end(id, reason).await });
        let ended = ended.await.map_err(|error| internal(error.to_string()))??;
        let lease = convert::lease(ended, None, &self.leases.inventory);
        Ok(Response::new(proto::EndLeaseReply { lease: Some(lease) }))
    }

    async fn clear_quarantine(
        &self,
        request: Request<proto::ClearQuarantineRequest>,
    ) -> Answer<proto::ClearQuarantineReply> {
        let actor = asker(caller(&request)?);
        let inventory = &self.leases.inventory;
        let uuid = convert::gpu_of(&request.into_inner().gpu, inventory)?;
        let leases = Arc::clone(&self.leases);
        // On a task of its own, for a caller that goes away must not stop it half way.
        let cleared = tokio::spawn(async move { leases.clear_quarantine(uuid, actor).await });
        let report = cleared.await.map_err(|error| internal(error.to_string()))??;
        let used = Arc::clone(&self.gpus).used().await;
        let listed = gpus::listed(&self.leases, &self.gpus, &used).await?;
        let whole = inventory.unit(uuid).map(|unit| unit.gpu.uuid.to_string());
        let gpu = listed.into_iter().find(|gpu| whole.as_ref() == Some(&gpu.uuid));
        Ok(Response::new(proto::ClearQuarantineReply {
            gpu,
            overwritten_bytes: report.overwritten.get(),
            compared_bytes: report.compared.get(),
            method: report.method,
        }))
    }

    async fn flush_usage(
        &self,
        _: Request<proto::FlushUsageRequest>,
    ) -> Answer<proto::FlushUsageReply> {
        let leases = self.leases.flush().await?;
        Ok(Response::new(proto::FlushUsageReply { leases }))
    }

    async fn shutdown(&self, _: Request<proto::ShutdownRequest>) -> Answer<proto::ShutdownReply> {
        let leases = Arc::clone(&self.leases);
        let ended = tokio::spawn(async move { leases.end_all("the agent was shut down").await });
        let ended = ended.await.map_err(|error| internal(error.to_string()))??;
        self.end.send_replace(true);
        Ok(Response::new(proto::ShutdownReply { ended_leases: ended }))
    }
}
