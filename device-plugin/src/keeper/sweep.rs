//! Compares the leases with the pods there are: ends what is over, and makes what is missing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::{StreamExt, stream};
use gpuzone_api::kubernetes::PodUid;
use gpuzone_api::{SlotFolder, SlotId};

use super::Keeper;
use crate::claim::{PodHolder, PodView};
use crate::holders::{Holders, PodName, SlotSet};
use crate::keep::{Pods, Verdict, verdict};
use crate::links::{LinkError, PlacedLease};
use crate::slots::Slots;

/// How often it is looked when nothing else asks for it.
pub(crate) const REGULARLY: Duration = Duration::from_secs(20);
/// How many leases are ended, or made, at a time.
const AT_ONCE: usize = 8;

impl Keeper {
    /// Sweeps for ever: when something stirs, and from time to time.
    pub(crate) async fn sweep_regularly(&self) {
        loop {
            self.sweep().await;
            self.make_missing().await;
            // Whatever stirred meanwhile is looked at in the next round.
            let _ = tokio::time::timeout(REGULARLY, self.stirred.notified()).await;
        }
    }

    /// Ends the leases of pods that are gone, and removes their folders.
    pub(crate) async fn sweep(&self) {
        let _turn = self.sweeping.lock().await;
        // In this order: what is listed as a lease or as a pod's folder was one before the pods
        // are listed. A folder that a pod got meanwhile would be taken for one of a pod that is gone.
        let leases = match self.leases().await {
            Ok(leases) => leases,
            Err(error) => {
                tracing::debug!(%error, "no sweep now");
                return;
            }
        };
        let owned = self.on_disk(Slots::owned).await.and_then(|owned| owned).map(|mut owned| {
            owned.retain(|(slot, _, _)| self.kind.includes(*slot));
            owned
        });
        let pods = known(self.api.pods().await);
        let holders = known(self.kubelet.holders().await);
        let (pods, holders) = (pods.as_ref(), holders.as_ref());
        let kept: BTreeSet<PodUid> = leases.iter().map(|lease| lease.holder.pod.clone()).collect();
        let over = leases.into_iter().filter_map(|lease| {
            let PlacedLease { holder, name, slot, .. } = &lease;
            match verdict(&holder.pod, name.as_ref(), slot, pods, holders) {
                Verdict::Keep => None,
                Verdict::End(reason) => Some((lease, reason)),
            }
        });
        let over: Vec<(PlacedLease, &'static str)> = over.collect();
        let end = |(lease, reason)| self.end_or_log(lease, reason);
        stream::iter(over).for_each_concurrent(AT_ONCE, end).await;
        match owned {
            Ok(owned) => self.remove_folders(owned, &kept, pods, holders).await,
            Err(error) => tracing::warn!(%error, "the slots' folders cannot be read"),
        }
    }

    /// Removes the folders of pods that are gone and had no lease when it was looked. One with a
    /// lease goes with the sweep after its lease's end.
    async fn remove_folders(
        &self,
        owned: Vec<(SlotId, SlotFolder, PodUid)>,
        with_lease: &BTreeSet<PodUid>,
        pods: Option<&Pods>,
        holders: Option<&Holders>,
    ) {
        for (slot, folder, pod) in owned {
            let over = verdict(&pod, None, &slot, pods, holders) != Verdict::Keep;
            if !over || with_lease.contains(&pod) {
                continue;
            }
            let removed = self.on_disk(move |slots| slots.remove(slot, folder)).await;
            if let Err(error) = removed.and_then(|done| done) {
                tracing::warn!(%slot, %error, "a folder of a pod that is gone stays");
            }
        }
    }

    /// Makes the leases of containers that run without one: the kubelet does not call
    /// PreStartContainer for a container that starts again before this plugin has registered
    /// again, and a node that restarted has no lease any more.
    async fn make_missing(&self) {
        let (Ok(leases), Ok(pods), Ok(holders)) =
            (self.leases().await, self.api.pods().await, self.kubelet.holders().await)
        else {
            return;
        };
        let by_name: BTreeMap<_, _> = pods.values().map(|pod| (&pod.name, pod)).collect();
        let missing = holders.holdings().iter().filter_map(|holding| {
            let slots = SlotSet::of(&holding.devices)?;
            let pod = *by_name.get(&holding.pod)?;
            // One of an init container that was there before it is not its own.
            let served = leases.iter().any(|lease| {
                let PodHolder { pod: uid, container } = &lease.holder;
                *uid == pod.uid
                    && container.as_str() == holding.container
                    && lease.slot == slots.lead()
            });
            (!served && runs(pod, &holding.container)).then(|| (slots, holding.pod.clone()))
        });
        let missing: Vec<(SlotSet, PodName)> = missing.collect();
        let make = |(slots, pod)| self.prepare_or_log(slots, pod);
        stream::iter(missing).for_each_concurrent(AT_ONCE, make).await;
    }

    async fn end_or_log(&self, lease: PlacedLease, reason: &'static str) {
        if let Err(error) = self.end(&lease, reason).await {
            tracing::warn!(lease = %lease.id, %error, "it could not be ended; it is tried again");
        }
    }

    async fn prepare_or_log(&self, slots: SlotSet, pod: PodName) {
        match self.prepare(&slots).await {
            Ok(()) => tracing::info!(%pod, "it ran without a lease and has one now"),
            Err(error) => tracing::warn!(%pod, %error, "it runs without a lease"),
        }
    }
}

/// Whether a container of a pod that is not over runs.
pub(crate) fn runs(pod: &PodView, container: &str) -> bool {
    let named = pod.containers.iter().find(|view| view.name == container);
    !pod.ended && named.is_some_and(|view| view.running)
}

/// What somebody answered, if they did.
fn known<T>(answer: Result<T, LinkError>) -> Option<T> {
    match answer {
        Ok(answer) => Some(answer),
        Err(error) => {
            tracing::debug!(%error, "nothing is ended on silence");
            None
        }
    }
}
