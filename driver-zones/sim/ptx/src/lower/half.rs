//! Arithmetic on numbers of 16 bits.

use super::FunctionBuilder;
use super::modifiers::Modifiers;
use crate::ir::{HalfMode, HalfOp, Op, Round, Slot, Type};
use crate::parse::{Operand, PtxError, Statement};

impl<'a> FunctionBuilder<'_, 'a> {
    pub(super) fn lower_half(
        &mut self,
        s: &Statement<'a>,
        m: &mut Modifiers<'a>,
    ) -> Result<bool, PtxError> {
        if !m.last_type().is_some_and(Type::is_half) {
            return Ok(false);
        }
        let nan = m.take("NaN");
        let op = match (s.mnemonic, nan) {
            ("add", false) => HalfOp::Add,
            ("sub", false) => HalfOp::Sub,
            ("mul", false) => HalfOp::Mul,
            ("fma", false) => HalfOp::Fma,
            ("min", false) => HalfOp::Min,
            ("min", true) => HalfOp::MinNan,
            ("max", false) => HalfOp::Max,
            ("max", true) => HalfOp::MaxNan,
            ("neg", false) => HalfOp::Neg,
            ("abs", false) => HalfOp::Abs,
            ("ex2", false) if m.take("approx") => HalfOp::Exp2,
            ("tanh", false) if m.take("approx") => HalfOp::Tanh,
            (_, true) => return m.error("it is not supported for this type"),
            _ => return Ok(false),
        };
        if !matches!(m.round(), None | Some(Round::Nearest)) {
            return m.error("numbers of 16 bits are rounded to nearest only");
        }
        let (sat, relu) = (m.take("sat"), m.take("relu"));
        let arithmetic = matches!(op, HalfOp::Add | HalfOp::Sub | HalfOp::Mul | HalfOp::Fma);
        if (sat && !arithmetic) || (relu && op != HalfOp::Fma) || (sat && relu) {
            return m.error("this clamp does not exist for it");
        }
        let ftz = m.take("ftz");
        let ty = m.ty()?;
        let mode = half_mode(ty)
            .with(HalfMode::FTZ, ftz)
            .with(HalfMode::SAT, sat)
            .with(HalfMode::RELU, relu);
        let [d, a, b, c] = match s.operands.as_slice() {
            [d, a, b, c] if op == HalfOp::Fma => self.half_slots(ty, [d, a, b, c])?,
            [d, a] if is_single(op) => self.half_slots(ty, [d, a, a, a])?,
            [d, a, b] if op != HalfOp::Fma && !is_single(op) => {
                self.half_slots(ty, [d, a, b, b])?
            }
            _ => return m.error("it has another number of operands"),
        };
        self.emit(Op::Half { op, mode, d, a, b, c })?;
        Ok(true)
    }

    fn half_slots(
        &mut self,
        ty: Type,
        [d, a, b, c]: [&Operand<'a>; 4],
    ) -> Result<[Slot; 4], PtxError> {
        let (a, b, c) = (self.source(a, ty)?, self.source(b, ty)?, self.source(c, ty)?);
        Ok([self.destination(d, ty)?, a, b, c])
    }
}

fn is_single(op: HalfOp) -> bool {
    matches!(op, HalfOp::Neg | HalfOp::Abs | HalfOp::Exp2 | HalfOp::Tanh)
}

/// The format, and how many of it.
pub(super) fn half_mode(ty: Type) -> HalfMode {
    HalfMode::default()
        .with(HalfMode::BRAIN, ty.half() == Type::BF16)
        .with(HalfMode::PAIR, ty.is_pair())
}
