//! What a bit instruction does to one lane.

use crate::ir::{CountOp, PermuteMode};

/// `div` by zero has all bits set and `rem` by zero is the dividend, as GPUs do.
#[inline(always)]
pub(crate) fn divide_u64(a: u64, b: u64) -> u64 {
    a.checked_div(b).unwrap_or(u64::MAX)
}

#[inline(always)]
pub(crate) fn divide_s64(a: u64, b: u64) -> u64 {
    if b == 0 {
        return u64::MAX;
    }
    a.cast_signed().wrapping_div(b.cast_signed()).cast_unsigned()
}

#[inline(always)]
pub(crate) fn remainder_s64(a: u64, b: u64) -> u64 {
    if b == 0 {
        return a;
    }
    a.cast_signed().wrapping_rem(b.cast_signed()).cast_unsigned()
}

#[inline(always)]
pub(crate) fn high_u64(a: u64, b: u64) -> u64 {
    ((u128::from(a) * u128::from(b)) >> 64) as u64
}

#[inline(always)]
pub(crate) fn high_s64(a: u64, b: u64) -> u64 {
    ((i128::from(a.cast_signed()) * i128::from(b.cast_signed())) >> 64) as u64
}

/// `bfe` on a value of `bits` bits, held in the low bits of `a`.
pub(crate) fn extract(signed: bool, bits: u32, a: u64, position: u32, length: u32) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    let top = bits - 1;
    let bit = |index: u32| if index < 64 { (a >> index) & 1 } else { 0 };
    let sign = if !signed || length == 0 {
        0
    } else {
        bit((position.saturating_add(length) - 1).min(top))
    };
    let shifted = if position > top { 0 } else { a >> position };
    let taken = length.min(bits.saturating_sub(position));
    let field = if taken >= 64 { u64::MAX } else { (1_u64 << taken) - 1 };
    let fill = if sign == 1 { !field } else { 0 };
    (shifted & field) | fill
}

/// `bfi`: puts the low `length` bits of `a` into `b` at `position`.
pub(crate) fn insert(bits: u32, a: u64, b: u64, position: u32, length: u32) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    if position >= bits || length == 0 {
        return b;
    }
    let length = length.min(bits - position);
    let field = if length >= 64 { u64::MAX } else { (1_u64 << length) - 1 };
    (b & !(field << position)) | ((a & field) << position)
}

pub(crate) fn count(op: CountOp, bits: u32, a: u64) -> u32 {
    let unused = 64 - bits;
    let signed = (a << unused).cast_signed() >> unused;
    let find = |value: u64| 63_u32.wrapping_sub(value.leading_zeros());
    let magnitude = if signed < 0 { !signed } else { signed }.cast_unsigned();
    let from_left = |position: u32| {
        if position == u32::MAX { position } else { bits - 1 - position }
    };
    match op {
        CountOp::Population => a.count_ones(),
        CountOp::LeadingZeros => a.leading_zeros() - unused,
        CountOp::FindU => find(a),
        CountOp::FindS => find(magnitude),
        CountOp::FindShiftU => from_left(find(a)),
        CountOp::FindShiftS => from_left(find(magnitude)),
    }
}

pub(crate) fn permute(mode: PermuteMode, a: u32, b: u32, c: u32) -> u32 {
    let source = (u64::from(b) << 32 | u64::from(a)).to_le_bytes();
    let n = (c & 3) as usize;
    let [ones, all] = [[n; 4], [0, 1, 2, 3]];
    let order = match mode {
        PermuteMode::Index => {
            let pick = |index: u32| {
                let selector = c >> (4 * index);
                let byte = source[(selector & 7) as usize];
                if selector & 8 == 0 { byte } else { 0_u8.wrapping_sub(byte >> 7) }
            };
            return u32::from_le_bytes([pick(0), pick(1), pick(2), pick(3)]);
        }
        PermuteMode::Forward4 => all.map(|index| n + index),
        PermuteMode::Backward4 => all.map(|index| (n + 8 - index) % 8),
        PermuteMode::Replicate8 => ones,
        PermuteMode::EdgeLeft => all.map(|index: usize| index.max(n)),
        PermuteMode::EdgeRight => all.map(|index: usize| index.min(n)),
        PermuteMode::Replicate16 => all.map(|index| (n & 1) * 2 + (index & 1)),
    };
    u32::from_le_bytes(order.map(|index| source[index]))
}

pub(crate) fn logic3(table: u8, a: u32, b: u32, c: u32) -> u32 {
    (0..8_u8).filter(|row| table >> row & 1 == 1).fold(0, |sum, row| {
        let side = |bit: u8, value: u32| if row & bit != 0 { value } else { !value };
        sum | (side(4, a) & side(2, b) & side(1, c))
    })
}

#[expect(clippy::cast_possible_truncation, reason = "a funnel takes one half")]
#[inline(always)]
pub(crate) fn funnel(left: bool, wrap: bool, a: u32, b: u32, c: u32) -> u32 {
    let amount = if wrap { c & 31 } else { c.min(32) };
    let joined = u64::from(b) << 32 | u64::from(a);
    if left { ((joined << amount) >> 32) as u32 } else { (joined >> amount) as u32 }
}

pub(crate) fn dot_bytes(a_signed: bool, b_signed: bool, a: u32, b: u32, c: u32) -> u32 {
    let value = |signed: bool, byte: u8| {
        if signed { i32::from(byte.cast_signed()) } else { i32::from(byte) }
    };
    let pairs = a.to_le_bytes().into_iter().zip(b.to_le_bytes());
    pairs.fold(c, |sum, (x, y)| {
        sum.wrapping_add((value(a_signed, x) * value(b_signed, y)).cast_unsigned())
    })
}

/// `dp2a`: two halves of `a`, with the bytes of one half of `b`.
pub(crate) fn dot_halves(high: bool, [a_signed, b_signed]: [bool; 2], [a, b, c]: [u32; 3]) -> u32 {
    let half = |index: u32| {
        let bits = (a >> (16 * index) & 0xffff) as u16;
        if a_signed { i32::from(bits.cast_signed()) } else { i32::from(bits) }
    };
    let byte = |index: u32| {
        let bits = (b >> (8 * (index + if high { 2 } else { 0 })) & 0xff) as u8;
        if b_signed { i32::from(bits.cast_signed()) } else { i32::from(bits) }
    };
    (0..2).fold(c, |sum, index| {
        sum.wrapping_add(half(index).wrapping_mul(byte(index)).cast_unsigned())
    })
}

/// `bmsk`.
pub(crate) fn bit_mask(wrap: bool, a: u32, b: u32) -> u32 {
    let (first, length) = if wrap { (a & 31, b & 31) } else { (a, b.min(32)) };
    let ones = if length == 0 { 0 } else { u32::MAX >> (32 - length) };
    if first > 31 { 0 } else { ones << first }
}

/// `szext`.
pub(crate) fn extend(signed: bool, wrap: bool, a: u32, b: u32) -> u32 {
    match if wrap { b & 31 } else { b } {
        0 => 0,
        bits @ 1..=31 if signed => (a.cast_signed() << (32 - bits) >> (32 - bits)).cast_unsigned(),
        bits @ 1..=31 => a & ((1 << bits) - 1),
        _ => a,
    }
}

/// `fns`: a negative count looks downwards, and zero asks for the bit at `base` itself.
pub(crate) fn find_nth(mask: u32, base: u32, count: i32) -> u32 {
    let set = |bit: &u32| mask >> *bit & 1 == 1;
    let skip = count.unsigned_abs().saturating_sub(1) as usize;
    let found = match (base, count) {
        (32.., _) => None,
        (_, 0) => Some(base).filter(set),
        (_, 1..) => (base..32).filter(set).nth(skip),
        _ => (0..=base).rev().filter(set).nth(skip),
    };
    found.unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::{bit_mask, count, dot_halves, extract, find_nth, funnel, insert, logic3, permute};
    use crate::ir::{CountOp, PermuteMode};

    #[test]
    fn fields() {
        assert_eq!(extract(false, 32, 0xdead_beef, 8, 16), 0xadbe);
        assert_eq!(extract(true, 32, 0xdead_beef, 8, 8) & 0xffff_ffff, 0xffff_ffbe);
        assert_eq!(extract(false, 32, 0xdead_beef, 24, 64), 0xde);
        assert_eq!(extract(true, 64, 1 << 63, 0, 64), 1 << 63);
        assert_eq!(extract(false, 32, 7, 200, 3), 0);
        assert_eq!(insert(32, 0xff, 0, 4, 8), 0xff0);
        assert_eq!(insert(32, 0xff, 0x1234, 40, 8), 0x1234);
        assert_eq!(insert(64, u64::MAX, 0, 0, 255), u64::MAX);
    }

    #[test]
    fn counts() {
        assert_eq!(count(CountOp::LeadingZeros, 32, 1), 31);
        assert_eq!(count(CountOp::LeadingZeros, 64, 0), 64);
        assert_eq!(count(CountOp::FindU, 32, 0), u32::MAX);
        assert_eq!(count(CountOp::FindU, 32, 0x8000_0000), 31);
        assert_eq!(count(CountOp::FindS, 32, 0xffff_fffe), 0);
        assert_eq!(count(CountOp::FindShiftU, 32, 1), 31);
    }

    #[test]
    fn masks_and_positions() {
        assert_eq!(bit_mask(false, 4, 8), 0xff0);
        assert_eq!(bit_mask(false, 40, 8), 0);
        assert_eq!(bit_mask(false, 0, 99), u32::MAX);
        assert_eq!(bit_mask(true, 36, 40), 0xff0);
        assert_eq!(super::extend(true, false, 0x80, 8), 0xffff_ff80);
        assert_eq!(super::extend(false, false, 0x1ff, 8), 0xff);
        assert_eq!(super::extend(true, false, 7, 32), 7);
        assert_eq!(find_nth(0b1011_0000, 4, 2), 5);
        assert_eq!(find_nth(0b1011_0000, 6, -2), 4);
        assert_eq!(find_nth(0b1011_0000, 6, 0), u32::MAX);
        assert_eq!(find_nth(1, 0, 2), u32::MAX);
        assert_eq!(dot_halves(false, [true; 2], [0xffff_0002, 0x0403_0201, 10]), 10);
        assert_eq!(dot_halves(true, [false; 2], [0x0001_0002, 0x0403_0201, 0]), 10);
    }

    #[test]
    fn bytes_and_bits() {
        assert_eq!(permute(PermuteMode::Index, 0x3322_1100, 0x7766_5544, 0x7531), 0x7755_3311);
        assert_eq!(permute(PermuteMode::Index, 0x80, 0, 0x4448), 0xff, "a sign fills its byte");
        assert_eq!(permute(PermuteMode::Forward4, 0x3322_1100, 0x7766_5544, 1), 0x4433_2211);
        assert_eq!(permute(PermuteMode::Backward4, 0x3322_1100, 0x7766_5544, 0), 0x5566_7700);
        assert_eq!(logic3(0x96, 0b1100, 0b1010, 0b0110) & 0xf, 0b1100 ^ 0b1010 ^ 0b0110);
        assert_eq!(funnel(true, false, 0x8000_0000, 1, 1), 3);
        assert_eq!(funnel(false, false, 5, 9, 40), 9);
    }
}
