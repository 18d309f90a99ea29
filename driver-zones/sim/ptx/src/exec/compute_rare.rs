//! Register instructions that are rare enough to be kept out of the loop's way.

use super::compute::float_compare;
use super::registers::{LANES, Registers};
use super::{half, scalar_float as float, scalar_int as int};
use crate::ir::{
    FloatCompare, IntOp, IntUnary, Op, ShiftOp, Slot, TEST_INFINITE, TEST_NAN, TEST_NORMAL,
    TEST_SUBNORMAL, TEST_ZERO,
};

pub(super) fn rare_int64(op: IntOp, a: u64, b: u64) -> u64 {
    let (x, y) = (a.cast_signed(), b.cast_signed());
    match op {
        IntOp::Add => a.wrapping_add(b),
        IntOp::Sub => a.wrapping_sub(b),
        IntOp::Mul => a.wrapping_mul(b),
        IntOp::MulHiU => int::high_u64(a, b),
        IntOp::MulHiS => int::high_s64(a, b),
        IntOp::DivU => int::divide_u64(a, b),
        IntOp::DivS => int::divide_s64(a, b),
        IntOp::RemU => a.checked_rem(b).unwrap_or(a),
        IntOp::RemS => int::remainder_s64(a, b),
        IntOp::MinU => a.min(b),
        IntOp::MinS => x.min(y).cast_unsigned(),
        IntOp::MaxU => a.max(b),
        IntOp::MaxS => x.max(y).cast_unsigned(),
        IntOp::And => a & b,
        IntOp::Or => a | b,
        IntOp::Xor => a ^ b,
        IntOp::AddSat => x.saturating_add(y).cast_unsigned(),
        IntOp::SubSat => x.saturating_sub(y).cast_unsigned(),
    }
}

/// 16-bit values are held with the bits above them zero.
#[expect(clippy::cast_possible_truncation, reason = "cut to 16 bits")]
fn int16(op: IntOp, a: u32, b: u32) -> u32 {
    let wide = |value: u32| i64::from((value as u16).cast_signed()).cast_unsigned();
    let signed =
        matches!(op, IntOp::MulHiS | IntOp::DivS | IntOp::RemS | IntOp::MinS | IntOp::MaxS);
    let (x, y) =
        if signed { (wide(a), wide(b)) } else { (u64::from(a & 0xffff), u64::from(b & 0xffff)) };
    let value = match op {
        IntOp::MulHiU | IntOp::MulHiS => x.wrapping_mul(y) >> 16,
        op => rare_int64(op, x, y),
    };
    (value & 0xffff) as u32
}

/// The rest of the register instructions, kept out of the loop's way.
#[inline(never)]
#[expect(clippy::cast_possible_truncation, reason = "values are cut to their registers")]
pub(super) fn compute_rare(r: &mut Registers, mask: u32, op: Op) {
    match op {
        Op::Int16 { op, d, a, b } => r.zip32(mask, [d, a, b], |a, b| int16(op, a, b)),
        Op::Shift16 { op, d, a, b } => r.zip32(mask, [d, a, b], |a, b| match op {
            ShiftOp::Left if b > 15 => 0,
            ShiftOp::Left => (a << b) & 0xffff,
            ShiftOp::RightU if b > 15 => 0,
            ShiftOp::RightU => a >> b,
            ShiftOp::RightS => u32::from(((a as u16).cast_signed() >> b.min(15)).cast_unsigned()),
        }),
        Op::Unary16 { op, d, a } => r.map32(mask, [d, a], |a| {
            let wide = i32::from((a as u16).cast_signed()).cast_unsigned();
            unary32(op, wide) & 0xffff
        }),
        Op::Unary32 { op, d, a } => r.map32(mask, [d, a], |a| unary32(op, a)),
        Op::Unary64 { op, d, a } => r.map64(mask, [d, a], |a| match op {
            IntUnary::Neg => a.wrapping_neg(),
            IntUnary::Abs => a.cast_signed().wrapping_abs().cast_unsigned(),
            IntUnary::Not => !a,
            IntUnary::Reverse => a.reverse_bits(),
        }),
        Op::Count32 { op, d, a } => r.map32(mask, [d, a], |a| int::count(op, 32, u64::from(a))),
        Op::Count64 { op, d, a } => {
            let value = r.get64(a).map(|a| int::count(op, 64, a));
            r.put32(d, mask, &value);
        }
        Op::MulWide16 { signed, d, a, b } => r.zip32(mask, [d, a, b], |a, b| {
            if signed {
                let wide = |value: u32| i32::from((value as u16).cast_signed());
                (wide(a) * wide(b)).cast_unsigned()
            } else {
                (a & 0xffff) * (b & 0xffff)
            }
        }),
        Op::Mul24 { signed, shift, d, a, b } => r.zip32(mask, [d, a, b], |a, b| {
            let wide = |value: u32| {
                let top = value << 8;
                if signed { i64::from(top.cast_signed() >> 8) } else { i64::from(top >> 8) }
            };
            ((wide(a) * wide(b)) >> shift) as u32
        }),
        Op::Extract32 { signed, d, a, b, c } => r.three32(mask, [d, a, b, c], |a, b, c| {
            int::extract(signed, 32, u64::from(a), b, c) as u32
        }),
        Op::Permute { mode, d, a, b, c } => {
            r.three32(mask, [d, a, b, c], |a, b, c| int::permute(mode, a, b, c));
        }
        Op::Logic3 { table, d, a, b, c } => {
            r.three32(mask, [d, a, b, c], |a, b, c| int::logic3(table, a, b, c));
        }
        Op::Funnel { left, wrap, d, a, b, c } => {
            r.three32(mask, [d, a, b, c], |a, b, c| int::funnel(left, wrap, a, b, c));
        }
        Op::DotHalves { high, a_signed, b_signed, d, a, b, c } => {
            let signed = [a_signed, b_signed];
            r.three32(mask, [d, a, b, c], |a, b, c| int::dot_halves(high, signed, [a, b, c]));
        }
        Op::IntPair { op, d, a, b } => r.zip32(mask, [d, a, b], |a, b| {
            int16(op, a & 0xffff, b & 0xffff) | int16(op, a >> 16, b >> 16) << 16
        }),
        Op::BitMask { wrap, d, a, b } => {
            r.zip32(mask, [d, a, b], |a, b| int::bit_mask(wrap, a, b));
        }
        Op::Extend { signed, wrap, d, a, b } => {
            r.zip32(mask, [d, a, b], |a, b| int::extend(signed, wrap, a, b));
        }
        Op::FindNth { d, a, b, c } => {
            r.three32(mask, [d, a, b, c], |a, b, c| int::find_nth(a, b, c.cast_signed()));
        }
        Op::DotBytes { a_signed, b_signed, d, a, b, c } => {
            r.three32(mask, [d, a, b, c], |a, b, c| int::dot_bytes(a_signed, b_signed, a, b, c));
        }
        Op::Compare16 { compare, signed, d, a, b } => r.test32(mask, [d, a, b], |a, b| {
            let bias = if signed { 1 << 15 } else { 0 };
            let (a, b) = ((a & 0xffff) ^ bias, (b & 0xffff) ^ bias);
            float_compare(FloatCompare::Is { compare, unordered: false }, a.partial_cmp(&b))
        }),
        Op::CompareF64 { compare, d, a, b } => r.test64(mask, [d, a, b], |a, b| {
            float_compare(compare, f64::from_bits(a).partial_cmp(&f64::from_bits(b)))
        }),
        Op::Join16 { d, a, b } => r.zip32(mask, [d, a, b], |a, b| (a & 0xffff) | b << 16),
        Op::Half16 { high, d, a } => {
            r.map32(mask, [d, a], |a| if high { a >> 16 } else { a & 0xffff });
        }
        Op::F64 { op, mode, d, a, b } => {
            r.zip64(mask, [d, a, b], |a, b| float::binary64(op, mode, a, b));
        }
        Op::Fma64 { round, d, a, b, c } => {
            r.three64(mask, [d, a, b, c], |a, b, c| float::fma64(round, a, b, c));
        }
        Op::F64Unary { op, mode, d, a } => {
            r.map64(mask, [d, a], |a| float::unary64(op, mode, a));
        }
        Op::Half { op, mode, d, a, b, c } => half::compute(r, mask, (op, mode), [d, a, b, c]),
        op => compute_mixed(r, mask, op),
    }
}

fn unary32(op: IntUnary, a: u32) -> u32 {
    match op {
        IntUnary::Neg => a.wrapping_neg(),
        IntUnary::Abs => a.cast_signed().wrapping_abs().cast_unsigned(),
        IntUnary::Not => !a,
        IntUnary::Reverse => a.reverse_bits(),
    }
}

/// Instructions whose operands are of different files.
#[expect(clippy::cast_possible_truncation, reason = "values are cut to their registers")]
fn compute_mixed(r: &mut Registers, mask: u32, op: Op) {
    match op {
        Op::Join32 { d, a, b } => {
            let (a, b) = (r.get32(a), r.get32(b));
            let value = std::array::from_fn(|lane| u64::from(b[lane]) << 32 | u64::from(a[lane]));
            r.put64(d, mask, &value);
        }
        Op::Half32 { high, d, a } => {
            let value = r.get64(a).map(|a| if high { (a >> 32) as u32 } else { a as u32 });
            r.put32(d, mask, &value);
        }
        Op::Extract64 { signed, d, a, b, c } => {
            let (a, b, c) = (r.get64(a), r.get32(b), r.get32(c));
            let value =
                std::array::from_fn(|lane| int::extract(signed, 64, a[lane], b[lane], c[lane]));
            r.put64(d, mask, &value);
        }
        Op::Insert32 { d, a, b, c, e } => {
            let (a, b, c, e) = (r.get32(a), r.get32(b), r.get32(c), r.get32(e));
            let value = std::array::from_fn(|lane| {
                int::insert(32, u64::from(a[lane]), u64::from(b[lane]), c[lane], e[lane]) as u32
            });
            r.put32(d, mask, &value);
        }
        Op::Insert64 { d, a, b, c, e } => {
            let (a, b, c, e) = (r.get64(a), r.get64(b), r.get32(c), r.get32(e));
            let value =
                std::array::from_fn(|lane| int::insert(64, a[lane], b[lane], c[lane], e[lane]));
            r.put64(d, mask, &value);
        }
        Op::Test32 { kinds, d, a } => {
            r.test32(mask, [d, a, a], |a, _| kind(f32::from_bits(a).classify()) & kinds != 0);
        }
        Op::Test64 { kinds, d, a } => {
            r.test64(mask, [d, a, a], |a, _| kind(f64::from_bits(a).classify()) & kinds != 0);
        }
        Op::Carry { wide, subtract, carry_in, d, a, b, flag } => {
            carry(r, mask, (wide, subtract, carry_in), [d, a, b, flag]);
        }
        // Everything else was executed on the way here.
        _ => debug_assert!(false, "{op:?} is executed nowhere"),
    }
}

fn carry(
    r: &mut Registers,
    mask: u32,
    (wide, subtract, carry_in): (bool, bool, bool),
    [d, a, b, flag]: [Slot; 4],
) {
    let old = if carry_in { r.predicate(flag) } else { 0 };
    let carried = if wide {
        let sum = if subtract { u64::borrowing_sub } else { u64::carrying_add };
        let (value, carried) = carry_lanes(r.get64(a), r.get64(b), old, sum);
        r.put64(d, mask, &value);
        carried
    } else {
        let sum = if subtract { u32::borrowing_sub } else { u32::carrying_add };
        let (value, carried) = carry_lanes(r.get32(a), r.get32(b), old, sum);
        r.put32(d, mask, &value);
        carried
    };
    r.put_predicate(flag, mask, carried);
}

/// Sums with a bit of `carries` each; returns the bits that are carried out too.
fn carry_lanes<T: Copy>(
    a: &[T; LANES],
    b: &[T; LANES],
    carries: u32,
    sum: impl Fn(T, T, bool) -> (T, bool),
) -> ([T; LANES], u32) {
    let mut carried = 0;
    let value = std::array::from_fn(|lane| {
        let (value, out) = sum(a[lane], b[lane], (carries >> lane) & 1 == 1);
        carried |= u32::from(out) << lane;
        value
    });
    (value, carried)
}

fn kind(category: std::num::FpCategory) -> u8 {
    match category {
        std::num::FpCategory::Nan => TEST_NAN,
        std::num::FpCategory::Infinite => TEST_INFINITE,
        std::num::FpCategory::Zero => TEST_ZERO,
        std::num::FpCategory::Subnormal => TEST_SUBNORMAL,
        std::num::FpCategory::Normal => TEST_NORMAL,
    }
}
