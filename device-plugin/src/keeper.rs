//! Makes the leases of pods, and ends them.

mod sweep;

pub(crate) use sweep::{REGULARLY, runs};

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

use gpuzone_api::kubernetes::{NodeName, PodUid, TENANT_LABEL};
use gpuzone_api::{AgentError, ErrorKind, SlotFolder, SlotId};
use tokio::sync::{Mutex, Notify, watch};

use crate::claim::{Claim, ClaimError, PodHolder, claim};
use crate::holders::{Found, HolderError, PodName, SlotSet};
use crate::links::{AgentLink, ApiLink, KubeletLink, LinkError, PlacedLease, QuotaError};
use crate::mig::{Instance, InstanceError, of_instance};
use crate::slots::{FolderError, Slots};

/// The kubelet waits for 30 s; what is not done by then fails with an answer of ours.
pub(crate) const PATIENCE: Duration = Duration::from_secs(25);

/// Why a container gets no lease now. `kubectl describe` shows the sentence.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrepareError {
    /// Somebody did not answer, or the agent refused.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The kubelet does not say who holds the slots.
    #[error(transparent)]
    Holder(#[from] HolderError),
    /// The pod has no right to a lease.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// Quotas of the cluster are not known, or there is none.
    #[error(transparent)]
    Quota(#[from] QuotaError),
    /// It holds another instance than was placed.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// The slot has no folder for it.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The API server does not know the pod.
    #[error("the API server has no pod {0}; if it was deleted, nothing is to be done")]
    NoPod(PodName),
    /// The slot went to another while this was done.
    #[error("{0} went to another pod meanwhile; it is tried again")]
    Moved(SlotId),
    /// It takes too long.
    #[error("the lease was not made within {PATIENCE:?}; it is tried again")]
    Slow,
    /// A fault of the plugin's own.
    #[error("the device plugin failed: {0}; its log says more")]
    Internal(String),
}

/// Whose leases a keeper keeps.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    /// Those in so many numbered slots.
    Numbered(u16),
    /// Those of MIG instances, of which there are these now.
    Instances(watch::Receiver<Arc<Vec<Instance>>>),
}

impl Kind {
    /// Whether a slot is one of this keeper's, as long as it is listed.
    pub(crate) fn includes(&self, slot: SlotId) -> bool {
        match self {
            Self::Numbered(_) => slot.number().is_some(),
            Self::Instances(_) => slot.instance().is_some(),
        }
    }

    /// Whether the kubelet may name it.
    pub(crate) fn lists(&self, slot: SlotId) -> bool {
        match self {
            Self::Numbered(count) => slot.number().is_some_and(|number| number < *count),
            // One that went a moment ago may be in use.
            Self::Instances(_) => self.includes(slot),
        }
    }

    /// What a container that holds `slots` gets of what was placed.
    fn settle(&self, claim: Claim, slots: &SlotSet) -> Result<Claim, InstanceError> {
        match self {
            Self::Numbered(_) => Ok(claim),
            Self::Instances(instances) => of_instance(claim, slots, &instances.borrow()),
        }
    }
}

/// Makes and ends leases in slots. One for each kind of slot of the node.
pub(crate) struct Keeper {
    pub(crate) slots: Arc<Slots>,
    pub(crate) kubelet: KubeletLink,
    pub(crate) api: ApiLink,
    pub(crate) agent: AgentLink,
    node: NodeName,
    pub(crate) kind: Kind,
    /// One container of a slot at a time.
    turns: StdMutex<BTreeMap<SlotId, Arc<Mutex<()>>>>,
    /// One sweep at a time.
    sweeping: Mutex<()>,
    /// Says that a sweep may find something.
    pub(crate) stirred: Notify,
}

impl Keeper {
    pub(crate) fn new(
        slots: Arc<Slots>,
        kind: Kind,
        kubelet: KubeletLink,
        api: ApiLink,
        agent: AgentLink,
        node: NodeName,
    ) -> Self {
        let (turns, sweeping, stirred) = Default::default();
        Self { slots, kubelet, api, agent, node, kind, turns, sweeping, stirred }
    }

    fn turn_of(&self, slot: SlotId) -> Arc<Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(turns.entry(slot).or_default())
    }

    /// Makes the lease of the container that holds `slots`, active when this returns; however
    /// often it is asked, it is the same lease.
    pub(crate) async fn prepare(&self, slots: &SlotSet) -> Result<(), PrepareError> {
        let made = async {
            let turn = self.turn_of(slots.lead());
            let _turn = turn.lock().await;
            self.prepare_in_turn(slots).await
        };
        tokio::time::timeout(PATIENCE, made).await.unwrap_or(Err(PrepareError::Slow))
    }

    async fn prepare_in_turn(&self, slots: &SlotSet) -> Result<(), PrepareError> {
        let found = self.kubelet.holders().await?.find(slots.all())?;
        let (pod, claim) = self.claim_of(&found, slots).await?;
        let folder = self.folder_of(slots, &found, &claim.pod).await?;
        self.make_way(&claim, slots.lead(), folder).await?;
        match self.agent.place(&claim, &pod, slots.lead(), folder).await {
            Ok(()) => Ok(()),
            // What is in its way may be leases of pods that are gone.
            Err(LinkError::Refused(error)) if may_clear(&error) => {
                self.sweep().await;
                Ok(self.agent.place(&claim, &pod, slots.lead(), folder).await?)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn claim_of(
        &self,
        found: &Found,
        slots: &SlotSet,
    ) -> Result<(PodName, Claim), PrepareError> {
        let pod = self.api.pod(&found.pod).await?;
        let pod = pod.ok_or_else(|| PrepareError::NoPod(found.pod.clone()))?;
        let labels = self.api.labels(&found.pod.namespace).await?;
        let (label, container) = (labels.get(TENANT_LABEL), found.container.as_deref());
        let label = label.map(String::as_str);
        let claim = claim(&pod, label, &self.node, container, slots.all().len())?;
        let quotas = self.api.quotas(&found.pod.namespace, &labels).await?;
        let claim = self.kind.settle(Claim { quotas, ..claim }, slots)?;
        Ok((pod.name, claim))
    }

    /// Work that waits for the disk, on a thread of its own: the only other one answers the
    /// kubelet.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Slots) -> T + Send + 'static,
    ) -> io::Result<T> {
        let slots = Arc::clone(&self.slots);
        let done = tokio::task::spawn_blocking(move || work(&slots)).await;
        done.map_err(io::Error::other)
    }

    /// The folder that the container has mounted, which is this pod's from now on.
    async fn folder_of(
        &self,
        slots: &SlotSet,
        found: &Found,
        pod: &PodUid,
    ) -> Result<SlotFolder, PrepareError> {
        let (slot, uid) = (slots.lead(), pod.clone());
        let claimed = self.on_disk(move |store| store.claim(slot, &uid)).await;
        let (folder, fresh) = claimed.map_err(|e| PrepareError::Internal(e.to_string()))??;
        if !fresh {
            return Ok(folder);
        }
        // Asked again after the claim: see `Slots::claim`.
        match self.still_holds(slots, found, pod).await {
            Ok(true) => Ok(folder),
            still @ (Ok(false) | Err(_)) => {
                let back = self.on_disk(move |store| store.unclaim(slot, folder)).await;
                if let Err(error) = back.and_then(|done| done) {
                    tracing::error!(%slot, %error, "a folder stays claimed for {pod}");
                }
                still.and(Err(PrepareError::Moved(slot)))
            }
        }
    }

    /// Whether this very pod holds the slots. The kubelet says a name, and a pod that was deleted
    /// may be there anew by that name, with the slot and its folder. The API server has a pod before
    /// any kubelet does: as long as it has this one, no other of that name was handed anything.
    async fn still_holds(
        &self,
        slots: &SlotSet,
        found: &Found,
        pod: &PodUid,
    ) -> Result<bool, PrepareError> {
        let still = self.kubelet.holders().await?.find(slots.all())?;
        let named = self.api.pod(&found.pod).await?;
        Ok(still.pod == found.pod && named.is_some_and(|named| named.uid == *pod))
    }

    /// Ends what this very pod held in another slot, or in this folder for another container:
    /// the kubelet says that it is over. The container's own lease stays also while it is being made, for a
    /// plugin that was killed meanwhile: its container may run, and see it the moment it is there.
    async fn make_way(
        &self,
        claim: &Claim,
        slot: SlotId,
        folder: SlotFolder,
    ) -> Result<(), PrepareError> {
        let holder = PodHolder { pod: claim.pod.clone(), container: claim.container.clone() };
        for lease in self.leases().await? {
            if lease.holder.pod != claim.pod {
                continue;
            }
            let here = (lease.slot, lease.folder) == (slot, folder);
            let same = lease.holder == holder;
            if here != same || !lease.lasts {
                self.end(&lease, "its container has another slot").await?;
            }
        }
        Ok(())
    }

    /// The leases of pods in slots of this kind.
    async fn leases(&self) -> Result<Vec<PlacedLease>, LinkError> {
        let all = self.agent.leases().await?;
        Ok(all.into_iter().filter(|lease| self.kind.includes(lease.slot)).collect())
    }

    async fn end(&self, lease: &PlacedLease, reason: &str) -> Result<(), LinkError> {
        tracing::info!(lease = %lease.id, holder = %lease.holder, reason, "ended");
        self.agent.end(&lease.id, reason).await
    }
}

/// Whether a refusal may go away with leases that are over.
pub(crate) fn may_clear(error: &AgentError) -> bool {
    match error.kind {
        ErrorKind::NoRoom | ErrorKind::Quota => true,
        ErrorKind::InvalidRequest
        | ErrorKind::NotFound
        | ErrorKind::Driver
        | ErrorKind::Unavailable
        | ErrorKind::Internal => false,
    }
}
