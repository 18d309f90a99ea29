//! Loads, stores, atomic operations and fences.

use super::FunctionBuilder;
use super::modifiers::Modifiers;
use crate::ir::{Access, Atomic, AtomicOp, Op, Slot, Space, Type};
use crate::parse::{Operand, PtxError, Statement};

/// How strongly an access is ordered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    Relaxed,
    Acquire,
    Release,
    AcquireRelease,
}

impl<'a> FunctionBuilder<'_, 'a> {
    pub(super) fn lower_memory(
        &mut self,
        s: &Statement<'a>,
        m: &mut Modifiers<'a>,
    ) -> Result<bool, PtxError> {
        match s.mnemonic {
            "ld" | "ldu" => self.lower_load(s, m)?,
            "st" => self.lower_store(s, m)?,
            "atom" => self.lower_atomic(s, m, true)?,
            "red" if !m.take("async") => self.lower_atomic(s, m, false)?,
            "membar" | "fence" => {
                m.ignore(|name| matches!(name, "sc" | "acq_rel"));
                let scope = m.find(scope);
                if scope.is_none() {
                    return m.error("a known scope is missing");
                }
                let [] = self.operands(s)?;
                self.emit(Op::Fence)?;
            }
            "prefetch" | "prefetchu" => {
                let space = take_space(m)?;
                m.ignore(|name| matches!(name, "L1" | "L2"));
                let [address] = self.operands(s)?;
                self.address(address, space)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Elements of a vector operand, or the one of a plain operand.
    fn elements<'s>(
        &self,
        m: &mut Modifiers<'a>,
        operand: &'s Operand<'a>,
    ) -> Result<&'s [Operand<'a>], PtxError> {
        let count = m.find(|modifier| match modifier {
            "v2" => Some(2),
            "v4" => Some(4),
            _ => None,
        });
        let list = match operand {
            Operand::Vector(list) => list.as_slice(),
            single => std::slice::from_ref(single),
        };
        if list.len() != count.unwrap_or(1) {
            return m.error("the vector operand has another length");
        }
        Ok(list)
    }

    fn access(&mut self, access: Access) -> u32 {
        let index = u32::try_from(self.code.accesses.len()).unwrap_or(u32::MAX);
        self.code.accesses.push(access);
        index
    }

    fn empty_access(
        &mut self,
        m: &Modifiers<'a>,
        address: &Operand<'a>,
        (space, ty, count): (Space, Type, usize),
    ) -> Result<Access, PtxError> {
        if ty == Type::Pred {
            return m.error("it does not exist for this type");
        }
        let (bytes, count) = (u8::try_from(ty.bytes()), u8::try_from(count));
        let (Ok(bytes), Ok(count)) = (bytes, count) else {
            return m.error("the vector is too long");
        };
        if bytes * count > 16 {
            return m.error("an access has at most 16 bytes");
        }
        let (space, address) = self.address(address, space)?;
        Ok(Access {
            space,
            address,
            bytes,
            signed: ty.is_signed(),
            count,
            slots: [0; 4],
            wide: [false; 4],
            register_bits: [32; 4],
        })
    }

    fn lower_load(&mut self, s: &Statement<'a>, m: &mut Modifiers<'a>) -> Result<(), PtxError> {
        let order = order(m);
        if matches!(order, Order::Release | Order::AcquireRelease) {
            return m.error("a load cannot release");
        }
        hints(m);
        let space = take_space(m)?;
        let ty = m.ty()?;
        let [d, address] = self.operands(s)?;
        let elements = self.elements(m, d)?;
        let mut access = self.empty_access(m, address, (space, ty, elements.len()))?;
        for (index, element) in elements.iter().enumerate() {
            let register = self.destination_register(element, ty, true)?;
            access.slots[index] = register.slot;
            access.wide[index] = register.ty.bits() == 64;
            access.register_bits[index] = u8::try_from(register.ty.bits()).unwrap_or(64);
        }
        let access = self.access(access);
        self.emit(Op::Load { access })?;
        if order == Order::Acquire {
            self.emit(Op::Fence)?;
        }
        Ok(())
    }

    fn lower_store(&mut self, s: &Statement<'a>, m: &mut Modifiers<'a>) -> Result<(), PtxError> {
        if m.take("async") || m.take("bulk") {
            return m.error("asynchronous stores are not supported");
        }
        let order = order(m);
        if matches!(order, Order::Acquire | Order::AcquireRelease) {
            return m.error("a store cannot acquire");
        }
        hints(m);
        let space = take_space(m)?;
        let ty = m.ty()?;
        let [address, a] = self.operands(s)?;
        let elements = self.elements(m, a)?;
        let mut access = self.empty_access(m, address, (space, ty, elements.len()))?;
        if matches!(access.space, Space::Param | Space::Constant) {
            return m.error("this state space cannot be written");
        }
        for (index, element) in elements.iter().enumerate() {
            let register = self.source_register(element, ty, true)?;
            access.slots[index] = register.slot;
            access.wide[index] = register.ty.bits() == 64;
        }
        if order == Order::Release {
            self.emit(Op::Fence)?;
        }
        let access = self.access(access);
        self.emit(Op::Store { access })
    }

    /// All atomic operations are sequentially consistent, whatever they ask for.
    fn lower_atomic(
        &mut self,
        s: &Statement<'a>,
        m: &mut Modifiers<'a>,
        returns: bool,
    ) -> Result<(), PtxError> {
        order(m);
        let space = take_space(m)?;
        if !matches!(space, Space::Global | Space::Shared | Space::Generic) {
            return m.error("this state space has no atomic operations");
        }
        let name = m.find(operation_name);
        let ty = m.ty()?;
        let op = match name.and_then(|name| atomic_op(name, ty)) {
            Some(AtomicOp::Exchange | AtomicOp::CompareSwap) if !returns => None,
            op => op,
        };
        let Some(op) = op else { return m.error("it is not supported for this type") };
        let skip = usize::from(returns);
        let operands = if op == AtomicOp::CompareSwap { 3 } else { 2 };
        if s.operands.len() != skip + operands {
            return m.error(format_args!("it takes {} operands", skip + operands));
        }
        let d = match &s.operands[0] {
            Operand::Name { name: "_", .. } => None,
            operand if returns => Some(self.destination(operand, ty)?),
            _ => None,
        };
        let (space, address) = self.address(&s.operands[skip], space)?;
        let b = self.source(&s.operands[skip + 1], ty)?;
        let c: Slot = match s.operands.get(skip + 2) {
            Some(operand) => self.source(operand, ty)?,
            None => b,
        };
        let atomic = u32::try_from(self.code.atomics.len()).unwrap_or(u32::MAX);
        let wide = ty.bits() == 64;
        self.code.atomics.push(Atomic { op, space, address, wide, d, b, c });
        self.emit(Op::Atomic { atomic })
    }
}

fn scope(modifier: &str) -> Option<()> {
    matches!(modifier, "cta" | "gpu" | "gl" | "sys" | "cluster").then_some(())
}

/// Takes the modifiers that say how an access is ordered.
fn order(m: &mut Modifiers<'_>) -> Order {
    let order = m.find(|modifier| match modifier {
        "weak" | "volatile" | "relaxed" | "mmio" => Some(Order::Relaxed),
        "acquire" => Some(Order::Acquire),
        "release" => Some(Order::Release),
        "acq_rel" => Some(Order::AcquireRelease),
        _ => None,
    });
    m.find(scope);
    order.unwrap_or(Order::Relaxed)
}

/// Takes cache hints, which change no value.
fn hints(m: &mut Modifiers<'_>) {
    m.ignore(|name| {
        matches!(
            name,
            "ca" | "cg"
                | "cs"
                | "lu"
                | "cv"
                | "wb"
                | "wt"
                | "nc"
                | "L2::64B"
                | "L2::128B"
                | "L2::256B"
        ) || (name.starts_with("L1::") || name.starts_with("L2::evict"))
    });
}

fn take_space(m: &mut Modifiers<'_>) -> Result<Space, PtxError> {
    let space = m.find(|modifier| {
        Some(match modifier {
            "global" => Space::Global,
            "const" => Space::Constant,
            "shared" | "shared::cta" => Space::Shared,
            "local" => Space::Local,
            "param" | "param::entry" | "param::func" => Space::Param,
            _ => return None,
        })
    });
    Ok(space.unwrap_or(Space::Generic))
}

fn operation_name(modifier: &str) -> Option<&'static str> {
    const NAMES: [&str; 10] =
        ["add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"];
    NAMES.into_iter().find(|name| *name == modifier)
}

fn atomic_op(name: &str, ty: Type) -> Option<AtomicOp> {
    Some(match (name, ty) {
        ("add", Type::U32 | Type::S32 | Type::U64) => AtomicOp::Add,
        ("add", Type::F32 | Type::F64) => AtomicOp::AddFloat,
        ("min", Type::U32 | Type::U64) => AtomicOp::MinU,
        ("min", Type::S32 | Type::S64) => AtomicOp::MinS,
        ("max", Type::U32 | Type::U64) => AtomicOp::MaxU,
        ("max", Type::S32 | Type::S64) => AtomicOp::MaxS,
        ("and", Type::B32 | Type::B64) => AtomicOp::And,
        ("or", Type::B32 | Type::B64) => AtomicOp::Or,
        ("xor", Type::B32 | Type::B64) => AtomicOp::Xor,
        ("exch", Type::B32 | Type::B64) => AtomicOp::Exchange,
        ("cas", Type::B32 | Type::B64) => AtomicOp::CompareSwap,
        ("inc", Type::U32) => AtomicOp::Increment,
        ("dec", Type::U32) => AtomicOp::Decrement,
        _ => return None,
    })
}
