//! Published schedulers, from their descriptions, on nodes that are nothing but numbers.

use std::collections::BTreeMap;

/// What is free of a node.
#[derive(Clone, Debug)]
pub struct Cell {
    /// Thousandths of processors.
    pub cpu: i64,
    /// MiB.
    pub memory: i64,
    /// Thousandths of each GPU.
    pub gpus: Vec<i64>,
}

/// What a pod needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Need {
    /// Thousandths of processors.
    pub cpu: i64,
    /// MiB.
    pub memory: i64,
    /// GPUs.
    pub gpus: usize,
    /// Thousandths of each.
    pub milli: i64,
}

/// A class of pods, and how frequent it is.
#[derive(Clone, Copy, Debug)]
pub struct Class {
    /// What it needs; memory does not tell classes apart.
    pub need: Need,
    /// Its part of all.
    pub part: f64,
}

/// A scheduler to compare with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Baseline {
    /// Any node that fits, and any GPUs of it.
    Random,
    /// The first node that fits.
    FirstFit,
    /// The node that is left with the least, CPU and GPU normalised by the largest node's.
    BestFit,
    /// Fragmentation gradient descent, its scores whole numbers of 0 to 100 as published.
    Fgd,
}

/// The most frequent classes that cover 95 % of `needs`, renormalised.
pub fn frequent(needs: &[Need]) -> Vec<Class> {
    let mut counts: BTreeMap<Need, f64> = BTreeMap::new();
    needs.iter().for_each(|need| *counts.entry(Need { memory: 0, ..*need }).or_default() += 1.0);
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by(|a, b| b.1.total_cmp(&a.1));
    let mut covered = 0.0;
    let kept = counts.into_iter().take_while(|(_, count)| {
        let before = covered;
        covered += count;
        before < 0.95 * needs.len() as f64
    });
    let kept: Vec<_> = kept.collect();
    let total: f64 = kept.iter().map(|(_, count)| count).sum();
    kept.into_iter().map(|(need, count)| Class { need, part: count / total }).collect()
}

/// F_n(M): thousandths of GPUs that are free and that the next pod of the mix could not use.
pub fn unusable(cell: &Cell, mix: &[Class]) -> f64 {
    let free: i64 = cell.gpus.iter().sum();
    let of = |class: &Class| {
        let need = class.need;
        let usable = cell.gpus.iter().filter(|gpu| **gpu >= need.milli);
        let (count, sum) = usable.fold((0, 0), |(count, sum), gpu| (count + 1, sum + gpu));
        let none = need.gpus == 0 || cell.cpu < need.cpu || count < need.gpus;
        class.part * (if none { free } else { free - sum }) as f64
    };
    mix.iter().map(of).sum()
}

impl Cell {
    /// Whether `need` fits.
    pub fn fits(&self, need: &Need) -> bool {
        let gpus = self.gpus.iter().filter(|gpu| **gpu >= need.milli).count();
        self.cpu >= need.cpu && self.memory >= need.memory && gpus >= need.gpus
    }

    /// The GPUs with room, tightest first.
    fn tightest(&self, need: &Need) -> Vec<usize> {
        let mut found: Vec<usize> = (0..self.gpus.len()).collect();
        found.retain(|at| self.gpus.get(*at).is_some_and(|gpu| *gpu >= need.milli));
        found.sort_by_key(|at| self.gpus.get(*at).copied());
        found
    }

    /// GPUs with room, as the coin falls.
    pub(crate) fn any(&self, need: &Need, coin: &mut fastrand::Rng) -> Vec<usize> {
        let mut found = self.tightest(need);
        coin.shuffle(&mut found);
        found.truncate(need.gpus);
        found
    }

    /// What is left with `need` on these GPUs.
    #[must_use]
    pub fn less(&self, need: &Need, gpus: &[usize]) -> Self {
        let mut left = self.clone();
        left.cpu -= need.cpu;
        left.memory -= need.memory;
        for at in gpus {
            if let Some(gpu) = left.gpus.get_mut(*at) {
                *gpu -= need.milli;
            }
        }
        left
    }
}

impl Baseline {
    /// Its name, as the published table has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Random => "Random",
            Self::FirstFit => "FirstFit",
            Self::BestFit => "BestFit",
            Self::Fgd => "FGD",
        }
    }

    /// The score of a node that fits and of which `before` is [`unusable`], higher is better, and
    /// the GPUs that it would take.
    pub fn score(self, cell: &Cell, before: f64, need: &Need, mix: &[Class]) -> (f64, Vec<usize>) {
        let mut tight = cell.tightest(need);
        let candidates = tight.clone();
        tight.truncate(need.gpus);
        match self {
            Self::Random | Self::FirstFit => (0.0, tight),
            Self::BestFit => {
                let left = cell.less(need, &tight);
                let gpus = left.gpus.iter().sum::<i64>() as f64 / 8000.0;
                (-(left.cpu as f64 / 128_000.0 + gpus), tight)
            }
            Self::Fgd => {
                let score = |gpus: &[usize]| {
                    let grown = unusable(&cell.less(need, gpus), mix) - before;
                    (100.0 / (1.0 + (grown / 1000.0).exp())).floor()
                };
                if need.gpus != 1 {
                    return (score(&tight), tight);
                }
                // GPUs with as much free score the same; of those the first by index stays.
                let free = |at: &usize| cell.gpus.get(*at).copied();
                let mut of_each = candidates;
                of_each.dedup_by_key(|at| free(at));
                // A tie goes to the lowest index.
                of_each.sort_unstable();
                let scored = of_each.into_iter().map(|at| (score(&[at]), vec![at]));
                scored
                    .fold((f64::MIN, tight), |best, next| if next.0 > best.0 { next } else { best })
            }
        }
    }
}
