//! What an index is asked, at one moment, and what is bound by its answers.
#![allow(dead_code, clippy::unwrap_used, reason = "not every test needs all of it")]

use std::time::Duration;

use gpuzone_scheduler_ext::index::{Index, Moment, ReserveError, Settled};
use serde_json::{Value, json};

use super::{node, view};

pub(crate) const T: Moment = Duration::from_secs(100);

/// Why each of the nodes does not serve, or nothing.
pub(crate) fn said(index: &mut Index, pod: &Value, nodes: &[&str]) -> Vec<Option<String>> {
    let filtered = index.filter(&view(pod), nodes, T).unwrap();
    let reasons = filtered.0.iter().map(|answer| answer.as_ref().err());
    reasons.map(|refusal| refusal.map(|r| r.reason.to_string())).collect()
}

/// Why the first node does not serve.
pub(crate) fn reason(index: &mut Index, pod: &Value) -> String {
    said(index, pod, &["n1"]).remove(0).unwrap_or_default()
}

/// As the binder does it, with an API server that takes everything.
pub(crate) fn bind(index: &mut Index, pod: &Value, on: &str) -> Result<Value, ReserveError> {
    index.apply_pod(view(pod));
    let order = index.reserve(&view(pod).uid, &node(on))?;
    index.settle(&order.uid, order.ticket, Settled::Written, T);
    let mut bound = pod.clone();
    bound["spec"]["nodeName"] = json!(on);
    bound["metadata"]["annotations"]["gpuzone.dev/placement"] = json!(order.placement.to_string());
    Ok(bound)
}
