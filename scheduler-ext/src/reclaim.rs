//! Evicts pods that borrow, for those whose tenants are guaranteed what they hold.
//!
//! By the eviction API, so disruption budgets hold: each of the pods that would have to go is
//! asked about first, and when one may not go none does.

use std::sync::Arc;
use std::time::Duration;

use gpuzone_api::kubernetes::PodUid;
use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::index::Reclaim;
use crate::shared::{Role, Shared};
use crate::view::PodName;

const LOOK: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(4);

/// Takes back what is guaranteed to pods that have waited for `patience`, while this replica leads.
pub(crate) async fn take_back(shared: Arc<Shared>, client: Client, patience: Duration) {
    loop {
        tokio::time::sleep(LOOK).await;
        if *shared.role.borrow() != Role::Leading || !shared.leads() {
            continue;
        }
        let now = shared.now();
        let Some(reclaim) = shared.index().reclaim(now, patience) else { continue };
        evict_all(&shared, &client, &reclaim).await;
    }
}

async fn evict_all(shared: &Shared, client: &Client, reclaim: &Reclaim) {
    for dry in [true, false] {
        for (name, uid) in &reclaim.victims {
            if let Err(reason) = evict(client, name, uid, dry).await {
                let (victim, pod) = (name, &reclaim.pod);
                tracing::warn!(%victim, %pod, reason, "it borrows and cannot be evicted now");
                let now = shared.now();
                shared.index().evicting(std::slice::from_ref(uid), false, now);
                return;
            }
            if !dry {
                let (victim, pod) = (name, &reclaim.pod);
                tracing::info!(%victim, %pod, "evicted: what it borrows is guaranteed to the other");
                let now = shared.now();
                shared.index().evicting(std::slice::from_ref(uid), true, now);
            }
        }
    }
}

/// The UID makes the API server refuse it for another pod of that name.
async fn evict(client: &Client, pod: &PodName, uid: &PodUid, dry: bool) -> Result<(), String> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
    let eviction = json!({
        "apiVersion": "policy/v1", "kind": "Eviction",
        "metadata": { "namespace": pod.namespace, "name": pod.name },
        "deleteOptions": { "preconditions": { "uid": uid.as_str() } },
    });
    let params = PostParams { dry_run: dry, field_manager: None };
    let asked = pods.create_subresource::<Value, Value>("eviction", &pod.name, &params, &eviction);
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Ok(_)) => Ok(()),
        // It is gone, which is what was wanted.
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {PATIENCE:?}")),
    }
}
