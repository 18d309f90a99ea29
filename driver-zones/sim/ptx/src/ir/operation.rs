//! What instructions of one form do: sums, comparisons, roundings.

use super::Type;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IntOp {
    Add,
    Sub,
    Mul,
    MulHiU,
    MulHiS,
    DivU,
    DivS,
    RemU,
    RemS,
    MinU,
    MinS,
    MaxU,
    MaxS,
    And,
    Or,
    Xor,
    AddSat,
    SubSat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShiftOp {
    Left,
    RightU,
    RightS,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IntUnary {
    Neg,
    Abs,
    Not,
    Reverse,
}

/// Operations whose result is a 32-bit count or position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CountOp {
    Population,
    LeadingZeros,
    /// Position of the highest set bit.
    FindU,
    /// Position of the highest bit that differs from the sign.
    FindS,
    /// As above, counted from the left.
    FindShiftU,
    FindShiftS,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

/// How floats compare; `unordered` is the answer when one is a NaN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FloatCompare {
    Is { compare: Compare, unordered: bool },
    Ordered,
    Unordered,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PredOp {
    And,
    Or,
    Xor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Round {
    Nearest,
    /// To nearest; what lies in the middle, away from zero.
    NearestAway,
    Zero,
    Down,
    Up,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FloatMode {
    pub(crate) round: Round,
    /// Subnormal inputs and results become zero.
    pub(crate) ftz: bool,
    /// The result is clamped to 0..1, NaN becoming 0.
    pub(crate) sat: bool,
}

impl FloatMode {
    pub(crate) const PLAIN: Self = Self { round: Round::Nearest, ftz: false, sat: false };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FloatOp {
    Add,
    Sub,
    Mul,
    Div,
    Min,
    Max,
    MinNan,
    MaxNan,
    CopySign,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FloatUnary {
    Neg,
    Abs,
    Sqrt,
    Rsqrt,
    Reciprocal,
    Exp2,
    Log2,
    Sin,
    Cos,
    Tanh,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HalfOp {
    Add,
    Sub,
    Mul,
    Fma,
    Min,
    Max,
    MinNan,
    MaxNan,
    Neg,
    Abs,
    Exp2,
    Tanh,
}

/// How an instruction on halves works, in as little room as its operands leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct HalfMode(u8);

impl HalfMode {
    /// The halves are of the brain format.
    pub(crate) const BRAIN: Self = Self(1);
    /// There are two of them.
    pub(crate) const PAIR: Self = Self(2);
    /// Subnormal inputs and results become zero.
    pub(crate) const FTZ: Self = Self(4);
    /// The result is clamped to 0..1, NaN becoming 0.
    pub(crate) const SAT: Self = Self(8);
    /// Negative results become zero.
    pub(crate) const RELU: Self = Self(16);

    pub(crate) fn with(self, flag: Self, present: bool) -> Self {
        Self(self.0 | if present { flag.0 } else { 0 })
    }

    #[inline(always)]
    pub(crate) fn has(self, flag: Self) -> bool {
        self.0 & flag.0 != 0
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Conversion {
    pub(crate) to: Type,
    pub(crate) from: Type,
    pub(crate) mode: FloatMode,
    /// Round to an integral value even when the result is a float (`.rni` and so on).
    pub(crate) integral: bool,
    /// Negative results become zero.
    pub(crate) relu: bool,
    /// What is too large becomes the largest number.
    pub(crate) finite: bool,
    /// Bits of the destination's register, which may be more than the type's.
    pub(crate) register_bits: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SpecialClock {
    /// Low half of the clock.
    Clock,
    ClockHigh,
    Clock64,
    GlobalTimer,
    GlobalTimerLow,
    GlobalTimerHigh,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VoteMode {
    All,
    Any,
    Uni,
}

pub(crate) const TEST_NAN: u8 = 1;
pub(crate) const TEST_INFINITE: u8 = 2;
pub(crate) const TEST_ZERO: u8 = 4;
pub(crate) const TEST_SUBNORMAL: u8 = 8;
pub(crate) const TEST_NORMAL: u8 = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PermuteMode {
    Index,
    Forward4,
    Backward4,
    Replicate8,
    EdgeLeft,
    EdgeRight,
    Replicate16,
}
