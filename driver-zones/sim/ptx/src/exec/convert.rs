//! `cvt` for one lane.

use super::double;
use super::rounding::{Format, narrow, odd_integer, widen};
use super::scalar_float::{bits64, flush_if};
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
    let (to, round) = (conversion.to, conversion.mode.round);
    if !to.is_float() {
        let (least, most) = integer_bounds(to);
        return if conversion.mode.sat { value.clamp(least, most) } else { value } as u64;
    }
    if to == Type::F64 {
        return to_float(conversion, double::integer(value, round));
    }
    to_float(conversion, odd_integer(value))
}

/// The value, rounded to the type that it is converted to and clamped.
fn to_float(conversion: &Conversion, value: f64) -> u64 {
    let Conversion { to, mode, relu, finite, .. } = *conversion;
    let value = if mode.sat { if value > 0.0 { value.min(1.0) } else { 0.0 } } else { value };
    let value = if relu && value <= 0.0 { 0.0 } else { value };
    if to == Type::F64 {
        return bits64(value);
    }
    let format = Format::of(to);
    let mut bits = narrow(format, mode.round, value);
    if finite && !value.is_nan() {
        let limit = narrow(format, Round::Zero, value.clamp(f64::MIN, f64::MAX));
        let too_large = bits & format.nan() > format.most();
        bits = if too_large { limit } else { bits };
    }
    u64::from(match to {
        Type::F32 => flush_if(mode.ftz, bits),
        // A tensor core's format lies in the high bits of a single.
        Type::TF32 => bits << 13,
        _ => bits,
    })
}

fn integral(value: f64, round: Round) -> f64 {
    match round {
        Round::Nearest => value.round_ties_even(),
        Round::NearestAway => value.round(),
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
        from => widen(Format::of(from), bits as u32 & from.mask()),
    };
    let value = if conversion.integral { integral(value, mode.round) } else { value };
    if conversion.to.is_float() {
        to_float(conversion, value)
    } else {
        float_to_integer(value, conversion.to)
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

#[cfg(test)]
mod tests {
    use super::convert;
    use crate::ir::{Conversion, FloatMode, Round, Type};

    fn run(to: Type, from: Type, round: Round, sat: bool, bits: u64) -> u64 {
        let mode = FloatMode { round, ftz: false, sat };
        let integral = from.is_float() && !to.is_float();
        let register_bits = u8::try_from(to.bits().max(16)).expect("at most 64");
        let conversion =
            Conversion { to, from, mode, integral, relu: false, finite: false, register_bits };
        convert(&conversion, bits)
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
