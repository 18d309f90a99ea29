//! Integer and bit instructions.

use super::FunctionBuilder;
use super::modifiers::Modifiers;
use crate::ir::{IntOp, IntUnary, Op, PredOp, ShiftOp, Slot, Type};
use crate::parse::{Operand, PtxError, Statement};

type Handled = Result<bool, PtxError>;

impl<'a> FunctionBuilder<'_, 'a> {
    /// Integer arithmetic. Leaves what is of a float type to `lower_float`.
    pub(super) fn lower_arithmetic(&mut self, s: &Statement<'a>, m: &mut Modifiers<'a>) -> Handled {
        if m.last_type().is_some_and(Type::is_float) {
            return Ok(false);
        }
        match s.mnemonic {
            "add" | "addc" | "sub" | "subc" => self.lower_sum(s, m)?,
            "mul" => self.lower_product(s, m)?,
            "mad" | "madc" => self.lower_multiply_add(s, m)?,
            "mul24" | "mad24" => self.lower_24(s, m)?,
            "div" | "rem" | "min" | "max" => self.lower_signed_pair(s, m)?,
            "sad" => self.lower_sum_of_difference(s, m)?,
            "neg" | "abs" | "not" | "brev" | "cnot" => self.lower_unary(s, m)?,
            "and" | "or" | "xor" => self.lower_logic(s, m)?,
            "shl" | "shr" => self.lower_shift(s, m)?,
            _ => return self.lower_bits(s, m),
        }
        Ok(true)
    }

    /// An integer type of 16 to 64 bits.
    pub(super) fn integer(&self, m: &mut Modifiers<'a>) -> Result<Type, PtxError> {
        let ty = m.ty()?;
        if !ty.is_integer() || ty.bits() < 16 {
            return m.error("it does not exist for this type");
        }
        Ok(ty)
    }

    pub(super) fn integer_op(
        &mut self,
        ty: Type,
        op: IntOp,
        [d, a, b]: [Slot; 3],
    ) -> Result<(), PtxError> {
        self.emit(match ty.bits() {
            64 => Op::Int64 { op, d, a, b },
            32 => Op::Int32 { op, d, a, b },
            _ => Op::Int16 { op, d, a, b },
        })
    }

    fn three(&mut self, s: &Statement<'a>, ty: Type) -> Result<[Slot; 3], PtxError> {
        let [d, a, b] = self.operands(s)?;
        Ok([self.destination(d, ty)?, self.source(a, ty)?, self.source(b, ty)?])
    }

    fn lower_sum(&mut self, s: &Statement<'a>, m: &mut Modifiers<'a>) -> Result<(), PtxError> {
        let carry_in = matches!(s.mnemonic, "addc" | "subc");
        let carry_out = m.take("cc");
        let saturate = m.take("sat");
        if let (Some(signed), false) = (pair_type(m), carry_in || carry_out || saturate) {
            return self.lower_pair(s, m, signed);
        }
        let ty = self.integer(m)?;
        let [d, a, b] = self.three(s, ty)?;
        let subtract = s.mnemonic.starts_with("sub");
        if carry_in || carry_out {
            if saturate {
                return m.error("a carry excludes saturation");
            }
            return self.sum_with_carry(m, ty, (subtract, carry_in, carry_out), [d, a, b]);
        }
        let op = match (subtract, saturate) {
            (_, true) if ty != Type::S32 => return m.error("'.sat' exists for .s32 only"),
            (false, true) => IntOp::AddSat,
            (true, true) => IntOp::SubSat,
            (false, false) => IntOp::Add,
            (true, false) => IntOp::Sub,
        };
        self.integer_op(ty, op, [d, a, b])
    }

    /// The carry flag is a predicate of its own. Without `.cc` it is only read.
    fn sum_with_carry(
        &mut self,
        m: &Modifiers<'a>,
        ty: Type,
        (subtract, carry_in, carry_out): (bool, bool, bool),
        [d, a, b]: [Slot; 3],
    ) -> Result<(), PtxError> {
        if ty.bits() < 32 {
            return m.error("a carry needs 32 or 64 bits");
        }
        let flag = self.temporary(Type::Pred, 7)?;
        let kept = self.temporary(Type::Pred, 6)?;
        if !carry_out {
            self.emit(Op::Pred { op: PredOp::Or, d: kept, a: flag, b: flag })?;
        }
        let flag = if carry_out { flag } else { kept };
        let wide = ty.bits() == 64;
        self.emit(Op::Carry { wide, subtract, carry_in, d, a, b, flag })
    }

    fn lower_product(&mut self, s: &Statement<'a>, m: &mut Modifiers<'a>) -> Result<(), PtxError> {
        let (low, high, wide) = (m.take("lo"), m.take("hi"), m.take("wide"));
        let ty = self.integer(m)?;
        let [d, a, b] = self.operands(s)?;
        let (a, b) = (self.source(a, ty)?, self.source(b, ty)?);
        match (low, high, wide) {
            (true, false, false) => {
                let d = self.destination(d, ty)?;
                self.integer_op(ty, IntOp::Mul, [d, a, b])
            }
            (false, true, false) => {
                let d = self.destination(d, ty)?;
                self.integer_op(ty, high_product(ty), [d, a, b])
            }
            (false, false, true) => {
                let signed = ty.is_signed();
                let d = self.destination(d, doubled(ty, m)?)?;
                self.emit(if ty.bits() == 32 {
                    Op::MulWide32 { signed, d, a, b }
                } else {
                    Op::MulWide16 { signed, d, a, b }
                })
            }
            _ => m.error("one of '.lo', '.hi' and '.wide' is needed"),
        }
    }

    fn lower_multiply_add(
        &mut self,
        s: &Statement<'a>,
        m: &mut Modifiers<'a>,
    ) -> Result<(), PtxError> {
        let (low, high, wide) = (m.take("lo"), m.take("hi"), m.take("wide"));
        let (carry_in, carry_out) = (s.mnemonic == "madc", m.take("cc"));
        let saturate = m.take("sat");
        let ty = self.integer(m)?;
        if saturate && (!high || ty != Type::S32) {
            return m.error("'.sat' exists for .hi.s32 only");
        }
        if (carry_in || carry_out) && (wide || saturate) {
            return m.error("a carry exists for '.lo' and '.hi' without clamp only");
        }
        let [d, a, b, c] = self.operands(s)?;
        let (a, b) = (self.source(a, ty)?, self.source(b, ty)?);
        if wide {
            let result = doubled(ty, m)?;
            let (d, c) = (self.destination(d, result)?, self.source(c, result)?);
            let signed = ty.is_signed();
            if ty.bits() == 32 {
                return self.emit(Op::MadWide32 { signed, d, a, b, c });
            }
            let t = self.temporary(result, 0)?;
            self.emit(Op::MulWide16 { signed, d: t, a, b })?;
            return self.integer_op(result, IntOp::Add, [d, t, c]);
        }
        let (d, c) = (self.destination(d, ty)?, self.source(c, ty)?);
        let product = match (low, high) {
            (true, false) if ty.bits() == 32 && !carry_in && !carry_out => {
                return self.emit(Op::Mad32 { d, a, b, c });
            }
            (true, false) => IntOp::Mul,
            (false, true) => high_product(ty),
            _ => return m.error("one of '.lo', '.hi' and '.wide' is needed"),
        };
        let t = self.temporary(ty, 0)?;
        self.integer_op(ty, product, [t, a, b])?;
        if carry_in || carry_out {
            return self.sum_with_carry(m, ty, (false, carry_in, carry_out), [d, t, c]);
        }
        self.integer_op(ty, if saturate { IntOp::AddSat } else { IntOp::Add }, [d, t, c])
    }

    fn lower_24(&mut self, s: &Statement<'a>, m: &mut Modifiers<'a>) -> Result<(), PtxError> {
        let shift = match (m.take("lo"), m.take("hi")) {
            (true, false) => 0,
            (false, true) => 16,
            _ => return m.error("one of '.lo' and '.hi' is needed"),
        };
        let ty = self.integer(m)?;
        if ty.bits() != 32 {
            return m.error("it exists for 32 bits only");
        }
        let signed = ty.is_signed();
        if s.mnemonic == "mul24" {
            let [d, a, b] = self.three(s, ty)?;
            return self.emit(Op::Mul24 { signed, shift, d, a, b });
        }
        let [d, a, b, c] = self.operands(s)?;
        let (a, b, c) = (self.source(a, ty)?, self.source(b, ty)?, self.source(c, ty)?);
        let t = self.temporary(ty, 0)?;
        let d = self.destination(d, ty)?;
        self.emit(Op::Mul24 { signed, shift, d: t, a, b })?;
        self.integer_op(ty, IntOp::Add, [d, t, c])
    }

    fn lower_signed_pair(
        &mut self,
        s: &Statement<'a>,
        m: &mut Modifiers<'a>,
    ) -> Result<(), PtxError> {
        let relu = m.take("relu");
        if let Some(signed) = pair_type(m) {
            return self.lower_pair(s, m, signed);
        }
        let ty = self.integer(m)?;
        let op = match (s.mnemonic, ty.is_signed()) {
            ("div", true) => IntOp::DivS,
            ("div", false) => IntOp::DivU,
            ("rem", true) => IntOp::RemS,
            ("rem", false) => IntOp::RemU,
            ("min", true) => IntOp::MinS,
            ("min", false) => IntOp::MinU,
            ("max", true) => IntOp::MaxS,
            _ => IntOp::MaxU,
        };
        let slots = self.three(s, ty)?;
        if relu && (ty != Type::S32 || !matches!(op, IntOp::MinS | IntOp::MaxS)) {
            return m.error("'.relu' exists for least and most of .s32 only");
        }
        self.integer_op(ty, op, slots)?;
        if relu {
            let zero = self.constant(0, ty)?.slot;
            self.integer_op(ty, IntOp::MaxS, [slots[0], slots[0], zero])?;
        }
        Ok(())
    }

    /// Two numbers of 16 bits at once.
    fn lower_pair(
        &mut self,
        s: &Statement<'a>,
        m: &Modifiers<'a>,
        signed: bool,
    ) -> Result<(), PtxError> {
        let op = match (s.mnemonic, signed) {
            ("add", _) => IntOp::Add,
            ("min", true) => IntOp::MinS,
            ("min", false) => IntOp::MinU,
            ("max", true) => IntOp::MaxS,
            ("max", false) => IntOp::MaxU,
            _ => return m.error("it does not exist for this type"),
        };
        let [d, a, b] = self.three(s, Type::B32)?;
        self.emit(Op::IntPair { op, d, a, b })
    }

    /// `sad`: c + |a - b|, as max - min.
    fn lower_sum_of_difference(
        &mut self,
        s: &Statement<'a>,
        m: &mut Modifiers<'a>,
    ) -> Result<(), PtxError> {
        let ty = self.integer(m)?;
        let [d, a, b, c] = self.operands(s)?;
        let (a, b, c) = (self.source(a, ty)?, self.source(b, ty)?, self.source(c, ty)?);
        let d = self.destination(d, ty)?;
        let (max, min) = (self.temporary(ty, 0)?, self.temporary(ty, 1)?);
        let signed = ty.is_signed();
        self.integer_op(ty, if signed { IntOp::MaxS } else { IntOp::MaxU }, [max, a, b])?;
        self.integer_op(ty, if signed { IntOp::MinS } else { IntOp::MinU }, [min, a, b])?;
        self.integer_op(ty, IntOp::Sub, [max, max, min])?;
        self.integer_op(ty, IntOp::Add, [d, max, c])
    }

    fn lower_unary(&mut self, s: &Statement<'a>, m: &mut Modifiers<'a>) -> Result<(), PtxError> {
        let ty = m.ty()?;
        let [d, a] = self.operands(s)?;
        if s.mnemonic == "not" && ty == Type::Pred {
            let (d, a) = (self.predicate_destination(d)?, self.predicate_source(a, 0)?);
            return self.emit(Op::PredNot { d, a });
        }
        let op = match s.mnemonic {
            "neg" if ty.is_signed() => IntUnary::Neg,
            "abs" if ty.is_signed() => IntUnary::Abs,
            "not" if ty.is_untyped() => IntUnary::Not,
            "brev" if ty.is_untyped() && ty.bits() >= 32 => IntUnary::Reverse,
            "cnot" if ty.is_untyped() && ty.bits() >= 16 => return self.lower_cnot(ty, d, a),
            _ => return m.error("it does not exist for this type"),
        };
        if ty.bits() < 16 {
            return m.error("it does not exist for this type");
        }
        let (d, a) = (self.destination(d, ty)?, self.source(a, ty)?);
        self.emit(match ty.bits() {
            64 => Op::Unary64 { op, d, a },
            32 => Op::Unary32 { op, d, a },
            _ => Op::Unary16 { op, d, a },
        })
    }

    /// `cnot`: 1 where the value is 0, else 0.
    fn lower_cnot(&mut self, ty: Type, d: &Operand<'a>, a: &Operand<'a>) -> Result<(), PtxError> {
        let (d, a) = (self.destination(d, ty)?, self.source(a, ty)?);
        let p = self.temporary(Type::Pred, 0)?;
        let (zero, one) = (self.constant(0, ty)?.slot, self.constant(1, ty)?.slot);
        let compare = crate::ir::Compare::Eq;
        if ty.bits() == 64 {
            self.emit(Op::Compare64 { compare, signed: false, d: p, a, b: zero })?;
            return self.emit(Op::Select64 { d, a: one, b: zero, p });
        }
        self.emit(Op::Compare32 { compare, signed: false, d: p, a, b: zero })?;
        self.emit(Op::Select32 { d, a: one, b: zero, p })
    }

    fn lower_logic(&mut self, s: &Statement<'a>, m: &mut Modifiers<'a>) -> Result<(), PtxError> {
        let ty = m.ty()?;
        let (op, pred) = match s.mnemonic {
            "and" => (IntOp::And, PredOp::And),
            "or" => (IntOp::Or, PredOp::Or),
            _ => (IntOp::Xor, PredOp::Xor),
        };
        if ty == Type::Pred {
            let [d, a, b] = self.operands(s)?;
            let (a, b) = (self.predicate_source(a, 0)?, self.predicate_source(b, 1)?);
            let d = self.predicate_destination(d)?;
            return self.emit(Op::Pred { op: pred, d, a, b });
        }
        if !ty.is_untyped() || ty.bits() < 16 {
            return m.error("it does not exist for this type");
        }
        let slots = self.three(s, ty)?;
        self.integer_op(ty, op, slots)
    }

    fn lower_shift(&mut self, s: &Statement<'a>, m: &mut Modifiers<'a>) -> Result<(), PtxError> {
        let ty = m.ty()?;
        let op = match s.mnemonic {
            "shl" if ty.is_untyped() => ShiftOp::Left,
            "shr" if ty.is_signed() => ShiftOp::RightS,
            "shr" => ShiftOp::RightU,
            _ => return m.error("it does not exist for this type"),
        };
        let [d, a, b] = self.operands(s)?;
        let (d, a) = (self.destination(d, ty)?, self.source(a, ty)?);
        let b = self.source(b, Type::U32)?;
        self.emit(match ty.bits() {
            64 => Op::Shift64 { op, d, a, b },
            32 => Op::Shift32 { op, d, a, b },
            16 => Op::Shift16 { op, d, a, b },
            _ => return m.error("it does not exist for this type"),
        })
    }
}

/// Whether the type is one of pairs, and if so, of signed numbers.
fn pair_type(m: &mut Modifiers<'_>) -> Option<bool> {
    m.find(|name| match name {
        "s16x2" => Some(true),
        "u16x2" => Some(false),
        _ => None,
    })
}

fn high_product(ty: Type) -> IntOp {
    if ty.is_signed() { IntOp::MulHiS } else { IntOp::MulHiU }
}

fn doubled(ty: Type, m: &Modifiers<'_>) -> Result<Type, PtxError> {
    match ty {
        Type::U16 => Ok(Type::U32),
        Type::S16 => Ok(Type::S32),
        Type::U32 => Ok(Type::U64),
        Type::S32 => Ok(Type::S64),
        _ => m.error("'.wide' exists for 16 and 32 bits only"),
    }
}
