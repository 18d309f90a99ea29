//! What the kubelet serves: registration, and pod resources.

use std::sync::{Arc, Weak};

use gpuzone_api::kubelet::podresources::v1::pod_resources_lister_server::PodResourcesLister;
use gpuzone_api::kubelet::podresources::v1::{
    ContainerDevices, ContainerResources, ListPodResourcesRequest, ListPodResourcesResponse,
    PodResources,
};
use gpuzone_api::kubelet::v1beta1::registration_server::Registration;
use gpuzone_api::kubelet::v1beta1::{Empty, RegisterRequest};
use tonic::{Request, Response, Status};

use super::kubelet::Shared;
use super::{ContainerKind, Pod};

/// The registration service.
pub(super) struct Registrar(pub(super) Weak<Shared>);

#[tonic::async_trait]
impl Registration for Registrar {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let request = request.into_inner();
        let shared = self.0.upgrade().ok_or_else(|| Status::unavailable("the kubelet ends"))?;
        if request.version != shared.version {
            let text = format!("unsupported device plugin API version {}", request.version);
            return Err(Status::invalid_argument(text));
        }
        Shared::take_plugin(&shared, request);
        Ok(Response::new(Empty {}))
    }
}

/// The pod resources service.
pub(super) struct Lister(pub(super) Weak<Shared>);

#[tonic::async_trait]
impl PodResourcesLister for Lister {
    async fn list(
        &self,
        _: Request<ListPodResourcesRequest>,
    ) -> Result<Response<ListPodResourcesResponse>, Status> {
        let shared = self.0.upgrade().ok_or_else(|| Status::unavailable("the kubelet ends"))?;
        Ok(Response::new(list(&shared)))
    }
}

fn list(shared: &Arc<Shared>) -> ListPodResourcesResponse {
    let state = shared.lock();
    let container = |pod: &Pod, name: &str| {
        let given = state.checkpoint.all_of(&pod.uid, name);
        let devices = given.into_iter().flatten().map(|(resource, given)| ContainerDevices {
            resource_name: resource.clone(),
            device_ids: given.devices.iter().cloned().collect(),
        });
        ContainerResources { name: name.to_owned(), devices: devices.collect() }
    };
    let pods = state.active.values().map(|pod| {
        // Plain init containers are not listed.
        let listed = pod.containers.iter().filter(|c| c.kind != ContainerKind::Init);
        PodResources {
            name: pod.name.clone(),
            namespace: pod.namespace.clone(),
            containers: listed.map(|c| container(pod, &c.name)).collect(),
        }
    });
    ListPodResourcesResponse { pod_resources: pods.collect() }
}
