//! `mov`, packing and unpacking, address conversions.

use super::FunctionBuilder;
use super::modifiers::Modifiers;
use super::scope::Register;
use crate::exec::windows;
use crate::ir::{Compare, IntOp, Op, Preset64, ShiftOp, Slot, SpecialClock, Type};
use crate::parse::{Operand, PtxError, Statement};

impl<'a> FunctionBuilder<'_, 'a> {
    pub(super) fn lower_move(
        &mut self,
        s: &Statement<'a>,
        m: &mut Modifiers<'a>,
    ) -> Result<bool, PtxError> {
        match s.mnemonic {
            "mov" => self.lower_mov(s, m)?,
            "cvta" => self.lower_cvta(s, m)?,
            "isspacep" => self.lower_isspacep(s, m)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn emit_move(&mut self, ty: Type, d: Slot, a: Slot) -> Result<(), PtxError> {
        self.emit(if ty.bits() == 64 { Op::Move64 { d, a } } else { Op::Move32 { d, a } })
    }

    fn lower_mov(&mut self, s: &Statement<'a>, m: &mut Modifiers<'a>) -> Result<(), PtxError> {
        if m.take("b128") {
            return self.lower_wide_mov(s, m);
        }
        let ty = m.ty()?;
        let [d, a] = self.operands(s)?;
        if ty == Type::Pred {
            let (d, a) = (self.predicate_destination(d)?, self.predicate_source(a, 0)?);
            return self.emit(Op::Pred { op: crate::ir::PredOp::Or, d, a, b: a });
        }
        if ty.bits() < 16 {
            return m.error("it does not exist for this type");
        }
        match (d, a) {
            (Operand::Vector(parts), a) if ty.is_untyped() => {
                let a = self.source(a, ty)?;
                self.unpack(m, ty, parts, a)
            }
            (d, Operand::Vector(parts)) if ty.is_untyped() => {
                let d = self.destination(d, ty)?;
                self.pack(m, ty, d, parts)
            }
            (d, Operand::Name { name, part: None, offset: 0, .. }) if clock(name, ty).is_some() => {
                let d = self.destination(d, ty)?;
                match clock(name, ty) {
                    Some(clock) => self.emit(Op::Clock { clock, d }),
                    None => Ok(()),
                }
            }
            (d, a) => {
                let (d, a) = (self.destination(d, ty)?, self.source(a, ty)?);
                self.emit_move(ty, d, a)
            }
        }
    }

    /// A register of 128 bits lies in two slots, the lower half first.
    fn lower_wide_mov(&mut self, s: &Statement<'a>, m: &Modifiers<'a>) -> Result<(), PtxError> {
        let (d, a) = match self.operands(s)? {
            [Operand::Vector(parts), a] => {
                let [low, high] = parts.as_slice() else {
                    return m.error("it has two parts");
                };
                let a = self.source(a, Type::B128)?;
                let low = self.destination(low, Type::B64)?;
                let high = self.destination(high, Type::B64)?;
                ([low, high], [a, a + 1])
            }
            [d, Operand::Vector(parts)] => {
                let [low, high] = parts.as_slice() else {
                    return m.error("it has two parts");
                };
                let d = self.destination(d, Type::B128)?;
                let (low, high) = (self.source(low, Type::B64)?, self.source(high, Type::B64)?);
                ([d, d + 1], [low, high])
            }
            [d, a] => {
                let (d, a) = (self.destination(d, Type::B128)?, self.source(a, Type::B128)?);
                ([d, d + 1], [a, a + 1])
            }
        };
        self.emit(Op::Move64 { d: d[0], a: a[0] })?;
        self.emit(Op::Move64 { d: d[1], a: a[1] })
    }

    fn pack(
        &mut self,
        m: &Modifiers<'a>,
        ty: Type,
        d: Slot,
        parts: &[Operand<'a>],
    ) -> Result<(), PtxError> {
        match (ty.bits(), parts) {
            (32, [a, b]) => {
                let (a, b) = (self.source(a, Type::B16)?, self.source(b, Type::B16)?);
                self.emit(Op::Join16 { d, a, b })
            }
            (64, [a, b]) => {
                let (a, b) = (self.source(a, Type::B32)?, self.source(b, Type::B32)?);
                self.emit(Op::Join32 { d, a, b })
            }
            (64, [a, b, c, e]) => {
                let (low, high) = (self.temporary(Type::B32, 0)?, self.temporary(Type::B32, 1)?);
                let (a, b) = (self.source(a, Type::B16)?, self.source(b, Type::B16)?);
                self.emit(Op::Join16 { d: low, a, b })?;
                let (a, b) = (self.source(c, Type::B16)?, self.source(e, Type::B16)?);
                self.emit(Op::Join16 { d: high, a, b })?;
                self.emit(Op::Join32 { d, a: low, b: high })
            }
            _ => m.error("a vector of this length does not fit the type"),
        }
    }

    fn unpack(
        &mut self,
        m: &Modifiers<'a>,
        ty: Type,
        parts: &[Operand<'a>],
        a: Slot,
    ) -> Result<(), PtxError> {
        match (ty.bits(), parts) {
            (32, [low, high]) => {
                let low = self.destination(low, Type::B16)?;
                let high = self.destination(high, Type::B16)?;
                self.emit(Op::Half16 { high: false, d: low, a })?;
                self.emit(Op::Half16 { high: true, d: high, a })
            }
            (64, [low, high]) => {
                let low = self.destination(low, Type::B32)?;
                let high = self.destination(high, Type::B32)?;
                self.emit(Op::Half32 { high: false, d: low, a })?;
                self.emit(Op::Half32 { high: true, d: high, a })
            }
            (64, [_, _, _, _]) => {
                let t = self.temporary(Type::B32, 0)?;
                for (index, part) in parts.iter().enumerate() {
                    let d = self.destination(part, Type::B16)?;
                    self.emit(Op::Half32 { high: index >= 2, d: t, a })?;
                    self.emit(Op::Half16 { high: index % 2 == 1, d, a: t })?;
                }
                Ok(())
            }
            _ => m.error("a vector of this length does not fit the type"),
        }
    }

    /// Generic addresses of shared, local and parameter memory lie in windows;
    /// those of global and constant memory are the addresses themselves.
    fn lower_cvta(&mut self, s: &Statement<'a>, m: &mut Modifiers<'a>) -> Result<(), PtxError> {
        let to = m.take("to");
        let Some(window) = m.find(window) else {
            return m.error("the state space is not supported");
        };
        if m.ty()? != Type::U64 {
            return m.error("it is supported for .u64 only");
        }
        let [d, a] = self.operands(s)?;
        let (d, a) = (self.destination(d, Type::U64)?, self.source(a, Type::U64)?);
        if window == 0 {
            return self.emit(Op::Move64 { d, a });
        }
        let b = self.preset64(Preset64::Bits(window))?;
        let op = if to { IntOp::Sub } else { IntOp::Add };
        self.emit(Op::Int64 { op, d, a, b })
    }

    fn lower_isspacep(&mut self, s: &Statement<'a>, m: &mut Modifiers<'a>) -> Result<(), PtxError> {
        let window = m.find(|name| if name == "const" { None } else { window(name) });
        let Some(window) = window else { return m.error("the state space is not supported") };
        let [d, a] = self.operands(s)?;
        let (d, a) = (self.predicate_destination(d)?, self.source(a, Type::U64)?);
        let t = self.temporary(Type::U64, 0)?;
        let Register { slot: shift, .. } = self.constant(u64::from(windows::SHIFT), Type::U32)?;
        let Register { slot: b, .. } = self.constant(window >> windows::SHIFT, Type::U64)?;
        self.emit(Op::Shift64 { op: ShiftOp::RightU, d: t, a, b: shift })?;
        self.emit(Op::Compare64 { compare: Compare::Eq, signed: false, d, a: t, b })
    }
}

fn window(space: &str) -> Option<u64> {
    Some(match space {
        "global" | "const" => 0,
        "shared" | "shared::cta" | "shared::cluster" => windows::SHARED,
        "local" => windows::LOCAL,
        "param" | "param::entry" => windows::PARAM,
        _ => return None,
    })
}

fn clock(name: &str, ty: Type) -> Option<SpecialClock> {
    match (name, ty.bits()) {
        ("%clock", 32) => Some(SpecialClock::Clock),
        ("%clock_hi", 32) => Some(SpecialClock::ClockHigh),
        ("%clock64", 64) => Some(SpecialClock::Clock64),
        ("%globaltimer", 64) => Some(SpecialClock::GlobalTimer),
        ("%globaltimer_lo", 32) => Some(SpecialClock::GlobalTimerLow),
        ("%globaltimer_hi", 32) => Some(SpecialClock::GlobalTimerHigh),
        _ => None,
    }
}
