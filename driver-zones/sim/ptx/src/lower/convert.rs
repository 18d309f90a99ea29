//! `cvt`.

use super::FunctionBuilder;
use super::modifiers::Modifiers;
use super::scope::Register;
use crate::ir::{Conversion, FloatMode, FloatOp, IntOp, Op, Round, ShiftOp, Slot, Type};
use crate::parse::{Operand, PtxError, Statement};

/// What a conversion's modifiers say.
#[derive(Clone, Copy)]
struct Wanted {
    integral: Option<Round>,
    rounding: Option<Round>,
    ftz: bool,
    sat: bool,
    relu: bool,
    finite: bool,
}

impl Wanted {
    fn mode(self) -> FloatMode {
        let round = self.integral.or(self.rounding).unwrap_or(Round::Nearest);
        FloatMode { round, ftz: self.ftz, sat: self.sat }
    }

    fn conversion(self, to: Type, from: Type, register_bits: u32) -> Conversion {
        Conversion {
            to,
            from,
            mode: self.mode(),
            integral: self.integral.is_some(),
            relu: self.relu,
            finite: self.finite,
            register_bits: u8::try_from(register_bits).unwrap_or(64),
        }
    }
}

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
        let mut rounding = m.round();
        if m.take("rna") {
            rounding = Some(Round::NearestAway);
        }
        let (ftz, sat) = (m.take("ftz"), m.take("sat"));
        let (relu, finite) = (m.take("relu"), m.take("satfinite"));
        let wanted = Wanted { integral, rounding, ftz, sat, relu, finite };
        if let Some(ty) = m.find(|name| (name == "tf32").then_some(Type::TF32)) {
            return self.convert_tensor(s, m, ty, wanted).map(|()| true);
        }
        let bytes = m.find(|name| match name {
            "e4m3x2" => Some(Type::E4M3),
            "e5m2x2" => Some(Type::E5M2),
            _ => None,
        });
        if let Some(ty) = bytes {
            return self.convert_bytes(s, m, ty, wanted).map(|()| true);
        }
        let (to, from) = (m.ty()?, m.ty()?);
        if to.is_pair() {
            return self.convert_pair(s, m, [to, from], wanted).map(|()| true);
        }
        let unsupported = |ty: Type| ty == Type::Pred || ty.is_untyped() || ty.is_pair();
        if unsupported(to) || unsupported(from) {
            return m.error("it does not exist for these types");
        }
        check_rounding(m, [to, from], wanted)?;
        let [d, a] = self.operands(s)?;
        let a = self.source_register(a, from, true)?;
        let d = self.destination_register(d, to, true)?;
        self.convert_one([to, from], wanted, d, a)?;
        Ok(true)
    }

    fn convert_one(
        &mut self,
        [to, from]: [Type; 2],
        wanted: Wanted,
        d: Register,
        a: Register,
    ) -> Result<(), PtxError> {
        let mode = wanted.mode();
        let whole = d.ty.bits() == to.bits() && a.ty.bits() == from.bits();
        let (to_slot, from_slot) = (d.slot, a.slot);
        let op = match (to, from) {
            // Multiplying by one flushes and clamps as the conversion does.
            (Type::F32, Type::F32) if wanted.integral.is_none() => {
                let b = self.constant(u64::from(1.0_f32.to_bits()), Type::B32)?.slot;
                Some(Op::F32 { op: FloatOp::Mul, mode, d: to_slot, a: from_slot, b })
            }
            (Type::F32, Type::S32 | Type::U32) if !mode.sat && mode.round == Round::Nearest => {
                Some(Op::S32ToF32 { signed: from.is_signed(), d: to_slot, a: from_slot })
            }
            (Type::U64 | Type::S64, Type::U32 | Type::S32) if !mode.sat => {
                Some(Op::Widen { signed: from.is_signed(), d: to_slot, a: from_slot })
            }
            (Type::U32 | Type::S32, Type::U64 | Type::S64) if !mode.sat => {
                Some(Op::Half32 { high: false, d: to_slot, a: from_slot })
            }
            _ => None,
        };
        if let (Some(op), true) = (op, whole) {
            return self.emit(op);
        }
        let (wide_d, wide_a) = (d.ty.bits() == 64, a.ty.bits() == 64);
        self.conversion(
            wanted.conversion(to, from, d.ty.bits()),
            [to_slot, from_slot],
            [wide_d, wide_a],
        )
    }

    pub(super) fn conversion(
        &mut self,
        conversion: Conversion,
        [d, a]: [Slot; 2],
        [wide_d, wide_a]: [bool; 2],
    ) -> Result<(), PtxError> {
        let index = u32::try_from(self.code.conversions.len()).unwrap_or(u32::MAX);
        self.code.conversions.push(conversion);
        self.emit(Op::Convert { conversion: index, d, a, wide_d, wide_a })
    }

    /// `cvt.rna.tf32.f32`.
    fn convert_tensor(
        &mut self,
        s: &Statement<'a>,
        m: &mut Modifiers<'a>,
        to: Type,
        wanted: Wanted,
    ) -> Result<(), PtxError> {
        if m.ty()? != Type::F32 || wanted.rounding.is_none() || wanted.integral.is_some() {
            return m.error("it exists from .f32 only, with a rounding");
        }
        let [d, a] = self.operands(s)?;
        let (d, a) = (self.destination(d, Type::B32)?, self.source(a, Type::F32)?);
        self.conversion(wanted.conversion(to, Type::F32, 32), [d, a], [false; 2])
    }

    /// `cvt.rn.f16x2.f32 d, a, b`: `a` becomes the high half.
    fn convert_pair(
        &mut self,
        s: &Statement<'a>,
        m: &mut Modifiers<'a>,
        [to, from]: [Type; 2],
        wanted: Wanted,
    ) -> Result<(), PtxError> {
        let directed = matches!(wanted.rounding, Some(Round::Nearest | Round::Zero));
        if from != Type::F32 || !directed || wanted.integral.is_some() || wanted.sat {
            return m.error("it exists from two .f32 only, with '.rn' or '.rz'");
        }
        let [d, high, low] = self.operands(s)?;
        let parts = [self.source(low, from)?, self.source(high, from)?];
        let d = self.destination(d, to)?;
        let halves = self.convert_parts(wanted, to.half(), from, parts)?;
        self.emit(Op::Join16 { d, a: halves[0], b: halves[1] })
    }

    fn convert_parts(
        &mut self,
        wanted: Wanted,
        to: Type,
        from: Type,
        parts: [Slot; 2],
    ) -> Result<[Slot; 2], PtxError> {
        let mut results = [0; 2];
        for (number, (result, part)) in (0_u8..).zip(results.iter_mut().zip(parts)) {
            *result = self.temporary(Type::B32, number)?;
            self.conversion(wanted.conversion(to, from, 32), [*result, part], [false; 2])?;
        }
        Ok(results)
    }

    /// Pairs of numbers of 8 bits, from two singles or a pair of halves, or back to these.
    fn convert_bytes(
        &mut self,
        s: &Statement<'a>,
        m: &mut Modifiers<'a>,
        ty: Type,
        wanted: Wanted,
    ) -> Result<(), PtxError> {
        let other = m.ty()?;
        let nearest = wanted.rounding == Some(Round::Nearest);
        if !nearest || wanted.integral.is_some() || wanted.sat || wanted.ftz {
            return m.error("its rounding does not fit the types");
        }
        match (other, s.operands.as_slice()) {
            (Type::F32, [d, high, low]) if wanted.finite => {
                let parts = [self.source(low, other)?, self.source(high, other)?];
                self.join_bytes(d, wanted, [ty, other], parts)
            }
            // Which of the two types came first is told by the operands' sizes.
            (Type::F16x2, [d, a]) if wanted.finite => {
                let pair = self.source(a, Type::B32)?;
                let parts = [self.temporary(Type::B32, 2)?, self.temporary(Type::B32, 3)?];
                self.emit(Op::Half16 { high: false, d: parts[0], a: pair })?;
                self.emit(Op::Half16 { high: true, d: parts[1], a: pair })?;
                self.join_bytes(d, wanted, [ty, Type::F16], parts)
            }
            (Type::F16x2, [d, a]) => {
                let (pair, d) = (self.source(a, Type::B16)?, self.destination(d, Type::B32)?);
                let high = self.temporary(Type::B32, 2)?;
                let by = self.constant(8, Type::U32)?.slot;
                self.emit(Op::Shift32 { op: ShiftOp::RightU, d: high, a: pair, b: by })?;
                let halves = self.convert_parts(wanted, Type::F16, ty, [pair, high])?;
                self.emit(Op::Join16 { d, a: halves[0], b: halves[1] })
            }
            _ => m.error("it is not supported for these types and operands"),
        }
    }

    fn join_bytes(
        &mut self,
        d: &Operand<'a>,
        wanted: Wanted,
        [to, from]: [Type; 2],
        parts: [Slot; 2],
    ) -> Result<(), PtxError> {
        let d = self.destination(d, Type::B16)?;
        let [low, high] = self.convert_parts(wanted, to, from, parts)?;
        let by = self.constant(8, Type::U32)?.slot;
        self.emit(Op::Shift32 { op: ShiftOp::Left, d: high, a: high, b: by })?;
        self.emit(Op::Int32 { op: IntOp::Or, d, a: low, b: high })
    }
}

fn check_rounding(
    m: &Modifiers<'_>,
    [to, from]: [Type; 2],
    wanted: Wanted,
) -> Result<(), PtxError> {
    let (integral, float) = (wanted.integral.is_some(), wanted.rounding.is_some());
    let away = wanted.rounding == Some(Round::NearestAway);
    // Neither half format holds the other's numbers.
    let between = to.is_half() && from.is_half() && to != from;
    let narrowing = to.is_float() && from.is_float() && (to.bits() < from.bits() || between);
    let from_integer = to.is_float() && !from.is_float();
    let to_integer = !to.is_float() && from.is_float();
    let same = to.is_float() && to == from;
    let clamp = (wanted.relu || wanted.finite) && !(narrowing && to.is_half());
    let valid = if narrowing || from_integer {
        float && !integral
    } else if to_integer {
        integral && !float
    } else if same {
        !float
    } else {
        !float && !integral
    };
    if valid && !away && !clamp { Ok(()) } else { m.error("its rounding does not fit the types") }
}
