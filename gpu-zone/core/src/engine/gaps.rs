/// The parts of a GPU above which a pod is worth nothing by itself: of one that fits six times
/// or more there is always a gap of another's that takes it.
const MOST_PIECES: u16 = 5;

/// What a gap on a GPU is worth, in thousandths of an empty GPU.
///
/// A pod that fits `k` times on a GPU is worth `1/k` of one, the weights of harmonic bin packing,
/// and a gap is worth the best that fits in it. So 470 thousandths are worth a half and leave a
/// half, for another of the kind; what 810 leave is worth nothing; and to put 320 into the 530
/// that 470 left wastes a sixth, which no measure of the very next pod sees.
#[derive(Clone, Debug, Default)]
pub(super) struct GapValues(Vec<f64>);

impl GapValues {
    /// The values when pods of these `sizes`, in thousandths from 1 to 1000, are asked for.
    pub(super) fn new(sizes: &[u16]) -> Self {
        let known = sizes.iter().filter(|size| (1..=1000).contains(*size));
        let pods: Vec<(usize, f64)> = known
            .map(|size| (usize::from(*size), 1000 / size))
            .filter(|(_, pieces)| *pieces <= MOST_PIECES)
            .map(|(size, pieces)| (size, 1000.0 / f64::from(pieces)))
            .collect();
        let mut values: Vec<f64> = vec![0.0; 1001];
        for gap in 1..values.len() {
            let smaller = values.get(gap - 1).copied().unwrap_or(0.0);
            let with = |(size, worth): &(usize, f64)| {
                gap.checked_sub(*size).and_then(|rest| values.get(rest)).map(|rest| rest + worth)
            };
            let best = pods.iter().filter_map(with).fold(smaller, f64::max);
            if let Some(value) = values.get_mut(gap) {
                *value = best;
            }
        }
        // Two that do not fill a GPU by the rule may fit on one all the same.
        let best = values.last().copied().unwrap_or(0.0).max(1000.0);
        values.iter_mut().for_each(|value| *value *= 1000.0 / best);
        Self(values)
    }

    /// What a gap of `milli` thousandths is worth.
    pub(super) fn of(&self, milli: u16) -> f64 {
        self.0.get(usize::from(milli)).copied().unwrap_or(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn halves_thirds_and_fillers() {
        let gaps = GapValues::new(&[110, 160, 320, 470, 810]);
        let of = |gap| gaps.of(gap).round();
        assert_eq!((of(1000), of(530), of(190), of(680)), (1000.0, 500.0, 0.0, 667.0));
        assert_eq!(of(210), 0.0, "320 in the gap of 530 leaves nothing of worth");
    }

    proptest! {
        #[test]
        fn a_larger_gap_is_worth_no_less(sizes in proptest::collection::vec(0u16..1100, 0..20)) {
            let gaps = GapValues::new(&sizes);
            for gap in 1..=1000 {
                prop_assert!(gaps.of(gap) >= gaps.of(gap - 1));
            }
            prop_assert_eq!(gaps.of(0), 0.0);
        }
    }
}
