//! What PTX's instructions mean, written for clearness: integers as 128 bits,
//! floats as the host's. The machine shares none of it.

use std::cmp::Ordering;

/// An integer type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Int {
    pub(crate) bits: u32,
    pub(crate) signed: bool,
}

impl Int {
    pub(crate) fn name(self) -> String {
        format!("{}{}", if self.signed { "s" } else { "u" }, self.bits)
    }

    /// The value that the low bits are.
    pub(crate) fn value(self, bits: u64) -> i128 {
        let cut = i128::from(bits) & ((1 << self.bits) - 1);
        if self.signed && cut >> (self.bits - 1) == 1 { cut - (1 << self.bits) } else { cut }
    }

    pub(crate) fn cut(self, value: i128) -> u64 {
        u64::try_from(value & ((1 << self.bits) - 1)).expect("at most 64 bits")
    }

    fn least(self) -> i128 {
        if self.signed { -(1 << (self.bits - 1)) } else { 0 }
    }

    fn most(self) -> i128 {
        if self.signed { (1 << (self.bits - 1)) - 1 } else { (1 << self.bits) - 1 }
    }

    pub(crate) fn clamp(self, value: i128) -> i128 {
        value.clamp(self.least(), self.most())
    }

    /// The high half of a product.
    fn high(self, product: i128) -> i128 {
        if self.signed {
            product >> self.bits
        } else {
            i128::try_from(product.cast_unsigned() >> self.bits).expect("at most 64 bits")
        }
    }
}

/// Integer instructions of up to three operands, by name.
pub(crate) const INTEGER: [&str; 11] =
    ["add", "sub", "mul.lo", "mul.hi", "min", "max", "div", "rem", "mad.lo", "mad.hi", "sad"];

pub(crate) fn integer(name: &str, ty: Int, [a, b, c]: [u64; 3]) -> u64 {
    let [a, b, c] = [a, b, c].map(|bits| ty.value(bits));
    let product = a.wrapping_mul(b);
    ty.cut(match name {
        "add" => a + b,
        "sub" => a - b,
        "mul.lo" => product,
        "mul.hi" => ty.high(product),
        "min" => a.min(b),
        "max" => a.max(b),
        "div" if b == 0 => -1,
        "div" => a / b,
        "rem" if b == 0 => a,
        "rem" => a % b,
        "mad.lo" => product.wrapping_add(c),
        "mad.hi" => ty.high(product) + c,
        _ => c + (a - b).abs(),
    })
}

/// Instructions on bits.
pub(crate) const BITWISE: [&str; 9] =
    ["and", "or", "xor", "not", "cnot", "shl", "shr.u", "shr.s", "brev"];

pub(crate) fn bitwise(name: &str, width: u32, a: u64, b: u64) -> u64 {
    let ty = Int { bits: width, signed: name == "shr.s" };
    let value = ty.value(a);
    let amount = u32::try_from(b & 0xffff_ffff).expect("cut");
    ty.cut(match name {
        "and" => i128::from(a & b),
        "or" => i128::from(a | b),
        "xor" => i128::from(a ^ b),
        "not" => i128::from(!a),
        "cnot" => i128::from(value == 0),
        "shl" => value.checked_shl(amount.min(100)).unwrap_or(0),
        "brev" => (0..width).map(|bit| i128::from(a >> bit & 1) << (width - 1 - bit)).sum(),
        _ => value >> amount.min(127),
    })
}

pub(crate) const COUNTS: [&str; 5] = ["popc.b", "clz.b", "bfind.u", "bfind.s", "bfind.shiftamt.u"];

pub(crate) fn count(name: &str, width: u32, a: u64) -> u64 {
    let bit = |at: u32| a >> at & 1;
    let sign = if name == "bfind.s" { bit(width - 1) } else { 0 };
    let highest = (0..width).rev().find(|at| bit(*at) != sign);
    u64::from(match name {
        "popc.b" => (0..width).map(|at| u32::try_from(bit(at)).expect("a bit")).sum(),
        "clz.b" => (0..width).rev().take_while(|at| bit(*at) == 0).fold(0, |count, _| count + 1),
        "bfind.shiftamt.u" => highest.map_or(u32::MAX, |at| width - 1 - at),
        _ => highest.unwrap_or(u32::MAX),
    })
}

/// `bfe`, bit by bit.
pub(crate) fn extract(ty: Int, a: u64, position: u64, length: u64) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    let top = u64::from(ty.bits) - 1;
    let bit = |at: u64| if at <= top { a >> at & 1 } else { 0 };
    let sign = match (ty.signed, length) {
        (false, _) | (_, 0) => 0,
        _ => bit((position + length - 1).min(top)),
    };
    (0..=top)
        .map(|at| {
            let inside = at < length && position + at <= top;
            (if inside { bit(position + at) } else { sign }) << at
        })
        .sum()
}

/// `bfi`, bit by bit.
pub(crate) fn insert(width: u32, a: u64, b: u64, position: u64, length: u64) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    (0..u64::from(width))
        .map(|at| {
            let inside = at >= position && at < position + length;
            (if inside { a >> (at - position) & 1 } else { b >> at & 1 }) << at
        })
        .sum()
}

/// `prmt` by its bytes.
pub(crate) fn permute(a: u64, b: u64, c: u64) -> u64 {
    let bytes = (a & 0xffff_ffff | b << 32).to_le_bytes();
    (0..4)
        .map(|at| {
            let selector = c >> (4 * at) & 15;
            let byte = bytes[usize::try_from(selector & 7).expect("small")];
            let byte = match (selector & 8, byte & 0x80) {
                (0, _) => byte,
                (_, 0) => 0,
                _ => 0xff,
            };
            u64::from(byte) << (8 * at)
        })
        .sum()
}

/// `prmt` with a mode, from the tables of PTX: bytes from the highest to the lowest, by the two
/// lowest bits of `c`.
pub(crate) const PERMUTE_MODES: [(&str, [&str; 4]); 6] = [
    ("f4e", ["3210", "4321", "5432", "6543"]),
    ("b4e", ["5670", "6701", "7012", "0123"]),
    ("rc8", ["0000", "1111", "2222", "3333"]),
    ("ecl", ["3210", "3211", "3222", "3333"]),
    ("ecr", ["0000", "1110", "2210", "3210"]),
    ("rc16", ["1010", "3232", "1010", "3232"]),
];

pub(crate) fn permute_by(table: &[&str; 4], a: u32, b: u32, c: u32) -> u32 {
    let bytes = (u64::from(a) | u64::from(b) << 32).to_le_bytes();
    let chosen = table[(c & 3) as usize].bytes();
    chosen.fold(0, |word, digit| word << 8 | u32::from(bytes[usize::from(digit - b'0')]))
}

pub(crate) fn shf_left_wrap(a: u64, b: u64, c: u64) -> u64 {
    let joined = u128::from(b & 0xffff_ffff) << 32 | u128::from(a & 0xffff_ffff);
    u64::try_from(joined << (c & 31) >> 32 & 0xffff_ffff).expect("cut")
}

/// Comparisons of floats; those of integers are the first six.
pub(crate) const COMPARISONS: [&str; 14] =
    ["eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"];

pub(crate) fn compare(name: &str, order: Option<Ordering>) -> bool {
    let Some(order) = order else { return name.len() == 3 && name != "num" };
    match &name[..2] {
        "eq" => order.is_eq(),
        "ne" => order.is_ne(),
        "lt" => order.is_lt(),
        "le" => order.is_le(),
        "gt" => order.is_gt(),
        "ge" => order.is_ge(),
        "nu" => true,
        _ => false,
    }
}

/// A float type of the host's, in bits.
pub(crate) trait Float {
    fn unary(name: &str, a: u64) -> u64;
    fn binary(name: &str, a: u64, b: u64) -> u64;
    fn fused(a: u64, b: u64, c: u64) -> u64;
    fn order(a: u64, b: u64) -> Option<Ordering>;
}

pub(crate) const BINARY: [&str; 6] = ["add.rn", "sub.rn", "mul.rn", "div.rn", "min", "max"];
pub(crate) const UNARY: [&str; 4] = ["neg", "abs", "sqrt.rn", "rcp.rn"];

macro_rules! float {
    ($host:ty, $bits:ty, $marker:ident, $nan:literal) => {
        pub(crate) struct $marker;

        impl $marker {
            fn value(bits: u64) -> $host {
                <$host>::from_bits(<$bits>::try_from(bits).expect("cut"))
            }

            fn bits(value: $host) -> u64 {
                u64::from(if value.is_nan() { $nan } else { value.to_bits() })
            }
        }

        impl Float for $marker {
            fn unary(name: &str, a: u64) -> u64 {
                let sign = 1 << (<$bits>::BITS - 1);
                match name {
                    "neg" => a ^ sign,
                    "abs" => a & !sign,
                    "sqrt.rn" => Self::bits(Self::value(a).sqrt()),
                    _ => Self::bits(1.0 / Self::value(a)),
                }
            }

            fn binary(name: &str, a: u64, b: u64) -> u64 {
                let (x, y) = (Self::value(a), Self::value(b));
                Self::bits(match name {
                    "add.rn" => x + y,
                    "sub.rn" => x - y,
                    "mul.rn" => x * y,
                    "div.rn" => x / y,
                    // The other operand of a NaN; of two zeros, the negative is less.
                    _ if x.is_nan() => y,
                    _ if y.is_nan() => x,
                    "min" => {
                        if x.total_cmp(&y).is_lt() {
                            x
                        } else {
                            y
                        }
                    }
                    _ => {
                        if x.total_cmp(&y).is_gt() {
                            x
                        } else {
                            y
                        }
                    }
                })
            }

            fn fused(a: u64, b: u64, c: u64) -> u64 {
                Self::bits(Self::value(a).mul_add(Self::value(b), Self::value(c)))
            }

            fn order(a: u64, b: u64) -> Option<Ordering> {
                Self::value(a).partial_cmp(&Self::value(b))
            }
        }
    };
}

float!(f32, u32, Single, 0x7fff_ffff);
float!(f64, u64, Double, 0x7fff_ffff_ffff_ffff);

/// Subnormal singles become zero.
pub(crate) fn flushed(bits: u64) -> u64 {
    if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits }
}

/// Singles are clamped to 0..1; a NaN is 0.
pub(crate) fn saturated(bits: u64) -> u64 {
    let value = Single::value(bits);
    if value > 0.0 { u64::from(value.min(1.0).to_bits()) } else { 0 }
}

/// `cvt` from a float to an integer, rounded as `rounding` says.
pub(crate) fn float_to_int(value: f64, rounding: &str, to: Int) -> u64 {
    if value.is_nan() {
        return if to.bits == 64 { 1 << 63 } else { 0 };
    }
    let whole = match rounding {
        "rni" => value.round_ties_even(),
        "rzi" => value.trunc(),
        "rmi" => value.floor(),
        _ => value.ceil(),
    };
    #[expect(clippy::cast_possible_truncation, reason = "clamped by the cast itself")]
    let whole = whole as i128;
    to.cut(to.clamp(whole))
}

/// `cvt` from an integer to a single or a double, rounded as `rounding` says.
pub(crate) fn int_to_float(value: i128, rounding: &str, double: bool) -> u64 {
    #[expect(clippy::cast_precision_loss, reason = "rounding is the point")]
    let (wide, narrow) = (value as f64, value as f32);
    let near = if double { wide } else { f64::from(narrow) };
    #[expect(clippy::cast_possible_truncation, reason = "an integer")]
    let order = (near as i128).cmp(&value);
    let down = rounding == "rm" || (rounding == "rz" && value > 0);
    let up = rounding == "rp" || (rounding == "rz" && value < 0);
    match (double, order) {
        (true, Ordering::Greater) if down => wide.next_down().to_bits(),
        (true, Ordering::Less) if up => wide.next_up().to_bits(),
        (true, _) => wide.to_bits(),
        (false, Ordering::Greater) if down => narrow.next_down().to_bits().into(),
        (false, Ordering::Less) if up => narrow.next_up().to_bits().into(),
        (false, _) => narrow.to_bits().into(),
    }
}
