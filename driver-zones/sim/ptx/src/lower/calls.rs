//! Calls of device functions. A call's parameters are copied from the caller's
//! variables to an area for arguments, and from there to the callee's; a result
//! takes the way back. So neither has to know where the other's lie.

use super::FunctionBuilder;
use super::modifiers::Modifiers;
use super::scope::{FramePlace, LocalSymbol, ModuleSymbol};
use crate::ir::{CopyPlace, FrameCopy, Op, Print, Report, Slot, Type};
use crate::parse::{Operand, PtxError, Statement, shown};

/// Longest list of arguments, in bytes.
const MAX_ARGUMENT_BYTES: u32 = 32_764;

/// What is known of the current function's parameters.
#[derive(Default)]
pub(super) struct FunctionFrame {
    result: Option<FramePlace>,
    /// Bytes of arguments so far.
    arguments: u32,
    /// Longest lists of arguments and results of the kernel's calls.
    most_arguments: u32,
    most_results: u32,
    link: Option<Slot>,
}

impl<'a> FunctionBuilder<'_, 'a> {
    /// The slot in which a call leaves its return address.
    fn link_slot(&mut self) -> Result<Slot, PtxError> {
        match self.units.frame.link {
            Some(slot) => Ok(slot),
            None => {
                let slot = self.new_slot(Type::B32)?;
                self.units.frame.link = Some(slot);
                Ok(slot)
            }
        }
    }

    pub(super) fn begin_frame(&mut self) -> Result<(), PtxError> {
        let (link, own) = (self.link_slot()?, self.new_slot(Type::B32)?);
        self.units.frame.result = None;
        self.units.frame.arguments = 0;
        self.units.return_to = Some(own);
        self.guard = crate::ir::Guard::ALWAYS;
        self.emit(Op::Enter { d: own, link })
    }

    pub(super) fn enter_with_result(&mut self, place: FramePlace) -> Result<(), PtxError> {
        if self.units.frame.result.replace(place).is_some() {
            return self.error("a function has at most one result");
        }
        Ok(())
    }

    pub(super) fn enter_with_argument(&mut self, place: FramePlace) -> Result<(), PtxError> {
        let mut used = self.units.frame.arguments;
        let from = self.argument_place(&mut used, place)?;
        self.units.frame.arguments = used;
        self.copy(from, CopyPlace::Local(place.offset), place.size)
    }

    /// The next argument's place in the area for arguments.
    fn argument_place(&mut self, used: &mut u32, of: FramePlace) -> Result<CopyPlace, PtxError> {
        let offset = used.next_multiple_of(of.align);
        let end = offset.saturating_add(of.size);
        if end > MAX_ARGUMENT_BYTES {
            return self.error(format!("the arguments take more than {MAX_ARGUMENT_BYTES} bytes"));
        }
        *used = end;
        self.units.frame.most_arguments = self.units.frame.most_arguments.max(end);
        Ok(CopyPlace::Argument(offset))
    }

    fn copy(&mut self, from: CopyPlace, to: CopyPlace, bytes: u32) -> Result<(), PtxError> {
        let copy = u32::try_from(self.code.copies.len()).unwrap_or(u32::MAX);
        self.code.copies.push(FrameCopy { from, to, bytes });
        self.emit(Op::CopyFrame { copy })
    }

    fn result_place(&mut self, size: u32) -> CopyPlace {
        self.units.frame.most_results = self.units.frame.most_results.max(size);
        CopyPlace::Result
    }

    /// `ret`: in a kernel the thread ends, in a function it goes back.
    pub(super) fn emit_return(&mut self) -> Result<(), PtxError> {
        let Some(own) = self.units.return_to else { return self.emit(Op::Exit) };
        if let Some(result) = self.units.frame.result {
            let to = self.result_place(result.size);
            self.copy(CopyPlace::Local(result.offset), to, result.size)?;
        }
        self.emit(Op::Return { a: own })
    }

    /// Gives the areas for arguments and results their places.
    pub(super) fn place_calls(&mut self) -> Result<(), PtxError> {
        let frame = &self.units.frame;
        let (arguments, results) = (frame.most_arguments, frame.most_results);
        let arguments = self.reserve_local(arguments)?;
        let results = self.reserve_local(results)?;
        for copy in &mut self.code.copies {
            for place in [&mut copy.from, &mut copy.to] {
                *place = CopyPlace::Local(match *place {
                    CopyPlace::Local(offset) => offset,
                    CopyPlace::Argument(offset) => arguments + offset,
                    CopyPlace::Result => results,
                });
            }
        }
        Ok(())
    }

    /// `call (result), function, (arguments), prototype;` with all but the function optional.
    pub(super) fn lower_call(
        &mut self,
        s: &Statement<'a>,
        m: &mut Modifiers<'a>,
    ) -> Result<(), PtxError> {
        m.take("uni");
        let (results, rest) = match s.operands.as_slice() {
            [Operand::List(results), rest @ ..] => (results.as_slice(), rest),
            rest => (&[][..], rest),
        };
        let (target, arguments) = match rest {
            [target] | [target, Operand::Name { .. }] => (target, &[][..]),
            [target, Operand::List(arguments)]
            | [target, Operand::List(arguments), Operand::Name { .. }] => {
                (target, arguments.as_slice())
            }
            _ => return m.error("its operands are not those of a call"),
        };
        let Operand::Name { name, part: None, offset: 0, negated: false } = *target else {
            return m.error("its target must be a function or a register");
        };
        let result = match results {
            [] => None,
            [name] => Some(self.frame_place(name)?),
            _ => return m.error("a call has at most one result"),
        };
        let arguments: Result<Vec<_>, _> =
            arguments.iter().map(|name| self.frame_place(name)).collect();
        self.emit_call(name, result, &arguments?)
    }

    fn emit_call(
        &mut self,
        name: &'a str,
        result: Option<FramePlace>,
        arguments: &[FramePlace],
    ) -> Result<(), PtxError> {
        let pointer = self.find_register(name)?;
        let function = match (pointer, self.find_module(name)) {
            (Some(_), _) => None,
            (None, Some(ModuleSymbol::Function { number })) => Some(number),
            _ => return self.error(format!("'{}' is not a function", shown(name))),
        };
        let own = function.and_then(|number| self.module.function_source(number)).is_some();
        if function.is_some() && !own {
            return self.emit_service(name, result, arguments);
        }
        let mut used = 0;
        for argument in arguments {
            let to = self.argument_place(&mut used, *argument)?;
            self.copy(CopyPlace::Local(argument.offset), to, argument.size)?;
        }
        let link = self.link_slot()?;
        match (function, pointer) {
            (Some(function), _) => {
                self.note_call(function);
                // The function's number, until it is known where it lies.
                self.emit(Op::Call { target: function, link })?;
            }
            (None, Some(pointer)) if pointer.ty.bits() == 64 => {
                // Of those without a body, none can be called anyway.
                let module = self.module;
                for function in module.pointed_at() {
                    if module.function_source(*function).is_some() {
                        self.want_function(*function);
                    }
                }
                self.emit(Op::CallIndirect { a: pointer.slot, link })?;
            }
            _ => return self.error(format!("'{}' cannot hold an address", shown(name))),
        }
        if let Some(result) = result {
            let from = self.result_place(result.size);
            self.copy(from, CopyPlace::Local(result.offset), result.size)?;
        }
        Ok(())
    }

    /// A parameter variable that a call names.
    fn frame_place(&self, name: &str) -> Result<FramePlace, PtxError> {
        match self.find_local(name) {
            Some(LocalSymbol::Frame(place)) => Ok(place),
            _ => self.error(format!(
                "'{}' is no variable of the parameter space; a call takes no other",
                shown(name)
            )),
        }
    }

    /// Calls of what the driver provides.
    fn emit_service(
        &mut self,
        name: &str,
        result: Option<FramePlace>,
        arguments: &[FramePlace],
    ) -> Result<(), PtxError> {
        let sizes: Vec<u32> = arguments.iter().map(|place| place.size).collect();
        match (name, sizes.as_slice(), result) {
            ("vprintf", [8, 8], Some(FramePlace { size: 4, offset: result, .. })) => {
                let print = u32::try_from(self.code.prints.len()).unwrap_or(u32::MAX);
                let [format, values] = [arguments[0].offset, arguments[1].offset];
                self.code.prints.push(Print { format, values, result });
                self.emit(Op::Print { print })
            }
            ("__assertfail", [8, 8, 4, 8, 8], None) => {
                let report = u32::try_from(self.code.reports.len()).unwrap_or(u32::MAX);
                let [message, file, line, function, _] =
                    [0, 1, 2, 3, 4].map(|i| arguments[i].offset);
                self.code.reports.push(Report { message, file, line, function });
                self.emit(Op::AssertFail { report })
            }
            _ => self.error(format!(
                "the function '{}' has no body in this text, and the simulated GPU provides none",
                shown(name)
            )),
        }
    }
}
