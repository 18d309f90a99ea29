//! From operands as written to slots.

use super::FunctionBuilder;
use super::scope::{LocalSymbol, ModuleSymbol, Register};
use crate::exec::windows;
use crate::ir::{Address, AddressBase, Preset32, Preset64, Slot, Space, Special, Type};
use crate::parse::{Operand, PtxError, Statement, shown};

/// The bits of a literal as a value of that type, or why it has none.
pub(crate) fn encode(operand: &Operand<'_>, ty: Type) -> Result<u64, String> {
    match *operand {
        Operand::Integer(value) if !ty.is_float() && ty != Type::Pred => {
            let unused = 64 - ty.bits();
            let unsigned = value << unused >> unused == value;
            let signed = (value << unused).cast_signed() >> unused == value.cast_signed();
            if unsigned || signed {
                Ok(value << unused >> unused)
            } else {
                Err(format!("{value} does not fit {} bits", ty.bits()))
            }
        }
        Operand::Single(bits) if matches!(ty, Type::F32 | Type::B32 | Type::U32) => {
            Ok(u64::from(bits))
        }
        Operand::Double(bits) if matches!(ty, Type::F64 | Type::B64 | Type::U64) => Ok(bits),
        #[expect(clippy::cast_possible_truncation, reason = "PTX rounds wide literals")]
        Operand::Double(bits) if ty == Type::F32 => {
            Ok(u64::from((f64::from_bits(bits) as f32).to_bits()))
        }
        _ => Err("the literal is not of the instruction's type".to_owned()),
    }
}

impl<'a> FunctionBuilder<'_, 'a> {
    /// The statement's operands, of which there must be `N`.
    pub(crate) fn operands<'s, const N: usize>(
        &self,
        statement: &'s Statement<'a>,
    ) -> Result<&'s [Operand<'a>; N], PtxError> {
        match <&[Operand<'a>; N]>::try_from(statement.operands.as_slice()) {
            Ok(operands) => Ok(operands),
            Err(_) => self.error(format!(
                "'{}' takes {N} operands, not {}",
                statement.opcode(),
                statement.operands.len()
            )),
        }
    }

    fn undeclared<T>(&self, name: &str) -> Result<T, PtxError> {
        self.error(format!("'{}' is not declared", shown(name)))
    }

    /// A register of at least (`wider`) or exactly the type's size.
    fn sized(&self, register: Register, ty: Type, wider: bool, name: &str) -> Result<(), PtxError> {
        let (has, wants) = (register.ty.bits(), ty.bits());
        let wider = (wider || wants == 8) && has <= 64;
        let fits = has == wants || (has > wants && wider);
        if register.ty == Type::Pred || !fits {
            let name = shown(name);
            return self.error(format!("register '{name}' has {has} bits, not {wants}"));
        }
        Ok(())
    }

    /// A value of exactly the type's size.
    pub(crate) fn source(&mut self, operand: &Operand<'a>, ty: Type) -> Result<Slot, PtxError> {
        Ok(self.source_register(operand, ty, false)?.slot)
    }

    /// A value whose register may be wider than the type (`st`, `cvt`).
    pub(crate) fn source_register(
        &mut self,
        operand: &Operand<'a>,
        ty: Type,
        wider: bool,
    ) -> Result<Register, PtxError> {
        let (name, part, offset) = match *operand {
            Operand::Name { name, part, offset, negated: false } => (name, part, offset),
            Operand::Integer(_) | Operand::Single(_) | Operand::Double(_) if ty != Type::B128 => {
                let bits = match encode(operand, ty) {
                    Ok(bits) => bits,
                    Err(message) => return self.error(message),
                };
                return self.constant(bits, ty);
            }
            _ => return self.error("this operand must be a register or a literal"),
        };
        if part.is_none()
            && offset == 0
            && let Some(register) = self.find_register(name)?
        {
            self.sized(register, ty, wider, name)?;
            return Ok(register);
        }
        if let Some(special) = special(name, part).filter(|_| offset == 0) {
            if ty.bits() != 32 {
                return self.error(format!("'{}' has 32 bits, not {}", shown(name), ty.bits()));
            }
            let slot = self.preset32(special)?;
            return Ok(Register { ty, slot });
        }
        if name == "%gridid" && part.is_none() && ty.bits() == 64 {
            return Ok(Register { ty, slot: self.preset64(Preset64::GridId)? });
        }
        if part.is_some() {
            return self.undeclared(name);
        }
        let slot = self.symbol_address(name, offset, ty)?;
        Ok(Register { ty, slot })
    }

    /// A slot that holds a number.
    pub(crate) fn constant(&mut self, bits: u64, ty: Type) -> Result<Register, PtxError> {
        let slot = if ty.bits() == 64 {
            self.preset64(Preset64::Bits(bits))?
        } else {
            #[expect(clippy::cast_possible_truncation, reason = "a narrow type's bits")]
            self.preset32(Preset32::Bits(bits as u32))?
        };
        Ok(Register { ty, slot })
    }

    /// A slot that holds the address of a variable, in the variable's own space.
    fn symbol_address(&mut self, name: &'a str, offset: i64, ty: Type) -> Result<Slot, PtxError> {
        if ty.is_float() || ty.bits() < 32 {
            return self.undeclared(name);
        }
        let (place, dynamic) = match self.find_local(name) {
            Some(
                LocalSymbol::Param { offset }
                | LocalSymbol::Shared { offset }
                | LocalSymbol::Local { offset },
            ) => (offset, false),
            Some(LocalSymbol::Frame(place)) => (place.offset, false),
            None => match self.find_module(name) {
                Some(ModuleSymbol::Shared { size, align }) => {
                    (self.place_shared(name, size, align)?, false)
                }
                Some(ModuleSymbol::DynamicShared) => (0, true),
                Some(ModuleSymbol::Global { index }) if ty.bits() == 64 => {
                    return self.preset64(Preset64::Global { index, offset });
                }
                Some(ModuleSymbol::Function { number }) if ty.bits() == 64 && offset == 0 => {
                    self.want_function(number);
                    return self.preset64(Preset64::Bits(windows::function_address(number)));
                }
                Some(
                    ModuleSymbol::Global { .. }
                    | ModuleSymbol::Kernel
                    | ModuleSymbol::Function { .. },
                ) => {
                    return self.error(format!("'{}' has no 32-bit address", shown(name)));
                }
                None => return self.undeclared(name),
            },
        };
        let value = i64::from(place).wrapping_add(offset).cast_unsigned();
        match (ty.bits(), dynamic) {
            (64, false) => self.preset64(Preset64::Bits(value)),
            (64, true) => self.preset64(Preset64::DynamicShared(value)),
            #[expect(clippy::cast_possible_truncation, reason = "addresses wrap at 32 bits")]
            (_, false) => self.preset32(Preset32::Bits(value as u32)),
            #[expect(clippy::cast_possible_truncation, reason = "addresses wrap at 32 bits")]
            (_, true) => self.preset32(Preset32::DynamicShared(value as u32)),
        }
    }

    /// Where a result of exactly the type's size goes.
    pub(crate) fn destination(
        &mut self,
        operand: &Operand<'a>,
        ty: Type,
    ) -> Result<Slot, PtxError> {
        Ok(self.destination_register(operand, ty, false)?.slot)
    }

    /// Where a result goes whose register may be wider than the type.
    pub(crate) fn destination_register(
        &mut self,
        operand: &Operand<'a>,
        ty: Type,
        wider: bool,
    ) -> Result<Register, PtxError> {
        let Operand::Name { name, part: None, offset: 0, negated: false } = *operand else {
            return self.error("the result must be a register");
        };
        if name == "_" {
            return Ok(Register { ty, slot: self.temporary(ty, u8::MAX)? });
        }
        let Some(register) = self.find_register(name)? else { return self.undeclared(name) };
        self.sized(register, ty, wider, name)?;
        Ok(register)
    }

    pub(crate) fn predicate_register(&mut self, name: &'a str) -> Result<Slot, PtxError> {
        if name == "_" {
            return self.temporary(Type::Pred, u8::MAX);
        }
        match self.find_register(name)? {
            Some(register) if register.ty == Type::Pred => Ok(register.slot),
            Some(_) => self.error(format!("register '{}' is not a predicate", shown(name))),
            None => self.undeclared(name),
        }
    }

    /// Where a predicate goes.
    pub(crate) fn predicate_destination(
        &mut self,
        operand: &Operand<'a>,
    ) -> Result<Slot, PtxError> {
        match *operand {
            Operand::Name { name, part: None, offset: 0, negated: false } => {
                self.predicate_register(name)
            }
            _ => self.error("the result must be a predicate register"),
        }
    }

    /// A predicate, negated by an extra instruction where it is written so.
    pub(crate) fn predicate_source(
        &mut self,
        operand: &Operand<'a>,
        temporary: u8,
    ) -> Result<Slot, PtxError> {
        match *operand {
            Operand::Name { name, part: None, offset: 0, negated } => {
                let slot = self.predicate_register(name)?;
                if !negated {
                    return Ok(slot);
                }
                let d = self.temporary(Type::Pred, temporary)?;
                self.emit(crate::ir::Op::PredNot { d, a: slot })?;
                Ok(d)
            }
            Operand::Integer(value) => {
                let d = self.temporary(Type::Pred, temporary)?;
                self.emit(crate::ir::Op::PredSet { d, value: value != 0 })?;
                Ok(d)
            }
            _ => self.error("this operand must be a predicate register"),
        }
    }

    /// The address operand of an access to `space`, and the space in which it then lies.
    pub(crate) fn address(
        &mut self,
        operand: &Operand<'a>,
        space: Space,
    ) -> Result<(Space, Address), PtxError> {
        let Operand::Memory { base, offset } = *operand else {
            return self.error("this operand must be an address such as [%rd1+8]");
        };
        let Some(name) = base else {
            return Ok((space, Address { base: AddressBase::Absolute, offset }));
        };
        if let Some(register) = self.find_register(name)? {
            let base = match register.ty.bits() {
                64 => AddressBase::Wide(register.slot),
                32 if !matches!(space, Space::Generic | Space::Global) => {
                    AddressBase::Narrow(register.slot)
                }
                _ => return self.error(format!("'{}' cannot hold an address", shown(name))),
            };
            // The parameters of a function lie in local memory.
            let in_function = space == Space::Param && self.units.return_to.is_some();
            return Ok((if in_function { Space::Local } else { space }, Address { base, offset }));
        }
        let (lies, place) = match (self.find_local(name), self.find_module(name)) {
            (Some(LocalSymbol::Param { offset }), _) => (Space::Param, Some(offset)),
            (Some(LocalSymbol::Shared { offset }), _) => (Space::Shared, Some(offset)),
            (Some(LocalSymbol::Local { offset }), _) => (Space::Local, Some(offset)),
            (Some(LocalSymbol::Frame(place)), _) if space == Space::Param => {
                (Space::Local, Some(place.offset))
            }
            (None, Some(ModuleSymbol::Shared { .. } | ModuleSymbol::DynamicShared)) => {
                (Space::Shared, None)
            }
            (None, Some(ModuleSymbol::Global { .. })) if space != Space::Shared => (space, None),
            (None, None) => return self.undeclared(name),
            _ => return self.error(format!("'{}' is in another state space", shown(name))),
        };
        let frame = lies == Space::Local && space == Space::Param;
        let module = place.is_none() && matches!(space, Space::Local | Space::Param);
        if (lies != space && !frame) || module {
            return self.error(format!("'{}' is in another state space", shown(name)));
        }
        if let Some(place) = place {
            let offset = i64::from(place).wrapping_add(offset);
            return Ok((lies, Address { base: AddressBase::Absolute, offset }));
        }
        let slot = self.symbol_address(name, 0, Type::U64)?;
        Ok((lies, Address { base: AddressBase::Wide(slot), offset }))
    }
}

/// Special registers that keep their value while a warp runs.
fn special(name: &str, part: Option<&str>) -> Option<Preset32> {
    let special = match (name, part) {
        ("%tid", Some("x")) => Special::ThreadX,
        ("%tid", Some("y")) => Special::ThreadY,
        ("%tid", Some("z")) => Special::ThreadZ,
        ("%ntid", Some("x")) => Special::BlockSizeX,
        ("%ntid", Some("y")) => Special::BlockSizeY,
        ("%ntid", Some("z")) => Special::BlockSizeZ,
        ("%ctaid", Some("x")) => Special::BlockX,
        ("%ctaid", Some("y")) => Special::BlockY,
        ("%ctaid", Some("z")) => Special::BlockZ,
        ("%nctaid", Some("x")) => Special::GridSizeX,
        ("%nctaid", Some("y")) => Special::GridSizeY,
        ("%nctaid", Some("z")) => Special::GridSizeZ,
        ("%laneid", None) => Special::Lane,
        ("%warpid", None) => Special::Warp,
        ("%nwarpid", None) => Special::WarpCount,
        ("%smid", None) => Special::Multiprocessor,
        ("%nsmid", None) => Special::MultiprocessorCount,
        ("%lanemask_eq", None) => Special::LaneMaskEq,
        ("%lanemask_lt", None) => Special::LaneMaskLt,
        ("%lanemask_le", None) => Special::LaneMaskLe,
        ("%lanemask_gt", None) => Special::LaneMaskGt,
        ("%lanemask_ge", None) => Special::LaneMaskGe,
        ("%dynamic_smem_size", None) => Special::DynamicSharedSize,
        ("%total_smem_size", None) => Special::TotalSharedSize,
        // What the driver tells kernels beside their arguments.
        ("%envreg1", None) => Special::MeetingHigh,
        ("%envreg2", None) => Special::MeetingLow,
        // A block is a cluster of its own.
        ("%clusterid", Some(part)) => return special("%ctaid", Some(part)),
        ("%nclusterid", Some(part)) => return special("%nctaid", Some(part)),
        ("%cluster_ctaid", Some("x" | "y" | "z")) | ("%cluster_ctarank", None) => {
            return Some(Preset32::Bits(0));
        }
        ("%cluster_nctaid", Some("x" | "y" | "z")) | ("%cluster_nctarank", None) => {
            return Some(Preset32::Bits(1));
        }
        ("WARP_SZ", None) => return Some(Preset32::Bits(32)),
        _ => return None,
    };
    Some(Preset32::Special(special))
}
