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
#[cfg(test)]
mod fixtures;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use gpuzone_api::agent::v1::{Gpu, Partition, WatchGpusReply};
use gpuzone_core::{Exposure, InvalidExposure};
use gpuzone_crds::{GpuEntry, GpuNodeStatus, MOST_PROFILES, PartitionEntry};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::answer::VfioInterface;
use crate::links::{AgentLink, numa_nodes};
use crate::mig::{Instance, instances};
use crate::whole::{WholeGpu, vgpus, whole_gpus};

pub(crate) use report::Reporter;

/// Between two attempts to reach the agent: it is back within a second or so of a restart.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// An agent that restarts is back within this time; one that is not says nothing.
const RESTARTS: Duration = Duration::from_secs(30);

/// One word for a GPU that is well and that no container could open.
const NOT_READY: &str = "not-ready";
/// One word for a GPU that a later release of the agent hands over in a way of its own.
const UNKNOWN_EXPOSURE: &str = "unknown-exposure";

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
    /// The NUMA nodes that those are near to whose leases are in slots.
    pub(crate) numa: BTreeSet<u32>,
    /// Those that containers get whole.
    pub(crate) whole: Vec<WholeGpu>,
    /// The vGPUs.
    pub(crate) vgpus: Vec<WholeGpu>,
    /// Those that containers get one of.
    pub(crate) instances: Vec<Instance>,
}

impl NodeGpus {
    fn of(state: &WatchGpusReply, interface: VfioInterface) -> Self {
        let whole = whole_gpus(&state.gpus, interface);
        let status = status(&state.driver, &state.gpus, &whole);
        let vgpus = vgpus(&state.gpus, interface);
        let (numa, instances) = (numa_nodes(&state.gpus), instances(&state.gpus));
        Self { status, numa, whole, vgpus, instances }
    }

    /// Whether a GPU takes new leases in slots.
    pub(crate) fn serves_slots(&self) -> bool {
        let in_slots = |gpu: &GpuEntry| gpu.exposure.is_shared() && gpu.healthy;
        self.status.gpus.iter().any(in_slots)
    }
}

/// What the agent says of its GPUs, as the scheduler reads it.
fn status(driver: &str, gpus: &[Gpu], whole: &[WholeGpu]) -> GpuNodeStatus {
    GpuNodeStatus::new(driver, gpus.iter().map(|gpu| entry(gpu, whole)).collect())
}

/// Why a GPU takes no new leases: one word, and the sentence.
fn why(
    gpu: &Gpu,
    exposure: &Result<Exposure, InvalidExposure>,
    whole: &[WholeGpu],
) -> Option<(String, String)> {
    if let Some(reason) = &gpu.out_of_service {
        return Some((gpu.cause.clone(), reason.clone()));
    }
    let listed = whole.iter().find(|whole| whole.gpu.to_string() == gpu.uuid);
    let trouble = listed.and_then(|whole| whole.ready.as_ref().err()).or(gpu.not_ready.as_ref());
    if let Some(trouble) = trouble {
        return Some((NOT_READY.to_owned(), trouble.clone()));
    }
    // Nothing that this release could be asked for.
    exposure.as_ref().err().map(|unknown| (UNKNOWN_EXPOSURE.to_owned(), unknown.to_string()))
}

fn entry(gpu: &Gpu, whole: &[WholeGpu]) -> GpuEntry {
    let exposure = gpu.exposure.parse();
    let (cause, reason) = why(gpu, &exposure, whole).unzip();
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
        exposure: exposure.unwrap_or_default(),
        partitions: partitions(&gpu.partitions, reason.is_none()),
        healthy: reason.is_none(),
        reason,
        cause,
        needs_operator: gpu.quarantine.is_some(),
    }
    .bounded()
}

/// The partitions of each profile. Where their GPU is out, none of them takes a lease.
fn partitions(parts: &[Partition], gpu_serves: bool) -> Vec<PartitionEntry> {
    let mut entries: BTreeMap<&str, PartitionEntry> = BTreeMap::new();
    for part in parts {
        let entry = entries.entry(&part.profile).or_insert_with(|| PartitionEntry {
            profile: part.profile.clone(),
            count: 0,
            healthy: 0,
            memory_bytes: part.memory_bytes,
            share_percent: Some(part.share_percent).filter(|share| *share > 0),
        });
        let well = gpu_serves && part.out_of_service.is_none() && part.not_ready.is_none();
        entry.count += 1;
        entry.healthy += u32::from(well);
        // Of instances of one profile that differ, none has less than what is promised.
        entry.memory_bytes = entry.memory_bytes.min(part.memory_bytes);
    }
    entries.into_values().take(MOST_PROFILES).collect()
}

/// Follows the agent for ever, however often it restarts. Whole GPUs are opened by `interface`.
pub(crate) async fn follow(
    agent: &AgentLink,
    interface: VfioInterface,
    words: &watch::Sender<Word>,
) {
    let mut pause = SHORTEST_PAUSE;
    let mut heard = Instant::now();
    let mut said = String::new();
    loop {
        let error = agent
            .follow(|state| {
                (pause, heard) = (SHORTEST_PAUSE, Instant::now());
                let word = Word::Says(Arc::new(NodeGpus::of(&state, interface)));
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
    use gpuzone_api::agent::v1::VfioFunction;
    use gpuzone_core::GpuUuid;

    #[test]
    fn what_the_agent_says_is_what_is_written() {
        let well = Gpu {
            uuid: "GPU-00000000-0000-0000-0000-000000000001".into(),
            name: "x".repeat(500),
            backing: "simulated".into(),
            memory_bytes: 1 << 30,
            exposure: "mediated".into(),
            ..Default::default()
        };
        let why = Some("ä".repeat(1000));
        let (cause, out_of_service) = ("xid-79".to_owned(), why.clone());
        let sick = Gpu { quarantine: why.clone(), out_of_service, cause, ..well.clone() };
        let (cause, out_of_service) = ("zone".to_owned(), why);
        let waits = Gpu { out_of_service, cause, ..well.clone() };
        let written = status("simulated", &[well, sick, waits], &[]);
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
        let version = |gpu: Gpu| status("simulated", &[gpu], &[]).inventory_version;
        assert_eq!(version(busy), version(idle));
    }

    #[test]
    fn a_gpu_in_mig_mode_says_what_it_is_cut_into() {
        let part = |profile: &str, out: Option<&str>| Partition {
            profile: profile.into(),
            memory_bytes: 10 << 30,
            share_percent: 14,
            out_of_service: out.map(Into::into),
            ..Default::default()
        };
        let parts =
            vec![part("1g.10gb", None), part("2g.20gb", None), part("1g.10gb", Some("scrub"))];
        let gpu = Gpu {
            uuid: GpuUuid::from_bytes([1; 16]).to_string(),
            exposure: "mig".into(),
            memory_bytes: 80 << 30,
            partitions: parts,
            ..Default::default()
        };
        let counts = |entry: &GpuEntry| -> Vec<(String, u32, u32)> {
            let of = |p: &PartitionEntry| (p.profile.clone(), p.count, p.healthy);
            entry.partitions.iter().map(of).collect()
        };
        let node = NodeGpus::of(
            &WatchGpusReply { gpus: vec![gpu.clone()], ..Default::default() },
            VfioInterface::Group,
        );
        let entry = &node.status.gpus[0];
        assert_eq!(counts(entry), [("1g.10gb".into(), 2, 1), ("2g.20gb".into(), 1, 1)]);
        assert_eq!(entry.partitions[0].share_percent, Some(14));
        assert!(entry.healthy && !node.serves_slots(), "no slot is of it");
        let sick = Gpu { out_of_service: Some("Xid 79".into()), ..gpu };
        let entry = status("nvidia", &[sick], &[]).gpus.remove(0);
        assert_eq!(counts(&entry), [("1g.10gb".into(), 2, 0), ("2g.20gb".into(), 1, 0)]);
    }

    #[test]
    fn slots_are_of_mediated_gpus_and_each_gpu_says_what_keeps_it_out() {
        let gpu = |number: u8, exposure: &str| Gpu {
            uuid: GpuUuid::from_bytes([number; 16]).to_string(),
            name: "A".into(),
            pci_address: format!("0000:{number:02x}:00.0"),
            memory_bytes: 1 << 30,
            exposure: exposure.into(),
            numa_node: Some(number.into()),
            ..Default::default()
        };
        let vfio = Some(VfioFunction { group: 12, device: String::new() });
        let whole = Gpu { vfio: vfio.clone(), ..gpu(1, "passthrough") };
        let bound = Gpu { not_ready: Some("bound to nvidia".into()), ..gpu(2, "passthrough") };
        let (out, cause) = (Some("Xid 79".to_owned()), "xid-79".to_owned());
        let sick = Gpu { out_of_service: out, cause, vfio, ..gpu(3, "passthrough") };
        let later = gpu(4, "borrowed");
        let of = |gpus: Vec<Gpu>, interface| {
            NodeGpus::of(&WatchGpusReply { gpus, ..Default::default() }, interface)
        };
        let gpus = vec![whole, bound, sick, later];
        let node = of(gpus.clone(), VfioInterface::Group);
        let told = |node: &NodeGpus| -> Vec<Option<String>> {
            node.status.gpus.iter().map(|entry| entry.cause.clone()).collect()
        };
        let word = |cause: &str| Some(cause.to_owned());
        let others = [word("not-ready"), word("xid-79"), word("unknown-exposure")];
        assert_eq!(told(&node)[..], [&[None], &others[..]].concat());
        assert!(node.status.gpus[3].reason.as_ref().is_some_and(|why| why.contains("'borrowed'")));
        assert!(node.status.gpus.iter().all(|entry| entry.healthy == entry.reason.is_none()));
        // One that serves whole makes no slot serve, and is near to none.
        assert_eq!((node.status.healthy, node.serves_slots()), (1, false));
        assert!(node.numa.is_empty());
        let ready: Vec<bool> = node.whole.iter().map(|gpu| gpu.ready.is_ok()).collect();
        assert_eq!(ready, [true, false, false]);
        // What cannot be opened in the way that this plugin hands out is not placed either.
        let node = of(gpus.clone(), VfioInterface::Iommufd);
        assert_eq!(told(&node)[0], word("not-ready"));
        let mediated = [gpus, vec![gpu(5, "mediated")]].concat();
        let node = of(mediated, VfioInterface::Group);
        assert!(node.serves_slots() && node.numa == BTreeSet::from([5]));
    }
}
