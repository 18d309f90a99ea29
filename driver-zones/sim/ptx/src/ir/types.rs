//! PTX's fundamental types.

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Type {
    U8,
    S8,
    B8,
    U16,
    S16,
    B16,
    F16,
    BF16,
    U32,
    S32,
    B32,
    F32,
    F16x2,
    BF16x2,
    U64,
    S64,
    B64,
    F64,
    /// Of registers of atomic operations; it takes two slots of the 64-bit file.
    B128,
    /// Formats of conversions only: a tensor core's, and two of 8 bits.
    TF32,
    E4M3,
    E5M2,
    Pred,
}

impl Type {
    /// The type that a modifier names.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "u8" => Self::U8,
            "s8" => Self::S8,
            "b8" => Self::B8,
            "u16" => Self::U16,
            "s16" => Self::S16,
            "b16" => Self::B16,
            "f16" => Self::F16,
            "bf16" => Self::BF16,
            "f16x2" => Self::F16x2,
            "bf16x2" => Self::BF16x2,
            "u32" => Self::U32,
            "s32" => Self::S32,
            "b32" => Self::B32,
            "f32" => Self::F32,
            "u64" => Self::U64,
            "s64" => Self::S64,
            "b64" => Self::B64,
            "f64" => Self::F64,
            "pred" => Self::Pred,
            _ => return None,
        })
    }

    pub(crate) fn bits(self) -> u32 {
        match self {
            Self::Pred => 1,
            Self::U8 | Self::S8 | Self::B8 | Self::E4M3 | Self::E5M2 => 8,
            Self::U16 | Self::S16 | Self::B16 | Self::F16 | Self::BF16 => 16,
            Self::U32
            | Self::S32
            | Self::B32
            | Self::F32
            | Self::F16x2
            | Self::BF16x2
            | Self::TF32 => 32,
            Self::U64 | Self::S64 | Self::B64 | Self::F64 => 64,
            Self::B128 => 128,
        }
    }

    /// Size in memory.
    pub(crate) fn bytes(self) -> u32 {
        self.bits().div_ceil(8)
    }

    pub(crate) fn is_signed(self) -> bool {
        matches!(self, Self::S8 | Self::S16 | Self::S32 | Self::S64)
    }

    pub(crate) fn is_unsigned(self) -> bool {
        matches!(self, Self::U8 | Self::U16 | Self::U32 | Self::U64)
    }

    pub(crate) fn is_integer(self) -> bool {
        self.is_signed() || self.is_unsigned()
    }

    pub(crate) fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F64 | Self::TF32 | Self::E4M3 | Self::E5M2)
            || self.is_half()
    }

    /// A format of 16 bits, or a pair of them.
    pub(crate) fn is_half(self) -> bool {
        self.is_pair() || matches!(self, Self::F16 | Self::BF16)
    }

    pub(crate) fn is_pair(self) -> bool {
        matches!(self, Self::F16x2 | Self::BF16x2)
    }

    /// The type of a pair's halves.
    pub(crate) fn half(self) -> Self {
        match self {
            Self::F16x2 => Self::F16,
            Self::BF16x2 => Self::BF16,
            other => other,
        }
    }

    /// The bits that a value takes in a register of 32 bits.
    pub(crate) fn mask(self) -> u32 {
        if self.bits() >= 32 { u32::MAX } else { (1 << self.bits()) - 1 }
    }

    pub(crate) fn is_untyped(self) -> bool {
        matches!(self, Self::B8 | Self::B16 | Self::B32 | Self::B64)
    }
}
