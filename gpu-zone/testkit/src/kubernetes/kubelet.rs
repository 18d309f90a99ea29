use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gpuzone_api::kubelet::podresources::v1::pod_resources_lister_server::PodResourcesListerServer;
use gpuzone_api::kubelet::v1beta1::device_plugin_client::DevicePluginClient;
use gpuzone_api::kubelet::v1beta1::registration_server::RegistrationServer;
use gpuzone_api::kubelet::v1beta1::{
    AllocateRequest, ContainerAllocateRequest, ContainerPreferredAllocationRequest, Empty,
    PreStartContainerRequest, PreferredAllocationRequest, RegisterRequest,
};
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Channel, Endpoint, Server, Uri};

use super::container::Container;
use super::devices::{Checkpoint, Given};
use super::services::{Lister, Registrar};
use super::{ContainerSpec, Pod};
use crate::HarnessError;

const CHECKPOINT: &str = "kubelet_internal_checkpoint";

/// A kubelet's device manager over one folder. Dropping it is a crash: its sockets stay.
#[derive(Debug)]
pub struct Kubelet {
    folder: PathBuf,
    shared: Arc<Shared>,
    servers: Vec<JoinHandle<()>>,
}

/// Why a pod was not admitted. The pod is failed for good.
#[derive(Clone, Debug, thiserror::Error)]
#[error("UnexpectedAdmissionError: {0}")]
pub struct AdmitError(pub String);

/// Why a container does not start. It is tried again.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct StartError(pub String);

#[derive(Debug)]
struct Plugin {
    client: DevicePluginClient<Channel>,
    prefers: bool,
    pre_start: bool,
    healthy: BTreeSet<String>,
    registered: u64,
}

#[derive(Debug)]
pub(super) struct State {
    /// What a container's plain number of devices is of.
    resource: String,
    pub(super) checkpoint: Checkpoint,
    pub(super) active: BTreeMap<String, Pod>,
    /// By resource.
    plugins: BTreeMap<String, Plugin>,
    registrations: u64,
}

impl State {
    /// What a container asks for: how many of which resource.
    fn asked(&self, container: &ContainerSpec) -> Vec<(String, usize)> {
        let plain = (self.resource.clone(), container.devices);
        let others = container.others.iter().map(|(resource, count)| (resource.clone(), *count));
        std::iter::once(plain).chain(others).filter(|(_, count)| *count > 0).collect()
    }
}

#[derive(Debug)]
pub(super) struct Shared {
    folder: PathBuf,
    pub(super) version: String,
    state: Mutex<State>,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a plugin that registered: a second one of the same resource takes its place.
    pub(super) fn take_plugin(shared: &Arc<Self>, request: RegisterRequest) {
        let client = DevicePluginClient::new(channel(&shared.folder.join(&request.endpoint)));
        let options = request.options.unwrap_or_default();
        let resource = request.resource_name;
        let number = {
            let mut state = shared.lock();
            state.registrations += 1;
            state.registrations
        };
        let (weak, mut listing) = (Arc::downgrade(shared), client.clone());
        let plugin = Plugin {
            client,
            prefers: options.get_preferred_allocation_available,
            pre_start: options.pre_start_required,
            healthy: BTreeSet::new(),
            registered: number,
        };
        shared.lock().plugins.insert(resource.clone(), plugin);
        tokio::spawn(async move {
            if let Ok(answer) = listing.list_and_watch(Empty {}).await {
                let mut messages = answer.into_inner();
                while let Ok(Some(message)) = messages.message().await {
                    let Some(shared) = weak.upgrade() else { return };
                    let healthy =
                        message.devices.iter().filter(|device| device.health == "Healthy");
                    let healthy = healthy.map(|device| device.id.clone()).collect();
                    let mut state = shared.lock();
                    let plugin = state.plugins.get_mut(&resource);
                    if let Some(plugin) = plugin.filter(|plugin| plugin.registered == number) {
                        plugin.healthy = healthy;
                    }
                }
            }
            // A plugin whose stream ends is stopped: nothing of it is to be had, nor called.
            if let Some(shared) = weak.upgrade() {
                let mut state = shared.lock();
                if state.plugins.get(&resource).is_some_and(|plugin| plugin.registered == number) {
                    state.plugins.remove(&resource);
                }
            }
        });
    }
}

fn channel(socket: &Path) -> Channel {
    let path = socket.to_owned();
    Endpoint::from_static("http://unix").connect_with_connector_lazy(tower::service_fn(
        move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        },
    ))
}

fn listener(path: &Path) -> Result<UnixListenerStream, HarnessError> {
    let _ = std::fs::remove_file(path);
    let bound = UnixListener::bind(path)
        .map_err(HarnessError::io(format!("cannot bind {}", path.display())))?;
    Ok(UnixListenerStream::new(bound))
}

impl Kubelet {
    /// Starts a kubelet over `folder`, as after a boot or a restart of its own. `active` are the
    /// pods that it runs. It speaks this version of the plugins' API. It takes any resource's plugin;
    /// `resource` is the one that is meant where none is named.
    ///
    /// # Errors
    /// When its sockets cannot be made.
    pub fn start(
        folder: &Path,
        resource: &str,
        active: impl IntoIterator<Item = Pod>,
        version: &str,
    ) -> Result<Self, HarnessError> {
        let plugins = folder.join("device-plugins");
        let failed = || HarnessError::io(format!("cannot use {}", plugins.display()));
        std::fs::create_dir_all(&plugins).map_err(failed())?;
        std::fs::create_dir_all(folder.join("pod-resources")).map_err(failed())?;
        for entry in std::fs::read_dir(&plugins).map_err(failed())?.flatten() {
            if entry.file_name() != CHECKPOINT {
                std::fs::remove_file(entry.path()).map_err(failed())?;
            }
        }
        let checkpoint = std::fs::read(plugins.join(CHECKPOINT)).ok();
        let checkpoint = checkpoint.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let state = State {
            resource: resource.to_owned(),
            checkpoint: checkpoint.unwrap_or_default(),
            active: active.into_iter().map(|pod| (pod.uid.clone(), pod)).collect(),
            plugins: BTreeMap::new(),
            registrations: 0,
        };
        let shared = Shared {
            folder: plugins.clone(),
            version: version.to_owned(),
            state: Mutex::new(state),
        };
        let shared = Arc::new(shared);
        let registrar = RegistrationServer::new(Registrar(Arc::downgrade(&shared)));
        let lister = PodResourcesListerServer::new(Lister(Arc::downgrade(&shared)));
        let registration = Server::builder()
            .add_service(registrar)
            .serve_with_incoming(listener(&plugins.join("kubelet.sock"))?);
        let listing = Server::builder()
            .add_service(lister)
            .serve_with_incoming(listener(&folder.join("pod-resources/kubelet.sock"))?);
        let servers = vec![
            tokio::spawn(async move { drop(registration.await) }),
            tokio::spawn(async move { drop(listing.await) }),
        ];
        Ok(Self { folder: plugins, shared, servers })
    }

    /// Its folder of plugins.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// How many devices there are that are healthy now.
    pub fn allocatable(&self) -> usize {
        let resource = self.shared.lock().resource.clone();
        self.allocatable_of(&resource)
    }

    /// How many there are of any resource.
    pub fn allocatable_of(&self, resource: &str) -> usize {
        self.shared.lock().plugins.get(resource).map_or(0, |plugin| plugin.healthy.len())
    }

    /// The pods that it runs.
    pub fn active(&self) -> Vec<Pod> {
        self.shared.lock().active.values().cloned().collect()
    }

    /// What a container was given.
    pub fn devices(&self, pod: &Pod, container: &str) -> BTreeSet<String> {
        let resource = self.shared.lock().resource.clone();
        self.devices_of(pod, container, &resource)
    }

    /// What it was given of any resource.
    pub fn devices_of(&self, pod: &Pod, container: &str, resource: &str) -> BTreeSet<String> {
        let state = self.shared.lock();
        let given = state.checkpoint.of(&pod.uid, container, resource);
        given.map(|given| given.devices.clone()).unwrap_or_default()
    }

    /// Makes a pod's container hold these devices, whoever else holds them: a fault of the
    /// kubelet's, for tests.
    pub fn forge(&self, pod: &Pod, container: &str, devices: &[&str]) {
        let mut state = self.shared.lock();
        state.active.insert(pod.uid.clone(), pod.clone());
        let given = Given {
            devices: devices.iter().map(|id| (*id).to_owned()).collect(),
            mounts: BTreeMap::new(),
            environment: BTreeMap::new(),
            nodes: BTreeSet::new(),
        };
        let resource = state.resource.clone();
        state.checkpoint.give(&pod.uid, container, &resource, given);
    }

    /// Admits a pod: each container is given its devices, in order.
    ///
    /// # Errors
    /// When there are not enough, or the plugin refuses: the pod is over then.
    pub async fn admit(&self, pod: &Pod) -> Result<(), AdmitError> {
        {
            let mut state = self.shared.lock();
            let State { checkpoint, active, .. } = &mut *state;
            checkpoint.keep(active);
            active.insert(pod.uid.clone(), pod.clone());
        }
        for container in &pod.containers {
            let asked = self.shared.lock().asked(container);
            for (resource, count) in asked {
                let given = {
                    let state = self.shared.lock();
                    state.checkpoint.of(&pod.uid, &container.name, &resource).is_some()
                };
                if given {
                    continue;
                }
                if let Err(error) = self.allocate(pod, container, &resource, count).await {
                    self.remove(pod);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    async fn allocate(
        &self,
        pod: &Pod,
        container: &ContainerSpec,
        resource: &str,
        count: usize,
    ) -> Result<(), AdmitError> {
        let (mut client, prefers, mut chosen, free) = {
            let state = self.shared.lock();
            let gone = || AdmitError("no healthy devices present; cannot allocate".into());
            let plugin = state.plugins.get(resource).ok_or_else(gone)?;
            let of = (resource, count);
            let (taken, free) = state.checkpoint.offers(pod, container, of, &plugin.healthy);
            (plugin.client.clone(), plugin.prefers, taken, free)
        };
        let missing = count - chosen.len();
        if free.len() < missing {
            let available = free.len();
            return Err(AdmitError(format!(
                "requested number of devices unavailable. Requested: {missing}, Available: {available}"
            )));
        }
        if missing > 0 && prefers {
            let asked = ContainerPreferredAllocationRequest {
                available_device_i_ds: free.iter().cloned().collect(),
                must_include_device_i_ds: Vec::new(),
                allocation_size: i32::try_from(missing).unwrap_or(i32::MAX),
            };
            let asked = PreferredAllocationRequest { container_requests: vec![asked] };
            // A hint: no answer is no harm.
            if let Ok(answer) = client.get_preferred_allocation(asked).await {
                let answers = answer.into_inner().container_responses.into_iter();
                let hinted = answers.flat_map(|answer| answer.device_i_ds);
                chosen.extend(hinted.filter(|id| free.contains(id)).take(missing));
            }
        }
        let rest = free.into_iter().filter(|id| !chosen.contains(id)).collect::<Vec<_>>();
        let lacking = count - chosen.len();
        chosen.extend(rest.into_iter().take(lacking));
        let asked = ContainerAllocateRequest { devices_ids: chosen.iter().cloned().collect() };
        let asked = AllocateRequest { container_requests: vec![asked] };
        let answered = client.allocate(asked).await;
        let answer = answered.map_err(|status| AdmitError(status.message().to_owned()))?;
        let answer = answer.into_inner().container_responses.into_iter().next();
        let answer = answer.ok_or_else(|| AdmitError("the plugin answers nothing".into()))?;
        let mounts = answer.mounts.into_iter().map(|m| (m.container_path, m.host_path)).collect();
        let environment = answer.envs.into_iter().collect();
        let nodes = answer.devices.into_iter().map(|node| node.host_path);
        let nodes = nodes.chain(answer.cdi_devices.into_iter().map(|cdi| cdi.name)).collect();
        let given = Given { devices: chosen, mounts, environment, nodes };
        let mut state = self.shared.lock();
        state.checkpoint.give(&pod.uid, &container.name, resource, given);
        let bytes = serde_json::to_vec(&state.checkpoint).unwrap_or_default();
        drop(state);
        std::fs::write(self.folder.join(CHECKPOINT), bytes)
            .map_err(|error| AdmitError(format!("failed to write checkpoint file: {error}")))
    }

    /// Starts a container, for the first time or again: PreStartContainer is called for each of its
    /// resources whose plugin is registered now, and skipped if it is not.
    ///
    /// # Errors
    /// When a plugin refuses; the sentence is what `kubectl describe` shows.
    pub async fn start_container(&self, pod: &Pod, name: &str) -> Result<Container, StartError> {
        let given = self.shared.lock().checkpoint.all_of(&pod.uid, name).cloned();
        let given = given.ok_or_else(|| StartError(format!("{name} was not admitted")))?;
        for (resource, given) in &given {
            let plugin = {
                let state = self.shared.lock();
                let plugin = state.plugins.get(resource).filter(|plugin| plugin.pre_start);
                plugin.map(|plugin| plugin.client.clone())
            };
            let Some(mut client) = plugin else { continue };
            let asked =
                PreStartContainerRequest { devices_ids: given.devices.iter().cloned().collect() };
            let answer =
                tokio::time::timeout(Duration::from_secs(30), client.pre_start_container(asked));
            let answer =
                answer.await.map_err(|_| StartError("context deadline exceeded".into()))?;
            answer.map_err(|status| StartError(status.message().to_owned()))?;
        }
        let (mut mounts, mut environment, mut nodes) = Default::default();
        for given in given.into_values() {
            BTreeMap::extend(&mut mounts, given.mounts);
            BTreeMap::extend(&mut environment, given.environment);
            BTreeSet::extend(&mut nodes, given.nodes);
        }
        Container::new(mounts, environment, nodes).map_err(|error| StartError(error.to_string()))
    }

    /// Forgets a pod: it is deleted, or over, and its containers are gone.
    pub fn remove(&self, pod: &Pod) {
        self.shared.lock().active.remove(&pod.uid);
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        for server in &self.servers {
            server.abort();
        }
    }
}
