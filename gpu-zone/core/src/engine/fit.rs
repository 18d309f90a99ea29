use std::cmp::Reverse;

use crate::MemoryBytes;

use super::{
    Amount, Demand, GpuRoom, HostDemand, MemoryAsk, NodeRoom, PodDemand, ShareMilli, Topology,
};

/// What a container gets of one GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given {
    /// Which, counted as in [`NodeRoom::gpus`].
    pub gpu: usize,
    /// Its memory.
    pub memory: MemoryBytes,
    /// Its time.
    pub share: ShareMilli,
}

/// Which GPUs each container of a pod gets, and what the pod takes of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    host: HostDemand,
    containers: Vec<Vec<Given>>,
}

impl Choice {
    pub(super) fn new(host: HostDemand, containers: Vec<Vec<Given>>) -> Self {
        Self { host, containers }
    }

    /// What is taken of the host.
    pub const fn host(&self) -> HostDemand {
        self.host
    }

    /// For each of [`PodDemand::containers`], in that order, distinct GPUs.
    pub fn containers(&self) -> &[Vec<Given>] {
        &self.containers
    }
}

/// Why a node does not serve a pod. Without numbers of the node's, so that a scheduler groups
/// equal ones: "3 nodes: ...".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Reason {
    /// Processors are taken.
    #[error("too little CPU is free")]
    HostCpu,
    /// The host's memory is taken.
    #[error("too little host memory is free")]
    HostMemory,
    /// No GPU at all.
    #[error("no GPU")]
    NoGpu,
    /// Other products than asked for, or fewer of them.
    #[error("too few GPUs of a model that was asked for")]
    Model,
    /// Handed over in another way.
    #[error("too few GPUs with the exposure that was asked for")]
    Exposure,
    /// However empty, they are too few.
    #[error("fewer GPUs than asked for")]
    TooFew,
    /// However empty, they are too small.
    #[error("too few GPUs with that much memory, even when empty")]
    TooSmall,
    /// Out of service.
    #[error("too few healthy GPUs")]
    Unhealthy,
    /// Too far from each other.
    #[error("too few GPUs that are that near to each other")]
    Topology,
    /// Their memory is taken.
    #[error("too few GPUs with that much memory free")]
    GpuMemory,
    /// Their time is taken.
    #[error("too few GPUs with that much time free")]
    GpuShare,
    /// Some have the memory and others the time.
    #[error("too few GPUs with that much memory and time free at once")]
    GpuRoom,
    /// Each container would fit alone.
    #[error("each container would fit, but not all of them together")]
    Together,
}

/// How a policy sees GPUs for one container: the cheapest is tried first, and of equals the first.
pub(super) trait Prefer {
    /// The GPUs of the node are these now, as other containers left them.
    fn see(&mut self, _gpus: &[GpuRoom]) {}

    /// What it costs when `after` is left of `before`, GPU `at` of those seen last.
    fn cost(&mut self, at: usize, before: &GpuRoom, after: &GpuRoom) -> f64;
}

/// Those that are left with the least.
pub(super) struct Fullest;

impl Prefer for Fullest {
    fn cost(&mut self, _at: usize, _before: &GpuRoom, after: &GpuRoom) -> f64 {
        f64::from(after.free_milli())
    }
}

/// Steps of the search over several containers; what a pod of eight containers on eight GPUs
/// needs at most, in practice a handful.
const MOST_STEPS: u32 = 4096;

/// Chooses GPUs for `pod`: those that are left with the least.
///
/// # Errors
/// When the node does not serve it, with what would have to change first.
pub fn fit(node: &NodeRoom, pod: &PodDemand) -> Result<Choice, Reason> {
    choose(node, pod, &mut Fullest).map(|(choice, _)| choice)
}

/// Chooses GPUs for `pod`, cheapest first. With the cost, where one GPU is all that is given.
pub(super) fn choose(
    node: &NodeRoom,
    pod: &PodDemand,
    prefer: &mut dyn Prefer,
) -> Result<(Choice, Option<f64>), Reason> {
    host_has(node, pod)?;
    if let [only] = pod.containers.as_slice()
        && (only.gpus.get(), only.topology) == (1, Topology::Any)
    {
        let found = cheapest(node.gpus(), only, prefer);
        let (cost, given) =
            found.ok_or_else(|| why_not(node.gpus(), only).unwrap_or(Reason::Together))?;
        return Ok((Choice::new(pod.host, vec![vec![given]]), Some(cost)));
    }
    let mut order: Vec<usize> = (0..pod.containers.len()).collect();
    // What has the fewest places goes first; then the first try nearly always succeeds.
    order.sort_by_key(|at| pod.containers.get(*at).map(|demand| Reverse(hardness(demand))));
    let mut search = Search {
        pod,
        prefer,
        gpus: node.gpus().to_vec(),
        given: vec![Vec::new(); pod.containers.len()],
        steps: MOST_STEPS,
    };
    if search.containers(&order) {
        return Ok((Choice::new(pod.host, search.given), None));
    }
    let alone = pod.containers.iter().filter_map(|demand| why_not(node.gpus(), demand));
    Err(alone.min().unwrap_or(Reason::Together))
}

/// What `demand` gets of a GPU, and what is left of it; `None` when it has no room.
fn serves(at: usize, gpu: &GpuRoom, demand: &Demand) -> Option<(Given, GpuRoom)> {
    let (memory, share) = demand.amount.on(gpu);
    let serves = demand.suits(gpu) && gpu.kind().healthy;
    let after = gpu.less(memory, share).filter(|_| serves)?;
    Some((Given { gpu: at, memory, share }, after))
}

/// The search for one GPU, which is what most pods ask for: one pass, and nothing allocated.
fn cheapest(gpus: &[GpuRoom], demand: &Demand, prefer: &mut dyn Prefer) -> Option<(f64, Given)> {
    let mut best: Option<(f64, Given)> = None;
    let mut seen = false;
    for (at, gpu) in gpus.iter().enumerate() {
        let Some((given, after)) = serves(at, gpu, demand) else { continue };
        // One that is like an earlier one costs the same, and of equals the first is taken.
        if gpus.iter().take(at).any(|other| other == gpu) {
            continue;
        }
        if !seen {
            prefer.see(gpus);
            seen = true;
        }
        let cost = prefer.cost(at, gpu, &after);
        if best.is_none_or(|(other, _)| cost.total_cmp(&other).is_lt()) {
            best = Some((cost, given));
        }
    }
    best
}

fn host_has(node: &NodeRoom, pod: &PodDemand) -> Result<(), Reason> {
    if pod.host.cpu_milli > node.host().cpu_milli {
        return Err(Reason::HostCpu);
    }
    if pod.host.memory > node.host().memory {
        return Err(Reason::HostMemory);
    }
    Ok(())
}

fn hardness(demand: &Demand) -> (Topology, u32, bool, u64, ShareMilli) {
    let (memory, share) = match demand.amount {
        Amount::Whole => (u64::MAX, ShareMilli::WHOLE),
        Amount::Part { memory: MemoryAsk::Bytes(bytes), share } => {
            (bytes.get(), share.unwrap_or(ShareMilli::NONE))
        }
        Amount::Part { memory: MemoryAsk::Percent(part), share } => {
            (u64::from(part.percent()), share.unwrap_or(part.into()))
        }
    };
    (demand.topology, demand.gpus.get(), demand.amount == Amount::Whole, memory, share)
}

/// A depth-first search over containers, and within one over sets of GPUs.
struct Search<'a> {
    pod: &'a PodDemand,
    prefer: &'a mut dyn Prefer,
    gpus: Vec<GpuRoom>,
    given: Vec<Vec<Given>>,
    steps: u32,
}

impl Search<'_> {
    /// Serves the containers that `order` names; what was given stays as it was when it cannot.
    fn containers(&mut self, order: &[usize]) -> bool {
        let Some((at, rest)) = order.split_first() else { return true };
        let Some(demand) = self.pod.containers.get(*at).copied() else { return false };
        let groups = groups(&self.gpus, demand.topology);
        let mut sets: Vec<(f64, Vec<(f64, Given)>)> = groups
            .into_iter()
            .map(|group| self.candidates(&demand, &group))
            .filter(|found| found.len() as u64 >= u64::from(demand.gpus.get()))
            .map(|found| {
                let first = found.iter().take(demand.gpus.get() as usize);
                (first.map(|(cost, _)| cost).sum(), found)
            })
            .collect();
        sets.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        sets.into_iter().any(|(_, found)| self.gpus_of(*at, demand.gpus.get(), &found, rest))
    }

    /// GPUs of `group` that have room, cheapest first; none when they are too few.
    fn candidates(&mut self, demand: &Demand, group: &[usize]) -> Vec<(f64, Given)> {
        let with_room = group.iter().filter_map(|at| serves(*at, self.gpus.get(*at)?, demand));
        let with_room: Vec<(Given, GpuRoom)> = with_room.collect();
        if (with_room.len() as u64) < u64::from(demand.gpus.get()) {
            return Vec::new();
        }
        self.prefer.see(&self.gpus);
        // GPUs that are alike cost the same, and an outlook is not cheap to ask.
        let mut asked: Vec<(&GpuRoom, f64)> = Vec::new();
        let mut found: Vec<(f64, Given)> = Vec::with_capacity(with_room.len());
        for (given, after) in with_room {
            let Some(gpu) = self.gpus.get(given.gpu) else { continue };
            let cost = match asked.iter().find(|(other, _)| *other == gpu) {
                Some((_, cost)) => *cost,
                None => {
                    let cost = self.prefer.cost(given.gpu, gpu, &after);
                    asked.push((gpu, cost));
                    cost
                }
            };
            found.push((cost, given));
        }
        found.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        found
    }

    /// Takes `count` of `found` for container `at`, then serves the `rest`.
    fn gpus_of(&mut self, at: usize, count: u32, found: &[(f64, Given)], rest: &[usize]) -> bool {
        if count == 0 {
            return self.containers(rest);
        }
        let mut last: Option<GpuRoom> = None;
        for (n, (_, given)) in found.iter().enumerate() {
            let before = self.gpus.get(given.gpu).copied();
            let after = before.and_then(|gpu| gpu.less(given.memory, given.share));
            let (Some(before), Some(after)) = (before, after) else { continue };
            // A GPU just like one that did not lead anywhere does not either.
            if last == Some(before) {
                continue;
            }
            if self.steps == 0 {
                return false;
            }
            self.steps -= 1;
            self.set(given.gpu, after);
            self.push(at, *given);
            if self.gpus_of(at, count - 1, found.get(n + 1..).unwrap_or_default(), rest) {
                return true;
            }
            self.pop(at);
            self.set(given.gpu, before);
            last = Some(before);
        }
        false
    }

    fn set(&mut self, at: usize, room: GpuRoom) {
        if let Some(gpu) = self.gpus.get_mut(at) {
            *gpu = room;
        }
    }

    fn push(&mut self, at: usize, given: Given) {
        if let Some(of) = self.given.get_mut(at) {
            of.push(given);
        }
    }

    fn pop(&mut self, at: usize) {
        if let Some(of) = self.given.get_mut(at) {
            of.pop();
        }
    }
}

/// The sets of GPUs that are near enough to each other.
fn groups(gpus: &[GpuRoom], topology: Topology) -> Vec<Vec<usize>> {
    let key = |gpu: &GpuRoom| match topology {
        Topology::Any => Some(0),
        Topology::SameNuma => gpu.kind().numa,
        Topology::NvLink => gpu.kind().nvlink,
    };
    let mut groups: Vec<(u16, Vec<usize>)> = Vec::new();
    for (at, gpu) in gpus.iter().enumerate() {
        let Some(key) = key(gpu) else { continue };
        match groups.iter_mut().find(|(other, _)| *other == key) {
            Some((_, group)) => group.push(at),
            None => groups.push((key, vec![at])),
        }
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

/// What a GPU must pass, in this order, and what is said when too few do.
pub(super) const STEPS: [Reason; 8] = [
    Reason::TooFew,
    Reason::Model,
    Reason::Exposure,
    Reason::TooSmall,
    Reason::Unhealthy,
    Reason::GpuMemory,
    Reason::GpuShare,
    Reason::GpuRoom,
];

/// How many of [`STEPS`] a GPU passes, to the first that it does not.
pub(super) fn passed(gpu: &GpuRoom, demand: &Demand) -> usize {
    let (kind, (memory, share)) = (gpu.kind(), demand.amount.on(gpu));
    let passes = [
        true,
        demand.models.contains(kind.model),
        demand.exposure == kind.exposure,
        memory <= kind.memory,
        kind.healthy,
        memory <= gpu.free_memory(),
        share <= gpu.free_share(),
        true,
    ];
    passes.iter().take_while(|passes| **passes).count()
}

/// What would have to change first for `demand` alone, whatever CPU and memory the node has; `None`
/// when it would fit. One pass over the GPUs, without a search.
pub(super) fn why_not(gpus: &[GpuRoom], demand: &Demand) -> Option<Reason> {
    if gpus.is_empty() {
        return Some(Reason::NoGpu);
    }
    let mut counts = [0_u64; STEPS.len()];
    for gpu in gpus {
        counts.iter_mut().take(passed(gpu, demand)).for_each(|count| *count += 1);
    }
    let wanted = u64::from(demand.gpus.get());
    if let Some((reason, _)) = STEPS.iter().zip(counts).find(|(_, count)| *count < wanted) {
        return Some(*reason);
    }
    if demand.topology == Topology::Any {
        return None;
    }
    let all = |at: &&usize| gpus.get(**at).is_some_and(|gpu| passed(gpu, demand) == STEPS.len());
    let somewhere = groups(gpus, demand.topology)
        .iter()
        .any(|group| group.iter().filter(all).count() as u64 >= wanted);
    (!somewhere).then_some(Reason::Topology)
}
