//! The health of the node's GPUs: from the agent, to the scheduler and to people.
//!
//! ```text
//! agent ──stream──▶ follow ──▶ what it says ─┬─▶ the kubelet's list of slots (run)
//!                                            └─▶ report ─┬─▶ GpuNode: what may be placed here
//!                                                        ├─▶ events of the node: what changed
//!                                                        └─▶ condition of the node: how it is
//! ```
//!
//! What changed is told from what the GpuNode says: it is the memory of this plugin and of the
//! one before it.

mod condition;
mod events;
mod report;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use gpuzone_api::agent::v1::{Gpu, WatchGpusReply};
use gpuzone_crds::{GpuEntry, GpuNodeStatus};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::links::{AgentLink, numa_nodes};

pub(crate) use report::Reporter;

/// Between two attempts to reach the agent: it is back within a second or so of a restart.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// An agent that restarts is back within this time; one that is not says nothing.
const RESTARTS: Duration = Duration::from_secs(30);

/// What the agent says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// Nothing yet.
    None,
    /// This.
    Says(Arc<NodeGpus>),
    /// It has said nothing for a while, for this reason.
    Silent(String),
}

/// The node's GPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeGpus {
    /// As the scheduler reads it.
    pub(crate) status: GpuNodeStatus,
    /// The NUMA nodes that they are near to.
    pub(crate) numa: BTreeSet<u32>,
}

impl NodeGpus {
    fn of(state: &WatchGpusReply) -> Self {
        Self { status: status(&state.driver, &state.gpus), numa: numa_nodes(&state.gpus) }
    }

    /// Whether a GPU takes new leases.
    pub(crate) fn serves(&self) -> bool {
        self.status.healthy > 0
    }
}

/// What the agent says of its GPUs, as the scheduler reads it.
fn status(driver: &str, gpus: &[Gpu]) -> GpuNodeStatus {
    GpuNodeStatus::new(driver, gpus.iter().map(entry).collect())
}

fn entry(gpu: &Gpu) -> GpuEntry {
    let cause = Some(gpu.cause.clone()).filter(|_| gpu.out_of_service.is_some());
    GpuEntry {
        uuid: gpu.uuid.clone(),
        index: gpu.index,
        model: gpu.name.clone(),
        memory_bytes: gpu.memory_bytes,
        compute_capability: gpu.compute_capability.clone(),
        numa_node: gpu.numa_node,
        nvlink_peers: gpu.nvlink_peers.clone(),
        mig_capable: gpu.mig_capable,
        simulated: gpu.backing == "simulated",
        healthy: gpu.out_of_service.is_none(),
        reason: gpu.out_of_service.clone(),
        cause,
        needs_operator: gpu.quarantine.is_some(),
    }
    .bounded()
}

/// Follows the agent for ever, however often it restarts.
pub(crate) async fn follow(agent: &AgentLink, words: &watch::Sender<Word>) {
    let mut pause = SHORTEST_PAUSE;
    let mut heard = Instant::now();
    let mut said = String::new();
    loop {
        let error = agent
            .follow(|state| {
                (pause, heard) = (SHORTEST_PAUSE, Instant::now());
                let word = Word::Says(Arc::new(NodeGpus::of(&state)));
                words.send_if_modified(|now| std::mem::replace(now, word.clone()) != word);
            })
            .await;
        let text = error.to_string();
        // Once: it goes on as long as the agent is away.
        if text != said {
            tracing::info!(error = text, "the GPUs stay listed as they are");
            said.clone_from(&text);
        }
        if heard.elapsed() >= RESTARTS {
            words.send_if_modified(|now| {
                // The first reason stands: another is no news.
                let news = !matches!(now, Word::Silent(_));
                if news {
                    *now = Word::Silent(text);
                }
                news
            });
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_agent_says_is_what_is_written() {
        let well = Gpu {
            uuid: "GPU-00000000-0000-0000-0000-000000000001".into(),
            name: "x".repeat(500),
            backing: "simulated".into(),
            memory_bytes: 1 << 30,
            ..Default::default()
        };
        let why = Some("ä".repeat(1000));
        let (cause, out_of_service) = ("xid-79".to_owned(), why.clone());
        let sick = Gpu { quarantine: why.clone(), out_of_service, cause, ..well.clone() };
        let (cause, out_of_service) = ("zone".to_owned(), why);
        let waits = Gpu { out_of_service, cause, ..well.clone() };
        let written = status("simulated", &[well, sick, waits]);
        assert_eq!((written.total, written.healthy), (3, 1));
        assert!(written.gpus[0].simulated && written.gpus[0].model.len() == 128);
        assert!(written.gpus[1].reason.as_ref().is_some_and(|reason| reason.len() <= 512));
        let told = |entry: &GpuEntry| (entry.cause.clone(), entry.needs_operator);
        let told: Vec<_> = written.gpus.iter().map(told).collect();
        let expected = [(None, false), (Some("xid-79".into()), true), (Some("zone".into()), false)];
        assert_eq!(told, expected);
        // What changes from second to second is not in it.
        let busy = Gpu { utilization_percent: Some(99), leases: 7, ..Default::default() };
        let idle = Gpu::default();
        let version = |gpu: Gpu| status("simulated", &[gpu]).inventory_version;
        assert_eq!(version(busy), version(idle));
    }
}
