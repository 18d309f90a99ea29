//! Instructions on the bits of integers.

use super::FunctionBuilder;
use super::modifiers::Modifiers;
use crate::ir::{CountOp, Op, PermuteMode, Slot, Type};
use crate::parse::{Operand, PtxError, Statement};

impl<'a> FunctionBuilder<'_, 'a> {
    pub(super) fn lower_bits(
        &mut self,
        s: &Statement<'a>,
        m: &mut Modifiers<'a>,
    ) -> Result<bool, PtxError> {
        match s.mnemonic {
            "shf" => self.lower_funnel(s, m)?,
            "popc" | "clz" | "bfind" => self.lower_count(s, m)?,
            "bfe" => self.lower_extract(s, m)?,
            "bfi" => self.lower_insert(s, m)?,
            "prmt" => self.lower_permute(s, m)?,
            "lop3" => self.lower_logic3(s, m)?,
            "dp4a" | "dp2a" => self.lower_dot(s, m)?,
            "bmsk" | "szext" => self.lower_field(s, m)?,
            "fns" => {
                only(m, Type::B32)?;
                let [d, a, b, c] = self.four(s, Type::B32)?;
                self.emit(Op::FindNth { d, a, b, c })?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn lower_funnel(&mut self, s: &Statement<'a>, m: &mut Modifiers<'a>) -> Result<(), PtxError> {
        let left = m.take("l");
        if !left && !m.take("r") {
            return m.error("one of '.l' and '.r' is needed");
        }
        let wrap = m.take("wrap");
        if !wrap && !m.take("clamp") {
            return m.error("one of '.clamp' and '.wrap' is needed");
        }
        if m.ty()? != Type::B32 {
            return m.error("it exists for .b32 only");
        }
        let [d, a, b, c] = self.four(s, Type::B32)?;
        self.emit(Op::Funnel { left, wrap, d, a, b, c })
    }

    fn four(&mut self, s: &Statement<'a>, ty: Type) -> Result<[Slot; 4], PtxError> {
        let [d, a, b, c] = self.operands(s)?;
        let (a, b, c) = (self.source(a, ty)?, self.source(b, ty)?, self.source(c, ty)?);
        Ok([self.destination(d, ty)?, a, b, c])
    }

    fn lower_count(&mut self, s: &Statement<'a>, m: &mut Modifiers<'a>) -> Result<(), PtxError> {
        let shift = m.take("shiftamt");
        let ty = m.ty()?;
        let op = match (s.mnemonic, ty.is_signed(), shift) {
            ("popc", false, false) => CountOp::Population,
            ("clz", false, false) => CountOp::LeadingZeros,
            ("bfind", false, false) => CountOp::FindU,
            ("bfind", true, false) => CountOp::FindS,
            ("bfind", false, true) => CountOp::FindShiftU,
            ("bfind", true, true) => CountOp::FindShiftS,
            _ => return m.error("it does not exist with these modifiers"),
        };
        let [d, a] = self.operands(s)?;
        let (d, a) = (self.destination(d, Type::U32)?, self.source(a, ty)?);
        self.emit(match ty.bits() {
            64 => Op::Count64 { op, d, a },
            32 => Op::Count32 { op, d, a },
            _ => return m.error("it exists for 32 and 64 bits only"),
        })
    }

    fn lower_extract(&mut self, s: &Statement<'a>, m: &mut Modifiers<'a>) -> Result<(), PtxError> {
        let ty = self.integer(m)?;
        let signed = ty.is_signed();
        let [d, a, b, c] = self.operands(s)?;
        let (d, a) = (self.destination(d, ty)?, self.source(a, ty)?);
        let (b, c) = (self.source(b, Type::U32)?, self.source(c, Type::U32)?);
        self.emit(match ty.bits() {
            64 => Op::Extract64 { signed, d, a, b, c },
            32 => Op::Extract32 { signed, d, a, b, c },
            _ => return m.error("it exists for 32 and 64 bits only"),
        })
    }

    fn lower_insert(&mut self, s: &Statement<'a>, m: &mut Modifiers<'a>) -> Result<(), PtxError> {
        let ty = m.ty()?;
        let [d, a, b, c, e] = self.operands(s)?;
        let (d, a, b) = (self.destination(d, ty)?, self.source(a, ty)?, self.source(b, ty)?);
        let (c, e) = (self.source(c, Type::U32)?, self.source(e, Type::U32)?);
        self.emit(match ty {
            Type::B64 => Op::Insert64 { d, a, b, c, e },
            Type::B32 => Op::Insert32 { d, a, b, c, e },
            _ => return m.error("it exists for .b32 and .b64 only"),
        })
    }

    fn lower_permute(&mut self, s: &Statement<'a>, m: &mut Modifiers<'a>) -> Result<(), PtxError> {
        only(m, Type::B32)?;
        let mode = m.find(permute_mode).unwrap_or(PermuteMode::Index);
        let [d, a, b, c] = self.four(s, Type::B32)?;
        self.emit(Op::Permute { mode, d, a, b, c })
    }

    fn lower_logic3(&mut self, s: &Statement<'a>, m: &mut Modifiers<'a>) -> Result<(), PtxError> {
        only(m, Type::B32)?;
        let [d, a, b, c, table] = self.operands(s)?;
        let Operand::Integer(table) = *table else {
            return m.error("its table must be a literal");
        };
        let Ok(table) = u8::try_from(table) else {
            return m.error("its table must be below 256");
        };
        let ty = Type::B32;
        let (a, b, c) = (self.source(a, ty)?, self.source(b, ty)?, self.source(c, ty)?);
        let d = self.destination(d, ty)?;
        self.emit(Op::Logic3 { table, d, a, b, c })
    }

    fn lower_dot(&mut self, s: &Statement<'a>, m: &mut Modifiers<'a>) -> Result<(), PtxError> {
        let halves = match (s.mnemonic, m.take("lo"), m.take("hi")) {
            ("dp4a", false, false) => None,
            ("dp2a", true, false) => Some(false),
            ("dp2a", false, true) => Some(true),
            _ => return m.error("one of '.lo' and '.hi' is needed, for dp2a only"),
        };
        let (a_type, b_type) = (m.ty()?, m.ty()?);
        let word = |ty: Type| ty == Type::U32 || ty == Type::S32;
        if !word(a_type) || !word(b_type) {
            return m.error("it exists for .u32 and .s32 only");
        }
        let (a_signed, b_signed) = (a_type.is_signed(), b_type.is_signed());
        let [d, a, b, c] = self.four(s, Type::B32)?;
        self.emit(match halves {
            None => Op::DotBytes { a_signed, b_signed, d, a, b, c },
            Some(high) => Op::DotHalves { high, a_signed, b_signed, d, a, b, c },
        })
    }

    fn lower_field(&mut self, s: &Statement<'a>, m: &mut Modifiers<'a>) -> Result<(), PtxError> {
        let wrap = m.take("wrap");
        if !wrap && !m.take("clamp") {
            return m.error("one of '.clamp' and '.wrap' is needed");
        }
        let ty = m.ty()?;
        let known = match s.mnemonic {
            "bmsk" => ty == Type::B32,
            _ => matches!(ty, Type::U32 | Type::S32),
        };
        if !known {
            return m.error("it does not exist for this type");
        }
        let [d, a, b] = self.operands(s)?;
        let (a, b) = (self.source(a, ty)?, self.source(b, Type::U32)?);
        let d = self.destination(d, ty)?;
        self.emit(match s.mnemonic {
            "bmsk" => Op::BitMask { wrap, d, a, b },
            _ => Op::Extend { signed: ty.is_signed(), wrap, d, a, b },
        })
    }
}

fn only(m: &mut Modifiers<'_>, ty: Type) -> Result<(), PtxError> {
    if m.ty()? == ty { Ok(()) } else { m.error("it exists for .b32 only") }
}

fn permute_mode(modifier: &str) -> Option<PermuteMode> {
    Some(match modifier {
        "f4e" => PermuteMode::Forward4,
        "b4e" => PermuteMode::Backward4,
        "rc8" => PermuteMode::Replicate8,
        "ecl" => PermuteMode::EdgeLeft,
        "ecr" => PermuteMode::EdgeRight,
        "rc16" => PermuteMode::Replicate16,
        _ => return None,
    })
}
