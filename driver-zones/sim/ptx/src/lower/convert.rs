//! `cvt`.

use super::FunctionBuilder;
use super::modifiers::Modifiers;
use crate::ir::{Conversion, FloatMode, FloatOp, Op, Round, Type};
use crate::parse::{PtxError, Statement};

impl<'a> FunctionBuilder<'_, 'a> {
    pub(super) fn lower_convert(
        &mut self,
        s: &Statement<'a>,
        m: &mut Modifiers<'a>,
    ) -> Result<bool, PtxError> {
        if s.mnemonic != "cvt" {
            return Ok(false);
        }
        let integral = m.find(|modifier| match modifier {
            "rni" => Some(Round::Nearest),
            "rzi" => Some(Round::Zero),
            "rmi" => Some(Round::Down),
            "rpi" => Some(Round::Up),
            _ => None,
        });
        let rounding = m.round();
        let (ftz, sat) = (m.take("ftz"), m.take("sat"));
        let (to, from) = (m.ty()?, m.ty()?);
        let unsupported = |ty: Type| ty == Type::Pred || ty.is_untyped();
        if unsupported(to) || unsupported(from) {
            return m.error("it does not exist for these types");
        }
        self.check_rounding(m, [to, from], integral.is_some(), rounding.is_some())?;
        let round = integral.or(rounding).unwrap_or(Round::Nearest);
        let mode = FloatMode { round, ftz, sat };
        let [d, a] = self.operands(s)?;
        let a = self.source_register(a, from, true)?;
        let d = self.destination_register(d, to, true)?;
        let (wide_d, wide_a) = (d.ty.bits() == 64, a.ty.bits() == 64);
        let whole = d.ty.bits() == to.bits() && a.ty.bits() == from.bits();
        let (to_slot, from_slot) = (d.slot, a.slot);
        let op = match (to, from) {
            // Multiplying by one flushes and clamps as the conversion does.
            (Type::F32, Type::F32) if integral.is_none() => {
                let b = self.constant(u64::from(1.0_f32.to_bits()), Type::B32)?.slot;
                Some(Op::F32 { op: FloatOp::Mul, mode, d: to_slot, a: from_slot, b })
            }
            (Type::F32, Type::S32 | Type::U32) if !sat && round == Round::Nearest => {
                Some(Op::S32ToF32 { signed: from.is_signed(), d: to_slot, a: from_slot })
            }
            (Type::U64 | Type::S64, Type::U32 | Type::S32) if !sat => {
                Some(Op::Widen { signed: from.is_signed(), d: to_slot, a: from_slot })
            }
            (Type::U32 | Type::S32, Type::U64 | Type::S64) if !sat => {
                Some(Op::Half32 { high: false, d: to_slot, a: from_slot })
            }
            _ => None,
        };
        if let (Some(op), true) = (op, whole) {
            self.emit(op)?;
            return Ok(true);
        }
        let register_bits = u8::try_from(d.ty.bits()).unwrap_or(64);
        let conversion = u32::try_from(self.code.conversions.len()).unwrap_or(u32::MAX);
        self.code.conversions.push(Conversion {
            to,
            from,
            mode,
            integral: integral.is_some(),
            register_bits,
        });
        self.emit(Op::Convert { conversion, d: to_slot, a: from_slot, wide_d, wide_a })?;
        Ok(true)
    }

    fn check_rounding(
        &self,
        m: &Modifiers<'a>,
        [to, from]: [Type; 2],
        integral: bool,
        float: bool,
    ) -> Result<(), PtxError> {
        let narrowing = to.is_float() && from.is_float() && to.bits() < from.bits();
        let from_integer = to.is_float() && !from.is_float();
        let to_integer = !to.is_float() && from.is_float();
        let same = to.is_float() && to == from;
        let valid = if narrowing || from_integer {
            float && !integral
        } else if to_integer {
            integral && !float
        } else if same {
            !float
        } else {
            !float && !integral
        };
        if valid { Ok(()) } else { m.error("its rounding does not fit the types") }
    }
}
