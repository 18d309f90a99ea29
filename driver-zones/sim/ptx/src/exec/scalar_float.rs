//! What a float instruction does to one lane. Results are the same with and
//! without the host's fused multiply-add, and NaNs have PTX's one bit pattern.

use super::double;
use super::rounding::{SINGLE, narrow, odd_fma, odd_quotient, odd_root};
use crate::ir::{FloatMode, FloatOp, FloatUnary, Round};

const SIGN: u32 = 1 << 31;
const NAN32: u32 = 0x7fff_ffff;
const NAN64: u64 = 0x7fff_ffff_ffff_ffff;

#[inline(always)]
pub(crate) fn bits32(value: f32) -> u32 {
    if value.is_nan() { NAN32 } else { value.to_bits() }
}

#[inline(always)]
pub(crate) fn bits64(value: f64) -> u64 {
    if value.is_nan() { NAN64 } else { value.to_bits() }
}

/// Subnormal numbers become zero of the same sign.
#[inline(always)]
pub(crate) fn flush(bits: u32) -> u32 {
    if bits & 0x7f80_0000 == 0 { bits & SIGN } else { bits }
}

#[inline(always)]
pub(crate) fn flush_if(ftz: bool, bits: u32) -> u32 {
    if ftz { flush(bits) } else { bits }
}

#[inline(always)]
fn saturate(bits: u32) -> u32 {
    let value = f32::from_bits(bits);
    if value >= 1.0 {
        1.0_f32.to_bits()
    } else if value > 0.0 {
        bits
    } else {
        0
    }
}

/// Applies a mode's flush and clamp to a result.
#[inline(always)]
pub(crate) fn finish32(mode: FloatMode, value: f32) -> u32 {
    let bits = flush_if(mode.ftz, bits32(value));
    if mode.sat { saturate(bits) } else { bits }
}

#[inline(always)]
pub(crate) fn min32(a: u32, b: u32) -> u32 {
    let (x, y) = (f32::from_bits(a), f32::from_bits(b));
    if x.is_nan() {
        bits32(y)
    } else if y.is_nan() || x < y {
        a
    } else if y < x {
        b
    } else {
        // Equal: two zeros may differ in sign, and the negative one is less.
        a | b
    }
}

#[inline(always)]
pub(crate) fn max32(a: u32, b: u32) -> u32 {
    let (x, y) = (f32::from_bits(a), f32::from_bits(b));
    if x.is_nan() {
        bits32(y)
    } else if y.is_nan() || x > y {
        a
    } else if y > x {
        b
    } else {
        a & b
    }
}

/// A result in double, rounded to odd, in single.
#[inline(always)]
fn single(odd: f64, round: Round) -> f32 {
    f32::from_bits(narrow(SINGLE, round, odd))
}

/// Fused multiply-add of any mode, on bits.
#[inline(always)]
pub(crate) fn fma32(mode: FloatMode, a: u32, b: u32, c: u32) -> u32 {
    let flushed = |bits| f32::from_bits(flush_if(mode.ftz, bits));
    let (a, b, c) = (flushed(a), flushed(b), flushed(c));
    let value = match mode.round {
        Round::Nearest => a.mul_add(b, c),
        round => single(odd_fma(a.into(), b.into(), c.into(), round), round),
    };
    finish32(mode, value)
}

/// Any two-operand instruction of any mode, on bits.
#[inline(always)]
pub(crate) fn binary32(op: FloatOp, mode: FloatMode, a: u32, b: u32) -> u32 {
    let (a, b) = (flush_if(mode.ftz, a), flush_if(mode.ftz, b));
    let (x, y) = (f32::from_bits(a), f32::from_bits(b));
    let round = mode.round;
    let nearest = round == Round::Nearest;
    let (p, q) = (f64::from(x), f64::from(y));
    let value = match op {
        FloatOp::Add if nearest => x + y,
        FloatOp::Add => single(odd_fma(p, 1.0, q, round), round),
        FloatOp::Sub if nearest => x - y,
        FloatOp::Sub => single(odd_fma(p, 1.0, -q, round), round),
        FloatOp::Mul if nearest => x * y,
        // The product of two singles is exact in double.
        FloatOp::Mul => single(p * q, round),
        FloatOp::Div if nearest => x / y,
        FloatOp::Div => single(odd_quotient(p, q), round),
        FloatOp::Min => return min32(a, b),
        FloatOp::Max => return max32(a, b),
        FloatOp::MinNan | FloatOp::MaxNan if x.is_nan() || y.is_nan() => f32::NAN,
        FloatOp::MinNan => return min32(a, b),
        FloatOp::MaxNan => return max32(a, b),
        FloatOp::CopySign => return (a & !SIGN) | (b & SIGN),
    };
    finish32(mode, value)
}

#[inline(always)]
pub(crate) fn binary64(op: FloatOp, mode: FloatMode, a: u64, b: u64) -> u64 {
    const SIGN: u64 = 1 << 63;
    let (x, y) = (f64::from_bits(a), f64::from_bits(b));
    let nearest = mode.round == Round::Nearest;
    let value = match op {
        FloatOp::Add if nearest => x + y,
        FloatOp::Add => double::fma(x, 1.0, y, mode.round),
        FloatOp::Sub if nearest => x - y,
        FloatOp::Sub => double::fma(x, 1.0, -y, mode.round),
        FloatOp::Mul if nearest => x * y,
        FloatOp::Mul => double::product(x, y, mode.round),
        FloatOp::Div if nearest => x / y,
        FloatOp::Div => double::quotient(x, y, mode.round),
        FloatOp::MinNan | FloatOp::MaxNan if x.is_nan() || y.is_nan() => f64::NAN,
        FloatOp::Min | FloatOp::MinNan | FloatOp::Max | FloatOp::MaxNan => {
            let least = matches!(op, FloatOp::Min | FloatOp::MinNan);
            if x.is_nan() {
                y
            } else if y.is_nan() || (x < y) == least && x != y {
                x
            } else if x != y {
                y
            } else {
                return if least { a | b } else { a & b };
            }
        }
        FloatOp::CopySign => return (a & !SIGN) | (b & SIGN),
    };
    bits64(value)
}

pub(crate) fn fma64(round: Round, a: u64, b: u64, c: u64) -> u64 {
    let (a, b, c) = (f64::from_bits(a), f64::from_bits(b), f64::from_bits(c));
    bits64(if round == Round::Nearest { a.mul_add(b, c) } else { double::fma(a, b, c, round) })
}

/// 2^x to within one rounding, in arithmetic that every host does alike: a
/// Taylor series of degree 10 in double, scaled by the exponent.
#[inline(always)]
fn exp2(x: f32) -> f32 {
    #[expect(clippy::cast_possible_truncation, reason = "rounding is the point")]
    let result = exp2_double(x.into()) as f32;
    result
}

/// As `exp2`, before the rounding.
#[inline(always)]
pub(crate) fn exp2_double(x: f64) -> f64 {
    const ROUNDER: f64 = 6_755_399_441_055_744.0; // 1.5 * 2^52
    const STEPS: [f64; 10] = [
        1.0 / 10.0,
        1.0 / 9.0,
        1.0 / 8.0,
        1.0 / 7.0,
        1.0 / 6.0,
        1.0 / 5.0,
        1.0 / 4.0,
        1.0 / 3.0,
        1.0 / 2.0,
        1.0,
    ];
    let x = x.clamp(-200.0, 200.0);
    let whole = x + ROUNDER;
    let exponent = whole.to_bits().wrapping_sub(ROUNDER.to_bits());
    let t = (x - (whole - ROUNDER)) * std::f64::consts::LN_2;
    let mut sum = 1.0;
    for step in STEPS {
        sum = 1.0 + sum * (t * step);
    }
    let scale = f64::from_bits(exponent.wrapping_add(1023) << 52);
    sum * scale
}

#[inline(always)]
pub(crate) fn exp2_mode(ftz: bool, a: u32) -> u32 {
    flush_if(ftz, bits32(exp2(f32::from_bits(flush_if(ftz, a)))))
}

#[inline(always)]
pub(crate) fn unary32(op: FloatUnary, mode: FloatMode, a: u32) -> u32 {
    let a = flush_if(mode.ftz, a);
    let x = f32::from_bits(a);
    #[expect(clippy::cast_possible_truncation, reason = "rounding is the point")]
    let value = match op {
        FloatUnary::Neg => return a ^ SIGN,
        FloatUnary::Abs => return a & !SIGN,
        FloatUnary::Sqrt if mode.round == Round::Nearest => x.sqrt(),
        FloatUnary::Sqrt => single(odd_root(x.into()), mode.round),
        FloatUnary::Rsqrt => (1.0 / f64::from(x).sqrt()) as f32,
        FloatUnary::Reciprocal if mode.round == Round::Nearest => 1.0 / x,
        FloatUnary::Reciprocal => single(odd_quotient(1.0, x.into()), mode.round),
        FloatUnary::Exp2 => exp2(x),
        FloatUnary::Log2 => f64::from(x).log2() as f32,
        FloatUnary::Sin => f64::from(x).sin() as f32,
        FloatUnary::Cos => f64::from(x).cos() as f32,
        FloatUnary::Tanh => f64::from(x).tanh() as f32,
    };
    finish32(mode, value)
}

#[inline(always)]
pub(crate) fn unary64(op: FloatUnary, mode: FloatMode, a: u64) -> u64 {
    const SIGN: u64 = 1 << 63;
    let flushed = |bits: u64| if mode.ftz && bits << 1 < 1 << 53 { bits & SIGN } else { bits };
    let x = f64::from_bits(flushed(a));
    let value = match op {
        FloatUnary::Neg => return a ^ SIGN,
        FloatUnary::Abs => return a & !SIGN,
        FloatUnary::Sqrt => double::root(x, mode.round),
        FloatUnary::Rsqrt => 1.0 / x.sqrt(),
        FloatUnary::Reciprocal => double::quotient(1.0, x, mode.round),
        FloatUnary::Exp2 => x.exp2(),
        FloatUnary::Log2 => x.log2(),
        FloatUnary::Sin => x.sin(),
        FloatUnary::Cos => x.cos(),
        FloatUnary::Tanh => x.tanh(),
    };
    flushed(bits64(value))
}

#[cfg(test)]
mod tests {
    use super::{binary32, exp2, fma32, max32, min32};
    use crate::ir::{FloatMode, FloatOp, Round};

    #[test]
    fn directed_rounding_brackets_the_exact_result() {
        let fma = |a: f32, b: f32, c: f32, round| {
            let mode = FloatMode { round, ..FloatMode::PLAIN };
            f32::from_bits(fma32(mode, a.to_bits(), b.to_bits(), c.to_bits()))
        };
        // 1 + 2^-60 is between 1 and its successor.
        let tiny = 2.0_f32.powi(-60);
        assert_eq!(fma(1.0, 1.0, tiny, Round::Down), 1.0);
        assert_eq!(fma(1.0, 1.0, tiny, Round::Up), 1.0_f32.next_up());
        assert_eq!(fma(-1.0, 1.0, -tiny, Round::Zero), -1.0);
        assert_eq!(fma(-1.0, 1.0, -tiny, Round::Down), (-1.0_f32).next_down());
        assert_eq!(fma(f32::MAX, 2.0, 0.0, Round::Zero), f32::MAX);
        assert_eq!(fma(f32::MAX, 2.0, 0.0, Round::Up), f32::INFINITY);
        assert!(fma(1.0, 1.0, -1.0, Round::Down).is_sign_negative());
        let product = |a: f32, b: f32, round| {
            let mode = FloatMode { round, ..FloatMode::PLAIN };
            f32::from_bits(binary32(FloatOp::Mul, mode, a.to_bits(), b.to_bits()))
        };
        assert!(product(-0.0, 3.0, Round::Up).is_sign_negative());
        assert!(product(0.0, 3.0, Round::Down).is_sign_positive());
    }

    #[test]
    fn exp2_is_within_one_rounding_everywhere() {
        for step in -15_200..=12_900_i16 {
            let x = f32::from(step) / 100.0;
            let (got, exact) = (exp2(x), f64::from(x).exp2());
            #[expect(clippy::cast_possible_truncation, reason = "rounding is the point")]
            let nearest = exact as f32;
            let close = got == nearest || got == nearest.next_up() || got == nearest.next_down();
            assert!(close, "2^{x} is {exact}, not {got}");
        }
        assert_eq!(exp2(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp2(f32::NEG_INFINITY), 0.0);
        assert!(exp2(f32::NAN).is_nan());
    }

    #[test]
    fn minimum_and_maximum_prefer_numbers_and_order_zeros() {
        let (nan, one) = (f32::NAN.to_bits(), 1.0_f32.to_bits());
        assert_eq!(min32(nan, one), one);
        assert_eq!(max32(one, nan), one);
        let (zero, negative) = (0.0_f32.to_bits(), (-0.0_f32).to_bits());
        assert_eq!(min32(zero, negative), negative);
        assert_eq!(max32(negative, zero), zero);
    }
}
