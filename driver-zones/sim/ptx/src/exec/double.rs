//! Double precision in other directions than to nearest: computed in integers of
//! 128 bits, of which the lowest is set where something was cut off, and rounded once.

use crate::ir::Round;

/// `significand * 2^exponent`, exact but for what the lowest bit stands for.
#[derive(Clone, Copy)]
struct Exact {
    negative: bool,
    exponent: i32,
    significand: u128,
}

const FRACTION: u64 = (1 << 52) - 1;

/// A finite number that is not zero, with its highest bit at 52.
fn parts(value: f64) -> (i32, u128) {
    let bits = value.to_bits();
    let field = i32::try_from(bits >> 52 & 0x7ff).unwrap_or(0);
    let fraction = bits & FRACTION;
    if field == 0 {
        let shift = fraction.leading_zeros() - 11;
        return (-1074 - shift.cast_signed(), u128::from(fraction << shift));
    }
    (field - 1075, u128::from(fraction | 1 << 52))
}

/// Shifts right; the lowest bit of the result stands for what is lost.
fn shift_right(value: u128, by: i32) -> u128 {
    if by > 127 {
        return u128::from(value != 0);
    }
    (value >> by) | u128::from(value & ((1 << by) - 1) != 0)
}

fn rounded(exact: Exact, round: Round) -> f64 {
    let Exact { negative, exponent, significand } = exact;
    let signed = |value: f64| if negative { -value } else { value };
    if significand == 0 {
        return signed(0.0);
    }
    let top = 127 - significand.leading_zeros().cast_signed();
    let unit = (exponent + top - 52).max(-1074);
    let drop = unit - exponent;
    let (kept, rest, half) = if drop <= 0 {
        (significand << -drop, 0, 1)
    } else if drop > 127 {
        (0, 1, 2)
    } else {
        (significand >> drop, significand & ((1 << drop) - 1), 1_u128 << (drop - 1))
    };
    let up = match round {
        Round::Nearest => rest > half || (rest == half && kept & 1 == 1),
        Round::NearestAway => rest >= half,
        Round::Zero => false,
        Round::Down => rest != 0 && negative,
        Round::Up => rest != 0 && !negative,
    };
    let outward = match round {
        Round::Nearest | Round::NearestAway => true,
        Round::Zero => false,
        Round::Down => negative,
        Round::Up => !negative,
    };
    // Above the largest double, an exponent beyond 11 bits would not show.
    let bits = u64::try_from(kept).unwrap_or(0) + u64::from(up);
    let bits = bits.checked_add(u64::from((unit + 1074).cast_unsigned()) << 52);
    match bits.filter(|bits| unit < 1024 && *bits < f64::INFINITY.to_bits()) {
        Some(bits) => signed(f64::from_bits(bits)),
        None => signed(if outward { f64::INFINITY } else { f64::MAX }),
    }
}

/// `a * b + c`.
pub(crate) fn fma(a: f64, b: f64, c: f64, round: Round) -> f64 {
    if !(a.is_finite() && b.is_finite() && c.is_finite()) {
        return a.mul_add(b, c);
    }
    let negative = a.is_sign_negative() != b.is_sign_negative();
    if a == 0.0 || b == 0.0 {
        if c != 0.0 {
            return c;
        }
        let zero = if negative { -0.0 } else { 0.0 };
        return if negative == c.is_sign_negative() { zero } else { cancelled(round) };
    }
    let ((ea, sa), (eb, sb)) = (parts(a), parts(b));
    let (product, exponent) = (sa * sb, ea + eb);
    if c == 0.0 {
        return rounded(Exact { negative, exponent, significand: product }, round);
    }
    let (ec, sc) = parts(c);
    // Both at the same exponent, with room for a carry above them.
    const ADDEND_ROOM: i32 = 72;
    const PRODUCT_ROOM: i32 = 20;
    let distance = ec - exponent;
    let (exponent, product, addend) = if distance > ADDEND_ROOM {
        let product = shift_right(product, distance - ADDEND_ROOM);
        (ec - ADDEND_ROOM, product, sc << ADDEND_ROOM)
    } else if distance >= 0 {
        (exponent, product, sc << distance)
    } else if -distance <= PRODUCT_ROOM {
        (ec, product << -distance, sc)
    } else {
        let addend = shift_right(sc, -distance - PRODUCT_ROOM);
        (exponent - PRODUCT_ROOM, product << PRODUCT_ROOM, addend)
    };
    let signed = |negative: bool, value: u128| {
        let value = value.cast_signed();
        if negative { -value } else { value }
    };
    let sum = signed(negative, product) + signed(c.is_sign_negative(), addend);
    if sum == 0 {
        return cancelled(round);
    }
    let exact = Exact { negative: sum < 0, exponent, significand: sum.unsigned_abs() };
    rounded(exact, round)
}

/// The zero that opposite numbers add up to.
fn cancelled(round: Round) -> f64 {
    if round == Round::Down { -0.0 } else { 0.0 }
}

/// `a * b`; a zero keeps the product's sign.
pub(crate) fn product(a: f64, b: f64, round: Round) -> f64 {
    let negative = a.is_sign_negative() != b.is_sign_negative();
    fma(a, b, if negative { -0.0 } else { 0.0 }, round)
}

/// `a / b`.
pub(crate) fn quotient(a: f64, b: f64, round: Round) -> f64 {
    const EXTRA: i32 = 64;
    if !(a.is_finite() && b.is_finite()) || a == 0.0 || b == 0.0 {
        return a / b;
    }
    let ((ea, sa), (eb, sb)) = (parts(a), parts(b));
    let dividend = sa << EXTRA;
    let significand = (dividend / sb) | u128::from(!dividend.is_multiple_of(sb));
    let negative = a.is_sign_negative() != b.is_sign_negative();
    rounded(Exact { negative, exponent: ea - eb - EXTRA, significand }, round)
}

/// The square root.
pub(crate) fn root(a: f64, round: Round) -> f64 {
    if !a.is_finite() || a <= 0.0 {
        return a.sqrt();
    }
    let (exponent, significand) = parts(a);
    let extra = 64 + (exponent & 1);
    let radicand = significand << extra;
    let root = radicand.isqrt();
    let significand = (root << 1) | u128::from(root * root != radicand);
    rounded(Exact { negative: false, exponent: (exponent - extra) / 2 - 1, significand }, round)
}

/// An integer.
pub(crate) fn integer(value: i128, round: Round) -> f64 {
    let exact = Exact { negative: value < 0, exponent: 0, significand: value.unsigned_abs() };
    if value == 0 { 0.0 } else { rounded(exact, round) }
}

#[cfg(test)]
mod tests {
    use super::{fma, integer, product, quotient, root};
    use crate::ir::Round;

    /// Numbers of all sizes, small and special ones among them.
    fn numbers() -> impl Iterator<Item = [f64; 3]> {
        const SPECIAL: [f64; 12] = [
            0.0,
            -0.0,
            1.0,
            -1.0,
            f64::MAX,
            f64::MIN,
            f64::MIN_POSITIVE,
            5e-324,
            -5e-324,
            f64::INFINITY,
            f64::NAN,
            1.5,
        ];
        let mut state = 7_u64;
        let mut next = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            match state >> 60 {
                0 => SPECIAL[(state >> 50) as usize % SPECIAL.len()],
                // Close exponents, so that sums cancel.
                1..8 => f64::from_bits(state & !(0x7ff << 52) | (1020 + (state >> 40 & 7)) << 52),
                _ => f64::from_bits(state.rotate_left(17)),
            }
        };
        (0..200_000).map(move |_| [next(), next(), next()])
    }

    fn same(got: f64, expected: f64) -> bool {
        got.to_bits() == expected.to_bits() || (got.is_nan() && expected.is_nan())
    }

    #[test]
    fn to_nearest_it_agrees_with_the_host() {
        let round = Round::Nearest;
        for [a, b, c] in numbers() {
            assert!(same(fma(a, b, c, round), a.mul_add(b, c)), "{a:e} * {b:e} + {c:e}");
            assert!(same(product(a, b, round), a * b), "{a:e} * {b:e}");
            assert!(same(fma(a, 1.0, c, round), a + c), "{a:e} + {c:e}");
            assert!(same(quotient(a, b, round), a / b), "{a:e} / {b:e}");
            assert!(same(root(a, round), a.sqrt()), "root of {a:e}");
            let whole = i128::from(a.to_bits().cast_signed());
            #[expect(clippy::cast_precision_loss, reason = "rounding is the point")]
            let nearest = whole as f64;
            assert!(same(integer(whole, round), nearest));
        }
    }

    #[test]
    fn directions_bracket_the_nearest() {
        for [a, b, c] in numbers() {
            let all = |f: &dyn Fn(Round) -> f64| [Round::Down, Round::Nearest, Round::Up].map(f);
            let results = [
                all(&|round| fma(a, b, c, round)),
                all(&|round| quotient(a, b, round)),
                all(&|round| root(a, round)),
            ];
            for [down, nearest, up] in results {
                if nearest.is_nan() {
                    continue;
                }
                assert!(down <= nearest && nearest <= up, "{a:e} {b:e} {c:e}");
                assert!(down == up || down.next_up() == up, "{a:e} {b:e} {c:e}");
            }
            let zero = fma(a, b, c, Round::Zero);
            let toward = if zero < 0.0 { Round::Up } else { Round::Down };
            assert!(zero.is_nan() || zero == 0.0 || same(zero, fma(a, b, c, toward)));
        }
    }
}
