//! The plugin, from its start to its end.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use futures::StreamExt;
use gpuzone_api::kubernetes::{ResourceName, ResourcePrefix};
use gpuzone_core::Exposure;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, Notify, mpsc, watch};

use crate::answer::{self, Libraries};
use crate::cdi::{self, CdiError};
use crate::config::Config;
use crate::door::Door;
use crate::handed::{Handed, HandedError};
use crate::health::{self, Reporter, Word};
use crate::holders::Resources;
use crate::keeper::{Keeper, Kind};
use crate::kubelet::{Heard, Registration};
use crate::links::{AgentLink, ApiLink, KubeletLink};
use crate::mig::Instance;
use crate::offers::{
    self, Offers, list, list_gpus, register_profiles, register_vgpus, register_whole,
};
use crate::slots::{OpenError, Slots};
use crate::whole::{WholeDoor, WholeGpu, WholeKeeper};

/// Why the plugin does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No folders for slots.
    #[error(transparent)]
    Slots(#[from] OpenError),
    /// The library is not there.
    #[error("there is no library {}; put it there, or name the libcuda.so.1 that containers get by --library, and the libnvidia-ml.so.1 by --nvml-library", .0.display())]
    NoLibrary(PathBuf),
    /// Two resources with one name.
    #[error(
        "{flag} {prefix} makes {resource} one of its own; choose one that no other resource begins with"
    )]
    Prefix {
        /// Which flag.
        flag: &'static str,
        /// The prefix.
        prefix: ResourcePrefix,
        /// What begins with it.
        resource: ResourceName,
    },
    /// No way to the API server.
    #[error(
        "cannot tell how to reach the API server: {0}; in a pod it needs a service account, elsewhere --kubeconfig"
    )]
    Api(String),
    /// A resource that is no kind of CDI.
    #[error(
        "with --cdi-dir, {0} is the kind of CDI devices, too, and both parts of that have to begin with a letter; choose another name, or leave --cdi-dir out"
    )]
    NoKind(ResourceName),
    /// The CDI specification cannot be written.
    #[error(transparent)]
    Cdi(#[from] CdiError),
    /// No marks of what is handed out.
    #[error(transparent)]
    Handed(#[from] HandedError),
    /// No signals.
    #[error("cannot set up the plugin's process; see what keeps it from handling signals")]
    Process(#[source] io::Error),
}

/// So many notices may wait for the API server.
const NOTICES: usize = 16;

fn libraries(config: &Config) -> Result<Libraries, RunError> {
    let found = |path: PathBuf| std::fs::canonicalize(&path).map_err(|_| RunError::NoLibrary(path));
    Ok(Libraries { cuda: found(config.library.clone())?, nvml: found(config.nvml_library())? })
}

/// No name may be of two families.
fn check_prefixes(config: &Config) -> Result<(), RunError> {
    let families = [("--mig-prefix", &config.mig_prefix), ("--vgpu-prefix", &config.vgpu_prefix)];
    for (flag, prefix) in families {
        let others = families.iter().filter(|(other, _)| *other != flag);
        let others = others.filter_map(|(_, other)| other.of("x"));
        let fixed = [config.resource.clone(), config.passthrough_resource.clone()];
        if let Some(resource) =
            fixed.into_iter().chain(others).find(|name| prefix.profile(name).is_some())
        {
            return Err(RunError::Prefix { flag, prefix: prefix.clone(), resource });
        }
    }
    Ok(())
}

/// Runtimes refuse devices of a kind that is none.
fn check_kinds(config: &Config) -> Result<(), RunError> {
    let vgpu = config.vgpu_prefix.of("x");
    let kinds = std::iter::once(config.passthrough_resource.clone()).chain(vgpu);
    let wrong =
        kinds.filter(|_| config.device_cdi_dir().is_some()).find(|kind| !cdi::is_kind(kind));
    wrong.map_or(Ok(()), |kind| Err(RunError::NoKind(kind)))
}

/// Runs the plugin until it is told to end. Pods go on without it.
///
/// # Errors
/// When it cannot start.
pub async fn run(config: Config) -> Result<(), RunError> {
    let libraries = Arc::new(libraries(&config)?);
    check_prefixes(&config)?;
    check_kinds(&config)?;
    let slots = Arc::new(Slots::open(&config.state_dir)?);
    // What CDI names, a VM may be made with before any lease is.
    let handed = Arc::new(Handed::open(&config.state_dir, config.device_cdi_dir().is_some())?);
    if config.device_cdi_dir().is_none() {
        offers::forget_devices(&config)?;
    }
    if let Some(folder) = &config.cdi_dir {
        cdi::write(folder, answer::CDI_KIND, &answer::cdi_spec(&libraries))?;
    }
    let client = client(&config).await?;
    let reporter = Reporter::new(client.clone(), config.node.clone());
    let (words, said) = watch::channel(Word::None);
    let (notices, noticed) = mpsc::channel(NOTICES);
    let devices = |exposure, resources| {
        let (listed, gpus) = watch::channel(Arc::default());
        let (client, handed) = (client.clone(), Arc::clone(&handed));
        let keeper = device_keeper(&config, client, exposure, resources, gpus, handed);
        (listed, Arc::new(keeper))
    };
    let resources = Resources::One(config.passthrough_resource.clone());
    let (whole, whole_keeper) = devices(Exposure::Passthrough, resources);
    let resources = Resources::Family(config.vgpu_prefix.clone());
    let (vgpu, vgpu_keeper) = devices(Exposure::Vgpu, resources);
    let (cut, instances) = watch::channel(Arc::default());
    let mig_keeper = mig_keeper(&config, client.clone(), Arc::clone(&slots), instances.clone());
    let mig_keeper = Arc::new(mig_keeper);
    let keeper = Arc::new(keeper(&config, client, slots));
    let (listings, listing) = watch::channel(list(config.slots, true, &BTreeSet::new()));
    let door = |keeper: &Arc<Keeper>, listing| Door {
        keeper: Arc::clone(keeper),
        listing,
        libraries: Arc::clone(&libraries),
        handover: config.handover(),
        heard: Heard::default(),
    };
    let mig_door = |listing| door(&mig_keeper, listing);
    let door = door(&keeper, listing);
    let registration =
        Registration::new(&config.kubelet_dir, config.resource.clone(), door, &notices);
    let device_door = |keeper: &Arc<WholeKeeper>, resource, profile| WholeDoor {
        keeper: Arc::clone(keeper),
        interface: config.vfio,
        handover: config.device_handover(),
        resource,
        profile,
        cdi_dir: config.device_cdi_dir().cloned(),
        heard: Heard::default(),
    };
    let resource = config.passthrough_resource.clone();
    let whole_door = device_door(&whole_keeper, resource.clone(), None);
    let vgpu_door = |resource, profile| device_door(&vgpu_keeper, resource, Some(profile));
    let whole_registration = Registration::new(&config.kubelet_dir, resource, whole_door, &notices);
    let offers = Offers {
        config: &config,
        listings: &listings,
        whole: &whole,
        vgpus: &vgpu,
        instances: &cut,
        handed: &handed,
    };
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Process)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Process)?;
    tokio::select! {
        () = registration.keep() => {}
        () = register_profiles(&config, instances.clone(), mig_door, &notices) => {}
        () = keeper.sweep_regularly() => {}
        () = sweep_instances(&mig_keeper, instances.clone()) => {}
        () = register_whole(whole_registration, &whole_keeper) => {}
        () = whole_keeper.sweep_regularly() => {}
        () = register_vgpus(&config, &vgpu_keeper, vgpu_door, &notices) => {}
        () = vgpu_keeper.sweep_regularly() => {}
        () = stir(&keeper, &mig_keeper, [&whole_keeper, &vgpu_keeper]) => {}
        () = health::follow(&keeper.agent, config.vfio, &words) => {}
        () = reporter.report(said.clone(), noticed) => {}
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
    let resources = Resources::One(config.resource.clone());
    keeper_of(config, client, slots, resources, Kind::Numbered(config.slots))
}

fn mig_keeper(
    config: &Config,
    client: kube::Client,
    slots: Arc<Slots>,
    instances: watch::Receiver<Arc<Vec<Instance>>>,
) -> Keeper {
    let resources = Resources::Family(config.mig_prefix.clone());
    keeper_of(config, client, slots, resources, Kind::Instances(instances))
}

fn keeper_of(
    config: &Config,
    client: kube::Client,
    slots: Arc<Slots>,
    resources: Resources,
    kind: Kind,
) -> Keeper {
    let node = config.node.clone();
    let kubelet = KubeletLink::new(&config.pod_resources, resources.clone());
    let api = ApiLink::new(client, node.clone(), resources, config.without_quota);
    let agent = AgentLink::new(config.directories().agent_socket());
    Keeper::new(slots, kind, kubelet, api, agent, node)
}

/// A node that never had a MIG instance has no lease of one.
async fn sweep_instances(keeper: &Keeper, mut instances: watch::Receiver<Arc<Vec<Instance>>>) {
    let there = instances.wait_for(|instances| !instances.is_empty()).await.is_ok();
    match there {
        true => keeper.sweep_regularly().await,
        false => std::future::pending().await,
    }
}

fn device_keeper(
    config: &Config,
    client: kube::Client,
    exposure: Exposure,
    resources: Resources,
    gpus: watch::Receiver<Arc<Vec<WholeGpu>>>,
    handed: Arc<Handed>,
) -> WholeKeeper {
    let node = config.node.clone();
    WholeKeeper {
        exposure,
        kubelet: KubeletLink::new(&config.pod_resources, resources.clone()),
        api: ApiLink::new(client, node.clone(), resources, config.without_quota),
        agent: AgentLink::new(config.directories().agent_socket()),
        node,
        gpus,
        handed,
        turn: Mutex::default(),
        stirred: Notify::new(),
    }
}

/// Looks for leases that are over whenever a pod of this node goes.
async fn stir(keeper: &Keeper, mig: &Keeper, devices: [&WholeKeeper; 2]) {
    let mut ends = std::pin::pin!(keeper.api.ends());
    while ends.next().await.is_some() {
        keeper.stirred.notify_one();
        mig.stirred.notify_one();
        devices.iter().for_each(|keeper| keeper.stirred.notify_one());
    }
}
