//! What the kubelet is told that there is, as the agent says it: slots, whole GPUs, vGPUs, MIG
//! instances.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use gpuzone_api::SlotId;
use gpuzone_api::kubernetes::ResourceName;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::answer::VfioDevice;
use crate::cdi::{self, CdiError};
use crate::choose::device;
use crate::config::Config;
use crate::door::{Door, Listing};
use crate::handed::Handed;
use crate::health::{NodeGpus, Word};
use crate::kubelet::Registration;
use crate::links::sentence;
use crate::mig::{self, Instance};
use crate::whole::{WholeDoor, WholeGpu, WholeKeeper};

/// When whole GPUs could not be listed, it is tried again so much later.
const LIST_AGAIN: Duration = Duration::from_secs(10);

/// Registers whole GPUs as soon as the agent has one: a node without any does not list the
/// resource.
pub(crate) async fn register_whole(registration: Registration<WholeDoor>, keeper: &WholeKeeper) {
    let mut gpus = keeper.gpus.clone();
    // What it answers holds the channel's lock, and must be gone before anything is awaited.
    let there = gpus.wait_for(|gpus| !gpus.is_empty()).await.is_ok();
    if there {
        registration.keep().await;
    } else {
        std::future::pending().await
    }
}

/// Registers each MIG profile as soon as the agent has an instance of it, and lists what there is of
/// it from then on: a profile that goes is one without devices.
pub(crate) async fn register_profiles(
    config: &Config,
    mut instances: watch::Receiver<Arc<Vec<Instance>>>,
    door: impl Fn(watch::Receiver<Listing>) -> Door,
    notices: &mpsc::Sender<String>,
) {
    let mut offered: BTreeMap<String, watch::Sender<Listing>> = BTreeMap::new();
    let mut registered = JoinSet::new();
    loop {
        let now = instances.borrow_and_update().clone();
        let profiles = now.iter().map(|instance| instance.profile.clone());
        let profiles: BTreeSet<String> = profiles.chain(offered.keys().cloned()).collect();
        for profile in profiles {
            let listing: Listing = Arc::new(mig::devices(&now, &profile));
            if let Some(listed) = offered.get(&profile) {
                listed.send_if_modified(|before| {
                    std::mem::replace(before, listing.clone()) != listing
                });
                continue;
            }
            let Some(resource) = config.mig_prefix.of(&profile) else {
                tracing::error!(profile, prefix = %config.mig_prefix, "no resource can be called so");
                continue;
            };
            tracing::info!(%resource, instances = listing.len(), "MIG instances are offered");
            let (listed, listing) = watch::channel(listing);
            let registration =
                Registration::new(&config.kubelet_dir, resource, door(listing), notices);
            registered.spawn(registration.keep());
            offered.insert(profile, listed);
        }
        if instances.changed().await.is_err() {
            return;
        }
    }
}

/// Registers each type of vGPUs as soon as the agent has one of it. One that goes is one without
/// devices from then on.
pub(crate) async fn register_vgpus(
    config: &Config,
    keeper: &WholeKeeper,
    door: impl Fn(ResourceName, String) -> WholeDoor,
    notices: &mpsc::Sender<String>,
) {
    let mut vgpus = keeper.gpus.clone();
    let (mut offered, mut registered) = (BTreeSet::new(), JoinSet::new());
    loop {
        let now = vgpus.borrow_and_update().clone();
        for kind in now.iter().filter_map(|vgpu| vgpu.profile.clone()) {
            if !offered.insert(kind.clone()) {
                continue;
            }
            let Some(resource) = config.vgpu_prefix.of(&kind) else {
                tracing::error!(kind, prefix = %config.vgpu_prefix, "no resource can be called so");
                continue;
            };
            tracing::info!(%resource, "vGPUs are offered");
            let door = door(resource.clone(), kind);
            let registration = Registration::new(&config.kubelet_dir, resource, door, notices);
            registered.spawn(registration.keep());
        }
        if vgpus.changed().await.is_err() {
            return;
        }
    }
}

/// Takes away what an earlier plugin told runtimes of devices: nobody is told of any now.
///
/// # Errors
/// When it cannot be: a VM could be made with one.
pub(crate) fn forget_devices(config: &Config) -> Result<(), CdiError> {
    let ours = |name: &ResourceName| {
        *name == config.passthrough_resource || config.vgpu_prefix.profile(name).is_some()
    };
    let none = BTreeMap::new();
    config.cdi_dir.as_ref().map_or(Ok(()), |folder| cdi::keep(folder, config.vfio, &none, ours))
}

pub(crate) fn list(count: u16, healthy: bool, numa: &BTreeSet<u32>) -> Listing {
    let slots = SlotId::first(count);
    Arc::new(slots.map(|slot| device(slot.to_string(), healthy, numa)).collect())
}

/// What the kubelet is told that there is.
#[derive(Clone, Copy)]
pub(crate) struct Offers<'a> {
    pub(crate) config: &'a Config,
    pub(crate) listings: &'a watch::Sender<Listing>,
    pub(crate) whole: &'a watch::Sender<Arc<Vec<WholeGpu>>>,
    pub(crate) vgpus: &'a watch::Sender<Arc<Vec<WholeGpu>>>,
    pub(crate) instances: &'a watch::Sender<Arc<Vec<Instance>>>,
    pub(crate) handed: &'a Handed,
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

    /// Lists MIG instances as the agent has them now.
    fn instances(&self, instances: &[Instance]) {
        self.instances.send_if_modified(|now| {
            let changed = now.as_slice() != instances;
            if changed {
                *now = Arc::new(instances.to_vec());
            }
            changed
        });
    }

    /// Lists whole GPUs and vGPUs as the agent has them now; `anew` says that what runtimes were told
    /// may not hold any more, as after an earlier plugin, or when others may be opened.
    ///
    /// # Errors
    /// When runtimes cannot be told of them: a container would name devices that nobody knows.
    fn devices(&self, gpus: &NodeGpus, anew: bool) -> Result<(), CdiError> {
        let prefix = &self.config.vgpu_prefix;
        let whole = |name: &ResourceName| *name == self.config.passthrough_resource;
        self.list(self.whole, &gpus.whole, anew, whole)?;
        self.list(self.vgpus, &gpus.vgpus, anew, |name| prefix.profile(name).is_some())
    }

    /// The resource by which pods ask for a device.
    fn resource_of(&self, gpu: &WholeGpu) -> Option<ResourceName> {
        match &gpu.profile {
            None => Some(self.config.passthrough_resource.clone()),
            Some(profile) => self.config.vgpu_prefix.of(profile),
        }
    }

    fn list(
        &self,
        listed: &watch::Sender<Arc<Vec<WholeGpu>>>,
        gpus: &[WholeGpu],
        anew: bool,
        ours: impl Fn(&ResourceName) -> bool,
    ) -> Result<(), CdiError> {
        let same = listed.borrow().as_slice() == gpus;
        if same && !anew {
            return Ok(());
        }
        let writing = self.handed.writing();
        let mut ready: BTreeMap<ResourceName, Vec<VfioDevice>> = BTreeMap::new();
        for gpu in gpus.iter().filter(|gpu| !self.handed.is_blocked(gpu.gpu)) {
            if let (Ok(device), Some(resource)) = (&gpu.ready, self.resource_of(gpu)) {
                ready.entry(resource).or_default().push(device.clone());
            }
        }
        if let Some(folder) = self.config.device_cdi_dir() {
            cdi::keep(folder, self.config.vfio, &ready, ours)?;
        }
        drop(writing);
        if same {
            return Ok(());
        }
        let ready: usize = ready.values().map(Vec::len).sum();
        tracing::info!(devices = gpus.len(), ready, "devices for VMs are listed anew");
        for gpu in gpus {
            if let Err(trouble) = &gpu.ready {
                tracing::warn!(device = %gpu.id, trouble, "it cannot be handed over now");
            }
        }
        listed.send_replace(Arc::new(gpus.to_vec()));
        Ok(())
    }
}

/// Lists what there is as the node's GPUs are. An agent that does not answer changes nothing: its
/// pods' containers say so when they start, and start when it is back.
pub(crate) async fn list_gpus(mut said: watch::Receiver<Word>, offers: Offers<'_>) {
    let (mut anew, mut blocked) = (true, offers.handed.changes());
    loop {
        let word = said.borrow_and_update().clone();
        let listed = match word {
            Word::Says(gpus) => {
                offers.slots(&gpus);
                offers.instances(&gpus.instances);
                let listed = offers.devices(&gpus, anew);
                anew = listed.is_err();
                listed
            }
            Word::None | Word::Silent(_) => Ok(()),
        };
        let again = async {
            match listed {
                Ok(()) => std::future::pending().await,
                Err(error) => {
                    tracing::error!(error = sentence(&error), "devices are listed as before");
                    tokio::time::sleep(LIST_AGAIN).await;
                }
            }
        };
        tokio::select! {
            changed = said.changed() => if changed.is_err() { return },
            Ok(()) = blocked.changed() => anew = true,
            () = again => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use gpuzone_api::kubelet::v1beta1::ListAndWatchResponse;
    use prost::Message;

    use super::*;

    /// What a kubelet takes in one message, as gRPC has it where nobody says otherwise.
    const LIMIT: usize = 4 << 20;

    #[test]
    fn all_slots_are_far_below_what_a_kubelet_takes() {
        let devices = list(SlotId::MOST, false, &(0..16).collect()).to_vec();
        let per_device = |device: &gpuzone_api::kubelet::v1beta1::Device| {
            (device.id.len(), device.topology.as_ref().map_or(0, |topology| topology.nodes.len()))
        };
        assert_eq!(devices.len(), 1024);
        assert_eq!(devices.last().map(per_device), Some(("slot-1023".len(), 16)));
        let length = ListAndWatchResponse { devices }.encoded_len();
        assert!(length < LIMIT / 16, "{length}");
    }
}
