//! Pods that kube-scheduler was told to take away, until it is seen here that they go.
//!
//! It looks at the pod that they make room for again as soon as it knows of their end, and that may be before it is known
//! here. Told then that there is no room, it would take away others, too.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use gpuzone_api::kubernetes::PodUid;

use crate::shared::Shared;

/// Whoever comes back later has not come back for that.
const FRESH: Duration = Duration::from_secs(2);
/// How much later than the scheduler's an end is seen here, at most. The scheduler asks one pod after the other, so it is
/// waited for once.
const LAG: Duration = Duration::from_millis(250);

/// What was offered for one pod: for each node, those that would go.
#[derive(Debug)]
struct Offer {
    made: Instant,
    plans: Vec<Vec<PodUid>>,
}

/// All that was offered a moment ago.
#[derive(Debug, Default)]
pub(crate) struct Offers(Mutex<BTreeMap<PodUid, Offer>>);

impl Offers {
    /// What the scheduler may do for a pod: the plan for one of several nodes.
    pub(crate) fn make(&self, pod: PodUid, plans: Vec<Vec<PodUid>>) {
        let made = Instant::now();
        let mut offers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        offers.retain(|_, offer| made.duration_since(offer.made) < FRESH);
        if !plans.is_empty() {
            offers.insert(pod, Offer { made, plans });
        }
    }

    /// Waits until one of the plans that were offered for a pod is seen carried out, if there are any and none is yet; says
    /// whether it was worth it to look again.
    pub(crate) async fn carried_out(&self, shared: &Shared, pod: &PodUid) -> bool {
        let offer = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(pod);
        let Some(offer) = offer.filter(|offer| offer.made.elapsed() < FRESH) else { return false };
        let until = tokio::time::Instant::now() + LAG;
        loop {
            // Before it is looked, so that nothing is missed.
            let stirred = shared.stirred.notified();
            tokio::pin!(stirred);
            stirred.as_mut().enable();
            {
                let index = shared.index();
                if offer.plans.iter().any(|plan| plan.iter().all(|victim| index.goes(victim))) {
                    return true;
                }
            }
            if tokio::time::timeout_at(until, stirred).await.is_err() {
                return false;
            }
        }
    }
}
