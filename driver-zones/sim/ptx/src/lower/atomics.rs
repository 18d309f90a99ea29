//! Atomic operations: on a value, on one of 128 bits, and on each element of a vector.

use super::FunctionBuilder;
use super::half::half_mode;
use super::memory::{elements_of, hints, order, take_space, vector};
use super::modifiers::Modifiers;
use crate::ir::{
    Address, Atomic, AtomicOp, HalfOp, Op, Slot, Space, Type, VectorAtomic, WideAtomic,
};
use crate::parse::{Operand, PtxError, Statement};

impl<'a> FunctionBuilder<'_, 'a> {
    pub(super) fn lower_atomics(
        &mut self,
        s: &Statement<'a>,
        m: &mut Modifiers<'a>,
    ) -> Result<bool, PtxError> {
        match s.mnemonic {
            "atom" => self.lower_atomic(s, m, true)?,
            "red" if !m.take("async") => self.lower_atomic(s, m, false)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// All atomic operations are sequentially consistent, whatever they ask for.
    fn lower_atomic(
        &mut self,
        s: &Statement<'a>,
        m: &mut Modifiers<'a>,
        returns: bool,
    ) -> Result<(), PtxError> {
        order(m);
        hints(m);
        // Halves are never flushed, which is what it asks for.
        m.take("noftz");
        let space = take_space(m)?;
        if !matches!(space, Space::Global | Space::Shared | Space::Generic) {
            return m.error("this state space has no atomic operations");
        }
        let policy = m.take("L2::cache_hint");
        let name = m.find(operation_name);
        if returns && m.take("b128") {
            return self.lower_wide_atomic(s, m, (name, space, policy));
        }
        let count = vector(m);
        let ty = m.ty()?;
        let op = match name.and_then(|name| atomic_op(name, ty)) {
            Some(AtomicOp::Exchange | AtomicOp::CompareSwap) if !returns => None,
            op => op,
        };
        let Some(op) = op else { return m.error("it is not supported for this type") };
        let values = if op == AtomicOp::CompareSwap { 2 } else { 1 };
        let (d, address, values) = self.atomic_operands(s, m, (returns, values, policy))?;
        let (space, address) = self.address(address, space)?;
        if let Some(count) = count {
            return self.lower_vector_atomic(m, (op, ty, count), (d, space, address), &values[0]);
        }
        let d = match d {
            Some(Operand::Name { name: "_", .. }) | None => None,
            Some(operand) => Some(self.destination(operand, ty)?),
        };
        let b = self.source(&values[0], ty)?;
        let c: Slot = match values.get(1) {
            Some(operand) => self.source(operand, ty)?,
            None => b,
        };
        let atomic = u32::try_from(self.code.atomics.len()).unwrap_or(u32::MAX);
        let bytes = u8::try_from(ty.bytes()).unwrap_or(8);
        self.code.atomics.push(Atomic { op, space, address, bytes, d, b, c });
        self.emit(Op::Atomic { atomic })
    }

    /// Where the old value goes, the address, and so many values; behind them there may be a cache
    /// policy, which changes nothing.
    fn atomic_operands<'s>(
        &mut self,
        s: &'s Statement<'a>,
        m: &Modifiers<'a>,
        (returns, values, policy): (bool, usize, bool),
    ) -> Result<(Option<&'s Operand<'a>>, &'s Operand<'a>, &'s [Operand<'a>]), PtxError> {
        let wanted = usize::from(returns) + 1 + values + usize::from(policy);
        let mut operands = s.operands.as_slice();
        if operands.len() != wanted {
            return m.error(format_args!("it takes {wanted} operands"));
        }
        if policy && let Some((last, rest)) = operands.split_last() {
            self.source(last, Type::B64)?;
            operands = rest;
        }
        let (d, operands) = operands.split_at(usize::from(returns));
        Ok((d.first(), &operands[0], &operands[1..]))
    }

    /// Each element by itself, as PTX has it; the place must be aligned to the whole vector.
    fn lower_vector_atomic(
        &mut self,
        m: &Modifiers<'a>,
        (op, ty, count): (AtomicOp, Type, usize),
        (d, space, address): (Option<&Operand<'a>>, Space, Address),
        values: &Operand<'a>,
    ) -> Result<(), PtxError> {
        let known = ty.is_half() || op == AtomicOp::AddSingle;
        let bytes = u8::try_from(ty.bytes()).unwrap_or(4);
        if !known || count * usize::from(bytes) > 16 {
            return m.error("vectors of this type and length have no such operation");
        }
        if space != Space::Global {
            return m.error("vectors have atomic operations in global memory only");
        }
        let mut elements = Vec::with_capacity(count);
        let d = d.map(|d| elements_of(m, d, count)).transpose()?;
        for (index, value) in elements_of(m, values, count)?.iter().enumerate() {
            let d = match d.map(|d| &d[index]) {
                Some(Operand::Name { name: "_", .. }) | None => None,
                Some(operand) => Some(self.destination(operand, ty)?),
            };
            elements.push((d, self.source(value, ty)?));
        }
        let atomic = u32::try_from(self.code.vector_atomics.len()).unwrap_or(u32::MAX);
        self.code.vector_atomics.push(VectorAtomic { op, address, bytes, elements });
        self.emit(Op::AtomicVector(atomic))
    }

    fn lower_wide_atomic(
        &mut self,
        s: &Statement<'a>,
        m: &Modifiers<'a>,
        (name, space, policy): (Option<&str>, Space, bool),
    ) -> Result<(), PtxError> {
        let swaps = match name {
            Some("exch") => false,
            Some("cas") => true,
            _ => return m.error("of 128 bits there are 'exch' and 'cas' only"),
        };
        let (d, address, values) =
            self.atomic_operands(s, m, (true, 1 + usize::from(swaps), policy))?;
        let (space, address) = self.address(address, space)?;
        let d = match d {
            Some(Operand::Name { name: "_", .. }) | None => None,
            Some(operand) => Some(self.destination(operand, Type::B128)?),
        };
        let new = self.source(&values[values.len() - 1], Type::B128)?;
        let compare = if swaps { Some(self.source(&values[0], Type::B128)?) } else { None };
        let atomic = u32::try_from(self.code.wide_atomics.len()).unwrap_or(u32::MAX);
        self.code.wide_atomics.push(WideAtomic { space, address, d, compare, new });
        self.emit(Op::AtomicWide(atomic))
    }
}

fn operation_name(modifier: &str) -> Option<&'static str> {
    const NAMES: [&str; 10] =
        ["add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"];
    NAMES.into_iter().find(|name| *name == modifier)
}

fn atomic_op(name: &str, ty: Type) -> Option<AtomicOp> {
    Some(match (name, ty) {
        ("add", Type::U32 | Type::S32 | Type::U64) => AtomicOp::Add,
        ("add", Type::F32) => AtomicOp::AddSingle,
        ("add", Type::F64) => AtomicOp::AddDouble,
        ("add", ty) if ty.is_half() => AtomicOp::Half(HalfOp::Add, half_mode(ty)),
        ("min", ty) if ty.is_half() => AtomicOp::Half(HalfOp::Min, half_mode(ty)),
        ("max", ty) if ty.is_half() => AtomicOp::Half(HalfOp::Max, half_mode(ty)),
        ("min", Type::U32 | Type::U64) => AtomicOp::MinU,
        ("min", Type::S32 | Type::S64) => AtomicOp::MinS,
        ("max", Type::U32 | Type::U64) => AtomicOp::MaxU,
        ("max", Type::S32 | Type::S64) => AtomicOp::MaxS,
        ("and", Type::B32 | Type::B64) => AtomicOp::And,
        ("or", Type::B32 | Type::B64) => AtomicOp::Or,
        ("xor", Type::B32 | Type::B64) => AtomicOp::Xor,
        ("exch", Type::B32 | Type::B64) => AtomicOp::Exchange,
        ("cas", Type::B16 | Type::B32 | Type::B64) => AtomicOp::CompareSwap,
        ("inc", Type::U32) => AtomicOp::Increment,
        ("dec", Type::U32) => AtomicOp::Decrement,
        _ => return None,
    })
}
