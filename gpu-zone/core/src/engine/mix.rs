use super::{Demand, PodDemand};

/// A class of pods that is likely to be asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct MixClass {
    /// What such a pod asks for.
    pub pod: PodDemand,
    /// How likely it is that the next pod is one; all of a [`Mix`] add up to 1.
    pub weight: f64,
}

/// What is likely to be asked for next, most likely first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mix {
    classes: Vec<MixClass>,
}

impl Mix {
    /// A mix of these, in proportion to their weights. What has no weight is left out.
    pub fn new(classes: impl IntoIterator<Item = (PodDemand, f64)>) -> Self {
        let weighted =
            classes.into_iter().filter(|(_, weight)| weight.is_finite() && *weight > 0.0);
        let mut classes: Vec<_> = weighted.map(|(pod, weight)| MixClass { pod, weight }).collect();
        let total: f64 = classes.iter().map(|class| class.weight).sum();
        classes.iter_mut().for_each(|class| class.weight /= total);
        classes.sort_by(|a, b| b.weight.total_cmp(&a.weight).then_with(|| a.pod.cmp(&b.pod)));
        Self { classes }
    }

    /// The classes, most likely first.
    pub fn classes(&self) -> &[MixClass] {
        &self.classes
    }
}

/// Learns from the pods that arrive what is likely to arrive next. It holds no more than
/// [`WorkloadMix::MOST_CLASSES`] classes, so pods cannot make it grow; the rarest gives way.
#[derive(Clone, Debug, Default)]
pub struct WorkloadMix {
    counts: Vec<(PodDemand, f64)>,
}

impl WorkloadMix {
    /// How many classes are told apart.
    pub const MOST_CLASSES: usize = 256;
    /// The part of all arrivals that a [`Mix`] covers; rarer classes are noise.
    pub const COVERED: f64 = 0.95;
    /// What each arrival leaves of the weight of those before: after 10,000 more it is a third.
    const KEPT: f64 = 0.9999;

    /// A pod has arrived, whether it finds a place or not.
    pub fn observe(&mut self, pod: &PodDemand) {
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

    /// The mix so far: the most frequent classes that cover [`WorkloadMix::COVERED`].
    pub fn mix(&self) -> Mix {
        let whole = Mix::new(self.counts.iter().cloned());
        let mut covered = 0.0;
        let likely = whole.classes.into_iter().take_while(|class| {
            let before = covered;
            covered += class.weight;
            before < Self::COVERED
        });
        Mix::new(likely.map(|class| (class.pod, class.weight)))
    }
}

impl MixClass {
    /// The hardest to place of its containers, which stands for all of them.
    pub fn gpu(&self) -> Option<&Demand> {
        self.pod.containers.iter().max_by_key(|demand| demand.gpus)
    }
}
