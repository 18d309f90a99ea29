//! Floating-point instructions.

use super::FunctionBuilder;
use super::modifiers::Modifiers;
use crate::ir::{
    FloatMode, FloatOp, FloatUnary, Op, Round, Slot, TEST_INFINITE, TEST_NAN, TEST_NORMAL,
    TEST_SUBNORMAL, TEST_ZERO, Type,
};
use crate::parse::{PtxError, Statement};

impl<'a> FunctionBuilder<'_, 'a> {
    pub(super) fn lower_float(
        &mut self,
        s: &Statement<'a>,
        m: &mut Modifiers<'a>,
    ) -> Result<bool, PtxError> {
        if !m.last_type().is_some_and(Type::is_float) {
            return Ok(false);
        }
        match s.mnemonic {
            "add" | "sub" | "mul" => {
                let mode = m.float_mode();
                let op = match s.mnemonic {
                    "add" => FloatOp::Add,
                    "sub" => FloatOp::Sub,
                    _ => FloatOp::Mul,
                };
                self.float_pair(s, m, op, mode)?;
            }
            "div" => self.lower_divide(s, m)?,
            "min" | "max" => {
                let mode = FloatMode { ftz: m.take("ftz"), ..FloatMode::PLAIN };
                let op = match (s.mnemonic, m.take("NaN")) {
                    ("min", false) => FloatOp::Min,
                    ("min", true) => FloatOp::MinNan,
                    (_, false) => FloatOp::Max,
                    (_, true) => FloatOp::MaxNan,
                };
                self.float_pair(s, m, op, mode)?;
            }
            "copysign" => {
                // PTX takes the sign from the first operand.
                let ty = float_type(m)?;
                let [d, a, b] = self.operands(s)?;
                let (d, a, b) =
                    (self.destination(d, ty)?, self.source(a, ty)?, self.source(b, ty)?);
                self.float_op(ty, FloatOp::CopySign, FloatMode::PLAIN, [d, b, a])?;
            }
            "fma" | "mad" => self.lower_fused(s, m)?,
            "neg" | "abs" => {
                let mode = FloatMode { ftz: m.take("ftz"), ..FloatMode::PLAIN };
                let op = if s.mnemonic == "neg" { FloatUnary::Neg } else { FloatUnary::Abs };
                self.float_single(s, m, op, mode)?;
            }
            "rcp" | "sqrt" | "rsqrt" | "sin" | "cos" | "lg2" | "ex2" | "tanh" => {
                self.lower_function(s, m)?;
            }
            "testp" => self.lower_test(s, m)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn float_op(
        &mut self,
        ty: Type,
        op: FloatOp,
        mode: FloatMode,
        [d, a, b]: [Slot; 3],
    ) -> Result<(), PtxError> {
        self.emit(if ty == Type::F64 {
            Op::F64 { op, mode, d, a, b }
        } else {
            Op::F32 { op, mode, d, a, b }
        })
    }

    fn float_pair(
        &mut self,
        s: &Statement<'a>,
        m: &mut Modifiers<'a>,
        op: FloatOp,
        mode: FloatMode,
    ) -> Result<(), PtxError> {
        let ty = float_type(m)?;
        if ty == Type::F64 && (mode.ftz || mode.sat) {
            return m.error("'.ftz' and '.sat' do not exist for .f64");
        }
        let [d, a, b] = self.operands(s)?;
        let (d, a, b) = (self.destination(d, ty)?, self.source(a, ty)?, self.source(b, ty)?);
        self.float_op(ty, op, mode, [d, a, b])
    }

    /// Approximate divisions are the correctly rounded one.
    fn lower_divide(&mut self, s: &Statement<'a>, m: &mut Modifiers<'a>) -> Result<(), PtxError> {
        let approximate = m.take("approx") || m.take("full");
        let mode = m.float_mode();
        if mode.sat || (approximate && mode.round != Round::Nearest) {
            return m.error("its rounding or clamp does not exist");
        }
        if approximate && m.last_type() == Some(Type::F64) {
            return m.error("it exists for .f32 only");
        }
        self.float_pair(s, m, FloatOp::Div, mode)
    }

    fn lower_fused(&mut self, s: &Statement<'a>, m: &mut Modifiers<'a>) -> Result<(), PtxError> {
        let mode = m.float_mode();
        let ty = float_type(m)?;
        let [d, a, b, c] = self.operands(s)?;
        let (a, b, c) = (self.source(a, ty)?, self.source(b, ty)?, self.source(c, ty)?);
        let d = self.destination(d, ty)?;
        if ty == Type::F32 {
            return self.emit(Op::Fma32 { mode, d, a, b, c });
        }
        if mode.ftz || mode.sat {
            return m.error("'.ftz' and '.sat' do not exist for .f64");
        }
        self.emit(Op::Fma64 { round: mode.round, d, a, b, c })
    }

    fn float_single(
        &mut self,
        s: &Statement<'a>,
        m: &mut Modifiers<'a>,
        op: FloatUnary,
        mode: FloatMode,
    ) -> Result<(), PtxError> {
        let ty = float_type(m)?;
        let [d, a] = self.operands(s)?;
        let (d, a) = (self.destination(d, ty)?, self.source(a, ty)?);
        self.emit(if ty == Type::F64 {
            Op::F64Unary { op, mode, d, a }
        } else {
            Op::F32Unary { op, mode, d, a }
        })
    }

    /// Functions; `.approx` ones are exact to within a rounding.
    fn lower_function(&mut self, s: &Statement<'a>, m: &mut Modifiers<'a>) -> Result<(), PtxError> {
        let approximate = m.take("approx");
        let mode = m.float_mode();
        let rounded = matches!(s.mnemonic, "rcp" | "sqrt") && !approximate;
        if mode.sat || (mode.round != Round::Nearest && !rounded) {
            return m.error("its rounding or clamp does not exist");
        }
        let (op, everywhere) = match s.mnemonic {
            "rcp" => (FloatUnary::Reciprocal, true),
            "sqrt" => (FloatUnary::Sqrt, true),
            "rsqrt" => (FloatUnary::Rsqrt, true),
            "sin" => (FloatUnary::Sin, false),
            "cos" => (FloatUnary::Cos, false),
            "lg2" => (FloatUnary::Log2, false),
            "ex2" => (FloatUnary::Exp2, false),
            _ => (FloatUnary::Tanh, false),
        };
        if !everywhere && (!approximate || m.last_type() == Some(Type::F64)) {
            return m.error("it exists as '.approx' for .f32 only");
        }
        self.float_single(s, m, op, mode)
    }

    fn lower_test(&mut self, s: &Statement<'a>, m: &mut Modifiers<'a>) -> Result<(), PtxError> {
        let kinds = m.find(|modifier| match modifier {
            "finite" => Some(TEST_ZERO | TEST_SUBNORMAL | TEST_NORMAL),
            "infinite" => Some(TEST_INFINITE),
            "number" => Some(TEST_ZERO | TEST_SUBNORMAL | TEST_NORMAL | TEST_INFINITE),
            "notanumber" => Some(TEST_NAN),
            "normal" => Some(TEST_NORMAL),
            "subnormal" => Some(TEST_SUBNORMAL),
            _ => None,
        });
        let Some(kinds) = kinds else { return m.error("it lacks what to test for") };
        let ty = float_type(m)?;
        let [d, a] = self.operands(s)?;
        let (d, a) = (self.predicate_destination(d)?, self.source(a, ty)?);
        self.emit(if ty == Type::F64 {
            Op::Test64 { kinds, d, a }
        } else {
            Op::Test32 { kinds, d, a }
        })
    }
}

fn float_type(m: &mut Modifiers<'_>) -> Result<Type, PtxError> {
    match m.ty()? {
        ty @ (Type::F32 | Type::F64) => Ok(ty),
        _ => m.error("it is supported for .f32 and .f64 only"),
    }
}
