use serde::{Deserialize, Serialize};

use super::Reset;
use crate::Timestamp;

/// What is written to the device before its reset, to be gone after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Canary(u64);

/// A place in the device's memory, as its BAR shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place(pub u64);

/// So many bytes are written at each place.
const WORD: u64 = 8;

impl Canary {
    /// One that nobody who does not know `seed` can have left there.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// What belongs at a place: neither zeros nor ones, which a device shows by itself.
    pub const fn at(self, place: Place) -> u64 {
        let value = mix(self.0 ^ place.0);
        if value == 0 || value == u64::MAX { 0x5a5a_a5a5_1234_8765 } else { value }
    }

    /// `count` places over `length` bytes: both ends, and one in each of equal stretches between.
    pub fn places(self, length: u64, count: u32) -> Vec<Place> {
        let words = length / WORD;
        let count = u64::from(count).min(words);
        let stretch = words.checked_div(count).unwrap_or(0).max(1);
        let one = |index: u64| match index {
            0 => 0,
            last if last + 1 == count => words - 1,
            index => index * stretch + mix(self.0.wrapping_add(index)) % stretch,
        };
        (0..count).map(|index| Place(one(index) * WORD)).collect()
    }
}

/// splitmix64's last step.
const fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// What a device's memory must show after its reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expected {
    /// Anything but what was written.
    #[default]
    Other,
    /// Zeros: its maker says that a reset writes them.
    Zeros,
}

/// How long things may take, and what counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnoverTerms {
    /// For the reset itself, in nanoseconds.
    pub reset_within: u64,
    /// From the reset's end until the device answers.
    pub answer_within: u64,
    /// What its memory must show.
    pub expected: Expected,
}

impl Default for TurnoverTerms {
    fn default() -> Self {
        let seconds = 1_000_000_000;
        Self { reset_within: 60 * seconds, answer_within: 60 * seconds, expected: Expected::Other }
    }
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write the canary, and read it back.
    Mark,
    /// Reset the device.
    Reset(Reset),
    /// See whether it answers, now and again.
    Ask,
    /// Read the places.
    Check,
    /// Nothing: it may serve the next tenant.
    Clear,
    /// Nothing: it serves nobody until an operator has looked.
    Condemned,
}

/// Why a device does not go to the next tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case", tag = "why")]
pub enum Condemned {
    /// Nothing can be shown by a place that holds nothing.
    #[error(
        "its memory does not hold what is written to it, at {place:#x}: whether a reset clears it cannot be shown"
    )]
    Unmarked {
        /// Where.
        place: u64,
    },
    /// A step failed.
    #[error("its {step} failed: {reason}")]
    Failed {
        /// Which.
        step: String,
        /// Why.
        reason: String,
    },
    /// The reset does not end.
    #[error("its reset did not end within {seconds} s")]
    ResetHangs {
        /// So long was waited.
        seconds: u64,
    },
    /// It does not come back.
    #[error("it does not answer {seconds} s after its reset")]
    Silent {
        /// So long was waited.
        seconds: u64,
    },
    /// It reads as ones everywhere, as what is not there does.
    #[error("it vanished: all of it reads as ones")]
    Vanished,
    /// Its memory came through.
    #[error("its memory came through the reset, at {place:#x}")]
    Kept {
        /// Where.
        place: u64,
    },
    /// Its memory is not what its maker says.
    #[error("its memory shows {found:#x} at {place:#x} after the reset, and should show zeros")]
    NotZeros {
        /// Where.
        place: u64,
        /// What.
        found: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    Marking,
    Resetting,
    Settling,
    Checking,
    Clear,
    Condemned(Condemned),
}

/// A device between two tenants.
///
/// ```text
/// Marking ─▶ Resetting ─▶ Settling ─▶ Checking ─▶ Clear
///    └───────────┴────────────┴───────────┴─────▶ Condemned
/// ```
///
/// There is no way from `Condemned`, and none to `Clear` but through all of them.
#[derive(Clone, Debug)]
pub struct Turnover {
    terms: TurnoverTerms,
    reset: Reset,
    canary: Canary,
    places: Vec<Place>,
    stage: Stage,
    since: Timestamp,
}

impl Turnover {
    /// Begins `now`. A device without a place to look at cannot be shown to be clear.
    pub fn begin(
        terms: TurnoverTerms,
        reset: Reset,
        canary: Canary,
        places: Vec<Place>,
        now: Timestamp,
    ) -> Self {
        let stage = match places.is_empty() {
            true => Stage::Condemned(Condemned::Unmarked { place: 0 }),
            false => Stage::Marking,
        };
        Self { terms, reset, canary, places, stage, since: now }
    }

    /// What is to be done.
    pub const fn next(&self) -> Step {
        match self.stage {
            Stage::Marking => Step::Mark,
            Stage::Resetting => Step::Reset(self.reset),
            Stage::Settling => Step::Ask,
            Stage::Checking => Step::Check,
            Stage::Clear => Step::Clear,
            Stage::Condemned(_) => Step::Condemned,
        }
    }

    /// Where to write and to look, and what belongs there.
    pub fn marks(&self) -> impl Iterator<Item = (Place, u64)> + Clone {
        self.places.iter().map(|place| (*place, self.canary.at(*place)))
    }

    /// Why it was condemned, if it was.
    pub const fn condemned(&self) -> Option<&Condemned> {
        match &self.stage {
            Stage::Condemned(why) => Some(why),
            Stage::Marking
            | Stage::Resetting
            | Stage::Settling
            | Stage::Checking
            | Stage::Clear => None,
        }
    }

    fn go(&mut self, stage: Stage, now: Timestamp) {
        (self.stage, self.since) = (stage, now);
    }

    fn waited(&self, now: Timestamp) -> u64 {
        now.nanoseconds().saturating_sub(self.since.nanoseconds())
    }

    /// The step that was to be done failed.
    pub fn failed(&mut self, reason: &str, now: Timestamp) {
        let step = match self.stage {
            Stage::Marking => "marking",
            Stage::Resetting => "reset",
            Stage::Settling => "first answer",
            Stage::Checking => "check",
            Stage::Clear | Stage::Condemned(_) => return,
        };
        let (step, reason) = (step.to_owned(), reason.chars().take(200).collect());
        self.go(Stage::Condemned(Condemned::Failed { step, reason }), now);
    }

    /// What the places showed right after they were written, in their order.
    pub fn marked(&mut self, found: &[u64], now: Timestamp) {
        if self.stage != Stage::Marking {
            return;
        }
        let wrong = self.marks().zip(found).find(|((_, wrote), found)| wrote != *found);
        let missing = self.places.get(found.len()).copied();
        self.go(
            match (wrong, missing) {
                (Some(((place, _), _)), _) | (None, Some(place)) => {
                    Stage::Condemned(match found.iter().all(|word| *word == u64::MAX) {
                        true => Condemned::Vanished,
                        false => Condemned::Unmarked { place: place.0 },
                    })
                }
                (None, None) => Stage::Resetting,
            },
            now,
        );
    }

    /// The reset ended well.
    pub fn reset_done(&mut self, now: Timestamp) {
        if self.stage == Stage::Resetting {
            self.go(Stage::Settling, now);
        }
    }

    /// Whether it answered.
    pub fn answered(&mut self, answers: bool, now: Timestamp) {
        if self.stage == Stage::Settling && answers {
            self.go(Stage::Checking, now);
        }
    }

    /// Time went by.
    pub fn tick(&mut self, now: Timestamp) {
        let waited = self.waited(now);
        let condemned = match self.stage {
            Stage::Resetting if waited >= self.terms.reset_within => {
                Condemned::ResetHangs { seconds: waited / 1_000_000_000 }
            }
            Stage::Settling if waited >= self.terms.answer_within => {
                Condemned::Silent { seconds: waited / 1_000_000_000 }
            }
            Stage::Marking | Stage::Checking if waited >= self.terms.answer_within => {
                let reason = format!("it did not end within {} s", waited / 1_000_000_000);
                return self.failed(&reason, now);
            }
            Stage::Marking
            | Stage::Resetting
            | Stage::Settling
            | Stage::Checking
            | Stage::Clear
            | Stage::Condemned(_) => return,
        };
        self.go(Stage::Condemned(condemned), now);
    }

    /// What the places show after the reset, in their order.
    pub fn checked(&mut self, found: &[u64], now: Timestamp) {
        if self.stage != Stage::Checking {
            return;
        }
        self.go(self.verdict(found).map_or(Stage::Clear, Stage::Condemned), now);
    }

    fn verdict(&self, found: &[u64]) -> Option<Condemned> {
        if found.len() != self.places.len() {
            let (step, reason) = ("check".to_owned(), "not all places were read".to_owned());
            return Some(Condemned::Failed { step, reason });
        }
        if found.iter().all(|word| *word == u64::MAX) {
            return Some(Condemned::Vanished);
        }
        let mut looked = self.marks().zip(found);
        let kept = looked.clone().find(|((_, wrote), found)| wrote == *found);
        if let Some(((place, _), _)) = kept {
            return Some(Condemned::Kept { place: place.0 });
        }
        match self.terms.expected {
            Expected::Other => None,
            Expected::Zeros => looked
                .find(|(_, found)| **found != 0)
                .map(|((place, _), found)| Condemned::NotZeros { place: place.0, found: *found }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::devices::ResetMethod;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_nanoseconds(seconds * 1_000_000_000)
    }

    fn begun(expected: Expected) -> Turnover {
        let canary = Canary::new(7);
        let terms = TurnoverTerms { expected, ..TurnoverTerms::default() };
        let reset = Reset::Function(ResetMethod::Bus);
        Turnover::begin(terms, reset, canary, canary.places(1 << 20, 16), at(0))
    }

    fn until_check(expected: Expected) -> Turnover {
        let mut device = begun(expected);
        let marks: Vec<u64> = device.marks().map(|(_, value)| value).collect();
        device.marked(&marks, at(1));
        assert_eq!(device.next(), Step::Reset(Reset::Function(ResetMethod::Bus)));
        device.reset_done(at(2));
        device.answered(false, at(3));
        assert_eq!(device.next(), Step::Ask);
        device.answered(true, at(4));
        assert_eq!(device.next(), Step::Check);
        device
    }

    #[test]
    fn what_came_through_condemns() {
        let mut clear = until_check(Expected::Zeros);
        clear.checked(&[0; 16], at(5));
        assert_eq!(clear.next(), Step::Clear);
        for kept in 0..16 {
            let mut device = until_check(Expected::Other);
            let (place, value) = device.marks().nth(kept).unwrap();
            let mut found = [3; 16];
            found[kept] = value;
            device.checked(&found, at(5));
            assert_eq!(device.condemned(), Some(&Condemned::Kept { place: place.0 }));
        }
        let mut device = until_check(Expected::Zeros);
        device.checked(&[3; 16], at(5));
        assert!(matches!(device.condemned(), Some(Condemned::NotZeros { found: 3, .. })));
        let mut device = until_check(Expected::Other);
        device.checked(&[u64::MAX; 16], at(5));
        assert_eq!(device.condemned(), Some(&Condemned::Vanished));
        let mut device = until_check(Expected::Other);
        device.checked(&[0; 15], at(5));
        assert!(device.condemned().is_some());
    }

    #[test]
    fn what_takes_too_long_or_holds_nothing_condemns() {
        let mut device = begun(Expected::Other);
        device.marked(&[0; 16], at(1));
        assert!(matches!(device.condemned(), Some(Condemned::Unmarked { .. })));
        let mut device = begun(Expected::Other);
        let marks: Vec<u64> = device.marks().map(|(_, value)| value).collect();
        device.marked(&marks, at(1));
        device.tick(at(60));
        assert_eq!(device.condemned(), None);
        device.tick(at(61));
        assert_eq!(device.condemned(), Some(&Condemned::ResetHangs { seconds: 60 }));
        device.reset_done(at(62));
        assert_eq!(device.next(), Step::Condemned);
        let nowhere = Turnover::begin(
            TurnoverTerms::default(),
            Reset::Slot,
            Canary::new(1),
            Vec::new(),
            at(0),
        );
        assert_eq!(nowhere.next(), Step::Condemned);
    }

    proptest! {
        #[test]
        fn places_are_inside_apart_and_at_both_ends(
            seed: u64, length in 0u64..1 << 40, count in 0u32..200
        ) {
            let places = Canary::new(seed).places(length, count);
            prop_assert_eq!(places.len() as u64, u64::from(count).min(length / 8));
            prop_assert!(places.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert!(places.iter().all(|place| place.0 % 8 == 0 && place.0 + 8 <= length));
            if places.len() > 1 {
                prop_assert_eq!(places.last().unwrap().0, (length / 8 - 1) * 8);
                prop_assert_eq!(places[0].0, 0);
            }
        }

        #[test]
        fn only_the_whole_way_leads_to_clear(steps in prop::collection::vec(0u8..6, 0..12)) {
            let mut device = begun(Expected::Other);
            let marks: Vec<u64> = device.marks().map(|(_, value)| value).collect();
            let mut way = 0;
            for (second, step) in (1..).zip(&steps) {
                let now = at(second);
                match step {
                    0 => device.marked(&marks, now),
                    1 => device.reset_done(now),
                    2 => device.answered(true, now),
                    3 => device.checked(&[1; 16], now),
                    4 => device.tick(now),
                    _ => device.answered(false, now),
                }
                if way < 4 && usize::from(*step) == way {
                    way += 1;
                }
            }
            prop_assert_eq!(device.next() == Step::Clear, way == 4);
        }
    }
}
