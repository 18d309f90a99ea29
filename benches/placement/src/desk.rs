use std::collections::BTreeMap;

use crate::{Baseline, Cell, Class, Need, unusable};

/// A cluster under a published scheduler. Scores are kept until their node changes, so that a
/// replay takes seconds; what is decided is the same as without.
#[derive(Debug)]
pub struct Desk<'a> {
    baseline: Baseline,
    mix: &'a [Class],
    cells: Vec<Cell>,
    /// [`unusable`] of each.
    lost: Vec<f64>,
    /// Grows with each change of a cell; never 0.
    versions: Vec<u64>,
    /// For each kind of pod: the score of each node that fits, and the version it is for.
    known: BTreeMap<Need, Vec<(u64, Option<f64>)>>,
}

impl<'a> Desk<'a> {
    /// These nodes, under `baseline`, which takes `mix` for what is likely to come.
    pub fn new(baseline: Baseline, mix: &'a [Class], cells: Vec<Cell>) -> Self {
        let lost = cells.iter().map(|cell| unusable(cell, mix)).collect();
        let versions = vec![1; cells.len()];
        Self { baseline, mix, cells, lost, versions, known: BTreeMap::new() }
    }

    /// The nodes.
    pub fn cells(&self) -> &[Cell] {
        &self.cells
    }

    /// Thousandths of GPUs that are free and that the next pod of the mix could not use.
    pub fn lost(&self) -> f64 {
        self.lost.iter().sum()
    }

    /// Nodes that `need` fits on, with their scores.
    pub fn scores(&mut self, need: &Need) -> impl Iterator<Item = (usize, f64)> + '_ {
        let known = self.known.entry(*need).or_default();
        known.resize(self.cells.len(), (0, None));
        let cells = self.cells.iter().zip(&self.lost).zip(&self.versions);
        for (((cell, before), version), known) in cells.zip(known.iter_mut()) {
            if known.0 != *version {
                let score = || self.baseline.score(cell, *before, need, self.mix).0;
                *known = (*version, cell.fits(need).then(score));
            }
        }
        known.iter().enumerate().filter_map(|(at, (_, score))| Some((at, (*score)?)))
    }

    /// Puts `need`, which fits there, on node `at`; [`Baseline::Random`] asks the coin which GPUs.
    pub fn place(&mut self, at: usize, need: &Need, coin: &mut fastrand::Rng) {
        if let (Some(cell), Some(lost), Some(version)) =
            (self.cells.get_mut(at), self.lost.get_mut(at), self.versions.get_mut(at))
        {
            let gpus = match self.baseline {
                Baseline::Random => cell.any(need, coin),
                Baseline::FirstFit | Baseline::BestFit | Baseline::Fgd => {
                    self.baseline.score(cell, *lost, need, self.mix).1
                }
            };
            *cell = cell.less(need, &gpus);
            *lost = unusable(cell, self.mix);
            *version += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frequent;

    /// What is kept is what would be worked out anew.
    #[test]
    fn scores_follow_the_nodes() {
        let need = |cpu, gpus, milli| Need { cpu, memory: 1, gpus, milli };
        let needs = [need(4, 1, 470), need(2, 1, 320), need(8, 2, 1000), need(1, 0, 0)];
        let mix = frequent(&needs);
        let cells: Vec<Cell> =
            (1..4).map(|n| Cell { cpu: 30, memory: 9, gpus: vec![1000; n] }).collect();
        let mut coin = fastrand::Rng::with_seed(1);
        for baseline in [Baseline::Random, Baseline::BestFit, Baseline::Fgd] {
            let mut desk = Desk::new(baseline, &mix, cells.clone());
            for need in needs.iter().cycle().take(20) {
                let kept: Vec<_> = desk.scores(need).collect();
                let anew: Vec<_> =
                    Desk::new(baseline, &mix, desk.cells().to_vec()).scores(need).collect();
                assert_eq!(kept, anew);
                if let Some((at, _)) = kept.last() {
                    let before = desk.cells()[*at].cpu;
                    desk.place(*at, need, &mut coin);
                    assert_eq!(desk.cells()[*at].cpu, before - need.cpu);
                }
            }
        }
    }
}
