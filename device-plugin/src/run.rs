//! The plugin, from its start to its end.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::StreamExt;
use gpuzone_api::SlotId;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::answer;
use crate::choose::device;
use crate::config::Config;
use crate::door::{Door, Listing};
use crate::health::{self, Reporter, Word};
use crate::keeper::Keeper;
use crate::kubelet::Registration;
use crate::links::{AgentLink, ApiLink, KubeletLink};
use crate::slots::{OpenError, Slots};

const CDI_FILE: &str = "gpuzone.dev-library.json";

/// Why the plugin does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No folders for slots.
    #[error(transparent)]
    Slots(#[from] OpenError),
    /// The library is not there.
    #[error("there is no library {}; --library names the libcuda.so.1 that containers get", .0.display())]
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

/// Runs the plugin until it is told to end. Pods go on without it.
///
/// # Errors
/// When it cannot start.
pub async fn run(config: Config) -> Result<(), RunError> {
    let library = std::fs::canonicalize(&config.library)
        .map_err(|_| RunError::NoLibrary(config.library.clone()))?;
    let slots = Arc::new(Slots::open(&config.state_dir)?);
    if let Some(folder) = &config.cdi_dir {
        write_cdi(folder, &library)?;
    }
    let client = client(&config).await?;
    let reporter = Reporter::new(client.clone(), config.node.clone());
    let (words, said) = watch::channel(Word::None);
    let keeper = Arc::new(keeper(&config, client, slots));
    let (listings, listing) = watch::channel(list(config.slots, true, &BTreeSet::new()));
    let door = Door {
        keeper: Arc::clone(&keeper),
        listing,
        library: library.into(),
        handover: config.handover(),
        count: config.slots,
    };
    let registration = Registration::new(&config.kubelet_dir, config.resource.clone(), door);
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Process)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Process)?;
    tokio::select! {
        () = registration.keep() => {}
        () = keeper.sweep_regularly() => {}
        () = stir(&keeper) => {}
        () = health::follow(&keeper.agent, &words) => {}
        () = reporter.report(said.clone()) => {}
        () = list_gpus(said, config.slots, &listings) => {}
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

/// The CDI specification, replaced as a whole: a runtime may read it at any time.
fn write_cdi(folder: &Path, library: &Path) -> Result<(), RunError> {
    let path = folder.join(CDI_FILE);
    let written = || -> io::Result<()> {
        std::fs::create_dir_all(folder)?;
        let new = folder.join(format!(".{CDI_FILE}.new"));
        std::fs::write(&new, format!("{:#}\n", answer::cdi_spec(library)))?;
        std::fs::rename(new, &path)
    };
    written().map_err(|source| RunError::Cdi { path: path.clone(), source })
}

fn list(count: u16, healthy: bool, numa: &BTreeSet<u32>) -> Listing {
    let slots = SlotId::first(count);
    Arc::new(slots.map(|slot| device(slot.to_string(), healthy, numa)).collect())
}

/// Looks for leases that are over whenever a pod of this node goes.
async fn stir(keeper: &Keeper) {
    let mut ends = std::pin::pin!(keeper.api.ends());
    while ends.next().await.is_some() {
        keeper.stirred.notify_one();
    }
}

/// Lists slots as the node's GPUs are: any slot may get any GPU, so each is near to all of their
/// NUMA nodes, and none is to be had when no GPU takes new leases. While one does, all are: a slot
/// is a place for a container and no part of a GPU, and how much the node has left is what the
/// scheduler's extender reads in the GpuNode. An agent that does not answer changes nothing: its
/// pods' containers say so when they start, and start when it is back.
async fn list_gpus(mut said: watch::Receiver<Word>, count: u16, listings: &watch::Sender<Listing>) {
    loop {
        let word = said.borrow_and_update().clone();
        if let Word::Says(gpus) = word {
            let healthy = gpus.serves();
            let listing = list(count, healthy, &gpus.numa);
            listings.send_if_modified(|now| {
                let changed = *now != listing;
                if changed {
                    tracing::info!(healthy, gpus = gpus.status.total, "slots are listed anew");
                    *now = listing;
                }
                changed
            });
        }
        if said.changed().await.is_err() {
            return;
        }
    }
}
