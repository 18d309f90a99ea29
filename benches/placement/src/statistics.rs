/// What one replay came to: by bins of requested GPUs, in per cent of the cluster's.
#[derive(Clone, Debug)]
pub struct Bins {
    sums: Vec<(f64, f64, u32)>,
    /// GPUs requested, in per cent, when the first pod with GPUs fit nowhere.
    pub first_drop: Option<f64>,
    /// Pods dropped that want a part of a GPU, one, and several.
    pub dropped: [u32; 3],
    /// How long each decision took, in nanoseconds.
    pub nanoseconds: Vec<u64>,
}

impl Default for Bins {
    fn default() -> Self {
        let sums = vec![(0.0, 0.0, 0); 201];
        Self { sums, first_drop: None, dropped: [0; 3], nanoseconds: Vec::new() }
    }
}

impl Bins {
    /// After an arrival: requested, allocated and fragmented parts of the cluster.
    pub fn add(&mut self, requested: f64, allocated: f64, fragmented: f64) {
        // Rounded and within the table, so that nothing is cut off.
        #[allow(clippy::cast_possible_truncation, reason = "0 to 200")]
        let at = (requested * 100.0).round().clamp(0.0, 200.0) as usize;
        if let Some(bin) = self.sums.get_mut(at) {
            bin.0 += allocated * 100.0;
            bin.1 += fragmented * 100.0;
            bin.2 += 1;
        }
    }

    /// A pod of these GPUs did not fit.
    pub fn drop(&mut self, requested: f64, gpus: usize, milli: i64) {
        self.first_drop.get_or_insert(requested * 100.0);
        let class = if gpus > 1 { 2 } else { usize::from(milli == 1000) };
        if let Some(count) = self.dropped.get_mut(class) {
            *count += 1;
        }
    }

    /// Mean allocation and fragmentation in a bin, in per cent; 0 where nothing fell.
    pub fn at(&self, bin: usize) -> (f64, f64) {
        let (allocated, fragmented, count) = self.sums.get(bin).copied().unwrap_or_default();
        let count = f64::from(count.max(1));
        (allocated / count, fragmented / count)
    }

    /// The time that `part` of all decisions took no longer than, in microseconds.
    pub fn microseconds(&self, part: f64) -> f64 {
        let mut sorted = self.nanoseconds.clone();
        sorted.sort_unstable();
        #[allow(clippy::cast_possible_truncation, reason = "an index")]
        let at = (sorted.len() as f64 * part) as usize;
        sorted.get(at.min(sorted.len().saturating_sub(1))).map_or(0.0, |ns| *ns as f64 / 1000.0)
    }
}

/// Numbers of several seeds.
#[derive(Clone, Debug)]
pub struct Series(pub Vec<f64>);

impl Series {
    /// Their mean.
    pub fn mean(&self) -> f64 {
        self.0.iter().sum::<f64>() / self.0.len().max(1) as f64
    }

    /// Their standard deviation, of a sample.
    pub fn deviation(&self) -> f64 {
        let mean = self.mean();
        let squares: f64 = self.0.iter().map(|value| (value - mean) * (value - mean)).sum();
        (squares / self.0.len().saturating_sub(1).max(1) as f64).sqrt()
    }
}

/// Mean of the differences `a - b`, seed by seed, and half the width of its 95 % interval by
/// Student's t for ten seeds.
pub fn paired(a: &Series, b: &Series) -> (f64, f64) {
    const T_OF_NINE: f64 = 2.262;
    let differences = Series(a.0.iter().zip(&b.0).map(|(a, b)| a - b).collect());
    let root = (differences.0.len().max(1) as f64).sqrt();
    (differences.mean(), T_OF_NINE * differences.deviation() / root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_and_intervals() {
        let (a, b) = (Series(vec![1.0, 2.0, 3.0]), Series(vec![0.0, 1.0, 2.0]));
        assert_eq!((a.mean(), a.deviation(), paired(&a, &b)), (2.0, 1.0, (1.0, 0.0)));
        let mut bins = Bins::default();
        bins.add(0.504, 0.4, 0.1);
        bins.add(0.496, 0.6, 0.3);
        assert_eq!(
            (bins.at(50).0.round(), bins.at(50).1.round(), bins.at(51).0),
            (50.0, 20.0, 0.0)
        );
    }
}
