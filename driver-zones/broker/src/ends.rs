//! Workers that ended before their lease did, until the agent has written that down.

use gpuzone_wire::control::WorkerEnd;
use serde::{Deserialize, Serialize};

/// A lease whose workers end faster than anybody asks loses its oldest ends. Their numbers show
/// how many they were.
const MOST: usize = 16;
/// A reason has what the worker said last, which may be long.
const REASON: usize = 400;

/// The ends that were not acknowledged, the oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Ends(Vec<WorkerEnd>);

impl Ends {
    pub(crate) fn push(&mut self, number: u32, pid: u32, reason: &str) {
        let reason = reason.chars().take(REASON).collect();
        self.0.push(WorkerEnd { number, pid, reason });
        let excess = self.0.len().saturating_sub(MOST);
        self.0.drain(..excess);
    }

    pub(crate) fn acknowledge(&mut self, through: u32) {
        self.0.retain(|end| end.number > through);
    }

    pub(crate) fn to_vec(&self) -> Vec<WorkerEnd> {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(ends: &Ends) -> Vec<u32> {
        ends.to_vec().iter().map(|end| end.number).collect()
    }

    #[test]
    fn an_end_stays_until_it_is_acknowledged() {
        let mut ends = Ends::default();
        for number in 1..=3 {
            ends.push(number, 100 + number, "signal 9");
        }
        ends.acknowledge(2);
        assert_eq!(numbers(&ends), [3]);
        ends.acknowledge(2);
        assert_eq!(numbers(&ends), [3]);
    }

    #[test]
    fn ends_without_end_take_no_room_without_end() {
        let mut ends = Ends::default();
        for number in 1..=1000 {
            ends.push(number, 7, &"x".repeat(10_000));
        }
        assert_eq!(numbers(&ends), (985..=1000).collect::<Vec<_>>());
        assert!(ends.to_vec().iter().all(|end| end.reason.len() == REASON));
    }
}
