//! The plugin's service, as the kubelet calls it.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use futures::{Stream, StreamExt};
use gpuzone_api::kubelet::v1beta1::device_plugin_server::DevicePlugin;
use gpuzone_api::kubelet::v1beta1::{
    AllocateRequest, AllocateResponse, ContainerAllocateResponse,
    ContainerPreferredAllocationRequest, ContainerPreferredAllocationResponse, Device,
    DevicePluginOptions, Empty, ListAndWatchResponse, PreStartContainerRequest,
    PreStartContainerResponse, PreferredAllocationRequest, PreferredAllocationResponse,
};
use gpuzone_api::{SlotFolder, SlotId};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};

use crate::answer::{self, Handover, Libraries};
use crate::choose::{self, ChooseError};
use crate::holders::SlotSet;
use crate::keeper::{Keeper, Kind, PrepareError};
use crate::kubelet::{Heard, Served};

/// What is listed now.
pub(crate) type Listing = Arc<Vec<Device>>;

/// The service of slots: mediated ones, or MIG instances of one profile.
#[derive(Clone)]
pub(crate) struct Door {
    pub(crate) keeper: Arc<Keeper>,
    pub(crate) listing: watch::Receiver<Listing>,
    pub(crate) libraries: Arc<Libraries>,
    pub(crate) handover: Handover,
    pub(crate) heard: Heard,
}

type Answer<T> = Result<Response<T>, Status>;

/// What the kubelet is to do before it uses what we list.
pub(crate) fn options() -> DevicePluginOptions {
    DevicePluginOptions { pre_start_required: true, get_preferred_allocation_available: true }
}

/// Of a numbered slot.
fn number(id: &str) -> u64 {
    id.parse::<SlotId>().ok().and_then(SlotId::number).map_or(u64::MAX, u64::from)
}

/// A clock that goes on, as far as clocks do: nanoseconds.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

impl Door {
    fn slots(&self, ids: &[String]) -> Result<SlotSet, Status> {
        SlotSet::parse(ids, |slot| self.keeper.kind.lists(slot)).map_err(|error| {
            Status::invalid_argument(format!("{error}; restart the kubelet if that goes on"))
        })
    }

    fn choose(
        &self,
        asked: &ContainerPreferredAllocationRequest,
    ) -> Result<Vec<String>, ChooseError> {
        match &self.keeper.kind {
            // All alike; the lowest numbers, so that few folders are ever made.
            Kind::Numbered(_) => choose::choose(asked, |_| None, number),
            Kind::Instances(_) => choose::choose_listed(asked, &self.listing.borrow().clone()),
        }
    }

    fn allocate_one(&self, slots: &SlotSet) -> ContainerAllocateResponse {
        let store = &self.keeper.slots;
        let folder = store.hand_out(slots.lead(), now()).unwrap_or_else(|error| {
            // An error here would kill the pod for good. So it fails when it starts: in this
            // folder nothing ever appears, and PreStartContainer says why.
            tracing::error!(slot = %slots.lead(), %error, "no folder can be made");
            SlotFolder::new(u64::MAX)
        });
        answer::mediated(&store.path(slots.lead(), folder), &self.libraries, self.handover)
    }
}

impl Served for Door {
    fn heard(&self) -> &Heard {
        &self.heard
    }

    fn registering(&self) {
        let listed = self.listing.borrow().clone();
        self.keeper.slots.registering(|slot| {
            let name = slot.to_string();
            self.keeper.kind.includes(slot) && listed.iter().any(|device| device.id == name)
        });
    }
}

#[tonic::async_trait]
impl DevicePlugin for Door {
    type ListAndWatchStream =
        Pin<Box<dyn Stream<Item = Result<ListAndWatchResponse, Status>> + Send>>;

    async fn get_device_plugin_options(&self, _: Request<Empty>) -> Answer<DevicePluginOptions> {
        Ok(Response::new(options()))
    }

    async fn list_and_watch(&self, _: Request<Empty>) -> Answer<Self::ListAndWatchStream> {
        self.heard.asked();
        let listings = WatchStream::new(self.listing.clone());
        let messages =
            listings.map(|devices| Ok(ListAndWatchResponse { devices: devices.to_vec() }));
        Ok(Response::new(Box::pin(messages)))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<PreferredAllocationRequest>,
    ) -> Answer<PreferredAllocationResponse> {
        let chosen = request.into_inner().container_requests.into_iter().map(|asked| {
            let ids = self.choose(&asked);
            ids.map(|ids| ContainerPreferredAllocationResponse { device_i_ds: ids })
        });
        let container_responses = chosen
            .collect::<Result<_, _>>()
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(Response::new(PreferredAllocationResponse { container_responses }))
    }

    async fn allocate(&self, request: Request<AllocateRequest>) -> Answer<AllocateResponse> {
        let asked = request.into_inner().container_requests;
        // All are read before anything is handed out.
        let asked = asked.iter().map(|asked| self.slots(&asked.devices_ids));
        let asked = asked.collect::<Result<Vec<SlotSet>, Status>>()?;
        let container_responses = asked.iter().map(|slots| self.allocate_one(slots)).collect();
        Ok(Response::new(AllocateResponse { container_responses }))
    }

    async fn pre_start_container(
        &self,
        request: Request<PreStartContainerRequest>,
    ) -> Answer<PreStartContainerResponse> {
        let slots = self.slots(&request.into_inner().devices_ids)?;
        let keeper = Arc::clone(&self.keeper);
        // On a task of its own: a kubelet that goes away must not stop it half way.
        let prepared = tokio::spawn(async move { keeper.prepare(&slots).await }).await;
        let prepared =
            prepared.unwrap_or_else(|error| Err(PrepareError::Internal(error.to_string())));
        prepared.map_err(|error| {
            let text = format!("gpu-zone: {error}");
            tracing::warn!("{text}");
            Status::failed_precondition(text)
        })?;
        Ok(Response::new(PreStartContainerResponse {}))
    }
}
