//! Which nodes serve a pod, and which best.

use std::collections::BTreeMap;
use std::sync::Arc;

use gpuzone_core::engine::{Amount, MemoryAsk, PodDemand, Reason, Score, rank_scores};

use super::bind::State;
use super::group::NoPlan;
use super::pods::Stand;
use super::quota::Gates;
use super::{Index, Moment};
use crate::ask::Ask;
use crate::view::PodView;

/// Why a node does not serve a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// A sentence; equal for nodes of which the same is true, so that the scheduler groups them.
    pub reason: Arc<str>,
    /// Whether taking pods away from the node could not change it.
    pub hopeless: bool,
}

/// For each node that was asked about, in that order: whether it serves the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filtered(pub Vec<Result<(), Refusal>>);

/// More nodes are not named where not all are: kube-scheduler itself looks for no more in a large cluster
/// (`minFeasibleNodesToFind` in its `schedule_one.go`).
const MOST: usize = 100;

/// Which of the nodes that serve a pod are named to the scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Named {
    /// Those that no other is better than, 100 at most: its own plugins choose among equals. Where there is one, it asks
    /// nothing more. Of a pod that says which nodes it prefers, as `ranked`.
    Best,
    /// The 100 best, and their ranks: its own plugins have a say.
    Ranked,
    /// All, and why others do not serve: another extender is asked after this one.
    All,
}

/// Why nothing is answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// The index is not complete.
    #[error("not ready: {0} not read from the API server yet")]
    NotReady(String),
}

impl Filtered {
    fn all(nodes: usize, reason: &dyn std::fmt::Display, hopeless: bool) -> Self {
        let reason: Arc<str> = reason.to_string().into();
        Self(vec![Err(Refusal { reason, hopeless }); nodes])
    }
}

/// A sentence for each reason, made once for a pod.
struct Sentences<'a> {
    ask: &'a Ask,
    made: BTreeMap<Reason, Refusal>,
}

impl Sentences<'_> {
    fn of(&mut self, reason: Reason) -> Refusal {
        let ask = self.ask;
        let made = self.made.entry(reason).or_insert_with(|| {
            let models = match ask.terms.models.as_slice() {
                [] => String::new(),
                models => format!(" of {}", models.join(" or ")),
            };
            let reason_text = format!("needs {}{models}: {reason}", ask.sentence());
            Refusal { reason: reason_text.into(), hopeless: is_hopeless(reason) }
        });
        made.clone()
    }
}

/// Whether no pod that goes could change it.
fn is_hopeless(reason: Reason) -> bool {
    match reason {
        Reason::NoGpu | Reason::Model | Reason::Exposure | Reason::TooFew | Reason::TooSmall => {
            true
        }
        Reason::Unhealthy
        | Reason::Topology
        | Reason::HostCpu
        | Reason::HostMemory
        | Reason::GpuMemory
        | Reason::GpuShare
        | Reason::GpuRoom
        | Reason::Together => false,
    }
}

impl Index {
    /// Whether enough is known to answer.
    ///
    /// # Errors
    /// When not, with what is missing.
    pub fn ready(&self) -> Result<(), FilterError> {
        let missing = self.missing();
        if missing.is_empty() { Ok(()) } else { Err(FilterError::NotReady(missing.join(", "))) }
    }

    /// What time it is: times are reckoned from the last that was told.
    pub(super) fn tell(&mut self, now: Moment) {
        self.now = self.now.max(now);
    }

    /// Which of `nodes` serve a pod.
    ///
    /// # Errors
    /// When the index is not complete.
    pub fn filter(
        &mut self,
        pod: &PodView,
        nodes: &[&str],
        now: Moment,
    ) -> Result<Filtered, FilterError> {
        self.ready()?;
        self.tell(now);
        let ask = match &pod.ask {
            Ok(Some(ask)) => ask,
            Ok(None) => return Ok(Filtered(vec![Ok(()); nodes.len()])),
            Err(error) => return Ok(Filtered::all(nodes.len(), error, true)),
        };
        if let Some(only) = self.place_of(pod, nodes, now) {
            return Ok(only_on(&only, nodes));
        }
        if ask.terms.group.is_some() {
            if !self.pods.contains_key(&pod.uid) {
                let reason = "the pod is not known here yet; it is tried again";
                return Ok(Filtered::all(nodes.len(), &reason, false));
            }
            let planned = self.plan_group(&pod.uid, nodes, now);
            match &planned {
                Ok(()) => self.drop_claim(pod, ask),
                Err(NoPlan::NoRoom { .. } | NoPlan::InPart { .. }) => {
                    self.note_claim(pod, ask, nodes, now);
                }
                // Room would not help it.
                Err(
                    NoPlan::NoGang(_)
                    | NoPlan::Incomplete { .. }
                    | NoPlan::Later { .. }
                    | NoPlan::Quota { .. },
                ) => {}
            }
            if let Err(reason) = planned {
                return Ok(Filtered::all(nodes.len(), &reason, false));
            }
            if let Some(only) = self.place_of(pod, nodes, now) {
                return Ok(only_on(&only, nodes));
            }
        }
        let gates = match self.gates(&pod.name.namespace, &BTreeMap::new()) {
            Ok(gates) => gates,
            Err(refusal) => return Ok(Filtered::all(nodes.len(), &refusal, false)),
        };
        let mut sentences = Sentences { ask, made: BTreeMap::new() };
        let demand = ask.gpu_demand(&self.models);
        let exact =
            !gates.is_empty() && (depends_on_node(&demand, &gates) || gates.depend_on_gpu());
        if !exact {
            // What it comes to is the same everywhere, so the quota is asked once.
            if let Some(refused) = self.refused_everywhere(&gates, &demand, nodes.len()) {
                return match self.make_way(pod, ask, nodes) {
                    true => self.filter(pod, nodes, now),
                    false => Ok(refused),
                };
            }
        }
        let kind = self.rooms.kind(self.policy_of(ask), &demand);
        // What it comes to is another on few nodes, so the quota is asked about each once.
        let mut checked: Vec<Option<Result<(), Refusal>>> = Vec::new();
        let answer = nodes.iter().map(|name| {
            let node = self.nodes.get(*name).filter(|node| node.reported);
            let fits = self.rooms.fits(kind, node.and_then(|node| node.room));
            let charge = fits.map_err(|reason| sentences.of(reason))?;
            if !exact {
                return Ok(());
            }
            let place = charge.place();
            if let Some(Some(known)) = checked.get(place) {
                return known.clone();
            }
            let Some(asked) = self.rooms.charge(kind, charge) else {
                return Err(sentences.of(Reason::NoGpu));
            };
            let answer = gates
                .check(asked)
                .map_err(|refusal| Refusal { reason: refusal.to_string().into(), hopeless: false });
            if checked.len() <= place {
                checked.resize(place + 1, None);
            }
            if let Some(known) = checked.get_mut(place) {
                *known = Some(answer.clone());
            }
            answer
        });
        let answer: Vec<Result<(), Refusal>> = answer.collect();
        if answer.iter().any(Result::is_ok) {
            self.drop_claim(pod, ask);
        } else if self.make_way(pod, ask, nodes) {
            return self.filter(pod, nodes, now);
        } else {
            self.note_claim(pod, ask, nodes, now);
        }
        Ok(Filtered(answer))
    }

    fn refused_everywhere(
        &self,
        gates: &Gates,
        demand: &PodDemand,
        nodes: usize,
    ) -> Option<Filtered> {
        let mut asked = super::Usage::of_pod();
        for container in &demand.containers {
            let Amount::Part { memory: MemoryAsk::Bytes(memory), share } = container.amount else {
                return None;
            };
            let share = share.map_or(1, |share| u64::from(share.get() / 10));
            for _ in 0..container.gpus.get() {
                asked.add_gpu(None, memory, share);
            }
        }
        let refusal = gates.check(&asked).err()?;
        Some(Filtered::all(nodes, &refusal, false))
    }

    /// The node that a pod has its place on already: nowhere else it may go.
    fn place_of(&mut self, pod: &PodView, nodes: &[&str], now: Moment) -> Option<String> {
        let known = self.pods.get(&pod.uid)?;
        let (node, planned) = match &known.stand {
            Stand::Waiting => return None,
            Stand::Bound(held) | Stand::Vacant(held) => (held.node.to_string(), false),
            Stand::Reserved(reservation) => {
                let planned =
                    matches!(reservation.state, State::Planned { called: false } | State::Kept);
                (reservation.held.node.to_string(), planned)
            }
        };
        if planned && !nodes.contains(&node.as_str()) && self.replan(&pod.uid, nodes, now) {
            let held = self.pods.get(&pod.uid).and_then(super::PodEntry::held);
            return held.map(|held| held.node.to_string());
        }
        Some(node)
    }

    /// A rank for each of `nodes`, 0 to 10, better placements higher. One without GPUs is ranked, too,
    /// where the scheduler asks about those: what it takes of the host, GPUs may lack later.
    ///
    /// # Errors
    /// When the index is not complete.
    pub fn prioritize(&mut self, pod: &PodView, nodes: &[&str]) -> Result<Vec<u8>, FilterError> {
        self.ready()?;
        let Ok(ask) = &pod.ask else { return Ok(vec![0; nodes.len()]) };
        let scores = self.scores(pod, ask.as_ref(), nodes);
        let mut ranks =
            rank_scores(&scores.iter().flatten().copied().collect::<Vec<_>>()).into_iter();
        // A node that does not serve it any more comes last.
        let rank = |score: &Option<_>| score.and_then(|_| ranks.next()).unwrap_or_default();
        Ok(scores.iter().map(rank).collect())
    }

    /// Of `nodes`, all of which serve a pod, those that a scheduler is to choose among: their places, in their order. A
    /// pod that asks for no GPU keeps all: what else speaks for a node is not known here.
    pub fn named(&mut self, pod: &PodView, nodes: &[&str], named: Named) -> Vec<usize> {
        let mut places: Vec<usize> = (0..nodes.len()).collect();
        let Ok(Some(ask)) = &pod.ask else { return places };
        if named == Named::All {
            return places;
        }
        let scores = self.scores(pod, Some(ask), nodes);
        let score = |place: &usize| scores.get(*place).copied().flatten();
        if named == Named::Best && !pod.prefers {
            let best = scores.iter().copied().max().flatten();
            places.retain(|place| score(place) == best);
        } else if places.len() > MOST {
            places.select_nth_unstable_by(MOST, |a, b| score(b).cmp(&score(a)).then(a.cmp(b)));
        }
        places.truncate(MOST);
        places.sort_unstable();
        places
    }

    /// How good each of `nodes` is for a pod; `None` for one that serves it not.
    fn scores(&mut self, pod: &PodView, ask: Option<&Ask>, nodes: &[&str]) -> Vec<Option<Score>> {
        let (policy, demand, without_gpus) = match ask {
            Some(ask) => (self.policy_of(ask), ask.demand(&self.models), None),
            // Best where it takes nothing that a GPU needs.
            None => {
                let demand = PodDemand { host: pod.host, containers: Vec::new() };
                (self.settings.policy, demand, Some(Score::new(f64::INFINITY)))
            }
        };
        let mix = self.mix();
        let kind = self.rooms.kind(policy, &demand);
        let score = |name: &&str| {
            let room = self.nodes.get(*name).and_then(|node| node.room);
            if room.is_some() { self.rooms.score(kind, &mix, room) } else { without_gpus }
        };
        nodes.iter().map(score).collect()
    }

    /// What a pod that was seen on its node holds, for tests: `(gpu, memory, per cent)`.
    pub fn holds(&self, uid: &gpuzone_api::kubernetes::PodUid) -> Vec<gpuzone_core::Grant> {
        let held = self.pods.get(uid).and_then(super::PodEntry::held);
        held.map(|held| held.holds.to_vec()).unwrap_or_default()
    }
}

fn only_on(place: &str, nodes: &[&str]) -> Filtered {
    let reason: Arc<str> = "the pod has its place on another node already".into();
    let answer = nodes.iter().map(|node| {
        if *node == place {
            Ok(())
        } else {
            Err(Refusal { reason: reason.clone(), hopeless: true })
        }
    });
    Filtered(answer.collect())
}

/// Whether what it comes to, as far as that is limited, is another on another node.
fn depends_on_node(demand: &PodDemand, gates: &Gates) -> bool {
    demand.containers.iter().any(|container| match container.amount {
        Amount::Whole | Amount::Part { memory: MemoryAsk::Percent(_), .. } => true,
        // As of the memory, and so as of the GPU's.
        Amount::Part { memory: MemoryAsk::Bytes(_), share: None } => gates.limit_time(),
        Amount::Part { memory: MemoryAsk::Bytes(_), share: Some(_) } => false,
    })
}
