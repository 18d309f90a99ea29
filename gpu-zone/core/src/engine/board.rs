use std::collections::BTreeMap;

use super::{Mix, NodeRoom, Placed, PodDemand, Policy, Reason, Score, place};

/// A cluster's nodes, with what was worked out for them: a node is scored again only when it has
/// changed, or the mix has.
///
/// Between two pods of a kind few nodes change, and pods come in few kinds.
#[derive(Clone, Debug, Default)]
pub struct Board {
    policy: Policy,
    mix: Mix,
    nodes: Vec<NodeRoom>,
    /// Grows with each change of a node, and for all with each change of the mix.
    versions: Vec<u64>,
    known: BTreeMap<PodDemand, Vec<(u64, Verdict)>>,
}

/// What a node is to a pod.
pub type Verdict = Result<Score, Reason>;

impl Board {
    /// Kinds of pods that verdicts are kept for; then all are worked out anew.
    const MOST_KINDS: usize = 256;
    /// The version of what was never worked out.
    const UNKNOWN: u64 = 0;

    /// A board of these nodes.
    pub fn new(policy: Policy, nodes: Vec<NodeRoom>) -> Self {
        let versions = vec![Self::UNKNOWN + 1; nodes.len()];
        Self { policy, nodes, versions, ..Self::default() }
    }

    /// The nodes, as they were given.
    pub fn nodes(&self) -> &[NodeRoom] {
        &self.nodes
    }

    /// From now on, this is what is likely to come.
    pub fn set_mix(&mut self, mix: Mix) {
        self.mix = mix;
        self.versions.iter_mut().for_each(|version| *version += 1);
    }

    /// Puts `room` in the place of node `at`; nothing when there is none.
    pub fn set_node(&mut self, at: usize, room: NodeRoom) {
        if let (Some(node), Some(version)) = (self.nodes.get_mut(at), self.versions.get_mut(at)) {
            *node = room;
            *version += 1;
        }
    }

    /// What each node is to `pod`, in the order of the nodes.
    pub fn verdicts(&mut self, pod: &PodDemand) -> impl Iterator<Item = Verdict> + '_ {
        if !self.known.contains_key(pod) && self.known.len() >= Self::MOST_KINDS {
            self.known.clear();
        }
        let unknown = (Self::UNKNOWN, Err(Reason::NoGpu));
        let known = self.known.entry(pod.clone()).or_default();
        known.resize(self.nodes.len(), unknown);
        for ((node, version), known) in self.nodes.iter().zip(&self.versions).zip(&mut *known) {
            if known.0 != *version {
                let placed = place(self.policy, &self.mix, node, pod);
                *known = (*version, placed.map(|placed| placed.score));
            }
        }
        known.iter().map(|(_, verdict)| *verdict)
    }

    /// Places `pod` on node `at`, as its score was worked out, and takes the room.
    ///
    /// # Errors
    /// When the node does not serve it.
    pub fn place(&mut self, at: usize, pod: &PodDemand) -> Result<Placed, Reason> {
        let node = self.nodes.get(at).ok_or(Reason::NoGpu)?;
        let placed = place(self.policy, &self.mix, node, pod)?;
        let mut after = node.clone();
        after.take(&placed.choice).map_err(|_| Reason::Together)?;
        self.set_node(at, after);
        Ok(placed)
    }
}
