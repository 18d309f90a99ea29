use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use super::fit::{Fullest, Prefer, choose};
use super::outlook::{Gauge, Outlook};
use super::{Choice, GpuRoom, HostRoom, Mix, NodeRoom, PodDemand, Reason};

/// What a placement is to be good for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Policy {
    /// Fill what is in use first, so that whole GPUs and nodes stay empty.
    Pack,
    /// Use what is emptiest first, so that pods disturb each other least.
    Spread,
    /// Leave as little as possible that the pods that are likely to come cannot use.
    #[default]
    Fragmentation,
}

/// A policy that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("policy '{0}' is none of 'pack', 'spread' and 'fragmentation'")]
pub struct InvalidPolicy(String);

impl Policy {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Pack, Self::Spread, Self::Fragmentation];

    /// Its name, as people write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pack => "pack",
            Self::Spread => "spread",
            Self::Fragmentation => "fragmentation",
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Policy {
    type Err = InvalidPolicy;

    fn from_str(text: &str) -> Result<Self, InvalidPolicy> {
        let found = Self::ALL.into_iter().find(|policy| policy.as_str() == text.trim());
        // It may come from anywhere and goes to terminals.
        let shown = || text.chars().filter(|c| !c.is_control()).take(40).collect();
        found.ok_or_else(|| InvalidPolicy(shown()))
    }
}

/// How well a placement serves the cluster: higher is better. Only comparable between nodes for
/// one pod, one policy and one mix.
#[derive(Clone, Copy, Debug)]
pub struct Score(f64);

impl Score {
    /// A score; what is no number is the worst.
    pub const fn new(value: f64) -> Self {
        // The sum makes of -0 a 0, which are equal and compare as different.
        Self(if value.is_nan() { f64::NEG_INFINITY } else { value + 0.0 })
    }

    /// Its value.
    pub const fn get(self) -> f64 {
        self.0
    }
}

impl PartialEq for Score {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Score {}

impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Score {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// Where on a node a pod would be, and how good that is.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed {
    /// Its GPUs.
    pub choice: Choice,
    /// How good that is.
    pub score: Score,
}

/// Chooses GPUs of `node` for `pod` as `policy` wants it, and scores the node.
///
/// # Errors
/// When the node does not serve it, whatever the policy: see [`super::fit`].
pub fn place(
    policy: Policy,
    mix: &Mix,
    node: &NodeRoom,
    pod: &PodDemand,
) -> Result<Placed, Reason> {
    let left = || node.gpus().iter().map(|gpu| f64::from(gpu.free_milli())).sum::<f64>();
    let (choice, score) = match policy {
        Policy::Pack => (choose(node, pod, &mut Fullest)?.0, -left()),
        Policy::Spread => (choose(node, pod, &mut Emptiest)?.0, left()),
        Policy::Fragmentation => {
            let outlook = mix.outlook();
            // What does not fit is refused before a GPU is looked at.
            let host = node.host().less(pod.host).unwrap_or_default();
            let mut worth = WorthMost { outlook, host, gauge: None };
            let (choice, cost) = choose(node, pod, &mut worth)?;
            let lost = match (cost, worth.gauge) {
                (Some(cost), Some(mut gauge)) => {
                    gauge.move_to(node.host());
                    gauge.worth() + cost
                }
                (_, _) => {
                    let mut after = node.clone();
                    // It was chosen of what is free.
                    let _ = after.take(&choice);
                    outlook.worth(node) - outlook.worth(&after)
                }
            };
            (choice, -lost)
        }
    };
    Ok(Placed { choice, score: Score::new(score) })
}

/// The GPUs with the most free.
struct Emptiest;

impl Prefer for Emptiest {
    fn cost(&mut self, _at: usize, before: &GpuRoom, _after: &GpuRoom) -> f64 {
        -f64::from(before.free_milli())
    }
}

/// The GPUs after which the node is worth most.
struct WorthMost<'a> {
    outlook: &'a Outlook,
    /// What the pod leaves of the host.
    host: HostRoom,
    gauge: Option<Gauge<'a>>,
}

impl Prefer for WorthMost<'_> {
    fn see(&mut self, gpus: &[GpuRoom]) {
        self.gauge = Some(self.outlook.gauge(self.host, gpus));
    }

    fn cost(&mut self, at: usize, _before: &GpuRoom, after: &GpuRoom) -> f64 {
        self.gauge.as_mut().map_or(f64::MAX, |gauge| -gauge.worth_with(at, after))
    }
}
