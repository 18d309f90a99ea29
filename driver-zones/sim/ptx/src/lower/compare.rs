//! Comparisons and selections.

use super::FunctionBuilder;
use super::modifiers::Modifiers;
use crate::ir::{
    Compare, Conversion, FloatCompare, FloatMode, HalfMode, HalfOp, Op, PredOp, Slot, Type,
};
use crate::parse::{PtxError, Statement};

impl<'a> FunctionBuilder<'_, 'a> {
    pub(super) fn lower_compare(
        &mut self,
        s: &Statement<'a>,
        m: &mut Modifiers<'a>,
    ) -> Result<bool, PtxError> {
        match s.mnemonic {
            "setp" => self.lower_setp(s, m)?,
            "set" => self.lower_set(s, m)?,
            "selp" => self.lower_selp(s, m)?,
            "slct" => self.lower_slct(s, m)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn lower_setp(&mut self, s: &Statement<'a>, m: &mut Modifiers<'a>) -> Result<(), PtxError> {
        let name = m.find(comparison_name);
        let combine = m.find(pred_op);
        let ftz = m.take("ftz");
        let ty = m.ty()?;
        let wanted = if combine.is_some() { 4 } else { 3 };
        if s.operands.len() != wanted {
            return m.error(format_args!("it takes {wanted} operands"));
        }
        if ty.is_pair() {
            return self.setp_pair(s, m, (name, combine, ftz), ty);
        }
        let p = self.predicate_destination(&s.operands[0])?;
        let q = match &s.second {
            Some(second) => Some(self.predicate_destination(second)?),
            None => None,
        };
        let (a, b) = (self.source(&s.operands[1], ty)?, self.source(&s.operands[2], ty)?);
        if combine.is_none() && q.is_none() {
            return self.emit_compare(m, name, ty, ftz, [p, a, b]);
        }
        // Into temporaries first: a result may be the guard, or the third operand.
        let (t, u) = (self.temporary(Type::Pred, 2)?, self.temporary(Type::Pred, 3)?);
        self.emit_compare(m, name, ty, ftz, [t, a, b])?;
        self.emit(Op::PredNot { d: u, a: t })?;
        let c = match combine {
            Some(_) => self.predicate_source(&s.operands[3], 4)?,
            None => t,
        };
        if let Some(op) = combine {
            self.emit(Op::Pred { op, d: t, a: t, b: c })?;
            self.emit(Op::Pred { op, d: u, a: u, b: c })?;
        }
        let copy = |d: Slot, a: Slot| Op::Pred { op: PredOp::Or, d, a, b: a };
        let guard = self.guard.condition().map(|(slot, _)| slot);
        match q {
            None => self.emit(copy(p, t)),
            Some(q) if guard == Some(p) => {
                self.emit(copy(q, u))?;
                self.emit(copy(p, t))
            }
            Some(q) => {
                self.emit(copy(p, t))?;
                self.emit(copy(q, u))
            }
        }
    }

    /// `setp.lt.f16x2 %p|%q`: one predicate for each half.
    fn setp_pair(
        &mut self,
        s: &Statement<'a>,
        m: &Modifiers<'a>,
        (name, combine, ftz): (Option<&'static str>, Option<PredOp>, bool),
        ty: Type,
    ) -> Result<(), PtxError> {
        let Some(second) = &s.second else { return m.error("it has two results") };
        let results =
            [self.predicate_destination(&s.operands[0])?, self.predicate_destination(second)?];
        let pairs = [self.source(&s.operands[1], ty)?, self.source(&s.operands[2], ty)?];
        let temporaries = [self.temporary(Type::Pred, 2)?, self.temporary(Type::Pred, 3)?];
        for (high, d) in [false, true].into_iter().zip(temporaries) {
            let [a, b] = self.halves(high, pairs)?;
            self.emit_compare(m, name, ty.half(), ftz, [d, a, b])?;
            if let Some(op) = combine {
                let c = self.predicate_source(&s.operands[3], 4)?;
                self.emit(Op::Pred { op, d, a: d, b: c })?;
            }
        }
        // The guard comes last, if a result is the guard.
        let guard = self.guard.condition().map(|(slot, _)| slot);
        let order = if guard == Some(results[0]) { [1, 0] } else { [0, 1] };
        for index in order {
            let (d, a) = (results[index], temporaries[index]);
            self.emit(Op::Pred { op: PredOp::Or, d, a, b: a })?;
        }
        Ok(())
    }

    /// The same half of two pairs.
    fn halves(&mut self, high: bool, pairs: [Slot; 2]) -> Result<[Slot; 2], PtxError> {
        let slots = [self.temporary(Type::B32, 2)?, self.temporary(Type::B32, 3)?];
        for (d, a) in slots.into_iter().zip(pairs) {
            self.emit(Op::Half16 { high, d, a })?;
        }
        Ok(slots)
    }

    fn lower_set(&mut self, s: &Statement<'a>, m: &mut Modifiers<'a>) -> Result<(), PtxError> {
        let name = m.find(comparison_name);
        let combine = m.find(pred_op);
        let ftz = m.take("ftz");
        let (result, ty) = (m.ty()?, m.ty()?);
        let Some(one) = truth(result, ty) else {
            return m.error("its result does not exist for this type");
        };
        let wanted = if combine.is_some() { 4 } else { 3 };
        if s.operands.len() != wanted {
            return m.error(format_args!("it takes {wanted} operands"));
        }
        let d = self.destination(&s.operands[0], result)?;
        let sources = [self.source(&s.operands[1], ty)?, self.source(&s.operands[2], ty)?];
        let (yes, no) = (self.constant(one, Type::B32)?.slot, self.constant(0, Type::B32)?.slot);
        let p = self.temporary(Type::Pred, 2)?;
        let parts: &[bool] = if ty.is_pair() { &[false, true] } else { &[false] };
        let mut results = [d; 2];
        for (index, high) in parts.iter().enumerate() {
            let [a, b] = if ty.is_pair() { self.halves(*high, sources)? } else { sources };
            self.emit_compare(m, name, ty.half(), ftz, [p, a, b])?;
            if let Some(op) = combine {
                let c = self.predicate_source(&s.operands[3], 4)?;
                self.emit(Op::Pred { op, d: p, a: p, b: c })?;
            }
            if ty.is_pair() {
                results[index] = self.temporary(Type::B32, if *high { 1 } else { 0 })?;
            }
            self.emit(Op::Select32 { d: results[index], a: yes, b: no, p })?;
        }
        if ty.is_pair() {
            let [a, b] = results;
            self.emit(Op::Join16 { d, a, b })?;
        }
        Ok(())
    }

    fn emit_compare(
        &mut self,
        m: &Modifiers<'a>,
        name: Option<&'static str>,
        ty: Type,
        ftz: bool,
        [d, a, b]: [Slot; 3],
    ) -> Result<(), PtxError> {
        let Some(name) = name else { return m.error("a known comparison is missing") };
        if matches!(ty, Type::F32 | Type::F64) {
            let Some(compare) = float_compare(name) else {
                return m.error("this comparison does not exist for floats");
            };
            if ty == Type::F32 {
                return self.emit(Op::CompareF32 { compare, ftz, d, a, b });
            }
            if ftz {
                return m.error("'.ftz' does not exist for .f64");
            }
            return self.emit(Op::CompareF64 { compare, d, a, b });
        }
        if matches!(ty, Type::F16 | Type::BF16) {
            return self.compare_halves(m, name, ty, ftz, [d, a, b]);
        }
        if ftz || ty.is_float() || ty.bits() < 16 {
            return m.error("it is not supported for this type");
        }
        let Some(compare) = integer_compare(name, ty) else {
            return m.error("this comparison does not exist for this type");
        };
        let signed = ty.is_signed();
        self.emit(match ty.bits() {
            64 => Op::Compare64 { compare, signed, d, a, b },
            32 => Op::Compare32 { compare, signed, d, a, b },
            _ => Op::Compare16 { compare, signed, d, a, b },
        })
    }

    /// As singles, which both formats' numbers are.
    fn compare_halves(
        &mut self,
        m: &Modifiers<'a>,
        name: &'static str,
        from: Type,
        ftz: bool,
        [d, a, b]: [Slot; 3],
    ) -> Result<(), PtxError> {
        if ftz && from == Type::BF16 {
            return m.error("'.ftz' does not exist for .bf16");
        }
        let (to, mode) = (Type::F32, FloatMode::PLAIN);
        let conversion = Conversion {
            to,
            from,
            mode,
            integral: false,
            relu: false,
            finite: false,
            register_bits: 32,
        };
        let wide = [self.temporary(Type::F32, 4)?, self.temporary(Type::F32, 5)?];
        for (wide, mut narrow) in wide.into_iter().zip([a, b]) {
            if ftz {
                // The lesser of a number and itself, but for the flush.
                let (d, a) = (self.temporary(Type::B32, 6)?, narrow);
                let mode = HalfMode::default().with(HalfMode::FTZ, true);
                self.emit(Op::Half { op: HalfOp::Min, mode, d, a, b: a, c: a })?;
                narrow = d;
            }
            self.conversion(conversion, [wide, narrow], [false; 2])?;
        }
        self.emit_compare(m, Some(name), to, false, [d, wide[0], wide[1]])
    }

    fn emit_select(
        &mut self,
        ty: Type,
        d: Slot,
        [a, b]: [Slot; 2],
        p: Slot,
    ) -> Result<(), PtxError> {
        self.emit(if ty.bits() == 64 {
            Op::Select64 { d, a, b, p }
        } else {
            Op::Select32 { d, a, b, p }
        })
    }

    fn lower_selp(&mut self, s: &Statement<'a>, m: &mut Modifiers<'a>) -> Result<(), PtxError> {
        let ty = m.ty()?;
        if ty == Type::Pred || ty.bits() < 16 {
            return m.error("it does not exist for this type");
        }
        let [d, a, b, p] = self.operands(s)?;
        let (a, b) = (self.source(a, ty)?, self.source(b, ty)?);
        let p = self.predicate_source(p, 0)?;
        let d = self.destination(d, ty)?;
        self.emit_select(ty, d, [a, b], p)
    }

    /// `slct`: a where c is not negative, else b. A NaN selects b.
    fn lower_slct(&mut self, s: &Statement<'a>, m: &mut Modifiers<'a>) -> Result<(), PtxError> {
        let ftz = m.take("ftz");
        let (ty, by) = (m.ty()?, m.ty()?);
        if ty == Type::Pred || ty.bits() < 16 || !matches!(by, Type::S32 | Type::F32) {
            return m.error("it does not exist for these types");
        }
        let [d, a, b, c] = self.operands(s)?;
        let (a, b, c) = (self.source(a, ty)?, self.source(b, ty)?, self.source(c, by)?);
        let d = self.destination(d, ty)?;
        let zero = self.constant(0, by)?.slot;
        let p = self.temporary(Type::Pred, 2)?;
        self.emit_compare(m, Some("ge"), by, ftz, [p, c, zero])?;
        self.emit_select(ty, d, [a, b], p)
    }
}

/// What `set` gives where the comparison holds; of pairs, for one half.
fn truth(result: Type, ty: Type) -> Option<u64> {
    Some(match result {
        Type::U32 | Type::S32 if ty.is_pair() => 0xffff,
        Type::F16x2 if ty == result => 0x3c00,
        Type::BF16x2 if ty == result => 0x3f80,
        _ if ty.is_pair() => return None,
        Type::U32 | Type::S32 => u64::from(u32::MAX),
        Type::F32 => u64::from(1.0_f32.to_bits()),
        Type::U16 | Type::S16 => 0xffff,
        Type::F16 => 0x3c00,
        Type::BF16 => 0x3f80,
        _ => return None,
    })
}

fn pred_op(modifier: &str) -> Option<PredOp> {
    match modifier {
        "and" => Some(PredOp::And),
        "or" => Some(PredOp::Or),
        "xor" => Some(PredOp::Xor),
        _ => None,
    }
}

fn comparison_name(modifier: &str) -> Option<&'static str> {
    const NAMES: [&str; 18] = [
        "eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu",
        "gtu", "geu", "num", "nan",
    ];
    NAMES.into_iter().find(|name| *name == modifier)
}

fn integer_compare(name: &str, ty: Type) -> Option<Compare> {
    Some(match name {
        "eq" => Compare::Eq,
        "ne" => Compare::Ne,
        _ if ty.is_untyped() => return None,
        "lt" => Compare::Lt,
        "le" => Compare::Le,
        "gt" => Compare::Gt,
        "ge" => Compare::Ge,
        "lo" if ty.is_unsigned() => Compare::Lt,
        "ls" if ty.is_unsigned() => Compare::Le,
        "hi" if ty.is_unsigned() => Compare::Gt,
        "hs" if ty.is_unsigned() => Compare::Ge,
        _ => return None,
    })
}

fn float_compare(name: &str) -> Option<FloatCompare> {
    let is = |compare, unordered| FloatCompare::Is { compare, unordered };
    Some(match name {
        "eq" => is(Compare::Eq, false),
        "ne" => is(Compare::Ne, false),
        "lt" => is(Compare::Lt, false),
        "le" => is(Compare::Le, false),
        "gt" => is(Compare::Gt, false),
        "ge" => is(Compare::Ge, false),
        "equ" => is(Compare::Eq, true),
        "neu" => is(Compare::Ne, true),
        "ltu" => is(Compare::Lt, true),
        "leu" => is(Compare::Le, true),
        "gtu" => is(Compare::Gt, true),
        "geu" => is(Compare::Ge, true),
        "num" => FloatCompare::Ordered,
        "nan" => FloatCompare::Unordered,
        _ => return None,
    })
}
