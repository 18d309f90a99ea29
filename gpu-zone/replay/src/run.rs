use std::collections::BTreeMap;

use gpuzone_core::engine::{
    BEST_RANK, Mix, NodeRoom, PodDemand, Policy, Score, WorkloadMix, rank_scores,
};

use crate::Trace;
use crate::cluster::{Cluster, Host};

/// Who decides among nodes of equal score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ties {
    /// The first in the order of the nodes.
    First,
    /// A coin.
    Coin,
    /// A coin, after scores have become ranks of 0 to 10: what a real cluster does.
    Ranks,
}

/// How a trace is replayed.
#[derive(Clone, Debug)]
pub struct Setting {
    /// What the engine is to do.
    pub policy: Policy,
    /// Who decides among equals.
    pub ties: Ties,
    /// What the coin starts from.
    pub seed: u64,
    /// Whether the mix is known from the start, from all pods, instead of learned.
    pub oracle: bool,
    /// Who looks at processors and host memory.
    pub host: Host,
}

/// What is known after a pod has arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Which pod of the trace.
    pub pod: usize,
    /// The node that it went to; `None` when it fits nowhere.
    pub node: Option<usize>,
    /// Thousandths of GPUs asked for so far, with those of pods that fit nowhere.
    pub arrived: u64,
    /// Thousandths of GPUs placed so far.
    pub placed: u64,
}

/// What one tenant asked for and got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TenantFigures {
    /// Pods that arrived.
    pub pods: u64,
    /// Pods that fit nowhere.
    pub dropped: u64,
    /// Thousandths of GPUs asked for.
    pub asked: u64,
    /// Thousandths of GPUs placed.
    pub placed: u64,
}

/// What came of a whole replay.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    /// After each pod.
    pub steps: Vec<Outcome>,
    /// By tenant; under the empty name where the trace names none.
    pub tenants: BTreeMap<String, TenantFigures>,
}

impl Figures {
    /// Jain's index of what tenants got of what they asked for: 1 is fair, 1/n is all to one.
    /// `None` when nobody asked for a GPU.
    pub fn fairness(&self) -> Option<f64> {
        let asked = self.tenants.values().filter(|tenant| tenant.asked > 0);
        let got: Vec<f64> =
            asked.map(|tenant| tenant.placed as f64 / tenant.asked as f64).collect();
        let (sum, squares) =
            got.iter().fold((0.0, 0.0), |(a, b), part| (a + part, b + part * part));
        (squares > 0.0).then(|| sum * sum / (got.len() as f64 * squares))
    }
}

/// Replays the pods of `trace` in this `order` on its nodes, in the order of the trace, and tells
/// after each pod. A number that is no pod's is left out.
pub fn replay(
    trace: &Trace,
    setting: &Setting,
    order: impl IntoIterator<Item = usize>,
    mut tell: impl FnMut(&[NodeRoom], &Outcome),
) -> Figures {
    let mut cluster = Cluster::new(setting.policy, setting.host, trace.nodes.clone());
    let mut coin = fastrand::Rng::with_seed(setting.seed);
    let mut learned = WorkloadMix::default();
    let mut figures = Figures::default();
    let mut now = Outcome::default();
    for pod_at in order {
        let Some(pod) = trace.pods.get(pod_at) else { continue };
        if let Some(asked) = cluster.asked(&pod.demand) {
            learned.observe(&asked);
        }
        if learned.is_due() {
            let mix = learned.renew(cluster.of_engine().iter());
            cluster.set_mix(if setting.oracle { whole(trace, &cluster) } else { mix });
        }
        let (fitting, scores): (Vec<usize>, Vec<Score>) = cluster.scores(&pod.demand).unzip();
        now.pod = pod_at;
        now.arrived += pod.gpu_milli;
        let chosen = choose(setting.ties, &fitting, &scores, &mut coin);
        now.node = chosen.filter(|at| cluster.place(*at, &pod.demand).is_ok());
        let tenant = figures.tenants.entry(pod.tenant.clone().unwrap_or_default()).or_default();
        tenant.pods += 1;
        tenant.asked += pod.gpu_milli;
        if now.node.is_some() {
            now.placed += pod.gpu_milli;
            tenant.placed += pod.gpu_milli;
        } else {
            tenant.dropped += 1;
        }
        figures.steps.push(now);
        tell(cluster.nodes(), &now);
    }
    figures
}

fn whole(trace: &Trace, cluster: &Cluster) -> Mix {
    let mut counts: BTreeMap<PodDemand, f64> = BTreeMap::new();
    for asked in trace.pods.iter().filter_map(|pod| cluster.asked(&pod.demand)) {
        *counts.entry(asked).or_insert(0.0) += 1.0;
    }
    Mix::new(counts).in_cluster(cluster.of_engine().iter())
}

fn choose(
    ties: Ties,
    fitting: &[usize],
    scores: &[Score],
    coin: &mut fastrand::Rng,
) -> Option<usize> {
    let best = scores.iter().max()?;
    let best: Vec<usize> = match ties {
        Ties::First | Ties::Coin => {
            let equal = fitting.iter().zip(scores).filter(|(_, score)| *score == best);
            equal.map(|(at, _)| *at).collect()
        }
        Ties::Ranks => {
            let ranked = fitting.iter().zip(rank_scores(scores));
            ranked.filter(|(_, rank)| *rank == BEST_RANK).map(|(at, _)| *at).collect()
        }
    };
    match ties {
        Ties::First => best.first().copied(),
        Ties::Coin | Ties::Ranks => best.get(coin.usize(..best.len().max(1))).copied(),
    }
}
