//! The plugin, from its start to its end.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use gpuzone_api::SlotId;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, Notify, watch};

use crate::answer::{self, Libraries, VfioDevice, VfioInterface};
use crate::choose::device;
use crate::config::Config;
use crate::door::{Door, Listing};
use crate::health::{self, NodeGpus, Reporter, Word};
use crate::keeper::Keeper;
use crate::kubelet::Registration;
use crate::links::{AgentLink, ApiLink, KubeletLink, sentence};
use crate::slots::{OpenError, Slots};
use crate::whole::{WholeDoor, WholeGpu, WholeKeeper};

/// When whole GPUs could not be listed, it is tried again so much later.
const LIST_AGAIN: Duration = Duration::from_secs(10);
const CDI_FILE: &str = "gpuzone.dev-library.json";
const CDI_WHOLE_FILE: &str = "gpuzone.dev-passthrough.json";

/// Why the plugin does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No folders for slots.
    #[error(transparent)]
    Slots(#[from] OpenError),
    /// The library is not there.
    #[error("there is no library {}; --library names the libcuda.so.1 that containers get, and --nvml-library the libnvidia-ml.so.1", .0.display())]
    NoLibrary(PathBuf),
    /// No way to the API server.
    #[error(
        "cannot tell how to reach the API server: {0}; in a pod it needs a service account, elsewhere --kubeconfig"
    )]
    Api(String),
    /// The CDI specification cannot be written.
    #[error("cannot write {}", .path.display())]
    Cdi {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No signals.
    #[error("cannot set up the plugin's process")]
    Process(#[source] io::Error),
}

fn libraries(config: &Config) -> Result<Libraries, RunError> {
    let found = |path: PathBuf| std::fs::canonicalize(&path).map_err(|_| RunError::NoLibrary(path));
    Ok(Libraries { cuda: found(config.library.clone())?, nvml: found(config.nvml_library())? })
}

/// Runs the plugin until it is told to end. Pods go on without it.
///
/// # Errors
/// When it cannot start.
pub async fn run(config: Config) -> Result<(), RunError> {
    let libraries = Arc::new(libraries(&config)?);
    let slots = Arc::new(Slots::open(&config.state_dir)?);
    if let Some(folder) = &config.cdi_dir {
        write_cdi(folder, CDI_FILE, &answer::cdi_spec(&libraries))?;
    }
    let client = client(&config).await?;
    let reporter = Reporter::new(client.clone(), config.node.clone());
    let (words, said) = watch::channel(Word::None);
    let (whole, whole_gpus) = watch::channel(Arc::default());
    let whole_keeper = Arc::new(whole_keeper(&config, client.clone(), whole_gpus));
    let keeper = Arc::new(keeper(&config, client, slots));
    let (listings, listing) = watch::channel(list(config.slots, true, &BTreeSet::new()));
    let door = Door {
        keeper: Arc::clone(&keeper),
        listing,
        libraries,
        handover: config.handover(),
        count: config.slots,
    };
    let registration = Registration::new(&config.kubelet_dir, config.resource.clone(), door);
    let whole_door = WholeDoor {
        keeper: Arc::clone(&whole_keeper),
        interface: config.vfio,
        handover: config.handover(),
    };
    let resource = config.passthrough_resource.clone();
    let whole_registration = Registration::new(&config.kubelet_dir, resource, whole_door);
    let offers = Offers { config: &config, listings: &listings, whole: &whole };
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Process)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Process)?;
    tokio::select! {
        () = registration.keep() => {}
        () = keeper.sweep_regularly() => {}
        () = register_whole(whole_registration, &whole_keeper) => {}
        () = whole_keeper.sweep_regularly() => {}
        () = stir(&keeper, &whole_keeper) => {}
        () = health::follow(&keeper.agent, config.vfio, &words) => {}
        () = reporter.report(said.clone()) => {}
        () = list_gpus(said, offers) => {}
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    tracing::info!("the plugin ends; pods and their leases go on");
    Ok(())
}

async fn client(config: &Config) -> Result<kube::Client, RunError> {
    let unknown = |error: &dyn std::fmt::Display| RunError::Api(error.to_string());
    let client = match &config.kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path).map_err(|error| unknown(&error))?;
            let options = KubeConfigOptions::default();
            kube::Config::from_custom_kubeconfig(file, &options)
                .await
                .map_err(|error| unknown(&error))?
        }
        None => kube::Config::incluster().map_err(|error| unknown(&error))?,
    };
    kube::Client::try_from(client).map_err(|error| unknown(&error))
}

fn keeper(config: &Config, client: kube::Client, slots: Arc<Slots>) -> Keeper {
    let (node, resource) = (config.node.clone(), config.resource.clone());
    let kubelet = KubeletLink::new(&config.pod_resources, resource.clone());
    let api = ApiLink::new(client, node.clone(), resource);
    let agent = AgentLink::new(config.directories().agent_socket());
    Keeper::new(slots, config.slots, kubelet, api, agent, node)
}

fn whole_keeper(
    config: &Config,
    client: kube::Client,
    gpus: watch::Receiver<Arc<Vec<WholeGpu>>>,
) -> WholeKeeper {
    let (node, resource) = (config.node.clone(), config.passthrough_resource.clone());
    WholeKeeper {
        kubelet: KubeletLink::new(&config.pod_resources, resource.clone()),
        api: ApiLink::new(client, node.clone(), resource),
        agent: AgentLink::new(config.directories().agent_socket()),
        node,
        gpus,
        turn: Mutex::default(),
        stirred: Notify::new(),
    }
}

/// Registers whole GPUs as soon as the agent has one: a node without any does not list the
/// resource.
async fn register_whole(registration: Registration<WholeDoor>, keeper: &WholeKeeper) {
    let mut gpus = keeper.gpus.clone();
    // What it answers holds the channel's lock, and must be gone before anything is awaited.
    let there = gpus.wait_for(|gpus| !gpus.is_empty()).await.is_ok();
    if there {
        registration.keep().await;
    } else {
        std::future::pending().await
    }
}

/// A CDI specification, replaced as a whole: a runtime may read it at any time.
fn write_cdi(folder: &Path, file: &str, spec: &serde_json::Value) -> Result<(), RunError> {
    let path = folder.join(file);
    let written = || -> io::Result<()> {
        std::fs::create_dir_all(folder)?;
        let new = folder.join(format!(".{file}.new"));
        std::fs::write(&new, format!("{spec:#}\n"))?;
        std::fs::rename(new, &path)
    };
    written().map_err(|source| RunError::Cdi { path: path.clone(), source })
}

/// The specification of whole GPUs; none where there is none, for runtimes take no empty one.
fn write_cdi_whole(
    folder: &Path,
    interface: VfioInterface,
    ready: &[VfioDevice],
) -> Result<(), RunError> {
    if !ready.is_empty() {
        return write_cdi(folder, CDI_WHOLE_FILE, &answer::cdi_whole_spec(interface, ready));
    }
    let path = folder.join(CDI_WHOLE_FILE);
    match std::fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(RunError::Cdi { path, source })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn list(count: u16, healthy: bool, numa: &BTreeSet<u32>) -> Listing {
    let slots = SlotId::first(count);
    Arc::new(slots.map(|slot| device(slot.to_string(), healthy, numa)).collect())
}

/// Looks for leases that are over whenever a pod of this node goes.
async fn stir(keeper: &Keeper, whole: &WholeKeeper) {
    let mut ends = std::pin::pin!(keeper.api.ends());
    while ends.next().await.is_some() {
        keeper.stirred.notify_one();
        whole.stirred.notify_one();
    }
}

/// What the kubelet is told that there is.
#[derive(Clone, Copy)]
struct Offers<'a> {
    config: &'a Config,
    listings: &'a watch::Sender<Listing>,
    whole: &'a watch::Sender<Arc<Vec<WholeGpu>>>,
}

impl Offers<'_> {
    /// Lists slots: any slot may get any mediated GPU, so each is near to all of their NUMA nodes,
    /// and none is to be had when no such GPU takes new leases. While one does, all are: a slot is
    /// a place for a container and no part of a GPU, and how much the node has left is what the
    /// scheduler's extender reads in the GpuNode.
    fn slots(&self, gpus: &NodeGpus) {
        let healthy = gpus.serves_slots();
        let listing = list(self.config.slots, healthy, &gpus.numa);
        self.listings.send_if_modified(|now| {
            let changed = *now != listing;
            if changed {
                tracing::info!(healthy, gpus = gpus.status.total, "slots are listed anew");
                *now = listing;
            }
            changed
        });
    }

    /// Lists whole GPUs as the agent has them now.
    ///
    /// # Errors
    /// When runtimes cannot be told of them: a container would name devices that nobody knows.
    fn whole(&self, gpus: &[WholeGpu]) -> Result<(), RunError> {
        if self.whole.borrow().as_slice() == gpus {
            return Ok(());
        }
        let ready: Vec<_> = gpus.iter().filter_map(|gpu| gpu.ready.clone().ok()).collect();
        if let Some(folder) = &self.config.cdi_dir {
            write_cdi_whole(folder, self.config.vfio, &ready)?;
        }
        tracing::info!(gpus = gpus.len(), ready = ready.len(), "whole GPUs are listed anew");
        for gpu in gpus {
            if let Err(trouble) = &gpu.ready {
                tracing::warn!(address = %gpu.address, trouble, "it cannot be handed over now");
            }
        }
        self.whole.send_replace(Arc::new(gpus.to_vec()));
        Ok(())
    }
}

/// Lists what there is as the node's GPUs are. An agent that does not answer changes nothing: its
/// pods' containers say so when they start, and start when it is back.
async fn list_gpus(mut said: watch::Receiver<Word>, offers: Offers<'_>) {
    loop {
        let word = said.borrow_and_update().clone();
        let listed = match word {
            Word::Says(gpus) => {
                offers.slots(&gpus);
                offers.whole(&gpus.whole)
            }
            Word::None | Word::Silent(_) => Ok(()),
        };
        let again = async {
            match listed {
                Ok(()) => std::future::pending().await,
                Err(error) => {
                    tracing::error!(error = sentence(&error), "whole GPUs are listed as before");
                    tokio::time::sleep(LIST_AGAIN).await;
                }
            }
        };
        tokio::select! {
            changed = said.changed() => if changed.is_err() { return },
            () = again => {}
        }
    }
}
