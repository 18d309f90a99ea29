use super::Score;

/// The rank of the best node: what kube-scheduler lets an extender say at most.
pub const BEST_RANK: u8 = 10;

/// Each node's rank among `scores`, 0 to [`BEST_RANK`], in their order.
///
/// Distinct scores are numbered from the best: the best is 10, the next 9, and from the eleventh
/// on 0. So equal ranks at the top are equal scores, and the scheduler's coin, which decides among
/// them, decides nothing that the engine has an opinion on. Scaling would lose that: of a thousand
/// nodes, a hundred share each tenth.
pub fn rank_scores(scores: &[Score]) -> Vec<u8> {
    let mut distinct: Vec<Score> = Vec::with_capacity(usize::from(BEST_RANK) + 1);
    for score in scores {
        // Ten places are all that is ever looked up, so a thousand nodes need no sort.
        if let Err(at) = distinct.binary_search_by(|other| score.cmp(other)) {
            distinct.insert(at, *score);
            distinct.truncate(usize::from(BEST_RANK));
        }
    }
    let rank = |score: &Score| match distinct.binary_search_by(|other| score.cmp(other)) {
        Ok(place) => BEST_RANK.saturating_sub(u8::try_from(place).unwrap_or(BEST_RANK)),
        Err(_) => 0,
    };
    scores.iter().map(rank).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn scores(of: &[f64]) -> Vec<Score> {
        of.iter().map(|value| Score::new(*value)).collect()
    }

    #[test]
    fn the_best_is_ten_and_equals_stay_equal() {
        assert_eq!(rank_scores(&scores(&[0.5, -3.0, 0.5, 0.4999])), [10, 8, 10, 9]);
        assert_eq!(rank_scores(&[]), [0u8; 0]);
        let many: Vec<f64> = (0..20).map(f64::from).collect();
        let ranks = rank_scores(&scores(&many));
        assert_eq!(ranks[8..], [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    }

    proptest! {
        #[test]
        fn a_higher_rank_is_a_higher_score(of in proptest::collection::vec(-50i32..50, 1..60)) {
            let of: Vec<f64> = of.into_iter().map(f64::from).collect();
            let ranks = rank_scores(&scores(&of));
            let best = of.iter().copied().fold(f64::MIN, f64::max);
            for (a, rank_a) in of.iter().zip(&ranks) {
                prop_assert_eq!(*rank_a == BEST_RANK, *a == best);
                for (b, rank_b) in of.iter().zip(&ranks) {
                    prop_assert!(rank_a <= rank_b || a > b);
                }
            }
        }
    }
}
