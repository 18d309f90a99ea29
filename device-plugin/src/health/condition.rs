//! The node's condition: how its GPUs are.

use gpuzone_api::kubernetes::NodeName;
use gpuzone_crds::{GpuEntry, GpuNodeStatus};
use k8s_openapi::api::core::v1::{Node, NodeCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

use super::Word;
use crate::links::{LinkError, within};

/// The condition's type.
pub(super) const TYPE: &str = "GpuZoneGpusHealthy";
/// Who writes it, for server-side apply: apart from whoever writes the GpuNode, and from the
/// kubelet, whose conditions stay its own.
const MANAGER: &str = "gpu-zone-gpu-health";
/// As many GPUs are named.
const NAMED: usize = 8;

/// What the condition says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    status: &'static str,
    reason: &'static str,
    message: String,
}

/// What the condition says of this; nothing before the agent was heard.
pub(super) fn verdict(word: &Word) -> Option<Verdict> {
    match word {
        Word::None => None,
        Word::Silent(why) => Some(Verdict {
            status: "Unknown",
            reason: "AgentSilent",
            message: why.chars().take(500).collect(),
        }),
        Word::Says(gpus) => Some(of(&gpus.status)),
    }
}

fn of(status: &GpuNodeStatus) -> Verdict {
    let out: Vec<&GpuEntry> = status.gpus.iter().filter(|gpu| !gpu.healthy).collect();
    let (total, bad) = (status.gpus.len(), out.len());
    if total == 0 {
        let message = "the agent knows no GPU of this node".to_owned();
        return Verdict { status: "False", reason: "NoGpu", message };
    }
    if bad == 0 {
        let message = format!("all {total} GPUs take new leases");
        return Verdict { status: "True", reason: "AllServe", message };
    }
    let one = |gpu: &&GpuEntry| {
        let how = if gpu.needs_operator { "quarantined" } else { "suspended" };
        let cause = gpu.cause.as_deref().unwrap_or("no reason given");
        format!("GPU {} {how} ({cause})", gpu.index)
    };
    let named: Vec<String> = out.iter().take(NAMED).map(one).collect();
    let more = match bad.saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let message = format!(
        "{bad} of {total} GPUs take no new leases: {}{more}; the GpuNode says why",
        named.join(", ")
    );
    let reason = if bad == total { "NoneServes" } else { "SomeServe" };
    Verdict { status: "False", reason, message }
}

/// Writes the condition when it changes.
pub(super) struct Condition {
    nodes: Api<Node>,
    node: NodeName,
    /// What the node has, once it is known.
    written: Option<NodeCondition>,
}

fn says(condition: &NodeCondition, verdict: &Verdict) -> bool {
    condition.status == verdict.status
        && condition.reason.as_deref() == Some(verdict.reason)
        && condition.message.as_deref() == Some(verdict.message.as_str())
}

impl Condition {
    pub(super) fn new(client: Client, node: NodeName) -> Self {
        Self { nodes: Api::all(client), node, written: None }
    }

    /// Writes it, unless it is there already.
    ///
    /// # Errors
    /// When the API server does not take it.
    pub(super) async fn write(&mut self, verdict: &Verdict) -> Result<(), LinkError> {
        let name = self.node.as_str();
        if self.written.is_none() {
            let node = within("get nodes", self.nodes.get(name)).await?;
            let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
            self.written = conditions.into_iter().find(|condition| condition.type_ == TYPE);
        }
        if self.written.as_ref().is_some_and(|written| says(written, verdict)) {
            return Ok(());
        }
        let now = Time(Timestamp::now());
        let before = self.written.as_ref().filter(|before| before.status == verdict.status);
        let since = before.and_then(|before| before.last_transition_time.clone());
        let condition = NodeCondition {
            type_: TYPE.to_owned(),
            status: verdict.status.to_owned(),
            reason: Some(verdict.reason.to_owned()),
            message: Some(verdict.message.clone()),
            last_heartbeat_time: Some(now.clone()),
            last_transition_time: Some(since.unwrap_or(now)),
        };
        let object = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": name },
            "status": { "conditions": [condition] },
        });
        let apply = PatchParams::apply(MANAGER).force();
        let patch = Patch::Apply(&object);
        let patched = self.nodes.patch_status(name, &apply, &patch);
        within("patch nodes/status", patched).await?;
        tracing::info!(status = verdict.status, message = verdict.message, "the node's condition");
        self.written = Some(condition);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::NodeGpus;
    use super::super::fixtures::gpu;
    use super::*;

    fn word(healths: &[Option<(&str, bool)>]) -> Word {
        let out = |(index, health): (u32, &Option<(&str, bool)>)| {
            let operator = health.is_some_and(|(_, operator)| operator);
            gpu(index, health.map(|(cause, _)| cause), operator)
        };
        let gpus = (0..).zip(healths).map(out).collect();
        let status = GpuNodeStatus::new("nvidia", gpus);
        Word::Says(Arc::new(NodeGpus {
            vgpus: Vec::new(),
            status,
            numa: Default::default(),
            whole: Vec::new(),
            instances: Vec::new(),
        }))
    }

    #[test]
    fn it_names_the_gpus_and_is_never_long() {
        let said = |word: &Word| {
            let Verdict { status, reason, message } = verdict(word).unwrap();
            (status, reason, message)
        };
        assert_eq!(verdict(&Word::None), None);
        assert_eq!(said(&word(&[])).1, "NoGpu");
        let (status, reason, message) = said(&word(&[None, None]));
        assert_eq!((status, reason), ("True", "AllServe"));
        assert_eq!(message, "all 2 GPUs take new leases");
        let some = said(&word(&[None, Some(("xid-79", true)), Some(("zone", false))]));
        assert_eq!((some.0, some.1), ("False", "SomeServe"));
        let expected = "2 of 3 GPUs take no new leases: GPU 1 quarantined (xid-79), GPU 2 suspended (zone); the GpuNode says why";
        assert_eq!(some.2, expected);
        let (_, reason, message) = said(&word(&[Some(("unknown-xid", true)); 64]));
        assert_eq!(reason, "NoneServes");
        assert!(message.contains("and 56 more") && message.len() < 1000, "{message}");
        let (status, _, message) = said(&Word::Silent("ä".repeat(5000)));
        assert!(status == "Unknown" && message.len() <= 1000);
    }
}
