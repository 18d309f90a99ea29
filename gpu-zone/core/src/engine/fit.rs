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

/// How a policy sees one GPU for one container: `(GPUs as they are, which, what is taken)` to a
/// cost; the cheapest is tried first, and of equals the first.
pub(super) type Prefer<'a> = &'a dyn Fn(&[GpuRoom], Given) -> f64;

/// Steps of the search over several containers; what a pod of eight containers on eight GPUs
/// needs at most, in practice a handful.
const MOST_STEPS: u32 = 4096;

/// Chooses GPUs for `pod`: those that are left with the least.
///
/// # Errors
/// When the node does not serve it, with what would have to change first.
pub fn fit(node: &NodeRoom, pod: &PodDemand) -> Result<Choice, Reason> {
    choose(node, pod, &|gpus, given| {
        let left = gpus.get(given.gpu).and_then(|gpu| gpu.less(given.memory, given.share));
        left.map_or(f64::MAX, |left| f64::from(left.free_milli()))
    })
}

/// Chooses GPUs for `pod`, cheapest first.
pub(super) fn choose(
    node: &NodeRoom,
    pod: &PodDemand,
    prefer: Prefer<'_>,
) -> Result<Choice, Reason> {
    host_has(node, pod)?;
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
        return Ok(Choice::new(pod.host, search.given));
    }
    let alone = pod.containers.iter().filter_map(|demand| why_not(node.gpus(), demand));
    Err(alone.min().unwrap_or(Reason::Together))
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
    prefer: Prefer<'a>,
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

    /// GPUs of `group` that have room, cheapest first.
    fn candidates(&self, demand: &Demand, group: &[usize]) -> Vec<(f64, Given)> {
        let with_room = group.iter().filter_map(|at| {
            let gpu = self.gpus.get(*at)?;
            let (memory, share) = demand.amount.on(gpu);
            let serves = demand.suits(gpu) && gpu.kind().healthy && gpu.has(memory, share);
            serves.then_some(Given { gpu: *at, memory, share })
        });
        // GPUs that are alike cost the same, and an outlook is not cheap to ask.
        let mut asked: Vec<(&GpuRoom, f64)> = Vec::new();
        let mut cost = |given: Given| {
            let gpu = self.gpus.get(given.gpu)?;
            let alike = asked.iter().find(|(other, _)| *other == gpu);
            if let Some((_, cost)) = alike {
                return Some((*cost, given));
            }
            let cost = (self.prefer)(&self.gpus, given);
            asked.push((gpu, cost));
            Some((cost, given))
        };
        let mut found: Vec<_> = with_room.filter_map(&mut cost).collect();
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

/// What a GPU must pass, and what is said when too few do.
type Step<'a> = (Reason, &'a dyn Fn(&GpuRoom) -> bool);

/// What would have to change first for `demand` alone; `None` when it would fit.
fn why_not(gpus: &[GpuRoom], demand: &Demand) -> Option<Reason> {
    if gpus.is_empty() {
        return Some(Reason::NoGpu);
    }
    let near = groups(gpus, demand.topology);
    let large = |gpu: &GpuRoom| demand.amount.on(gpu).0 <= gpu.kind().memory;
    let memory = |gpu: &GpuRoom| demand.amount.on(gpu).0 <= gpu.free_memory();
    let share = |gpu: &GpuRoom| demand.amount.on(gpu).1 <= gpu.free_share();
    let steps: [Step<'_>; 8] = [
        (Reason::TooFew, &|_| true),
        (Reason::Model, &|gpu| demand.models.contains(gpu.kind().model)),
        (Reason::Exposure, &|gpu| demand.exposure == gpu.kind().exposure),
        (Reason::TooSmall, &large),
        (Reason::Unhealthy, &|gpu| gpu.kind().healthy),
        (Reason::GpuMemory, &memory),
        (Reason::GpuShare, &share),
        (Reason::GpuRoom, &|_| true),
    ];
    let enough = |group: &[usize], passed: &[Step<'_>]| {
        let left = group.iter().filter_map(|at| gpus.get(*at));
        let left = left.filter(|gpu| passed.iter().all(|(_, passes)| passes(gpu)));
        left.count() as u64 >= u64::from(demand.gpus.get())
    };
    let all: Vec<usize> = (0..gpus.len()).collect();
    for (n, (reason, _)) in steps.iter().enumerate() {
        let passed = steps.get(..=n).unwrap_or_default();
        if !enough(&all, passed) {
            return Some(*reason);
        }
    }
    let somewhere = near.iter().any(|group| enough(group, &steps));
    (!somewhere).then_some(Reason::Topology)
}
