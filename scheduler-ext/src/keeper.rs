//! What the leader does beside binding: looks at lost answers, wakes pods that wait, and writes
//! what is used of quotas.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use gpuzone_api::kubernetes::NodeName;
pub use gpuzone_api::kubernetes::WAKE_ANNOTATION;
use gpuzone_crds::{GpuQuota, GpuQuotaStatus};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

use crate::binder::Binder;
use crate::shared::{Role, Shared};

/// Whose fields these are, for server-side apply.
pub const MANAGER: &str = "gpu-zone-scheduler-ext";

const LOOK: Duration = Duration::from_millis(500);
const STATUS: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(4);
/// Looks at one time; the others' turn comes.
const LOOKS: usize = 32;

/// Ends plans that are over, and looks at pods whose answer was lost.
pub(crate) async fn look_after(shared: Arc<Shared>, binder: Binder) {
    loop {
        tokio::time::sleep(LOOK).await;
        let now = shared.now();
        shared.index().expire_groups(now);
        shared.stirred.notify_waiters();
        let overdue = shared.index().overdue(now);
        for late in overdue.into_iter().take(LOOKS) {
            match binder.look(&late.pod, &late.uid).await {
                Ok(look) => {
                    let now = shared.now();
                    shared.index().looked(&late.uid, late.ticket, look, now);
                }
                Err(error) => {
                    tracing::debug!(pod = %late.pod, %error, "cannot be looked at");
                    break;
                }
            }
        }
    }
}

/// Touches one node's annotation when something changed in favour of pods that wait, and no more
/// than one in each `interval`: the scheduler looks at all of them again. A touch that failed is tried again.
pub(crate) async fn wake(shared: Arc<Shared>, client: Client, interval: Duration) {
    let nodes: Api<Node> = Api::all(client);
    // What is told the index tells once, so it is kept here until some node was touched for it.
    let mut owed: BTreeSet<NodeName> = BTreeSet::new();
    loop {
        tokio::time::sleep(interval).await;
        if *shared.role.borrow() != Role::Leading {
            continue;
        }
        {
            let mut index = shared.index();
            owed.extend(index.take_favours());
            if !index.anybody_waits() {
                owed.clear();
            }
        }
        let Some(node) = owed.first().cloned() else { continue };
        match touch(&nodes, &node).await {
            Touch::Done => owed.clear(),
            Touch::NoNode => {
                // Any other will do.
                let others = shared.index().another_node(&node);
                if owed.len() > 1 || others.is_some() {
                    owed.remove(&node);
                    owed.extend(others);
                }
            }
            Touch::Failed => {}
        }
    }
}

enum Touch {
    Done,
    NoNode,
    Failed,
}

async fn touch(nodes: &Api<Node>, node: &NodeName) -> Touch {
    let now = k8s_openapi::jiff::Timestamp::now().to_string();
    let touch = json!({ "metadata": { "annotations": { WAKE_ANNOTATION: now } } });
    let params = PatchParams::default();
    let patch = Patch::Merge(&touch);
    let patched = nodes.patch_metadata(node.as_str(), &params, &patch);
    match tokio::time::timeout(PATIENCE, patched).await {
        Ok(Ok(_)) => {
            tracing::debug!(%node, "touched, so that waiting pods are looked at");
            Touch::Done
        }
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => Touch::NoNode,
        Ok(Err(error)) => {
            tracing::warn!(%node, %error, "cannot wake waiting pods yet");
            Touch::Failed
        }
        Err(_) => {
            tracing::warn!(%node, "cannot wake waiting pods yet: no answer");
            Touch::Failed
        }
    }
}

/// Writes quotas' status when it changes.
pub(crate) async fn publish(shared: Arc<Shared>, client: Client) {
    let quotas: Api<GpuQuota> = Api::all(client);
    let mut written: BTreeMap<String, GpuQuotaStatus> = BTreeMap::new();
    loop {
        tokio::time::sleep(STATUS).await;
        if *shared.role.borrow() != Role::Leading {
            // Another one writes; what stands there is not known here any more.
            written.clear();
            continue;
        }
        let reports = shared.index().quota_reports();
        written.retain(|name, _| reports.iter().any(|report| report.name == *name));
        for report in reports {
            if written.get(&report.name) == Some(&report.status) {
                continue;
            }
            let object = json!({
                "apiVersion": "gpuzone.dev/v1alpha1", "kind": "GpuQuota",
                "metadata": { "name": report.name },
                "status": report.status,
            });
            let params = PatchParams::apply(MANAGER).force();
            let patch = Patch::Apply(&object);
            let patched = quotas.patch_status(&report.name, &params, &patch);
            match tokio::time::timeout(PATIENCE, patched).await {
                Ok(Ok(_)) => {
                    written.insert(report.name, report.status);
                }
                Ok(Err(error)) => {
                    tracing::warn!(quota = report.name, %error, "its status cannot be written");
                }
                Err(_) => break,
            }
        }
    }
}
