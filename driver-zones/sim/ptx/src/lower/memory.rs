//! Loads, stores and fences.

use super::FunctionBuilder;
use super::modifiers::Modifiers;
use crate::ir::{Access, Op, Space, StageCopy, Type};
use crate::parse::{Operand, PtxError, Statement};

/// How strongly an access is ordered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
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
            "membar" | "fence" => {
                m.ignore(|name| matches!(name, "sc" | "acq_rel" | "acquire" | "release"));
                // Asynchronous copies are none here: what they wrote is in order already.
                let proxy = m.take("proxy") && m.take("async");
                m.ignore(|name| proxy && matches!(name, "global" | "shared::cta"));
                if !proxy && m.find(scope).is_none() {
                    return m.error("a known scope is missing");
                }
                let [] = self.operands(s)?;
                self.emit(Op::Fence)?;
            }
            "prefetch" | "prefetchu" => {
                let space = take_space(m)?;
                hints(m);
                m.ignore(|name| matches!(name, "L1" | "L2"));
                let [address] = self.operands(s)?;
                self.address(address, space)?;
            }
            "cp" => self.lower_stage(s, m)?,
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
        let count = vector(m).unwrap_or(1);
        elements_of(m, operand, count)
    }

    /// Two operands, behind which there may be a cache policy.
    fn operands_and_hint<'s>(
        &mut self,
        s: &'s Statement<'a>,
        m: &mut Modifiers<'a>,
    ) -> Result<[&'s Operand<'a>; 2], PtxError> {
        if !m.take("L2::cache_hint") {
            let [first, second] = self.operands(s)?;
            return Ok([first, second]);
        }
        let [first, second, policy] = self.operands(s)?;
        self.source(policy, Type::B64)?;
        Ok([first, second])
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
        // Since sm_100, global memory takes 32 bytes at once.
        let most = if space == Space::Global { 32 } else { 16 };
        if u32::from(bytes) * u32::from(count) > most {
            return m.error(format_args!("an access has at most {most} bytes"));
        }
        let (space, address) = self.address(address, space)?;
        Ok(Access {
            space,
            address,
            bytes,
            signed: ty.is_signed(),
            count,
            slots: [0; 8],
            wide: [false; 8],
            register_bits: [32; 8],
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
        let [d, address] = self.operands_and_hint(s, m)?;
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
        let [address, a] = self.operands_and_hint(s, m)?;
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

    /// `cp.async`, and waiting for it: the copy is done when it is asked for.
    fn lower_stage(&mut self, s: &Statement<'a>, m: &mut Modifiers<'a>) -> Result<(), PtxError> {
        if !m.take("async") || m.take("bulk") {
            return m.error("only 'cp.async' without '.bulk' is supported");
        }
        if m.take("commit_group") || m.take("wait_all") {
            let [] = self.operands(s)?;
            return Ok(());
        }
        if m.take("wait_group") {
            let [groups] = self.operands(s)?;
            self.source(groups, Type::U32)?;
            return Ok(());
        }
        hints(m);
        m.ignore(|name| name == "L2::cache_hint");
        if !(m.take("shared") || m.take("shared::cta")) || !m.take("global") {
            return m.error("it copies from global to shared memory only");
        }
        let (to, from, bytes, read) = match s.operands.as_slice() {
            [to, from, bytes] => (to, from, bytes, None),
            [to, from, bytes, read] => (to, from, bytes, Some(read)),
            _ => return m.error("it takes 3 or 4 operands"),
        };
        let Operand::Integer(bytes @ (4 | 8 | 16)) = *bytes else {
            return m.error("it copies 4, 8 or 16 bytes");
        };
        let (_, to) = self.address(to, Space::Shared)?;
        let (_, from) = self.address(from, Space::Global)?;
        let read = match read {
            Some(read) => Some(self.source(read, Type::U32)?),
            None => None,
        };
        let stage = u32::try_from(self.code.stages.len()).unwrap_or(u32::MAX);
        let bytes = u8::try_from(bytes).unwrap_or(16);
        self.code.stages.push(StageCopy { to, from, bytes, read });
        self.emit(Op::Stage { stage })
    }
}

/// Takes the number of a vector's elements, if it is one.
pub(super) fn vector(m: &mut Modifiers<'_>) -> Option<usize> {
    m.find(|modifier| match modifier {
        "v2" => Some(2),
        "v4" => Some(4),
        "v8" => Some(8),
        _ => None,
    })
}

/// The so many elements of a vector operand, or the one of a plain operand.
pub(super) fn elements_of<'s, 'a>(
    m: &Modifiers<'a>,
    operand: &'s Operand<'a>,
    count: usize,
) -> Result<&'s [Operand<'a>], PtxError> {
    let list = match operand {
        Operand::Vector(list) => list.as_slice(),
        single => std::slice::from_ref(single),
    };
    if list.len() != count {
        return m.error("the vector operand has another length");
    }
    Ok(list)
}

fn scope(modifier: &str) -> Option<()> {
    matches!(modifier, "cta" | "gpu" | "gl" | "sys" | "cluster").then_some(())
}

/// Takes the modifiers that say how an access is ordered.
pub(super) fn order(m: &mut Modifiers<'_>) -> Order {
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
pub(super) fn hints(m: &mut Modifiers<'_>) {
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
                | "unified"
        ) || (name.starts_with("L1::") || name.starts_with("L2::evict"))
    });
}

pub(super) fn take_space(m: &mut Modifiers<'_>) -> Result<Space, PtxError> {
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
