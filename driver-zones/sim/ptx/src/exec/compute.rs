//! Instructions that only read and write registers.

use super::compute_rare::{compute_rare, rare_int64};
use super::registers::{LANES, Registers};
use super::scalar_float as float;
use crate::ir::{
    Compare, FloatCompare, FloatMode, FloatOp, FloatUnary, IntOp, Op, PredOp, ShiftOp, Slot,
};

/// Executes what only reads and writes registers.
#[inline(always)]
pub(super) fn compute(r: &mut Registers, mask: u32, op: Op) {
    match op {
        Op::Int32 { op, d, a, b } => int32(r, mask, op, [d, a, b]),
        Op::F32 { op, mode, d, a, b } => float32(r, mask, (op, mode), [d, a, b]),
        Op::Fma32 { mode, d, a, b, c } => fused32(r, mask, mode, [d, a, b, c]),
        Op::Mad32 { d, a, b, c } => {
            r.three32(mask, [d, a, b, c], |a, b, c| a.wrapping_mul(b).wrapping_add(c));
        }
        Op::Int64 { op, d, a, b } => int64(r, mask, op, [d, a, b]),
        Op::Shift32 { op, d, a, b } => shift32(r, mask, op, [d, a, b]),
        Op::Shift64 { op, d, a, b } => shift64(r, mask, op, [d, a, b]),
        Op::Compare32 { compare, signed, d, a, b } => {
            compare32(r, mask, (compare, signed), [d, a, b]);
        }
        Op::Compare64 { compare, signed, d, a, b } => {
            compare64(r, mask, (compare, signed), [d, a, b]);
        }
        Op::CompareF32 { compare, ftz, d, a, b } => {
            r.test32(mask, [d, a, b], |a, b| {
                let value = |bits| f32::from_bits(float::flush_if(ftz, bits));
                float_compare(compare, value(a).partial_cmp(&value(b)))
            });
        }
        Op::MulWide32 { signed, d, a, b } => mul_wide32(r, mask, signed, [d, a, b]),
        Op::MadWide32 { signed, d, a, b, c } => mad_wide32(r, mask, signed, [d, a, b, c]),
        Op::Widen { signed, d, a } => {
            let a = r.get32(a);
            let mut value = [0; LANES];
            for lane in 0..LANES {
                value[lane] = if signed { sign_extend(a[lane]) } else { u64::from(a[lane]) };
            }
            r.put64(d, mask, &value);
        }
        Op::Move32 { d, a } => r.map32(mask, [d, a], |a| a),
        Op::Move64 { d, a } => r.map64(mask, [d, a], |a| a),
        Op::Select32 { d, a, b, p } => {
            let (p, a, mut value) = (r.predicate(p), *r.get32(a), *r.get32(b));
            for lane in 0..LANES {
                value[lane] = if (p >> lane) & 1 == 1 { a[lane] } else { value[lane] };
            }
            r.put32(d, mask, &value);
        }
        Op::Select64 { d, a, b, p } => {
            let (p, a, mut value) = (r.predicate(p), *r.get64(a), *r.get64(b));
            for lane in 0..LANES {
                value[lane] = if (p >> lane) & 1 == 1 { a[lane] } else { value[lane] };
            }
            r.put64(d, mask, &value);
        }
        Op::Pred { op, d, a, b } => {
            let (a, b) = (r.predicate(a), r.predicate(b));
            let value = match op {
                PredOp::And => a & b,
                PredOp::Or => a | b,
                PredOp::Xor => a ^ b,
            };
            r.put_predicate(d, mask, value);
        }
        Op::PredNot { d, a } => r.put_predicate(d, mask, !r.predicate(a)),
        Op::PredSet { d, value } => r.put_predicate(d, mask, if value { u32::MAX } else { 0 }),
        Op::S32ToF32 { signed, d, a } =>
        {
            #[expect(clippy::cast_precision_loss, reason = "rounding is the point")]
            if signed {
                r.map32(mask, [d, a], |a| (a.cast_signed() as f32).to_bits());
            } else {
                r.map32(mask, [d, a], |a| (a as f32).to_bits());
            }
        }
        Op::F32Unary { op, mode, d, a } => float_unary32(r, mask, (op, mode), [d, a]),
        op => compute_rare(r, mask, op),
    }
}

#[inline(always)]
fn sign_extend(value: u32) -> u64 {
    i64::from(value.cast_signed()).cast_unsigned()
}

#[inline(always)]
fn int32(r: &mut Registers, mask: u32, op: IntOp, slots: [Slot; 3]) {
    let signed = |f: fn(i32, i32) -> i32| {
        move |a: u32, b: u32| f(a.cast_signed(), b.cast_signed()).cast_unsigned()
    };
    match op {
        IntOp::Add => r.zip32(mask, slots, u32::wrapping_add),
        IntOp::Sub => r.zip32(mask, slots, u32::wrapping_sub),
        IntOp::Mul => r.zip32(mask, slots, u32::wrapping_mul),
        IntOp::MulHiU => r.zip32(mask, slots, |a, b| ((u64::from(a) * u64::from(b)) >> 32) as u32),
        IntOp::MulHiS => {
            r.zip32(mask, slots, |a, b| (sign_extend(a).wrapping_mul(sign_extend(b)) >> 32) as u32);
        }
        IntOp::DivU => r.zip32(mask, slots, |a, b| a.checked_div(b).unwrap_or(u32::MAX)),
        IntOp::DivS => {
            let divide = signed(i32::wrapping_div);
            r.zip32(mask, slots, |a, b| if b == 0 { u32::MAX } else { divide(a, b) });
        }
        IntOp::RemU => r.zip32(mask, slots, |a, b| a.checked_rem(b).unwrap_or(a)),
        IntOp::RemS => {
            let remainder = signed(i32::wrapping_rem);
            r.zip32(mask, slots, |a, b| if b == 0 { a } else { remainder(a, b) });
        }
        IntOp::MinU => r.zip32(mask, slots, u32::min),
        IntOp::MinS => r.zip32(mask, slots, signed(i32::min)),
        IntOp::MaxU => r.zip32(mask, slots, u32::max),
        IntOp::MaxS => r.zip32(mask, slots, signed(i32::max)),
        IntOp::And => r.zip32(mask, slots, |a, b| a & b),
        IntOp::Or => r.zip32(mask, slots, |a, b| a | b),
        IntOp::Xor => r.zip32(mask, slots, |a, b| a ^ b),
        IntOp::AddSat => r.zip32(mask, slots, signed(i32::saturating_add)),
        IntOp::SubSat => r.zip32(mask, slots, signed(i32::saturating_sub)),
    }
}

#[inline(always)]
fn int64(r: &mut Registers, mask: u32, op: IntOp, slots: [Slot; 3]) {
    match op {
        IntOp::Add => r.zip64(mask, slots, u64::wrapping_add),
        IntOp::Sub => r.zip64(mask, slots, u64::wrapping_sub),
        IntOp::Mul => r.zip64(mask, slots, u64::wrapping_mul),
        IntOp::And => r.zip64(mask, slots, |a, b| a & b),
        IntOp::Or => r.zip64(mask, slots, |a, b| a | b),
        IntOp::Xor => r.zip64(mask, slots, |a, b| a ^ b),
        op => r.zip64(mask, slots, |a, b| rare_int64(op, a, b)),
    }
}

/// A shift by the width or more leaves nothing but, to the right, the sign.
#[inline(always)]
fn shift32(r: &mut Registers, mask: u32, op: ShiftOp, slots: [Slot; 3]) {
    match op {
        ShiftOp::Left => r.zip32(mask, slots, |a, b| if b > 31 { 0 } else { a << b }),
        ShiftOp::RightU => r.zip32(mask, slots, |a, b| if b > 31 { 0 } else { a >> b }),
        ShiftOp::RightS => {
            r.zip32(mask, slots, |a, b| (a.cast_signed() >> b.min(31)).cast_unsigned());
        }
    }
}

#[inline(always)]
fn shift64(r: &mut Registers, mask: u32, op: ShiftOp, [d, a, b]: [Slot; 3]) {
    let (mut value, by) = (*r.get64(a), *r.get32(b));
    for lane in 0..LANES {
        let (a, b) = (value[lane], by[lane]);
        value[lane] = match op {
            ShiftOp::Left if b > 63 => 0,
            ShiftOp::Left => a << b,
            ShiftOp::RightU if b > 63 => 0,
            ShiftOp::RightU => a >> b,
            ShiftOp::RightS => (a.cast_signed() >> b.min(63)).cast_unsigned(),
        };
    }
    r.put64(d, mask, &value);
}

#[inline(always)]
fn compare32(r: &mut Registers, mask: u32, (compare, signed): (Compare, bool), s: [Slot; 3]) {
    // Moving the sign turns the signed order into the unsigned one.
    let bias = if signed { 1 << 31 } else { 0 };
    match compare {
        Compare::Eq => r.test32(mask, s, |a, b| a == b),
        Compare::Ne => r.test32(mask, s, |a, b| a != b),
        Compare::Lt => r.test32(mask, s, |a, b| a ^ bias < b ^ bias),
        Compare::Le => r.test32(mask, s, |a, b| a ^ bias <= b ^ bias),
        Compare::Gt => r.test32(mask, s, |a, b| a ^ bias > b ^ bias),
        Compare::Ge => r.test32(mask, s, |a, b| a ^ bias >= b ^ bias),
    }
}

#[inline(always)]
fn compare64(r: &mut Registers, mask: u32, (compare, signed): (Compare, bool), s: [Slot; 3]) {
    let bias = if signed { 1 << 63 } else { 0 };
    match compare {
        Compare::Eq => r.test64(mask, s, |a, b| a == b),
        Compare::Ne => r.test64(mask, s, |a, b| a != b),
        Compare::Lt => r.test64(mask, s, |a, b| a ^ bias < b ^ bias),
        Compare::Le => r.test64(mask, s, |a, b| a ^ bias <= b ^ bias),
        Compare::Gt => r.test64(mask, s, |a, b| a ^ bias > b ^ bias),
        Compare::Ge => r.test64(mask, s, |a, b| a ^ bias >= b ^ bias),
    }
}

#[inline(always)]
pub(super) fn float_compare(compare: FloatCompare, order: Option<std::cmp::Ordering>) -> bool {
    match (compare, order) {
        (FloatCompare::Ordered, order) => order.is_some(),
        (FloatCompare::Unordered, order) => order.is_none(),
        (FloatCompare::Is { unordered, .. }, None) => unordered,
        (FloatCompare::Is { compare, .. }, Some(order)) => match compare {
            Compare::Eq => order.is_eq(),
            Compare::Ne => order.is_ne(),
            Compare::Lt => order.is_lt(),
            Compare::Le => order.is_le(),
            Compare::Gt => order.is_gt(),
            Compare::Ge => order.is_ge(),
        },
    }
}

#[inline(always)]
fn float32(r: &mut Registers, mask: u32, (op, mode): (FloatOp, FloatMode), s: [Slot; 3]) {
    let value = f32::from_bits;
    match op {
        FloatOp::Add if mode == FloatMode::PLAIN => {
            r.zip32(mask, s, |a, b| float::bits32(value(a) + value(b)));
        }
        FloatOp::Sub if mode == FloatMode::PLAIN => {
            r.zip32(mask, s, |a, b| float::bits32(value(a) - value(b)));
        }
        FloatOp::Mul if mode == FloatMode::PLAIN => {
            r.zip32(mask, s, |a, b| float::bits32(value(a) * value(b)));
        }
        FloatOp::Div if mode == FloatMode::PLAIN => {
            r.zip32(mask, s, |a, b| float::bits32(value(a) / value(b)));
        }
        FloatOp::Max if mode == FloatMode::PLAIN => r.zip32(mask, s, float::max32),
        FloatOp::Min if mode == FloatMode::PLAIN => r.zip32(mask, s, float::min32),
        op => r.zip32(mask, s, |a, b| float::binary32(op, mode, a, b)),
    }
}

#[inline(always)]
fn fused32(r: &mut Registers, mask: u32, mode: FloatMode, s: [Slot; 4]) {
    if mode == FloatMode::PLAIN {
        r.three32(mask, s, |a, b, c| {
            float::bits32(f32::from_bits(a).mul_add(f32::from_bits(b), f32::from_bits(c)))
        });
    } else {
        r.three32(mask, s, |a, b, c| float::fma32(mode, a, b, c));
    }
}

#[inline(always)]
fn float_unary32(r: &mut Registers, mask: u32, (op, mode): (FloatUnary, FloatMode), s: [Slot; 2]) {
    match op {
        FloatUnary::Exp2 => r.map32(mask, s, |a| float::exp2_mode(mode.ftz, a)),
        op => r.map32(mask, s, |a| float::unary32(op, mode, a)),
    }
}

#[inline(always)]
fn mul_wide32(r: &mut Registers, mask: u32, signed: bool, [d, a, b]: [Slot; 3]) {
    let (a, b) = (r.get32(a), r.get32(b));
    let mut value = [0; LANES];
    for lane in 0..LANES {
        value[lane] = if signed {
            sign_extend(a[lane]).wrapping_mul(sign_extend(b[lane]))
        } else {
            u64::from(a[lane]) * u64::from(b[lane])
        };
    }
    r.put64(d, mask, &value);
}

#[inline(always)]
fn mad_wide32(r: &mut Registers, mask: u32, signed: bool, [d, a, b, c]: [Slot; 4]) {
    let (a, b, mut value) = (r.get32(a), r.get32(b), *r.get64(c));
    for lane in 0..LANES {
        let product = if signed {
            sign_extend(a[lane]).wrapping_mul(sign_extend(b[lane]))
        } else {
            u64::from(a[lane]) * u64::from(b[lane])
        };
        value[lane] = value[lane].wrapping_add(product);
    }
    r.put64(d, mask, &value);
}
