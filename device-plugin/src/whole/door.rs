//! The service of whole GPUs, or of one type of vGPUs, as the kubelet calls it.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use gpuzone_api::kubelet::v1beta1::device_plugin_server::DevicePlugin;
use gpuzone_api::kubelet::v1beta1::{
    AllocateRequest, AllocateResponse, ContainerAllocateResponse,
    ContainerPreferredAllocationResponse, DevicePluginOptions, Empty, ListAndWatchResponse,
    PreStartContainerRequest, PreStartContainerResponse, PreferredAllocationRequest,
    PreferredAllocationResponse,
};
use gpuzone_api::kubernetes::ResourceName;
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};

use super::{DeviceId, WholeGpu, WholeKeeper, devices};
use crate::answer::{self, Handover, VfioDevice, VfioInterface};
use crate::choose;
use crate::door::options;
use crate::kubelet::Served;

/// The service.
#[derive(Clone)]
pub(crate) struct WholeDoor {
    pub(crate) keeper: Arc<WholeKeeper>,
    pub(crate) interface: VfioInterface,
    pub(crate) handover: Handover,
    /// The resource, which is the kind of its CDI devices, too.
    pub(crate) resource: ResourceName,
    /// The type of its vGPUs, if they are those.
    pub(crate) profile: Option<String>,
}

type Answer<T> = Result<Response<T>, Status>;

fn addresses(ids: &[String]) -> Result<BTreeSet<DeviceId>, Status> {
    let read: Result<BTreeSet<DeviceId>, _> = ids.iter().map(|id| id.parse()).collect();
    let read = read.map_err(|error| {
        Status::invalid_argument(format!(
            "the kubelet names a device that this plugin never listed: {error}"
        ))
    })?;
    if read.is_empty() {
        return Err(Status::invalid_argument("the kubelet names no device"));
    }
    Ok(read)
}

impl WholeDoor {
    /// What a container gets. A device that cannot be opened now gives nothing, and
    /// PreStartContainer says why: an error here would kill the pod for good.
    fn answer(&self, asked: &BTreeSet<DeviceId>, gpus: &[WholeGpu]) -> ContainerAllocateResponse {
        let ready: Vec<VfioDevice> = gpus
            .iter()
            .filter(|gpu| asked.contains(&gpu.id))
            .filter_map(|gpu| gpu.ready.clone().ok())
            .collect();
        answer::vfio(self.resource.as_str(), self.interface, self.handover, &ready)
    }
}

impl Served for WholeDoor {
    fn registering(&self) {}
}

#[tonic::async_trait]
impl DevicePlugin for WholeDoor {
    type ListAndWatchStream =
        Pin<Box<dyn Stream<Item = Result<ListAndWatchResponse, Status>> + Send>>;

    async fn get_device_plugin_options(&self, _: Request<Empty>) -> Answer<DevicePluginOptions> {
        Ok(Response::new(options()))
    }

    async fn list_and_watch(&self, _: Request<Empty>) -> Answer<Self::ListAndWatchStream> {
        let listings = WatchStream::new(self.keeper.gpus.clone());
        let profile = self.profile.clone();
        let messages = listings.map(move |gpus| {
            Ok(ListAndWatchResponse { devices: devices(&gpus, profile.as_deref()) })
        });
        Ok(Response::new(Box::pin(messages)))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<PreferredAllocationRequest>,
    ) -> Answer<PreferredAllocationResponse> {
        let gpus = self.keeper.gpus.borrow().clone();
        let place = |id: &str| gpus.iter().position(|gpu| gpu.id.to_string() == id);
        let numa = |id: &str| gpus.get(place(id)?)?.numa_node;
        let rank = |id: &str| place(id).and_then(|at| u64::try_from(at).ok()).unwrap_or(u64::MAX);
        let chosen = request.into_inner().container_requests.into_iter().map(|asked| {
            let ids = choose::choose(&asked, numa, rank);
            ids.map(|ids| ContainerPreferredAllocationResponse { device_i_ds: ids })
        });
        let container_responses = chosen
            .collect::<Result<_, _>>()
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(Response::new(PreferredAllocationResponse { container_responses }))
    }

    async fn allocate(&self, request: Request<AllocateRequest>) -> Answer<AllocateResponse> {
        let gpus = self.keeper.gpus.borrow().clone();
        let asked = request.into_inner().container_requests;
        let asked = asked.iter().map(|asked| addresses(&asked.devices_ids));
        let asked = asked.collect::<Result<Vec<_>, Status>>()?;
        let container_responses = asked.iter().map(|asked| self.answer(asked, &gpus)).collect();
        Ok(Response::new(AllocateResponse { container_responses }))
    }

    async fn pre_start_container(
        &self,
        request: Request<PreStartContainerRequest>,
    ) -> Answer<PreStartContainerResponse> {
        let devices = addresses(&request.into_inner().devices_ids)?;
        let keeper = Arc::clone(&self.keeper);
        // On a task of its own: a kubelet that goes away must not stop it half way.
        let prepared = tokio::spawn(async move { keeper.prepare(&devices).await }).await;
        let failed = |text: String| {
            let text = format!("gpu-zone: {text}");
            tracing::warn!("{text}");
            Status::failed_precondition(text)
        };
        match prepared {
            Ok(Ok(())) => Ok(Response::new(PreStartContainerResponse {})),
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(error) => Err(failed(format!("the device plugin failed: {error}"))),
        }
    }
}
