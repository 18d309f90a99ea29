//! What an index is asked, at one moment, and what is bound by its answers.
#![allow(dead_code, clippy::unwrap_used, reason = "not every test needs all of it")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use gpuzone_api::kubernetes::PodUid;
use gpuzone_scheduler_ext::index::{Gate, Index, Moment, ReserveError, Settled};
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

/// Who has to go from a node so that a pod has room there; nobody when that cannot be.
pub(crate) fn victims(
    index: &Index,
    pod: &Value,
    on: &str,
    named: &BTreeSet<PodUid>,
) -> Option<BTreeSet<PodUid>> {
    let nodes = BTreeMap::from([(on.to_owned(), named.clone())]);
    index.preempt(&view(pod), &nodes).remove(on).map(|victims| victims.pods)
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

/// The same of a group that goes out as a whole: all of it on one node.
pub(crate) fn bind_group(index: &mut Index, pods: &[Value], on: &str) -> Vec<Value> {
    pods.iter().for_each(|pod| index.apply_pod(view(pod)));
    let called = pods.iter().map(|pod| {
        assert_eq!(said(index, pod, &[on]), [None], "{pod}");
        index.reserve(&view(pod).uid, &node(on)).unwrap()
    });
    let called: Vec<_> = called.collect();
    let bound = pods.iter().zip(called).map(|(pod, order)| {
        if order.grouped {
            assert_eq!(index.gate(&order.uid, order.ticket), Gate::Open);
        }
        index.settle(&order.uid, order.ticket, Settled::Written, T);
        let mut bound = pod.clone();
        bound["spec"]["nodeName"] = json!(on);
        bound["metadata"]["annotations"]["gpuzone.dev/placement"] =
            json!(order.placement.to_string());
        index.apply_pod(view(&bound));
        bound
    });
    bound.collect()
}
