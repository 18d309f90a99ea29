use super::outlook::Outlook;
use super::{Demand, NodeRoom, PodDemand};

/// A class of pods that is likely to be asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct MixClass {
    /// What such a pod asks for.
    pub pod: PodDemand,
    /// How likely it is that the next pod is one; all of a [`Mix`] add up to 1.
    pub weight: f64,
}

impl MixClass {
    /// The demand that stands for all of its containers: the one for the most GPUs.
    pub fn gpu(&self) -> Option<&Demand> {
        self.pod.containers.iter().max_by_key(|demand| demand.gpus)
    }
}

/// What is likely to be asked for next, most likely first, and how scarce the room for it is.
#[derive(Clone, Debug, Default)]
pub struct Mix {
    classes: Vec<MixClass>,
    outlook: Outlook,
}

impl Mix {
    /// A mix of these, in proportion to their weights, for a cluster that nothing is known of.
    /// What has no weight is left out.
    pub fn new(classes: impl IntoIterator<Item = (PodDemand, f64)>) -> Self {
        let known = classes.into_iter().filter(|(_, weight)| weight.is_finite() && *weight > 0.0);
        let mut classes: Vec<_> = known.map(|(pod, weight)| MixClass { pod, weight }).collect();
        let total: f64 = classes.iter().map(|class| class.weight).sum();
        classes.iter_mut().for_each(|class| class.weight /= total);
        classes.sort_by(|a, b| b.weight.total_cmp(&a.weight).then_with(|| a.pod.cmp(&b.pod)));
        let outlook = Outlook::new(&classes);
        Self { classes, outlook }
    }

    /// The same mix, seen from a cluster with this room: what is scarce in it weighs more.
    #[must_use]
    pub fn in_cluster<'a>(self, nodes: impl Iterator<Item = &'a NodeRoom> + Clone) -> Self {
        Self { outlook: self.outlook.in_cluster(nodes), classes: self.classes }
    }

    /// The classes, most likely first.
    pub fn classes(&self) -> &[MixClass] {
        &self.classes
    }

    pub(super) const fn outlook(&self) -> &Outlook {
        &self.outlook
    }
}

/// Learns from the pods that arrive what is likely to arrive next. It holds no more than
/// [`WorkloadMix::MOST_CLASSES`] classes, so pods cannot make it grow; the rarest gives way.
#[derive(Clone, Debug, Default)]
pub struct WorkloadMix {
    counts: Vec<(PodDemand, f64)>,
    seen: u64,
    due: u64,
}

impl WorkloadMix {
    /// How many classes are told apart.
    pub const MOST_CLASSES: usize = 192;
    /// What each arrival leaves of the weight of those before: after 30,000 more it is a twentieth.
    const KEPT: f64 = 0.9999;
    /// The most arrivals that one [`Mix`] is used for.
    const LONGEST: u64 = 300;

    /// A pod has arrived, whether it finds a place or not.
    pub fn observe(&mut self, pod: &PodDemand) {
        self.seen += 1;
        for (_, count) in &mut self.counts {
            *count *= Self::KEPT;
        }
        match self.counts.iter_mut().find(|(class, _)| class == pod) {
            Some((_, count)) => *count += 1.0,
            None => {
                if self.counts.len() == Self::MOST_CLASSES {
                    self.forget_rarest();
                }
                self.counts.push((pod.clone(), 1.0));
            }
        }
    }

    fn forget_rarest(&mut self) {
        let rarest = self.counts.iter().enumerate().min_by(|(_, a), (_, b)| a.1.total_cmp(&b.1));
        if let Some((at, _)) = rarest {
            self.counts.swap_remove(at);
        }
    }

    /// Whether so much has arrived since [`WorkloadMix::renew`] that it is time again: a fifth
    /// more, or some hundreds.
    pub const fn is_due(&self) -> bool {
        self.seen >= self.due
    }

    /// The mix so far, seen from a cluster with this room.
    pub fn renew<'a>(&mut self, nodes: impl Iterator<Item = &'a NodeRoom> + Clone) -> Mix {
        self.due = self.seen + (self.seen / 5).clamp(1, Self::LONGEST);
        self.mix().in_cluster(nodes)
    }

    /// The mix so far, for a cluster that nothing is known of.
    pub fn mix(&self) -> Mix {
        Mix::new(self.counts.iter().cloned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::HostDemand;

    fn pod(cpu_milli: u64) -> PodDemand {
        PodDemand { host: HostDemand { cpu_milli, ..Default::default() }, containers: vec![] }
    }

    #[test]
    fn what_comes_often_weighs_more_and_what_is_rare_gives_way() {
        let mut learned = WorkloadMix::default();
        for n in 0..2000 {
            learned.observe(&pod(1));
            learned.observe(&pod(10 + n));
        }
        let mix = learned.mix();
        assert_eq!(mix.classes().len(), WorkloadMix::MOST_CLASSES);
        assert_eq!(mix.classes()[0].pod, pod(1));
        assert!(mix.classes()[0].weight > 0.8);
        let sum: f64 = mix.classes().iter().map(|class| class.weight).sum();
        assert!((sum - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_new_mix_is_due_at_once_then_ever_more_rarely() {
        let mut learned = WorkloadMix::default();
        let mut renewed = Vec::new();
        for n in 1..5000u64 {
            learned.observe(&pod(1));
            if learned.is_due() {
                let _ = learned.renew([].iter());
                renewed.push(n);
            }
        }
        assert_eq!(renewed[..3], [1, 2, 3]);
        let gaps = renewed.windows(2).map(|pair| pair[1] - pair[0]);
        assert_eq!(gaps.max(), Some(300));
    }
}
