//! Arithmetic on numbers of 16 bits, one or two to a register: in double, where
//! all of it is exact or rounded to odd, then rounded once.

use super::registers::Registers;
use super::rounding::{BRAIN, Format, HALF, narrow, odd_fma, widen};
use super::scalar_float::{exp2_double, max32, min32};
use crate::ir::{HalfMode, HalfOp, Round, Slot};

#[inline(never)]
pub(super) fn compute(
    r: &mut Registers,
    mask: u32,
    (op, mode): (HalfOp, HalfMode),
    slots: [Slot; 4],
) {
    // Known here, the format's shifts and masks become constants.
    if mode.has(HalfMode::BRAIN) {
        r.three32(mask, slots, |a, b, c| lane(BRAIN, (op, mode), [a, b, c]));
    } else {
        r.three32(mask, slots, |a, b, c| lane(HALF, (op, mode), [a, b, c]));
    }
}

/// One lane's result.
pub(super) fn scalar(how: (HalfOp, HalfMode), operands: [u32; 3]) -> u32 {
    lane(if how.1.has(HalfMode::BRAIN) { BRAIN } else { HALF }, how, operands)
}

#[inline(always)]
fn lane(format: Format, how: (HalfOp, HalfMode), operands: [u32; 3]) -> u32 {
    let low = one(format, how, operands.map(|bits| bits & 0xffff));
    if !how.1.has(HalfMode::PAIR) {
        return low;
    }
    low | one(format, how, operands.map(|bits| bits >> 16)) << 16
}

const SIGN: u32 = 1 << 15;

#[inline(always)]
fn one(format: Format, (op, mode): (HalfOp, HalfMode), operands: [u32; 3]) -> u32 {
    let flush = |bits: u32| {
        let subnormal = mode.has(HalfMode::FTZ) && (bits & !SIGN) < least_normal(format);
        if subnormal { bits & SIGN } else { bits }
    };
    let [a, b, c] = operands.map(flush);
    let [x, y, z] = [a, b, c].map(|bits| widen(format, bits));
    let exact = match op {
        HalfOp::Neg => return a ^ SIGN,
        HalfOp::Abs => return a & !SIGN,
        HalfOp::Add => odd_fma(x, 1.0, y, Round::Nearest),
        HalfOp::Sub => odd_fma(x, 1.0, -y, Round::Nearest),
        HalfOp::Mul => x * y,
        HalfOp::Fma => odd_fma(x, y, z, Round::Nearest),
        HalfOp::MinNan | HalfOp::MaxNan if x.is_nan() || y.is_nan() => f64::NAN,
        HalfOp::Min | HalfOp::MinNan => ordered(x, y, min32),
        HalfOp::Max | HalfOp::MaxNan => ordered(x, y, max32),
        HalfOp::Exp2 => exp2_double(x),
        HalfOp::Tanh => x.tanh(),
    };
    let exact = if mode.has(HalfMode::SAT) {
        if exact > 0.0 { exact.min(1.0) } else { 0.0 }
    } else if mode.has(HalfMode::RELU) && exact <= 0.0 {
        0.0
    } else {
        exact
    };
    flush(narrow(format, Round::Nearest, exact))
}

#[inline(always)]
fn least_normal(format: Format) -> u32 {
    if format == BRAIN { 1 << 7 } else { 1 << 10 }
}

/// Both formats' numbers are numbers of single precision.
#[inline(always)]
fn ordered(x: f64, y: f64, pick: fn(u32, u32) -> u32) -> f64 {
    #[expect(clippy::cast_possible_truncation, reason = "exact")]
    let bits = pick((x as f32).to_bits(), (y as f32).to_bits());
    f64::from(f32::from_bits(bits))
}
