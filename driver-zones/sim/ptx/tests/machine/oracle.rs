//! Exact arithmetic by other means than the machine's: numbers as integers of 128
//! bits, in units of a power of two.

/// A binary format: bits of exponent and of fraction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Format {
    pub(crate) exponent: u32,
    pub(crate) fraction: u32,
}

pub(crate) const HALF: Format = Format { exponent: 5, fraction: 10 };
pub(crate) const BRAIN: Format = Format { exponent: 8, fraction: 7 };
pub(crate) const SINGLE: Format = Format { exponent: 8, fraction: 23 };
pub(crate) const DOUBLE: Format = Format { exponent: 11, fraction: 52 };

/// Where a result must lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Nearest,
    Zero,
    Down,
    Up,
}

impl Format {
    pub(crate) fn sign(self) -> u64 {
        1 << (self.exponent + self.fraction)
    }

    pub(crate) fn infinity(self) -> u64 {
        self.sign() - (1 << self.fraction)
    }

    /// A number's value in units of `2^-scale`, which must divide it.
    pub(crate) fn fixed(self, bits: u64, scale: i32) -> i128 {
        let magnitude = bits & (self.sign() - 1);
        assert!(magnitude < self.infinity(), "{bits:#x} is no number");
        let field = i32::try_from(magnitude >> self.fraction).expect("narrow");
        let fraction = i128::from(magnitude & ((1 << self.fraction) - 1));
        let significand = if field == 0 { fraction } else { fraction | 1 << self.fraction };
        let bias = (1 << (self.exponent - 1)) - 1;
        let unit = field.max(1) - bias - i32::try_from(self.fraction).expect("narrow");
        let shift = unit + scale;
        let value = if significand == 0 {
            0
        } else if shift >= 0 {
            assert!(significand.leading_zeros() > shift.cast_unsigned() + 1);
            significand << shift
        } else {
            assert_eq!(significand & ((1 << -shift) - 1), 0, "the unit is too large");
            significand >> -shift
        };
        if bits & self.sign() == 0 { value } else { -value }
    }

    /// The number's neighbours below and above; one step beyond zero has its sign.
    fn neighbours(self, bits: u64) -> [u64; 2] {
        let ordered = |bits: u64| {
            let magnitude = (bits & (self.sign() - 1)).cast_signed();
            if bits & self.sign() == 0 { magnitude } else { -magnitude }
        };
        let back = |value: i64| {
            if value < 0 { self.sign() | value.unsigned_abs() } else { value.unsigned_abs() }
        };
        [back(ordered(bits) - 1), back(ordered(bits) + 1)]
    }

    /// Whether `bits` is `exact` (in units of `2^-scale`) rounded as told. `compare`
    /// compares a number, in that unit, with the exact result.
    pub(crate) fn is_rounded(
        self,
        bits: u64,
        scale: i32,
        direction: Direction,
        compare: &dyn Fn(i128) -> std::cmp::Ordering,
    ) -> bool {
        use std::cmp::Ordering::{Equal, Greater, Less};
        let value = self.fixed(bits, scale);
        if compare(value) == Equal {
            return true;
        }
        let [below, above] = self.neighbours(bits).map(|bits| self.fixed(bits, scale));
        match (compare(value), direction) {
            (Less, Direction::Down) => compare(above) == Greater,
            (Greater, Direction::Up) => compare(below) == Less,
            (Less, Direction::Zero) => value >= 0 && compare(above) == Greater,
            (Greater, Direction::Zero) => value <= 0 && compare(below) == Less,
            // In the middle, the even one of the two.
            (Less, Direction::Nearest) => match compare(i128::midpoint(value, above)) {
                Greater => true,
                Equal => bits & 1 == 0,
                Less => false,
            },
            (Greater, Direction::Nearest) => match compare(i128::midpoint(below, value)) {
                Less => true,
                Equal => bits & 1 == 0,
                Greater => false,
            },
            _ => false,
        }
    }

    /// The number nearest to an exact value, by search.
    pub(crate) fn nearest(self, exact: i128, scale: i32) -> u64 {
        let (mut low, mut high) = (0, self.infinity() - 1);
        while low < high {
            let middle = u64::midpoint(low, high) + (low + high) % 2;
            if self.fixed(middle, scale) <= exact.abs() { low = middle } else { high = middle - 1 }
        }
        let sign = if exact < 0 { self.sign() } else { 0 };
        let compare = |value: i128| value.cmp(&exact.abs());
        let last = low == self.infinity() - 1;
        let chosen = if last || self.is_rounded(low, scale, Direction::Nearest, &compare) {
            low
        } else {
            low + 1
        };
        sign | chosen
    }
}
