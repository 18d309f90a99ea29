//! The places that are looked at.

use std::hash::{BuildHasher, Hasher, RandomState};

use gpuzone_core::MemoryBytes;

use super::Failure;
use super::memory::Held;

/// What is looked at in one place. Many small ones find more than few large ones, and each costs
/// calls of the driver.
const PLACE: u64 = 64 << 10;
/// At least so many places, however small the sample: smaller ones then.
const FEWEST: u64 = 64;
const SMALLEST: u64 = 512;

/// Places within held memory, none of them over another.
pub(super) struct Places {
    places: Vec<(u64, usize)>,
    secret: u64,
}

/// Numbers that nobody can foresee who does not know the seed.
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        // Seeded by the operating system.
        Self(RandomState::new().build_hasher().finish())
    }

    /// `SplitMix64`.
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl Places {
    /// Random places that have about `sample` bytes together: one in each of as many equal
    /// stretches of the held memory, and one in each piece that has none of these.
    pub(super) fn choose(held: &Held<'_>, sample: MemoryBytes) -> Self {
        let total = held.bytes().get();
        let sample = sample.get().min(total);
        let length = (sample / FEWEST).clamp(SMALLEST, PLACE) / SMALLEST * SMALLEST;
        let count = (sample / length).max(1);
        let stretch = (total / count / SMALLEST * SMALLEST).max(length);
        let mut dice = Dice::new();
        let mut places = Vec::new();
        // Where the piece begins, counted over all pieces, and where the next stretch does.
        let (mut base, mut next) = (0, 0);
        for piece in held.pieces() {
            let end = base + piece.bytes;
            let before = places.len();
            while next + length <= end {
                let room = (stretch - length + 1).min(end - length - next + 1);
                // Pieces and stretches begin at multiples of a canary's four bytes.
                let start = (next + dice.roll() % room) / 4 * 4;
                let address = piece.address + (start - base);
                places.push((address, usize::try_from(length).unwrap_or_default()));
                next += stretch;
            }
            if places.len() == before && piece.bytes > 0 {
                // No allocation is taken on trust: a driver may treat each differently.
                let bytes = piece.bytes.min(SMALLEST);
                let start = dice.roll() % (piece.bytes - bytes + 1) / 4 * 4;
                places.push((piece.address + start, usize::try_from(bytes).unwrap_or_default()));
            }
            base = end;
            next = next.max(base);
        }
        Self { places, secret: dice.roll() }
    }

    pub(super) fn count(&self) -> usize {
        self.places.len()
    }

    /// A word that no other place has.
    fn canary(&self, number: usize) -> u32 {
        let [a, b, c, d, ..] = Dice(self.secret ^ number as u64).roll().to_le_bytes();
        // Not zero, for that is what comes after it.
        u32::from_le_bytes([a, b, c, d]) | 1
    }

    /// Writes all canaries, before any is read: one that landed in another's place is seen.
    pub(super) fn write_canaries(&self, held: &Held<'_>) -> Result<(), Failure> {
        for (number, (address, bytes)) in self.places.iter().enumerate() {
            held.fill(*address, self.canary(number), bytes / 4)?;
        }
        held.wait()
    }

    pub(super) fn read_canaries(&self, held: &Held<'_>) -> Result<(), Failure> {
        let mut buffer = Vec::new();
        for (number, (address, bytes)) in self.places.iter().enumerate() {
            let wrote = self.canary(number);
            buffer.clear();
            buffer.resize(*bytes, 0);
            held.read(*address, &mut buffer)?;
            let words = buffer.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word));
            let mut words = (0_u64..).zip(words);
            if let Some((place, read)) = words.find(|(_, read)| *read != wrote) {
                return Err(Failure::Canary { wrote, read, at: address + 4 * place });
            }
        }
        Ok(())
    }

    /// Expects zeros everywhere; how many bytes there were.
    pub(super) fn compare_zeros(&self, held: &Held<'_>) -> Result<u64, Failure> {
        let (mut buffer, mut compared) = (Vec::new(), 0);
        for (address, bytes) in &self.places {
            buffer.resize(*bytes, 0);
            held.expect_zeros(*address, &mut buffer)?;
            compared += *bytes as u64;
        }
        Ok(compared)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::memory::Piece;
    use super::*;
    use crate::driver::Driver;

    proptest! {
        #[test]
        fn places_lie_in_pieces_and_not_over_each_other(
            sizes in prop::collection::vec(1..5_000_u64, 0..40),
            sample in 0..4_000_000_u64,
        ) {
            let driver = Driver::idle();
            let mut pieces = Vec::new();
            for size in sizes {
                // With gaps between them.
                let address = (1 << 40) + pieces.len() as u64 * (1 << 24);
                pieces.push(Piece { address, bytes: size * SMALLEST });
            }
            let held = Held::of(&driver, pieces);
            let places = Places::choose(&held, MemoryBytes::new(sample).expect("small"));
            let mut taken: Vec<(u64, u64)> =
                places.places.iter().map(|(at, bytes)| (*at, at + *bytes as u64)).collect();
            taken.sort_unstable();
            for (start, end) in &taken {
                prop_assert!(start < end && start % 4 == 0 && (end - start) % 4 == 0);
                let inside = |piece: &Piece| {
                    *start >= piece.address && *end <= piece.address + piece.bytes
                };
                prop_assert!(held.pieces().iter().any(inside), "{start:#x}..{end:#x}");
            }
            for pair in taken.windows(2) {
                prop_assert!(pair[0].1 <= pair[1].0, "{pair:#x?}");
            }
            for piece in held.pieces() {
                let has = |(start, _): &(u64, u64)| {
                    (piece.address..piece.address + piece.bytes).contains(start)
                };
                prop_assert!(taken.iter().any(has), "no place in {:#x}", piece.address);
            }
            prop_assert_eq!(held.pieces().is_empty(), taken.is_empty());
        }
    }

    #[test]
    fn canaries_differ_and_are_never_zero() {
        let places = Places { places: Vec::new(), secret: 7 };
        let canaries: std::collections::BTreeSet<u32> =
            (0..1000).map(|n| places.canary(n)).collect();
        assert!(canaries.len() > 995 && !canaries.contains(&0), "{}", canaries.len());
    }
}
