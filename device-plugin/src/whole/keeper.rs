//! Makes the leases of whole GPUs and of vGPUs, and ends them.

mod settle;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use gpuzone_api::ErrorKind;
use gpuzone_api::kubernetes::{NodeName, TENANT_LABEL};
use gpuzone_core::{Exposure, GpuUuid};
use tokio::sync::{Mutex, Notify, watch};

use super::{DeviceId, WholeError, WholeGpu, of_devices};
use crate::claim::{Claim, ClaimError, claim};
use crate::handed::Handed;
use crate::holders::{HolderError, Holders, Holding, PodName};
use crate::keep::{Verdict, verdict};
use crate::keeper::{PATIENCE, REGULARLY, may_clear, runs};
use crate::links::{AgentLink, ApiLink, KubeletLink, LinkError, QuotaError, WholeLease};

/// When it is looked again while it is not known who has a device that was handed out.
const SOON: Duration = Duration::from_secs(1);

/// Why a container does not start with its GPUs now.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WholeLeaseError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Holder(#[from] HolderError),
    #[error(transparent)]
    Claim(#[from] ClaimError),
    #[error(transparent)]
    Quota(#[from] QuotaError),
    #[error(transparent)]
    Devices(#[from] WholeError),
    #[error("the API server has no pod {0}; if it was deleted, nothing is to be done")]
    NoPod(PodName),
    #[error("GPU {0} cannot be handed over now: {1}")]
    NotReady(DeviceId, String),
    #[error(
        "GPU {0} may hold what another pod left, and is not cleared of it yet; it is tried again, and the device plugin's log and `gpu-zone gpus` say what is in the way"
    )]
    NotCleared(DeviceId),
    #[error(
        "an init container of the pod {pod} asks for other GPUs than those that a container before it had, and the end of that one's lease would reset what the pod's VM has open; ask for as many GPUs in the first init container as in any other"
    )]
    Other { pod: PodName },
    #[error("the lease was not made within {PATIENCE:?}; it is tried again")]
    Slow,
}

impl WholeLeaseError {
    /// Whether trying again by itself changes nothing: somebody who could answer has refused.
    fn is_final(&self) -> bool {
        match self {
            Self::Claim(_)
            | Self::Devices(_)
            | Self::NotReady(..)
            | Self::Other { .. }
            | Self::Quota(QuotaError::Unreadable { .. } | QuotaError::None(_)) => true,
            Self::Link(LinkError::Refused(error))
            | Self::Quota(QuotaError::Link(LinkError::Refused(error))) => match error.kind {
                ErrorKind::InvalidRequest
                | ErrorKind::Quota
                | ErrorKind::NoRoom
                | ErrorKind::NotFound => true,
                ErrorKind::Driver | ErrorKind::Unavailable | ErrorKind::Internal => false,
            },
            Self::Link(
                LinkError::Kubelet { .. }
                | LinkError::Api(_)
                | LinkError::Denied { .. }
                | LinkError::NotTaken { .. }
                | LinkError::Agent(_),
            )
            | Self::Quota(QuotaError::Link(_))
            | Self::Holder(_)
            | Self::NoPod(_)
            | Self::NotCleared(_)
            | Self::Slow => false,
        }
    }
}

/// Makes and ends leases of whole GPUs, or of vGPUs. One of each for the node.
pub(crate) struct WholeKeeper {
    /// Whose leases it keeps.
    pub(crate) exposure: Exposure,
    pub(crate) kubelet: KubeletLink,
    pub(crate) api: ApiLink,
    pub(crate) agent: AgentLink,
    pub(crate) node: NodeName,
    /// What there is, as the agent last said.
    pub(crate) gpus: watch::Receiver<Arc<Vec<WholeGpu>>>,
    /// What was handed out.
    pub(crate) handed: Arc<Handed>,
    /// One at a time: there are few, and each is quick.
    pub(crate) turn: Mutex<()>,
    pub(crate) stirred: Notify,
}

impl WholeKeeper {
    /// Makes the lease of the container that holds `devices`, active when this returns; however
    /// often it is asked, it is the same lease.
    pub(crate) async fn prepare(
        &self,
        devices: &BTreeSet<DeviceId>,
    ) -> Result<(), WholeLeaseError> {
        let made = async {
            let _turn = self.turn.lock().await;
            self.prepare_in_turn(devices).await
        };
        tokio::time::timeout(PATIENCE, made).await.unwrap_or(Err(WholeLeaseError::Slow))
    }

    async fn prepare_in_turn(&self, devices: &BTreeSet<DeviceId>) -> Result<(), WholeLeaseError> {
        let holders = self.kubelet.holders().await?;
        let mut found = holders.find(devices)?;
        // An init container with fewer than the one that takes over from it: the lease is of all that
        // one's, for they are the pod's already, and no lease grows.
        let devices = match holders.covering(&found.pod, devices) {
            Some(covering) => {
                found.container = Some(covering.container.clone());
                &covering.devices
            }
            None => devices,
        };
        let pod = self.api.pod(&found.pod).await?;
        let pod = pod.ok_or_else(|| WholeLeaseError::NoPod(found.pod.clone()))?;
        let labels = self.api.labels(&found.pod.namespace).await?;
        let (label, container) = (labels.get(TENANT_LABEL), found.container.as_deref());
        let label = label.map(String::as_str);
        let claim = claim(&pod, label, &self.node, container, devices.len())?;
        let quotas = self.api.quotas(&found.pod.namespace, &labels).await?;
        let claim = Claim { quotas, ..claim };
        let gpus = self.gpus.borrow().clone();
        let claim = of_devices(claim, devices, &gpus)?;
        let mut nodes = BTreeMap::new();
        for gpu in gpus.iter().filter(|gpu| devices.contains(&gpu.id)) {
            match &gpu.ready {
                Ok(ready) => nodes.insert(gpu.gpu, ready.node.clone()),
                Err(trouble) => {
                    return Err(WholeLeaseError::NotReady(gpu.id.clone(), trouble.clone()));
                }
            };
        }
        self.clear_way(devices, &gpus).await?;
        let wanted: BTreeSet<GpuUuid> = nodes.keys().copied().collect();
        if self.has_already(&claim, &wanted, &pod.name).await? {
            return Ok(());
        }
        match self.agent.place_whole(self.exposure, &claim, &nodes, &pod.name).await {
            Ok(()) => {}
            // What is in its way may be leases of pods that are gone.
            Err(LinkError::Refused(error)) if may_clear(&error) => {
                self.sweep().await;
                self.agent.place_whole(self.exposure, &claim, &nodes, &pod.name).await?;
            }
            Err(error) => return Err(error.into()),
        }
        let leased: Vec<GpuUuid> = nodes.into_keys().collect();
        self.handed.leased(&leased, &claim.pod);
        Ok(())
    }

    /// Whether another container of the pod has a lease of all these GPUs: an init container with more
    /// than the one that takes over from it. It goes on, for the pod's VM has them all open, and for the
    /// kubelet they are the pod's until its end.
    async fn has_already(
        &self,
        claim: &Claim,
        wanted: &BTreeSet<GpuUuid>,
        pod: &PodName,
    ) -> Result<bool, WholeLeaseError> {
        let leases = self.agent.whole_leases(self.exposure).await?;
        let others = leases.iter().filter(|lease| {
            lease.holder.pod == claim.pod && lease.holder.container != claim.container
        });
        for lease in others {
            if lease.active && wanted.iter().all(|gpu| lease.gpus.contains(gpu)) {
                return Ok(true);
            }
            if wanted.iter().any(|gpu| lease.gpus.contains(gpu)) {
                return Err(WholeLeaseError::Other { pod: pod.clone() });
            }
        }
        Ok(false)
    }

    /// Has what was before these devices' holder brought to its end.
    async fn clear_way(
        &self,
        devices: &BTreeSet<DeviceId>,
        gpus: &[WholeGpu],
    ) -> Result<(), WholeLeaseError> {
        let blocked = || {
            let held = gpus.iter().filter(|gpu| devices.contains(&gpu.id));
            held.into_iter().find(|gpu| self.handed.is_blocked(gpu.gpu))
        };
        if blocked().is_none() {
            return Ok(());
        }
        self.sweep().await;
        self.settle().await;
        blocked().map_or(Ok(()), |gpu| Err(WholeLeaseError::NotCleared(gpu.id.clone())))
    }

    /// Sweeps for ever: when something stirs, and from time to time.
    pub(crate) async fn sweep_regularly(&self) {
        let mut gpus = self.gpus.clone();
        loop {
            {
                let _turn = self.turn.lock().await;
                self.sweep().await;
                self.settle().await;
            }
            self.make_missing().await;
            let pause = if self.is_unsettled() { SOON } else { REGULARLY };
            tokio::select! {
                () = self.stirred.notified() => {}
                // Who holds one of those that came is not known yet.
                Ok(()) = gpus.changed() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Ends the leases of pods that are gone.
    async fn sweep(&self) {
        // In this order: what is listed as a lease was a pod's before the pods are listed.
        let Ok(leases) = self.agent.whole_leases(self.exposure).await else { return };
        if leases.is_empty() {
            return;
        }
        self.note(&leases);
        let pods = self.api.pods().await.ok();
        let holders: Option<Holders<DeviceId>> = self.kubelet.holders().await.ok();
        let gpus = self.gpus.borrow().clone();
        for lease in leases {
            // One that the kubelet lists, if it lists any: of what an init container had, it lists only
            // what another took over.
            let of = || gpus.iter().filter(|gpu| lease.gpus.contains(&gpu.gpu));
            let listed = |gpu: &WholeGpu| {
                holders.as_ref().is_some_and(|holders| !holders.of(&gpu.id).is_empty())
            };
            let device = of().find(|gpu| listed(gpu)).or(of().next());
            // What the agent does not list, nobody can be said to hold.
            let Some(device) = device else { continue };
            let (pod, name) = (&lease.holder.pod, lease.name.as_ref());
            let verdict = verdict(pod, name, &device.id, pods.as_ref(), holders.as_ref());
            match verdict {
                Verdict::Keep => {}
                Verdict::End(reason) => self.end(&lease, reason).await,
            }
        }
    }

    async fn end(&self, lease: &WholeLease, reason: &'static str) {
        tracing::info!(lease = %lease.id, holder = %lease.holder, reason, "ended");
        if let Err(error) = self.agent.end(&lease.id, reason).await {
            tracing::warn!(lease = %lease.id, %error, "it could not be ended; it is tried again");
        }
    }

    /// Makes the leases of containers that run without one: the kubelet does not ask for one that
    /// starts before this plugin has registered again.
    async fn make_missing(&self) {
        if self.gpus.borrow().is_empty() {
            return;
        }
        let (Ok(leases), Ok(pods), Ok(holders)) = (
            self.agent.whole_leases(self.exposure).await,
            self.api.pods().await,
            self.kubelet.holders::<DeviceId>().await,
        ) else {
            return;
        };
        let gpus = self.gpus.borrow().clone();
        let by_name: BTreeMap<_, _> = pods.values().map(|pod| (&pod.name, pod)).collect();
        for holding in holders.holdings() {
            let Some(pod) = by_name.get(&holding.pod) else { continue };
            let held = gpus.iter().filter(|gpu| holding.devices.contains(&gpu.id));
            let held: Vec<GpuUuid> = held.map(|gpu| gpu.gpu).collect();
            let mut own = leases.iter().filter(|lease| lease.holder.pod == pod.uid);
            let served = own.any(|lease| {
                let all = !held.is_empty() && held.iter().all(|gpu| lease.gpus.contains(gpu));
                all || lease.holder.container.as_str() == holding.container
            });
            if served || !runs(pod, &holding.container) {
                continue;
            }
            match self.prepare(&holding.devices).await {
                Ok(()) => tracing::info!(pod = %holding.pod, "it has a lease of its GPUs now"),
                Err(error) => {
                    tracing::error!(pod = %holding.pod, %error, "it has GPUs without a lease");
                    if error.is_final() {
                        self.condemn(holding, &error).await;
                    }
                }
            }
        }
    }

    /// Has nobody else get what a container has without the right to it.
    async fn condemn(&self, holding: &Holding<DeviceId>, error: &WholeLeaseError) {
        let gpus = self.gpus.borrow().clone();
        let held_by = format!("{}/{}", holding.pod, holding.container);
        for gpu in gpus.iter().filter(|gpu| holding.devices.contains(&gpu.id)) {
            let said = self.agent.condemn(gpu.gpu, held_by.clone(), error.to_string()).await;
            if let Err(error) = said {
                tracing::error!(gpu = %gpu.gpu, %error, "it is not kept from others yet");
            }
        }
    }
}
