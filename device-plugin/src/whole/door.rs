//! The service of whole GPUs, or of one type of vGPUs, as the kubelet calls it.

use std::collections::BTreeSet;
use std::path::PathBuf;
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
use gpuzone_core::GpuUuid;
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};

use super::{DeviceId, WholeGpu, WholeKeeper, devices};
use crate::answer::{self, Handover, VfioDevice, VfioInterface};
use crate::cdi;
use crate::choose;
use crate::door::options;
use crate::kubelet::{Heard, Served};
use crate::links::sentence;

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
    /// Where runtimes read what CDI devices there are.
    pub(crate) cdi_dir: Option<PathBuf>,
    pub(crate) heard: Heard,
}

type Answer<T> = Result<Response<T>, Status>;

fn addresses(ids: &[String]) -> Result<BTreeSet<DeviceId>, Status> {
    let read: Result<BTreeSet<DeviceId>, _> = ids.iter().map(|id| id.parse()).collect();
    let read = read.map_err(|error| {
        Status::invalid_argument(format!(
            "the kubelet names a device that this plugin never listed: {error}; restart the kubelet if that goes on"
        ))
    })?;
    if read.is_empty() {
        return Err(Status::invalid_argument(
            "the kubelet names no device; restart it if that goes on",
        ));
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

    /// Notes what is handed out, before anybody is told of it. What another pod may have left
    /// something on is no CDI device any more when this returns.
    ///
    /// # Errors
    /// When it is one yet: a VM could be made with it.
    fn hand_out(&self, asked: &BTreeSet<DeviceId>, gpus: &[WholeGpu]) -> Result<(), Status> {
        let named = |gpu: &&WholeGpu| asked.contains(&gpu.id);
        let handed: Vec<GpuUuid> = gpus.iter().filter(named).map(|gpu| gpu.gpu).collect();
        let blocked = self.keeper.handed.hand_out(&handed);
        self.keeper.stirred.notify_one();
        if let Some(folder) = self.cdi_dir.as_ref().filter(|_| !blocked.is_empty()) {
            let _writing = self.keeper.handed.writing();
            let names = gpus.iter().filter(|gpu| blocked.contains(&gpu.gpu));
            let names: BTreeSet<&str> =
                names.filter_map(|gpu| Some(gpu.ready.as_ref().ok()?.name.as_str())).collect();
            cdi::without(folder, self.resource.as_str(), &names).map_err(|error| {
                let error = sentence(&error);
                tracing::error!(
                    error,
                    "a VM would be made with what another pod left something on"
                );
                Status::failed_precondition(format!("gpu-zone: {error}"))
            })?;
        }
        Ok(())
    }
}

impl Served for WholeDoor {
    fn heard(&self) -> &Heard {
        &self.heard
    }

    fn registering(&self) {
        let gpus = self.keeper.gpus.borrow().clone();
        let own = gpus.iter().filter(|gpu| gpu.profile == self.profile);
        self.keeper.handed.registering(&own.map(|gpu| gpu.gpu).collect::<Vec<_>>());
    }
}

#[tonic::async_trait]
impl DevicePlugin for WholeDoor {
    type ListAndWatchStream =
        Pin<Box<dyn Stream<Item = Result<ListAndWatchResponse, Status>> + Send>>;

    async fn get_device_plugin_options(&self, _: Request<Empty>) -> Answer<DevicePluginOptions> {
        Ok(Response::new(options()))
    }

    async fn list_and_watch(&self, _: Request<Empty>) -> Answer<Self::ListAndWatchStream> {
        self.heard.asked();
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
        let listed = devices(&gpus, self.profile.as_deref());
        let chosen = request.into_inner().container_requests.into_iter().map(|asked| {
            let ids = choose::choose_listed(&asked, &listed);
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
        asked.iter().try_for_each(|asked| self.hand_out(asked, &gpus))?;
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
