//! Has devices cleared that somebody may have had without a lease.

use std::collections::{BTreeMap, BTreeSet};

use gpuzone_api::kubernetes::PodUid;
use gpuzone_core::GpuUuid;

use super::{DeviceId, WholeGpu, WholeKeeper};
use crate::handed::{HandOut, Holder, Mark, Next, after_look};
use crate::holders::{Holders, PodName};
use crate::keep::Pods;
use crate::links::{LinkError, WholeLease};

/// What everybody said, asked in this order.
struct Look {
    leases: Vec<WholeLease>,
    pods: Option<Pods>,
    holders: Option<Holders<DeviceId>>,
}

impl Look {
    /// The pod that has a lease of it.
    fn lease_of(&self, gpu: GpuUuid) -> Option<&PodUid> {
        let lease = self.leases.iter().find(|lease| lease.gpus.contains(&gpu));
        lease.map(|lease| &lease.holder.pod)
    }

    fn holder_of(&self, gpu: &WholeGpu) -> Holder {
        let (Some(pods), Some(holders)) = (&self.pods, &self.holders) else {
            return Holder::Unknown;
        };
        // A vGPU that was made anew is held by its old name.
        let is_it = |device: &DeviceId| match (device, &gpu.id) {
            (DeviceId::Vgpu { uuid, .. }, DeviceId::Vgpu { .. }) => *uuid == gpu.gpu,
            (device, id) => device == id,
        };
        let holdings = holders.holdings().iter();
        let held = holdings.filter(|holding| holding.devices.iter().any(is_it));
        let names: BTreeSet<&PodName> = held.map(|holding| &holding.pod).collect();
        let mut names = names.into_iter();
        match (names.next(), names.next()) {
            (None, _) => Holder::Nobody,
            (Some(name), None) => {
                let named = pods.values().find(|pod| pod.name == *name);
                named.map_or(Holder::Unknown, |pod| Holder::Pod(pod.uid.clone()))
            }
            (Some(_), Some(_)) => Holder::Unknown,
        }
    }

    /// Whether the pod that it was handed to is over, as far as it is known.
    fn is_over(&self, handed: &HandOut) -> bool {
        let over = |pod: &PodUid| {
            let pods = self.pods.as_ref();
            pods.is_some_and(|pods| pods.get(pod).is_none_or(|pod| pod.ended))
        };
        !handed.is_on_its_way() && handed.mark.pod.as_ref().is_none_or(over)
    }
}

impl WholeKeeper {
    /// What was handed out of the devices that this one keeps.
    fn handed(&self) -> BTreeMap<GpuUuid, HandOut> {
        let gpus = self.gpus.borrow().clone();
        let mut all = self.handed.all();
        all.retain(|gpu, _| gpus.iter().any(|listed| listed.gpu == *gpu));
        all
    }

    /// Notes leases of which an earlier plugin wrote nothing down.
    pub(super) fn note(&self, leases: &[WholeLease]) {
        let known = self.handed.all();
        for lease in leases {
            let new = lease.gpus.iter().filter(|gpu| !known.contains_key(gpu)).copied();
            self.handed.leased(&new.collect::<Vec<_>>(), &lease.holder.pod);
        }
    }

    /// Whether somebody has to look again soon.
    pub(super) fn is_unsettled(&self) -> bool {
        self.handed().values().any(HandOut::is_unsettled)
    }

    /// Looks at all that was handed out, and has cleared what is nobody's any more.
    pub(super) async fn settle(&self) {
        let handed = self.handed();
        if handed.is_empty() {
            return;
        }
        let Ok(leases) = self.agent.whole_leases(self.exposure).await else { return };
        let pods = self.api.pods().await.ok();
        let look = Look { leases, pods, holders: self.kubelet.holders().await.ok() };
        let gpus = self.gpus.borrow().clone();
        for gpu in gpus.iter() {
            let Some(seen) = handed.get(&gpu.gpu) else { continue };
            let (holder, over) = (look.holder_of(gpu), look.is_over(seen));
            let lease = look.lease_of(gpu.gpu);
            let next = match after_look(&seen.mark, lease, &holder, over, self.handed.early) {
                Next::Keep(mark) => Some(mark),
                Next::Forget => None,
                // Handed out while it was looked at: what was seen may be of before or after.
                Next::Clear(_) if !self.handed.is_still(gpu.gpu, seen) => continue,
                Next::Clear(then) => match self.clear(gpu, &seen.mark).await {
                    Ok(true) => then,
                    // Nobody gets it from here until all know that nobody does.
                    Ok(false) => Some(Mark { again: true, ..seen.mark.clone() }),
                    Err(error) => {
                        tracing::error!(gpu = %gpu.gpu, %error,
                            "it is not cleared, and nobody gets it until it is; it is tried again");
                        Some(Mark { again: true, ..seen.mark.clone() })
                    }
                },
            };
            self.handed.settle(gpu.gpu, seen, next);
        }
    }

    /// Has a device cleared of what a pod may have left on it. Where it is not, it is in quarantine, and
    /// this answers whether it is listed so.
    async fn clear(&self, gpu: &WholeGpu, mark: &Mark) -> Result<bool, LinkError> {
        let pod = mark.pod.as_ref();
        let had_by = pod.map_or_else(|| "a pod".to_owned(), |pod| format!("the pod {pod}"));
        let clear = self.agent.clear(gpu.gpu, had_by.clone()).await?;
        tracing::warn!(gpu = %gpu.gpu, clear, "{had_by} may have had it without a lease");
        let gpus = self.gpus.borrow();
        let listed = gpus.iter().find(|listed| listed.gpu == gpu.gpu);
        Ok(clear || listed.is_none_or(|listed| listed.ready.is_err()))
    }
}
