//! Rounding once. Operations on formats of up to 24 bits are computed in double
//! precision such that an inexact result is odd ("rounding to odd"); as double has
//! more than two bits more, rounding that once more gives the exact result's
//! rounding, in every direction and below the smallest normal number too.

use crate::ir::{Round, Type};

/// A binary format with a sign, an exponent and a fraction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Format {
    exponent_bits: u32,
    fraction_bits: u32,
    /// Whether the highest exponent is that of numbers, but for one NaN.
    finite: bool,
}

pub(crate) const SINGLE: Format = Format { exponent_bits: 8, fraction_bits: 23, finite: false };
pub(crate) const HALF: Format = Format { exponent_bits: 5, fraction_bits: 10, finite: false };
pub(crate) const BRAIN: Format = Format { exponent_bits: 8, fraction_bits: 7, finite: false };
const E4M3: Format = Format { exponent_bits: 4, fraction_bits: 3, finite: true };
const E5M2: Format = Format { exponent_bits: 5, fraction_bits: 2, finite: false };
const TENSOR: Format = Format { exponent_bits: 8, fraction_bits: 10, finite: false };

impl Format {
    /// The format of a float type that is narrower than double.
    pub(crate) fn of(ty: Type) -> Self {
        match ty {
            Type::F16 | Type::F16x2 => HALF,
            Type::BF16 | Type::BF16x2 => BRAIN,
            Type::E4M3 => E4M3,
            Type::E5M2 => E5M2,
            Type::TF32 => TENSOR,
            _ => SINGLE,
        }
    }

    fn sign(self) -> u32 {
        1 << (self.exponent_bits + self.fraction_bits)
    }

    /// The bits above all numbers: infinity, or the NaN where there is none.
    fn infinite(self) -> u32 {
        let all = self.sign() - 1;
        if self.finite { all } else { all & !((1 << self.fraction_bits) - 1) }
    }

    /// The one NaN that results have.
    pub(crate) fn nan(self) -> u32 {
        self.sign() - 1
    }

    /// The largest number.
    pub(crate) fn most(self) -> u32 {
        self.infinite() - 1
    }

    /// Exponent of the smallest normal number.
    fn least_exponent(self) -> i32 {
        2 - (1 << (self.exponent_bits - 1))
    }
}

/// The format's value nearest to `value` in a direction.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "fewer bits than 32 are kept")]
pub(crate) fn narrow(format: Format, round: Round, value: f64) -> u32 {
    let bits = value.to_bits();
    let sign = if bits >> 63 == 1 { format.sign() } else { 0 };
    let field = (bits >> 52 & 0x7ff) as i32;
    let fraction = bits & ((1 << 52) - 1);
    if field == 0x7ff {
        if fraction != 0 {
            return format.nan();
        }
        return if format.finite { format.nan() } else { sign | format.infinite() };
    }
    let exponent = field - 1023;
    let least = format.least_exponent();
    let dropped = (52 - format.fraction_bits as i32 + (least - exponent).max(0)).min(54);
    // A subnormal double is far below half of any format's smallest number.
    let significand = if field == 0 { fraction } else { fraction | 1 << 52 };
    let kept = significand >> dropped;
    let rest = significand & ((1 << dropped) - 1);
    let half = 1_u64 << (dropped - 1);
    let up = match round {
        Round::Nearest => rest > half || (rest == half && kept & 1 == 1),
        Round::NearestAway => rest >= half,
        Round::Zero => false,
        Round::Down => rest != 0 && sign != 0,
        Round::Up => rest != 0 && sign == 0,
    };
    let base = u64::from((exponent.max(least) - least).cast_unsigned()) << format.fraction_bits;
    // The significand's own highest bit adds the one that the exponent lacks, and a
    // carry out of the fraction goes into the exponent by itself.
    let magnitude = base + kept + u64::from(up);
    if magnitude < u64::from(format.infinite()) {
        return sign | magnitude as u32;
    }
    let inward = match round {
        Round::Nearest | Round::NearestAway => false,
        Round::Zero => true,
        Round::Down => sign == 0,
        Round::Up => sign != 0,
    };
    sign | if inward { format.most() } else { format.infinite() }
}

/// A format's value as a double, which is exact.
#[inline(always)]
pub(crate) fn widen(format: Format, bits: u32) -> f64 {
    if format == SINGLE || format == TENSOR {
        return f64::from(f32::from_bits(bits));
    }
    if format == BRAIN {
        return f64::from(f32::from_bits(bits << 16));
    }
    let magnitude = bits & (format.sign() - 1);
    let exponent = (magnitude >> format.fraction_bits).cast_signed();
    let fraction = f64::from(magnitude & ((1 << format.fraction_bits) - 1));
    let unit = format.least_exponent() - format.fraction_bits.cast_signed();
    let whole = f64::from(1 << format.fraction_bits);
    let value = if magnitude > format.infinite() || (format.finite && magnitude == format.nan()) {
        f64::NAN
    } else if magnitude == format.infinite() {
        f64::INFINITY
    } else if exponent == 0 {
        fraction * power(unit)
    } else {
        (whole + fraction) * power(unit + exponent - 1)
    };
    if bits & format.sign() != 0 { -value } else { value }
}

/// 2 to a power for which it is a normal number.
fn power(exponent: i32) -> f64 {
    f64::from_bits(u64::from((exponent + 1023).cast_unsigned()) << 52)
}

/// `nearest`, or if it is not exact its odd neighbour on the exact result's side.
/// `error` has the sign of the exact result less `nearest`.
#[inline(always)]
fn to_odd(nearest: f64, error: f64) -> f64 {
    let bits = nearest.to_bits();
    if error == 0.0 || bits & 1 == 1 || !nearest.is_finite() {
        return nearest;
    }
    let toward_zero = (error < 0.0) == (nearest > 0.0);
    f64::from_bits(if toward_zero { bits - 1 } else { bits + 1 })
}

/// Sum of two doubles and its exact error (Knuth).
#[inline(always)]
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let b_part = sum - a;
    let a_part = sum - b_part;
    (sum, (a - a_part) + (b - b_part))
}

/// `a * b + c` of numbers of at most 24 bits, rounded to odd; `round` decides the
/// sign of a zero only.
#[inline(always)]
pub(crate) fn odd_fma(a: f64, b: f64, c: f64, round: Round) -> f64 {
    let product = a * b;
    let (sum, error) = two_sum(product, c);
    if sum == 0.0 && product.is_sign_negative() != c.is_sign_negative() {
        return if round == Round::Down { -0.0 } else { 0.0 };
    }
    // Of infinities and NaNs there is no error; what was computed is one too.
    to_odd(sum, if sum.is_finite() { error } else { 0.0 })
}

/// `a / b` of numbers of at most 24 bits, rounded to odd.
pub(crate) fn odd_quotient(a: f64, b: f64) -> f64 {
    let quotient = a / b;
    if !quotient.is_finite() || quotient == 0.0 || !b.is_finite() {
        return quotient;
    }
    let rest = (-quotient).mul_add(b, a);
    to_odd(quotient, if b < 0.0 { -rest } else { rest })
}

/// The square root of a number of at most 24 bits, rounded to odd.
pub(crate) fn odd_root(a: f64) -> f64 {
    let root = a.sqrt();
    if !root.is_finite() || root == 0.0 { root } else { to_odd(root, (-root).mul_add(root, a)) }
}

/// An integer of at most 65 bits, rounded to odd.
pub(crate) fn odd_integer(value: i128) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "rounding is the point")]
    let nearest = value as f64;
    #[expect(clippy::cast_possible_truncation, reason = "below 2^66")]
    let order = value.cmp(&(nearest as i128));
    to_odd(nearest, f64::from(order as i8))
}

#[cfg(test)]
mod tests {
    use super::{
        BRAIN, E4M3, E5M2, Format, HALF, SINGLE, narrow, odd_fma, odd_quotient, odd_root, widen,
    };
    use crate::ir::Round;

    const ALL: [Round; 5] =
        [Round::Nearest, Round::NearestAway, Round::Zero, Round::Down, Round::Up];

    #[test]
    fn every_narrow_number_survives_a_round_trip() {
        for (format, bits) in [(HALF, 16), (BRAIN, 16), (E4M3, 8), (E5M2, 8)] {
            for number in 0..1_u32 << bits {
                let value = widen(format, number);
                if value.is_nan() {
                    assert_eq!(narrow(format, Round::Nearest, value), format.nan());
                    continue;
                }
                for round in ALL {
                    assert_eq!(narrow(format, round, value), number, "{format:?} {value}");
                }
            }
        }
    }

    #[test]
    fn single_agrees_with_the_host() {
        let mut state = 1_u64;
        for _ in 0..200_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
            // Exponents around those of single, its subnormal numbers included.
            let exponent = 1023 - 160 + (state >> 40) % 300;
            let value = f64::from_bits(state & ((1 << 63) | ((1 << 52) - 1)) | exponent << 52);
            #[expect(clippy::cast_possible_truncation, reason = "rounding is the point")]
            let nearest = value as f32;
            assert_eq!(narrow(SINGLE, Round::Nearest, value), nearest.to_bits());
            let down = f32::from_bits(narrow(SINGLE, Round::Down, value));
            let up = f32::from_bits(narrow(SINGLE, Round::Up, value));
            assert!(f64::from(down) <= value && value <= f64::from(up));
            assert!(down == up || down.next_up() == up);
            let zero = narrow(SINGLE, Round::Zero, value);
            assert_eq!(zero, if value < 0.0 { up } else { down }.to_bits());
        }
    }

    #[test]
    fn limits_of_the_formats() {
        assert_eq!(narrow(HALF, Round::Nearest, 65520.0), 0x7c00);
        assert_eq!(narrow(HALF, Round::Nearest, 65519.0), 0x7bff);
        assert_eq!(narrow(HALF, Round::Zero, 1e9), 0x7bff);
        assert_eq!(narrow(HALF, Round::Up, -1e9), 0xfbff);
        assert_eq!(narrow(HALF, Round::Up, 1e-300), 1);
        assert_eq!(narrow(HALF, Round::Nearest, -1e-300), 0x8000);
        assert_eq!(narrow(BRAIN, Round::Nearest, f64::from(f32::MAX)), 0x7f80);
        assert_eq!(narrow(SINGLE, Round::Nearest, f64::MIN), 0xff80_0000);
        assert_eq!(narrow(SINGLE, Round::Zero, f64::MAX), 0x7f7f_ffff);
        assert_eq!(narrow(E4M3, Round::Nearest, 448.0), 0x7e);
        assert_eq!(narrow(E4M3, Round::Nearest, 500.0), 0x7f, "no infinity: a NaN");
        assert_eq!(narrow(Format::of(crate::ir::Type::TF32), Round::NearestAway, 1.0), 0x1fc00);
    }

    #[test]
    fn results_that_lie_between_are_odd() {
        assert_eq!(odd_fma(1.0, 1.0, 2.0_f64.powi(-120), Round::Nearest), 1.0_f64.next_up());
        assert_eq!(odd_fma(1.0, 1.0, -(2.0_f64.powi(-120)), Round::Nearest), 1.0_f64.next_down());
        assert_eq!(odd_fma(-1.0, 1.0, -(2.0_f64.powi(-120)), Round::Up), (-1.0_f64).next_down());
        assert!(odd_fma(1.0, 1.0, -1.0, Round::Down).is_sign_negative());
        assert!(odd_fma(1.0, 1.0, -1.0, Round::Up).is_sign_positive());
        assert!(odd_fma(-0.0, 1.0, -0.0, Round::Up).is_sign_negative());
        assert_eq!(odd_quotient(1.0, 4.0), 0.25);
        assert_eq!(odd_quotient(1.0, -3.0).to_bits() & 1, 1);
        assert_eq!(odd_root(9.0), 3.0);
        assert_eq!(odd_root(2.0).to_bits() & 1, 1);
    }
}
