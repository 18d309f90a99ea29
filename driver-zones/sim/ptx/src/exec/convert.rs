//! `cvt` for one lane.

use super::scalar_float::{bits32, bits64, finish32, flush_if};
use crate::ir::{Conversion, Round, Type};

/// Converts the low bits of `bits`; the result is extended to its register.
pub(crate) fn convert(conversion: &Conversion, bits: u64) -> u64 {
    let value = if conversion.from.is_float() {
        from_float(conversion, bits)
    } else {
        from_integer(conversion, bits)
    };
    extend(value, conversion.to, u32::from(conversion.register_bits))
}

/// Cuts a value to its type, then extends it to a register of `register` bits.
#[inline(always)]
pub(crate) fn extend(value: u64, ty: Type, register: u32) -> u64 {
    let unused = 64 - ty.bits();
    let kept = if ty.is_signed() {
        ((value << unused).cast_signed() >> unused).cast_unsigned()
    } else {
        value << unused >> unused
    };
    let unused = 64 - register;
    kept << unused >> unused
}

fn integer_bounds(ty: Type) -> (i128, i128) {
    if ty.is_signed() {
        (-(1 << (ty.bits() - 1)), (1 << (ty.bits() - 1)) - 1)
    } else {
        (0, (1 << ty.bits()) - 1)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "cut to the type by the caller")]
fn from_integer(conversion: &Conversion, bits: u64) -> u64 {
    let wide = extend(bits, conversion.from, 64);
    let value =
        if conversion.from.is_signed() { i128::from(wide.cast_signed()) } else { i128::from(wide) };
    if !conversion.to.is_float() {
        let (least, most) = integer_bounds(conversion.to);
        return if conversion.mode.sat { value.clamp(least, most) } else { value } as u64;
    }
    // Round to odd in double first: then rounding to single or half cannot err.
    let double = rounded_double(value, conversion.mode.round);
    match conversion.to {
        Type::F64 => bits64(double),
        Type::F32 => {
            let single = integer_to_single(value, conversion.mode.round);
            u64::from(finish32(conversion.mode, single))
        }
        _ => u64::from(half_from(sticky_double(value), conversion.mode.round)),
    }
}

/// The double nearest to an integer in a direction.
#[expect(clippy::cast_possible_truncation, reason = "a double of this size is an integer")]
fn rounded_double(value: i128, round: Round) -> f64 {
    let nearest = value as f64;
    adjust(nearest, value.cmp(&(nearest as i128)), round)
}

/// A double next to the integer that is odd where inexact, for a second rounding.
#[expect(clippy::cast_possible_truncation, reason = "a double of this size is an integer")]
fn sticky_double(value: i128) -> f64 {
    let toward_zero = rounded_double(value, Round::Zero);
    if toward_zero as i128 == value {
        toward_zero
    } else {
        f64::from_bits(toward_zero.to_bits() | 1)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a single of this size is an integer")]
fn integer_to_single(value: i128, round: Round) -> f32 {
    let nearest = value as f32;
    let order = value.cmp(&(nearest as i128));
    match (round, order) {
        (Round::Down, std::cmp::Ordering::Less) => nearest.next_down(),
        (Round::Up, std::cmp::Ordering::Greater) => nearest.next_up(),
        (Round::Zero, std::cmp::Ordering::Less) if value > 0 => nearest.next_down(),
        (Round::Zero, std::cmp::Ordering::Greater) if value < 0 => nearest.next_up(),
        _ => nearest,
    }
}

/// Moves a nearest result to the side that `round` asks for; `order` is how the
/// exact value compares to it.
fn adjust(nearest: f64, order: std::cmp::Ordering, round: Round) -> f64 {
    use std::cmp::Ordering::{Greater, Less};
    match (round, order) {
        (Round::Down, Less) => nearest.next_down(),
        (Round::Up, Greater) => nearest.next_up(),
        (Round::Zero, Less) if nearest > 0.0 => nearest.next_down(),
        (Round::Zero, Greater) if nearest < 0.0 => nearest.next_up(),
        _ => nearest,
    }
}

fn integral(value: f64, round: Round) -> f64 {
    match round {
        Round::Nearest => value.round_ties_even(),
        Round::Zero => value.trunc(),
        Round::Down => value.floor(),
        Round::Up => value.ceil(),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "bits of the source's type")]
fn from_float(conversion: &Conversion, bits: u64) -> u64 {
    let mode = conversion.mode;
    let value = match conversion.from {
        Type::F64 => f64::from_bits(bits),
        Type::F32 => f64::from(f32::from_bits(flush_if(mode.ftz, bits as u32))),
        _ => half_to(bits as u16),
    };
    let value = if conversion.integral { integral(value, mode.round) } else { value };
    match conversion.to {
        Type::F64 if mode.sat => bits64(if value > 0.0 { value.min(1.0) } else { 0.0 }),
        Type::F64 => bits64(value),
        Type::F32 => u64::from(finish32(mode, single_from(value, mode.round))),
        Type::F16 => {
            let value =
                if mode.sat { if value > 0.0 { value.min(1.0) } else { 0.0 } } else { value };
            u64::from(half_from(value, mode.round))
        }
        to => float_to_integer(value, to),
    }
}

/// Float to integer clamps to the type's bounds; a NaN is zero, but the highest
/// bit alone for 64-bit results, as GPUs do.
#[expect(clippy::cast_possible_truncation, reason = "cut to the type by the caller")]
fn float_to_integer(value: f64, to: Type) -> u64 {
    if value.is_nan() {
        return if to.bits() == 64 { 1 << 63 } else { 0 };
    }
    let (least, most) = integer_bounds(to);
    (value as i128).clamp(least, most) as u64
}

fn single_from(value: f64, round: Round) -> f32 {
    #[expect(clippy::cast_possible_truncation, reason = "rounding is the point")]
    let nearest = value as f32;
    if value.is_nan() || value.is_infinite() {
        return f32::from_bits(bits32(nearest));
    }
    let back = f64::from(nearest);
    match round {
        Round::Down if back > value => nearest.next_down(),
        Round::Up if back < value => nearest.next_up(),
        Round::Zero if value > 0.0 && back > value => nearest.next_down(),
        Round::Zero if value < 0.0 && back < value => nearest.next_up(),
        _ => nearest,
    }
}

/// Half precision: 1 sign, 5 exponent, 10 fraction bits.
pub(crate) fn half_to(bits: u16) -> f64 {
    let (exponent, fraction) = ((bits >> 10) & 31, f64::from(bits & 0x3ff));
    let magnitude = match exponent {
        0 => fraction * 2.0_f64.powi(-24),
        31 if fraction != 0.0 => f64::NAN,
        31 => f64::INFINITY,
        _ => (1024.0 + fraction) * 2.0_f64.powi(i32::from(exponent) - 25),
    };
    if bits >> 15 == 1 { -magnitude } else { magnitude }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded by 2^11")]
pub(crate) fn half_from(value: f64, round: Round) -> u16 {
    let sign = u16::from(value.is_sign_negative()) << 15;
    if value.is_nan() {
        return 0x7fff;
    }
    let magnitude = value.abs();
    if magnitude.is_infinite() {
        return sign | 0x7c00;
    }
    let away = match round {
        Round::Nearest => None,
        Round::Zero => Some(false),
        Round::Down => Some(sign != 0),
        Round::Up => Some(sign == 0),
    };
    // Unit of the last place: that of the number's power of two, at least 2^-24.
    let exponent = ((magnitude.to_bits() >> 52) as i32 - 1023).max(-14);
    if exponent > 15 {
        return sign | if away == Some(false) { 0x7bff } else { 0x7c00 };
    }
    let scaled = magnitude * 2.0_f64.powi(10 - exponent);
    let units = match away {
        None => scaled.round_ties_even(),
        Some(true) => scaled.ceil(),
        Some(false) => scaled.floor(),
    } as u16;
    // A carry out of the fraction moves into the exponent by itself.
    let bits = if units < 1024 { units } else { (((exponent + 14) as u16) << 10) + units };
    if bits >= 0x7c00 && away == Some(false) { sign | 0x7bff } else { sign | bits }
}

#[cfg(test)]
mod tests {
    use super::{convert, half_from, half_to};
    use crate::ir::{Conversion, FloatMode, Round, Type};

    fn run(to: Type, from: Type, round: Round, sat: bool, bits: u64) -> u64 {
        let mode = FloatMode { round, ftz: false, sat };
        let integral = from.is_float() && !to.is_float();
        let register_bits = u8::try_from(to.bits().max(16)).expect("at most 64");
        convert(&Conversion { to, from, mode, integral, register_bits }, bits)
    }

    #[test]
    fn every_half_survives_a_round_trip() {
        for bits in 0..=u16::MAX {
            let value = half_to(bits);
            if !value.is_nan() {
                assert_eq!(half_from(value, Round::Nearest), bits);
                assert_eq!(half_from(value, Round::Zero), bits);
            }
        }
        assert_eq!(half_from(65520.0, Round::Nearest), 0x7c00);
        assert_eq!(half_from(65519.0, Round::Nearest), 0x7bff);
        assert_eq!(half_from(1e9, Round::Zero), 0x7bff);
    }

    #[test]
    fn integers() {
        assert_eq!(run(Type::S32, Type::S8, Round::Nearest, false, 0x80), 0xffff_ff80);
        assert_eq!(run(Type::U8, Type::S32, Round::Nearest, true, 0xffff_ffff), 0);
        assert_eq!(run(Type::S16, Type::S32, Round::Nearest, true, 100_000), 0x7fff);
        assert_eq!(run(Type::U16, Type::U32, Round::Nearest, false, 0x12345), 0x2345);
    }

    #[test]
    fn floats_to_integers_clamp() {
        let bits = |value: f32| u64::from(value.to_bits());
        assert_eq!(run(Type::S32, Type::F32, Round::Zero, false, bits(-1.9)), 0xffff_ffff);
        assert_eq!(run(Type::S32, Type::F32, Round::Nearest, false, bits(2.5)), 2);
        assert_eq!(run(Type::U32, Type::F32, Round::Zero, false, bits(-5.0)), 0);
        assert_eq!(run(Type::S32, Type::F32, Round::Zero, false, bits(1e20)), 0x7fff_ffff);
        assert_eq!(run(Type::S32, Type::F32, Round::Zero, false, bits(f32::NAN)), 0);
    }

    #[test]
    fn integers_to_floats_round_as_told() {
        let to = |round, value: u64| run(Type::F32, Type::U64, round, false, value);
        let odd = (1_u64 << 24) + 1;
        assert_eq!(to(Round::Nearest, odd), u64::from(16_777_216.0_f32.to_bits()));
        assert_eq!(to(Round::Up, odd), u64::from(16_777_218.0_f32.to_bits()));
        assert_eq!(
            to(Round::Zero, u64::MAX),
            u64::from(18_446_742_974_197_923_840.0_f32.to_bits())
        );
        assert_eq!(
            to(Round::Nearest, u64::MAX),
            u64::from(18_446_744_073_709_551_616.0_f32.to_bits())
        );
    }
}
